"""Spectral files of other tools, written as adapters of this package, as LoRAs or as differences.

svdiff-pytorch's folders and files of shifts, checkpoints of the authors' code of Spectral Adapter, and SODA's lists.
Pickles are read with torch's weights_only, which makes tensors and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ..spectral.adapter import Adapter
from ..spectral.columns import ColumnsLike
from ..spectral.container import DTYPES, open_file, read_header, refusal, refuse_existing
from ..spectral.convert import to_diff, to_lora
from ..spectral.converted import Converted
from ..spectral.errors import SettingError
from ..spectral.export import write_export
from ..spectral.file import save
from ..spectral.foreign import kind_of_bytes
from ..spectral.foreign_frames import from_official, is_official
from ..spectral.foreign_shifts import from_shifts, is_shifts
from ..spectral.pickles import read_pickle
from ..spectral.tensors import TensorFile

if TYPE_CHECKING:
    from ..spectral.basis import Progress
    from .base import Base

Target = Literal["native", "lora", "diff"]
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_SHIFTS = ("spectral_shifts.safetensors", "spectral_shifts_te.safetensors")


@dataclass(frozen=True)
class Import:
    """What to write. columns: those of an official checkpoint, which says none. dtype: of an adapter's parameters.

    base: the model that the file was trained on, needed for shifts and SODA's lists.
    """

    path: Path
    out: Path
    to: Target = "native"
    base: str | None = None
    columns: ColumnsLike = None
    rank: int | None = None
    energy: float | None = None
    dtype: Literal["F16", "F32"] | None = None


def is_foreign(path: Path) -> bool:
    """Whether it looks like a spectral file of another tool. Raises AdapterFileError for an unreadable one."""
    if path.is_dir() or path.suffix.lower() in _PICKLES:
        return True
    if path.suffix.lower() != ".safetensors":
        return False
    with open_file(path) as f:
        return is_shifts(read_header(f, path, kind_of_bytes, strict=False).entries)


def convert_foreign(request: Import, progress: Progress | None = None) -> tuple[Path, str, tuple[str, ...]]:
    """Write the file: its path, what it lost, in words, and what a person should know.

    Raises AdapterFileError for files that are none of these or damaged, SettingError for what is missing,
    WrongBaseError for a base that does not fit.
    """
    refuse_existing(request.out, overwrite=False)
    load = _Lazy(request)
    if request.path.is_dir() or request.path.suffix.lower() == ".safetensors":
        files = [TensorFile(path) for path in _shift_files(request.path)]
        found = from_shifts(files, load.base().weights(), progress=progress)
        return _write(request, found, load, torch.float32)
    content = read_pickle(request.path)
    if is_official(content):
        found = from_official(content, request.path, request.columns)
        return _write(request, found, load, torch.float16)
    return _soda(request, content, load, progress)


class _Lazy:
    """The base, loaded when it is asked for: official checkpoints need none."""

    def __init__(self, request: Import):
        self._request, self._base = request, None

    def base(self) -> Base:
        if self._request.base is None:
            raise SettingError(
                f"{self._request.path.name}: this kind of file holds shifts without the directions that they move; "
                "give the base model it was trained on with --base"
            )
        if self._base is None:
            from .console import quiet_libraries  # diffusers is loaded only where a base is

            quiet_libraries()
            from .models import load_base

            self._base = load_base(self._request.base, weights_only=True, dtype=None)
        return self._base

    @property
    def known(self) -> Base | None:
        return self._base


def _soda(
    request: Import, content: object, load: _Lazy, progress: Callable[[int, int, str], None] | None
) -> tuple[Path, str, tuple[str, ...]]:
    from .foreign_soda import SodaList, is_soda  # needs diffusers' module trees

    if not is_soda(content):
        kinds = "a checkpoint of Spectral Adapter's code ('params' with spectral_A) or a SODA list ('unet': [...])"
        advice = "Other trainings' checkpoints are loaded where they were trained"
        raise refusal(request.path, "its contents", _described(content), kinds, advice)
    source = SodaList(content, request.path, load.base())
    note = ("The file names neither its base nor its layers; they were taken in the order of its own injector.",)
    if request.to == "native":
        made = source.adapter(load.base().weights(), progress=progress)
        path, lost, _ = _write(request, made, load, torch.float32)
        return path, lost, note
    weights = load.base().weights()
    if request.to == "lora":
        export = to_lora(source, weights, rank=request.rank, energy=request.energy, progress=progress)
    else:
        export = to_diff(source, weights, progress=progress)
    return write_export(export, source, request.out), str(export.residual), note


def _write(request: Import, found: Converted, load: _Lazy, dtype: torch.dtype) -> tuple[Path, str, tuple[str, ...]]:
    if request.to == "native":
        base = load.known
        path = save(
            found.adapter,
            request.out,
            base_name=base.name if base else "",
            base_hash=base.file_hash if base else "",
            dtype=DTYPES[request.dtype] if request.dtype else dtype,
        )
        return path, str(found.residual), found.notes
    weights = load.base().weights() if _needs_base(found.adapter) else None
    if request.to == "lora":
        export = to_lora(found.adapter, weights, rank=request.rank, energy=request.energy)
    else:
        export = to_diff(found.adapter, weights)
    return write_export(export, found.adapter, request.out), str(export.residual), found.notes


def _needs_base(adapter: Adapter) -> bool:
    return any(layer.frames is None for layer in adapter.layers.values())


def _shift_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [path / name for name in _SHIFTS if (path / name).is_file()]
    if not files:
        expected = " or ".join(_SHIFTS)
        raise refusal(path, "the folder", "no file of shifts", expected, "Choose the folder that svdiff-pytorch wrote")
    return files


def _described(content: object) -> str:
    if isinstance(content, dict):
        return f"a table of {', '.join(map(repr, list(content)[:4]))}{', ...' if len(content) > 4 else ''}"
    return f"a {type(content).__name__}"
