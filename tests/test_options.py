"""The options of `train`: every setting as a flag, layers of values, spec files, and how mistakes are answered."""

import json
import os
from dataclasses import MISSING
from pathlib import Path

import pytest

import spectral_adapters as sa
from spectral_adapters.__main__ import parser
from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.trainer import options, settings_page
from spectral_adapters.trainer.layering import base_kind, layered
from spectral_adapters.trainer.options import read_train_spec
from spectral_adapters.trainer.presets import PRESETS, preset_values
from spectral_adapters.trainer.spec import TrainSpec, settings

ROOT = Path(sa.__file__).parent
NEEDED = ["--base", "tiny", "--images", "photos", "--out", "dog.safetensors"]
# A value for every kind of setting, as typed and as meant.
SPECIAL = {
    "optimizer_args": (["betas=[0.9,0.95]", "eps=1e-7", "fused=true", "name=text"],
                       {"betas": [0.9, 0.95], "eps": 1e-7, "fused": True, "name": "text"}),
    "sample_prompts": (["a dog", "a cat"], ("a dog", "a cat")),
    "avoid": (["a.safetensors", "b.safetensors"], (Path("a.safetensors"), Path("b.safetensors"))),
    "preset": (["style"], "style"),
    "method": (["soda"], "soda"),
    "base": (["other.safetensors"], "other.safetensors"),
    "device": (["cpu"], "cpu"),
}  # fmt: skip
BY_TYPE = {
    "whole number": ("7", 7),
    "number": ("0.25", 0.25),
    "text": ("word", "word"),
    "path": ("some/where", Path("some/where")),
}


def read(*typed: str) -> TrainSpec:
    return read_train_spec(parser("train").parse_args(["train", *map(str, typed)]))


def write(path: Path, **values: object) -> Path:
    path.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items()), encoding="utf-8")
    return path


@pytest.mark.parametrize("field", settings(), ids=lambda field: field.name)
def test_every_setting_has_a_flag(field):
    from typing import get_type_hints

    kind = settings_page.type_text(get_type_hints(TrainSpec)[field.name])
    flag = f"--{field.name.replace('_', '-')}"
    if kind == "true or false":
        assert getattr(read(*NEEDED, flag), field.name) is True
        assert getattr(read(*NEEDED, f"--no-{flag[2:]}"), field.name) is False
        return
    if field.name in SPECIAL:
        typed, meant = SPECIAL[field.name]
    elif kind.startswith("one of"):
        choice = kind.split("`")[-2]
        typed, meant = [choice], choice
    else:
        typed, meant = [BY_TYPE[kind][0]], BY_TYPE[kind][1]
    given = [part for value in typed for part in (flag, value)]
    assert getattr(read(*NEEDED, *given), field.name) == meant


def test_the_groups_are_those_of_the_settings():
    assert {field.metadata["group"] for field in settings()} == set(options.TITLES)
    assert set(options.COMMON) <= {field.name for field in settings()}


def test_preset_below_file_below_flags(tmp_path):
    below = preset_values("subject", "additive", "tiny")
    bare = read(*NEEDED)
    assert {name: getattr(bare, name) for name in below} == below and bare.preset == "subject"
    file = write(tmp_path / "run.toml", base="tiny", images="photos", out="dog.safetensors", steps=77, seed=5)
    assert (read(file).steps, read(file).seed, read(file).lr) == (77, 5, bare.lr)
    assert (read(file, "--steps", 78).steps, read(file, "--steps", 78).seed) == (78, 5)
    none = read(file, "--preset", "none")
    default = TrainSpec(base="tiny", images=Path(), out=Path())
    assert (none.preset, none.lr, none.batch_size) == ("none", default.lr, default.batch_size)
    named = write(tmp_path / "named.toml", base="tiny", images="photos", out="dog.safetensors", preset="tiny-file")
    assert read(named).preset == "tiny-file" and read(named).method == PRESETS["tiny-file"].method
    assert read(named, "--preset", "style").preset == "style"


def test_a_preset_follows_the_method(tmp_path):
    for method in sa.METHODS:
        spec = read(*NEEDED, "--method", method)
        assert spec.method == method and spec.lr == preset_values("subject", method, "tiny")["lr"]


@pytest.mark.parametrize("preset", [*PRESETS, "none"])
@pytest.mark.parametrize("method", sa.METHODS)
@pytest.mark.parametrize("base", ["tiny", "model.safetensors"])
def test_presets_give_settings_that_hold_together(tmp_path, preset, method, base):
    spec = read("--base", base, "--images", tmp_path, "--out", tmp_path / "a.safetensors",
                "--preset", preset, "--method", method)  # fmt: skip
    spec.check()


def test_of_two_rivals_the_later_layer_wins(tmp_path):
    assert layered({"rank": 8, "lr": 1.0}, {"columns": "top:4"}) == {"lr": 1.0, "columns": "top:4"}
    assert layered({"masks": "m"}, {"alpha_masks": False})["masks"] == "m"
    file = write(tmp_path / "run.toml", base="tiny", images="p", out="a.safetensors", rank=4)
    spec = read(file, "--columns", "bottom:8")
    assert (spec.rank, spec.columns) == (None, "bottom:8")
    assert read(file, "--rank", "none").rank is None, "back to the method's own"


def test_relative_paths_count_from_where_they_are_written(tmp_path, monkeypatch):
    (tmp_path / "settings").mkdir()
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "settings" / "run.toml", base="model.safetensors", images="photos", out="dog.safetensors")
    spec = read("settings/run.toml", "--masks", "masks")
    assert spec.images == Path("settings/photos") and spec.base == str(Path("settings/model.safetensors"))
    assert spec.masks == Path("masks")
    assert read(file).out == tmp_path / "settings" / "dog.safetensors"


def test_a_json_file_and_a_runs_own_settings_are_read(tmp_path):
    spec = read(*NEEDED, "--method", "svdiff", "--rank", "none")
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec.as_json()), encoding="utf-8")
    again = read(path)
    assert again.as_json() | {"images": "", "out": ""} == spec.as_json() | {"images": "", "out": ""}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepps": 3}, r"run\.toml: 'stepps' is no setting of a training run; did you mean steps\?"),
        ({"batch-size": 3}, r"run\.toml: 'batch-size' .* did you mean batch_size\?"),
        ({"steps": "many"}, r"run\.toml: steps='many' is a str; expected a whole number"),
        ({"norms": 1}, r"run\.toml: norms=1 is a int; expected true or false"),
        ({"sample_prompts": "a dog"}, r"run\.toml: sample_prompts='a dog' is a str; expected a list of a text"),
        ({"preset": "subjekt"}, "subjekt"),
    ],
)
def test_mistakes_in_a_file_name_the_file_and_the_key(tmp_path, values, message):
    file = write(tmp_path / "run.toml", base="tiny", images="p", out="a.safetensors", **values)
    with pytest.raises(SettingError, match=message):
        read(file)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "broken.toml").write_text("steps = ")
    (tmp_path / "list.json").write_text("[1]")
    for name in ("missing.toml", "broken.toml", "list.json"):
        with pytest.raises(SettingError, match=name):
            read(tmp_path / name)


def test_what_is_missing_is_named():
    for left_out in (0, 2, 4):
        with pytest.raises(SettingError, match=f"^{NEEDED[left_out][2:]} is missing"):
            read(*NEEDED[:left_out], *NEEDED[left_out + 2 :])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--batchsize", "3"], "did you mean --batch-size?"),
        (["--step", "3"], "did you mean --steps?"),
        (["--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--optimizer-arg", "eps"], "'eps' is not NAME=VALUE"),
    ],
)
def test_mistyped_options_are_one_sentence(typed, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        read(*NEEDED, *typed)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and said in error and error.count("\n") == 1


def test_what_a_base_is_for_presets(tmp_path):
    header = json.dumps({"conditioner.embedders.1.model.ln_final.weight": {}}).encode()
    (tmp_path / "xl.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "sd.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    for name in ("StableDiffusionXLPipeline", "StableDiffusionPipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps({"_class_name": name}))
    found = {name: base_kind(str(tmp_path / name)) for name in os.listdir(tmp_path)}
    assert found == {
        "xl.safetensors": "sdxl",
        "sd.safetensors": "sd",
        "StableDiffusionXLPipeline": "sdxl",
        "StableDiffusionPipeline": "sd",
    }
    assert base_kind("tiny") == "tiny" and base_kind(str(tmp_path / "nothing")) == "sd"


# --- the documents


def test_the_page_of_settings_is_current():
    written = (ROOT / "docs" / "training_settings.md").read_text(encoding="utf-8")
    assert written == settings_page.page(), "run: python -m spectral_adapters settings > docs/training_settings.md"


def test_every_setting_is_explained():
    page = settings_page.page()
    for field in settings():
        assert f"### `{field.name}`" in page
        assert len(field.metadata["help"]) >= 25 and field.metadata["help"].endswith("."), field.name
        assert (field.default is MISSING and field.default_factory is MISSING) == options.is_required(field)


@pytest.mark.parametrize("example", sorted((ROOT / "docs" / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_are_good_settings(example, tmp_path):
    places = ("--images", tmp_path, "--out", tmp_path / "a.safetensors")
    spec = read(example, *places)
    spec.check()
    # Lines that are commented out are offers to the reader, and hold together with the rest as well.
    offered = [line[2:] for line in example.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    offered = [line for line in offered if "=" in line and line.split("=")[0].strip().isidentifier()]
    copy = tmp_path / "all.toml"
    copy.write_text(example.read_text(encoding="utf-8") + "\n" + "\n".join(offered), encoding="utf-8")
    read(copy, *places).check()
    assert example.name in example.read_text(encoding="utf-8"), "the first lines say how to run it"
