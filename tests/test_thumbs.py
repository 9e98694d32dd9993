"""Thumbnails: any picture that can be trained on, small, without what else its file holds; kept while they are true."""

import io
import os
import struct
import zlib
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image, features

from spectral_adapters.trainer import thumbs
from spectral_adapters.trainer.decode import PictureFault
from spectral_adapters.trainer.thumbs import prune, thumbnail


def photo(size: tuple[int, int] = (320, 200), mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    return image.convert(mode)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def is_like(pixel: tuple[int, ...], colour: tuple[int, int, int]) -> bool:
    return all(abs(a - b) < 24 for a, b in zip(pixel, colour))


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "thumbs"


def test_a_thumbnail(tmp_path, cache):
    photo().save(tmp_path / "a.png")
    small = opened(thumbnail(tmp_path / "a.png", 64, cache))
    assert small.size == (64, 40) and small.format == ("WEBP" if features.check("webp") else "JPEG")
    small = small.convert("RGB")
    assert is_like(small.getpixel((5, 20)), RED) and is_like(small.getpixel((59, 20)), BLUE)


def test_small_pictures_are_not_enlarged_and_large_ones_not_shown_large(tmp_path, cache):
    photo((10, 8)).save(tmp_path / "a.png")
    photo((3000, 20)).save(tmp_path / "b.png")
    assert opened(thumbnail(tmp_path / "a.png", 64, cache)).size == (10, 8)
    assert max(opened(thumbnail(tmp_path / "b.png", 10**6, cache)).size) == 1024
    assert opened(thumbnail(tmp_path / "b.png", -3, cache)).size == (1, 1)


MODES = {
    "jpg": ("RGB", {}), "jpeg": ("CMYK", {}), "bmp": ("L", {}), "webp": ("RGBA", {"lossless": True}), "png": ("P", {}),
    "tif": ("I;16", {}), "tiff": ("1", {}),
}  # fmt: skip


@pytest.mark.parametrize("suffix", MODES)
def test_every_kind_of_picture(tmp_path, cache, suffix):
    mode, options = MODES[suffix]
    image = Image.fromarray(np.full((80, 80), 65535, np.uint16)) if mode == "I;16" else photo((80, 80), mode)
    image.save(tmp_path / f"a.{suffix}", **options)
    small = opened(thumbnail(tmp_path / f"a.{suffix}", 32, cache)).convert("RGB")
    assert small.size == (32, 32)
    if mode in ("RGB", "RGBA", "P"):
        assert is_like(small.getpixel((4, 16)), RED)
    if mode == "I;16":
        assert is_like(small.getpixel((4, 16)), (255, 255, 255))


def test_transparency_is_laid_on_white(tmp_path, cache):
    Image.new("RGBA", (80, 80), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert is_like(opened(thumbnail(tmp_path / "a.png", 32, cache)).convert("RGB").getpixel((9, 9)), (255, 255, 255))


def test_turned_as_a_viewer_shows_it(tmp_path, cache):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo((320, 200)).save(tmp_path / "a.jpg", exif=exif)
    small = opened(thumbnail(tmp_path / "a.jpg", 64, cache)).convert("RGB")
    assert small.size == (40, 64) and is_like(small.getpixel((20, 8)), RED) and is_like(small.getpixel((20, 56)), BLUE)


def test_nothing_but_pixels_is_sent(tmp_path, cache):
    exif = Image.Exif()
    exif[0x010E] = "<script>where I live</script>"
    photo().save(tmp_path / "a.jpg", exif=exif, comment=b"<script>", icc_profile=b"<script>", xmp=b"<script>")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"<html><script>alert(1)</script>PK\x03\x04")
    data = thumbnail(tmp_path / "a.jpg", 256, cache)
    assert b"script" not in data and b"PK\x03\x04" not in data and not opened(data).getexif()


def png_bomb(side: int) -> bytes:
    """A PNG of some hundred bytes that says it is `side` pixels wide and high."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


REFUSED = {
    "svg": lambda: b"<svg onload='alert(1)'/>",
    "html": lambda: b"<html><script>alert(1)</script>",
    "bomb": lambda: png_bomb(50_000),
    "truncated": lambda: png_bomb(500),
    "empty": lambda: b"",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_picture_is_refused_and_nothing_kept(tmp_path, cache, kind):
    (tmp_path / "a.png").write_bytes(REFUSED[kind]())
    with pytest.raises(PictureFault, match=r"^a\.png: ") as caught:
        thumbnail(tmp_path / "a.png", 64, cache)
    assert str(tmp_path) not in str(caught.value) and not cache.exists()


def test_what_is_no_file_is_refused(tmp_path, cache, monkeypatch):
    with pytest.raises(PictureFault, match=r"missing\.png: cannot be read"):
        thumbnail(tmp_path / "missing.png", 64, cache)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureFault, match="no ordinary file"):
        thumbnail(tmp_path / "folder.png", 64, cache)
    photo().save(tmp_path / "a.png")
    monkeypatch.setattr(thumbs, "MOST_BYTES", 10)
    with pytest.raises(PictureFault, match="larger than"):
        thumbnail(tmp_path / "a.png", 64, cache)


def test_it_is_made_once_until_the_picture_changes(tmp_path, cache, monkeypatch):
    made: list[int] = []
    make = thumbs._make
    monkeypatch.setattr(thumbs, "_make", lambda path, size: made.append(size) or make(path, size))
    path = tmp_path / "a.png"
    photo().save(path)
    (tmp_path / "link.png").symlink_to(path)
    first = thumbnail(path, 64, cache)
    assert thumbnail(path, 64, cache) == first == thumbnail(tmp_path / "link.png", 64, cache) and made == [64]
    thumbnail(path, 32, cache)
    photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    os.utime(path, ns=(1, 1))
    assert thumbnail(path, 64, cache) != first and made == [64, 32, 64]


def test_a_damaged_thumbnail_is_made_again(tmp_path, cache):
    photo().save(tmp_path / "a.png")
    good = thumbnail(tmp_path / "a.png", 64, cache)
    (kept,) = cache.rglob("*.thumb")
    for damaged in (b"", b"\0" * 99, b"<html>"):
        kept.write_bytes(damaged)
        assert thumbnail(tmp_path / "a.png", 64, cache) == good == kept.read_bytes()


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "file").write_bytes(b"")
    assert opened(thumbnail(tmp_path / "a.png", 64, tmp_path / "file/thumbs")).size == (64, 40)


def test_the_cache_is_bounded(tmp_path, cache):
    for i in range(6):
        photo((100 + i, 100)).save(tmp_path / f"{i}.png")
        thumbnail(tmp_path / f"{i}.png", 64, cache)
    kept = sorted(cache.rglob("*.thumb"), key=lambda path: path.stat().st_mtime_ns)
    for i, path in enumerate(kept):
        os.utime(path, ns=(i, i))
    each = max(path.stat().st_size for path in kept)
    prune(cache, 3 * each)
    left = set(cache.rglob("*.thumb"))
    assert left == set(kept[-len(left) :]) and 1 <= len(left) < 6
    prune(cache, 0)
    assert not list(cache.rglob("*.thumb"))


def test_it_is_pruned_now_and_then(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(thumbs, "CACHE_BYTES", 0)
    monkeypatch.setattr(thumbs, "_written", thumbs._EVERY)
    photo().save(tmp_path / "a.png")
    thumbnail(tmp_path / "a.png", 64, cache)
    assert not list(cache.rglob("*.thumb"))


def test_many_at_once(tmp_path, cache):
    photo().save(tmp_path / "a.png")
    found: list[bytes] = []
    threads = [Thread(target=lambda: found.append(thumbnail(tmp_path / "a.png", 64, cache))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and not list(cache.rglob("*.tmp"))
