"""Abuse: every kind of file that is not a good adapter, made here, with what the reader says of it beside it."""

import io
import json
import math
import os
import pickle
import zipfile

import pytest
import safetensors.torch
import torch
from adapters import adapter_of, put_together, take_apart
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral_adapters as sa

LAYER = "lora_unet_a"


def good(tmp_path, name="additive", options=None, **arguments):
    adapter, _ = adapter_of(name, {"rank": 4} if options is None else options, {LAYER: (12, 20), "lora_unet_b": (6, 8)})
    return take_apart(sa.save(adapter, tmp_path / "good.safetensors", trigger_words=["sks"], **arguments))


def refused(tmp_path, raw: bytes, sentence: str):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw)
    for read in (sa.load, sa.read_metadata):
        if read is sa.read_metadata and sentence in ONLY_DATA:
            continue
        with pytest.raises(sa.AdapterFileError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and sentence in message, message
        assert len(message) < 1000 and message.isprintable()


# Files of another kind, by their first bytes


def _zip() -> bytes:
    with io.BytesIO() as f:
        with zipfile.ZipFile(f, "w") as z:
            z.writestr("data.pkl", pickle.dumps({"delta": 1}))
        return f.getvalue()


def _torch_file(legacy: bool) -> bytes:
    with io.BytesIO() as f:
        torch.save({"delta": torch.zeros(3)}, f, _use_new_zipfile_serialization=not legacy)
        return f.getvalue()


BYTES = {
    "empty": (b"", "found an empty file"),
    "three bytes": (b"abc", "found 3 bytes, expected at least 8 bytes"),
    "zip": (_zip(), "found a zip archive or a PyTorch .pt/.ckpt file, which can run code"),
    "torch file": (_torch_file(False), "found a zip archive or a PyTorch .pt/.ckpt file"),
    "legacy torch file": (_torch_file(True), "found a Python pickle"),
    "pickle": (pickle.dumps(os.getcwd), "found a Python pickle (.pt, .ckpt, .bin), which can run code when opened"),
    "web page": (b"\n<!DOCTYPE html><html><body>Please log in</body></html>", "found a web page, saved instead"),
    "json error": (b'{"error": "Unauthorized"}', "found a JSON text, perhaps an error message"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "found a Git LFS pointer"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(60), "found a GGUF model"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(60), "found a PNG picture"),
    "noise": (bytes(range(200, 256)), "its header length"),
    "header longer than the file": ((5000).to_bytes(8, "little") + b"{}", "found 10 bytes, expected a header of 5000"),
    "header of 1 TB": ((1 << 40).to_bytes(8, "little") + b"{}", "its header length: found 1099511627776"),
    "zero header": (bytes(64), "its header length: found 0, expected 2 to"),
}


@pytest.mark.parametrize("case", BYTES)
def test_other_kinds_of_file(case, tmp_path):
    refused(tmp_path, *BYTES[case])


# Safetensors files of another kind, by their tensor names

NAMES = {
    "lora": (["lora_unet_x.lora_up.weight", "lora_unet_x.lora_down.weight", "lora_unet_x.alpha"], "a LoRA file"),
    "peft lora": (["unet.to_q.lora_A.weight", "unet.to_q.lora_B.weight"], "a LoRA file (PEFT or diffusers)"),
    "locon": (["x.lora_up.weight", "x.lora_mid.weight", "x.lora_down.weight"], "a LoCon file"),
    "loha": (["x.hada_w1_a", "x.hada_w1_b", "x.hada_w2_a", "x.hada_w2_b"], "a LoHa file"),
    "lokr": (["x.lokr_w1", "x.lokr_w2"], "a LoKr file"),
    "oft": (["x.oft_blocks", "x.alpha"], "an OFT or BOFT file"),
    "dora": (["x.lora_up.weight", "x.lora_down.weight", "x.dora_scale"], "a DoRA file"),
    "difference": (["x.diff"], "a difference file"),
    "embedding": (["emb_params"], "a textual inversion embedding"),
    "checkpoint": (["model.diffusion_model.out.2.weight", "first_stage_model.x"], "a full checkpoint"),
    "unet": (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "a UNet or VAE of diffusers"),
    "foreign shifts": (["down_blocks.0.attentions.0.to_q.delta"], "a file of spectral shifts of svdiff-pytorch"),
    "other": (["w"], "a safetensors file of unknown kind"),
}


@pytest.mark.parametrize("case", NAMES)
def test_other_kinds_of_safetensors(case, tmp_path):
    names, kind = NAMES[case]
    tensors = {name: torch.zeros(2, 2) for name in names}
    refused(tmp_path, safetensors.torch.save(tensors, {"ss_network_module": "networks.lora"}), f"found {kind}")


# Damage and malice in the container: (header, data) -> (header or its bytes, data)


def meta(header, **changes):
    header["__metadata__"] |= {key.replace("__", "."): value for key, value in changes.items()}
    return header


def entry(header, **changes):
    header[f"{LAYER}.a_u"] |= changes
    return header


def text(header) -> bytes:
    return json.dumps(header).encode()


def _same_bytes_twice(h, d):
    h[f"{LAYER}.a_v"]["data_offsets"] = h[f"{LAYER}.frame_v"]["data_offsets"]
    return h, d


def _more(h, key, shape):
    size = math.prod(shape) * 2
    end = max(e["data_offsets"][1] for k, e in h.items() if k != "__metadata__")
    return h | {key: {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}}


CONTAINER = {
    "cut off in the data": (lambda h, d: (h, d[:-100]), "It is cut off. Download or copy the file again"),
    "something appended": (lambda h, d: (h, d + b"x"), "Something was appended"),
    "header is a list": (lambda h, d: (b"[1, 2]", d), "its header: found list, expected a JSON object"),
    "header is no json": (lambda h, d: (b'{"a": ', d), "expected one JSON object in UTF-8, no key twice"),
    "header is not utf-8": (lambda h, d: (b'{"\xff": 1}', d), "expected one JSON object in UTF-8"),
    "header nested too deeply": (lambda h, d: (b'{"a":' + b"[" * 200_000, d), "expected one JSON object"),
    "leading space": (lambda h, d: (b" " + text(h), d), "expected a JSON object"),
    "a tensor twice": (
        lambda h, d: (text(h)[:-1] + b', "lora_unet_a.a_u": {}}', d),
        "found \"the key 'lora_unet_a.a_u' twice\"",
    ),
    "a metadata key twice": (
        lambda h, d: (text(h).replace(b'"spectral.method"', b'"spectral.method": "soda", "spectral.method"', 1), d),
        "the key 'spectral.method' twice",
    ),
    "a number that is none": (lambda h, d: (text(h)[:-1] + b', "x": NaN}', d), "the number NaN"),
    "unknown dtype": (lambda h, d: (entry(h, dtype="I64"), d), "dtype: found 'I64', expected F16 or BF16 or F32"),
    "dtype is no text": (lambda h, d: (entry(h, dtype=["F16"]), d), "dtype: found ['F16']"),
    "negative shape": (lambda h, d: (entry(h, shape=[-12, -4]), d), "shape: found [-12, -4]"),
    "shape of truth": (lambda h, d: (entry(h, shape=[True, 4]), d), "shape: found [True, 4]"),
    "huge shape": (lambda h, d: (entry(h, shape=[1 << 40, 1 << 40]), d), "shape: found [1099511627776"),
    "many dimensions": (lambda h, d: (entry(h, shape=[1] * 99), d), "expected at most 8 whole numbers"),
    "shape against bytes": (lambda h, d: (entry(h, shape=[12, 5]), d), "found 96 bytes, expected 120 for F16 (12, 5)"),
    "offsets backwards": (lambda h, d: (entry(h, data_offsets=[96, 0]), d), "data_offsets: found [96, 0]"),
    "offsets beyond the end": (
        lambda h, d: (entry(h, data_offsets=[1 << 31, (1 << 31) + 96]), d),
        "unused bytes before it",
    ),
    "overlapping tensors": (_same_bytes_twice, "bytes before it, expected it to begin at byte"),
    "extra field": (lambda h, d: (entry(h, note="x"), d), "expected dtype, shape and data_offsets"),
    "tensor without fields": (lambda h, d: (h | {"x": 5}, d), "tensor 'x': found 5, expected dtype"),
    "too many tensors": (lambda h, d: (h | {f"x{i}": 0 for i in range(40_000)}, d), "expected at most 32768"),
    "a name of 10,000 letters": (lambda h, d: (_more(h, "x" * 10_000, [1]), d + b"00"), "a tensor's name: found 'xxx"),
    "a name with a control character": (lambda h, d: (_more(h, "x\x1b[2J", [1]), d + b"00"), "a tensor's name"),
    "metadata is a list": (lambda h, d: (h | {"__metadata__": []}, d), "__metadata__: found list"),
    "metadata value is a number": (lambda h, d: (meta(h, note=5), d), "'note': found int, expected a string"),
    "metadata too long": (lambda h, d: (meta(h, note="x" * 70_000), d), "found 70000 characters, expected at most"),
    "metadata too many": (lambda h, d: (meta(h, **{f"n{i}": "" for i in range(2000)}), d), "expected at most 1024"),
    "terminal codes": (lambda h, d: (meta(h, modelspec__title="\x1b[2Jpwned"), d), "found control characters"),
    "lone surrogate": (lambda h, d: (meta(h, modelspec__title="\ud800"), d), "found control characters"),
    "one bit flipped": (
        lambda h, d: (h, bytes([d[0] ^ 1]) + d[1:]),
        "the SHA-256 of its data",
    ),
}
ONLY_DATA = {"the SHA-256 of its data"}


@pytest.mark.parametrize("case", CONTAINER)
def test_a_damaged_container(case, tmp_path):
    change, sentence = CONTAINER[case]
    refused(tmp_path, put_together(*change(*good(tmp_path))), sentence)


# Contents that format 1 does not allow


def layers(header, **changes):
    table = json.loads(header["__metadata__"]["spectral.layers"])
    table[LAYER] |= changes
    return meta(header, spectral__layers=json.dumps(table))


def without(header, key):
    del header["__metadata__"][key]
    return header


def settings_of(header, **changes):
    return meta(header, spectral__settings=json.dumps({"columns": "top:4"} | changes))


CONTENTS = {
    "a later format": (lambda h: meta(h, spectral__format_version="2"), "found '2', expected 1. Update"),
    "unknown method": (lambda h: meta(h, spectral__method="lora_xs"), "method 'lora_xs' is unknown; this version has"),
    "another method": (lambda h: meta(h, spectral__method="rotation"), "an unknown tensor"),
    "unknown setting": (lambda h: settings_of(h, scaling=2), "additive does not have all of the settings"),
    "setting that is a list": (lambda h: settings_of(h, scaling=[2]), "setting 'scaling': found [2]"),
    "setting that shadows": (lambda h: settings_of(h, name="soda"), "expected settings of the method"),
    "columns twice, differently": (lambda h: meta(h, spectral__columns="top:5"), "columns 'top:4', expected 'top:5'"),
    "nonsense columns": (
        lambda h: meta(settings_of(h, columns="few"), spectral__columns="few"),
        "is not a choice of columns",
    ),
    "columns beyond the layer": (
        lambda h: meta(settings_of(h, columns="top:4@90"), spectral__columns="top:4@90"),
        "do not fit a layer with 12 singular values",
    ),
    "settings are no json": (lambda h: meta(h, spectral__settings="{"), "'spectral.settings': found"),
    "settings are a list": (lambda h: meta(h, spectral__settings="[]"), "expected a JSON object"),
    "unknown profile": (lambda h: meta(h, spectral__profile="tiny"), "found 'tiny', expected portable or compact"),
    "profile against tensors": (lambda h: meta(h, spectral__profile="compact"), "an unknown tensor"),
    "unknown dtype": (lambda h: meta(h, spectral__dtype="F8"), "'spectral.dtype': found 'F8'"),
    "unknown strength": (
        lambda h: meta(h, spectral__strength='{"default": "cubic", "modes": ["cubic"]}'),
        "'spectral.strength'",
    ),
    "unknown key of ours": (lambda h: meta(h, spectral__momentum="1"), "'spectral.momentum': found an unknown key"),
    "missing key": (lambda h: without(h, "spectral.profile"), "'spectral.profile': found nothing"),
    "trigger words of another kind": (lambda h: meta(h, spectral__trigger_words='{"a": 1}'), "a JSON list of texts"),
    "trigger words with terminal codes": (
        lambda h: meta(h, spectral__trigger_words='["\\u001b[2J"]'),
        "a JSON list of texts",
    ),
    "no layers": (lambda h: meta(h, spectral__layers="{}"), "'spectral.layers': found no layer"),
    "a layer without tensors": (
        lambda h: meta(h, spectral__layers='{"q": {"shape": [2, 2], "base": ""}}'),
        "an unknown tensor",
    ),
    "layer name with a dot": (
        lambda h: meta(h, spectral__layers='{"../q.w": {"shape": [2, 2], "base": ""}}'),
        "found such a name",
    ),
    "layer fact unknown": (lambda h: layers(h, gain=3), "expected shape, base, and perhaps columns"),
    "layer shape of three": (lambda h: layers(h, shape=[12, 20, 1]), "(outputs, inputs) or (c_out, c_in, kh, kw)"),
    "layer shape of zero": (lambda h: layers(h, shape=[12, 0]), "found [12, 0]"),
    "layer shape enormous": (lambda h: layers(h, shape=[1 << 23, 1 << 23]), "at most 32768 singular values"),
    "layer shape too large for the tensors": (lambda h: layers(h, shape=[13, 20]), "shape (12, 4), expected (13, 4)"),
    "layer columns too many": (lambda h: layers(h, columns=[0, 1, 2, 3, 4]), "expected (12, 5)"),
    "layer columns twice": (lambda h: layers(h, columns=[0, 1, 1, 2]), "ascending indices from 0 to 11"),
    "layer columns out of range": (lambda h: layers(h, columns=[0, 1, 2, 12]), "ascending indices from 0 to 11"),
    "layer fingerprint": (lambda h: layers(h, base="xyz"), "expected 16 hex digits"),
    "layer sigma_max": (lambda h: layers(h, sigma_max=10**400), "sigma_max: found"),
    "unknown tensor": (lambda h: {k.replace("b.a_u", "b.a_w"): v for k, v in h.items()}, "tensor 'lora_unet_b.a_w'"),
    "tensor of nobody's layer": (lambda h: {k.replace("_b.a_u", "_c.a_u"): v for k, v in h.items()}, "_c.a_u"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_contents_out_of_format(case, tmp_path):
    change, sentence = CONTENTS[case]
    header, data = good(tmp_path)
    refused(tmp_path, put_together(change(header), data), sentence)


def test_a_missing_tensor(tmp_path):
    header, _ = good(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "good.safetensors")
    del tensors[f"{LAYER}.a_v"]
    raw = safetensors.torch.save(tensors, header["__metadata__"])
    refused(tmp_path, raw, "tensor 'lora_unet_a.a_v': found nothing, expected shape (20, 4)")


def test_a_full_rank_method_that_claims_to_be_portable(tmp_path):
    header, data = good(tmp_path, "svdiff", {})
    refused(tmp_path, put_together(meta(header, spectral__profile="portable"), data), "expected compact")


# Values

VALUES = {
    "infinite parameter": (("additive", {"rank": 4}), "a_u", lambda t: t.fill_(math.inf), "NaN or infinity"),
    "NaN in the frames": (("additive", {"rank": 4}), "frame_v", lambda t: t[3].fill_(math.nan), "NaN or infinity"),
    "frames out of order": (("additive", {"rank": 4}), "frame_u", lambda t: t.mul_(1.1), "orthonormal columns"),
    "negative sigma": (("additive", {"rank": 4}), "sigma", lambda t: t.neg_(), "none negative, descending"),
    "sigma unsorted": (("svdiff", {}), "sigma", lambda t: t.copy_(t.flip(0)), "none negative, descending"),
    "rotation that is none": (("soda", {}), "k2", lambda t: t.mul_(1.01), "k2 is not orthogonal"),
    "NaN in the probe": (("svdiff", {}), "probe", lambda t: t.fill_(math.nan), "NaN or infinity"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be(case, tmp_path):
    (name, options), part, change, sentence = VALUES[case]
    header, _ = good(tmp_path, name, options)
    tensors = safetensors.torch.load_file(tmp_path / "good.safetensors")
    change(tensors[f"{LAYER}.{part}"])
    metadata = {k: v for k, v in header["__metadata__"].items() if not k.startswith("sshs_")}
    path = tmp_path / "bad.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    with pytest.raises(sa.AdapterFileError, match=sentence) as caught:
        sa.load(path)
    assert LAYER in str(caught.value) and part in str(caught.value)


# Paths


def test_paths_that_hold_no_file(tmp_path):
    for path, sentence in [
        (tmp_path / "none.safetensors", "found nothing, expected a .safetensors file"),
        (tmp_path, "found a folder"),
        (tmp_path / "a\x00b", "opening it|found nothing"),
    ]:
        with pytest.raises(sa.AdapterFileError, match=sentence):
            sa.load(path)


@pytest.mark.parametrize("length", [0x480, 0x580, 0x3C3C, 0x7B0, 0x8B1F])
def test_a_header_length_that_looks_like_a_magic_is_none(length, tmp_path):
    header, data = good(tmp_path)
    padded = text(header).ljust(length)
    if len(padded) > length:
        padded = text(header).ljust(length + 0x10000)  # keeps the two low bytes
    (tmp_path / "long.safetensors").write_bytes(put_together(padded, data))
    assert LAYER in sa.load(tmp_path / "long.safetensors").layers


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes exist on POSIX only")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "p.safetensors")
    with pytest.raises(sa.AdapterFileError, match="a device or pipe"):
        sa.load(tmp_path / "p.safetensors")


# Random damage: whatever happens to a file, the reader answers with its own error or reads the same numbers


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_damage_is_refused(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    good(folder)
    raw = bytearray((folder / "good.safetensors").read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "header"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    if kind == "flip":
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del raw[at:]
    elif kind == "insert":
        raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        raw[8 + at % 600] = data.draw(st.integers(0, 255))
    path = folder / "bad.safetensors"
    path.write_bytes(bytes(raw))
    try:
        adapter = sa.load(path)
    except sa.AdapterFileError as e:
        assert str(e).startswith(str(path))
        return
    own = sa.load(folder / "good.safetensors")
    for name, layer in adapter.layers.items():
        assert torch.equal(layer.params["a_u"], own.layers[name].params["a_u"])
