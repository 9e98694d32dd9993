"""From a file's bytes to a picture of 8 bits per channel, or a sentence why there is none."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError, features

from ..spectral.errors import SpectralError

FaultKind = Literal["broken", "animated", "not a picture", "too large"]

# Decoders that are tried, whatever a file is called: none of them runs a program or draws vectors. GIF only to name it.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "GIF")
MOST_PIXELS = 2 * 89_478_485  # Pillow's own limit, kept here because programs around us switch Pillow's off
_LARGE = 20_000_000  # pixels from which pictures are worked on one at a time
_TURN = Lock()
# What Pillow's decoders are known to raise on damaged files.
_DECODE_FAULTS = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, AttributeError, OverflowError,
    ZeroDivisionError, RuntimeError, MemoryError, struct.error, Image.DecompressionBombError,
)  # fmt: skip


class PictureFault(SpectralError):
    """Why a file cannot serve as a picture; its text goes on from the file's name."""

    def __init__(self, kind: FaultKind, text: str):
        super().__init__(text)
        self.kind = kind


def decode(blob: bytes, least: int | None = None, most: int = MOST_PIXELS) -> Image.Image:
    """The whole picture, turned by its EXIF orientation, sRGB, 8 bits per channel, in any mode. Raises PictureFault.

    least: where a side this long is enough, a JPEG is decoded at a half, a quarter or an eighth of its size, which is
    quicker. most: pixels of the largest that is taken.
    """
    with _opened(blob, most) as image:
        if least is not None:
            image.draft(None, (least, least))
        ImageOps.exif_transpose(image, in_place=True)
        return _in_srgb(_eight_bits(image))


def picture_format(blob: bytes, most: int = MOST_PIXELS) -> str:
    """Pillow's name of the format of a picture that `decode` may take, from its header. Raises PictureFault."""
    with _opened(blob, most) as image:
        return image.format


def header_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of a picture as a viewer shows it, from its header; None where that says none."""
    try:
        with Image.open(path, formats=_formats()) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except _DECODE_FAULTS:
        return None
    return (height, width) if turned else (width, height)


@contextmanager
def turn(blob: bytes) -> Iterator[None]:
    """Inside, no other thread is where a large picture is worked on: each can take more than a gigabyte."""
    try:
        with _opened(blob, MOST_PIXELS) as image:
            large = image.size[0] * image.size[1] > _LARGE
    except PictureFault:
        large = False  # decoding it says why
    if not large:
        yield
        return
    with _TURN:
        yield


@contextmanager
def _opened(blob: bytes, most: int) -> Iterator[Image.Image]:
    """The picture with its header checked; what decoders raise inside becomes a PictureFault."""
    known = _formats()
    try:
        with Image.open(io.BytesIO(blob), formats=known) as image:
            _check_header(image, most)
            yield image
    except Image.DecompressionBombError as error:
        raise PictureFault("too large", f"would take too much memory ({error}); scale it down") from error
    except UnidentifiedImageError:
        raise PictureFault(*_unidentified(blob)) from None
    except _DECODE_FAULTS as error:
        raise PictureFault("broken", f"cannot be decoded ({error}); replace it") from error


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_header(image: Image.Image, most: int) -> None:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photograph and its previews
    if frames > 1:
        raise PictureFault("animated", f"an animation of {frames} frames or pages; expected a still picture")
    if image.format == "GIF":
        raise PictureFault("not a picture", "a GIF despite its name; save it as PNG")
    width, height = image.size
    if width * height > most:
        raise PictureFault("too large", f"{width} x {height} pixels, more than {most} in all; scale it down")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greys scaled to 8 bits; Pillow's own conversion would cut every value above 255."""
    if not image.mode.startswith(("I", "F")):
        image.load()
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"{values.dtype} values; expected 8 or 16 bits per channel")
    return Image.fromarray((values.astype(np.float32) / 257).round().astype(np.uint8))


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colours of an embedded profile (phones' Display P3, Adobe RGB, print) as sRGB, as viewers show them."""
    blob = image.info.get("icc_profile")
    mode = {"RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB"}.get(image.mode)
    if not blob or mode is None or "transparency" in image.info or not features.check("littlecms2"):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(blob))
        if ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return image
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile, or one of another colour model: viewers ignore it


# The beginnings, in lower case, of files that are often found under a picture's name.
_BEGINNINGS = (
    (b"%pdf", "a PDF"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML file, perhaps an SVG drawing"),
    (b"<!doctype", "a web page; its download failed"),
    (b"<html", "a web page; its download failed"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"8bps", "a Photoshop file"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the real file with `git lfs pull`"),
    (b"\x1ae\xdf\xa3", "a video"),
    (b"\xff\x0a", "a JPEG XL picture; save it as PNG or JPEG"),
    (b"\x00\x00\x00\x0cjxl ", "a JPEG XL picture; save it as PNG or JPEG"),
)
_OURS = (b"\xff\xd8\xff", b"\x89png", b"bm", b"ii*\x00", b"mm\x00*", b"gif8")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1")


def _unidentified(blob: bytes) -> tuple[FaultKind, str]:
    """What a file is that none of the decoders takes for its own."""
    start = blob[:64].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not blob:
        return "broken", "an empty file; its download or copy failed"
    if blob[4:8] == b"ftyp" and not blob[8:12].startswith(b"avi"):
        return "not a picture", "a HEIC picture; save it as JPEG or PNG" if blob[8:12] in _HEIC_BRANDS else "a video"
    if blob[4:8] == b"ftyp" and "AVIF" not in _formats():
        return "not a picture", "an AVIF picture, which this Pillow cannot decode; save it as PNG or JPEG"
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            return "not a picture", what
    if start.startswith(_OURS) or blob[8:12] == b"WEBP" or blob[4:8] == b"ftyp":
        return "broken", "begins like a picture but its header is damaged; replace it"
    return "not a picture", "holds no picture despite its name"
