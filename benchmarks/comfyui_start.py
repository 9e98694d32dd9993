"""Seconds until ComfyUI answers, with the pack and without, taken in turns.

    COMFYUI_DIR=... COMFYUI_PYTHON=... python benchmarks/comfyui_start.py [--turns 7] [--pictures 1000] [--label 0.33.0]

Each turn starts ComfyUI twice on one base folder, with `pictures` pictures in its input folder and ten finished jobs.
Reported are the medians, and the median of the differences within a turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "integration"))
from comfy_driver import Comfy  # noqa: E402 (found only now)

RESULTS = Path(__file__).parent / "results"
PICTURE = ROOT / "assets" / "demo" / "banded_fish" / "1.png"


def fill(base: Path, pictures: int) -> None:
    """A user's folders: pictures in input, finished jobs."""
    from spectral_adapters.trainer.jobs.job import write_state
    from spectral_adapters.trainer.jobs.store import JobStore

    (base / "input").mkdir(parents=True)
    for number in range(pictures):
        shutil.copy(PICTURE, base / "input" / f"{number}.png")
    store = JobStore(base / "user" / "spectral_adapters")
    for number in range(10):
        entry = store.begin(store.add("train", f"job {number}", {"base": "tiny", "steps": 100, "out": "x"}).id, "cpu")
        write_state(entry.folder, entry.state.becomes("finished", text="Finished 100 steps in 9 s."))


def start(base: Path, packs: list[Path]) -> float:
    """Seconds from the start of the process to its first answer."""
    place = base / "custom_nodes" / "spectral_adapters"
    if place.is_symlink():
        place.unlink()
    root, python = Path(os.environ["COMFYUI_DIR"]), os.environ.get("COMFYUI_PYTHON", sys.executable)
    comfy = Comfy(root, python, base, packs)
    began = time.monotonic()
    with comfy:
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--label", default="ComfyUI")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        fill(base, args.pictures)
        start(base, [ROOT])  # the first start makes the database and compiles Python files
        for turn in range(args.turns):
            # Every other turn the other way round, so that a machine growing busier favours neither.
            for name in ("without", "with") if turn % 2 else ("with", "without"):
                seconds[name].append(round(start(base, [ROOT] if name == "with" else []), 2))
    slower = median(b - a for a, b in zip(seconds["without"], seconds["with"]))
    found = {
        "comfyui": args.label,
        "pictures": args.pictures,
        "seconds": seconds,
        "median_without": median(seconds["without"]),
        "median_with": median(seconds["with"]),
        "median_difference": round(slower, 2),
    }
    print(json.dumps(found, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"comfyui_start_{args.label}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
