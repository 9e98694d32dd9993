"""The process that estimates: questions as JSON lines on stdin, answers on stdout; `estimate.Estimator` starts it.

A question is {"id", "spec": TrainSpec.as_json(), "device": "auto" | "cpu" | "cuda:N", "unload": bool}, its answer
{"id", "answer": {...}} or {"id", "error": a sentence}. The process ends when stdin does, or when nobody asks for a
minute: torch and diffusers take half a gigabyte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

from ..spectral.errors import SettingError, SpectralError
from . import speed
from .jobs.environment import PACK

if TYPE_CHECKING:
    from .pictures import Size
    from .spec import TrainSpec

_IDLE = 60.0  # seconds
_PAUSE = 3.0  # without a question
_CALIBRATION = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("home", type=Path, help="the folder of jobs, where speeds are kept")
    parser.add_argument("--idle", type=float, default=_IDLE, help="seconds after which it ends by itself")
    parser.add_argument("--calibrate", metavar="DEVICE/PRECISION", default=None, help="measure that, print it, and end")


def run(args: argparse.Namespace) -> int:
    """Answer until nobody asks any more."""
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    if args.calibrate is not None:
        out.write(json.dumps(vars(_calibrated(args.calibrate))) + "\n")
        return 0
    questions: queue.Queue[str | None] = queue.Queue()
    Thread(target=_read, args=(sys.stdin, questions), daemon=True).start()
    answers = None
    while (line := _next(questions, args.idle, answers)) is not None:
        answers = answers or Answers(args.home)
        out.write(json.dumps(answers.to(json.loads(line))) + "\n")
        out.flush()
    return 0


def _next(questions: queue.Queue[str | None], idle: float, answers: Answers | None) -> str | None:
    """The next question, None where there is none any more. A pause is used to calibrate again."""
    with contextlib.suppress(queue.Empty):
        return questions.get(timeout=min(_PAUSE, idle))
    if answers is not None:
        answers.calibrate_again()
    try:
        return questions.get(timeout=idle)
    except queue.Empty:
        return None


def _read(stdin: IO[str], questions: queue.Queue[str | None]) -> None:
    for line in stdin:
        questions.put(line)
    questions.put(None)


class Answers:
    """Answers questions one after the other, and learns from the runs of `home` how fast this machine is."""

    def __init__(self, home: Path):
        from .console import quiet_libraries

        quiet_libraries()
        from .quick import Quick

        self._home, self._quick = home, Quick()
        self._speed = speed.read(home)
        self._guessed: set[str] = set()  # machines by whose calibration alone a time was told

    def to(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"id": question["id"], "answer": self._answer(question)}
        except SpectralError as error:
            return {"id": question["id"], "error": str(error)}

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        from .loop import check_precision
        from .room import free_bytes
        from .spec import TrainSpec

        spec = TrainSpec.from_mapping(question["spec"])
        device = _device(spec.device or question["device"])
        check_precision(spec, device.partition(":")[0])
        found = self._quick.outlook(spec)
        memory = found.cost.memory
        place = speed.Place(device, spec.precision, found.kind)
        seconds, source = self._step_seconds(found.cost.key, place, found.cost.work)
        return {
            "parameters": found.parameters,
            "layers": found.layers,
            "file_bytes": found.file_bytes,
            "pictures": sum(found.sizes.values()),
            "buckets": {f"{w}x{h}": count for (w, h), count in sorted(found.sizes.items())},
            "resolution": found.resolution,
            "memory": memory.parts,
            "memory_bytes": memory.total,
            "free_bytes": free_bytes(device, os.getppid() if question["unload"] else None),
            "step_seconds": seconds,
            "seconds": None if seconds is None else seconds * spec.steps,
            "device": device,
            "sources": {"time": source},
        }

    def _step_seconds(self, key: str, place: speed.Place, work: speed.Work) -> tuple[float | None, str]:
        """Seconds of a step, and where they come from; None where the device cannot be measured."""
        before = self._speed
        self._speed = before.with_work(key, work)
        self._learn(place)
        if place.machine not in self._speed.machines:
            machine = _measure(self._home, place.machine)
            if machine is None:
                return None, "unknown"
            self._speed = self._speed.with_machine(place.machine, machine)
        if self._speed != before:
            self._keep()
        seconds, source = self._speed.step_seconds(key, place, work)
        if source == "estimated":
            self._guessed.add(place.machine)
        return seconds, source

    def calibrate_again(self) -> None:
        """Measure the CPU anew and keep the better: the first time the machine may have been busy."""
        for machine in [name for name in self._guessed if name.startswith("cpu/")]:
            self._guessed.discard(machine)
            self._speed = self._speed.with_machine(machine, _calibrated(machine).better(self._speed.machines[machine]))
            self._keep()

    def _keep(self) -> None:
        with contextlib.suppress(OSError):  # measured again next time
            speed.write(self._home, self._speed)

    def _learn(self, place: speed.Place) -> None:
        """Take in the plans of runs that are new, and the work of the last one at `place` where none is known."""
        from .quick import cost_key

        newest = None
        for job in speed.planned(self._home, frozenset(run.job for run in self._speed.runs)):
            found = _past(job)
            if found is None:
                continue
            spec, sizes, where = found
            run = speed.Measured(job.job, where, cost_key(spec, sizes), float(job.plan["step_seconds"]))
            self._speed = self._speed.with_run(run)
            newest = (spec, sizes, run.key) if where == place else newest
        if newest is not None and not self._speed.knows(place):
            spec, sizes, key = newest
            with contextlib.suppress(SpectralError):  # its base has been moved
                self._speed = self._speed.with_work(key, self._quick.cost(spec, sizes).work)


def _past(job: speed.Planned) -> tuple[TrainSpec, dict[Size, int], speed.Place] | None:
    """Settings, pictures by size and place of a past run; None where a version of this package wrote it otherwise."""
    from .layering import base_kind
    from .spec import TrainSpec

    try:
        spec = TrainSpec.from_mapping(job.spec)
        sizes = {tuple(map(int, size.split("x"))): int(count) for size, count in job.plan["buckets"].items()}
        return spec, sizes, speed.Place(job.device, spec.precision, base_kind(spec.base))
    except (SettingError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _device(wanted: str) -> str:
    """The device that a training would take: "cpu", "cuda:N" or "mps"."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _calibrated(machine: str) -> speed.Machine:
    import torch

    from .calibrate import calibrate
    from .setup import DTYPES

    device, _, precision = machine.partition("/")
    return calibrate(torch.device(device), DTYPES[precision])


def _measure(home: Path, machine: str) -> speed.Machine | None:
    """The calibration of "device/precision". Of a GPU in a process of its own, so that its memory is given back."""
    if machine.startswith("cpu/"):
        return _calibrated(machine)
    command = [sys.executable, str(PACK), "estimate-server", str(home), "--calibrate", machine]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CALIBRATION, check=True)
        return speed.Machine(**json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None
