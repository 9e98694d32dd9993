"""Folders of pictures: conventions, captions, masks, and every fault with a file that really has it."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.trainer import decode, folder
from spectral_adapters.trainer.events import Progress
from spectral_adapters.trainer.folder import Finding, scan
from spectral_adapters.trainer.pictures import bucket_sizes, on_white

SIZES = bucket_sizes(64, 16)


def picture(number: int = 0, size: tuple[int, int] = (80, 64)) -> Image.Image:
    """A picture with some structure, another for every number."""
    noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def images(tmp_path) -> Path:
    """Three sound pictures with captions."""
    path = tmp_path / "photos"
    path.mkdir()
    for i in range(3):
        picture(i).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"a photo {i}\n", encoding="utf-8")
    return path


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


# --- conventions


def test_a_plain_folder_in_name_order(images):
    found = scan(images, sizes=SIZES)
    assert [(p.path.name, p.caption, p.repeats) for p in found.pictures] == [
        (f"{i}.png", f"a photo {i}", 1) for i in range(3)
    ]
    assert found.findings == [] and found.trigger == "" and found.require() == []
    assert {p.size for p in found.pictures} == {(80, 64)} and len({p.digest for p in found.pictures}) == 3


def test_kohyas_folders(tmp_path):
    for number, room in enumerate((".", "10_red_dog", "garden", "0_never", ".hidden", "20240101_party")):
        (tmp_path / room).mkdir(exist_ok=True)
        picture(number).save(tmp_path / room / "a.png")
    (tmp_path / "10_red_dog" / "deeper").mkdir()
    picture(9).save(tmp_path / "10_red_dog" / "deeper" / "b.png")
    found = scan(tmp_path)
    assert [(folder.shown(p.path, tmp_path), p.repeats, p.caption) for p in found.pictures] == [
        ("10_red_dog/a.png", 10, "red dog"),
        ("20240101_party/a.png", 1, "20240101 party"),
        ("a.png", 1, tmp_path.name.replace("_", " ")),
        ("garden/a.png", 1, "garden"),
    ]
    texts = " ".join(found.require())
    assert "0_never: its name asks for 0 repeats" in texts and "20240101_party: the number in its name" in texts


def test_the_given_folders_own_name_counts_too(tmp_path):
    path = tmp_path / "7_green_mug"
    path.mkdir()
    picture().save(path / "a.png")
    found = scan(path)
    assert (found.pictures[0].repeats, found.pictures[0].caption, found.trigger) == (7, "green mug", "green mug")
    assert found.require() == ["7_green_mug: 1 picture has no caption and there is no trigger word; using 'green mug'"]
    found = scan(path, trigger="sks mug")
    assert (found.pictures[0].caption, found.trigger, found.findings) == ("sks mug", "sks mug", [])


def test_other_folders_inside_are_left_out(images):
    for name in ("masks", "class"):
        (images / name).mkdir()
        for i in range(3):
            picture(i).save(images / name / f"{i}.png")
    found = scan(images, masks=images / "masks", exclude=(images / "class",))
    assert [folder.shown(p.path, images) for p in found.pictures] == ["0.png", "1.png", "2.png"]
    assert [p.mask for p in found.pictures] == [images / "masks" / f"{i}.png" for i in range(3)]


def test_no_folder_and_no_picture(tmp_path):
    with pytest.raises(SettingError, match="is not a folder"):
        scan(tmp_path / "nowhere")
    with pytest.raises(SettingError, match="is not a folder"):
        scan(tmp_path, masks=tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SettingError, match="holds no picture"):
        scan(tmp_path)


def test_long_scans_tell_their_progress(images, monkeypatch):
    monkeypatch.setattr(folder, "_PATIENCE", -1.0)
    events = []
    scan(images, listen=events.append)
    assert events == [Progress(i + 1, 3, f"{i}.png") for i in range(3)]


# --- captions


def test_captions_are_one_line_of_utf8(images):
    (images / "0.txt").write_bytes("\ufeffeine Tasse,\r\n\r\n  grün\n".encode())
    (images / "1.txt").rename(images / "1.caption")
    (images / "2.caption").write_text("other")
    found = scan(images)
    assert [p.caption for p in found.pictures] == ["eine Tasse, grün", "a photo 1", "a photo 2"]
    assert only(found.findings).text == "has 2.txt and 2.caption; the first is used"


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        ("caf\xe9".encode("latin-1"), "its caption 0.txt is not UTF-8 text (unexpected end of data at byte 3)"),
        ("caf\xe9".encode("utf-16"), "its caption 0.txt is not UTF-8 text"),
        (b"x" * 70_000, "its caption 0.txt is larger than 65536 bytes"),
    ],
)
def test_a_caption_that_is_no_text_costs_its_picture(images, blob, text):
    (images / "0.txt").write_bytes(blob)
    found = scan(images)
    assert [p.path.name for p in found.pictures] == ["1.png", "2.png"]
    assert only(found.findings).text.startswith(text) and only(found.findings).path.name == "0.png"


def test_a_caption_that_cannot_be_opened(images):
    (images / "0.txt").unlink()
    (images / "0.txt").symlink_to(images / "gone.txt")
    assert "its caption 0.txt cannot be read" in only(scan(images).findings).text


def test_empty_and_lonely_captions_are_remarked(images):
    (images / "0.txt").write_text(" \n")
    (images / "notes.txt").write_text("what to do")
    found = scan(images, trigger="sks mug")
    assert found.pictures[0].caption == "sks mug"
    assert found.require() == [
        "0.png: its caption 0.txt is empty; 'sks mug' is used",
        "notes.txt: a caption without a picture of its name",
    ]


# --- pictures that cannot be used


def jpeg(image: Image.Image) -> bytes:
    return saved(image, "JPEG")


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def frames(format: str) -> bytes:
    return saved(picture(0), format, save_all=True, append_images=[picture(1)])


def bomb() -> bytes:
    """A PNG of some hundred bytes whose header says 30000 x 30000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


BAD: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    "truncated jpeg": ("bad.jpg", lambda: jpeg(picture())[:-300], "broken", "cannot be decoded (image file is trunc"),
    "truncated png": ("bad.png", lambda: saved(picture(), "PNG")[:600], "broken", "cannot be decoded"),
    "header only": ("bad.jpg", lambda: b"\xff\xd8\xff\xe0 no picture", "broken", "cannot be decoded"),
    "damaged webp": ("bad.webp", lambda: b"RIFF\0\0\0\0WEBPVP9 ", "broken", "begins like a picture but its header"),
    "empty": ("bad.png", lambda: b"", "broken", "an empty file; its download or copy failed"),
    "float tiff": ("bad.tif", lambda: saved(picture().convert("F"), "TIFF"), "broken", "float32 values; expected 8 or"),
    "animated webp": ("bad.webp", lambda: frames("WEBP"), "animated", "an animation of 2 frames or pages"),
    "animated png": ("bad.png", lambda: frames("PNG"), "animated", "an animation of 2 frames"),
    "pages": ("bad.tif", lambda: frames("TIFF"), "animated", "an animation of 2 frames or pages"),
    "renamed gif": ("bad.png", lambda: saved(picture(), "GIF"), "not a picture", "a GIF despite its name"),
    "animated renamed gif": ("bad.png", lambda: frames("GIF"), "animated", "an animation of 2 frames"),
    "pdf": ("bad.png", lambda: saved(picture(), "PDF"), "not a picture", "a PDF"),
    "eps": ("bad.png", lambda: saved(picture(), "EPS"), "not a picture", "holds no picture despite its name"),
    "web page": ("bad.jpg", lambda: b"\n<!DOCTYPE html><html>404", "not a picture", "a web page; its download failed"),
    "pointer": (
        "bad.jpg",
        lambda: b"version https://git-lfs.github.com/spec/v1\n",
        "not a picture",
        "a Git LFS pointer",
    ),
    "heic": ("bad.jpg", lambda: b"\0\0\0\x18ftypheic" + bytes(64), "not a picture", "a HEIC picture; save it as"),
    "video": ("bad.jpg", lambda: b"\0\0\0\x18ftypisom" + bytes(64), "not a picture", "a video"),
    "text": ("bad.bmp", lambda: b"hello", "not a picture", "holds no picture despite its name"),
    "bomb": ("bad.png", bomb, "too large", "would take too much memory"),
    "one pixel": ("bad.png", lambda: saved(picture(0, (1, 1)), "PNG"), "too small", "1 x 1 pixels, trained at 64 x 64"),
    "small": ("bad.png", lambda: saved(picture(0, (31, 40)), "PNG"), "too small", "would be enlarged x2.1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_picture_that_cannot_be_used(images, case):
    name, make, kind, text = BAD[case]
    (images / name).write_bytes(make())
    (images / "bad.txt").write_text("a caption of its own")
    found = scan(images, sizes=SIZES)
    finding = only(found.findings)
    assert (finding.path.name, finding.kind, finding.fatal) == (name, kind, True)
    assert text in finding.text
    assert len(found.pictures) == 3
    with pytest.raises(SettingError, match=r"1 of 4 pictures in .* skip_bad = true") as error:
        found.require()
    assert f"\n  {name}: {finding.text}" in str(error.value)
    assert found.require(skip_bad=True) == [f"skipped {name}: {finding.text}"]


def test_all_faults_come_at_once_and_nothing_left_is_an_error(tmp_path):
    for case, (name, make, _, _) in BAD.items():
        (tmp_path / f"{case}{Path(name).suffix}").write_bytes(make())
    found = scan(tmp_path, sizes=SIZES)
    assert found.pictures == [] and len([f for f in found.findings if f.fatal]) == len(BAD)
    for skip_bad in (False, True):
        with pytest.raises(SettingError, match=f"none of the {len(BAD)} pictures") as error:
            found.require(skip_bad)
        assert all(f"\n  {case}." in str(error.value) for case in BAD)


def test_bombs_are_found_where_pillows_limit_is_off_or_low(images, monkeypatch):
    (images / "bad.png").write_bytes(bomb())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert only(scan(images).findings).text == "30000 x 30000 pixels, more than 178956970 in all; scale it down"
    (images / "bad.png").unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80 * 64 // 2 - 1)
    assert [f.kind for f in scan(images).findings] == ["too large"] * 3
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80 * 64 - 1)  # only a warning of Pillow's
    assert scan(images).findings == []


def test_a_file_that_cannot_be_read(images):
    (images / "bad.png").symlink_to(images / "gone.png")
    finding = only(scan(images).findings)
    assert finding.kind == "unreadable" and finding.text == "cannot be read (No such file or directory)"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(images):
    os.mkfifo(images / "bad.png")
    assert only(scan(images).findings).text == "is no ordinary file"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root and Windows read every file")
def test_files_and_folders_without_permission(images):
    (images / "0.png").chmod(0)
    (images / "locked").mkdir(mode=0)
    found = scan(images)
    assert {folder.shown(f.path, images): f.text for f in found.findings} == {
        "0.png": "cannot be read (Permission denied)",
        "locked": "cannot be read (Permission denied)",
    }
    with pytest.raises(SettingError, match="2 of 4 pictures"):
        found.require()
    images.chmod(0)
    try:
        with pytest.raises(SettingError, match=r"holds no picture.* cannot be read \(Permission denied\)"):
            scan(images)
    finally:
        images.chmod(0o700)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_surprise(data):
    """Whatever is done to a picture's bytes, the answer is a picture or a sentence."""
    blob = bytearray(data.draw(st.sampled_from(_sound())))
    for _ in range(data.draw(st.integers(1, 12))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    del blob[data.draw(st.integers(len(blob) // 2, len(blob))) :]
    try:
        image = decode.decode(bytes(blob))
    except decode.PictureFault as fault:
        assert fault.kind in ("broken", "animated", "not a picture", "too large") and str(fault)
    else:
        assert on_white(image).mode == "RGB"


def _sound() -> list[bytes]:
    image = picture(0, (24, 16))
    options = {"JPEG": {}, "PNG": {}, "WEBP": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}}
    return [saved(image, name, **more) for name, more in options.items()] + [saved(image.convert("P"), "PNG")]


# --- what is only remarked


def test_small_and_long_pictures_are_remarked(images):
    picture(4, (50, 60)).save(images / "small.png")
    picture(5, (400, 70)).save(images / "long.png")
    found = scan(images, trigger="sks", sizes=SIZES)
    assert len(found.pictures) == 5
    assert found.require() == [
        "long.png: 400 x 70 pixels, trained at 80 x 48: 71% of it is cut away",
        "small.png: 50 x 60 pixels, trained at 64 x 64: will be enlarged x1.3",
    ]


def test_copies_are_found_whatever_their_format(images):
    picture(1).save(images / "copy.bmp")
    (images / "twin").mkdir()
    (images / "twin" / "1.png").write_bytes((images / "1.png").read_bytes())
    found = scan(images, trigger="sks")
    assert len(found.pictures) == 5
    assert found.require() == [
        "copy.bmp: shows the same pixels as 1.png, which thereby counts twice; "
        "twin/1.png: shows the same pixels as 1.png, which thereby counts twice"
    ]


def test_formats_that_are_not_read_are_named(images):
    (images / "phone.HEIC").write_bytes(b"x")
    assert scan(images).require() == ["phone.HEIC: .heic files are not read; save it as PNG or JPEG to train on it"]


def test_many_remarks_of_a_kind_are_counted(images):
    for i in range(30):
        (images / f"note{i:02}.txt").write_text("x")
    text = only(scan(images).require())
    assert text.startswith("note00.txt: a caption") and text.endswith("; and 10 more such files")


def test_a_name_that_is_not_utf8_can_be_shown(images):
    blob = (images / "0.png").read_bytes()
    try:
        with open(os.fsencode(images) + b"/\xff.png", "wb") as file:
            file.write(blob)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert scan(images, trigger="sks").require()[0].encode("utf-8").startswith(b"\\udcff.png: shows the same pixels")


# --- masks


def mask(path: Path, size: tuple[int, int] = (80, 64), value: int = 255) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("L", size, value).save(path)


def test_masks_by_name(images, tmp_path):
    for name in ("0.png", "1.webp", "2.bmp"):
        mask(tmp_path / "masks" / name)
    mask(tmp_path / "masks" / "2.bmp", (160, 128))  # the same shape, larger
    found = scan(images, masks=tmp_path / "masks")
    assert [p.mask.name for p in found.pictures] == ["0.png", "1.webp", "2.bmp"] and found.findings == []
    assert all(len(p.mask_digest) == 64 for p in found.pictures)


@pytest.mark.parametrize(
    ("spoil", "text", "fatal"),
    [
        (lambda path: path.unlink(), "has no mask of its name", True),
        (lambda path: mask(path, (64, 80)), "its mask 0.png is 64 x 80 pixels, the picture 80 x 64; expected", True),
        (lambda path: path.write_bytes(b"hello"), "its mask 0.png is of no use: holds no picture", True),
        (lambda path: mask(path, value=0), "its mask is black all over", False),
    ],
)
def test_masks_that_do_not_serve(images, tmp_path, spoil, text, fatal):
    for i in range(3):
        mask(tmp_path / "masks" / f"{i}.png")
    spoil(tmp_path / "masks" / "0.png")
    found = scan(images, masks=tmp_path / "masks")
    finding = only(found.findings)
    assert (finding.path.name, finding.kind, finding.fatal) == ("0.png", "mask", fatal) and text in finding.text
    assert len(found.pictures) == 3 - fatal


def test_masks_of_subfolders(tmp_path):
    for number, room in enumerate(("2_a", "3_b")):
        (tmp_path / "in" / room).mkdir(parents=True)
        picture(number).save(tmp_path / "in" / room / "same.png")
    mask(tmp_path / "masks" / "same.png")
    (tmp_path / "masks" / "3_b").mkdir()
    mask(tmp_path / "masks" / "3_b" / "same.png")
    found = scan(tmp_path / "in", masks=tmp_path / "masks", trigger="x")
    assert [folder.shown(p.mask, tmp_path / "masks") for p in found.pictures] == ["same.png", "3_b/same.png"]


def test_transparency_as_mask(images):
    image = picture(0)
    image.putalpha(Image.new("L", image.size, 100))
    image.save(images / "0.png")
    found = scan(images, alpha_masks=True)
    assert [p.alpha for p in found.pictures] == [True, False, False]
    assert [f.text for f in found.findings] == ["has no transparency, so all of it is learnt"] * 2
    image.putalpha(0)
    image.save(images / "0.png")
    assert "its mask is black all over" in scan(images, alpha_masks=True).findings[0].text
