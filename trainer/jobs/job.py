"""A job as it lies on disk: what was asked (job.json, never changed) and how it stands (state.json)."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ...spectral.errors import SettingError
from .. import files
from ..engines import BUILT_IN, ENGINES, Engine
from ..processes import Process

Kind = Literal["train", "grid", "export", "conflict", "fuse"]
Status = Literal["queued", "running", "stopping", "stopped", "interrupted", "failed", "finished"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STATUSES: tuple[Status, ...] = get_args(Status)
ACTIVE = ("running", "stopping")  # a child works on it, or should
RESUMABLE = ("stopped", "interrupted", "failed")  # may be queued again

JOB_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
DEVICE = re.compile(r"auto|cpu|mps|cuda:\d{1,2}")
FORMAT = 1
JOB, STATE, RESULT, HEARTBEAT, LOG, STOP = (
    "job.json", "state.json", "result.json", "heartbeat", "child.log", "stop",
)  # fmt: skip
BEAT = 5.0  # seconds between two signs of life of a child
SILENT = 60.0  # seconds without one after which a child is called unresponsive
_LARGEST = 4 << 20  # bytes of a job.json or state.json


class UnknownJob(SettingError):
    """There is no job with the given id."""


class JobConflict(SettingError):
    """What is asked of a job does not go with how it stands now."""


class BrokenJob(SettingError):
    """A job's folder cannot be read."""


@dataclass(frozen=True)
class Options:
    """wait_idle: begin only while the host has nothing to do. unload: let the host free the GPU before."""

    wait_idle: bool = False
    unload: bool = True


@dataclass(frozen=True)
class Job:
    """What was asked. It never changes once it is on disk.

    spec: what the child reads; for a training TrainSpec.as_json() with absolute paths and `run` inside the job's
    folder. request: what people set, for training again with changes. parent: the job whose result this one works on;
    None for trainings, and for what is made of files (comparisons, fusions).
    digest: equal for the same request on the same pictures. created: unix seconds. engine: what trains.
    """

    id: str
    kind: Kind
    name: str
    created: float
    device: str = "auto"
    spec: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    options: Options = Options()
    parent: str | None = None
    digest: str | None = None
    engine: Engine = BUILT_IN

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: Any) -> Job:
        """Raises BrokenJob, without a path, for anything that `as_json` does not make."""
        values = _table(values, cls, "a job")
        _check_format(values)
        options = _table(values.get("options", {}), Options, "a job's options")
        job = _made(cls, {**values, "options": _made(Options, options)})
        _expect(JOB_ID.fullmatch(str(job.id)), "id", job.id, "YYYYMMDD-HHMMSS-xxxx")
        _expect(job.kind in KINDS, "kind", job.kind, f"one of {', '.join(KINDS)}")
        _expect(isinstance(job.name, str) and job.name, "name", job.name, "a text")
        _expect(_is_number(job.created), "created", job.created, "seconds")
        _expect(DEVICE.fullmatch(str(job.device)), "device", job.device, "auto, cpu, mps or cuda:N")
        _expect(job.engine in ENGINES, "engine", job.engine, f"one of {', '.join(ENGINES)}")
        _expect(isinstance(job.spec, dict) and isinstance(job.request, dict), "spec", job.spec, "a table")
        return job


@dataclass(frozen=True)
class State:
    """How a job stands. since: when this status began; started, ended: of the last attempt (unix seconds).

    process: the child, while one works. text: a sentence for people. reason: of events.Reason, or "killed". resumable:
    a complete checkpoint is there to go on from. adapter: the finished file. allow: settings that the next attempt may
    take with other content than its checkpoint has.
    """

    status: Status = "queued"
    since: float = 0.0
    started: float | None = None
    ended: float | None = None
    process: Process | None = None
    device: str | None = None
    attempts: int = 0
    text: str = ""
    reason: str | None = None
    step: int | None = None
    resumable: bool = False
    adapter: str | None = None
    allow: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether a child works on the job, or should."""
        return self.status in ACTIVE

    def becomes(self, status: Status, **changes: Any) -> State:
        """The state after a change of status, now."""
        return replace(self, status=status, since=time.time(), **changes)

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: Any) -> State:
        """Raises BrokenJob, without a path, for anything that `as_json` does not make."""
        values = _table(values, cls, "a state")
        _check_format(values)
        process = values.get("process")
        if process is not None:
            process = _made(Process, _table(process, Process, "a process"))
            _expect(type(process.pid) is int, "process.pid", process.pid, "a number")
        state = _made(cls, {**values, "process": process, "allow": tuple(values.get("allow") or ())})
        _expect(state.status in STATUSES, "status", state.status, f"one of {', '.join(STATUSES)}")
        _expect(_is_number(state.since), "since", state.since, "seconds")
        return state


@dataclass(frozen=True)
class Entry:
    """A job with its state and its folder, as they were when it was read."""

    job: Job
    state: State
    folder: Path

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def run(self) -> Path:
        """The folder of events, checkpoints and pictures; there once the job has begun."""
        return self.folder / "run"

    def silence(self) -> float:
        """Seconds since the child last gave a sign of life; 0 where none works."""
        if not self.state.active:
            return 0.0
        try:
            last = (self.folder / HEARTBEAT).stat().st_mtime
        except OSError:  # it has not come that far
            last = self.state.since
        return max(0.0, time.time() - max(last, self.state.since))


def new_id(created: float) -> str:
    """A fresh id; ids sort as the local time at which jobs were made."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(created))}-{secrets.token_hex(2)}"


def read_entry(folder: Path) -> Entry:
    """The job of a folder. Raises BrokenJob with the file and what is wrong with it."""
    job = _read(folder / JOB, Job)
    _expect(job.id == folder.name, f"{folder / JOB}: id", job.id, folder.name)
    return Entry(job, _read(folder / STATE, State), folder)


def broken(folder: Path, reason: BrokenJob) -> Entry:
    """What is listed in place of a job that cannot be read."""
    try:
        job = replace(_read(folder / JOB, Job), id=folder.name)
    except BrokenJob:
        job = Job(folder.name, "train", folder.name, _changed(folder))
    return Entry(job, State("failed", since=job.created, text=str(reason), reason="failed"), folder)


def write_state(folder: Path, state: State) -> None:
    """Write state.json whole or not at all. Raises OSError."""
    files.write_bytes(folder / STATE, json.dumps(state.as_json()).encode())


def _read(path: Path, kind: type[Job] | type[State]) -> Any:
    try:
        if path.stat().st_size > _LARGEST:
            raise BrokenJob(f"found {path.stat().st_size} bytes, expected at most {_LARGEST}")
        return kind.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise BrokenJob(f"{path}: found no such file, expected one. Delete this job, or put its file back.") from error
    except (OSError, ValueError, BrokenJob) as error:
        raise BrokenJob(f"{path}: {error}. Delete this job, or repair the file.") from error


def _table(values: Any, kind: type, what: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise BrokenJob(f"found a {type(values).__name__}, expected {what} as a table")
    known = {f.name for f in fields(kind)} | {"format"}
    if strange := sorted(values.keys() - known):
        raise BrokenJob(f"found {strange[0]!r} in {what}; a newer version of this package may have made it")
    return values


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    try:
        return kind(**{name: value for name, value in values.items() if name != "format"})
    except TypeError as error:  # a field is missing
        raise BrokenJob(str(error)) from error


def _check_format(values: Mapping[str, Any]) -> None:
    _expect(values.get("format") == FORMAT, "format", values.get("format"), str(FORMAT))


def _expect(right: Any, name: str, found: object, expected: str) -> None:
    if not right:
        raise BrokenJob(f"{name}: found {str(found)[:80]!r}, expected {expected}")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
