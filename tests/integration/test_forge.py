"""Adapters in a real Forge: the same picture as their exported LoRAs, and nothing of it without the tag.

    SPECTRAL_FORGE_DIR=... SPECTRAL_FORGE_PYTHON=... python -m pytest -m slow tests/integration/test_forge.py

needs 3 GB of memory and about two minutes on two cores. See `webui_driver` for the variables.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sample_adapters
from forge_driver import Forge
from safetensors.torch import load_file
from webui_checks import SAME, VISIBLE, WORDS, InEveryWebUI, mean, most, picture
from webui_driver import PACK, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Forge.is_there(), reason=Forge.without())]


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    folder = tmp_path_factory.mktemp("forge")
    models = folder / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    state = load_file(write_checkpoint(models / "small.safetensors"))
    (folder / "models" / "Lora").mkdir()
    sample_adapters.write_all(folder / "models" / "Lora", state)
    with Forge(folder) as running:
        yield running


@pytest.fixture(scope="module")
def base(ui: Forge) -> np.ndarray:
    return picture(ui)


class TestForge(InEveryWebUI):
    pass


@pytest.mark.parametrize("mode", ["float8-e4m3fn (fp16 LoRA)", "float8-e4m3fn"])
def test_weights_in_few_bits(mode: str, ui: Forge) -> None:
    ui.store_in(mode)
    try:
        low = picture(ui)
        assert "torch.float8_e4m3fn" in ui.log()
        own = picture(ui, "<lora:rotation:0.8>", "<lora:additive:0.5>")
        exported = picture(ui, "<lora:rotation-lora:0.8>", "<lora:additive-lora:0.5>")
        assert mean(own, low) > VISIBLE
        # Merged into eight bits, a difference in the last digit of a change may round a weight to another number.
        assert most(own, exported) <= SAME if "fp16" in mode else mean(own, exported) < mean(own, low) / 20
        refused = ui.picture(f"{WORDS} <lora:svdiff:1>")
        assert "ask for a portable file" in refused.error
        assert np.array_equal(picture(ui), low)
    finally:
        ui.store_in("Automatic")


def test_every_layer_and_norm_of_every_family_has_its_place() -> None:
    script = Path(__file__).with_name("forge_keys_inside.py")
    command = [Forge.given("PYTHON"), str(script), Forge.given("DIR"), str(PACK)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"sd1": [], "sd2": [], "sdxl": []}
