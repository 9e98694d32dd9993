"""`spectral.edit` with any picture as preview: made small and encoded anew, so nothing but its pixels is shared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..spectral.edit import edit as edit_file
from ..spectral.preview import LARGEST
from .decode import PictureFault, decode, turn
from .thumbs import MOST_BYTES, encoded

SIDES = (512, 384, 256, 128)  # pixels; the first that is small enough, which 512 is for nearly all pictures


def edit(
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    description: str | None = None,
    trigger_words: Sequence[str] | None = None,
    licence: str | None = None,
    author: str | None = None,
    preview: Path | bytes | None = None,
) -> Path:
    """Write new texts or another preview into a file, whole or not at all; its path. None leaves an entry as it is.

    preview: a picture's file or its bytes; b"" takes the preview out. Raises what `spectral.edit.edit` raises, and
    PictureFault for a picture that cannot be read.
    """
    return edit_file(
        path,
        title=title,
        description=description,
        trigger_words=trigger_words,
        licence=licence,
        author=author,
        preview=preview if preview is None or preview == b"" else small(preview),
    )


def small(picture: Path | bytes) -> bytes:
    """The picture within 512 x 512 pixels, without metadata, small enough for a file. Raises PictureFault."""
    blob = picture if isinstance(picture, bytes) else _read(picture)
    if len(blob) > MOST_BYTES:
        raise PictureFault(
            "too large", f"the preview is larger than the {MOST_BYTES >> 20} MB that are decoded for one"
        )
    with turn(blob):
        image = decode(blob, least=SIDES[0])
    made = (encoded(image.copy(), side) for side in SIDES)
    return next(data for data in made if len(data) <= LARGEST)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PictureFault("broken", f"{path}: cannot be read ({error.strerror or error})") from error
