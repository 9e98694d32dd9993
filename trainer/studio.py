"""Trainings as people see and steer them: what pages, nodes and tools ask, put together from the parts.

One per process. Everything here may read files and wait, so a server calls it from a thread. The truth is on disk, in
the home folder: two studios on one home show the same and may both change it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..spectral.errors import SettingError
from . import job_view
from .estimates import Estimates

if TYPE_CHECKING:
    from .estimate import Estimator
    from .jobs.course import Course
    from .jobs.host import Host
    from .jobs.job import Entry
    from .jobs.store import JobStore
    from .jobs.supervisor import Supervisor
    from .places import Places
    from .request import Request

_ACTIVE = ("running", "stopping")
_WAITING = ("queued", *_ACTIVE)


class Studio:
    """See the module. `start` before use, `close` at the end; trainings that run then go on without it."""

    def __init__(
        self, places: Places, store: JobStore, supervisor: Supervisor, host: Host, estimator: Estimator
    ) -> None:
        self.places, self.store, self.supervisor = places, store, supervisor
        self.host, self.estimator = host, estimator
        self._estimates = Estimates()
        self._courses: dict[str, Course] = {}
        self._seen: dict[str, _Seen] = {}
        self._state: tuple[str, dict[str, Any]] = ("", {})
        self._lock = Lock()
        self._creating = Lock()

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
        from .request import digest, resolve

        same = digest(request, self.places)
        with self._creating:
            earlier = self.store.find(same)
            if earlier is not None and self._serves(earlier, reuse):
                return earlier, f"This training is there already: {earlier.job.name}, {earlier.state.status}."
            spec = resolve(request, self.places, self._taken())
            entry = self.store.add(
                "train",
                spec.out.stem,
                spec.as_json(),
                request=request.as_json(),
                device=request.device,
                options=request.options,
                digest=same,
            )
        self.supervisor.wake()
        renamed = spec.out.stem != request.name
        return entry, f"{request.name} exists already; this one becomes {spec.out.name}." if renamed else ""

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

    def course(self, id: str) -> Course | None:
        """A job's course up to now; None where it has not begun. Raises UnknownJob."""
        return self._course(self.store.entry(id))

    def summary(self, entry: Entry) -> dict[str, Any]:
        """What lists show of a job."""
        key = _key(entry)
        with self._lock:
            seen = self._seen.get(entry.job.id)
        if seen is None or seen.key != key:
            seen = _Seen(key, job_view.summary(entry, self._course(entry)))
            with self._lock:
                self._seen[entry.job.id] = seen
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
        entries = self.store.entries()
        shown = {
            "host": {"name": self.host.name, "can": sorted(self.host.can)},
            "package": __version__,
            "supervisor": self._supervision(),
            "devices": self._devices(entries),
            "queue": self.store.queue(),
            "jobs": [self.summary(entry) for entry in entries],
        }
        version = sha256(json.dumps(shown).encode()).hexdigest()[:16]
        return {"version": version, "unchanged": True} if version == known else {"version": version, **shown}

    def estimate(self, request: Request) -> dict[str, Any]:
        """What a training would take; {"pending": True} where that is not known within some seconds: ask again."""
        from .request import resolve

        spec = resolve(request, self.places, self._taken()).as_json()
        key = json.dumps(spec, sort_keys=True)
        return self._estimates.ask(key, lambda: self.estimator.ask(spec))

    def _course(self, entry: Entry) -> Course | None:
        from .jobs.course import Course

        if not (entry.run / "events.jsonl").is_file():
            return None
        with self._lock:
            course = self._courses.setdefault(entry.job.id, Course(entry.run))
        course.refresh()
        return course

    def _taken(self) -> set[Path]:
        """The files that jobs still to come will write."""
        waiting = (entry for entry in self.store.entries() if entry.state.status in _WAITING)
        return {Path(entry.job.spec["out"]) for entry in waiting if "out" in entry.job.spec}

    def _serves(self, entry: Entry, reuse: bool) -> bool:
        made = entry.state.adapter
        finished = reuse and entry.state.status == "finished" and made is not None and os.path.isfile(made)
        return finished or entry.state.status in _WAITING


@dataclass(frozen=True)
class _Seen:
    """A summary, good as long as what it was made from stays the same."""

    key: tuple[Any, ...]
    summary: dict[str, Any]


def _key(entry: Entry) -> tuple[Any, ...]:
    state = entry.state
    made = state.adapter is not None and os.path.isfile(state.adapter)
    silent = state.status in _ACTIVE and job_view.silence(entry) > job_view.SILENT
    return (state, _stamp(entry.run / "events.jsonl"), _stamp(entry.run / "samples"), made, silent)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
