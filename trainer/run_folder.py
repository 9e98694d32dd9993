"""The folder of a run: what was asked, what happened, and where it can be resumed.

- spec.json: the settings it started with; never changed
- resumes.jsonl: one line per resume: when, at which step, what was different
- events.jsonl: see event_log
- checkpoints/: see checkpoint
- samples/: pictures
- requests/: empty files named stop, sample or save, by which others ask a running training
- run.lock: the process that trains here
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from ..spectral.errors import SettingError
from . import files, processes
from .checkpoint import Checkpoints
from .processes import Process

Request = Literal["stop", "sample", "save"]
REQUESTS: tuple[Request, ...] = ("stop", "sample", "save")
_SPEC, _RESUMES, _EVENTS, _LOCK = "spec.json", "resumes.jsonl", "events.jsonl", "run.lock"
_GUARD = ".run.lock.guard"


@dataclass
class RunFolder:
    """A run that this process holds; made by `create` or `resume`, a context manager that lets it go at the end.

    `notices` says what was found and set right while opening.
    """

    path: Path
    notices: list[str] = field(default_factory=list)

    @classmethod
    def create(cls, path: Path, spec: Mapping[str, Any]) -> RunFolder:
        """Begin a run. `spec` is TrainSpec.as_json(), with absolute paths.

        A folder left by an attempt that saved no checkpoint is used again, its events set aside. Raises SettingError
        for a folder with other things in it, with checkpoints, held by another process, or that cannot be written.
        """
        path = path.absolute()
        cls.check(path, resume=False)
        run = cls(path)
        run._hold()
        try:
            run._begin(spec)
        except OSError as error:
            run.close()
            raise files.refusal("beginning a run", path, error, "Choose another folder with run") from error
        except SettingError:
            run.close()
            raise
        return run

    @classmethod
    def resume(cls, path: Path) -> RunFolder:
        """Open a run to go on with it. Raises SettingError for a folder that holds none or is held already."""
        path = path.absolute()
        cls.check(path, resume=True)
        run = cls(path)
        run._hold()
        try:
            run._tidy()
        except OSError as error:
            run.close()
            raise files.refusal("opening a run", path, error, "Check your permissions") from error
        return run

    @classmethod
    def check(cls, path: Path, *, resume: bool) -> None:
        """Raise SettingError where `resume`, else `create`, would refuse what is in the folder. Writes nothing."""
        if resume:
            if not (path / _SPEC).is_file():
                raise SettingError(
                    f"{path}: found {'no spec.json in it' if path.is_dir() else 'no such folder'}; expected the folder "
                    "of an earlier run. Leave --resume out to begin one, or name its folder with run."
                )
        elif path.exists() and _foreign(path):
            raise SettingError(
                f"{path}: found a {'folder with other files' if path.is_dir() else 'file'}, expected an empty folder "
                "or none. Choose another one with run."
            )
        elif saved := cls(path).checkpoints(1).steps():
            raise SettingError(
                f"{path}: found a run with checkpoints, the last {saved[-1].name}; expected an empty folder. "
                "Go on with it with --resume, or choose another folder with run."
            )

    @property
    def events(self) -> Path:
        """The event log's file."""
        return self.path / _EVENTS

    @property
    def samples(self) -> Path:
        """The folder of sample pictures."""
        return self.path / "samples"

    @property
    def requests(self) -> Path:
        """The folder in which others ask this training for something."""
        return self.path / "requests"

    @property
    def spec(self) -> dict[str, Any]:
        """The settings that the run began with. Raises SettingError where they are damaged."""
        return _settings(self.path / _SPEC)

    def checkpoints(self, keep: int) -> Checkpoints:
        """The run's checkpoints, of which the newest `keep` stay."""
        return Checkpoints(self.path / "checkpoints", keep)

    def record_resume(self, step: int, spec: Mapping[str, Any], notices: list[str]) -> None:
        """Append to resumes.jsonl that the run goes on after `step` with `spec`. Raises OSError."""
        line = {"time": time.time(), "step": step, "notices": notices, "spec": dict(spec)}
        handle = files.open_append(self.path / _RESUMES)
        try:
            files.write_all(handle, (json.dumps(line) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self) -> None:
        """Let other processes have the run."""
        if _owner(self.path / _LOCK) == processes.this():
            with contextlib.suppress(OSError):
                os.unlink(self.path / _LOCK)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _hold(self) -> None:
        try:
            files.make_folder(self.path)
            if notice := _lock(self.path / _LOCK):
                self.notices.append(notice)
        except OSError as error:
            raise files.refusal("holding the run's folder", self.path, error, "Choose another with run") from error

    def _begin(self, spec: Mapping[str, Any]) -> None:
        self.check(self.path, resume=False)  # again: another process may have had it until now
        self._tidy()
        if self.events.exists():
            number = sum(1 for _ in self.path.glob("events*.jsonl"))
            aside = self.path / f"events-{number}.jsonl"
            files.replace(self.events, aside)
            self.notices.append(f"An earlier attempt saved no checkpoint; its events are now in {aside.name}.")
        files.write_bytes(self.path / _SPEC, json.dumps(dict(spec), indent=1).encode())

    def _tidy(self) -> None:
        """Make the folders that are missing; remove what killed processes and old requests left."""
        files.clean(self.path)
        self.checkpoints(1).clean()
        for folder in (self.samples, self.requests):
            files.make_folder(folder)
        for name in REQUESTS:
            (self.requests / name).unlink(missing_ok=True)


@dataclass
class Requests:
    """What others ask of a running training, by files in `folder`; each call answers and takes the request away.

    `also` is a further way to ask for a stop, such as Ctrl-C.
    """

    folder: Path
    also: Callable[[], bool] = lambda: False
    _stopping: bool = False

    def stop(self) -> bool:
        """Whether to stop; once asked for, for good."""
        self._stopping = self._take("stop") or self._stopping or self.also()
        return self._stopping

    def sample(self) -> bool:
        """Whether sample pictures are wanted now."""
        return self._take("sample")

    def save(self) -> bool:
        """Whether a checkpoint is wanted now."""
        return self._take("save")

    def _take(self, name: Request) -> bool:
        try:
            os.unlink(self.folder / name)
        except FileNotFoundError:
            return False
        except OSError:  # it is there but cannot be removed (Windows: still open); heard all the same
            return True
        return True


def ask(run: Path, request: Request) -> None:
    """Ask the training that runs in the folder `run` for something. Raises SettingError where none runs."""
    owner = _owner(run / _LOCK)
    if owner is None or owner.is_gone():
        raise SettingError(f"{run}: found no training running in it, expected one to ask for {request!r}.")
    (run / "requests" / request).touch()


def running(run: Path) -> int | None:
    """The process id of the training that holds the folder, as far as this machine can tell, or None."""
    owner = _owner(run / _LOCK)
    return None if owner is None or owner.is_gone() else owner.pid


def _lock(path: Path) -> str | None:
    """Take the lock; a notice where a dead process had it. Raises SettingError where a living one has, and OSError."""
    guard = FileLock(path.with_name(_GUARD), timeout=10)
    # Without the guard, of two processes that find a dead one's lock the slower could remove the quicker one's. Some
    # network folders have no such locks; there that moment's chance stays.
    with contextlib.suppress(NotImplementedError):
        guard.acquire()
    try:
        return _take(path)
    finally:
        guard.release()


def _take(path: Path) -> str | None:
    notice = None
    while not _make(path):
        owner = _owner(path)
        if owner is not None and not owner.is_gone():
            where = "" if owner.host == platform.node() else f" on {owner.host}"
            raise SettingError(
                f"{path.parent}: found that process {owner.pid}{where} is training there; expected no other. Wait for "
                f"it or ask it to stop. If it is certainly gone, delete {path}."
            )
        path.unlink(missing_ok=True)
        pid = "unknown" if owner is None else owner.pid
        notice = f"The last training here (process {pid}) ended without letting the run go; it is taken over."
    return notice


def _make(path: Path) -> bool:
    """Create the lock; False where there is one."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        files.write_all(handle, json.dumps(vars(processes.this())).encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    return True


def _owner(path: Path) -> Process | None:
    """Who holds the lock; None where nobody does or the file is damaged."""
    for _ in range(10):
        try:
            owner = Process(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            time.sleep(0.05)  # another process is just writing it, or was killed then
            continue
        return owner if type(owner.pid) is int else None
    return None


def _foreign(path: Path) -> bool:
    """Whether something that is no run of ours lies there."""
    if not path.is_dir():
        return True
    if (path / _SPEC).is_file():
        spec = _settings(path / _SPEC)
        return not (isinstance(spec, dict) and {"base", "images", "out"} <= set(spec))
    own = {_LOCK, _GUARD, "samples", "requests"}  # left when a process was killed before it wrote spec.json
    return any(p.name not in own and not (p.name.startswith(".") and p.suffix == ".tmp") for p in path.iterdir())


def _settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: found {error}; expected the settings of a run as JSON.") from error
