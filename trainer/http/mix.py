"""Routes of several adapters together: compared, fused, and planned so that they can be."""

from __future__ import annotations

from typing import Any

from ...spectral.errors import SettingError
from ..studio import Studio
from .call import Call
from .route import Route

_MOST = 64  # adapters or concepts in one call


def conflict(studio: Studio, call: Call) -> dict[str, Any]:
    """Queue a comparison of adapters."""
    return {"id": studio.mix_conflict(call.texts("adapters", _MOST), call.text("base", "") or None).id}


def found(studio: Studio, call: Call) -> dict[str, Any]:
    """What a comparison found."""
    return studio.conflict(call.path["id"])


def fuse(studio: Studio, call: Call) -> dict[str, Any]:
    """Queue a fusion of adapters into a file."""
    asked = {
        "mode": call.text("mode", "sum", 20),
        "to": call.text("to", "auto", 20),
        "rank": None if call.values.get("rank") is None else call.whole("rank", least=1, most=4096),
        "energy": call.values.get("energy"),
    }
    entry, notice = studio.mix_fuse(_rows(call), call.text("base", "") or None, call.text("name"), asked)
    return {"id": entry.id, "notice": notice}


def plan(studio: Studio, call: Call) -> dict[str, Any]:
    """Columns for each concept of a set; with `save`, kept under that name for trainings to read."""
    from ...spectral.column_plan import plan_columns
    from ..plan_file import keep

    made = plan_columns(
        call.texts("concepts", _MOST),
        call.whole("rank", 8),
        call.whole("start", 0),
        call.text("how", "blocks", 20),
        call.maybe_whole("pool"),
        call.whole("seed", 0),
    )
    name = call.text("save", "")
    return {**made.as_json(), **({"saved": keep(studio.places, name, made)} if name else {})}


def _rows(call: Call) -> list[Any]:
    rows = call.values.get("adapters")
    if not isinstance(rows, list) or not 1 <= len(rows) <= _MOST or not all(isinstance(row, dict) for row in rows):
        raise SettingError(f"adapters: expected a list of 1 to {_MOST} names with weights")
    return rows


ROUTES = (
    Route("POST", "/mix/conflict", conflict, ("adapters", "base")),
    Route("GET", "/jobs/{id}/conflict", found),
    Route("POST", "/mix/fuse", fuse, ("adapters", "mode", "base", "to", "rank", "energy", "name")),
    Route("POST", "/mix/plan", plan, ("concepts", "rank", "start", "how", "pool", "seed", "save")),
)
