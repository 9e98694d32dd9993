"""Comparing and fusing as jobs: what they write, what they say, and that nothing is left of those that fail."""

import json
import os
from dataclasses import replace

import pytest
import torch
from adapters import adapter_of
from panel_server import make_studio
from PIL import Image

import spectral_adapters as sa
from spectral_adapters.spectral.errors import SettingError, SpectralError
from spectral_adapters.spectral.export import write_export
from spectral_adapters.spectral.mixture import MODES as ALL_MODES
from spectral_adapters.spectral.open import open_source
from spectral_adapters.trainer.event_log import read_events
from spectral_adapters.trainer.mix_request import MODES, ConflictRequest, FuseRequest
from spectral_adapters.trainer.mix_task import compare, fuse

SHAPES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (40, 40),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (40, 64),
}
HOW = {
    "cat": ("additive", {"columns": "top:4"}),
    "hat": ("additive", {"columns": "top:4@4"}),
    "turn": ("rotation", {"columns": "top:4"}),
    "shift": ("svdiff", {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, (method, settings) in HOW.items():
        adapter, _ = adapter_of(method, settings, SHAPES)
        sa.save(adapter, folder / f"{name}.safetensors")
        if name == "hat":
            write_export(sa.to_lora(adapter), adapter, folder / "style.lora.safetensors")
    return folder


def rows(folder, *names, **weights):
    return [{"name": f"{name}.safetensors", "path": str(folder / f"{name}.safetensors"), "weight": weights.get(name, 1)}
            for name in names]  # fmt: skip


def fused(folder, tmp_path, *names, **more):
    asked = {"adapters": rows(folder, *names), "out": str(tmp_path / "out.safetensors"), **more}
    return fuse(asked, tmp_path / "run")


def test_requests_are_what_they_were_when_read_back(folder):
    conflict = ConflictRequest.from_json({"adapters": rows(folder, "cat", "hat"), "base": "tiny"})
    assert ConflictRequest.from_json(json.loads(json.dumps(conflict.as_json()))) == conflict
    asked = {"adapters": rows(folder, "cat", "hat", hat=0.5), "out": "x.safetensors", "to": "lora", "energy": 0.9}
    request = FuseRequest.from_json(asked)
    assert FuseRequest.from_json(json.loads(json.dumps(request.as_json()))) == request
    assert request.adapters[1].weight == 0.5 and request.other.name == "x.lora.safetensors"
    assert set(ALL_MODES) == {*MODES, "gradient"}, "the modes of the engine, but for the one that samples"


def test_a_comparison_writes_its_numbers_and_its_picture(folder, tmp_path):
    told = []
    done = compare({"adapters": rows(folder, "cat", "hat", "style.lora")}, tmp_path / "run", told.append)
    found = json.loads((tmp_path / "run" / "conflict.json").read_text())
    assert done.reason == "finished" and done.text == found["sentence"] == told[-1].text
    assert [m["name"] for m in found["adapters"]] == ["cat", "hat", "style"]
    with Image.open(tmp_path / "run" / "conflict.png") as picture:
        assert picture.width == 1280
    events = [event["event"] for event in read_events(tmp_path / "run" / "events.jsonl")]
    assert events.count("Progress") == 2 and events[-1] == "Ended"


def test_the_kind_of_file_follows_from_what_the_change_is(folder, tmp_path):
    native = fused(folder, tmp_path, "cat", "hat")
    assert native.path.name == "out.safetensors" and "as one additive adapter, columns" in native.text
    lora = fused(folder, tmp_path / "a", "cat", "turn")
    assert lora.path.name == "out.lora.safetensors" and open_source(lora.path).kind == "LoRA"
    again = fused(folder, tmp_path / "a", "cat", "turn", to="lora", rank=2)
    assert again.path.name == "out-2.lora.safetensors" and "What the file lost: 2 layers, residual" in again.text
    elsewhere = str(tmp_path / "b" / "loras" / "mine.safetensors")
    diff = fused(folder, tmp_path / "b", "cat", "turn", to="diff", lora=elsewhere)
    assert str(diff.path) == elsewhere and open_source(diff.path).kind == "difference"
    for layer in SHAPES:
        a, b = (open_source(path).change(layer) for path in (lora.path, diff.path))
        assert torch.allclose(a[0] @ a[1], b, atol=2e-3 * float(b.abs().max()))


def test_weights_scale_what_is_fused(folder, tmp_path):
    asked = {
        "adapters": rows(folder, "cat", "hat", cat=0.5, hat=0),
        "out": str(tmp_path / "o.safetensors"),
        "to": "diff",
    }
    found = open_source(fuse(asked, tmp_path / "run").path)
    cat = open_source(folder / "cat.safetensors")
    for layer in SHAPES:
        up, down = cat.change(layer)
        assert torch.allclose(found.change(layer), 0.5 * up @ down, atol=1e-3)


@pytest.mark.parametrize(
    ("names", "more", "text"),
    [
        (("cat", "turn"), {"mode": "rotate"}, "choose sum, mean or interpolate"),
        (("cat", "turn"), {"to": "native"}, "no single adapter"),
        (("cat", "shift"), {}, "weight"),
        (("cat", "nothing"), {}, "nothing.safetensors"),
    ],
)
def test_what_cannot_be_fused_leaves_no_file(folder, tmp_path, names, more, text):
    with pytest.raises(SpectralError, match=text):
        fused(folder, tmp_path, *names, **more)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert list(read_events(tmp_path / "run" / "events.jsonl"))[-1]["reason"] == "failed"


def test_a_stop_is_heard_before_anything_is_written(folder, tmp_path):
    for work in (compare, fuse):
        asked = {"adapters": rows(folder, "cat", "hat")}
        asked |= {"out": str(tmp_path / "out.safetensors")} if work is fuse else {}
        with pytest.raises(sa.Cancelled):
            work(asked, tmp_path / work.__name__, stop=lambda: True)
        left = sorted(path.name for path in (tmp_path / work.__name__).iterdir())
        assert left == ["events.jsonl", "requests"]
    assert not (tmp_path / "out.safetensors").exists()


def test_a_comparison_is_found_again_only_while_the_files_are_the_same(folder, tmp_path):
    studio = make_studio(tmp_path)
    for name in ("cat", "hat"):
        (studio.places.adapters / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    names = ["cat.safetensors", "hat.safetensors"]
    first = studio.mix_conflict(names)
    assert studio.mix_conflict(names).id == first.id, "while it waits"
    studio.store.begin(first.id, "cpu")
    compare(first.job.spec, first.run)
    assert studio.store.settle(first.id).state.status == "finished"
    assert studio.mix_conflict(names).id == first.id, "when it is finished"
    assert studio.mix_conflict(names[::-1]).id != first.id and studio.mix_conflict(names, "tiny").id != first.id
    os.utime(studio.places.adapters / names[0], ns=(1, 1))
    assert studio.mix_conflict(names).id != first.id
    studio.store.delete(first.id)
    assert studio.store.find(first.job.digest) is None
    studio.close()


def test_fused_files_of_waiting_jobs_have_different_names(folder, tmp_path):
    studio = make_studio(tmp_path)
    studio.places = replace(studio.places, loras=tmp_path / "loras")
    (studio.places.adapters / "cat.safetensors").write_bytes((folder / "cat.safetensors").read_bytes())
    asked = [{"name": "cat.safetensors", "weight": 0.5}], None, "new", {"mode": "sum"}
    (first, said), (second, said_again) = studio.mix_fuse(*asked), studio.mix_fuse(*asked)
    outs = [entry.job.spec["out"] for entry in (first, second)]
    assert [os.path.basename(out) for out in outs] == ["new.safetensors", "new-2.safetensors"]
    assert first.job.spec["lora"] == str(tmp_path / "loras" / "new.safetensors")
    assert said == "" and "becomes new-2.safetensors" in said_again
    with pytest.raises(SettingError, match="twice"):
        studio.mix_fuse([*asked[0], *asked[0]], None, "new", {})
    studio.close()
