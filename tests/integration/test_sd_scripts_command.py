"""Trainings by a real sd-scripts from our own settings: the run folder, the events and the file that come of it.

    SPECTRAL_SD_SCRIPTS_DIR=... SPECTRAL_SD_SCRIPTS_PYTHON=... \\
        python -m pytest -m slow tests/integration/test_sd_scripts_command.py

needs 8 GB of memory and about a minute for each of five runs on two cores. See `sd_scripts` for the variables.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import random_checkpoints
import sd_scripts
from PIL import Image

from spectral_adapters.spectral.errors import Cancelled
from spectral_adapters.spectral.file import load, read_metadata
from spectral_adapters.spectral.info import read_info
from spectral_adapters.trainer.event_log import curve
from spectral_adapters.trainer.events import Checkpointed, Ended, Phase, Plan, Progress, Sampled, Step, Validated
from spectral_adapters.trainer.run_folder import ask
from spectral_adapters.trainer.sd_scripts import place
from spectral_adapters.trainer.sd_scripts.run import run
from spectral_adapters.trainer.spec import TrainSpec

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sd_scripts.is_there(), reason=sd_scripts.WITHOUT)]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("command")


@pytest.fixture(scope="module")
def spec(work):
    base = sd_scripts.given("BASE") or str(random_checkpoints.write(work / "base.safetensors"))
    return TrainSpec(
        base, sd_scripts.write_pictures(work / "pictures"), work / "mug.safetensors", tokenizer=sd_scripts.tokenizer(),
        targets=sd_scripts.FEW, resolution=sd_scripts.SIZE, steps=4, min_snr_gamma=0.0, device="cpu",
    )  # fmt: skip


@pytest.fixture
def checkout():
    return place.find()


def trained(spec, checkout, then=lambda event: None, **how):
    heard = []

    def listen(event):
        heard.append(event)
        then(event)

    return run(spec, checkout, listen, **how), heard


def of(kind, heard):
    return [event for event in heard if isinstance(event, kind)]


def test_a_rich_training_is_followed_and_its_file_is_whole(spec, checkout, work):
    classes = work / "classes"
    classes.mkdir()
    for number in range(2):
        Image.new("RGB", (160, 128), (60 * number, 90, 20)).save(classes / f"{number}.png")
    rich = replace(
        spec, out=work / "rich.safetensors", method="soda", text_targets=sd_scripts.FEW_TEXT, text_lr=1e-5,
        masks=sd_scripts.write_masks(work / "masks", 255), mask_floor=0.1, class_images=classes, class_prompt="a mug",
        class_count=2, validation=1, validate_every=2, sample_prompts=("a sks mug",), sample_steps=1, sample_every=2,
        checkpoint_every=2, trigger="sks mug", noise_offset=0.05, gradient_checkpointing=True, flip=True,
        title="My mug", licence="CC0-1.0", description="Déjà vu",
    )  # fmt: skip
    outcome, heard = trained(rich, checkout)
    assert (outcome.reason, outcome.steps, outcome.path) == ("finished", 4, rich.out)
    [plan] = of(Plan, heard)
    assert plan.parameters == load(rich.out).parameter_count and set(plan.layers) == {"unet", "text_encoder"}
    assert [event.step for event in of(Step, heard)] == [1, 2, 3, 4]
    assert [event.step for event in of(Sampled, heard)] == [0, 2, 4]
    assert [event.step for event in of(Validated, heard)] == [2, 4]
    assert [event.step for event in of(Checkpointed, heard)] == [2, 4]
    assert any(event.done == event.total > 1 for event in of(Progress, heard))
    assert [event.name for event in of(Phase, heard)].count("decomposing the base's weights") == 1
    assert len(curve(rich.run_folder / "events.jsonl")) == 4
    info = read_info(rich.out)
    assert list(info.trigger_words) == ["sks mug"]
    metadata = read_metadata(rich.out)
    assert metadata["modelspec.title"] == "My mug" and metadata["modelspec.resolution"] == "128x128"
    assert metadata["ss_network_module"] == "spectral_adapters.trainer.kohya" and metadata["ss_steps"] == "4"
    assert metadata["ss_output_name"] == "rich" and "sshs_model_hash" in metadata
    for name in ("loss.png", "sheet.png", "checkpoints/step-000004/adapter.safetensors"):
        assert (rich.run_folder / name).is_file()


def test_a_stopped_training_goes_on_as_if_it_had_not(spec, checkout, work):
    whole, _ = trained(replace(spec, out=work / "whole.safetensors"), checkout)
    parted = replace(spec, out=work / "parted.safetensors")

    def stop(event):
        if isinstance(event, Plan):
            ask(parted.run_folder, "stop")

    first, heard = trained(parted, checkout, stop)
    assert first.reason == "stopped" and first.steps == 1 and of(Ended, heard)[-1].resumable
    second, _ = trained(parted, checkout, resume=True)
    assert (second.reason, second.steps) == ("finished", 4)
    assert second.losses == pytest.approx(whole.losses, rel=1e-6)
    adapters = load(whole.path), load(second.path)
    for name, layer in adapters[0].layers.items():
        for part, value in layer.params.items():
            other = adapters[1].layers[name].params[part]
            assert float((value - other).norm() / value.norm().clamp_min(1e-9)) < 1e-5, (name, part)


def test_a_stop_while_the_base_is_loading_ends_sd_scripts(spec, checkout, work):
    seen = []

    def then(event):
        if isinstance(event, Phase) and event.name == "loading the base model":
            seen.append(event)

    with pytest.raises(Cancelled):
        trained(replace(spec, out=work / "no.safetensors"), checkout, then, stop=lambda: bool(seen))
    assert seen and not Path(work / "no.safetensors").exists()
