"""Finds a ComfyUI to test against. Without one, every test of this folder that needs it is skipped.

COMFYUI_DIR points to ComfyUI's folder (default: ~/comfy/ComfyUI, or the one whose custom_nodes this pack lies in);
COMFYUI_PYTHON is the interpreter ComfyUI runs with (default: the one that runs the tests).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
PACK = HERE.parent.parent
# The helpers of this folder are plain modules; the tests' import mode puts nothing on the path by itself.
sys.path.insert(0, str(HERE))

if TYPE_CHECKING:
    from comfy_driver import Comfy
    from playwright.sync_api import Browser

SKIP = (
    "no ComfyUI found: clone https://github.com/comfyanonymous/ComfyUI, install its requirements, then set COMFYUI_DIR "
    "to its folder and COMFYUI_PYTHON to its interpreter"
)


def find_comfyui() -> Path | None:
    candidates = [os.environ.get("COMFYUI_DIR"), Path.home() / "comfy" / "ComfyUI", PACK.parent.parent]
    for folder in candidates:
        if folder and (Path(folder) / "comfy" / "model_patcher.py").is_file():
            return Path(folder).resolve()
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_comfyui() is None:
        for item in items:
            if HERE in item.path.parents and "comfy_root" in item.fixturenames:
                item.add_marker(pytest.mark.skip(reason=SKIP))


@pytest.fixture(scope="session")
def comfy_root() -> Path:
    return find_comfyui()


@pytest.fixture(scope="session")
def comfy_python() -> str:
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints for all tests, small.safetensors and another fine-tune, changed.safetensors; files in adapters/."""
    import sample_adapters
    import small_checkpoint

    folder = tmp_path_factory.mktemp("library")
    small_checkpoint.write(folder / "small.safetensors")
    small_checkpoint.write(folder / "changed.safetensors", change=0.05)
    (folder / "adapters").mkdir()
    sample_adapters.write_all(folder / "adapters", load_file(folder / "small.safetensors"))
    return folder


@pytest.fixture(scope="module")
def stocked(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder for ComfyUI with the library's checkpoints, LoRAs and adapters."""
    base = tmp_path_factory.mktemp("comfy")
    for folder, pattern in (("checkpoints", "*.safetensors"), ("loras", "adapters/*-lora.safetensors")):
        (base / "models" / folder).mkdir(parents=True)
        for file in library.glob(pattern):
            (base / "models" / folder / file.name).symlink_to(file)
    shutil.copytree(library / "adapters", base / "models" / "spectral_adapters")
    return base


@pytest.fixture(scope="module")
def comfy(comfy_root: Path, comfy_python: str, stocked: Path) -> "Iterator[Comfy]":
    """A running ComfyUI with the pack and the library's files."""
    from comfy_driver import Comfy

    with Comfy(comfy_root, comfy_python, stocked, [PACK]) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from chromium import launched

    with launched() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def inside(comfy_root: Path, comfy_python: str, library: Path) -> dict[str, str]:
    """Runs `checks_inside.py` in ComfyUI's interpreter: name of check -> "ok", or what went wrong."""
    result = library / "inside.json"
    command = [comfy_python, HERE / "checks_inside.py", comfy_root, PACK, library, result]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(result.read_text())
