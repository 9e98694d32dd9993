"""A job as pages see it: plain values made from its folder, the same for every page, tab and node."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files
from .addresses import THUMB, both, file_address
from .jobs.job import LOG, SILENT
from .mixing import PICTURE
from .overview import LOSS, SHEET
from .sample_files import read_samples

if TYPE_CHECKING:
    from .jobs.course import Course
    from .jobs.job import Entry

_TAIL = 8000  # bytes of a child's log that pages get
_SEEN = ("loss", "lr", "rate", "eta", "memory", "phase", "progress", "best")


def summary(entry: Entry, course: Course) -> dict[str, Any]:
    """What lists show of a job."""
    job, state, seen = entry.job, entry.state, course.summary()
    return {
        **{name: getattr(job, name) for name in ("id", "kind", "name", "created", "parent", "engine")},
        **{name: getattr(state, name) for name in ("status", "text", "reason", "started", "ended")},
        "device": state.device or job.device,
        "base": job.request.get("base") or _base_name(job.spec.get("base")),
        **{name: job.spec.get(name) for name in ("method", "preset", "trigger")},
        "step": seen["step"] or state.step or 0,
        "steps": seen["steps"] or (job.spec.get("steps") if job.kind == "train" else None),
        **{name: seen[name] for name in _SEEN},
        "resumable": bool(state.resumable),
        "adapter": None if job.kind in ("grid", "conflict") else adapter(state.adapter),
        "cover": cover(entry),
        "unresponsive": entry.silence() > SILENT,
    }


def detail(entry: Entry, course: Course, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that a job's page shows besides its curve; `tasks` are the summaries of the grids and exports made of it."""
    curve, seen = course.curve(), course.summary()
    return {
        **summary(entry, course),
        "request": entry.job.request,
        "spec": entry.job.spec,
        "plan": seen["plan"],
        "notices": seen["notices"],
        "prompts": entry.job.spec.get("sample_prompts") or [],
        "samples": samples(entry, curve["samples"]),
        "validations": curve["validations"],
        "checkpoints": checkpoints(entry, curve["checkpoints"]),
        "pictures": pictures(entry),
        "tasks": list(tasks),
        "folder": str(entry.folder),
        "log": log_tail(entry.folder / LOG),
    }


def samples(entry: Entry, told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The sample pictures that count, by step and number; those that a resume took back are left out."""
    prompts = {
        Path(path).name: prompt for sampled in told for path, prompt in zip(sampled["paths"], sampled["prompts"])
    }
    return [
        {
            "step": found.step,
            "number": found.number,
            "prompt": prompts[found.path.name],
            **both(entry.id, found.path, "samples", found.path.name),
        }
        for found in read_samples(entry.run / "samples")
        if found.path.name in prompts
    ]


def checkpoints(entry: Entry, told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The checkpoints that are still there."""
    kept = (found for found in told if (entry.run / "checkpoints" / found["name"]).is_dir())
    return [{name: found[name] for name in ("step", "best", "name")} for found in kept]


def pictures(entry: Entry) -> dict[str, str | None]:
    """The addresses of the pictures that a run draws of itself."""
    return {name.removesuffix(".png"): file_address(entry.id, entry.run / name, name) for name in (LOSS, SHEET)}


def grid(entry: Entry) -> dict[str, Any]:
    """A grid's axes and cells, the pictures by their addresses. Empty until the first picture is made."""
    try:
        found = json.loads((entry.run / "grid.json").read_bytes())
    except FileNotFoundError:
        return {"axes": {"checkpoints": [], "strengths": [], "prompts": []}, "cells": []}
    folder = entry.run / "grid"
    cells = [{**cell, **both(entry.id, folder / cell["name"], "grid", cell["name"])} for cell in found["cells"]]
    return {**found, "cells": cells}


def cover(entry: Entry) -> str | None:
    """A small picture that stands for the job: the last sample of the first prompt, a grid's sheet, a heat map."""
    if entry.job.kind == "conflict":
        return file_address(entry.id, entry.run / PICTURE, PICTURE, size=THUMB)
    first = [found for found in read_samples(entry.run / "samples") if found.number == 1]
    if not first:
        return file_address(entry.id, entry.run / SHEET, SHEET, size=THUMB)
    return file_address(entry.id, first[-1].path, "samples", first[-1].path.name, size=THUMB)


def adapter(path: str | None) -> dict[str, Any] | None:
    """The finished adapter file; None where there is none, or no longer."""
    if not isinstance(path, str) or not os.path.isfile(path):
        return None
    return {"name": Path(path).name, "path": path, "bytes": os.path.getsize(path)}


def log_tail(path: Path) -> str | None:
    """The last lines that the child printed."""
    try:
        return files.tail(path, _TAIL) or None
    except OSError:
        return None


def _base_name(base: Any) -> str | None:
    return Path(base).name if isinstance(base, str) else None
