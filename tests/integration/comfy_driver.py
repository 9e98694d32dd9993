"""Drives a private, headless ComfyUI: starts it on the CPU with its own folders, runs prompts, collects pictures."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

PACK = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints", "models/loras")
START_SECONDS = 180
RUN_SECONDS = 300


@dataclass(frozen=True)
class Run:
    """What came of one prompt: `pictures` by node id, `text` shown on nodes, or `error` as the user reads it."""

    ok: bool
    error: str = ""
    pictures: list[np.ndarray] = field(default_factory=list)
    text: dict[str, str] = field(default_factory=dict)
    cached: tuple[str, ...] = ()

    @property
    def picture(self) -> np.ndarray:
        assert self.ok, self.error
        return self.pictures[0]


class Comfy:
    """One ComfyUI process. `packs` are linked into its custom_nodes; its own checkout is not touched."""

    def __init__(self, root: Path, python: str, base: Path, packs: list[Path], arguments: tuple[str, ...] = ()):
        self.root, self.python, self.base, self.arguments = root, python, base, arguments
        self.packs = packs
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Comfy":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        # ComfyUI lists custom_nodes without checking that it exists.
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for pack in self.packs:
            place = self.base / "custom_nodes" / "spectral_adapters"
            if not place.exists():
                place.symlink_to(pack)
        command = [
            self.python, str(self.root / "main.py"), "--cpu", "--port", str(self.port),
            "--base-directory", str(self.base), "--database-url", f"sqlite:///{self.base}/user/comfyui.db",
            "--disable-auto-launch", "--disable-api-nodes", *self.arguments,
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "SPECTRAL_ADAPTERS_CACHE": str(self.base / "basis_cache"),
        }
        with open(self.base / "server.log", "wb") as log:
            self.process = subprocess.Popen(command, cwd=self.base, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, f"ComfyUI ended while starting:\n{self.log()[-4000:]}"
            assert time.monotonic() < deadline, f"ComfyUI was not ready after {START_SECONDS} s:\n{self.log()[-4000:]}"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def kill(self) -> None:
        """End it as a crash would: at once, without a word."""
        self.process.kill()
        self.process.wait(10)

    def log(self) -> str:
        return (self.base / "server.log").read_text(errors="replace")

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict) -> dict:
        """The answer's JSON, whatever its status; an empty dict where there is no body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                raw = answer.read()
        except urllib.error.HTTPError as refused:
            raw = refused.read()
        return json.loads(raw) if raw else {}

    def call(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body of a GET, or of a POST where there is a body; with exactly these headers besides Host."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    def queue(self, graph: dict) -> dict:
        # Without a client, older ComfyUI keeps no outputs of a prompt that came from its cache as a whole.
        return self.post("/prompt", {"prompt": graph, "client_id": "tests"})

    def run(self, graph: dict) -> Run:
        """Runs an API-format prompt to its end. Where validation refuses it, the reasons are the `error`."""
        answer = self.queue(graph)
        if "prompt_id" not in answer:
            return Run(False, error=json.dumps(answer))
        return self.wait(answer["prompt_id"])

    def wait(self, prompt: str) -> Run:
        deadline = time.monotonic() + RUN_SECONDS
        while not (entry := self.get(f"/history/{prompt}").get(prompt)):
            assert self.process.poll() is None, f"ComfyUI ended during a prompt:\n{self.log()[-4000:]}"
            assert time.monotonic() < deadline, f"the prompt did not end within {RUN_SECONDS} s"
            time.sleep(0.05)
        return self._collect(entry)

    def _collect(self, entry: dict) -> Run:
        messages = dict(entry["status"]["messages"])
        error = messages.get("execution_error", {}).get("exception_message", "")
        if "execution_interrupted" in messages:
            error = "interrupted"
        pictures, text = [], {}
        for node, output in entry["outputs"].items():
            for image in output.get("images", []):
                with Image.open(self.base / image["type"] / image["subfolder"] / image["filename"]) as opened:
                    pictures.append(np.asarray(opened.convert("RGB")).astype(np.int16))
            if "text" in output:
                text[node] = "\n".join(output["text"])
        cached = tuple(messages.get("execution_cached", {}).get("nodes", ()))
        return Run(entry["status"]["status_str"] == "success", error, pictures, text, cached)


def picture_graph(checkpoint: str, *loaders: tuple[str, dict], steps: int = 2, seed: int = 1) -> dict:
    """An API prompt: checkpoint -> each of `loaders` -> sampler -> picture.

    A loader is (node class, inputs other than model and clip); their nodes get the ids "20", "21", ...
    """
    graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}}}
    model, clip = ["1", 0], ["1", 1]
    for index, (kind, inputs) in enumerate(loaders):
        node = str(20 + index)
        graph[node] = {"class_type": kind, "inputs": {"model": model, "clip": clip, **inputs}}
        model, clip = [node, 0], [node, 1]
    for node, words in (("2", "a dog on a beach"), ("3", "")):
        graph[node] = {"class_type": "CLIPTextEncode", "inputs": {"text": words, "clip": clip}}
    graph["4"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    sampling = {
        "seed": seed,
        "steps": steps,
        "cfg": 1.0,
        "denoise": 1.0,
        "sampler_name": "euler",
        "scheduler": "normal",
    }
    links = {"model": model, "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    graph["5"] = {"class_type": "KSampler", "inputs": sampling | links}
    graph["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}}
    graph["7"] = {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "picture"}}
    return graph


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in grey levels (0-255)."""
    return float(np.abs(a - b).mean())
