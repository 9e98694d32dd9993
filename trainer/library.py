"""The adapter files there are: listed, looked into, edited. By name alone."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..spectral.errors import SettingError
from .jobs.job import JobConflict

if TYPE_CHECKING:
    from .places import Places

PREVIEW = 12 << 20  # bytes of a picture that is sent in as preview
_THUMBNAIL = "modelspec.thumbnail"  # a data URL
_LARGEST = 512  # pixels of a preview's side


def listing(places: Places) -> list[dict[str, Any]]:
    """[{name, kind: "adapter" or "lora", bytes, editable}]."""
    own = [_listed(name, path, "adapter") for name, path in places.adapter_files().items()]
    return [*own, *(_listed(name, path, "lora") for name, path in places.lora_files().items())]


def info(places: Places, name: str) -> dict[str, Any]:
    """What a file says of itself; see docs/routes.md. preview: whether it has one.

    Raises SettingError for an unknown name, AdapterFileError for a file that cannot be read.
    """
    path = places.source(name)
    if name in places.adapter_files():
        from ..spectral.info import read_info

        facts, kind = read_info(path).as_json(), "adapter"
    else:
        facts, kind = _lora_facts(path), "lora"
    shown = {"name": name, "path": str(path), "kind": kind, "editable": kind == "adapter" and _is_writable(path)}
    return {**facts, **shown, "preview": _THUMBNAIL in _metadata(path)}


def preview(places: Places, name: str) -> bytes | None:
    """The picture in a file's metadata, encoded anew; None where it has none. Raises PictureFault for a broken one."""
    from .decode import PictureFault, decode, turn
    from .thumbs import encoded

    text = _metadata(places.source(name)).get(_THUMBNAIL)
    if text is None:
        return None
    try:
        blob = base64.b64decode(text.partition(";base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureFault("broken", f"{name}: the preview is no base64 ({error})") from error
    with turn(blob):
        return encoded(decode(blob, least=_LARGEST), _LARGEST)


def spectrum(places: Places, name: str) -> dict[str, Any]:
    """What an adapter's training moved, by layer and column. Raises SettingError for files without columns."""
    from ..spectral.file import load
    from ..spectral.spectrum import spectrum

    if name not in places.adapter_files():
        places.source(name)
        raise SettingError(f"{name}: found a LoRA, which knows no singular directions; compare it with a base instead")
    return spectrum(load(places.adapter(name)))


def edit(places: Places, name: str, changes: dict[str, Any]) -> None:
    """Write new texts or another preview into an adapter file. Raises SettingError, AdapterFileError, JobConflict."""
    from .edit import edit

    path = places.adapter(name)
    if not _is_writable(path):
        raise JobConflict(f"{name}: its folder cannot be written; move the file to another one first.")
    edit(path, **changes)


def _lora_facts(path: Path) -> dict[str, Any]:
    """What there is to say of a file of the LoRA family."""
    from ..spectral.open import open_source

    source = open_source(path)
    words = source.metadata.get("modelspec.trigger_phrase", "")
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "title": source.metadata.get("modelspec.title") or source.metadata.get("ss_output_name", ""),
        "description": source.metadata.get("modelspec.description", ""),
        "method": source.kind,
        "family": source.family,
        "layers": len(source.shapes),
        "norms": len(source.gains),
        "base_name": source.metadata.get("ss_sd_model_name", ""),
        "trigger_words": [word.strip() for word in words.split(",") if word.strip()],
        "metadata": {key: value for key, value in source.metadata.items() if key != _THUMBNAIL},
    }


def _metadata(path: Path) -> dict[str, str]:
    """The texts in a file's header, which alone is read."""
    from ..spectral.container import open_file, read_header
    from ..spectral.foreign import kind_of_bytes

    with open_file(path) as file:
        return dict(read_header(file, path, kind_of_bytes, strict=False).metadata)


def _listed(name: str, path: Path, kind: str) -> dict[str, Any]:
    try:
        size = path.stat().st_size
    except OSError:
        return {"name": name, "kind": kind, "bytes": None, "editable": False}
    return {"name": name, "kind": kind, "bytes": size, "editable": kind == "adapter" and _is_writable(path)}


def _is_writable(path: Path) -> bool:
    """Whether the file can be replaced, which needs its folder."""
    return os.access(path.parent, os.W_OK)
