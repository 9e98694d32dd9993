"""Routes of a job's pictures, each by the job's id and a name of a known form."""

from __future__ import annotations

import re
from pathlib import Path

from ...spectral.errors import SettingError
from ..mixing import PICTURE
from ..overview import LOSS, SHEET
from ..places import inside
from ..studio import Studio
from .call import Call
from .datasets import kind_of
from .route import Missing, Picture, Route

_LARGEST = 64 << 20  # bytes of a picture that is served as it is
_SAMPLE = re.compile(r"step-\d{6,12}-\d{2,4}\.png")
_CELL = re.compile(r"(base|c\d{1,4}-s\d{1,4})-p\d{1,4}\.png")


def sample(studio: Studio, call: Call) -> Picture:
    """A sample picture."""
    return _picture(studio, call, _SAMPLE, "samples", call.path["name"])


def cell(studio: Studio, call: Call) -> Picture:
    """A picture of a grid."""
    return _picture(studio, call, _CELL, "grid", call.path["name"])


def loss(studio: Studio, call: Call) -> Picture:
    """The plot of the loss that the run drew."""
    return _picture(studio, call, None, LOSS)


def sheet(studio: Studio, call: Call) -> Picture:
    """The run's samples on one sheet."""
    return _picture(studio, call, None, SHEET)


def conflict(studio: Studio, call: Call) -> Picture:
    """The picture of a comparison."""
    return _picture(studio, call, None, PICTURE)


def _picture(studio: Studio, call: Call, form: re.Pattern[str] | None, *parts: str) -> Picture:
    entry = studio.store.entry(call.path["id"])
    if form is not None and form.fullmatch(parts[-1]) is None:
        raise SettingError(f"{parts[-1][:100]!r} is no name of a picture of a job")
    path = inside(entry.run, *parts)
    if not path.is_file():
        raise Missing(f"there is no picture {parts[-1]} in this job")
    lasting = call.text("v", "") != ""
    if call.values.get("size") is None:
        return Picture(_whole(path), "image/png", lasting)
    from ..thumbs import thumbnail

    data = thumbnail(path, call.whole("size", None, 16, 1024), studio.places.home / "thumbs")
    return Picture(data, kind_of(data), lasting)


def _whole(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise SettingError(f"{path.name} is larger than {_LARGEST >> 20} MB; open the job's folder to see it")
    data = path.read_bytes()
    if kind_of(data) != "image/png":
        raise SettingError(f"{path.name} is no PNG picture")
    return data


ROUTES = (
    Route("GET", "/jobs/{id}/files/samples/{name}", sample, ("size", "v")),
    Route("GET", "/jobs/{id}/files/grid/{name}", cell, ("size", "v")),
    Route("GET", f"/jobs/{{id}}/files/{LOSS}", loss, ("size", "v")),
    Route("GET", f"/jobs/{{id}}/files/{SHEET}", sheet, ("size", "v")),
    Route("GET", f"/jobs/{{id}}/files/{PICTURE}", conflict, ("size", "v")),
)
