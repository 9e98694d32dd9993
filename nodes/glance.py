"""A job at a glance: a line of text, its loss plot, its latest samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..trainer.plot import SIZE, plot_losses
from ..trainer.words import duration_text

if TYPE_CHECKING:
    from ..trainer.jobs.course import Course
    from ..trainer.jobs.job import Entry

PAPER = "#fafaf8"


def line(summary: Mapping[str, Any]) -> str:
    """How a job stands, in a sentence. `summary`: see `Studio.summary`."""
    name, status = summary["name"], summary["status"]
    if status == "running" and summary["loss"] is not None and summary["phase"] in (None, "training"):
        return f"{name}: {', '.join(_course(summary))}."
    if status == "running" and summary["phase"]:
        return f"{name}: {summary['phase']}{_share(summary['progress'])}."
    return f"{name}: {status}. {summary['text']}".strip()


def _course(summary: Mapping[str, Any]) -> list[str]:
    parts = [f"step {summary['step']:,} of {summary['steps']:,}", f"loss {summary['loss']:.4f}"]
    rate = summary["rate"]
    if rate:
        parts.append(f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s per step")
    if summary["eta"]:
        parts.append(f"{duration_text(summary['eta'])} left")
    return parts


def _share(progress: Mapping[str, Any] | None) -> str:
    return f", {progress['done']} of {progress['total']}" if progress else ""


def loss_picture(course: Course | None, title: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """The loss plot up to now; an empty one for a job that has not begun."""
    if course is None:
        return plot_losses((), title=title, size=size)
    curve = course.curve()
    checkpoints = curve["checkpoints"]
    return plot_losses(
        _pairs(curve["steps"], curve["loss"]),
        _pairs(*zip(*curve["validations"])) if curve["validations"] else (),
        best=next((each["step"] for each in checkpoints if each["best"]), None),
        checkpoints=[each["step"] for each in checkpoints],
        rates=_pairs(curve["steps"], curve["lr"]),
        title=title,
        size=size,
    )


def _pairs(steps: list[int], values: list[float | None]) -> list[tuple[int, float]]:
    """(step, value) pairs; what was no finite number is not one here either."""
    return [(step, math.nan if value is None else value) for step, value in zip(steps, values)]


def latest_samples(entry: Entry, course: Course | None) -> list[Image.Image]:
    """The pictures of the last sampled step, in the order of their prompts; those that are no longer there left out."""
    sampled = course.curve()["samples"] if course is not None else []
    names = [Path(path).name for path in sampled[-1]["paths"]] if sampled else []
    files = [entry.run / "samples" / name for name in names]
    return [_opened(file) for file in files if file.is_file()]


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")
