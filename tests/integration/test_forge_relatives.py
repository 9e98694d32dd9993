"""Adapters in a real reForge and a real Forge Classic: all that holds in every web UI.

    SPECTRAL_REFORGE_DIR=... SPECTRAL_REFORGE_PYTHON=... \\
        python -m pytest -m slow tests/integration/test_forge_relatives.py

and the same with SPECTRAL_FORGE_CLASSIC: 3 GB of memory, about two minutes for each on two cores. See `forge_driver`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sample_adapters
from forge_driver import ForgeClassic, ReForge
from safetensors.torch import load_file
from webui_checks import InEveryWebUI, picture
from webui_driver import WebUI, write_checkpoint

pytestmark = pytest.mark.slow
# Another kind of preview asks for a file from the network.
SETTINGS = {"show_progress_type": "Approx cheap"}


def _running(kind: type[WebUI], folder: Path) -> Iterator[WebUI]:
    models = folder / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    running = kind(folder)
    running.loras.mkdir()
    sample_adapters.write_all(running.loras, load_file(write_checkpoint(models / "small.safetensors")))
    with running:
        yield running


@pytest.mark.skipif(not ReForge.is_there(), reason=ReForge.without())
class TestReForge(InEveryWebUI):
    @pytest.fixture(scope="class")
    def ui(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
        yield from _running(ReForge, tmp_path_factory.mktemp("reforge"))

    @pytest.fixture(scope="class")
    def base(self, ui: WebUI) -> np.ndarray:
        return picture(ui)


@pytest.mark.skipif(not ForgeClassic.is_there(), reason=ForgeClassic.without())
class TestForgeClassic(InEveryWebUI):
    @pytest.fixture(scope="class")
    def ui(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
        yield from _running(ForgeClassic, tmp_path_factory.mktemp("classic"))

    @pytest.fixture(scope="class")
    def base(self, ui: WebUI) -> np.ndarray:
        return picture(ui)
