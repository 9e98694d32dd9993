"""What the two processes say to each other: events as lines among sd-scripts' own output, and the job as a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import events
from ..event_log import as_json
from ..events import Event, Reason

MARK = "@spectral_adapters "
JOB = "job.json"
STATE, TALLY = "state", "tally.json"  # in a checkpoint made by sd-scripts: its own state, and where the run stood
_EVENTS = {kind.__name__: kind for kind in events.Event.__args__}


@dataclass
class Tally:
    """What a run has come to, as checkpoints remember it. losses: of every step. pass_began: after which step the pass
    over the pictures began."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    pass_began: int = 0


@dataclass(frozen=True)
class Job:
    """What the process in sd-scripts' Python is told; paths as texts.

    trainer: module and class. skips: it goes on inside the pass in which the run was stopped. config: --config_file.
    run: the run's folder. out: where sd-scripts writes. spec, facts: for checkpoints, as resumes compare them. plan: of
    the run, without what only the network knows. Every N steps: 0 is never.
    """

    checkout: str
    trainer: tuple[str, str]
    skips: bool
    config: str
    run: str
    out: str
    steps: int
    checkpoint_every: int
    keep: int
    sample_every: int
    prompts: list[str]
    validate_every: int
    patience: int
    tally: dict[str, Any]
    spec: dict[str, Any]
    facts: dict[str, Any]
    plan: dict[str, Any]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "trainer": tuple(values["trainer"])})


@dataclass(frozen=True)
class Over:
    """The last thing the process says: why it ended, with the error's sentence where there was one."""

    reason: Reason
    tally: Tally
    text: str = ""


def say(message: Event | Over) -> None:
    """Write a message as one line to standard output, past whatever line is begun there."""
    values = asdict(message) | {"event": "Over"} if isinstance(message, Over) else as_json(message)
    # One write, so that progress bars of other threads cannot come in between.
    os.write(1, f"\n{MARK}{json.dumps(values)}\n".encode())


def heard(line: str) -> Event | Over | None:
    """The message in a line of output, or None."""
    if not line.startswith(MARK):
        return None
    values = json.loads(line.removeprefix(MARK))
    name = values.pop("event")
    if name == "Over":
        return Over(values["reason"], Tally(**values["tally"]), values["text"])
    kind = _EVENTS[name]
    return kind(**{each.name: _typed(each.name, values[each.name]) for each in fields(kind) if each.name in values})


def _typed(name: str, value: Any) -> Any:
    """A field of an event as the event has it: JSON knows no paths, no tuples, and no numbers that are not finite."""
    if name == "path":
        return Path(value)
    if name == "paths":
        return tuple(map(Path, value))
    if name == "prompts":
        return tuple(value)
    return float(value) if name in ("loss", "lr", "norm") else value


def plan_of(values: Mapping[str, Any], **known: Any) -> events.Plan:
    """The plan from what was known before the network, and what is known with it."""
    return events.Plan(**{**values, **known})
