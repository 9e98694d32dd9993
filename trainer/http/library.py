"""Routes of adapter files: what each says of itself, its preview, what it moved, and its texts changed."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from ...spectral.errors import SettingError
from .. import library
from ..studio import Studio
from .call import Call
from .datasets import kind_of
from .route import Missing, Picture, Route

_TEXTS = ("title", "description", "licence", "author")
_LONGEST = 4096


def info(studio: Studio, call: Call) -> dict[str, Any]:
    """The facts of a file."""
    return library.info(studio.places, call.text("name"))


def preview(studio: Studio, call: Call) -> Picture:
    """The preview in a file, encoded anew."""
    data = library.preview(studio.places, call.text("name"))
    if data is None:
        raise Missing("there is no preview in this file")
    return Picture(data, kind_of(data), lasting=call.text("v", "") != "")


def spectrum(studio: Studio, call: Call) -> dict[str, Any]:
    """What an adapter's training moved."""
    return library.spectrum(studio.places, call.text("name"))


def edit(studio: Studio, call: Call) -> dict[str, Any]:
    """Change a file's texts and preview; what is not given stays, what is empty is taken out."""
    changes: dict[str, Any] = {
        name: call.text(name, most=_LONGEST) for name in _TEXTS if call.values.get(name) is not None
    }
    if call.values.get("trigger_words") is not None:
        changes["trigger_words"] = tuple(call.texts("trigger_words", 100))
    if call.values.get("preview") is not None:
        changes["preview"] = _picture(call.text("preview", most=library.PREVIEW * 4 // 3 + 4))
    library.edit(studio.places, call.text("name"), changes)
    return library.info(studio.places, call.text("name"))


def _picture(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SettingError(f"preview is no base64 ({error}); expected a picture's bytes") from error


ROUTES = (
    Route("GET", "/adapters/info", info, ("name",)),
    Route("GET", "/adapters/preview", preview, ("name", "v")),
    Route("GET", "/adapters/spectrum", spectrum, ("name",)),
    Route(
        "POST",
        "/adapters/edit",
        edit,
        ("name", *_TEXTS, "trigger_words", "preview"),
        most=library.PREVIEW * 4 // 3 + (64 << 10),
    ),
)
