"""Editing what a file says of itself: new texts, every tensor bit for bit, nothing half done; and what `info` reads."""

import base64
import hashlib
import io
import json
import os
import random

import pytest
import torch
from adapters import adapter_of, put_together, take_apart
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import spectral_adapters as sa
from spectral_adapters.spectral.edit import edit as edit_plain
from spectral_adapters.spectral.info import read_info
from spectral_adapters.spectral.preview import LARGEST, read_preview
from spectral_adapters.trainer.decode import PictureFault
from spectral_adapters.trainer.edit import edit, small

LORA = {"lora_unet_conv_in.lora_up.weight": torch.ones(8, 2, 1, 1), "lora_unet_conv_in.alpha": torch.tensor(2.0)}
LORA["lora_unet_conv_in.lora_down.weight"] = torch.ones(2, 4, 3, 3)
TEXTS = {
    "title": "A cat, in « oils »",
    "description": "Two lines\nof text 🐈",
    "trigger_words": ["<cat>", "oil, painted"],
    "licence": "CC-BY-4.0",
    "author": "Somebody",
}


@pytest.fixture
def own(tmp_path):
    adapter, _ = adapter_of("additive", {"rank": 3})
    metadata = {"ss_steps": "40", "ss_optimizer": "None", "modelspec.author": "Nobody", "ss_tag_frequency": "{}"}
    return sa.save(adapter, tmp_path / "own.safetensors", metadata=metadata, trigger_words=["old"], base_name="base")


@pytest.fixture
def lora(tmp_path):
    """As another tool may write it: bf16 beside fp16, order and metadata not ours."""
    save_file(
        {key: t.to(torch.bfloat16 if "up" in key else torch.float16) for key, t in LORA.items()},
        tmp_path / "lora.safetensors",
        {"ss_tags": "x" * 100_000, "ss_output_name": "cat", "zz": "1"},
    )
    return tmp_path / "lora.safetensors"


def picture(size=(900, 600), kind="PNG", **more):
    out = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(out, kind, **more)
    return out.getvalue()


def bits(path):
    header, data = take_apart(path)
    header.pop("__metadata__", None)
    return header, data


@pytest.mark.parametrize("kind", ["own", "lora"])
def test_texts_are_written_and_every_tensor_stays_bit_for_bit(kind, request):
    path = request.getfixturevalue(kind)
    before, info = bits(path), read_info(path)
    metadata = take_apart(path)[0]["__metadata__"]
    assert edit(path, **TEXTS, preview=picture()) == path
    assert bits(path) == before
    after = read_info(path)
    assert (after.title, after.description, after.licence, after.author) == (
        TEXTS["title"], TEXTS["description"], TEXTS["licence"], TEXTS["author"]
    )  # fmt: skip
    assert after.content_hash == info.content_hash and after.sha256 != info.sha256
    new = take_apart(path)[0]["__metadata__"]
    changed = {key for key in new.keys() | metadata.keys() if new.get(key) != metadata.get(key)}
    assert all(key.startswith("modelspec.") or key == "spectral.trigger_words" for key in changed)
    with Image.open(io.BytesIO(after.preview)) as image:
        assert image.size == (512, 341)
    assert read_preview(path) == after.preview
    with safe_open(path, "pt") as f:  # what other programs read it with
        assert f.metadata()["modelspec.title"] == TEXTS["title"]


def test_the_words_of_our_files_are_kept_one_by_one(own, lora):
    for path in (own, lora):
        edit(path, **TEXTS)
    assert sa.load(own).trigger_words == TEXTS["trigger_words"] == read_info(own).trigger_words
    assert sa.read_metadata(own)["modelspec.trigger_phrase"] == "<cat>, oil, painted"
    assert "spectral.trigger_words" not in take_apart(lora)[0]["__metadata__"]
    assert read_info(lora).trigger_words == ["<cat>", "oil", "painted"]


def test_what_is_not_named_stays_and_empty_takes_out(own):
    edit(own, **TEXTS, preview=picture())
    raw = own.read_bytes()
    assert edit(own) == own and own.read_bytes() == raw
    edit(own, title="Other")
    found = read_info(own)
    assert (found.title, found.author, found.trigger_words) == ("Other", "Somebody", TEXTS["trigger_words"])
    assert found.preview is not None
    edit(own, title="", description=" ", trigger_words=[], licence="", author="", preview=b"")
    found = read_info(own)
    assert (found.description, found.licence, found.author, found.trigger_words) == ("", "", "", [])
    assert found.preview is None and "modelspec.title" not in sa.read_metadata(own)
    assert sa.load(own).method.name == "additive"


def test_hashes_stay_those_of_the_file(own):
    from spectral_adapters.spectral.hostmeta import kohya_hashes

    edit(own, **TEXTS, preview=picture())
    header, data = take_apart(own)
    metadata = header["__metadata__"]
    tensors = load_file(own)
    assert kohya_hashes(tensors, metadata) == {key: metadata[key] for key in kohya_hashes(tensors, metadata)}
    info = read_info(own)
    assert info.content_hash == hashlib.sha256(data).hexdigest()
    assert info.sha256 == hashlib.sha256(own.read_bytes()).hexdigest()


def test_a_preview_is_made_anew_and_small(own, tmp_path):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "where I live", 6
    (tmp_path / "photo.jpg").write_bytes(picture((900, 675), "JPEG", exif=exif, quality=95))
    edit(own, preview=tmp_path / "photo.jpg")
    kept = read_info(own).preview
    assert b"where I live" not in kept and len(kept) <= LARGEST
    with Image.open(io.BytesIO(kept)) as image:
        assert image.size == (384, 512) and not image.getexif()
    assert len(small(picture((1400, 1400)))) <= LARGEST


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"preview": b"no picture"}, PictureFault, "picture"),
        ({"preview": b"\x89PNG\r\n\x1a\n" + b"0" * 50}, PictureFault, "picture|decoded"),
        ({"title": "\x1b[31mred"}, sa.AdapterFileError, "control characters"),
        ({"description": "x" * 65_537}, sa.AdapterFileError, "65537 characters"),
        ({"trigger_words": ["a\x00b"]}, sa.AdapterFileError, "control characters"),
        ({"trigger_words": "cat"}, sa.SettingError, "list of texts"),
    ],
)
def test_what_cannot_be_written_changes_nothing(own, changes, error, said):
    raw = own.read_bytes()
    with pytest.raises(error, match=said):
        edit(own, **changes)
    assert own.read_bytes() == raw and [p.name for p in own.parent.iterdir()] == [own.name]


def test_the_engine_takes_only_small_pictures(own):
    made = picture((64, 64))
    edit_plain(own, preview=made)
    assert read_info(own).preview == made
    for wrong, said in ((b"GIF", "no PNG"), (b"RIFF1234WAVE", "no PNG"), (b"\xff\xd8\xff" + b"x" * LARGEST, "smaller")):
        with pytest.raises(sa.SettingError, match=said):
            edit_plain(own, preview=wrong)


def test_files_that_are_none_are_not_touched(own, tmp_path):
    raw = own.read_bytes()
    for name, content in {"cut": raw[:-1], "pickle": b"\x80\x02}.", "text": b"{}"}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(sa.AdapterFileError, match=name):
            edit(path, title="x")
        assert path.read_bytes() == content
    with pytest.raises(sa.AdapterFileError, match="nothing"):
        edit(tmp_path / "missing.safetensors", title="x")
    header, data = take_apart(own)
    header["__metadata__"]["spectral.method"] = "other"
    own.write_bytes(put_together(header, data))
    with pytest.raises(sa.AdapterFileError, match="other"):
        edit(own, title="x")


def test_a_link_stays_a_link(own, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "cat.safetensors"
    try:
        link.symlink_to(own)
    except OSError as error:
        pytest.skip(f"this system makes no links here: {error}")
    edit(link, title="Linked")
    assert link.is_symlink() and read_info(own).title == "Linked"


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps rights elsewhere")
def test_a_private_file_stays_private(own):
    own.chmod(0o600)
    edit(own, title="x")
    assert own.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_the_file_as_it_was(own, monkeypatch):
    raw = own.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(sa.AdapterFileError, match="No space left"):
        edit(own, title="x")
    assert own.read_bytes() == raw and [p.name for p in own.parent.iterdir()] == [own.name]


def test_info_of_both_kinds(own, lora):
    ours, theirs = read_info(own), read_info(lora)
    assert ours.training == {"steps": "40", "date": ours.metadata["modelspec.date"]}
    assert (theirs.method, theirs.layers, theirs.parameters, theirs.title) == ("LoCon", 1, 16 + 72, "cat")
    assert theirs.content_hash == hashlib.sha256(take_apart(lora)[1]).hexdigest()
    assert "changes the weights" in str(theirs) and ours.sha256 in str(ours)
    for info in (ours, theirs):
        assert json.loads(json.dumps(info.as_json()))["preview"] is False
    edit(lora, preview=picture())
    assert read_info(lora).as_json()["preview"] is True


def test_previews_of_other_tools_and_what_only_looks_like_one(lora):
    made = picture((8, 8))
    text = base64.b64encode(made).decode()
    for entry, expected in {
        ("ssmd_cover_images", json.dumps([text])): made,
        ("modelspec.thumbnail", f"data:image/png;base64,{text}"): made,
        ("modelspec.thumbnail", f"data:text/html;base64,{text}"): None,
        ("modelspec.thumbnail", "data:image/svg+xml;base64," + base64.b64encode(b"<svg onload=x>").decode()): None,
        ("modelspec.thumbnail", "data:image/png;base64,%%%"): None,
        ("ssmd_cover_images", "[" * 5000): None,
        ("ssmd_cover_images", '{"a": 1}'): None,
    }.items():
        save_file(LORA, lora, dict([entry]))
        assert read_preview(lora) == expected


def test_a_file_of_another_order_keeps_it(lora):
    """Offsets need not follow the order of the keys; the bytes behind them must stay what they are."""
    header, data = take_apart(lora)
    metadata = header.pop("__metadata__")
    keys = list(header)
    random.Random(0).shuffle(keys)
    lora.write_bytes(put_together({"__metadata__": metadata, **{key: header[key] for key in keys}}, data))
    edit(lora, title="x")
    assert bits(lora) == ({key: header[key] for key in keys}, data)
