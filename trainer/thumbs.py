"""Small copies of pictures for pages, encoded anew: whatever a file also holds beside its pixels is not sent.

A disposable cache keeps them, found by the picture's place, time and size; the least recently used go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path
from threading import Lock

from PIL import Image, features

from . import files, pictures
from .decode import PictureFault, decode, turn

LARGEST = 1024  # pixels of a side
MOST_BYTES = 256 << 20  # of a file that is decoded for this
CACHE_BYTES = 256 << 20
_SUFFIX = ".thumb"
_QUALITY = 82
_EVERY = 200  # thumbnails written between two looks at the cache's size
_BEGINNINGS = (b"RIFF", b"\xff\xd8\xff")
_written = 0
_pruning = Lock()


def thumbnail(path: Path, size: int, cache: Path) -> bytes:
    """The picture within `size` x `size` pixels, never enlarged, as WebP (JPEG where Pillow has none), on white.

    cache: the folder that keeps it. Raises PictureFault where the file cannot be shown, naming it.
    """
    size = max(1, min(size, LARGEST))
    try:
        key = _key(path, size)
        kept = cache / key[:2] / f"{key}{_SUFFIX}"
        if (known := _read(kept)) is not None:
            return known
        data = _make(path, size)
    except OSError as error:
        raise PictureFault("broken", f"{path.name}: cannot be read ({error.strerror or error})") from error
    except PictureFault as fault:
        raise PictureFault(fault.kind, f"{path.name}: {fault}") from fault
    with contextlib.suppress(OSError):  # a full disk costs time, not the picture
        _keep(kept, data)
        _prune_sometimes(cache)
    return data


def _key(path: Path, size: int) -> str:
    real = os.path.realpath(path)
    stat = os.stat(real)
    text = f"{real}\0{stat.st_mtime_ns}\0{stat.st_size}\0{size}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _read(kept: Path) -> bytes | None:
    """A kept thumbnail; one that a power cut left empty is none."""
    try:
        data = kept.read_bytes()
        os.utime(kept)
    except OSError:
        return None
    return data if data.startswith(_BEGINNINGS) else None


def _make(path: Path, size: int) -> bytes:
    if not path.is_file():
        raise PictureFault("not a picture", "is no ordinary file")
    if path.stat().st_size > MOST_BYTES:
        raise PictureFault("too large", f"is larger than the {MOST_BYTES >> 20} MB that are decoded for a thumbnail")
    blob = path.read_bytes()
    with turn(blob):
        return encoded(decode(blob, least=size), size)


def encoded(image: Image.Image, size: int) -> bytes:
    """The picture within `size` x `size` pixels as the bytes of a file without metadata."""
    if pictures.has_alpha(image) or image.mode not in ("RGB", "L"):  # other modes are not resampled smoothly
        image = image.convert("RGBA" if pictures.has_alpha(image) else "RGB")
    # Made small before it is laid on white, which would take a large picture's memory twice.
    image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
    small = pictures.on_white(image)
    small.info.clear()
    out = io.BytesIO()
    if features.check("webp"):
        small.save(out, "WEBP", quality=_QUALITY, method=2)
    else:
        small.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _keep(kept: Path, data: bytes) -> None:
    """Put a thumbnail in its place. Not synced, as what cannot be made again is. Raises OSError."""
    files.make_folder(kept.parent)
    passing = files.beside(kept)
    try:
        passing.write_bytes(data)
        files.replace(passing, kept)
    except OSError:
        passing.unlink(missing_ok=True)
        raise


def _prune_sometimes(cache: Path) -> None:
    global _written
    _written += 1
    if _written % _EVERY == 1 and _pruning.acquire(blocking=False):
        try:
            prune(cache, CACHE_BYTES)
        finally:
            _pruning.release()


def prune(cache: Path, most: int) -> None:
    """Remove the least recently used thumbnails until at most `most` bytes are left. Raises OSError."""
    found = []
    for path in cache.glob(f"*/*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process prunes too
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
