"""Drives a private web UI: starts a checkout on the CPU with a data folder of its own, makes pictures through its API.

SPECTRAL_<HOST>_DIR is a checkout with what it clones into `repositories`, SPECTRAL_<HOST>_PYTHON the Python it runs
with. The checkout itself is not touched.
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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import random_checkpoints
import small_checkpoint
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import Generator, device

from spectral_adapters.spectral import names

if TYPE_CHECKING:
    from typing import Self  # Python 3.11 has it; the tests run on 3.10 too

PACK = Path(__file__).resolve().parents[2]
START_SECONDS = 300  # some load a model before they answer
RUN_SECONDS = 300
ARGUMENTS = (
    "--api", "--server-name", "127.0.0.1", "--skip-torch-cuda-test", "--skip-python-version-check",
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

        return {"runs": sys.tests_runs, "layers": LAYERS}


script_callbacks.on_app_started(add)
"""


def write_checkpoint(path: Path) -> Path:
    """The small checkpoint of ComfyUI's tests, with an autoencoder and a text encoder as web UIs read them (460 MB)."""
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


class WebUI:
    """One process of a web UI. folder: its data, with checkpoints in models/Stable-diffusion and LoRAs in models/Lora.

    name: as ours calls it. host: in the names of the environment's variables. layers: Python, of `networks`, for how
    often ours is put before the host's own. arguments: of its command line, beside those of all.
    """

    name: str
    host: str
    layers: str
    arguments: tuple[str, ...]

    def __init__(self, folder: Path):
        self.root, self.python, self.folder = Path(self.given("DIR")), self.given("PYTHON"), folder
        self.loras = folder / "models" / "Lora"
        self.cache = folder / "basis_cache"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.process: subprocess.Popen | None = None

    @classmethod
    def given(cls, name: str) -> str:
        """What the environment says for SPECTRAL_<HOST>_<name>; "" without it."""
        return os.environ.get(f"SPECTRAL_{cls.host}_{name}", "")

    @classmethod
    def is_there(cls) -> bool:
        return bool(cls.given("DIR") and cls.given("PYTHON"))

    @classmethod
    def without(cls) -> str:
        return f"SPECTRAL_{cls.host}_DIR and SPECTRAL_{cls.host}_PYTHON name no web UI to test against"

    def environment(self) -> dict[str, str]:
        """What the process needs beside the environment of the tests."""
        return {}

    def __enter__(self) -> "Self":
        own = self.folder / "extensions" / "spectral-adapters"
        tests = self.folder / "extensions" / "tests" / "scripts"
        for made in (self.loras, tests, own.parent):
            made.mkdir(parents=True, exist_ok=True)
        own.symlink_to(PACK)
        (tests / "reload_route.py").write_text(RELOAD.replace("LAYERS", self.layers))
        command = [
            self.python, "webui.py", *ARGUMENTS, *self.arguments, "--port", str(self.port),
            "--data-dir", str(self.folder), "--ckpt-dir", str(self.folder / "models" / "Stable-diffusion"),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "SPECTRAL_ADAPTERS_CACHE": str(self.cache),
            **self.environment(),
        }
        with open(self.folder / "server.log", "wb") as log:
            self.process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=log, stderr=log)
        with ExitStack() as started:
            started.callback(self.__exit__)  # a start that fails leaves no process behind
            self.wait()
            started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def wait(self) -> None:
        """Until the extensions' routes answer: they come some seconds after the page, and after the web UI's own."""
        deadline = time.monotonic() + START_SECONDS
        while self.call("/tests/runs")[0] != 200:
            assert self.process.poll() is None, f"the web UI ended while starting:\n{self.log()[-4000:]}"
            assert time.monotonic() < deadline, (
                f"the web UI was not ready after {START_SECONDS} s:\n{self.log()[-4000:]}"
            )
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
            return Picture(None, error=answer.get("message") or answer.get("errors", ""))
        with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(np.int16)
        return Picture(pixels, infotext=json.loads(answer["info"])["infotexts"][0])

    def reload(self) -> None:
        """The page's "Reload UI"."""
        runs = self.call("/tests/runs")[1]["runs"]
        self.call("/tests/reload", {})
        deadline = time.monotonic() + START_SECONDS
        while self.call("/tests/runs")[1].get("runs") != runs + 1:
            assert time.monotonic() < deadline, f"its scripts did not run again:\n{self.log()[-4000:]}"
            time.sleep(0.5)
