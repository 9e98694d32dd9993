"""Trainings by sd-scripts: settings in its words, pictures laid out for it, its process followed. See
`sd_scripts_checkout` for the checkout; `tests/integration/test_sd_scripts_command.py` has a real one."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import sd_scripts_checkout as fake
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from spectral_adapters.__main__ import main
from spectral_adapters.spectral.errors import Cancelled, SettingError, SpectralError
from spectral_adapters.trainer import native
from spectral_adapters.trainer import spec as specs
from spectral_adapters.trainer.event_log import curve, read_events
from spectral_adapters.trainer.events import (
    Checkpointed,
    Ended,
    Notice,
    Phase,
    Plan,
    Progress,
    Resumed,
    Sampled,
    Saved,
    Step,
    Validated,
)
from spectral_adapters.trainer.run_folder import ask
from spectral_adapters.trainer.sd_scripts import launch, place, toml, translate, wire
from spectral_adapters.trainer.sd_scripts.checkout import check_python, open_checkout
from spectral_adapters.trainer.sd_scripts.data import lay_out
from spectral_adapters.trainer.sd_scripts.prepare import FOLDER, prepare, work_of, written
from spectral_adapters.trainer.sd_scripts.progress import Reader, lines
from spectral_adapters.trainer.sd_scripts.run import LOG, dry_run, run

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the checkout's Python is a shell script")


@pytest.fixture
def checkout(tmp_path):
    return fake.make_checkout(tmp_path / "sd-scripts")


@pytest.fixture
def base(tmp_path):
    """A file whose header is that of SD1, with hardly anything in it."""
    path = tmp_path / "base.safetensors"
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({key: _zeros(320, 768)}, path)
    return path


def _zeros(*shape):
    import torch

    return torch.zeros(shape, dtype=torch.float16)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "3_dog").mkdir(parents=True)
    for number in range(4):
        place_ = folder / "3_dog" if number == 3 else folder
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(place_ / f"{number}.png")
    (folder / "0.txt").write_text("a sks dog, sitting\nsecond line")
    (folder / "1.caption").write_text("on grass")
    return folder


@pytest.fixture
def spec(tmp_path, base, images):
    values = {"base": str(base), "images": images, "out": tmp_path / "dog.safetensors", "resolution": 64, "steps": 5}
    return specs.TrainSpec(**values, trigger="sks dog", checkpoint_every=2)


class Heard(list):
    def of(self, kind):
        return [event for event in self if isinstance(event, kind)]


def trained(spec, checkout, **how):
    heard = Heard()
    return run(spec, checkout, heard.append, **how), heard


# --- which checkout


def test_checkout_is_looked_at_and_not_run(checkout, tmp_path):
    assert checkout.version == "0.10.1"
    assert checkout.trainer("sdxl") == ("sdxl_train_network", "SdxlNetworkTrainer")
    check_python(checkout)
    with pytest.raises(SettingError, match="found no folder"):
        open_checkout(tmp_path / "none", checkout.python)
    with pytest.raises(SettingError, match=r"found no train_network.py in .*; expected a checkout"):
        open_checkout(tmp_path, checkout.python)
    with pytest.raises(SettingError, match="found no program"):
        open_checkout(checkout.folder, tmp_path / "python")


def test_an_old_checkout_is_told_what_it_lacks(checkout):
    path = checkout.folder / "train_network.py"
    path.write_text(path.read_text().replace("def process_batch(", "def process("))
    with pytest.raises(SettingError, match=r"version 0.10.1 .*has no 'def process_batch'; expected version 0.10.0"):
        open_checkout(checkout.folder, checkout.python)


def test_a_python_without_its_packages_is_told_what_to_install(checkout):
    (checkout.python.parent / "packages" / "imagesize.py").unlink()
    with pytest.raises(SettingError, match=r"found no imagesize in .*-m pip install -r .*requirements.txt"):
        check_python(checkout)
    with pytest.raises(SettingError, match="does not run"):
        check_python(replace(checkout, python=checkout.folder / "README.md"))


def test_flags_win_over_the_environment_and_that_over_what_was_remembered(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (place.FOLDER_VARIABLE, place.PYTHON_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingError, match=r"found no sd-scripts set up here; .*kohya --remember"):
        place.find()
    assert "found no sd-scripts" in place.why_not()
    place.remember(checkout)
    assert (place.find(), place.why_not()) == (checkout, "")
    other = fake.make_checkout(tmp_path / "other")
    monkeypatch.setenv(place.FOLDER_VARIABLE, str(other.folder))
    assert place.find() == replace(other, python=checkout.python)
    assert place.find(checkout.folder, other.python) == replace(checkout, python=other.python)
    monkeypatch.delenv(place.FOLDER_VARIABLE)
    place.forget()
    own = fake.make_python(other.folder / "venv" / "bin")
    assert place.find(other.folder).python == own
    place.remembered_file().write_text("[]")
    with pytest.raises(SettingError, match="found no folder and python in it"):
        place.find()


# --- settings in its words


def test_every_setting_has_an_answer():
    assert set(translate.HOW) == {field.name for field in specs.settings()}
    for name, how in translate.HOW.items():
        assert bool(how.text) == (how.way != "honoured"), name


def test_the_docs_name_every_setting_that_is_not_simply_honoured():
    text = (Path(translate.__file__).parents[2] / "docs" / "kohya.md").read_text(encoding="utf-8")
    assert [name for name, how in translate.HOW.items() if how.way != "honoured" and f"`{name}`" not in text] == []


# For each setting that sd-scripts honours, a value other than the default and where it must show up. A setting that
# nobody reads fails here.
CHANGED = {
    "prediction": "v_prediction", "trigger": "sks cat", "rank": 3, "columns": "top:3", "targets": "all",
    "text_targets": "attention", "start_from": "FILE", "avoid": ("FILE",), "rotation": "cayley", "norms": True,
    "method": "svdiff", "resolution": 128, "buckets": False, "crop": "random", "flip": True,
    "caption_prefix": "a photo of", "shuffle_tags": True, "keep_tags": 3, "caption_dropout": 0.1, "masks": "MASKS",
    "alpha_masks": True, "mask_floor": 0.2, "latent_cache": "disk", "class_prompt": "a dog", "prior_weight": 0.5,
    "min_snr_gamma": 3.0, "noise_offset": 0.05, "steps": 7, "batch_size": 2, "accumulation": 2, "lr": 3e-4,
    "text_lr": 2e-5, "norm_lr": 1e-6, "optimizer": "torch.optim.RMSprop", "optimizer_args": {"alpha": 0.9},
    "weight_decay": 0.3, "schedule": "cosine", "warmup": 3, "cycles": 2, "clip": 0.5, "precision": "bf16",
    "gradient_checkpointing": True, "seed": 9, "checkpoint_every": 3, "validation": 1, "validate_every": 3,
    "sample_prompts": ("a sks dog",), "sample_negative": "ugly", "sample_every": 3, "sample_steps": 3,
    "sample_guidance": 3.0, "sample_seed": 3, "title": "My dog", "description": "Mine", "licence": "CC0",
    "out": "OUT", "tokenizer": "TOKENIZER", "text_targets_2": "attention", "skip_bad": True,
}  # fmt: skip
# What a setting needs beside it to mean anything.
BESIDE = {
    "keep_tags": {"shuffle_tags": True}, "mask_floor": {"masks": "MASKS"}, "prior_weight": {"class_prompt": "a dog"},
    "text_lr": {"text_targets": "attention"}, "norm_lr": {"method": "svdiff", "norms": True},
    "norms": {"method": "svdiff"}, "rotation": {"method": "soda"}, "validate_every": {"validation": 1},
    **{f"sample_{each}": {"sample_prompts": ("a dog",)} for each in ("negative", "every", "steps", "guidance", "seed")},
}  # fmt: skip
# Told to our part of its process, or done here before or after it; the tests below see them at work.
OURS = {
    "base", "images", "preset", "column_plan", "concept", "class_images", "class_count", "dco_beta", "ema", "device",
    "run", "keep", "validation_images", "patience", "tensorboard", "cache_dir", "skip_bad",
}  # fmt: skip


def test_the_table_of_changes_is_complete():
    assert set(CHANGED) | OURS == {field.name for field in specs.settings()}


@pytest.mark.parametrize("name", sorted(set(CHANGED) - OURS))
def test_a_changed_setting_changes_what_is_written(spec, tmp_path, name):
    def filled(values):
        return {key: _filled(value, tmp_path, spec) for key, value in values.items()}

    before = replace(spec, **filled(BESIDE.get(name, {})))
    after = replace(before, **filled({name: CHANGED[name]}))
    old, new = (_written(each, tmp_path) for each in (before, after))
    assert old != new


def _filled(value, tmp_path, spec):
    masks, words = tmp_path / "masks", tmp_path / "words"
    for folder in (masks, words):
        folder.mkdir(exist_ok=True)
    for path in spec.images.rglob("*.png"):
        Image.new("L", (64, 64), 128).save(masks / path.name)
    for file in ("vocab.json", "merges.txt"):
        (words / file).write_text("{}")
    adapter = tmp_path / "adapter.safetensors"
    adapter.touch()
    known = {"FILE": adapter, "MASKS": masks, "OUT": tmp_path / "cat.safetensors", "TOKENIZER": str(words)}
    if value == ("FILE",):
        return (adapter,)
    return known.get(value, value) if isinstance(value, str) else value


def _written(spec, tmp_path):
    """The texts that sd-scripts reads, with the pictures' place, which is named after what is laid out."""
    if spec.class_prompt:
        classes = tmp_path / "classes"
        classes.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(classes / "own.png")
        spec = replace(spec, class_images=classes, class_count=1)
    prepared = prepare(spec, lambda _: None, lambda: False, dry=True)
    work = work_of(spec, spec.run_folder / FOLDER, prepared, None)
    vocabulary = work.tokenizers and "given"  # its place is the same whichever it is
    return vocabulary, sorted(written(spec, work, prepared).items())


def test_the_config_of_a_rich_training(spec, checkout):
    rich = replace(
        spec, method="soda", rank=8, text_targets="attention", lr=1e-4, text_lr=1e-5, schedule="constant", warmup=10,
        precision="bf16", caption_prefix="photo, sharp,", shuffle_tags=True, noise_offset=0.05, title='A "dog"\\\n',
    )  # fmt: skip
    files = {path.name: tomllib.loads(text) for path, text in dry_run(rich, checkout).files.items()}
    flat = {name: value for table in files["config.toml"].values() for name, value in table.items()}
    assert flat["network_module"] == "spectral_adapters.trainer.kohya"
    assert flat["network_dim"] == 8 and flat["text_encoder_lr"] == [1e-5] and flat["unet_lr"] == 1e-4
    assert set(flat["network_args"]) == {
        "method=soda", "targets=attention", "text_targets=attention", "rotation=stiefel",
    }  # fmt: skip
    assert flat["optimizer_type"] == "spectral_adapters.trainer.kohya_optimizer.SpectralOptimizer"
    assert (flat["lr_scheduler"], flat["lr_warmup_steps"]) == ("constant_with_warmup", 10)
    assert (flat["mixed_precision"], flat["noise_offset"], flat["metadata_title"]) == ("bf16", 0.05, 'A "dog"\\\n')
    [dataset] = files["dataset.toml"]["datasets"]
    assert {subset["keep_tokens"] for subset in dataset["subsets"]} == {3}
    assert {subset["num_repeats"] for subset in dataset["subsets"]} == {1, 3}


def test_the_network_module_reads_what_is_written(spec):
    from spectral_adapters.trainer.kohya_args import read_arguments

    (spec.images / "a;b.safetensors").touch()
    rich = replace(
        spec, method="svdiff", columns="sample:4:1", norms=True, norm_lr=1e-6, weight_decay=0.1, targets="all",
        avoid=(spec.images / "a;b.safetensors",),
    )  # fmt: skip
    texts = dict(each.split("=", 1) for each in translate._network(rich)["network_args"])
    read = read_arguments(None, texts)
    for name in ("method", "columns", "norms", "norm_lr", "weight_decay", "targets", "avoid", "rotation"):
        assert getattr(read, name) == getattr(rich, name), name


def test_what_it_cannot_do_is_refused_by_name_before_anything_is_written(spec, checkout):
    wrong = replace(spec, dco_beta=1000.0, ema=0.99, base="tiny", method="soda", optimizer="torch.optim.RMSprop")
    assert [each.partition(":")[0] for each in translate.refusals(wrong)] == ["dco_beta", "ema", "base", "optimizer"]
    with pytest.raises(SettingError, match=r"(?s)dco_beta.*ema.*base.*optimizer"):
        run(wrong, checkout)
    assert not wrong.run_folder.exists()
    assert translate.refusals(spec) == []


def test_what_it_does_in_its_own_way_is_said(spec):
    said = [each.partition(":")[0] for each in translate.remarks(spec)]
    assert said == ["buckets", "seed"]
    other = replace(spec, class_prompt="a dog", cache_dir=Path("x"), alpha_masks=True)
    xl = replace(spec, base=str(header_of(spec.out.parent / "xl.safetensors", 2048, "conditioner.embedders.1.x")))
    assert any(each.startswith("base: ") for each in translate.remarks(xl))
    assert {"class_prompt", "cache_dir", "alpha_masks"} <= {each.partition(":")[0] for each in translate.remarks(other)}


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_SCALAR = _TEXT | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
_TABLE = st.dictionaries(_TEXT.filter(bool), _SCALAR | st.lists(_SCALAR, max_size=3), max_size=4)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(_TEXT.filter(bool), _SCALAR | _TABLE | st.lists(_TABLE, min_size=1, max_size=2), max_size=4))
def test_toml_says_what_was_meant(values):
    assert tomllib.loads(toml.dumps(values)) == values


def test_toml_refuses_what_it_cannot_say():
    for value in (None, float("nan"), object()):
        with pytest.raises(SettingError, match="cannot be written as TOML"):
            toml.dumps({"a": value})


# --- a base's header


@pytest.mark.parametrize(
    ("width", "more", "said", "found"),
    [
        (768, (), None, native.Kind("sd1", False, False)),
        (1024, (), "v", native.Kind("sd2", True, False)),
        (2048, ("v_pred", "ztsnr"), None, native.Kind("sdxl", True, True)),
        (2048, ("ztsnr",), None, native.Kind("sdxl", False, False)),
        (99, (), None, None),
    ],
)
def test_kind_of_a_base_from_its_header(tmp_path, width, more, said, found):
    tensors = {f"model.diffusion_model.{width}.attn2.to_k.weight": _zeros(8, width), **{key: _zeros(1) for key in more}}
    path = tmp_path / "base.safetensors"
    save_file(tensors, path, {"modelspec.prediction_type": said} if said else None)
    assert native.kind(str(path)) == found


# --- the pictures


def laid_out(spec):
    """(the layout, filled; the datasets that sd-scripts is told)."""
    prepared = prepare(spec, lambda _: None, lambda: False)
    lay_out(prepared.layout)
    work = work_of(spec, spec.run_folder / FOLDER, prepared, None)
    return prepared.layout, translate.dataset(spec, work, prepared.layout)["datasets"]


def captions(subset):
    return sorted(path.read_text().strip() for path in Path(subset["image_dir"]).glob("*.txt"))


def test_pictures_are_laid_out_with_our_captions_and_repeats(spec, images):
    layout, [dataset] = laid_out(replace(spec, caption_prefix="a photo of"))
    found = {(Path(each["image_dir"]).name, each["num_repeats"]): captions(each) for each in dataset["subsets"]}
    assert found == {
        ("images", 1): [
            "a photo of a sks dog, sitting second line", "a photo of sks dog", "a photo of sks dog, on grass",
        ],
        ("3_dog", 3): ["a photo of sks dog"],
    }  # fmt: skip
    assert (layout.folder / "train" / "images" / "0.png").samefile(images / "0.png")
    before = (layout.folder / "whole").stat().st_mtime_ns
    assert laid_out(replace(spec, caption_prefix="a photo of"))[0] == layout
    assert (layout.folder / "whole").stat().st_mtime_ns == before  # taken as it was
    assert laid_out(spec)[0].folder != layout.folder and not layout.folder.exists()


def test_folders_and_pictures_of_one_name_stay_apart(spec, images):
    (images / "images").mkdir()
    Image.new("RGB", (64, 64), "blue").save(images / "images" / "0.png")
    Image.new("RGB", (64, 64), "green").save(images / "0.webp")
    _, [dataset] = laid_out(spec)
    rooms = {Path(each["image_dir"]).name: sorted(p.name for p in Path(each["image_dir"]).iterdir())
             for each in dataset["subsets"]}  # fmt: skip
    assert set(rooms) == {"images", "images-2", "3_dog"}
    assert {"0.png", "0-2.txt"} <= set(rooms["images"]) | set(rooms["images-2"]) and len(rooms["images-2"]) in (2, 8)


def test_what_sd_scripts_would_see_otherwise_is_written_anew(spec, images):
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(images / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.effect_noise((128, 64), 90).convert("RGB").save(images / "turned.jpg", exif=exif)
    Image.new("RGB", (64, 64), "blue").save(images / "old.tif")
    layout, _ = laid_out(spec)
    room = layout.folder / "train" / "images"
    assert (
        Image.open(room / "clear.png").mode == "RGB" and Image.open(room / "clear.png").getpixel((0, 0)) == (255,) * 3
    )
    assert Image.open(room / "turned.png").size == (64, 128)
    assert Image.open(room / "old.png").getpixel((0, 0)) == (0, 0, 255)


def test_masks_become_transparency_over_their_floor(spec, images, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in images.rglob("*.png"):
        Image.linear_gradient("L").resize((32, 32)).save(masks / path.name)
    layout, [dataset] = laid_out(replace(spec, masks=masks, mask_floor=0.25))
    alpha = np.asarray(Image.open(layout.folder / "train" / "images" / "0.png").getchannel("A"))
    assert alpha.shape == (64, 64) and 64 <= alpha.min() < 70 and alpha.max() > 245
    assert all(each["alpha_mask"] for each in dataset["subsets"])


def test_held_out_and_class_pictures_are_by_themselves(spec, tmp_path):
    classes = tmp_path / "classes"
    classes.mkdir()
    Image.new("RGB", (64, 64), "red").save(classes / "any.png")
    with_both = replace(spec, validation=1, class_images=classes, class_prompt="a dog", class_count=1, flip=True)
    _, [learnt, held] = laid_out(with_both)
    [of_class] = [each for each in learnt["subsets"] if each.get("is_reg")]
    assert captions(of_class) == ["a dog"] and "flip_aug" not in of_class
    assert sum(len(captions(each)) for each in learnt["subsets"] if each.get("flip_aug")) == 3
    assert (learnt["validation_split"], held["validation_split"]) == (0.0, 1.0)
    assert [(len(captions(each)), each["num_repeats"]) for each in held["subsets"]] == [(1, 1)]


# --- other families


def header_of(path, width, *more):
    tensors = {f"model.diffusion_model.{width}.attn2.to_k.weight": _zeros(8, width), **{key: _zeros(1) for key in more}}
    save_file(tensors, path)
    return path


def test_sdxl_has_its_own_trainer_and_two_text_encoders(spec, checkout, tmp_path):
    sdxl = replace(
        spec, base=str(header_of(tmp_path / "xl.safetensors", 2048, "v_pred", "ztsnr")), resolution=128,
        images=_enlarged(spec.images), text_targets="attention", text_targets_2="attention", text_lr=1e-5,
    )  # fmt: skip
    flat = _flat(dry_run(sdxl, checkout))
    assert flat["text_encoder_lr"] == [1e-5, 1e-5] and "cache_text_encoder_outputs" not in flat
    assert flat["v_parameterization"] and flat["zero_terminal_snr"] and "v2" not in flat
    calm = replace(sdxl, text_targets="none", text_targets_2="none", text_lr=None)
    assert _flat(dry_run(calm, checkout))["cache_text_encoder_outputs"]
    assert "cache_text_encoder_outputs" not in _flat(dry_run(replace(calm, caption_dropout=0.1), checkout))
    outcome, _ = trained(calm, checkout)
    assert outcome.reason == "finished"
    job = wire.Job.read(calm.run_folder / FOLDER / wire.JOB)
    assert job.trainer == ("sdxl_train_network", "SdxlNetworkTrainer")


def test_sd2_is_said_to_be_one(spec, checkout, tmp_path):
    sd2 = replace(spec, base=str(header_of(tmp_path / "two.safetensors", 1024, "v_pred")))
    flat = _flat(dry_run(sd2, checkout))
    assert flat["v2"] and flat["v_parameterization"] and "zero_terminal_snr" not in flat
    assert "v_parameterization" not in _flat(dry_run(replace(sd2, prediction="epsilon"), checkout))


def _flat(found):
    [config] = [tomllib.loads(text) for path, text in found.files.items() if path.name == "config.toml"]
    return {name: value for table in config.values() for name, value in table.items()}


def _enlarged(images):
    for path in images.rglob("*.png"):
        with Image.open(path) as picture:
            picture.resize((128, 128)).save(path)
    return images


# --- a run


def test_a_run_leaves_what_our_own_leaves(spec, checkout):
    spec = replace(spec, sample_prompts=("a sks dog", "a dog"), sample_every=2, keep=2)
    outcome, heard = trained(spec, checkout)
    assert (outcome.reason, outcome.path, outcome.steps) == ("finished", spec.out, 5)
    assert outcome.losses == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5] and outcome.parameters == 6
    assert outcome.file_bytes == spec.out.stat().st_size
    [plan] = heard.of(Plan)
    assert (plan.layers, plan.parameters, plan.pictures, plan.batch) == ({"unet": 1, "text_encoder": 1}, 6, 4, 1.0)
    assert [event.step for event in heard.of(Step)] == [1, 2, 3, 4, 5]
    assert heard.of(Step)[0].lr == pytest.approx(1e-4)
    assert [event.step for event in heard.of(Checkpointed)] == [2, 4, 5]
    assert [(event.step, len(event.paths)) for event in heard.of(Sampled)] == [(0, 2), (2, 2), (4, 2), (5, 2)]
    assert all(path.is_file() for event in heard.of(Sampled) for path in event.paths)
    names = [event.name for event in heard.of(Phase)]
    for early, late in (("loading the base model", "decomposing the base's weights"), ("training", "saving")):
        assert names.index(early) < names.index(late)
    assert Progress(2, 2, "lora_unet_one") in heard
    assert isinstance(heard[-1], Ended) and heard.of(Saved)[0].path == spec.out
    assert sorted(path.name for path in (spec.run_folder / "checkpoints").iterdir()) == ["step-000004", "step-000005"]
    assert curve(spec.run_folder / "events.jsonl") == [(n, 1 / n) for n in range(1, 6)]
    for name in ("loss.png", "sheet.png", "spec.json"):
        assert (spec.run_folder / name).is_file()
    assert not (spec.run_folder / FOLDER / "out").exists()
    assert "saving checkpoint" in (spec.run_folder / FOLDER / LOG).read_text()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stopped_run_goes_on_where_it_was(spec, checkout, accumulation):
    spec = replace(spec, accumulation=accumulation, steps=9)
    heard = Heard()

    def listen(event):
        heard.append(event)
        if isinstance(event, Step) and event.step == 4:
            ask(spec.run_folder, "stop")

    fake.behave(checkout.folder, seconds=0.01)
    first = run(spec, checkout, listen)
    assert first.reason == "stopped" and 4 < first.steps < 9
    assert first.path.parent.name == f"step-{first.steps:06d}" and heard[-1].resumable
    with pytest.raises(SettingError, match="--resume"):
        run(spec, checkout)
    second, heard = trained(spec, checkout, resume=True)
    assert {"resumed": first.steps} in fake.noted(checkout.folder)
    assert (second.reason, second.steps, len(second.losses)) == ("finished", 9, 9)
    assert second.losses[: first.steps] == first.losses
    assert heard.of(Resumed)[0].step == first.steps
    assert [event.step for event in heard.of(Step)] == list(range(first.steps + 1, 10))
    assert spec.out.is_file()
    with pytest.raises(SettingError, match="exists already"):
        run(spec, checkout, resume=True)


def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(spec, checkout, tmp_path):
    whole = replace(spec, steps=15, checkpoint_every=1)  # passes of 6 steps
    run(whole, checkout)
    expected = drawn(checkout)
    for number, at in enumerate((3, 6, 14)):
        parted = replace(whole, out=tmp_path / f"{number}.safetensors")
        fake.behave(checkout.folder, fail_at=at + 1, error="stopped")
        with pytest.raises(SpectralError, match="stopped"):
            run(parted, checkout)
        fake.behave(checkout.folder)
        drawn(checkout)
        run(parted, checkout, resume=True)
        passes, forwards = drawn(checkout)
        assert forwards == expected[1][at:], at
        assert passes == {epoch: value for epoch, value in expected[0].items() if epoch in passes}, at
        assert set(passes) == set(range(at // 6, 3))


def drawn(checkout):
    """What was drawn since the last call: {pass: number}, and a number per forward."""
    seen = fake.noted(checkout.folder)
    (checkout.folder / "noted.jsonl").unlink()
    return {e["epoch"]: e["drawn"] for e in seen if "epoch" in e}, [e["forward"] for e in seen if "forward" in e]


def test_a_resumed_run_refuses_other_settings_and_says_accepted_ones(spec, checkout):
    fake.behave(checkout.folder, fail_at=4, error="out of patience")
    with pytest.raises(SpectralError, match=r"ended with status 1: ValueError: out of patience\. All that it"):
        run(spec, checkout)
    fake.behave(checkout.folder)
    with pytest.raises(SettingError, match="method: found 'svdiff', expected the checkpoint's 'additive'"):
        run(replace(spec, method="svdiff"), checkout, resume=True)
    outcome, heard = trained(replace(spec, steps=6), checkout, resume=True)
    assert outcome.steps == 6
    assert any("steps: 5 -> 6" in event.text for event in heard.of(Notice))


def test_a_run_that_was_killed_at_its_end_only_writes_the_adapter(spec, checkout):
    run(spec, checkout)
    spec.out.unlink()
    before = fake.noted(checkout.folder)
    outcome, _ = trained(spec, checkout, resume=True)
    assert outcome.steps == 5 and spec.out.is_file()
    assert fake.noted(checkout.folder) == before


def test_a_checkpoint_of_our_own_trainer_is_not_gone_on_with(spec, checkout):
    run(spec, checkout)
    spec.out.unlink()
    from spectral_adapters.trainer.checkpoint import Checkpoints, State

    checkpoints = Checkpoints(spec.run_folder / "checkpoints")
    with pytest.raises(SpectralError, match="sd-scripts made this one"):
        checkpoints.load(checkpoints.latest()[0])
    checkpoints.save(State(step=6, tensors={}))
    with pytest.raises(SettingError, match="this package's own trainer, expected one that sd-scripts made"):
        run(spec, checkout, resume=True)


def test_requests_and_validation_with_patience(spec, checkout):
    spec = replace(spec, steps=40, validation=1, validate_every=2, patience=2, checkpoint_every=0)
    fake.behave(checkout.folder, held_out=[0.5, 0.4, 0.6, 0.7, 0.1])
    outcome, heard = trained(spec, checkout)
    assert [(event.step, event.loss, event.best) for event in heard.of(Validated)] == [
        (2, 0.5, True), (4, 0.4, True), (6, 0.6, False), (8, 0.7, False),
    ]  # fmt: skip
    assert (outcome.reason, outcome.steps, outcome.path) == ("converged", 8, spec.out)
    assert "Step 4 was best" in heard[-1].text


def test_samples_and_checkpoints_can_be_asked_for(spec, checkout):
    spec = replace(spec, steps=12, sample_prompts=("a dog",), sample_every=1000, checkpoint_every=0)
    fake.behave(checkout.folder, seconds=0.01)
    heard = Heard()

    def listen(event):
        heard.append(event)
        if isinstance(event, Step) and event.step == 3:
            ask(spec.run_folder, "sample")
            ask(spec.run_folder, "save")

    run(spec, checkout, listen)
    assert heard.of(Sampled)[0].step == 0 and len(heard.of(Sampled)) == 3
    assert 3 < heard.of(Sampled)[1].step < 12 and 3 < heard.of(Checkpointed)[0].step < 12


def test_losses_that_are_no_numbers_end_it_with_the_last_good_checkpoint(spec, checkout):
    fake.behave(checkout.folder, nan_from=4)
    outcome, heard = trained(replace(spec, steps=9, checkpoint_every=1), checkout)
    assert (outcome.reason, outcome.steps, outcome.path.parent.name) == ("diverged", 6, "step-000003")
    assert [event.step for event in heard.of(Checkpointed)] == [1, 2, 3] and not spec.out.exists()


def test_a_full_memory_is_said_with_what_helps(spec, checkout):
    fake.behave(checkout.folder, full_at=4)
    outcome, heard = trained(spec, checkout)
    assert (outcome.reason, outcome.steps, outcome.path.parent.name) == ("out_of_memory", 3, "step-000002")
    assert "CUDA out of memory" in heard[-1].text and "gradient_checkpointing" in heard[-1].text


def test_a_missing_tokenizer_is_said_with_what_helps(spec, checkout):
    fake.behave(checkout.folder, no_tokenizer=True)
    with pytest.raises(SpectralError, match=r"found no CLIP tokenizer.*vocab.json and merges.txt as tokenizer"):
        run(spec, checkout)


def test_losses_that_are_no_numbers_from_the_start_leave_nothing(spec, checkout):
    fake.behave(checkout.folder, nan_from=1)
    with pytest.raises(SpectralError, match="nothing worth saving"):
        run(spec, checkout)


def test_a_stop_before_the_first_step_ends_its_process_at_once(spec, checkout):
    fake.behave(checkout.folder, load=60)
    started, heard = time.monotonic(), Heard()
    with pytest.raises(Cancelled, match="before the training began"):
        run(spec, checkout, heard.append, stop=lambda: time.monotonic() - started > 2)
    assert time.monotonic() - started < 20 and heard[-1].reason == "stopped"


def test_sd_scripts_does_not_outlive_a_killed_parent(spec, checkout, tmp_path):
    fake.behave(checkout.folder, seconds=0.05)
    file = tmp_path / "dog.json"
    file.write_text(json.dumps({**spec.as_json(), "steps": 1000}))
    command = [sys.executable, "-m", "spectral_adapters", "kohya", str(file), "--json"]
    which = ["--sd-scripts", str(checkout.folder), "--python", str(checkout.python)]
    with subprocess.Popen([*command, *which], stdout=subprocess.PIPE, text=True) as parent:
        for line in parent.stdout:
            if json.loads(line)["event"] == "Step":
                break
        [child] = psutil.Process(parent.pid).children()
        parent.kill()
    child.wait(timeout=20)
    resumed, _ = trained(replace(spec, steps=5), checkout, resume=True)
    assert resumed.reason == "finished"


def test_a_process_that_dies_is_told_with_its_last_error(spec, checkout):
    path = checkout.folder / "train_network.py"
    path.write_text("raise SystemExit('no such model')\n" + path.read_text())
    with pytest.raises(SpectralError, match=r"sd-scripts ended with status 1: no such model. All that it said is in"):
        run(spec, checkout)


def test_something_that_is_missing_in_its_python_is_not_looked_for_in_ours(spec, checkout):
    path = checkout.folder / "train_network.py"
    path.write_text("import nowhere_to_be_found\n" + path.read_text())
    with pytest.raises(SpectralError, match=r"cannot import what sd-scripts needs: No module named 'nowhere"):
        run(spec, checkout)


def test_a_base_that_is_none_is_said_before_anything_starts(spec, checkout, tmp_path):
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(SettingError, match="found no model that sd-scripts trains"):
        run(replace(spec, base=str(tmp_path / "no.safetensors")), checkout)


# --- the process


def test_its_python_gets_no_packages_and_no_secrets_of_ours(checkout):
    host = {
        "PATH": "/bin", "PYTHONPATH": "/ours", "VIRTUAL_ENV": "/venv", "HF_TOKEN": "x", "HF_HOME": "/hub",
        "CUDA_VISIBLE_DEVICES": "1",
    }  # fmt: skip
    found = launch.environment(host, None)
    assert found["HF_HOME"] == "/hub" and found["CUDA_VISIBLE_DEVICES"] == "1"
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "HF_TOKEN"} & set(found)
    assert launch.environment(host | {"HF_HUB_OFFLINE": "1"}, None)["HF_HUB_OFFLINE"] == "1"
    ours = {"HF_HUB_OFFLINE": "1", "SPECTRAL_ADAPTERS_OFFLINE": "1"}  # as `console.quiet_libraries` sets them
    assert "HF_HUB_OFFLINE" not in launch.environment(host | ours, None)
    assert launch.environment(host, "cpu")["CUDA_VISIBLE_DEVICES"] == ""
    program, pack, command, job = launch.command(checkout, Path("/x/job.json"))
    assert (program, command, job) == (str(checkout.python), "sd-scripts-child", "/x/job.json")
    assert Path(pack, "__main__.py").is_file()


def test_messages_survive_the_way_between_the_processes(capfd):
    events = [
        Step(3, 9, float("nan"), 1e-4, 0.5, None), Checkpointed(2, Path("a/b"), True), Phase("training"),
        Sampled(1, (Path("x.png"),), ("ein Hünd\n",)), Validated(2, 0.5, False), wire.Over("stopped", wire.Tally(3)),
    ]  # fmt: skip
    for event in events:
        wire.say(event)
    found = [wire.heard(line) for line in capfd.readouterr().out.splitlines()]
    assert [repr(event) for event in found if event is not None] == [repr(event) for event in events]


def test_output_in_pieces_becomes_lines():
    chunks = [b"one\ntw", b"o\r 50%|#", b"##| 1/2 [00:01]\r", b"\xff\n"]
    assert list(lines(iter(chunks))) == ["one", "two", " 50%|###| 1/2 [00:01]", "\ufffd", ""]


def test_an_error_is_found_in_what_was_said():
    heard, log = [], []
    reader = Reader(heard.append, log.append)
    for line in ("Traceback (most recent call last):", '  File "x"', "torch.OutOfMemoryError: full", "steps: 0%"):
        reader.line(line)
    assert reader.why() == "torch.OutOfMemoryError: full" and len(log) == 4


# --- the command


def test_the_command_trains_and_exits_like_train(spec, checkout, tmp_path, capsys, monkeypatch):
    file = tmp_path / "dog.json"
    file.write_text(json.dumps(spec.as_json()))
    which = ["--sd-scripts", str(checkout.folder), "--python", str(checkout.python)]
    assert main(["kohya", str(file), *which, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "sd-scripts-child" in said and 'network_module = "spectral_adapters.trainer.kohya"' in said
    assert not spec.run_folder.exists()
    assert main(["kohya", str(file), *which, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[-1]["event"] == "Ended" and told[-1]["reason"] == "finished" and spec.out.is_file()
    assert list(read_events(spec.run_folder / "events.jsonl"))[-1]["reason"] == "finished"
    assert main(["plot", str(spec.run_folder)]) == 0
    assert main(["kohya", str(file), *which, "--ema", "0.9", "--out", str(tmp_path / "e.safetensors")]) == 2
    assert "ema: sd-scripts keeps no running mean" in capsys.readouterr().err


def test_the_command_remembers_and_forgets(checkout, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (place.FOLDER_VARIABLE, place.PYTHON_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    which = ["--sd-scripts", str(checkout.folder), "--python", str(checkout.python)]
    assert main(["kohya", *which, "--remember"]) == 0
    assert "version 0.10.1" in capsys.readouterr().out and place.find() == checkout
    assert main(["kohya", "--forget"]) == 0
    assert main(["kohya", "--base", "x", "--images", "y", "--out", "z.safetensors"]) == 2
    assert "found no sd-scripts set up here" in capsys.readouterr().err
