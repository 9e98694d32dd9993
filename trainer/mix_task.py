"""Comparing and fusing adapters as jobs: files in, a picture of the conflict or one file out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..spectral import fusion
from ..spectral.basis import WeightSource
from ..spectral.cache import BasisCache
from ..spectral.conflict import Conflict, conflict
from ..spectral.convert import Export, to_diff, to_lora
from ..spectral.errors import SettingError
from ..spectral.export import write_export
from ..spectral.file import save
from ..spectral.open import open_source
from . import files
from .events import Listener, Phase, Progress, Saved, silent
from .mix_request import ConflictRequest, FuseRequest, Mixed
from .mixing import CONFLICT, PICTURE
from .places import LORA_SUFFIX, SUFFIX
from .sample_files import save_png
from .task import Done, Task

if TYPE_CHECKING:
    from ..spectral.fusion import Fused, FusedAdapter
    from ..spectral.source import Source

Weights = Mapping[str, WeightSource]


def compare(
    request: Mapping[str, Any],
    folder: Path,
    listen: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
    cache: BasisCache | None = None,
) -> Done:
    """Compare adapters as a job: conflict.json and conflict.png in `folder`, events in its events.jsonl.

    request: as for `ConflictRequest.from_json`. A stop is heard between layers. Raises SpectralError for files that
    cannot be read and adapters that do not belong together.
    """
    with Task(folder, listen, stop) as task:
        found = compared(ConflictRequest.from_json(request), cache, task.tell, task.stop)
        task.tell(Phase("drawing"))
        from .conflict_plot import draw

        save_png(folder / PICTURE, draw(found))
        files.write_bytes(folder / CONFLICT, json.dumps(found.as_json(), allow_nan=False).encode())
        return task.end(Done("finished", found.sentence, folder / PICTURE))


def compared(
    request: ConflictRequest, cache: BasisCache | None, tell: Listener, stop: Callable[[], bool] | None = None
) -> Conflict:
    """The conflict of the request's adapters."""
    sources = open_all(request.adapters, tell)
    weights = None if request.base is None else base_weights(request.base, tell)
    tell(Phase("comparing"))
    return conflict(sources, weights, cache, lambda *at: tell(Progress(*at)), stop)


def fuse(
    request: Mapping[str, Any],
    folder: Path,
    listen: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
    cache: BasisCache | None = None,
) -> Done:
    """Fuse adapters as a job: one file, events in `folder`/events.jsonl.

    request: as for `FuseRequest.from_json`. A stop is heard until the file is written. Raises SpectralError for modes
    and formats that do not fit the adapters.
    """
    with Task(folder, listen, stop) as task:
        path, text = fused(FuseRequest.from_json(request), cache, task.tell, task.stop)
        size = path.stat().st_size
        task.tell(Saved(path, size))
        return task.end(Done("finished", f"Wrote {path} ({size:,} bytes). {text}", path))


def fused(
    request: FuseRequest, cache: BasisCache | None, tell: Listener, stop: Callable[[], bool] | None = None
) -> tuple[Path, str]:
    """Fuse, check the result layer by layer, write it: its path, and what there is to say of it."""
    ingredients = [
        fusion.Ingredient(source, mixed.weight)
        for source, mixed in zip(open_all(request.adapters, tell), request.adapters)
    ]
    weights = None if request.base is None else base_weights(request.base, tell)
    tell(Phase("fusing"))
    told = {"progress": lambda *at: tell(Progress(*at)), "cancelled": stop}
    made = fusion.fuse(ingredients, request.mode, weights=weights, cache=cache, name=request.out.stem, **told)
    if request.to == "native" and made.native is None:
        raise SettingError(f"to=native: this fusion is no single adapter: {made.why}; choose auto, lora or diff")
    tell(Phase("checking"))
    report = fusion.verify(made, ingredients, request.mode, weights, cache=cache, **told)
    path, lost = _write(made, request, weights, cache, told, tell)
    return path, " ".join(part for part in (made.text, f"{report.text}.", lost) if part)


def _write(
    made: Fused | FusedAdapter,
    request: FuseRequest,
    weights: Weights | None,
    cache: BasisCache | None,
    told: Mapping[str, Any],
    tell: Listener,
) -> tuple[Path, str]:
    """The file, and what it has lost, in words."""
    if made.native is not None and request.to in ("auto", "native"):
        tell(Phase("saving"))
        return save(made.native, files.free_name(request.out)), ""
    tell(Phase("exporting"))
    export = _export(made, request, weights, {**told, "cache": cache})
    tell(Phase("saving"))
    path = write_export(export, made, _free(request.other))
    return path, f"What the file lost: {export.residual}."


def _free(path: Path) -> Path:
    """The path, or NAME-2 and so on where a file has appeared, its folder made."""
    suffix = LORA_SUFFIX if path.name.endswith(LORA_SUFFIX) else SUFFIX
    try:
        files.make_folder(path.parent)
    except OSError as error:
        raise files.refusal("making the folder of LoRA files", path.parent, error, "Choose another") from error
    paths = (path.with_name(f"{name}{suffix}") for name in files.numbered(path.name.removesuffix(suffix)))
    return next(free for free in paths if not free.exists())


def _export(
    made: Fused | FusedAdapter, request: FuseRequest, weights: Weights | None, told: Mapping[str, Any]
) -> Export:
    """auto: a LoRA where it loses nothing, which neither full rank nor norm gains allow; else a difference."""
    limited = request.rank is not None or request.energy is not None
    automatic = request.to == "auto" and not limited
    if request.to == "diff" or (automatic and made.gains):
        return to_diff(made, weights, **told)
    try:
        return to_lora(made, weights, rank=request.rank, energy=request.energy, **told)
    except SettingError:
        if not automatic:
            raise
        return to_diff(made, weights, **told)


def open_all(adapters: Sequence[Mixed], tell: Listener) -> list[Source]:
    """The files as sources, under the names that lists show without their endings."""
    tell(Phase("reading the adapters"))
    sources = []
    for mixed in adapters:
        source = open_source(mixed.path)
        source.name = mixed.name.rpartition("/")[2].removesuffix(SUFFIX).removesuffix(".lora")
        sources.append(source)
    return sources


def base_weights(base: str, tell: Listener) -> Weights:
    """{layer: function that reads its weight} of a base model."""
    tell(Phase("opening the base model"))
    from .console import quiet_libraries

    quiet_libraries()
    from .base_weights import open_base

    return open_base(base)
