"""What pages ask of several adapters, in names, turned into jobs' requests. Knows no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..spectral.errors import SettingError
from . import files
from .addresses import both
from .jobs.job import JobConflict
from .mix_request import ConflictRequest, FuseRequest, Mixed, checked, weight_of

if TYPE_CHECKING:
    from .jobs.job import Entry
    from .places import Places

CONFLICT, PICTURE = "conflict.json", "conflict.png"  # in the folder of a comparison


def conflict_request(places: Places, names: Sequence[str], base: str | None) -> ConflictRequest:
    """The comparison of adapters and LoRA files by name. Raises SettingError for unknown names and a wrong number."""
    mixed = [Mixed(name, places.source(name)) for name in _different(names)]
    asked = ConflictRequest(tuple(mixed), places.base(base) if base else None)
    return ConflictRequest.from_json(asked.as_json())


def fuse_request(
    places: Places,
    adapters: Sequence[Mapping[str, Any]],
    base: str | None,
    name: str,
    asked: Mapping[str, Any],
    taken: Collection[Path],
) -> FuseRequest:
    """The fusion of [{name, weight}] into a new adapter. asked: mode, to, rank, energy as far as they are given.

    Raises SettingError for unknown names, weights and settings that cannot be.
    """
    rows = [_row(row) for row in adapters]
    _different([row[0] for row in rows])
    mixed = tuple(Mixed(known, places.source(known), weight) for known, weight in rows)
    given = checked({key: value for key, value in asked.items() if value is not None})
    out = places.free_out(name, taken)
    lora = None if places.loras is None else files.free_name(places.loras / out.name)
    made = FuseRequest(mixed, out, lora, base=places.base(base) if base else None, **given)
    return FuseRequest.from_json(made.as_json())


def title(names: Sequence[str]) -> str:
    """What a comparison is called in lists."""
    plain = [Path(name).name.removesuffix(".safetensors").removesuffix(".lora") for name in names]
    text = " / ".join(plain)
    return text if len(text) <= 150 else f"{text[:140]} …"


def found(entry: Entry) -> dict[str, Any]:
    """What a comparison found, with its picture's address.

    Raises SettingError for another kind of job, JobConflict for one that has not come to its end.
    """
    if entry.job.kind != "conflict":
        raise SettingError(f"job {entry.id} ({entry.job.kind}, {entry.job.name}) is no comparison of adapters")
    try:
        conflict = json.loads((entry.run / CONFLICT).read_bytes())
    except FileNotFoundError as error:
        raise JobConflict(
            f"{entry.job.name} ({entry.id}) is {entry.state.status}; ask again when it is done."
        ) from error
    return {**conflict, "picture": both(entry.id, entry.run / PICTURE, PICTURE)}


def _different(names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise SettingError(f"adapters: found {twice[:100]!r} twice; expected different ones")
    return names


def _row(row: object) -> tuple[str, float]:
    if not isinstance(row, Mapping) or set(row) - {"name", "weight"} or not isinstance(row.get("name"), str):
        raise SettingError(f"adapters: found {str(row)[:80]}, expected a name and a weight")
    return row["name"], weight_of(row.get("weight", 1.0))
