"""Trainings as people see and steer them: what pages, nodes and tools ask, put together from the parts.

One per process. Everything here may read files and wait, so a server calls it from a thread. The truth is on disk, in
the home folder: two studios on one home show the same and may both change it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from .. import __version__
from . import files, job_view, library, mix_request, mixing
from .estimates import Estimates
from .grid_request import FINAL, grid_request
from .jobs.course import Course
from .jobs.job import SILENT
from .jobs.job import Options as JobOptions
from .outcome import (
    UNDER_WAY,
    adapter_of,
    check_at_rest,
    check_training,
    export_request,
    finished_adapter,
)
from .places import SUFFIX, TINY, check_name, inside

if TYPE_CHECKING:
    from .compare import Side
    from .jobs.host import Device, Host
    from .jobs.job import Entry, Kind
    from .places import Places
    from .request import Request

_COURSES = 16  # kept in memory, some megabytes each for a long training


class Studio:
    """See the module. `start` before use, `close` at the end; trainings that run then go on without it.

    devices: what may train, as the supervisor takes it; None finds out.
    """

    def __init__(self, places: Places, host: Host, devices: Sequence[Device] | None = None) -> None:
        from .estimate import Estimator
        from .jobs.store import JobStore
        from .jobs.supervisor import Supervisor

        self.places, self.host = places, host
        self.store = JobStore(places.home)
        self.supervisor = Supervisor(self.store, host, devices)
        self.estimator = Estimator(places.home)
        self._estimates = Estimates()
        self._courses: dict[str, Course] = {}
        self._seen: dict[str, _Seen] = {}
        self._lock, self._creating = Lock(), Lock()

    def start(self) -> None:
        """Begin to run what is queued."""
        self.supervisor.start()

    def close(self) -> None:
        """Stop looking after jobs and end the estimator. Children that train go on."""
        self.supervisor.close()
        self.estimator.close()
        self._estimates.close()

    def create(self, request: Request, *, reuse: bool = False) -> tuple[Entry, str]:
        """Queue a training; it, and a notice ("" for none).

        The same training is not queued twice while it waits or runs; with `reuse`, a finished one is taken as well,
        as long as its adapter is there. Raises SettingError for what cannot be trained.
        """
        from . import engines
        from .request import digest, resolve

        same = digest(request, self.places)
        with self._creating:
            earlier = self.store.find(same)
            if earlier is not None and self._serves(earlier, reuse):
                return earlier, f"This training is there already: {earlier.job.name}, {earlier.state.status}."
            spec = resolve(request, self.places, self._taken())
            engines.check(request.engine, spec)
            entry = self.store.add(
                "train",
                spec.out.stem,
                spec.as_json(),
                request=request.as_json(),
                device=request.device,
                options=JobOptions(**asdict(request.options)),
                digest=same,
                engine=request.engine,
            )
        self.supervisor.wake()
        return entry, _renamed(request.name, spec.out)

    def resume(self, id: str, allow: tuple[str, ...] = ()) -> None:
        """Queue a stopped or interrupted training again; `allow` names settings whose new values are accepted."""
        self.store.resume(id, allow)
        self.supervisor.wake()

    def stop(self, id: str, now: bool = False) -> None:
        """Ask a job to save and stop; `now` ends it without waiting for the step it is in."""
        self.store.stop(id, now)
        self.supervisor.wake()

    def reorder(self, ids: list[str]) -> None:
        """Bring the waiting jobs into this order."""
        self.store.reorder(ids)
        self.supervisor.wake()

    def course(self, id: str) -> Course:
        """A job's course up to now. Raises UnknownJob."""
        return self._course(self.store.entry(id))

    def summary(self, entry: Entry) -> dict[str, Any]:
        """What lists show of a job."""
        key = _key(entry)
        with self._lock:
            seen = self._seen.get(entry.id)
        if seen is None or seen.key != key:
            seen = _Seen(key, job_view.summary(entry, self._course(entry)))
            with self._lock:
                self._seen[entry.id] = seen
        return seen.summary

    def detail(self, id: str) -> dict[str, Any]:
        """All that a job's page shows besides its curve. Raises UnknownJob."""
        entry = self.store.entry(id)
        tasks = [self.summary(other) for other in self.store.entries() if other.job.parent == id]
        return job_view.detail(entry, self._course(entry), tasks)

    def state(self, known: str = "") -> dict[str, Any]:
        """What every page shows: all jobs, the queue, the devices; only {"version", "unchanged"} where it is `known`.

        The version changes whenever anything of that does.
        """
        about = {"supervisor": self.supervisor.status(), "devices": self._devices()}
        version = sha256(f"{self.store.version()} {json.dumps(about)}".encode()).hexdigest()[:16]
        if version == known:
            return {"version": version, "unchanged": True}
        return {
            "version": version,
            "host": {"name": self.host.name, "can": sorted(self.host.can)},
            "package": __version__,
            **about,
            "queue": self.store.queue(),
            "jobs": [self.summary(entry) for entry in self.store.entries()],
        }

    def engine_says(self, request: Request) -> dict[str, Any]:
        """What the request's engine does otherwise, or cannot do; see `engines.said`."""
        from . import engines
        from .request import resolve

        return engines.said(request.engine, resolve(request, self.places, self._taken()))

    def estimate(self, request: Request) -> dict[str, Any]:
        """What a training would take by the built-in engine, whichever is asked for.

        {"pending": True} where that is not known within some seconds: ask again.
        """
        from .request import resolve

        spec = resolve(request, self.places, self._taken()).as_json()
        unload = request.options.unload
        key = json.dumps([spec, request.device, unload], sort_keys=True)
        return self._estimates.ask(key, lambda: self.estimator.ask(spec, request.device, unload=unload))

    def curve(self, id: str, after: int = 0, generation: int | None = None) -> dict[str, Any]:
        """A job's curve from a point on, see `Course.curve`. Raises UnknownJob."""
        return self.course(id).curve(after, generation)

    def delete(self, id: str) -> Path:
        """Move a job and what was made of it to the trash. Raises UnknownJob, JobConflict while it runs."""
        trash = self.store.delete(id)
        with self._lock:
            self._courses.pop(id, None)
            self._seen.pop(id, None)
        return trash

    def create_grid(self, id: str, asked: Mapping[str, Any]) -> Entry:
        """Queue a grid of pictures of a training; see `grid_request` for what can be asked.

        Raises JobConflict while it waits or runs.
        """
        entry = check_at_rest(self.store.entry(id))
        wanted = grid_request(entry.run, entry.job.spec, finished_adapter(entry), asked)
        return self._follow(entry, "grid", wanted, asked)

    def create_export(self, id: str, asked: Mapping[str, Any]) -> Entry:
        """Queue the export of a training as a LoRA beside its adapter; see `export_request` for what can be asked.

        Raises JobConflict while it waits or runs.
        """
        entry = check_at_rest(self.store.entry(id))
        with self._creating:
            return self._follow(entry, "export", export_request(entry, asked, self._taken()), asked)

    def keep(self, id: str, checkpoint: str) -> str:
        """Make a checkpoint's adapter a file among the finished ones, for the loader; its name there.

        One that is there already is not written again. Raises SettingError, SpectralError.
        """
        entry = check_training(self.store.entry(id))
        source = adapter_of(entry, checkpoint)
        if checkpoint == FINAL:
            return source.name
        name = f"{Path(entry.job.spec['out']).stem}-{checkpoint}"
        with self._creating:
            data, there = source.read_bytes(), inside(self.places.adapters, f"{name}{SUFFIX}")
            if there.is_file() and there.read_bytes() == data:
                return there.name
            out = self.places.free_out(name, self._taken())
            try:
                files.write_bytes(out, data)
            except OSError as error:
                raise files.refusal("writing the adapter", out, error, "Free some space") from error
        return out.name

    def grid(self, id: str) -> dict[str, Any]:
        """A grid's axes and the pictures made so far."""
        return job_view.grid(self.store.entry(id))

    def spectrum(self, id: str, checkpoint: str = FINAL) -> dict[str, Any]:
        """What a training moved, by layer and column."""
        from ..spectral.file import load
        from ..spectral.spectrum import spectrum

        return spectrum(load(adapter_of(check_training(self.store.entry(id)), checkpoint)))

    def compare(self, a: str, b: str) -> dict[str, Any]:
        """Two trainings' settings, curves and samples. Raises UnknownJob, SettingError."""
        from .compare import compare

        return compare(self._side(a), self._side(b))

    def bases(self) -> list[dict[str, Any]]:
        """The base models there are, with what is known of them from their headers."""
        from .bases import describe

        return describe(self.places)

    def adapters(self) -> list[dict[str, Any]]:
        """The adapter files there are, and the LoRA files that can be mixed with them."""
        return library.listing(self.places)

    def mix_conflict(self, adapters: Sequence[str], base: str | None = None) -> Entry:
        """Queue a comparison of adapters by name; one of the same files that is there already is taken again.

        Raises SettingError for names that are not known, and for fewer than two.
        """
        asked = mixing.conflict_request(self.places, adapters, base)
        spec = asked.as_json()
        based = [Path(asked.base)] if asked.base not in (None, TINY) else []
        same = mix_request.digest(["conflict", spec], [*(each.path for each in asked.adapters), *based])
        with self._creating:
            earlier = self.store.find(same) or self._compared(same)
            if earlier is not None and earlier.state.status in (*UNDER_WAY, "finished"):
                return earlier
            name, request = mixing.title(adapters), {"adapters": list(adapters), "base": base}
            return self._queue("conflict", name, spec, request, digest=same)

    def mix_fuse(
        self, adapters: Sequence[Mapping[str, Any]], base: str | None, name: str, asked: Mapping[str, Any]
    ) -> tuple[Entry, str]:
        """Queue a fusion of [{name, weight}] into a file; it, and a notice ("" for none). See `mixing.fuse_request`."""
        with self._creating:
            wanted = mixing.fuse_request(self.places, adapters, base, name, asked, self._taken())
            request = {"adapters": [dict(row) for row in adapters], "base": base, "name": name, **asked}
            entry = self._queue("fuse", wanted.out.stem, wanted.as_json(), request)
        return entry, _renamed(name, wanted.out)

    def conflict(self, id: str) -> dict[str, Any]:
        """What a comparison found. Raises UnknownJob, SettingError, JobConflict where it is not done."""
        return mixing.found(self.store.entry(id))

    def _side(self, id: str) -> Side:
        from .compare import Side

        entry = check_training(self.store.entry(id))
        course = self._course(entry)
        curve = course.curve()
        samples = job_view.samples(entry, curve.pop("samples"))
        best = course.summary()["best"]
        return Side(entry.id, entry.job.name, entry.job.spec, curve, best, samples, entry.job.engine)

    def _follow(self, of: Entry, kind: Kind, spec: Mapping[str, Any], asked: Mapping[str, Any]) -> Entry:
        """Queue a job made of a training."""
        entry = self.store.add(
            kind,
            of.job.name,
            spec,
            request=asked,
            device="cpu" if kind == "export" else of.job.device,
            options=of.job.options,
            parent=of.id,
        )
        self.supervisor.wake()
        return entry

    def _queue(
        self, kind: Kind, name: str, spec: Mapping[str, Any], request: Mapping[str, Any], digest: str | None = None
    ) -> Entry:
        """Queue a job made of files, which needs no GPU."""
        entry = self.store.add(kind, name, spec, request=request, device="cpu", digest=digest)
        self.supervisor.wake()
        return entry

    def _compared(self, digest: str) -> Entry | None:
        """A finished comparison of the same files whose result is still there."""
        done = (entry for entry in self.store.entries() if entry.job.digest == digest)
        return next((e for e in done if e.state.status == "finished" and (e.run / mixing.CONFLICT).is_file()), None)

    def _devices(self) -> list[dict[str, Any]]:
        working = {entry.state.device: entry.id for entry in self.store.active()}
        return [{"id": d.id, "label": d.label, "job": working.get(d.id)} for d in self.supervisor.devices]

    def _course(self, entry: Entry) -> Course:
        with self._lock:
            course = self._courses.pop(entry.id, None) or Course(entry.run)
            self._courses[entry.id] = course  # the last one used is the last in the table
            for id in list(self._courses)[:-_COURSES]:
                del self._courses[id]
        return course

    def _taken(self) -> set[Path]:
        """The files that jobs still to come will write."""
        waiting = (entry for entry in self.store.entries() if entry.state.status in UNDER_WAY)
        return {Path(out) for entry in waiting if isinstance(out := entry.job.spec.get("out"), str)}

    def _serves(self, entry: Entry, reuse: bool) -> bool:
        finished = reuse and entry.state.status == "finished" and job_view.adapter(entry.state.adapter) is not None
        return finished or entry.state.status in UNDER_WAY


@dataclass(frozen=True)
class _Seen:
    """A summary, good as long as what it was made from stays the same."""

    key: tuple[Any, ...]
    summary: dict[str, Any]


def _key(entry: Entry) -> tuple[Any, ...]:
    state = entry.state
    made = job_view.adapter(state.adapter) is not None
    silent = entry.silence() > SILENT
    return (state, _stamp(entry.run / "events.jsonl"), _stamp(entry.run / "samples"), made, silent)


def _renamed(wanted: str, out: Path) -> str:
    """What to tell someone whose adapter gets another name than was asked for."""
    name = check_name(wanted.removesuffix(SUFFIX), "name")
    return "" if out.stem == name else f"{name}{SUFFIX} exists already, or will; this one becomes {out.name}."


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
