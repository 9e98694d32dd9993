"""What sd-scripts has written after a step, taken over into the run's own folders under our names."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from ...spectral.errors import SpectralError
from .. import files
from ..checkpoint import ADAPTER, Checkpoints
from ..sample_files import sample_name, save_png
from .wire import STATE, TALLY, Job, Tally

_STEP_STATE = "train_state.json"
# sd-scripts numbers a picture by its prompt; behind it are the time and perhaps the seed.
_SAMPLE = re.compile(r".*_e?\d{6}_(\d{2})_\d{14}(?:_\d+)?\.png")
# Of a step; what it writes at its very end has no number.
_STATES, _ADAPTERS = re.compile(r".*-step\d{8}-state"), re.compile(r".*-step\d{8}\.safetensors")


def checkpoint(checkpoints: Checkpoints, out: Path, tally: Tally, job: Job) -> Path:
    """Make the state and the adapter that lie in `out` the checkpoint of the step. Raises SpectralError."""
    states, adapters = ([path for path in out.iterdir() if name.fullmatch(path.name)] for name in (_STATES, _ADAPTERS))
    if len(states) != 1 or len(adapters) != 1:
        raise SpectralError(
            f"{out}: found {len(states)} states and {len(adapters)} adapters after step {tally.step}, expected one of "
            "each. Leave that folder to sd-scripts, and begin again from the last checkpoint."
        )

    def fill(folder: Path) -> None:
        files.replace(adapters[0], folder / ADAPTER)
        files.replace(states[0], folder / STATE)
        # Where a run was resumed, sd-scripts counts its steps anew.
        _correct(folder / STATE / _STEP_STATE, tally.step)
        stood = {"tally": asdict(tally), "spec": job.spec, "facts": job.facts}
        (folder / TALLY).write_text(json.dumps(stood), encoding="utf-8")

    return checkpoints.adopt(tally.step, fill)


def _correct(path: Path, step: int) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "current_step": step}), encoding="utf-8")


def samples(out: Path, folder: Path, step: int, prompts: list[str]) -> tuple[Path, ...]:
    """Take the pictures that were just made, by their prompts; those written in `folder`."""
    found = {}
    for path in sorted((out / "sample").glob("*.png")):
        match = _SAMPLE.fullmatch(path.name)
        if match and int(match[1]) < len(prompts):
            found[int(match[1])] = path
    written = []
    for number, path in sorted(found.items()):
        with Image.open(path) as picture:
            target = folder / sample_name(step, number + 1)
            save_png(target, picture.convert("RGB"), {"prompt": prompts[number], "step": str(step)})
        os.unlink(path)
        written.append(target)
    return tuple(written)
