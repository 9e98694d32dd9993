"""Adapters in a real Forge: the same picture as their exported LoRAs, and nothing of it without the tag.

    SPECTRAL_FORGE_DIR=... SPECTRAL_FORGE_PYTHON=... python -m pytest -m slow tests/integration/test_forge.py

needs 3 GB of memory and about two minutes on two cores. See `forge_driver` for the variables.
"""

import shutil
from collections.abc import Iterator

import forge_driver
import numpy as np
import pytest
import sample_adapters
from forge_driver import Forge
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not forge_driver.is_there(), reason=forge_driver.WITHOUT)]
WORDS = "a dog on a beach"
VISIBLE = 1.0  # grey levels in the mean: every sample adapter changes the picture by more
SAME = 2  # grey levels, of any value


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    folder = tmp_path_factory.mktemp("forge")
    models = folder / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    state = load_file(forge_driver.write_checkpoint(models / "small.safetensors"))
    (folder / "models" / "Lora").mkdir()
    sample_adapters.write_all(folder / "models" / "Lora", state)
    with Forge(folder) as running:
        yield running


@pytest.fixture(scope="module")
def base(forge: Forge) -> np.ndarray:
    return picture(forge)


def picture(forge: Forge, *tags: str) -> np.ndarray:
    found = forge.picture(" ".join([WORDS, *tags]))
    assert found.pixels is not None, found.error
    return found.pixels


def most(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


def mean(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def test_the_base_picture_is_worth_comparing(forge: Forge, base: np.ndarray) -> None:
    assert "Spectral Adapters: ready in Forge." in forge.log()
    assert base.std() > 10
    assert ((base == 0) | (base == 255)).mean() < 0.1


@pytest.mark.parametrize("name", [*sample_adapters.PROFILES, "norms", "unet-only"])
def test_every_method_changes_the_picture_and_leaves_it(name: str, forge: Forge, base: np.ndarray) -> None:
    changed = picture(forge, f"<lora:{name}:1>")
    assert mean(changed, base) > VISIBLE
    assert np.array_equal(picture(forge, f"<lora:{name}:0>"), base)
    assert np.array_equal(picture(forge, f"<lora:{name}:1>"), changed)
    assert np.array_equal(picture(forge), base)


@pytest.mark.parametrize("name", ["additive", "rotation"])
def test_the_picture_is_that_of_the_exported_lora(name: str, forge: Forge, base: np.ndarray) -> None:
    for strength in ("1", "0.6", "0.5:0.9"):
        own, exported = (picture(forge, f"<lora:{each}:{strength}>") for each in (name, f"{name}-lora"))
        assert most(own, exported) <= SAME
        assert mean(own, base) > VISIBLE


def test_both_tags_mean_the_same(forge: Forge) -> None:
    one, other = (forge.picture(f"{WORDS} <{tag}:rotation:0.8>") for tag in ("lora", "spectral"))
    assert np.array_equal(one.pixels, other.pixels)
    for found in (one, other):
        assert "Lora hashes" in found.infotext and "rotation: " in found.infotext


def test_the_order_of_two_files_does_not_matter(forge: Forge, base: np.ndarray) -> None:
    tags = ("<lora:rotation:0.8>", "<lora:norms:0.7>")
    one, other = picture(forge, *tags), picture(forge, *reversed(tags))
    assert most(one, other) <= 1
    assert mean(one, base) > mean(picture(forge, tags[0]), base) / 2
    lora = picture(forge, "<lora:additive-lora:0.5>", "<lora:soda:0.8>")
    assert most(lora, picture(forge, "<lora:soda:0.8>", "<lora:additive:0.5>")) <= SAME


def test_another_strength_needs_no_decomposition(forge: Forge) -> None:
    picture(forge, "<lora:svdiff:0.7>")
    shutil.rmtree(forge.cache)
    picture(forge, "<lora:svdiff:0.4>")
    assert not forge.cache.exists()


def test_a_refused_file_ends_the_generation_with_the_reason(forge: Forge, base: np.ndarray) -> None:
    for _ in range(2):
        found = forge.picture(f"{WORDS} <lora:additive:1> <lora:sdxl:1>")
        assert found.error == (
            "this adapter was trained on SDXL (small), the model here is Stable Diffusion 1.x. "
            "Load a checkpoint of SDXL, or choose another adapter."
        )
    assert np.array_equal(picture(forge), base)


def test_the_routes(forge: Forge) -> None:
    routes = "/spectral-adapters/v1"
    status, found = forge.call(f"{routes}/svdiff")
    assert status == 200 and found["name"] == "svdiff"
    count = len(sample_adapters.layer_keys())
    status, found = forge.call(f"{routes}/svdiff/match")
    assert status == 200 and found["fits"] and found["text"].startswith(f"{count} of {count} layers applied, 0 unused")
    status, found = forge.call(f"{routes}/sdxl/match")
    assert status == 200 and not found["fits"] and "trained on SDXL" in found["text"]
    assert forge.call(f"{routes}/no-such-file")[0] == 404
    status, found = forge.call(f"{routes}/rotation/export", {"to": "lora", "name": "from the route"})
    assert status == 200, found
    assert (forge.loras / f"{found['name']}.safetensors").is_file()
    own, exported = (picture(forge, f"<lora:{each}:1>") for each in ("rotation", found["name"]))
    assert most(own, exported) <= SAME


@pytest.mark.parametrize("mode", ["float8-e4m3fn (fp16 LoRA)", "float8-e4m3fn"])
def test_weights_in_few_bits(mode: str, forge: Forge) -> None:
    forge.store_in(mode)
    try:
        low = picture(forge)
        assert "torch.float8_e4m3fn" in forge.log()
        own = picture(forge, "<lora:rotation:0.8>", "<lora:additive:0.5>")
        exported = picture(forge, "<lora:rotation-lora:0.8>", "<lora:additive-lora:0.5>")
        assert mean(own, low) > VISIBLE
        # Merged into eight bits, a difference in the last digit of a change may round a weight to another number.
        assert most(own, exported) <= SAME if "fp16" in mode else mean(own, exported) < mean(own, low) / 20
        refused = forge.picture(f"{WORDS} <lora:svdiff:1>")
        assert "ask for a portable file" in refused.error
        assert np.array_equal(picture(forge), low)
    finally:
        forge.store_in("Automatic")


def test_the_page_may_reload_its_scripts(forge: Forge, base: np.ndarray) -> None:
    changed = picture(forge, "<lora:soda:1>")
    forge.reload()
    assert forge.call("/tests/runs")[1]["layers"] == 1
    assert np.array_equal(picture(forge, "<spectral:soda:1>"), changed)
    assert np.array_equal(picture(forge), base)
    assert forge.log().count("Spectral Adapters: ready in Forge.") == 2
