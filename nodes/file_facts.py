"""What adapters say of themselves, as text and pictures; and their texts changed, in the folders of adapters alone."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from PIL import Image
from torch import Tensor

from ..spectral.errors import SettingError
from ..spectral.info import read_info
from ..spectral.known_files import is_adapter
from ..spectral.source import AdapterSource, Source
from ..spectral.spectrum import measure
from ..trainer.decode import PictureFault, decode, turn
from ..trainer.edit import SIDES, edit, small
from ..trainer.plot import FAINT, Canvas
from ..trainer.spectrum_plot import plot_spectrum
from . import folder, glance
from .adapters import Use
from .apply import trigger_words

_EMPTY = (900, 80)  # pixels of the picture that only says why there is none
_BLANK = (64, 64)
_TEXTS = ("title", "description", "licence", "author")


@dataclass(frozen=True)
class Shown:
    """What the node gives out of one adapter."""

    text: str
    spectrum: Image.Image
    preview: Image.Image
    trigger_words: tuple[str, ...]


def shown(use: Use) -> Shown:
    """The facts of an adapter; of one that only lives in memory there are fewer. Raises AdapterFileError."""
    source, path = use.source.open(), use.source.path
    if path is None:
        return Shown(_text(use, source), _spectrum(source, use.name), _blank(), tuple(trigger_words(source)))
    info = read_info(path)
    return Shown(str(info), _spectrum(source, use.name), _preview(info.preview), tuple(info.trigger_words))


def change(use: Use, texts: Mapping[str, Any], preview: Tensor | None) -> bool:
    """Write those texts that are not empty, and the preview, into the adapter's file; whether anything was new.

    Raises SettingError for files outside the folders of adapters, AdapterFileError.
    """
    path = _editable(use)
    info = read_info(path)
    wanted: dict[str, Any] = {name: (texts.get(name) or "").strip() for name in _TEXTS}
    wanted = {name: text for name, text in wanted.items() if text and text != getattr(info, name)}
    words = tuple(word.strip() for word in (texts.get("trigger_words") or "").split(",") if word.strip())
    if words and list(words) != info.trigger_words:
        wanted["trigger_words"] = words
    if preview is not None and (made := _encoded(preview)) != info.preview:
        wanted["preview"] = made
    if wanted:
        edit(path, **wanted)
    return bool(wanted)


def _editable(use: Use) -> Path:
    """The file that may be changed: one in a folder of adapters, an adapter in one of LoRAs, wherever links lead."""
    if use.source.path is None:
        raise SettingError(f"{use.name} is no file yet; save it with Spectral Adapter Save, and edit the file")
    path = Path(os.path.realpath(use.source.path))
    kinds = (folder.FOLDER, folder.LORAS) if is_adapter(path) else (folder.FOLDER,)
    roots = [Path(os.path.realpath(root)) for kind in kinds for root in folder_paths.get_folder_paths(kind)]
    if not any(path.is_relative_to(root) for root in roots):
        raise SettingError(
            f"{use.name} lies outside the folders of adapters ({', '.join(map(str, roots))}), where alone files are "
            "edited; copy it there first"
        )
    if not os.access(path.parent, os.W_OK):
        raise SettingError(f"{use.name}: the folder {path.parent} cannot be written; copy the file to another one")
    return path


def _encoded(picture: Tensor) -> bytes:
    """The first of a batch (n, height, width, 3) in 0 to 1, as it is kept in a file: small, the same every time."""
    image = Image.fromarray((picture[0].clamp(0, 1) * 255).round().to("cpu").numpy().astype(np.uint8)[..., :3])
    image.thumbnail((SIDES[0], SIDES[0]))
    data = io.BytesIO()
    image.save(data, "PNG")
    return small(data.getvalue())


def _text(use: Use, source: Source) -> str:
    layers = f"{len(source.shapes):,}" + (f", and the gains of {len(source.gains):,} norms" if source.gains else "")
    rows = {
        "name": use.name,
        "kind": source.kind,
        "layers": layers,
        "trigger words": ", ".join(trigger_words(source)) or "none recorded",
        "file": "none yet; Spectral Adapter Save writes one",
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())


def _spectrum(source: Source, name: str) -> Image.Image:
    if isinstance(source, AdapterSource) and source.adapter.layers:
        return plot_spectrum(measure(source.adapter), f"What {name} moved")
    canvas = Canvas(_EMPTY)
    canvas.note((16, 30), f"{name}: a {source.kind} has no singular directions of its own", FAINT, points=14)
    return canvas.picture()


def _preview(data: bytes | None) -> Image.Image:
    """The picture of a file, which may hold anything; a blank one where it is none."""
    if data is None:
        return _blank()
    try:
        with turn(data):
            return decode(data, least=SIDES[0]).convert("RGB")
    except PictureFault:
        return _blank()


def _blank() -> Image.Image:
    return Image.new("RGB", _BLANK, glance.PAPER)


def lines(found: Sequence[Shown], names: Sequence[str]) -> str:
    """The texts of several, each under its name."""
    if len(found) == 1:
        return found[0].text
    return "\n\n".join(f"{name}\n{each.text}" for name, each in zip(names, found))
