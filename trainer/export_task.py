"""An adapter, or a file of the LoRA family, as a file for programs without this package: a LoRA, or the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..spectral.container import refuse_existing
from ..spectral.convert import to_diff, to_lora
from ..spectral.errors import SettingError
from ..spectral.export import write_export
from ..spectral.open import open_source
from ..spectral.source import AdapterSource, Source
from .events import Listener, Phase, Saved, silent
from .task import Done, Task

Kind = Literal["lora", "diff"]
KINDS: tuple[Kind, ...] = ("lora", "diff")
MOST_RANK = 4096


@dataclass(frozen=True)
class ExportRequest:
    """What to export. base: model to read where the file does not hold all that is needed.

    rank: of a LoRA, at most. energy: the share of each layer's ||change||^2 that a LoRA holds at least, such as 0.99.
    out: file to write; never overwritten.
    """

    adapter: Path
    out: Path
    to: Kind = "lora"
    base: str | None = None
    rank: int | None = None
    energy: float | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ExportRequest:
        """Read a request made of plain values. Raises SettingError for unknown, missing or unusable ones."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise SettingError(f"an export has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
        for name in ("adapter", "out"):
            if not isinstance(values.get(name), (str, Path)) or not str(values[name]):
                raise SettingError(f"export: found {name}={values.get(name)!r}, expected the path of a file")
        request = cls(**{**values, "adapter": Path(values["adapter"]), "out": Path(values["out"])})
        if request.to not in KINDS:
            raise SettingError(f"export: found to={request.to!r}, expected one of {', '.join(KINDS)}")
        if request.base is not None and not isinstance(request.base, str):
            raise SettingError(f"export: found base={request.base!r}, expected the path of a model or none")
        if request.rank is not None and not (type(request.rank) is int and 1 <= request.rank <= MOST_RANK):
            raise SettingError(f"export: found rank={request.rank!r}, expected 1 to {MOST_RANK}, or none")
        share = request.energy
        if share is not None and not (type(share) in (int, float) and 0 < share <= 1):
            raise SettingError(f"export: found energy={share!r}, expected a share above 0, up to 1, or none")
        return request


def convert(request: ExportRequest, listen: Listener = silent) -> tuple[Path, str]:
    """Write the export: its path, and what it lost, in words.

    The base is loaded only where the file needs it: a portable one is exported without. Raises SettingError where rank
    or base are missing, AdapterFileError for files that cannot be read or written.
    """
    refuse_existing(request.out, overwrite=False)
    listen(Phase("loading"))
    source = open_source(request.adapter)
    needed = any(source.needs_weight(layer) for layer in source.shapes)
    _check(request, source, needed)  # before the base is loaded, which may take minutes
    weights = _weights(request.base) if needed else None
    listen(Phase("exporting"))
    if request.to == "lora":
        made = to_lora(source, weights, rank=request.rank, energy=request.energy)
    else:
        made = to_diff(source, weights)
    listen(Phase("saving"))
    beside = f"; without {len(source.left_out)} tensors that change no weight" if source.left_out else ""
    return write_export(made, source, request.out), f"{made.residual}{beside}"


def export(
    request: Mapping[str, Any],
    folder: Path,
    listen: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
) -> Done:
    """Export as a job: `request` as for `ExportRequest.from_json`, events in `folder`/events.jsonl.

    A stop is heard before the work begins; after that an export is written whole. Raises SpectralError as `convert`.
    """
    with Task(folder, listen, stop) as task:
        wanted = ExportRequest.from_json(request)
        if task.stop():
            return task.end(Done("stopped", "Stopped before anything was written.", resumable=True))
        path, lost = convert(wanted, task.tell)
        size = path.stat().st_size
        task.tell(Saved(path, size))
        return task.end(Done("finished", f"Wrote {path} ({size:,} bytes). What the export lost: {lost}.", path))


def _check(request: ExportRequest, source: Source, needed: bool) -> None:
    unlimited = request.rank is None and request.energy is None
    if request.to == "lora" and unlimited and isinstance(source, AdapterSource) and not source.adapter.method.portable:
        raise SettingError(
            f"{request.adapter.name}: {source.kind} changes every direction of a weight, so no LoRA holds it exactly; "
            "give a rank or an energy for the best approximation, or export a difference file (convert --to diff)"
        )
    if needed and request.base is None:
        raise SettingError(
            f"{request.adapter.name}: found a file whose changes can only be known with the base model it was trained "
            "on; give the base with --base"
        )


def _weights(base: str) -> Mapping[str, Any]:
    from .console import quiet_libraries  # diffusers is loaded only by exports that need a base

    quiet_libraries()
    from .models import load_base

    return load_base(base, weights_only=True, dtype=None).weights()
