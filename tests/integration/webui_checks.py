"""What must hold in every web UI: the pictures of adapters, of their exported LoRAs, and those without."""

import shutil

import numpy as np
import pytest
import sample_adapters
from webui_driver import WebUI

WORDS = "a dog on a beach"
VISIBLE = 1.0  # grey levels in the mean: every sample adapter changes the picture by more
SAME = 2  # grey levels, of any value


def picture(ui: WebUI, *tags: str) -> np.ndarray:
    found = ui.picture(" ".join([WORDS, *tags]))
    assert found.pixels is not None, found.error
    return found.pixels


def most(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


def mean(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


class InEveryWebUI:
    """Tests of a `ui` with sample_adapters' files and the `base` picture, which a test file has as fixtures."""

    def test_the_base_picture_is_worth_comparing(self, ui: WebUI, base: np.ndarray) -> None:
        assert f"Spectral Adapters: ready in {ui.name}." in ui.log()
        assert base.std() > 10
        assert ((base == 0) | (base == 255)).mean() < 0.1

    @pytest.mark.parametrize("name", [*sample_adapters.PROFILES, "norms", "unet-only"])
    def test_every_method_changes_the_picture_and_leaves_it(self, name: str, ui: WebUI, base: np.ndarray) -> None:
        changed = picture(ui, f"<lora:{name}:1>")
        assert mean(changed, base) > VISIBLE
        assert np.array_equal(picture(ui, f"<lora:{name}:0>"), base)
        assert np.array_equal(picture(ui, f"<lora:{name}:1>"), changed)
        assert np.array_equal(picture(ui), base)

    @pytest.mark.parametrize("name", ["additive", "rotation"])
    def test_the_picture_is_that_of_the_exported_lora(self, name: str, ui: WebUI, base: np.ndarray) -> None:
        for strength in ("1", "0.6", "0.5:0.9"):
            own, exported = (picture(ui, f"<lora:{each}:{strength}>") for each in (name, f"{name}-lora"))
            assert most(own, exported) <= SAME
            assert mean(own, base) > VISIBLE

    def test_both_tags_mean_the_same(self, ui: WebUI) -> None:
        one, other = (ui.picture(f"{WORDS} <{tag}:rotation:0.8>") for tag in ("lora", "spectral"))
        assert np.array_equal(one.pixels, other.pixels)
        for found in (one, other):
            assert "Lora hashes" in found.infotext and "rotation: " in found.infotext

    def test_the_order_of_two_files_does_not_matter(self, ui: WebUI, base: np.ndarray) -> None:
        tags = ("<lora:rotation:0.8>", "<lora:norms:0.7>")
        one, other = picture(ui, *tags), picture(ui, *reversed(tags))
        assert most(one, other) <= 1
        assert mean(one, base) > mean(picture(ui, tags[0]), base) / 2
        lora = picture(ui, "<lora:additive-lora:0.5>", "<lora:soda:0.8>")
        assert most(lora, picture(ui, "<lora:soda:0.8>", "<lora:additive:0.5>")) <= SAME

    def test_another_strength_needs_no_decomposition(self, ui: WebUI) -> None:
        picture(ui, "<lora:svdiff:0.7>")
        shutil.rmtree(ui.cache)
        picture(ui, "<lora:svdiff:0.4>")
        assert not ui.cache.exists()

    def test_a_refused_file_ends_the_generation_with_the_reason(self, ui: WebUI, base: np.ndarray) -> None:
        for _ in range(2):
            found = ui.picture(f"{WORDS} <lora:additive:1> <lora:sdxl:1>")
            assert found.error == (
                "this adapter was trained on SDXL (small), the model here is Stable Diffusion 1.x. "
                "Load a checkpoint of SDXL, or choose another adapter."
            )
        assert np.array_equal(picture(ui), base)

    def test_the_routes(self, ui: WebUI) -> None:
        routes = "/spectral-adapters/v1"
        status, found = ui.call(f"{routes}/svdiff")
        assert status == 200 and found["name"] == "svdiff"
        count = found["layers"]
        status, found = ui.call(f"{routes}/svdiff/match")
        assert status == 200 and found["fits"]
        assert found["text"].startswith(f"{count} of {count} layers applied, 0 unused")
        status, found = ui.call(f"{routes}/sdxl/match")
        assert status == 200 and not found["fits"] and "trained on SDXL" in found["text"]
        assert ui.call(f"{routes}/no-such-file")[0] == 404
        status, found = ui.call(f"{routes}/rotation/export", {"to": "lora", "name": "from the route"})
        assert status == 200, found
        assert (ui.loras / f"{found['name']}.safetensors").is_file()
        own, exported = (picture(ui, f"<lora:{each}:1>") for each in ("rotation", found["name"]))
        assert most(own, exported) <= SAME

    def test_the_page_may_reload_its_scripts(self, ui: WebUI, base: np.ndarray) -> None:
        changed = picture(ui, "<lora:soda:1>")
        ui.reload()
        assert ui.call("/tests/runs")[1]["layers"] == 1
        assert np.array_equal(picture(ui, "<spectral:soda:1>"), changed)
        assert np.array_equal(picture(ui), base)
        assert ui.log().count(f"Spectral Adapters: ready in {ui.name}.") == 2
