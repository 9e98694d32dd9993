"""The adapter files there are: listed, looked into, edited. By name alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..spectral.errors import SettingError
from .jobs.job import JobConflict

if TYPE_CHECKING:
    from .places import Places

PREVIEW = 12 << 20  # bytes of a picture that is sent in as preview
_SHOWN = 512  # pixels of a preview's side


def listing(places: Places) -> list[dict[str, Any]]:
    """[{name, kind: "adapter" or "lora", bytes, editable}]."""
    own = [_listed(name, path, "adapter") for name, path in places.adapter_files().items()]
    return [*own, *(_listed(name, path, "lora") for name, path in places.lora_files().items())]


def info(places: Places, name: str) -> dict[str, Any]:
    """What a file says of itself (`spectral.info.Info`), and its name, path, kind and whether it can be edited here.

    Raises SettingError for an unknown name, AdapterFileError for a file that cannot be read.
    """
    path = places.source(name)
    found = path.stat()
    kind = "adapter" if name in places.adapter_files() else "lora"
    here = {"name": name, "path": str(path), "kind": kind, "editable": kind == "adapter" and _is_writable(path)}
    return {**_facts(path, found.st_mtime_ns, found.st_size), **here}


def preview(places: Places, name: str) -> bytes | None:
    """The picture in a file's metadata, encoded anew; None where it has none. Raises PictureFault for a broken one."""
    from ..spectral.preview import read_preview
    from .decode import decode, turn
    from .thumbs import encoded

    blob = read_preview(places.source(name))
    if blob is None:
        return None
    with turn(blob):
        return encoded(decode(blob, least=_SHOWN), _SHOWN)


def spectrum(places: Places, name: str) -> dict[str, Any]:
    """What an adapter's training moved, by layer and column. Raises SettingError for files without columns."""
    from ..spectral.file import load
    from ..spectral.spectrum import spectrum

    path = places.source(name)
    if name not in places.adapter_files():
        raise SettingError(f"{name}: found a LoRA, which knows no singular directions; compare it with a base instead")
    return spectrum(load(path))


def edit(places: Places, name: str, changes: Mapping[str, Any]) -> None:
    """Write new texts or another preview into an adapter file; see `edit.edit` for what can be changed.

    Raises SettingError, AdapterFileError, PictureFault, and JobConflict where its folder cannot be written.
    """
    from .edit import edit

    path = places.adapter(name)
    if not _is_writable(path):
        raise JobConflict(f"{name}: its folder cannot be written; move the file to another one first.")
    edit(path, **changes)


@lru_cache(maxsize=1024)
def _facts(path: Path, _changed: int, _size: int) -> Mapping[str, Any]:
    """Kept by the file's time: a page that lists hundreds of files asks for all of them, and each is read whole."""
    from ..spectral.info import read_info

    return read_info(path).as_json()


def _listed(name: str, path: Path, kind: str) -> dict[str, Any]:
    try:
        size = path.stat().st_size
    except OSError:
        return {"name": name, "kind": kind, "bytes": None, "editable": False}
    return {"name": name, "kind": kind, "bytes": size, "editable": kind == "adapter" and _is_writable(path)}


def _is_writable(path: Path) -> bool:
    """Whether the file can be replaced, which needs its folder."""
    return os.access(path.parent, os.W_OK)
