"""One prompt that trains an adapter and generates with it, on a full-size checkpoint. About 12 GB of memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_driver import PACK, Comfy, difference, picture_graph
from trainings import give_pictures, jobs, trainer

BASE = "random.safetensors"
LOADER = "SpectralAdapterLoader"
STRENGTHS = {"strength_model": 1.0, "strength_clip": 1.0, "strength_mode": "linear", "on_mismatch": "refuse"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def comfy(comfy_root: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    import random_checkpoints  # brings diffusers, which would slow down collecting every other test

    base = tmp_path_factory.mktemp("full")
    (base / "models" / "checkpoints").mkdir(parents=True)
    checkpoint = random_checkpoints.write(base / "models" / "checkpoints" / BASE, "sd1", "epsilon")
    give_pictures(base)
    with Comfy(comfy_root, comfy_python, base, [PACK]) as server:
        yield server
    checkpoint.unlink()


def test_one_prompt_trains_and_generates_and_the_next_one_trains_nothing(comfy: Comfy) -> None:
    plain = comfy.run(picture_graph(BASE)).picture
    settings = {"checkpoint": BASE, "name": "one prompt", "steps": 2, "resolution": 64, "lr": 0.01}
    graph = picture_graph(BASE, (LOADER, {"adapter": ["30", 0], **STRENGTHS})) | {"30": trainer(**settings)}
    run = comfy.run(graph)
    assert difference(run.picture, plain) > 0.05
    report = run.text["20"]
    assert "0 unused" in report and float(report.split("Match ")[1].split(" %")[0]) >= 99
    again = comfy.run(graph)
    assert again.ok and difference(again.picture, run.picture) == 0
    assert len(jobs(comfy)) == 1
