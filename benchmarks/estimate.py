"""The estimate before training against the plan of the training itself, on SD1.5's sizes, and how long it takes.

    python benchmarks/estimate.py [--base FILE] [--tokenizer FOLDER]

The base is a random checkpoint with SD1.5's architecture (2.1 GB, written to a temporary folder) or the given file.
Estimated: through `Estimator`, in its own process, as a page asks; "first" includes the start of that process,
"further" is the same run with another rank or batch, "again" with other steps. The plan: a dry run in a process of its
own, whose step is timed on this machine. Times of a busy machine are worth little: see "cpu" for the estimator's own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
from common import write
from PIL import Image

from spectral_adapters.trainer.estimate import Estimator
from spectral_adapters.trainer.spec import TrainSpec

TESTS = Path(__file__).parent.parent / "tests"
CASES = [
    {"method": "additive", "batch_size": 1},
    {"method": "additive", "batch_size": 2, "text_targets": "attention"},
    {"method": "svdiff", "precision": "bf16", "batch_size": 2, "gradient_checkpointing": True},
    {"method": "rotation", "rank": 24, "batch_size": 2, "sample_prompts": ["a photo of a mug"]},
]
FURTHER = [{"rank": 4}, {"rank": 5}, {"batch_size": 3}]


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (600, 600), (40 * i, 90, 160)).save(folder / f"{i}.png")
    return folder


def plan(spec: TrainSpec) -> dict:
    """Of a dry run in a process of its own, so that its memory is given back."""
    code = (
        "import json, sys; from spectral_adapters.trainer.spec import TrainSpec; from dataclasses import asdict\n"
        "from spectral_adapters.trainer.loop import train; from spectral_adapters.spectral.cache import BasisCache\n"
        "found = []; train(TrainSpec.from_mapping(json.loads(sys.argv[1])), found.append, cache=BasisCache(), "
        "dry_run=True)\n"
        "print(json.dumps(next(asdict(e) for e in found if type(e).__name__ == 'Plan'), default=str))"
    )
    command = [sys.executable, "-c", code, json.dumps(spec.as_json())]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


class Timed:
    """An estimator and the time that its answers take: of the clock, and of its own process."""

    def __init__(self, home: Path):
        self.estimator = Estimator(home)

    def ask(self, spec: TrainSpec) -> tuple[dict, dict[str, float]]:
        before, started = self._cpu(), time.perf_counter()
        found = self.estimator.ask(spec.as_json(), "cpu")
        wall = time.perf_counter() - started
        return found, {"seconds": round(wall, 2), "cpu": round(self._cpu() - before, 2)}

    def _cpu(self) -> float:
        process = self.estimator._process
        if process is None:
            return 0.0
        times = psutil.Process(process._popen.pid).cpu_times()
        return times.user + times.system


def compare(spec: TrainSpec, home: Path) -> dict:
    timed = Timed(home)
    found, first = timed.ask(spec)
    further = [timed.ask(replace(spec, **change))[1] for change in FURTHER]
    _, again = timed.ask(replace(spec, steps=spec.steps + 1))
    timed.estimator.close()
    real = plan(spec)
    return {
        "parameters": [found["parameters"], real["parameters"]],
        "layers alike": found["layers"] == real["layers"],
        **{
            f"{name}: estimated / plan": round(found[key] / real[key], 4)
            for name, key in (("file", "file_bytes"), ("memory", "memory_bytes"), ("step", "step_seconds"))
        },
        "time is": found["sources"]["time"],
        "step seconds": [round(found["step_seconds"], 2), round(real["step_seconds"], 2)],
        "first": first,
        "further": further,
        "again": again,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a checkpoint of SD1.5 in one file")
    parser.add_argument("--tokenizer", type=Path, help="a folder with CLIP's tokenizer, where none is found")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = args.base
        if base is None:
            base = folder / "random.safetensors"
            subprocess.run([sys.executable, TESTS / "random_checkpoints.py", base, "sd1"], check=True)
        shown = pictures(folder / "pictures")
        rows = []
        for case in CASES:
            values = {"base": str(base), "images": str(shown), "out": str(folder / "a.safetensors"), "device": "cpu"}
            values |= {"tokenizer": None if args.tokenizer is None else str(args.tokenizer), "resolution": 256}
            rows.append({**case, **compare(TrainSpec.from_mapping({**values, **case}), folder)})
            print(json.dumps(rows[-1], indent=1), flush=True)
    write("estimate", {"pixels": 256, "load average": [round(x, 1) for x in os.getloadavg()], "cases": rows})


if __name__ == "__main__":
    main()
