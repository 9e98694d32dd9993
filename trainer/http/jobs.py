"""Routes of jobs: what there is, what each does, and all that can be asked of it."""

from __future__ import annotations

from typing import Any

from ...spectral.errors import SettingError
from ..grid_request import FINAL
from ..open_folder import can_open_folders, open_folder
from ..studio import Studio
from .call import Call
from .route import Route


def state(studio: Studio, call: Call) -> dict[str, Any]:
    """Everything that every page shows."""
    found = studio.state(call.text("known", ""))
    if "host" in found:
        can = [name for name in found["host"]["can"] if name != "open" or _can_open(studio, call)]
        found["host"] |= {"can": can, "token_needed": call.access.token is not None}
    return found


def detail(studio: Studio, call: Call) -> dict[str, Any]:
    """All of one job but its curve."""
    return studio.detail(call.path["id"])


def curve(studio: Studio, call: Call) -> dict[str, Any]:
    """The loss and what goes with it, from the given point of the given generation on."""
    return studio.curve(call.path["id"], call.whole("after", 0), call.maybe_whole("generation"))


def create(studio: Studio, call: Call) -> dict[str, Any]:
    """Queue a training."""
    from ..request import Request

    entry, notice = studio.create(Request.from_json(call.table("request")))
    return {"id": entry.id, "notice": notice}


def stop(studio: Studio, call: Call) -> dict[str, Any]:
    """Save and stop; with `now`, without waiting."""
    studio.stop(call.path["id"], call.yes("now"))
    return {}


def resume(studio: Studio, call: Call) -> dict[str, Any]:
    """Go on with a job that was stopped or interrupted."""
    studio.resume(call.path["id"], tuple(call.texts("allow", 50)))
    return {}


def sample(studio: Studio, call: Call) -> dict[str, Any]:
    """Sample pictures after the step that is under way."""
    studio.store.sample(call.path["id"])
    return {}


def save(studio: Studio, call: Call) -> dict[str, Any]:
    """A checkpoint after the step that is under way."""
    studio.store.save(call.path["id"])
    return {}


def delete(studio: Studio, call: Call) -> dict[str, Any]:
    """Move a job's folder to the trash."""
    return {"trash": str(studio.delete(call.path["id"]))}


def open_(studio: Studio, call: Call) -> dict[str, Any]:
    """Show the job's folder in the file manager of the machine that the server runs on."""
    folder = studio.store.entry(call.path["id"]).folder
    if not _can_open(studio, call):
        raise SettingError(f"this server cannot show a folder on its machine; the folder is {folder}")
    open_folder(folder)
    return {}


def _can_open(studio: Studio, call: Call) -> bool:
    return call.access.loopback and "open" in studio.host.can and can_open_folders()


def grid(studio: Studio, call: Call) -> dict[str, Any]:
    """Queue a grid of pictures: checkpoints, strengths and prompts with one seed."""
    return {"id": studio.create_grid(call.path["id"], call.values).id}


def export(studio: Studio, call: Call) -> dict[str, Any]:
    """Queue the export as a LoRA."""
    rank = None if call.values.get("rank") is None else call.whole("rank", least=1, most=4096)
    asked = {"checkpoint": call.text("checkpoint", FINAL), "rank": rank}
    return {"id": studio.create_export(call.path["id"], asked).id}


def keep(studio: Studio, call: Call) -> dict[str, Any]:
    """Put a checkpoint's adapter among the finished ones."""
    return {"adapter": studio.keep(call.path["id"], call.text("checkpoint", FINAL))}


def order(studio: Studio, call: Call) -> dict[str, Any]:
    """Bring the waiting jobs into an order."""
    studio.reorder(call.texts("order"))
    return {}


_GRID = ("checkpoints", "strengths", "prompts", "seed", "size", "steps", "guidance", "negative")
ROUTES = (
    Route("GET", "/state", state, ("known",)),
    Route("GET", "/jobs/{id}", detail),
    Route("GET", "/jobs/{id}/curve", curve, ("after", "generation")),
    Route("POST", "/jobs", create, ("request",)),
    Route("POST", "/jobs/{id}/stop", stop, ("now",)),
    Route("POST", "/jobs/{id}/resume", resume, ("allow",)),
    Route("POST", "/jobs/{id}/sample", sample),
    Route("POST", "/jobs/{id}/save", save),
    Route("POST", "/jobs/{id}/delete", delete),
    Route("POST", "/jobs/{id}/open", open_),
    Route("POST", "/jobs/{id}/grid", grid, _GRID),
    Route("POST", "/jobs/{id}/export", export, ("rank", "checkpoint")),
    Route("POST", "/jobs/{id}/keep", keep, ("checkpoint",)),
    Route("POST", "/queue", order, ("order",)),
)
