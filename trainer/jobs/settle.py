"""How a job ended whose child is gone: from what the child left behind, in words for people."""

from __future__ import annotations

import json
import platform
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from ...spectral.errors import SettingError, SpectralError
from .. import files, processes
from ..checkpoint import Checkpoints, step_of
from ..processes import Process
from ..run_folder import running
from .course import Course
from .job import HEARTBEAT, LOG, RESULT, STOP, Entry, State, Status

_POLITE = 3.0  # seconds between asking a process to end and ending it
_TAIL = 4096  # bytes of the log in which its last lines are looked for
_LINES, _LONGEST = 6, 700
ATTEMPT = "--- attempt "  # begins a line of the log for every start of a child
_STATUS: dict[str, Status] = {
    "finished": "finished", "converged": "finished", "stopped": "stopped",
    "diverged": "failed", "out_of_memory": "failed", "failed": "failed",
}  # fmt: skip


def child(entry: Entry) -> Process | None:
    """The living process that works on the job, or None."""
    known = entry.state.process or _from_heartbeat(entry.folder / HEARTBEAT)
    if known is not None:
        return None if known.is_gone() else known
    pid = running(entry.run)
    try:
        return None if pid is None else processes.of(pid)
    except psutil.Error:
        return None


def end_process(entry: Entry) -> None:
    """End the job's process and those it started: asked first, then at once. Returns when they are gone.

    Raises SettingError where it runs on another machine.
    """
    known = child(entry)
    if known is None:
        return
    if known.host != platform.node():
        raise SettingError(f"{entry.id} runs on {known.host}, this is {platform.node()}; end it there.")
    family = _family(known)
    for process in family:
        _quietly(process.terminate)
    if not _gone(known, _POLITE):
        for process in family:
            _quietly(process.kill)
        _gone(known, _POLITE)


def checkpoint(entry: Entry) -> tuple[int | None, bool]:
    """The step of the newest complete checkpoint, and whether there is one."""
    if entry.job.kind != "train":
        return None, False
    try:
        path, _ = Checkpoints(entry.run / "checkpoints").latest()
    except SpectralError:  # a newer version of this package wrote it; resuming says so
        return None, False
    return (None, False) if path is None else (step_of(path), True)


def outcome(entry: Entry, code: int | None) -> State:
    """The state of an active job whose child is gone; `code` is its exit status where it is known."""
    told = _told(entry)
    if told is None or (told.get("reason") == "failed" and _was_ended(entry.folder / STOP)):
        # Of a family that is ended, the child may still say how the others failed it.
        return _died(entry, code)
    status = _STATUS.get(str(told.get("reason")), "failed")
    adapter = told.get("adapter")
    return entry.state.becomes(
        status,
        ended=time.time(),
        process=None,
        text=str(told.get("text", "")),
        reason=str(told.get("reason")),
        step=told.get("step") if type(told.get("step")) is int else None,
        resumable=status != "finished" and told.get("resumable") is True,
        adapter=str(adapter) if adapter and status == "finished" else None,
    )


def _told(entry: Entry) -> dict[str, Any] | None:
    """What the child said of its end: in result.json, or where it was killed before that, in its events."""
    try:
        found = json.loads((entry.folder / RESULT).read_bytes())
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict):
        return found
    seen = Course(entry.run).summary()
    ended = seen["ended"]
    if ended is None or ended["time"] < (entry.state.started or 0.0):
        return None
    return {**ended, "adapter": seen["saved"]}


def _died(entry: Entry, code: int | None) -> State:
    """The child said nothing."""
    saved, resumable = checkpoint(entry)
    if _was_ended(entry.folder / STOP):
        status, sentence = "stopped", "Ended at once, as asked."
    else:
        status, sentence = ("failed" if code is not None and code > 0 else "interrupted"), _cause(code)
    if resumable:
        go_on = f"Resuming goes on from step {saved}, the last complete checkpoint."
    elif entry.job.kind == "train":
        go_on = "No checkpoint had been saved, so resuming begins again."
    else:
        go_on = "Resuming begins again."
    words = last_words(entry.folder / LOG) if status == "failed" else ""
    text = f"{sentence} {go_on}" + (f" Its last lines were: {words}" if words else "")
    step = Course(entry.run).summary()["step"]
    return entry.state.becomes(
        status, ended=time.time(), process=None, text=text, reason="killed", step=step, resumable=resumable
    )


def _was_ended(stop: Path) -> bool:
    try:
        return stop.read_text(encoding="utf-8") == "now"
    except OSError:
        return False


def _cause(code: int | None) -> str:
    if code is None:
        return "The process is gone without a word: the computer was turned off, or something ended it."
    if code == -9:
        return "The process was killed from outside (signal 9), perhaps because the machine ran out of memory."
    if code < 0:
        return f"The process was ended by signal {-code} ({_signal_name(-code)})."
    shown = hex(code) if code > 255 else str(code)  # Windows reports crashes as large numbers, known by their hex
    return f"The process ended with exit status {shown} before it could say why."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def last_words(log: Path) -> str:
    """The last lines that the last attempt printed."""
    try:
        text = files.tail(log, _TAIL)
    except OSError:
        return ""
    lines = [line.strip() for line in text.rpartition(ATTEMPT)[2].splitlines()[1:] if line.strip()]
    return " / ".join(lines[-_LINES:])[-_LONGEST:]


def _from_heartbeat(path: Path) -> Process | None:
    try:
        return Process(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _family(known: Process) -> list[psutil.Process]:
    try:
        parent = psutil.Process(known.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def _quietly(act: Any) -> None:
    try:
        act()
    except psutil.NoSuchProcess:
        return


def _gone(known: Process, seconds: float) -> bool:
    """Wait for the process to be gone; not with waitpid, whose answer belongs to the supervisor."""
    deadline = time.monotonic() + seconds
    while not known.is_gone():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
