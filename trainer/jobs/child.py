"""The process that works on one job: it trains, makes a grid, exports, compares or fuses, and says how in result.json.

Started by the supervisor as ``python PACK job-child FOLDER``. It outlives its host, gives a sign of life every few
seconds, and ends politely on SIGTERM or when the file `stop` lies in the job's folder. Everything heavy is imported
here, and only once the work begins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil
from filelock import FileLock, Timeout

from ...spectral.errors import Cancelled, SpectralError
from .. import files, processes
from ..engines import SD_SCRIPTS, Engine
from ..events import Ended, Event
from . import settle
from .course import Course
from .job import BEAT, HEARTBEAT, RESULT, STOP, BrokenJob, Entry, read_entry

if TYPE_CHECKING:
    from ..ending import Outcome

HELD = "child.lock"
REFUSED = 3  # exit status of a child that found nothing to do
_NICER = 10  # on the CPU, so that the host and its user come first


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The job's folder."""
    command.add_argument("folder", type=Path, help="the folder of a job that the supervisor has begun")


def run(arguments: argparse.Namespace) -> int:
    """Work on the job; 0 when result.json says how it ended, whatever that is."""
    folder = arguments.folder.absolute()
    try:
        entry = read_entry(folder)
    except BrokenJob as error:
        _write_result(folder, _result("failed", str(error)))
        return 0
    if not entry.state.active:
        print(f"{folder}: found that this job is {entry.state.status}; expected the supervisor to have begun it.")
        return REFUSED
    try:
        with FileLock(folder / HELD, timeout=0):
            return _work(entry)
    except Timeout:
        print(f"{folder}: found another process at work on this job.")
        return REFUSED


def _work(entry: Entry) -> int:
    with _sign_of_life(entry.folder / HEARTBEAT):
        stop = _Stop(entry.folder / STOP)
        _be_nice(entry)
        told = _Told()
        try:
            result = _KINDS[entry.job.kind](entry, told, stop)
        except (SpectralError, KeyboardInterrupt) as error:
            result = _failed(entry, told, *_ending(error))
        except BaseException as error:
            traceback.print_exc()
            _write_result(entry.folder, _failed(entry, told, "failed", f"{type(error).__name__}: {error}"))
            raise
        _write_result(entry.folder, result)
    return 0


def _train(entry: Entry, listen: _Told, stop: Callable[[], bool]) -> dict[str, Any]:
    from ..console import quiet_libraries
    from ..spec import TrainSpec

    spec = TrainSpec.from_mapping(entry.job.spec)
    if (done := _written(entry)) is not None:
        return _result("finished", f"The adapter had been written already: {done}.", entry.state.step, adapter=done)
    spec = replace(spec, device="cpu" if entry.state.device == "cpu" else spec.device)
    spec = _with_free_name(spec)
    spec.check()  # before the libraries are loaded, so that a missing folder is said at once
    quiet_libraries()
    train = _trainer(entry.job.engine)
    begun = (entry.run / "spec.json").is_file()
    outcome = train(spec, listen=listen, stop=stop, resume=begun, allow=entry.state.allow)
    adapter = outcome.path if outcome.reason in ("finished", "converged") else None
    return _result(outcome.reason, listen.text, outcome.steps, listen.resumable, adapter)


def _trainer(engine: Engine) -> Callable[..., Outcome]:
    """What trains; both take the same arguments and end alike. Raises SettingError where it is not set up here."""
    if engine == SD_SCRIPTS:
        from ..sd_scripts import place

        checkout = place.find()  # before the libraries are loaded
        from ..sd_scripts.run import run

        return partial(run, checkout=checkout)
    from ...spectral.cache import BasisCache
    from ..loop import train

    return partial(train, cache=BasisCache())


def _written(entry: Entry) -> str | None:
    """The adapter of an earlier attempt that was killed after it had written it."""
    seen = Course(entry.run).summary()
    complete = seen["steps"] is not None and seen["step"] == seen["steps"]
    return seen["saved"] if complete and seen["saved"] and os.path.isfile(seen["saved"]) else None


def _with_free_name(spec: Any) -> Any:
    """The settings with a place for the adapter where there is no file yet: one may have appeared in the meantime."""
    try:
        files.make_folder(spec.out.parent)
    except OSError as error:
        raise files.refusal("making the folder of adapters", spec.out.parent, error, "Choose another") from error
    return replace(spec, out=files.free_name(spec.out))


def _grid(entry: Entry, listen: _Told, stop: Callable[[], bool]) -> dict[str, Any]:
    from ..console import quiet_libraries

    quiet_libraries()
    from ..grid import make_grid

    request = {**entry.job.spec, "device": "cpu"} if entry.state.device == "cpu" else entry.job.spec
    done = make_grid(request, entry.run, listen, stop)
    return _result(done.reason, done.text, resumable=done.resumable)


def _export(entry: Entry, listen: _Told, stop: Callable[[], bool]) -> dict[str, Any]:
    from ..export_task import export

    done = export(entry.job.spec, entry.run, listen, stop)
    return _result(done.reason, done.text, resumable=done.resumable, adapter=done.path)


def _conflict(entry: Entry, listen: _Told, stop: Callable[[], bool]) -> dict[str, Any]:
    from ...spectral.cache import BasisCache
    from ..mix_task import compare

    done = compare(entry.job.spec, entry.run, listen, stop, BasisCache())
    return _result(done.reason, done.text, resumable=done.resumable)


def _fuse(entry: Entry, listen: _Told, stop: Callable[[], bool]) -> dict[str, Any]:
    from ...spectral.cache import BasisCache
    from ..mix_task import fuse

    done = fuse(entry.job.spec, entry.run, listen, stop, BasisCache())
    return _result(done.reason, done.text, resumable=done.resumable, adapter=done.path)


_KINDS: dict[str, Callable[[Entry, _Told, Callable[[], bool]], dict[str, Any]]] = {
    "train": _train, "grid": _grid, "export": _export, "conflict": _conflict, "fuse": _fuse,
}  # fmt: skip


class _Told:
    """A listener that keeps how the run said it ended."""

    def __init__(self) -> None:
        self.text, self.step, self.resumable = "", 0, False

    def __call__(self, event: Event) -> None:
        self.step = getattr(event, "step", self.step)
        if isinstance(event, Ended):
            self.text, self.resumable = event.text, event.resumable


class _Stop:
    """Whether the job is to stop: by a signal, or by the file."""

    def __init__(self, file: Path) -> None:
        self._file, self._asked = file, False
        for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._hear)

    def __call__(self) -> bool:
        self._asked = self._asked or self._file.exists()
        return self._asked

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True


@contextlib.contextmanager
def _sign_of_life(path: Path) -> Iterator[None]:
    """Say who works here, and touch the file every few seconds."""
    files.write_bytes(path, json.dumps(vars(processes.this())).encode())
    over = Flag()

    def beat() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):  # a full disk, or a folder being moved: the next beat tries again
                os.utime(path)

    Thread(target=beat, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _be_nice(entry: Entry) -> None:
    if entry.state.device != "cpu":
        return
    process = psutil.Process()
    with contextlib.suppress(psutil.AccessDenied):
        process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if os.name == "nt" else max(process.nice(), _NICER))


def _ending(error: BaseException) -> tuple[str, str]:
    if isinstance(error, (Cancelled, KeyboardInterrupt)):
        return "stopped", str(error) or "Stopped before there was anything to save."
    return "failed", str(error)


def _failed(entry: Entry, told: _Told, reason: str, text: str) -> dict[str, Any]:
    """An end by an error, which may have come before the run could look for its checkpoints."""
    saved, resumable = settle.checkpoint(entry)
    return _result(reason, text, told.step or saved, resumable)


def _result(
    reason: str, text: str, step: int | None = None, resumable: bool = False, adapter: object = None
) -> dict[str, Any]:
    path = None if adapter is None else str(adapter)
    return {"reason": reason, "text": text, "step": step, "resumable": resumable, "adapter": path, "time": time.time()}


def _write_result(folder: Path, result: dict[str, Any]) -> None:
    """What no disk takes is in child.log."""
    print(json.dumps(result), flush=True)
    try:
        files.write_bytes(folder / RESULT, json.dumps(result).encode())
    except OSError as error:
        print(f"{folder / RESULT}: {error}", file=sys.stderr)
