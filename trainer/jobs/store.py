"""All jobs of a home folder: listed, queued, stopped, resumed, thrown away. The truth is on disk.

Every change is made under a file lock, by writes that appear whole or not at all, so that pages, nodes, tools and
several hosts may work on one home at once. Nothing here starts a process; that is the supervisor's.

    HOME/jobs/ID/    see job
    HOME/queue.json  ids of queued jobs, the next one first
    HOME/trash/      deleted jobs
    HOME/store.lock  held during a change
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...spectral.errors import SettingError
from .. import files
from ..engines import BUILT_IN, ENGINES, Engine
from ..processes import Process
from ..run_folder import Request, ask, running
from . import settle
from .course import Course
from .job import (
    DEVICE,
    HEARTBEAT,
    JOB,
    JOB_ID,
    KINDS,
    RESULT,
    RESUMABLE,
    SILENT,
    STATE,
    STOP,
    BrokenJob,
    Entry,
    Job,
    JobConflict,
    Kind,
    Options,
    State,
    UnknownJob,
    broken,
    new_id,
    read_entry,
    write_state,
)

_WAIT = 20.0  # seconds for others' changes, each of which takes milliseconds
_LONGEST_NAME = 200
Signature = tuple[tuple[int, int, int], ...]


class JobStore:
    """The jobs under `home`, which is made where missing. Raises SpectralError where it cannot be."""

    def __init__(self, home: Path):
        self.home = home.expanduser().absolute()
        self.jobs, self.trash = self.home / "jobs", self.home / "trash"
        self._queue_file = self.home / "queue.json"
        self._known: dict[str, tuple[Signature, Entry]] = {}
        try:
            for folder in (self.jobs, self.trash):
                files.make_folder(folder)
        except OSError as error:
            raise files.refusal("making the folder of jobs", self.home, error, "Choose another home folder") from error

    # --- reading

    def entries(self) -> list[Entry]:
        """All jobs, the newest first; a broken one is listed as failed, with the reason."""
        found = [entry for name in self._names() if (entry := self._entry(name)) is not None]
        return sorted(found, key=lambda entry: (entry.job.created, entry.id), reverse=True)

    def entry(self, id: str) -> Entry:
        """One job. Raises UnknownJob."""
        found = self._entry(id) if isinstance(id, str) and JOB_ID.fullmatch(id) else None
        if found is None:
            raise UnknownJob(f"found no job {str(id)[:40]!r} in {self.home}; expected the id of one. List them first.")
        return found

    def queue(self) -> list[str]:
        """Ids of the jobs that wait, the next one first."""
        waiting = {entry.id for entry in self.entries() if entry.state.status == "queued"}
        order = [id for id in self._order() if id in waiting]
        return order + sorted(waiting - set(order))  # a host may have died between a job's files and the queue's

    def active(self) -> list[Entry]:
        """The jobs that a child works on, or should."""
        return [entry for entry in self.entries() if entry.state.active]

    def find(self, digest: str) -> Entry | None:
        """A job of the same request on the same pictures: one that waits or runs, else a finished one whose adapter
        is there, else one that can be gone on with; the newest of its sort."""
        same = [entry for entry in self.entries() if entry.job.digest == digest]
        sorts = (
            lambda e: e.state.status == "queued" or e.state.active,
            lambda e: e.state.status == "finished" and e.state.adapter and os.path.isfile(e.state.adapter),
            lambda e: e.state.status in RESUMABLE and e.state.resumable,
        )
        return next((entry for wanted in sorts for entry in same if wanted(entry)), None)

    def version(self) -> str:
        """A short text that changes whenever anything changes that is shown of any job."""
        parts: list[object] = [_signature(self._queue_file)]
        for name in sorted(self._names()):
            if (entry := self._entry(name)) is None:
                continue
            parts += [name, self._known[name][0]]
            if entry.state.active:
                parts += [_signature(entry.run / "events.jsonl"), entry.silence() > SILENT]
        return sha256(repr(parts).encode()).hexdigest()[:16]

    def queue_signature(self) -> object:
        """Cheap to take, and another one whenever the queue has changed."""
        return _signature(self._queue_file)

    # --- what people do

    def add(
        self,
        kind: Kind,
        name: str,
        spec: Mapping[str, Any],
        *,
        request: Mapping[str, Any] | None = None,
        device: str = "auto",
        options: Options = Options(),  # noqa: B008 (it is immutable)
        parent: str | None = None,
        digest: str | None = None,
        engine: Engine = BUILT_IN,
    ) -> Entry:
        """Queue a job. `spec`: see Job; the `run` of a training is set here. Raises SettingError, SpectralError."""
        if kind not in KINDS:
            raise SettingError(f"kind={kind!r}; expected one of {', '.join(KINDS)}")
        if engine not in (ENGINES if kind == "train" else (BUILT_IN,)):
            raise SettingError(f"engine={engine!r}; expected one of {', '.join(ENGINES)}, and {BUILT_IN} for a {kind}")
        if not DEVICE.fullmatch(device):
            raise SettingError(f"device={device!r}; expected auto, cpu, mps or cuda:N")
        if not name or len(name) > _LONGEST_NAME:
            raise SettingError(f"found a name of {len(name)} characters; expected 1 to {_LONGEST_NAME}")
        created = time.time()
        with self._locked():
            id = self._free_id(created)
            wanted = {**spec, "run": str(self.jobs / id / "run")} if kind == "train" else dict(spec)
            job = Job(id, kind, name, created, device, wanted, dict(request or {}), options, parent, digest, engine)
            try:
                with files.new_folder(self.jobs / id) as folder:
                    files.write_new(folder / JOB, json.dumps(job.as_json(), indent=1).encode())
                    write_state(folder, State("queued", since=created))
                self._write_order([*self._order(), id])
            except OSError as error:
                raise files.refusal("queueing a job", self.home, error, "Free some space") from error
        return self.entry(id)

    def reorder(self, ids: Sequence[str]) -> list[str]:
        """Put queued jobs in this order, the others behind them as they were; the whole new order.

        Ids that no longer wait are passed over: a page may be a moment behind. Raises UnknownJob.
        """
        for id in ids:
            self.entry(id)
        with self._locked():
            waiting = self.queue()
            first = [id for id in dict.fromkeys(ids) if id in waiting]
            order = first + [id for id in waiting if id not in first]
            self._write_order(order)
        return order

    def stop(self, id: str, now: bool = False) -> Entry:
        """Take a waiting job out of the queue; ask a running one to save and end, or with `now` end it at once.

        Raises UnknownJob, and JobConflict for a job that neither waits nor runs.
        """
        with self._locked():
            entry = self.entry(id)
            if entry.state.status == "queued":
                text = "Taken out of the queue" + (" before it began." if not entry.state.attempts else ".")
                self._write(entry, entry.state.becomes("stopped", text=text, reason="stopped"))
                self._write_order([other for other in self._order() if other != id])
                return self.entry(id)
            if not entry.state.active:
                raise JobConflict(f"{entry.job.name} ({id}) is {entry.state.status}; only what runs can be stopped.")
            text = "Is being ended at once." if now else "Stops after this step and saves."
            (entry.folder / STOP).write_text("now" if now else "", encoding="utf-8")
            self._write(entry, entry.state.becomes("stopping", text=text))
        if now:
            settle.end_process(self.entry(id))
            if settle.child(self.entry(id)) is None:
                self.settle(id)
        return self.entry(id)

    def resume(self, id: str, allow: Collection[str] = ()) -> Entry:
        """Queue a job again that was stopped, interrupted or failed: it goes on from its newest complete checkpoint.

        allow: settings that may be taken with other content than the checkpoint has. Raises UnknownJob, JobConflict.
        """
        step, found = settle.checkpoint(self.entry(id))  # before the lock: it reads whole checkpoints
        with self._locked():
            entry = self._readable(id)
            if entry.state.status not in RESUMABLE:
                raise JobConflict(
                    f"{entry.job.name} ({id}) is {entry.state.status}; only a job that was stopped, interrupted or "
                    "failed can be resumed."
                )
            text = f"Will go on from step {step}." if found else "Will begin again." if entry.state.attempts else ""
            state = entry.state.becomes(
                "queued", text=text, reason=None, resumable=found, ended=None, allow=tuple(sorted(allow))
            )
            self._write(entry, state)
            self._write_order([*(other for other in self._order() if other != id), id])
        return self.entry(id)

    def sample(self, id: str) -> None:
        """Ask a running training for sample pictures now. Raises UnknownJob, JobConflict."""
        self._ask(id, "sample")

    def save(self, id: str) -> None:
        """Ask a running training for a checkpoint now. Raises UnknownJob, JobConflict."""
        self._ask(id, "save")

    def delete(self, id: str) -> Path:
        """Move a job, and the grids and exports made of it, to the trash; where it lies now. Adapter files stay.

        Raises UnknownJob, and JobConflict where one of them runs.
        """
        with self._locked():
            doomed = [self.entry(id), *(entry for entry in self.entries() if entry.job.parent == id)]
            if busy := next((e for e in doomed if e.state.active or running(e.run) is not None), None):
                raise JobConflict(f"{busy.job.name} ({busy.id}) is running; stop it before deleting {id}.")
            try:
                places = [self._discard(entry) for entry in doomed]
                gone = {entry.id for entry in doomed}
                self._write_order([other for other in self._order() if other not in gone])
            except OSError as error:
                raise files.refusal("moving a job to the trash", self.trash, error, "Try again later") from error
        return places[0]

    # --- what the supervisor does

    def begin(self, id: str, device: str) -> Entry | None:
        """Mark a waiting job as running on `device`; None where it waits no longer."""
        with self._locked():
            entry = self.entry(id)
            if entry.state.status != "queued":
                return None
            for name in (STOP, RESULT, HEARTBEAT):
                (entry.folder / name).unlink(missing_ok=True)
            state = entry.state.becomes(
                "running", started=time.time(), ended=None, device=device, process=None, reason=None,
                text="Starts.", attempts=entry.state.attempts + 1,
            )  # fmt: skip
            self._write(entry, state)
            self._write_order([other for other in self._order() if other != id])
        return self.entry(id)

    def began(self, id: str, process: Process | None) -> Entry:
        """Note which process works on a running job."""
        with self._locked():
            entry = self.entry(id)
            if entry.state.active:  # else it has been ended at once, meanwhile
                self._write(entry, replace(entry.state, process=process))
        return self.entry(id)

    def say(self, id: str, text: str) -> Entry:
        """Change the sentence of a waiting job."""
        with self._locked():
            entry = self.entry(id)
            if entry.state.status == "queued":
                self._write(entry, replace(entry.state, text=text))
        return self.entry(id)

    def settle(self, id: str, code: int | None = None) -> Entry:
        """Write down how a job ended whose child is gone; `code` is its exit status where it is known."""
        before = self.entry(id)
        if not before.state.active:
            return before
        state = settle.outcome(before, code)
        with self._locked():
            entry = self.entry(id)
            if entry.state.active and entry.state.attempts == before.state.attempts:
                self._write(entry, state)
        Course(before.run).keep()
        return self.entry(id)

    # --- small things

    def _names(self) -> list[str]:
        with os.scandir(self.jobs) as found:
            return [item.name for item in found if JOB_ID.fullmatch(item.name)]

    def _entry(self, name: str) -> Entry | None:
        """The job of a folder as it is now, read again only where its files have changed; None where it is gone."""
        signature = self._signature(name)
        known = self._known.get(name)
        if known is not None and known[0] == signature:
            return known[1]
        folder = self.jobs / name
        try:
            entry = read_entry(folder)
        except BrokenJob as reason:
            if not folder.is_dir():
                return None
            entry = broken(folder, reason)
        self._known[name] = (signature, entry)
        return entry

    def _signature(self, name: str) -> Signature:
        folder = os.path.join(self.jobs, name)  # not by pathlib, since pages ask this of all jobs every second
        return tuple(_signature(os.path.join(folder, file)) for file in (JOB, STATE))

    def _readable(self, id: str) -> Entry:
        """Raises BrokenJob where the job's files cannot be read."""
        self.entry(id)
        return read_entry(self.jobs / id)

    def _ask(self, id: str, request: Request) -> None:
        entry = self.entry(id)
        if entry.job.kind != "train" or entry.state.status != "running":
            raise JobConflict(f"{entry.job.name} ({id}) is {entry.state.status}; expected a training that runs.")
        try:
            ask(entry.run, request)
        except SettingError as error:
            raise JobConflict(f"{entry.job.name} ({id}) is still being prepared; ask again when it trains.") from error

    def _discard(self, entry: Entry) -> Path:
        place = self.trash / entry.id
        while place.exists():
            place = self.trash / f"{entry.id}-{secrets.token_hex(2)}"
        files.replace(entry.folder, place)
        return place

    def _write(self, entry: Entry, state: State) -> None:
        try:
            write_state(entry.folder, state)
        except OSError as error:
            raise files.refusal("writing a job's state", entry.folder, error, "Free some space") from error

    def _order(self) -> list[str]:
        try:
            ids = json.loads(self._queue_file.read_bytes())
        except (OSError, ValueError):  # queued jobs are found without it, in the order in which they were made
            return []
        return [id for id in ids if isinstance(id, str)] if isinstance(ids, list) else []

    def _write_order(self, ids: Sequence[str]) -> None:
        files.write_bytes(self._queue_file, json.dumps(list(ids)).encode())

    def _free_id(self, created: float) -> str:
        id = new_id(created)
        while (self.jobs / id).exists() or (self.trash / id).exists():
            id = new_id(created)
        return id

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes the home folder meanwhile. Not to be nested."""
        guard = FileLock(self.home / "store.lock", timeout=_WAIT)
        # Some network folders have no such locks; there two changes in one moment may undo each other.
        with contextlib.suppress(NotImplementedError):
            try:
                guard.acquire()
            except Timeout as error:
                raise SettingError(
                    f"{self.home}: found it locked by another process for {_WAIT:.0f} s, expected milliseconds. Try "
                    "again; if a host hangs, end it."
                ) from error
        try:
            yield
        finally:
            guard.release()


def _signature(path: str | Path) -> tuple[int, int, int]:
    """Another one whenever the file was replaced or has grown."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
