"""Datasets by name: listing, checking, filling; with tricks in every name, hostile pictures and hostile captions."""

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from spectral_adapters.__main__ import main
from spectral_adapters.spectral.errors import SettingError, SpectralError
from spectral_adapters.trainer import dataset_check, dataset_edit, datasets, files
from spectral_adapters.trainer.dataset import sizes_for
from spectral_adapters.trainer.decode import PictureFault
from spectral_adapters.trainer.folder import scan
from spectral_adapters.trainer.native import Native, native
from spectral_adapters.trainer.pictures import bucket_sizes
from spectral_adapters.trainer.places import NameFault, Places, standalone
from spectral_adapters.trainer.request import Request, resolve
from spectral_adapters.trainer.spec import TrainSpec

TRICKS = (
    "../secret.png", "..", ".", "", "/etc/passwd", "a/b/c/d.png", "dog/../../secret.png", "1.png/", "/1.png",
    "a//1.png", "..\\secret.png", "C:\\1.png", "1.png:stream", "1.png\0", "con.png", ".hidden.png", "1.txt", "10_dog",
    "2.png", "x" * 5000,
)  # fmt: skip


def picture(number: int = 0, size: tuple[int, int] = (80, 64)) -> Image.Image:
    """A picture with some structure, another for every number."""
    noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of some hundred bytes that says it is `side` pixels wide and high."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with a dataset of three pictures, one in a sub-folder, and a secret beside the root."""
    (tmp_path / "pets/dog/10_pup").mkdir(parents=True)
    for i, name in enumerate(("1.png", "2.jpg", "10_pup/3.png")):
        picture(i).save(tmp_path / "pets/dog" / name)
    (tmp_path / "pets/dog/1.txt").write_text("a dog\nasleep\n", encoding="utf-8")
    picture(9).save(tmp_path / "secret.png")
    (tmp_path / "secret.txt").write_text("a secret")
    return tmp_path / "pets"


@pytest.fixture
def places(tmp_path, root) -> Places:
    return standalone(tmp_path / "home", {"pets": root}, [])


def snapshot(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but the lock."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "datasets.lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def listed(places: Places) -> dict[str, dict]:
    return {each["id"]: each for each in datasets.list_datasets(places)}


# --- listing


def test_the_list(places, root):
    found = listed(places)
    assert list(found) == ["pets/dog"]
    assert found["pets/dog"] == {
        "id": "pets/dog", "root": "pets", "name": "dog", "pictures": 3, "captions": 1, "cover": "1.png",
        "writable": True, "note": "",
    }  # fmt: skip


def test_what_is_listed_and_what_is_not(places, root, tmp_path):
    for folder in ("cat", "empty", ".hidden", "deep/a/b", "deeper/a/b/c", "kohya/5_x", "0_never", "dog/masks"):
        (root / folder).mkdir(parents=True)
        if folder != "empty":
            picture().save(root / folder / "p.png")
    (tmp_path / "home/datasets/fresh").mkdir()
    found = listed(places)
    assert {id: each["pictures"] for id, each in found.items()} == {
        "datasets/fresh": 0, "pets/cat": 1, "pets/deep/a/b": 1, "pets/dog": 4, "pets/dog/masks": 1, "pets/kohya": 1,
    }  # fmt: skip
    assert found["pets/kohya"]["cover"] == "5_x/p.png"


def test_a_root_with_pictures_is_a_dataset_with_what_a_training_finds_in_it(places, root):
    picture(5).save(root / "z.png")
    found = listed(places)["pets"]
    assert (found["name"], found["pictures"], found["cover"]) == ("pets", 1 + 2, "z.png")
    assert found["pictures"] == len(scan(root).pictures) == datasets.pictures(places, "pets")["total"]


def test_links_out_are_not_listed(places, root, tmp_path):
    (tmp_path / "far").mkdir()
    picture().save(tmp_path / "far/p.png")
    (root / "far").symlink_to(tmp_path / "far")
    (root / "dog/away.png").symlink_to(tmp_path / "secret.png")
    (root / "dog/same.png").symlink_to("1.png")
    found = listed(places)
    assert list(found) == ["pets", "pets/dog"] and found["pets/dog"]["pictures"] == 4
    assert found["pets"]["pictures"] == 0 and "far: left out" in found["pets"]["note"]
    assert "away.png: left out, since links lead out" in found["pets/dog"]["note"]
    page = datasets.pictures(places, "pets/dog")
    assert page["total"] == 4 and "away.png" in page["note"]
    with pytest.raises(NameFault, match="link that leads out"):
        datasets.picture_path(places, "pets/dog", "away.png")
    with pytest.raises(NameFault, match="links that lead out"):
        datasets.check(places, "pets/dog", {})


def test_a_missing_root_and_an_unreadable_folder_are_said(tmp_path, root):
    places = standalone(tmp_path / "home", {"gone": tmp_path / "gone", "pets": root}, [])
    found = listed(places)
    assert "is not there" in found["gone"]["note"] and found["pets/dog"]["pictures"] == 3


def test_folders_are_capped(places, root, monkeypatch):
    monkeypatch.setattr(datasets, "MOST_FOLDERS", 3)
    for i in range(9):
        (root / f"{i}").mkdir()
        picture().save(root / f"{i}/p.png")
    found = listed(places)
    assert 1 < len(found) < 6 and "only 3 folders" in found["pets"]["note"]
    assert len(found) == len(datasets.list_datasets(places))


def test_ten_thousand_files_are_listed_quickly(places, root):
    (root / "many").mkdir()
    for i in range(10_000):
        (root / f"many/{i}.png").touch()
    started = time.perf_counter()
    found = listed(places)
    seconds = time.perf_counter() - started
    assert found["pets/many"]["pictures"] == 10_000
    started = time.perf_counter()
    page = datasets.pictures(places, "pets/many", 9_900, 200)
    seconds = max(seconds, time.perf_counter() - started)
    assert page["total"] == 10_000 and len(page["pictures"]) == 100 and page["pictures"][-1]["name"] == "9999.png"
    assert seconds < 0.5 * slowness(), seconds


def slowness() -> float:
    """At least 1; how many times longer than on an idle machine something small takes now."""
    started = time.perf_counter()
    sum(range(3_000_000))
    return max(1.0, (time.perf_counter() - started) / 0.04)


# --- pictures and captions


def test_pictures_in_training_order(places, root):
    page = datasets.pictures(places, "pets/dog")
    assert [(p["name"], p["caption"], p["caption_file"], p["repeats"]) for p in page["pictures"]] == [
        ("1.png", "a dog asleep", True, 1), ("10_pup/3.png", "", False, 10), ("2.jpg", "", False, 1),
    ]  # fmt: skip
    trained = scan(root / "dog").pictures
    assert [p["name"] for p in page["pictures"]] == [p.path.relative_to(root / "dog").as_posix() for p in trained]
    assert [p["repeats"] for p in page["pictures"]] == [p.repeats for p in trained]
    assert page["pictures"][0]["bytes"] == (root / "dog/1.png").stat().st_size and page["note"] == ""
    assert [p["name"] for p in datasets.pictures(places, "pets/dog", 1, 1)["pictures"]] == ["10_pup/3.png"]
    assert datasets.pictures(places, "pets/dog", 99, 10**9)["pictures"] == []
    assert len(datasets.pictures(places, "pets/dog", -5, -5)["pictures"]) == 1


@pytest.mark.parametrize("trick", TRICKS, ids=ascii)
def test_no_picture_name_leads_out(places, root, tmp_path, trick):
    before = snapshot(tmp_path)
    for call in (
        lambda: datasets.picture_path(places, "pets/dog", trick),
        lambda: datasets.set_caption(places, "pets/dog", trick, "hello"),
        lambda: datasets.remove(places, "pets/dog", trick),
        lambda: datasets.pictures(places, f"pets/{trick or '..'}"),
        lambda: datasets.check(places, f"pets/{trick or '..'}", {}),
        lambda: datasets.check(places, "pets/dog", {"masks": f"pets/{trick or '..'}"}),
        lambda: datasets.upload(places, f"pets/{trick or '..'}", "x.png", saved(picture())),
        lambda: (
            datasets.create(places, trick) if trick not in ("10_dog", "1.txt", "2.png") else datasets.create(places, "")
        ),
    ):
        with pytest.raises(NameFault):
            call()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("value", [None, 1, ["1.png"], {"a": 1}])
def test_what_is_no_name(places, value):
    for call in (
        lambda: datasets.picture_path(places, "pets/dog", value),
        lambda: datasets.picture_path(places, value, "1.png"),
        lambda: datasets.upload(places, "pets/dog", value, saved(picture())),
        lambda: datasets.create(places, value),
        lambda: datasets.check(places, value, {}),
    ):
        with pytest.raises(NameFault):
            call()


HOSTILE_CAPTIONS = {
    "html": (b"<img src=x onerror=alert(1)><script>alert(2)</script>", "<img src=x", ""),
    "a megabyte": (b"x" * 2**20, "", "larger than 65536 bytes"),
    "long": (b"word " * 2000, "word word", "longer than the 4096 characters"),
    "binary": (bytes(range(128, 256)), "", "not UTF-8"),
    "NUL": (b"a\0b", "a\0b", ""),
    "right to left": ("\u202eslaunam\u202c \u05d0".encode(), "\u202eslaunam", ""),
    "a mark of order": ("\ufeffa dog".encode(), "a dog", ""),
    "empty": (b"", "", ""),
}


@pytest.mark.parametrize("kind", HOSTILE_CAPTIONS)
def test_hostile_captions_are_shown_as_text_or_said(places, root, kind):
    content, begins, note = HOSTILE_CAPTIONS[kind]
    (root / "dog/1.txt").write_bytes(content)
    first = datasets.pictures(places, "pets/dog")["pictures"][0]
    assert first["caption"].startswith(begins) and note in first["note"] and bool(note) == bool(first["note"])
    assert first["caption_file"] and len(first["caption"]) <= 4096
    if note:  # what could not be shown whole is not overwritten with what was shown
        with pytest.raises(SettingError, match=r"1\.txt .*Correct or remove that file first"):
            datasets.set_caption(places, "pets/dog", "1.png", "a dog")
        assert (root / "dog/1.txt").read_bytes() == content
    else:
        datasets.set_caption(places, "pets/dog", "1.png", "a dog")
        assert (root / "dog/1.txt").read_bytes() == b"a dog\n"
    (root / "dog/1.txt").write_bytes(content)
    datasets.set_caption(places, "pets/dog", "1.png", "")
    assert not (root / "dog/1.txt").exists() and content in snapshot(places.home / "trash").values()


def test_captions_go_round(places, root, tmp_path):
    for text, kept in (
        ("über  Hund,\n\tsitzt ", "über Hund, sitzt"),
        ("\u05d0 \u202ex", "\u05d0 \u202ex"),
        ("<b>", "<b>"),
    ):
        datasets.set_caption(places, "pets/dog", "10_pup/3.png", text)
        assert datasets.pictures(places, "pets/dog")["pictures"][1]["caption"] == kept
        assert scan(root / "dog").pictures[1].caption == kept
    assert (root / "dog/10_pup/3.txt").read_text(encoding="utf-8") == "<b>\n"
    datasets.set_caption(places, "pets/dog", "10_pup/3.png", " \n")
    assert not (root / "dog/10_pup/3.txt").exists()
    trashed = snapshot(tmp_path / "home/trash/datasets")
    assert [name.partition("/")[2] for name in trashed] == ["pets/dog/10_pup/3.txt"]
    datasets.set_caption(places, "pets/dog", "10_pup/3.png", "")  # there is none: nothing happens


def test_a_caption_file_keeps_its_name(places, root):
    (root / "dog/2.caption").write_text("old")
    (root / "dog/1.txt").rename(root / "dog/1.TXT")
    datasets.set_caption(places, "pets/dog", "2.jpg", "new")
    datasets.set_caption(places, "pets/dog", "1.png", "newer")
    assert (root / "dog/2.caption").read_text() == "new\n" and not (root / "dog/2.txt").exists()
    assert (root / "dog/1.TXT").read_text() == "newer\n" and not (root / "dog/1.txt").exists()
    (root / "dog/2.txt").write_text("over it")
    datasets.set_caption(places, "pets/dog", "2.jpg", "")
    assert not (root / "dog/2.caption").exists() and not (root / "dog/2.txt").exists()


@pytest.mark.parametrize("text", ["a\0b", "\x1b[31m", "x" * 4097, "\ud800", None, 3])
def test_captions_that_are_refused(places, root, text):
    before = snapshot(root)
    with pytest.raises(SettingError, match="caption: found"):
        datasets.set_caption(places, "pets/dog", "1.png", text)
    assert snapshot(root) == before


def test_a_caption_that_is_a_link_out_is_neither_read_nor_written(places, root, tmp_path):
    (root / "dog/2.txt").symlink_to(tmp_path / "secret.txt")
    assert datasets.pictures(places, "pets/dog")["pictures"][2]["caption"] == ""
    with pytest.raises(NameFault, match="leads out"):
        datasets.set_caption(places, "pets/dog", "2.jpg", "overwritten")
    assert (tmp_path / "secret.txt").read_text() == "a secret" and (root / "dog/2.txt").is_symlink()


def test_a_caption_that_is_a_link_inside_is_written_through(places, root):
    (root / "dog/2.txt").symlink_to("1.txt")
    datasets.set_caption(places, "pets/dog", "2.jpg", "both")
    assert (root / "dog/2.txt").is_symlink() and (root / "dog/1.txt").read_text() == "both\n"


# --- new datasets and uploads


def test_a_new_dataset(places):
    assert datasets.create(places, "my dog") == "datasets/my dog"
    assert listed(places)["datasets/my dog"]["pictures"] == 0
    assert datasets.pictures(places, "datasets/my dog")["pictures"] == []
    found = datasets.check(places, "datasets/my dog", {}, "tiny")
    assert (
        found["usable"] == 0
        and found["findings"][0]["fatal"]
        and "no picture in it yet" in found["findings"][0]["text"]
    )
    for taken in ("my dog", "My Dog"):
        with pytest.raises(NameFault, match="exists already"):
            datasets.create(places, taken)
    with pytest.raises(NameFault, match="says how often each picture counts"):
        datasets.create(places, "2024_party")


FORMATS = {
    "jpg": (lambda: saved(picture(), "JPEG"), ".jpg"),
    "png": (lambda: saved(picture()), ".png"),
    "webp": (lambda: saved(picture(), "WEBP"), ".webp"),
    "bmp": (lambda: saved(picture(), "BMP"), ".bmp"),
    "tiff": (lambda: saved(picture(), "TIFF"), ".tif"),
    "CMYK": (lambda: saved(picture().convert("CMYK"), "JPEG"), ".jpg"),
    "16 bit": (lambda: saved(Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10)), ".png"),
    "transparent": (lambda: saved(picture().convert("RGBA")), ".png"),
    "palette": (lambda: saved(picture().quantize()), ".png"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_suffix_says_what_the_content_is(places, kind):
    make, suffix = FORMATS[kind]
    data, id = make(), datasets.create(places, "new")
    assert datasets.upload(places, id, "holiday.exe.gif", data) == f"holiday.exe{suffix}"
    path = datasets.picture_path(places, id, f"holiday.exe{suffix}")
    assert path.read_bytes() == data
    assert datasets.check(places, id, {}, "tiny")["usable"] == 1


def test_a_turned_picture_is_checked_as_it_is_shown(places):
    exif = Image.Exif()
    exif[0x0112] = 6
    id = datasets.create(places, "new")
    datasets.upload(places, id, "x.jpg", saved(picture(size=(160, 80)), "JPEG", exif=exif))
    assert datasets.check(places, id, {}, "tiny")["sizes"] == {"48x80": 1}


REFUSED = {
    "svg": (
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "an SVG drawing; expected a",
    ),
    "gif": (lambda: saved(picture(), "GIF"), "a GIF"),
    "animated gif": (lambda: saved(picture(), "GIF", save_all=True, append_images=[picture(1)]), "animation of 2"),
    "animated png": (lambda: saved(picture(), save_all=True, append_images=[picture(1)]), "animation of 2"),
    "animated webp": (lambda: saved(picture(), "WEBP", save_all=True, append_images=[picture(1)]), "animation of 2"),
    "html": (lambda: b"<html><script>alert(1)</script>", "a web page"),
    "text": (lambda: b"hello", "holds no picture"),
    "empty": (lambda: b"", "an empty file"),
    "zip": (lambda: b"PK\x03\x04" + bytes(99), "a ZIP"),
    "truncated": (lambda: saved(picture(size=(600, 600)))[:3000], "cannot be decoded"),
    "truncated jpeg": (lambda: saved(picture(size=(600, 600)), "JPEG")[:2000], "cannot be decoded"),
    "header alone": (lambda: saved(picture())[:20], "damaged|cannot be decoded"),
    "bomb": (lambda: bomb(30_000), "too much memory|more than"),
    "101 megapixels": (lambda: bomb(10_050), "more than 100000000"),
    "huge sides": (lambda: bomb(2**31 - 1), "too much memory|cannot be decoded|damaged"),
    "eps": (lambda: saved(picture(), "EPS"), "holds no picture"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_uploads_leave_nothing(places, root, kind):
    make, reason = REFUSED[kind]
    before = snapshot(root)
    with pytest.raises(PictureFault, match=reason):
        datasets.upload(places, "pets/dog", "x.png", make())
    assert snapshot(root) == before


NAMES = {
    "../../evil.png": "evil.png", "C:\\fakepath\\dog.png": "dog.png", "\\\\server\\share\\x.png": "x.png",
    "..": "picture.png", "": "picture.png", ".png": "png.png", "con.png": "picture-con.png",
    "a:b.png": "a-b.png", "x\0y.png": "x-y.png",
    "\u202egnp.exe": "-gnp.png", "a" * 300 + ".png": "a" * 80 + ".png", "日本" * 100: "日本" * 26 + "日" + ".png",
    "ok (1).png": "ok (1).png", "u\u0308.png": "ü.png", "...": "picture.png", "<script>.png": "-script-.png",
    "a.": "a.png",
    "\ud800.png": "-.png",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_uploads_are_made_safe(places, tmp_path, name):
    id = datasets.create(places, "new")
    before = snapshot(tmp_path)
    got = datasets.upload(places, id, name, saved(picture()))
    assert got == NAMES[name]
    assert snapshot(tmp_path).keys() - before.keys() == {f"home/datasets/new/{got}"}
    assert datasets.picture_path(places, id, got).is_file()


def test_names_do_not_clash(places, root):
    assert datasets.upload(places, "pets/dog", "1.png", saved(picture(5))) == "1-2.png"
    assert datasets.upload(places, "pets/dog", "2.png", saved(picture(6))) == "2-2.png"  # 2.jpg has its caption
    assert datasets.upload(places, "pets/dog", "1.PNG", saved(picture(7))) == "1-3.png"
    assert datasets.upload(places, "pets/dog", "3.png", saved(picture(8))) == "3.png"  # the other is in 10_pup
    assert datasets.check(places, "pets/dog", {}, "tiny")["usable"] == 7


def test_uploads_at_once_lose_nothing(places):
    id = datasets.create(places, "new")
    names: list[str] = []
    threads = [
        Thread(target=lambda i=i: names.append(datasets.upload(places, id, "x.png", saved(picture(i)))))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names) == {"x.png", *(f"x-{i}.png" for i in range(2, 9))}
    assert len({path.read_bytes() for path in places.dataset(id).iterdir()}) == 8


def test_caps_of_uploads(places, monkeypatch):
    with pytest.raises(SettingError, match="at most 67,108,864"):
        datasets.upload(places, "pets/dog", "x.png", bytes((64 << 20) + 1))
    monkeypatch.setattr(dataset_edit, "MOST_PICTURES", 3)
    with pytest.raises(SettingError, match="found 3 pictures, and no more"):
        datasets.upload(places, "pets/dog", "x.png", saved(picture()))
    monkeypatch.setattr(dataset_edit, "MOST_PICTURES", 5000)
    monkeypatch.setattr(files, "free_bytes", lambda _folder: 1 << 20)
    with pytest.raises(SpectralError, match="found 1 MB free"):
        datasets.upload(places, "pets/dog", "x.png", saved(picture()))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="an administrator may write anywhere")
def test_a_folder_that_cannot_be_written(places, root):
    (root / "dog").chmod(0o555)
    try:
        assert not listed(places)["pets/dog"]["writable"]
        with pytest.raises(SpectralError, match="failed: found that Permission denied"):
            datasets.upload(places, "pets/dog", "x.png", saved(picture()))
    finally:
        (root / "dog").chmod(0o755)


def test_a_full_disk_leaves_nothing(places, root, monkeypatch):
    def full(_handle: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    before = snapshot(root)
    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(SpectralError, match="the disk is full"):
        datasets.upload(places, "pets/dog", "x.png", saved(picture()))
    with pytest.raises(SpectralError, match="the disk is full"):
        datasets.set_caption(places, "pets/dog", "1.png", "x")
    assert snapshot(root) == before


def test_one_change_at_a_time(places, root, monkeypatch):
    monkeypatch.setattr(dataset_edit, "_PATIENCE", 0.1)
    with FileLock(places.home / "datasets.lock"), pytest.raises(SettingError, match="has not ended yet"):
        datasets.remove(places, "pets/dog", "1.png")
    assert (root / "dog/1.png").is_file()


def test_removed_pictures_lie_in_the_trash(places, root, tmp_path):
    before = snapshot(root)
    datasets.remove(places, "pets/dog", "1.png")
    datasets.remove(places, "pets/dog", "10_pup/3.png")
    assert sorted(snapshot(root)) == ["dog/2.jpg"]
    trashed = {name.partition("/")[2]: data for name, data in snapshot(tmp_path / "home/trash/datasets").items()}
    assert trashed == {f"pets/{name}": data for name, data in before.items() if name != "dog/2.jpg"}
    with pytest.raises(NameFault, match="found no picture"):
        datasets.remove(places, "pets/dog", "1.png")


def test_a_shared_caption_stays_with_the_other_picture(places, root):
    picture(7).save(root / "dog/1.webp")
    datasets.remove(places, "pets/dog", "1.png")
    assert (root / "dog/1.txt").is_file()
    datasets.remove(places, "pets/dog", "1.webp")
    assert not (root / "dog/1.txt").exists()


def test_the_trash_may_be_on_another_disk(places, root, monkeypatch):
    def other_disk(_source: object, _target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    data = (root / "dog/1.png").read_bytes()
    monkeypatch.setattr(os, "rename", other_disk)
    datasets.remove(places, "pets/dog", "1.png")
    assert not (root / "dog/1.png").exists() and data in snapshot(places.home / "trash").values()


def test_a_removed_link_leaves_what_it_leads_to(places, root):
    (root / "dog/same.png").symlink_to("1.png")
    datasets.remove(places, "pets/dog", "same.png")
    assert (root / "dog/1.png").is_file() and not (root / "dog/same.png").is_symlink()


# --- the check


def test_the_check_finds_what_a_training_finds(places, root):
    (root / "dog/bad.png").write_bytes(b"<svg>")
    (root / "dog/2.jpg").write_bytes((root / "dog/1.png").read_bytes())
    found = datasets.check(places, "pets/dog", {"trigger": "rex"}, "tiny")
    trained = scan(root / "dog", trigger="rex", sizes=bucket_sizes(64, 16))
    assert found["usable"] == len(trained.pictures) == 3 and found["trigger"] == "rex" and found["samples"] == 12
    assert sorted((f["kind"], f["text"]) for f in found["findings"]) == sorted(
        (f.kind, f.text) for f in trained.findings
    )
    assert {(f["file"], f["kind"], f["fatal"]) for f in found["findings"]} == {
        ("bad.png", "not a picture", True), ("2.jpg", "duplicate", False),
    }  # fmt: skip
    assert sum(found["sizes"].values()) == 3 and found["left"] == 0


def test_settings_change_the_check(places, root):
    assert datasets.check(places, "pets/dog", {"buckets": False}, "tiny")["sizes"] == {"64x64": 3}
    assert datasets.check(places, "pets/dog", {"resolution": 192}, "tiny")["usable"] == 0
    assert datasets.check(places, "pets/dog", {"resolution": 192})["sizes"] == {}
    for settings, reason in (
        ({"resolution": 65}, "multiples of 16"),
        ({"resolution": "64"}, "resolution"),
        ({"resolution": 2064}, "at most 2048"),
        ({"masks": "pets/none"}, "no dataset"),
    ):
        with pytest.raises(SettingError, match=reason):
            datasets.check(places, "pets/dog", settings, "tiny")
    with pytest.raises(NameFault, match="base model: found '/etc'"):
        datasets.check(places, "pets/dog", {}, "/etc")


def test_masks_and_other_folders_are_no_training_pictures(places, root):
    for folder in ("masks", "held"):
        (root / "dog" / folder).mkdir()
        for i, name in enumerate(("1.png", "2.png", "3.png")):
            picture(i + 20).convert("L").save(root / "dog" / folder / name)
    settings = {"masks": "pets/dog/masks", "validation_images": "pets/dog/held"}
    found = datasets.check(places, "pets/dog", settings, "tiny")
    assert found["usable"] == 3 and not any(f["fatal"] for f in found["findings"])
    assert datasets.check(places, "pets/dog", {}, "tiny")["usable"] == 9


def test_pictures_are_decoded_once_until_they_change(places, root, monkeypatch):
    decoded: list[str] = []
    examine = dataset_check.examine_file

    def counting(path: Path, alpha: bool):
        decoded.append(path.name)
        return examine(path, alpha)

    monkeypatch.setattr(dataset_check, "examine_file", counting)
    first = datasets.check(places, "pets/dog", {}, "tiny")
    datasets.set_caption(places, "pets/dog", "2.jpg", "another caption")
    again = datasets.check(places, "pets/dog", {}, "tiny")
    assert sorted(decoded) == ["1.png", "2.jpg", "3.png"] and first["usable"] == again["usable"] == 3
    (root / "dog/1.png").write_bytes(b"gone bad")
    assert datasets.check(places, "pets/dog", {}, "tiny")["usable"] == 2 and decoded[3:] == ["1.png"]


def test_a_long_check_goes_on_when_asked_again(places, root):
    found = datasets.check(places, "pets/dog", {}, "tiny", seconds=0)
    assert found["left"] == 3 and found["usable"] == 0 and "3 more pictures" in found["findings"][0]["text"]
    assert not any(f["fatal"] for f in found["findings"])
    assert datasets.check(places, "pets/dog", {}, "tiny")["left"] == 0
    assert datasets.check(places, "pets/dog", {}, "tiny", seconds=0)["usable"] == 3  # all are known now


def test_findings_are_bounded_and_the_worst_come_first(places, root, monkeypatch):
    monkeypatch.setattr(dataset_check, "_MOST_FINDINGS", 4)
    for i in range(6):
        (root / f"dog/note{i}.txt").write_text("without a picture")
    (root / "dog/z.png").write_bytes(b"no picture")
    findings = datasets.check(places, "pets/dog", {}, "tiny")["findings"]
    assert findings[0]["file"] == "z.png" and findings[0]["fatal"] and len(findings) == 5
    assert "more remarks are not shown" in findings[-1]["text"]


def test_remembered_pictures_are_bounded(places, monkeypatch):
    monkeypatch.setattr(dataset_check, "_REMEMBERED", 2)
    datasets.check(places, "pets/dog", {}, "tiny")
    assert len(dataset_check._seen) == 2


def test_a_training_reads_nothing_from_outside(places, root, tmp_path):
    asked = Request.from_json({"name": "x", "base": "tiny", "dataset": "pets/dog", "settings": {}})
    assert resolve(asked, places).images == root / "dog"
    (root / "dog/10_pup/away.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(NameFault, match=r"10_pup/away\.png"):
        resolve(asked, places)
    masked = Request.from_json({"name": "x", "base": "tiny", "dataset": "pets", "settings": {"masks": "pets/dog"}})
    with pytest.raises(NameFault, match=r"10_pup/away\.png"):
        resolve(masked, places)


# --- sizes of bases


def test_the_tiny_bases_size_is_the_one_that_a_training_uses(base, tmp_path):
    own = native("tiny")
    spec = TrainSpec(base="tiny", images=tmp_path, out=tmp_path / "x.safetensors")
    assert bucket_sizes(spec.pixels(own.resolution, own.multiple), own.step, True) == sizes_for(spec, base)


def header(path: Path, width: int, extra: dict | None = None, metadata: dict | None = None, data: bytes = b"") -> Path:
    """The beginning of a checkpoint whose cross-attention reads texts of this width."""
    import json

    entries = {
        "model.diffusion_model.x.attn2.to_k.weight": {"dtype": "F16", "shape": [320, width], "data_offsets": [0, 0]}
    }
    blob = json.dumps({**({"__metadata__": metadata} if metadata else {}), **entries, **(extra or {})}).encode()
    path.write_bytes(struct.pack("<Q", len(blob)) + blob + data)
    return path


def test_sizes_of_single_files(tmp_path):
    path = tmp_path / "a.safetensors"
    assert native(str(header(path, 768))) == Native(512, 64, 64)
    assert native(str(header(path, 2048))) == Native(1024, 32, 64)
    assert native(str(header(path, 1024))) == Native(512, 64, 64)
    assert native(str(path), "v_prediction") == Native(768, 64, 64)
    assert native(str(header(path, 1024, metadata={"modelspec.prediction_type": "v"}))) == Native(768, 64, 64)
    assert native(str(header(path, 1024, metadata={"modelspec.prediction_type": "epsilon"}))).resolution == 512
    assert native(str(path), "epsilon") == Native(512, 64, 64)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("spread", "resolution"), [(0.05, 512), (0.2, 768)])
def test_sd2s_kinds_are_told_apart_by_their_weights(tmp_path, kind, spread, resolution):
    values = np.array([-spread, spread] * 40, np.float32)
    data = {
        "F32": values.tobytes(), "F16": values.astype("<f2").tobytes(),
        "BF16": (values.view(np.uint32) >> 16).astype("<u2").tobytes(),
    }[kind]  # fmt: skip
    from spectral_adapters.trainer.native import V_MARK

    entry = {V_MARK: {"dtype": kind, "shape": [80], "data_offsets": [0, len(data)]}}
    path = header(tmp_path / "a.safetensors", 1024, entry, data=data)
    assert native(str(path)).resolution == resolution
    assert native(str(path), "epsilon").resolution == 512


@pytest.mark.parametrize(
    "content", [b"", b"x" * 99, struct.pack("<Q", 2**40), struct.pack("<Q", 2) + b"[]", b"\x05" + bytes(7) + b"{"]
)
def test_a_header_that_says_nothing(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert native(str(path)) is None and native(str(tmp_path / "missing")) is None and native(str(tmp_path)) is None
    assert native(str(header(path, 999))) is None


# --- without torch, and from the command line


def test_nothing_here_needs_torch(tmp_path, root):
    program = (
        "import sys; from pathlib import Path; from spectral_adapters.trainer import datasets, datasets_cli, thumbs\n"
        "from spectral_adapters.trainer.places import standalone\n"
        "places = standalone(Path(sys.argv[1]), {'pets': Path(sys.argv[2])}, [])\n"
        "datasets.list_datasets(places); datasets.check(places, 'pets/dog', {}, 'tiny')\n"
        "thumbs.thumbnail(datasets.picture_path(places, 'pets/dog', '1.png'), 32, Path(sys.argv[1]))\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "h"), str(root)], check=True)


def test_the_command(tmp_path, root, capsys):
    where = ["--home", str(tmp_path / "home"), "--root", f"pets={root}"]

    def run(*arguments: str) -> tuple[int, str]:
        status = main(["datasets", *arguments, *where])
        out = capsys.readouterr()
        return status, out.out + out.err

    assert run("list") == (0, "pets/dog  3 pictures, 1 captions\n")
    assert run("create", "new")[0] == 0
    status, said = run(
        "add", "datasets/new", *map(str, sorted((root / "dog").glob("*.*"))), str(tmp_path / "secret.txt")
    )
    assert status == 0 and "2.jpg -> 2.jpg" in said
    assert run("add", "datasets/new", str(root / "dog"), __file__)[0] == 1
    assert "1.png  x1  a dog asleep" in run("show", "datasets/new")[1]
    assert run("caption", "datasets/new", "2.jpg", "a cat")[0] == 0
    assert run("check", "datasets/new", "--base", "tiny") == (0, "2 pictures can be used (64x64: 2).\n")
    assert run("check", "datasets/new", "--resolution", "256", "--base", "tiny")[0] == 1
    assert run("remove", "datasets/new", "1.png")[0] == 0
    status, said = run("show", "datasets/new", "--json")
    assert status == 0 and '"caption": "a cat"' in said and "1.png" not in said
    status, said = run("remove", "datasets/../x", "1.png")
    assert status == 2 and said.startswith("error: ")
