"""Drives a private Forge: starts a checkout on the CPU with a data folder of its own, makes pictures through its API.

SPECTRAL_FORGE_DIR is a checkout of Forge with what it clones into `repositories`, SPECTRAL_FORGE_PYTHON the Python it
runs with. The checkout itself is not touched.
"""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import random_checkpoints
import small_checkpoint
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import Generator, device

from spectral_adapters.spectral import names

PACK = Path(__file__).resolve().parents[2]
WITHOUT = "SPECTRAL_FORGE_DIR and SPECTRAL_FORGE_PYTHON name no Forge to test against"
START_SECONDS = 150
RUN_SECONDS = 300
ARGUMENTS = (
    "--api", "--server-name", "127.0.0.1", "--always-cpu", "--skip-torch-cuda-test", "--skip-python-version-check",
    "--skip-version-check", "--no-download-sd-model", "--no-hashing",
)  # fmt: skip
# An extension of the tests' own: a route for the page's "Reload UI", and how often the scripts were run.
RELOAD = """
import sys
from modules import script_callbacks, shared

sys.tests_runs = getattr(sys, "tests_runs", 0) + 1


def add(_, app):
    @app.post("/tests/reload")
    def reload():
        shared.state.request_restart()
        return {}

    @app.get("/tests/runs")
    def runs():
        import networks

        own = networks.load_lora_for_models.spectral_adapters_original
        return {"runs": sys.tests_runs, "layers": 1 + hasattr(own, "spectral_adapters_original")}


script_callbacks.on_app_started(add)
"""


def given(name: str) -> str:
    """What the environment says for SPECTRAL_FORGE_<name>; "" without it."""
    return os.environ.get(f"SPECTRAL_FORGE_{name}", "")


def is_there() -> bool:
    return bool(given("DIR") and given("PYTHON"))


def write_checkpoint(path: Path) -> Path:
    """The small checkpoint of ComfyUI's tests, with an autoencoder and a text encoder as Forge reads them (460 MB)."""
    state, text = small_checkpoint.unet_state(), small_checkpoint.Weights(2)
    small_checkpoint.text_encoder(text)
    state |= {key: value.half() for key, value in text.state.items()}
    random, config = Generator().manual_seed(3), json.loads((random_checkpoints.CONFIGS / "sd1.json").read_text())
    with device("meta"):
        vae = AutoencoderKL(**config["vae"])
    keys = {module.diffusers: module.ldm for module in names.vae_modules()}
    for key, shape in random_checkpoints._ldm(vae, names.VAE_ROOT, keys):
        state[key] = random_checkpoints.value(key, shape, random, False).half()
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@dataclass(frozen=True)
class Picture:
    """One answer: the picture with its infotext, or the error as the API words it."""

    pixels: np.ndarray | None
    infotext: str = ""
    error: str = ""


class Forge:
    """One Forge process. folder: its data, with checkpoints in models/Stable-diffusion and LoRAs in models/Lora."""

    def __init__(self, folder: Path):
        self.root, self.python, self.folder = Path(given("DIR")), given("PYTHON"), folder
        self.loras = folder / "models" / "Lora"
        self.cache = folder / "basis_cache"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Forge":
        own = self.folder / "extensions" / "spectral-adapters"
        tests = self.folder / "extensions" / "tests" / "scripts"
        for made in (self.loras, tests, own.parent):
            made.mkdir(parents=True, exist_ok=True)
        own.symlink_to(PACK)
        (tests / "reload_route.py").write_text(RELOAD)
        command = [
            self.python, "webui.py", *ARGUMENTS, "--port", str(self.port), "--data-dir", str(self.folder),
            "--ckpt-dir", str(self.folder / "models" / "Stable-diffusion"),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "SPECTRAL_ADAPTERS_CACHE": str(self.cache),
        }
        with open(self.folder / "server.log", "wb") as log:
            self.process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=log, stderr=log)
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def wait(self) -> None:
        """Until the API answers: it comes some seconds after the page."""
        deadline = time.monotonic() + START_SECONDS
        while self.call("/sdapi/v1/sd-models")[0] != 200:
            assert self.process.poll() is None, f"Forge ended while starting:\n{self.log()[-4000:]}"
            assert time.monotonic() < deadline, f"Forge was not ready after {START_SECONDS} s:\n{self.log()[-4000:]}"
            time.sleep(0.2)

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def call(self, path: str, body: dict | None = None) -> tuple[int, dict]:
        """Status and JSON of a GET, or of a POST where there is a body; status 0 where nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=RUN_SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            return refused.code, json.loads(refused.read())
        except OSError:
            return 0, {}

    def picture(self, prompt: str, **more: object) -> Picture:
        wanted = {"prompt": prompt, "seed": 1, "steps": 2, "width": 64, "height": 64}
        status, answer = self.call("/sdapi/v1/txt2img", wanted | {"sampler_name": "Euler", "cfg_scale": 1} | more)
        if status != 200:
            return Picture(None, error=answer.get("message", ""))
        with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(np.int16)
        return Picture(pixels, infotext=json.loads(answer["info"])["infotexts"][0])

    def reload(self) -> None:
        """The page's "Reload UI"."""
        runs = self.call("/tests/runs")[1]["runs"]
        self.call("/tests/reload", {})
        deadline = time.monotonic() + START_SECONDS
        while self.call("/tests/runs")[1].get("runs") != runs + 1:
            assert time.monotonic() < deadline, f"Forge's scripts did not run again:\n{self.log()[-4000:]}"
            time.sleep(0.5)

    def store_in(self, mode: str) -> None:
        """ "Diffusion in Low Bits" of the page. The amount of memory must change too for the API to load anew."""
        self._megabytes = getattr(self, "_megabytes", 1500) + 10
        status, _ = self.call(
            "/sdapi/v1/options", {"forge_unet_storage_dtype": mode, "forge_inference_memory": self._megabytes}
        )
        assert status == 200
