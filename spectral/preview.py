"""The small picture that a file of weights carries: ModelSpec's thumbnail, a data URL of base64 text."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from .container import LONG_VALUES, open_file, read_header
from .errors import SettingError
from .foreign import kind_of_bytes

THUMBNAIL = "modelspec.thumbnail"
COVERS = "ssmd_cover_images"  # where the webui keeps pictures: a JSON list of base64 texts
_KINDS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"RIFF", "webp"), (b"GIF8", "gif"))
_URL = re.compile(r"data:image/[a-z+]{1,10};base64,")
# What the data URL may take, less the longest beginning; base64 makes 4 characters of 3 bytes.
LARGEST = (LONG_VALUES[THUMBNAIL] - 32) // 4 * 3


def data_url(picture: bytes) -> str:
    """A PNG, JPEG, WebP or GIF of up to `LARGEST` bytes as text for the metadata. Raises SettingError for others."""
    kind = _kind(picture)
    if kind is None:
        raise SettingError("the preview: found no PNG, JPEG, WebP or GIF picture; expected one of these")
    if len(picture) > LARGEST:
        raise SettingError(f"the preview: found {len(picture):,} bytes, expected at most {LARGEST:,}; make it smaller")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def preview_of(metadata: Mapping[str, str]) -> bytes | None:
    """The picture in a file's metadata: a PNG, JPEG, WebP or GIF, or None. Not decoded, so nobody vouches for it."""
    text = metadata.get(THUMBNAIL, "")
    if (start := _URL.match(text)) is not None:
        return _picture(text[start.end() :])
    return _picture(_first_cover(metadata.get(COVERS, "")))


def read_preview(path: str | os.PathLike[str]) -> bytes | None:
    """The picture of a safetensors file, of whose tensors nothing is read. Raises AdapterFileError."""
    path = Path(path)
    with open_file(path) as f:
        return preview_of(read_header(f, path, kind_of_bytes, strict=False).metadata)


def _first_cover(text: str) -> str:
    try:
        covers = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return ""
    return covers[0] if isinstance(covers, list) and covers and isinstance(covers[0], str) else ""


def _picture(text: str) -> bytes | None:
    try:
        picture = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return picture if _kind(picture) else None


def _kind(picture: bytes) -> str | None:
    found = next((kind for magic, kind in _KINDS if picture.startswith(magic)), None)
    return None if found == "webp" and picture[8:12] != b"WEBP" else found
