"""A training asked for by names: what is taken, what is refused with a sentence, and the run that comes of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import write_pictures

from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.trainer import options, request
from spectral_adapters.trainer.places import NameFault, Places, standalone
from spectral_adapters.trainer.presets import PRESETS, preset_values
from spectral_adapters.trainer.request import MOST, OFFERED, OPTIMIZERS, Options, Request, digest, resolve
from spectral_adapters.trainer.spec import TrainSpec, settings

LEAST = {"name": "mug", "base": "tiny", "dataset": "datasets/mugs"}


@pytest.fixture
def places(tmp_path) -> Places:
    made = standalone(tmp_path / "home", {}, [tmp_path / "models"])
    write_pictures(tmp_path / "home" / "datasets" / "mugs")
    for name in ("cups", "masks"):
        (tmp_path / "home" / "datasets" / name).mkdir()
    (tmp_path / "home" / "adapters" / "old.safetensors").write_bytes(b"x")
    return made


def asked(**changes: object) -> Request:
    return Request.from_json(LEAST | changes)


def test_a_request_and_its_json():
    full = LEAST | {
        "preset": "style",
        "settings": {"steps": 7, "lr": 1, "sample_prompts": ["a mug"], "avoid": ["old.safetensors"], "rank": None},
        "device": "cuda:1",
        "options": {"wait_idle": True},
    }
    made = Request.from_json(json.loads(json.dumps(full)))
    assert made.options == Options(wait_idle=True, unload=True) and made.settings["rank"] is None
    assert Request.from_json(json.loads(json.dumps(made.as_json()))) == made
    assert asked() == Request("mug", "tiny", "datasets/mugs", "subject", {}, "auto", Options())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1], "the request is a list"),
        ({"name": "mug"}, "the request has no base"),
        (LEAST | {"out": "/etc/passwd"}, "'out' is not known in the request"),
        (LEAST | {"nmae": "x"}, "did you mean name"),
        (LEAST | {"name": 3}, "name is a int; expected a text"),
        (LEAST | {"name": "x" * 301}, "name has 301 characters"),
        (LEAST | {"dataset": "a\x00b"}, "control character"),
        (LEAST | {"preset": "subjekt"}, "expected one of subject"),
        (LEAST | {"device": "cuda:0; rm"}, "expected auto, cpu"),
        (LEAST | {"options": {"unload": 1}}, "expected true or false"),
        (LEAST | {"options": {"shell": True}}, "'shell' is not known in the options"),
        (LEAST | {"settings": 3}, "the settings is a int"),
    ],
)
def test_what_is_no_request(given, message):
    with pytest.raises(SettingError, match=message):
        Request.from_json(given)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stepps", 3, "did you mean steps"),
        *((name, "x", f"'{name}' is not known") for name in ("base", "images", "out", "preset", "tokenizer")),
        *((name, "x", f"'{name}' is not known") for name in ("cache_dir", "run", "device")),
        ("steps", "many", "expected a whole number"),
        ("steps", True, "expected a whole number"),
        ("steps", None, "steps=None is a NoneType"),
        ("steps", 100_001, "at most 100000"),
        ("steps", 10**400, "beyond every use"),
        ("lr", 10**400, "beyond every use"),
        ("lr", float("nan"), "expected a finite number"),
        ("min_snr_gamma", float("inf"), "expected a finite number"),
        ("resolution", 4096, "at most 2048"),
        ("rank", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("batch_size", 65, "at most 64"),
        ("class_count", 2001, "at most 2000"),
        ("sample_prompts", ["x"] * 17, "at most 16"),
        ("sample_prompts", ["x" * 501], "at most 500"),
        ("sample_prompts", "a mug", "expected a list"),
        ("avoid", [3], "avoid is a int; expected a text"),
        ("trigger", "a\x1b[2Jb", "control character"),
        ("masks", 7, "masks is a int; expected a text"),
        ("optimizer", "os.system", "expected one of torch.optim.AdamW"),
        ("optimizer_args", {"lr": [float("nan")]}, "expected a finite number"),
        ("optimizer_args", {"a b": 1}, "no argument"),
        ("optimizer_args", {"betas": {"a": 1}}, "expected numbers, texts"),
        ("optimizer_args", {f"a{i}": 1 for i in range(17)}, "at most 16"),
        ("schedule", "zigzag", "expected one of constant"),
    ],
)
def test_settings_that_are_refused(places, name, value, message):
    with pytest.raises(SettingError, match=message):
        resolve(asked(settings={name: value}), places)


def test_every_setting_is_offered_or_withheld_for_a_reason():
    assert set(OFFERED) == {each.name for each in settings()} - set(request._WITHHELD)
    assert set(MOST) | set(request.LEAST) | set(request.LONGEST) <= set(OFFERED)
    assert TrainSpec(base="", images=Path(), out=Path()).optimizer in OPTIMIZERS


def test_a_request_becomes_a_run(places):
    chosen = {"masks": "datasets/masks", "start_from": "old.safetensors", "steps": 9, "class_prompt": "a cup"}
    spec = resolve(asked(settings=chosen | {"class_images": "datasets/cups"}, device="cpu"), places)
    home = places.home
    assert (spec.base, spec.images, spec.device) == ("tiny", home / "datasets" / "mugs", "cpu")
    assert (spec.masks, spec.class_images) == (home / "datasets" / "masks", home / "datasets" / "cups")
    assert (spec.start_from, spec.steps, spec.run) == (home / "adapters" / "old.safetensors", 9, None)
    assert spec.out == home / "adapters" / "mug.safetensors"
    assert resolve(asked(name="old"), places).out.name == "old-2.safetensors", "never one that is there"
    assert resolve(asked(), places, [spec.out]).out.name == "mug-2.safetensors", "nor one that another job will write"
    assert resolve(asked(), places).device is None


@pytest.mark.parametrize("preset", [*PRESETS, "none"])
def test_the_same_values_as_the_command_line(places, preset):
    from spectral_adapters.__main__ import parser

    images, out = places.dataset("datasets/mugs"), places.adapters / "mug.safetensors"
    typed = ["train", "--base", "tiny", "--images", images, "--out", out, "--preset", preset, "--rank", "5"]
    by_hand = options.read_train_spec(parser("train").parse_args([str(part) for part in typed]))
    assert resolve(asked(preset=preset, settings={"rank": 5}), places) == by_hand


def test_the_preset_follows_the_method_and_null_is_the_methods_own(places):
    for method in ("svdiff", "additive", "rotation", "soda"):
        spec = resolve(asked(settings={"method": method}), places)
        assert spec.method == method and spec.lr == preset_values("subject", method, "tiny")["lr"]
    assert resolve(asked(settings={"lr": None}), places).lr is None
    assert resolve(asked(settings={"columns": "top:3"}), places).rank is None, "of rivals the one that was chosen"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "../models/other.safetensors"}, "base model: found"),
        ({"dataset": "datasets/../../secret"}, "secret|expected"),
        ({"dataset": "elsewhere/mugs"}, "expected ROOT/FOLDER"),
        ({"name": "../mug"}, "name: found"),
        ({"settings": {"start_from": "../old.safetensors"}}, "adapter: found"),
        ({"settings": {"avoid": ["/etc/passwd"]}}, "adapter: found"),
        ({"settings": {"masks": "datasets/none"}}, "no dataset"),
        ({"settings": {"norms": True}}, "additive does not have norms"),
        ({"settings": {"method": "lora"}}, "'lora' is no method"),
        ({"preset": "none", "settings": {"method": "lora"}}, "'lora' is no method"),
        ({"settings": {"rotation": "cayley"}}, "additive does not have rotation"),
        ({"settings": {"columns": "upper:4"}}, "not a choice of columns"),
        ({"settings": {"rank": 3, "columns": "top:4"}}, "both choose columns"),
        ({"settings": {"patience": 3}}, "set validation"),
        ({"settings": {"targets": "none"}}, "nothing to train"),
        ({"settings": {"class_prompt": "a mug", "class_images": "datasets/mugs"}}, "is the dataset itself"),
    ],
)
def test_what_no_run_can_come_of(places, changes, message):
    with pytest.raises(SettingError, match=message):
        resolve(asked(**changes), places)


def test_a_link_out_of_a_root_is_no_dataset(places, tmp_path):
    (tmp_path / "secret").mkdir()
    (places.home / "datasets" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(NameFault, match="leads out"):
        resolve(asked(dataset="datasets/link"), places)


def test_the_digest_changes_with_what_is_asked_and_read(places):
    first = digest(asked(), places)
    assert first == digest(asked(options={"wait_idle": True}), places), "how a job runs makes no other training"
    different = [asked(name="cup"), asked(settings={"steps": 3}), asked(settings={"masks": "datasets/masks"})]
    assert len({first, *(digest(each, places) for each in different)}) == 4
    picture = places.dataset("datasets/mugs") / "0.txt"
    picture.write_text("another caption", encoding="utf-8")
    assert (second := digest(asked(), places)) != first
    os.utime(picture, (1, 1))
    assert digest(asked(), places) != second
    prior = asked(settings={"class_prompt": "a cup", "class_images": "datasets/cups"})
    before = digest(prior, places)
    (places.home / "datasets" / "cups" / "class-00000.png").write_bytes(b"made by the training")
    assert digest(prior, places) == before


def test_requests_and_forms_need_no_torch():
    code = "import sys; from spectral_adapters.trainer import request, form, estimate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
