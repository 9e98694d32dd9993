"""Adapters in a real AUTOMATIC1111: the same picture as their exported LoRAs, and nothing of it without the tag.

    SPECTRAL_A1111_DIR=... SPECTRAL_A1111_PYTHON=... python -m pytest -m slow tests/integration/test_a1111.py

needs 3 GB of memory and about two minutes on two cores. See `a1111_driver` for the variables.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import sample_adapters
import torch
from a1111_driver import A1111, layer_keys, norm_keys, write_checkpoint
from safetensors.torch import load_file, save_file
from webui_checks import SAME, VISIBLE, WORDS, InEveryWebUI, mean, most, picture

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not A1111.is_there(), reason=A1111.without())]


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[A1111]:
    folder = tmp_path_factory.mktemp("a1111")
    models = folder / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    running = A1111(folder)
    state = load_file(write_checkpoint(models / "small.safetensors"))
    save_file(fine_tuned(state), models / "tuned.safetensors")
    for name in ("small", "tuned"):
        running.describe(models / f"{name}.safetensors")
    running.loras.mkdir()
    sample_adapters.write_all(running.loras, state, layer_keys(), norm_keys())
    with running:
        running.use("small")
        yield running


def fine_tuned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every matrix moved by a twentieth of its size."""
    random = torch.Generator().manual_seed(4)
    moved = {
        key: (weight + 0.05 * weight.float().std() * torch.randn(weight.shape, generator=random)).half()
        for key, weight in state.items()
        if weight.is_floating_point() and weight.ndim > 1
    }
    return state | moved


@pytest.fixture(scope="module")
def base(ui: A1111) -> np.ndarray:
    return picture(ui)


class TestAutomatic1111(InEveryWebUI):
    pass


def test_another_checkpoint_in_the_same_place_is_another_base(ui: A1111, base: np.ndarray) -> None:
    before = {name: picture(ui, f"<lora:{name}:1>") for name in ("rotation", "svdiff")}
    ui.use("tuned")
    try:
        tuned = picture(ui)
        own, exported = picture(ui, "<lora:rotation:1>"), picture(ui, "<lora:rotation-lora:1>")
        assert most(own, exported) <= SAME
        assert mean(own, tuned) > VISIBLE
        refused = ui.picture(f"{WORDS} <lora:rotation:1> <lora:svdiff:1>")
        assert "this compact svdiff adapter was trained on 'small'" in refused.error
        assert "ask for a portable file" in refused.error
        assert np.array_equal(picture(ui), tuned)
        forced = {"override_settings": {"spectral_mismatch": "Apply what fits"}}
        assert ui.picture(f"{WORDS} <lora:svdiff:1>", **forced).pixels is not None
    finally:
        ui.use("small")
    assert all(np.array_equal(picture(ui, f"<lora:{name}:1>"), found) for name, found in before.items())
    assert np.array_equal(picture(ui), base)


def test_the_old_way_of_adding_networks_at_each_step(ui: A1111, base: np.ndarray) -> None:
    ui.call("/sdapi/v1/options", {"lora_functional": True})
    try:
        own, exported = (picture(ui, f"<lora:{name}:0.8>") for name in ("rotation", "rotation-lora"))
        assert most(own, exported) <= SAME
        assert mean(own, base) > VISIBLE
        assert np.array_equal(picture(ui, "<lora:svdiff:0>"), picture(ui))
    finally:
        ui.call("/sdapi/v1/options", {"lora_functional": False})
    assert np.array_equal(picture(ui), base)


def test_hires_fix_with_a_tag_of_its_own(ui: A1111) -> None:
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.9}
    plain = ui.picture(WORDS, **hires, hr_prompt=WORDS)
    own, exported = (
        ui.picture(WORDS, **hires, hr_prompt=f"{WORDS} <lora:{name}:1>") for name in ("rotation", "rotation-lora")
    )
    assert most(own.pixels, exported.pixels) <= SAME
    assert mean(own.pixels, plain.pixels) > VISIBLE / 5  # most of that picture is the first pass's
    refused = ui.picture(WORDS, **hires, hr_prompt=f"{WORDS} <lora:sdxl:1>")
    assert "trained on SDXL" in refused.error
    assert np.array_equal(ui.picture(WORDS, **hires, hr_prompt=WORDS).pixels, plain.pixels)


def test_the_settings_are_on_the_page(ui: A1111) -> None:
    found = ui.call("/sdapi/v1/options")[1]
    assert found["spectral_device"] == "Graphics card"
    assert found["spectral_kept_mb"] == 2048
    assert found["spectral_mismatch"] == "Stop with a message"
