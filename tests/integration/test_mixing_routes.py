"""The panel's comparisons and fusions in a running ComfyUI, with its folders and its LoRA files."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_driver import PACK, Comfy

from spectral_adapters.spectral.open import open_source

ROUTES = "/spectral_adapters"


@pytest.fixture(scope="module")
def comfy(
    comfy_root: Path, comfy_python: str, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("comfy")
    for folder in ("checkpoints", "loras/styles", "spectral_adapters"):
        (base / "models" / folder).mkdir(parents=True)
    (base / "models" / "checkpoints" / "small.safetensors").symlink_to(library / "small.safetensors")
    for name in ("additive", "svdiff"):
        shutil.copy(library / "adapters" / f"{name}.safetensors", base / "models" / "spectral_adapters")
    shutil.copy(library / "adapters" / "additive-lora.safetensors", base / "models" / "loras" / "styles")
    with Comfy(comfy_root, comfy_python, base, [PACK]) as server:
        yield server


def finished(comfy: Comfy, id: str) -> dict:
    deadline = time.monotonic() + 180
    while (job := comfy.get(f"{ROUTES}/jobs/{id}"))["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.3)
    assert job["status"] == "finished", job["text"]
    return job


def test_adapters_and_loras_are_compared(comfy: Comfy) -> None:
    listed = {row["name"]: row for row in comfy.get(f"{ROUTES}/adapters")}
    assert {name: row["kind"] for name, row in listed.items()} == {
        "additive.safetensors": "adapter",
        "svdiff.safetensors": "adapter",
        "loras/styles/additive-lora.safetensors": "lora",
    }
    status, answer = comfy.call(
        f"{ROUTES}/mix/conflict",
        json.dumps({"adapters": list(listed), "base": "missing.safetensors"}).encode(),
        {"Content-Type": "application/json"},
    )
    assert status == 400 and b"small.safetensors" in answer, "the checkpoints that there are"
    asked = {"adapters": list(listed)}
    job = finished(comfy, comfy.post(f"{ROUTES}/mix/conflict", asked)["id"])
    found = comfy.get(f"{ROUTES}/jobs/{job['id']}/conflict")
    assert not found["based"] and [m["name"] for m in found["adapters"]] == ["additive", "svdiff", "additive-lora"]
    # The LoRA was exported from the additive adapter.
    assert found["cosine"][0][2] == pytest.approx(1, abs=1e-3)
    assert "additive and additive-lora make the same change" in found["sentence"]
    status, picture = comfy.call(found["picture"]["url"])
    assert status == 200 and picture.startswith(b"\x89PNG")


def test_what_is_fused_is_found_where_comfyui_looks_for_it(comfy: Comfy) -> None:
    rows = [{"name": "additive.safetensors"}, {"name": "loras/styles/additive-lora.safetensors", "weight": -0.5}]
    asked = {"adapters": rows, "name": "half", "to": "lora"}
    job = finished(comfy, comfy.post(f"{ROUTES}/mix/fuse", asked)["id"])
    path = Path(job["adapter"]["path"])
    assert path == comfy.base / "output" / "loras" / "half.safetensors"
    assert open_source(path).kind == "LoCon", "the file has convolutions"
    assert "loras/half.safetensors" in {row["name"] for row in comfy.get(f"{ROUTES}/adapters")}
    lora = comfy.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
    assert "half.safetensors" in str(lora)
    asked = {"adapters": rows[:1], "name": "alone", "to": "native"}
    job = finished(comfy, comfy.post(f"{ROUTES}/mix/fuse", asked)["id"])
    assert Path(job["adapter"]["path"]) == comfy.base / "output" / "spectral_adapters" / "alone.safetensors"
    loader = comfy.get("/object_info/SpectralAdapterLoader")["SpectralAdapterLoader"]
    assert "alone.safetensors" in str(loader)
