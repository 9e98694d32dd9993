"""Trainings in a running ComfyUI: the trainer's widgets, its jobs, and waiting for them."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_driver import PACK, Comfy

PICTURES = PACK / "assets" / "demo" / "banded_fish"
TRAINER, JOB = "SpectralAdapterTrainer", "SpectralAdapterJob"
PATIENCE = 240.0  # seconds; starting a child takes about five, more where others work on the machine
ENDED = ("finished", "stopped", "interrupted", "failed")

WIDGETS = {
    "checkpoint": "tiny (bundled)",
    "dataset": "input/fish",
    "preset": "none",
    "method": "rotation",
    "method.rank": 2,
    "method.columns": "",
    "steps": 8,
    "name": "fish",
    "trigger": "sks fish",
    "wait": True,
    "training_seed": 0,
    "resolution": 0,
    "targets": "cross-attention",
    "lr": 0.0,
    "sample_prompts": "",
    "device": "cpu",
    "unload_models": True,
}
LONG = 100_000  # steps: more than any test waits for


def give_pictures(base: Path) -> None:
    """Puts the dataset input/fish into ComfyUI's base folder."""
    give_pictures_to(base / "input" / "fish")


def give_pictures_to(folder: Path) -> None:
    shutil.copytree(PICTURES, folder)


def trainer(**widgets: Any) -> dict:
    """The trainer node with these widgets over the usual ones."""
    return {"class_type": TRAINER, "inputs": WIDGETS | widgets}


def job_node(job: Any = "") -> dict:
    return {"class_type": JOB, "inputs": {"job": job}}


def jobs(comfy: Comfy) -> list[dict]:
    """Summaries of all jobs, the newest first."""
    return comfy.get("/spectral_adapters/state")["jobs"]


def named(comfy: Comfy, name: str) -> dict:
    """The newest job of that name."""
    return next(job for job in jobs(comfy) if job["name"] == name)


def wait_until(found: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """What `found` gives once that is true."""
    deadline = time.monotonic() + patience
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {patience:.0f} s: {what}"
        time.sleep(0.2)
    return value


def wait_for_status(comfy: Comfy, name: str, *statuses: str) -> dict:
    def look() -> dict | None:
        job = named(comfy, name)
        if job["status"] in ENDED and job["status"] not in statuses:
            raise AssertionError(f"{name} is {job['status']}: {job['text']}")
        return job if job["status"] in statuses else None

    return wait_until(look, f"{name} is {' or '.join(statuses)}")


def wait_for_step(comfy: Comfy, name: str, step: int) -> dict:
    """The job once it has done that many steps."""

    def look() -> dict | None:
        found = [job for job in jobs(comfy) if job["name"] == name]
        return found[0] if found and found[0]["step"] >= step and found[0]["status"] == "running" else None

    return wait_until(look, f"{name} reaches step {step}")
