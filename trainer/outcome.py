"""What is taken out of a training: its adapters by name, and the jobs that work on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..spectral.errors import SettingError
from . import files
from .checkpoint import ADAPTER
from .grid_request import FINAL
from .jobs.job import ACTIVE, JobConflict
from .places import LORA_SUFFIX, SUFFIX, inside

if TYPE_CHECKING:
    from .jobs.job import Entry

UNDER_WAY = ("queued", *ACTIVE)


def check_training(entry: Entry) -> Entry:
    """The entry, where it is a training's. Raises SettingError."""
    if entry.job.kind != "train":
        raise SettingError(
            f"job {entry.id} ({entry.job.kind}, {entry.job.name}) is no training; expected the id of one"
        )
    return entry


def check_at_rest(entry: Entry) -> Entry:
    """The entry, where it is a training's that keeps its checkpoints. Raises SettingError, JobConflict.

    One at work removes old ones, perhaps before the job that needs them comes to them.
    """
    if check_training(entry).state.status in UNDER_WAY:
        raise JobConflict(
            f"{entry.job.name} ({entry.id}) is {entry.state.status}, and its checkpoints change. Wait until it has "
            "finished, or stop it."
        )
    return entry


def finished_adapter(entry: Entry) -> Path | None:
    """The file that the training has written; it may have been moved since."""
    return None if entry.state.adapter is None else Path(entry.state.adapter)


def adapter_of(entry: Entry, checkpoint: str = FINAL) -> Path:
    """The adapter file of a checkpoint, by its name, or the finished one. Raises SettingError where it is not there."""
    if checkpoint == FINAL:
        found, said = finished_adapter(entry), "finished adapter"
    else:
        found, said = inside(entry.run, "checkpoints", checkpoint, ADAPTER), f"checkpoint {checkpoint}"
    if found is None or not found.is_file():
        raise SettingError(f"{entry.job.name}: found no {said}; expected one that the run has kept")
    return found


def export_request(entry: Entry, asked: Mapping[str, Any], taken: Collection[Path]) -> dict[str, Any]:
    """The request for a LoRA beside the training's adapter, for `export_task`.

    asked: "checkpoint", a name or "final", and "rank", for methods of full rank; each may be missing or None.
    """
    source = adapter_of(entry, asked.get("checkpoint") or FINAL)
    out = _free_lora(finished_adapter(entry) or Path(entry.job.spec["out"]), taken)
    return {
        "adapter": str(source),
        "base": entry.job.spec["base"],
        "out": str(out),
        "to": "lora",
        "rank": asked.get("rank"),
    }


def _free_lora(adapter: Path, taken: Collection[Path]) -> Path:
    """The first of NAME.lora.safetensors, NAME-2.lora.safetensors, ... that neither exists nor is taken."""
    stem = adapter.name.removesuffix(SUFFIX)
    paths = (adapter.with_name(f"{name}{LORA_SUFFIX}") for name in files.numbered(stem))
    return next(path for path in paths if path not in taken and not path.exists())
