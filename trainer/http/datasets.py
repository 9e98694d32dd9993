"""Routes of datasets: folders of pictures with captions, seen, checked and edited by name."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from ...spectral.errors import SettingError
from .. import datasets
from ..studio import Studio
from .call import Call
from .route import Picture, Route

LARGEST = 64 << 20  # bytes of an uploaded picture
_CAPTION = 4096


def listing(studio: Studio, call: Call) -> list[Any]:
    """Every dataset under the declared roots."""
    return datasets.list_datasets(studio.places)


def pictures(studio: Studio, call: Call) -> dict[str, Any]:
    """A stretch of a dataset's pictures with their captions."""
    return datasets.pictures(studio.places, call.text("id"), call.whole("offset", 0))


def thumb(studio: Studio, call: Call) -> Picture:
    """A small picture of a dataset's picture, encoded anew."""
    from ..thumbs import thumbnail

    path = datasets.picture_path(studio.places, call.text("id"), call.text("name"))
    data = thumbnail(path, call.whole("size", 256, 16, 1024), studio.places.home / "thumbs")
    return Picture(data, kind_of(data))


def check(studio: Studio, call: Call) -> dict[str, Any]:
    """What a training would find in a dataset."""
    return datasets.check(studio.places, call.text("id"), call.table("settings"), call.text("base", ""))


def create(studio: Studio, call: Call) -> dict[str, Any]:
    """Make an empty dataset."""
    return {"id": datasets.create(studio.places, call.text("name"))}


def upload(studio: Studio, call: Call) -> dict[str, Any]:
    """Add a picture to a dataset."""
    text = call.text("data", most=LARGEST * 4 // 3 + 4)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SettingError(f"data is no base64 ({error}); expected a picture's bytes") from error
    return {"name": datasets.upload(studio.places, call.text("id"), call.text("name"), data)}


def caption(studio: Studio, call: Call) -> dict[str, Any]:
    """Write a picture's caption; an empty one removes it."""
    datasets.set_caption(studio.places, call.text("id"), call.text("name"), call.text("text", most=_CAPTION))
    return {}


def remove(studio: Studio, call: Call) -> dict[str, Any]:
    """Move a picture and its caption to the trash."""
    datasets.remove(studio.places, call.text("id"), call.text("name"))
    return {}


def kind_of(data: bytes) -> Any:
    """The content type of a picture that we encoded ourselves."""
    if data[:4] == b"\x89PNG":
        return "image/png"
    return "image/webp" if data[8:12] == b"WEBP" else "image/jpeg"


ROUTES = (
    Route("GET", "/datasets", listing),
    Route("GET", "/datasets/pictures", pictures, ("id", "offset")),
    Route("GET", "/datasets/thumb", thumb, ("id", "name", "size")),
    Route("POST", "/datasets/check", check, ("id", "base", "settings")),
    Route("POST", "/datasets/create", create, ("name",)),
    Route("POST", "/datasets/upload", upload, ("id", "name", "data"), most=LARGEST * 4 // 3 + (64 << 10)),
    Route("POST", "/datasets/caption", caption, ("id", "name", "text")),
    Route("POST", "/datasets/remove", remove, ("id", "name")),
)
