"""How fast this machine trains: what past runs have measured, and a short calibration where there are none.

Kept in home/speed.json, made of measurements that come again: a damaged file counts as none.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from . import files
from .engines import BUILT_IN
from .event_log import read_events
from .jobs.job import BrokenJob, read_entry

# Where a time comes from: a run with the same settings; runs on a base of the same kind, by their arithmetic; the
# arithmetic and a calibration alone.
Source = Literal["measured", "calibrated", "estimated"]
FILE = "speed.json"
FORMAT = 1
_MOST = 60  # runs, and works, that are kept: the newest
_RECENT = 5  # runs that a correction is taken from
_LARGEST = 1 << 20
_FIRST_EVENTS = 400  # a plan stands among the first; there are few when pictures are encoded without words
# A step of SD1.5 takes about so many times what the calibration predicts (two cores, fp32), one of the tiny base more:
# their products are smaller than the calibration's, and norms and activations take time of their own.
_TYPICAL = {"tiny": 5.0}
_TYPICAL_ELSE = 2.0


@dataclass(frozen=True)
class Machine:
    """A device in one precision: flops per second, and the seconds that starting an operation takes."""

    flops: float
    start: float

    def better(self, other: Machine) -> Machine:
        """The faster of two measurements of one machine, each half by itself."""
        return Machine(max(self.flops, other.flops), min(self.start, other.start))


@dataclass(frozen=True)
class Work:
    """flops: multiplications and additions, each as one. calls: operations."""

    flops: int
    calls: int

    def seconds(self, machine: Machine) -> float:
        """As predicted by the calibration."""
        return self.flops / machine.flops + self.calls * machine.start


@dataclass(frozen=True)
class Place:
    """Where and on what kind of base a run trains: what its speed depends on besides its work."""

    device: str
    precision: str
    kind: str

    @property
    def machine(self) -> str:
        return f"{self.device}/{self.precision}"


@dataclass(frozen=True)
class Measured:
    """The plan of a job. key: the same for all runs whose steps are alike."""

    job: str
    place: Place
    key: str
    step_seconds: float


@dataclass(frozen=True)
class Speed:
    """What is known. machines: by `Place.machine`. works: of a step, by the key of its run."""

    runs: tuple[Measured, ...] = ()
    machines: Mapping[str, Machine] = field(default_factory=dict)
    works: Mapping[str, Work] = field(default_factory=dict)

    def step_seconds(self, key: str, place: Place, work: Work) -> tuple[float, Source]:
        """Seconds of a step of this work. Needs the machine of the place."""
        alike = [run.step_seconds for run in self.runs if (run.key, run.place) == (key, place)]
        if alike:
            return statistics.median(alike[-_RECENT:]), "measured"
        machine = self.machines[place.machine]
        related = [run for run in self.runs if run.place == place and run.key in self.works]
        if not related:
            return _TYPICAL.get(place.kind, _TYPICAL_ELSE) * work.seconds(machine), "estimated"
        # Runs of like size tell most: caches and small matrices make small steps relatively dear.
        ratios = [run.step_seconds / self.works[run.key].seconds(machine) for run in related[-_RECENT:]]
        return statistics.median(ratios) * work.seconds(machine), "calibrated"

    def knows(self, place: Place) -> bool:
        """Whether a run at this place, and its work, are known."""
        return any(run.place == place and run.key in self.works for run in self.runs)

    def with_run(self, run: Measured) -> Speed:
        return replace(self, runs=(*self.runs, run)[-_MOST:])

    def with_work(self, key: str, work: Work) -> Speed:
        return replace(self, works=dict([*self.works.items(), (key, work)][-_MOST:]))

    def with_machine(self, name: str, machine: Machine) -> Speed:
        return replace(self, machines={**self.machines, name: machine})


def read(home: Path) -> Speed:
    """What is kept in `home`."""
    path = home / FILE
    try:
        if path.stat().st_size > _LARGEST:
            return Speed()
        table = json.loads(path.read_bytes())
        if table["format"] != FORMAT:
            return Speed()
        return Speed(
            tuple(Measured(**{**run, "place": Place(**run["place"])}) for run in table["runs"]),
            {name: Machine(**machine) for name, machine in table["machines"].items()},
            {key: Work(**work) for key, work in table["works"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Speed()


def write(home: Path, speed: Speed) -> None:
    """Keep it whole. Raises OSError."""
    files.write_bytes(home / FILE, json.dumps({"format": FORMAT, **asdict(speed)}).encode())


@dataclass(frozen=True)
class Planned:
    """A job on disk whose run has said its plan. device: the host's name for it. spec, plan: as JSON has them."""

    job: str
    device: str
    spec: Mapping[str, Any]
    plan: Mapping[str, Any]


def planned(home: Path, known: frozenset[str]) -> Iterator[Planned]:
    """The trainings of `home` that have a plan, oldest first, but for those whose ids are `known`.

    Only those of the built-in engine: another measures nothing before it starts.
    """
    for folder in sorted((home / "jobs").glob("*")):
        if folder.name in known:
            continue
        try:
            job = read_entry(folder)
        except BrokenJob:
            continue
        ours = job.job.kind == "train" and job.job.engine == BUILT_IN
        plan = _plan(job.run / "events.jsonl") if ours else None
        if plan is not None:
            yield Planned(job.id, job.state.device or "cpu", job.job.spec, plan)


def _plan(events: Path) -> Mapping[str, Any] | None:
    for _, event in zip(range(_FIRST_EVENTS), read_events(events)):
        if event["event"] == "Plan":
            return event
    return None
