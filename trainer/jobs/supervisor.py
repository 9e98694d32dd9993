"""Runs what is queued: one child process per device, watched from a thread of the host.

The children are processes of their own that outlive the host; the next supervisor takes over those that live and says
of the others how far they had come. Of several supervisors on one home folder one works, the others wait to take over.
While nothing runs it looks at one file's time of change every few seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
from filelock import FileLock, Timeout

from ...spectral.errors import SpectralError
from .. import files, processes
from ..processes import Process
from . import settle
from .environment import child_environment, command
from .host import Device, Host, find_devices
from .job import LOG, RESULT, Entry, UnknownJob
from .store import JobStore

_WATCH = 1.0  # seconds between looks while something runs or waits
_IDLE = 3.0  # seconds between looks at the queue's file while nothing does
_LOCK, _LEADER = "supervisor.lock", "supervisor.json"


@dataclass
class _Child:
    """A process at work. popen: None where an earlier host started it."""

    device: str
    process: Process | None
    popen: subprocess.Popen[bytes] | None

    def ended(self) -> tuple[bool, int | None]:
        """Whether it is gone, and its exit status where that is known."""
        if self.popen is not None:
            code = self.popen.poll()
            return code is not None, code
        return self.process is None or self.process.is_gone(), None


class Supervisor:
    """See the module. devices: what may train at the same time; None finds out, in its own thread.

    leads: whether this is the one that works, and not one that waits to take over.
    """

    def __init__(self, store: JobStore, host: Host, devices: Sequence[Device] | None = None):
        self.store, self.host = store, host
        self.devices: tuple[Device, ...] = tuple(devices or ())
        self._children: dict[str, _Child] = {}
        self._waiting: list[str] = []
        self._queue: object = None
        self.leads, self._text = False, "Nothing runs the queue."
        self._over, self._awake = Event(), Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to work, in a thread; again after `close` too."""
        if self._thread is None or not self._thread.is_alive():
            self._over.clear()
            self._text = ""
            self._thread = Thread(target=self._run, name="spectral-adapters-jobs", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Look at the queue now: something was changed."""
        self._awake.set()

    def close(self) -> None:
        """Look after the jobs no longer. What trains goes on, and the next supervisor takes it over."""
        self._over.set()
        self.wake()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def status(self) -> dict[str, Any]:
        """{"alive": whether the queue is worked on, here or by another process, "text": a sentence}."""
        here = self._thread is not None and self._thread.is_alive()
        return {"alive": here, "text": self._text}

    def busy(self) -> dict[str, str]:
        """The job at work on each device that has one."""
        return {child.device: id for id, child in list(self._children.items())}

    # --- who works

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                with self._leading() as leads:
                    if leads:
                        self._lead()
                if not self._over.is_set():
                    self._pause(_IDLE)
        finally:
            error = sys.exc_info()[1]
            self.leads = False
            self._text = "Nothing runs the queue." + (
                "" if error is None else f" An error ended it: {type(error).__name__}: {error}. Restart the host."
            )

    @contextlib.contextmanager
    def _leading(self) -> Iterator[bool]:
        """Whether this is the one supervisor of the home folder, for the length of the block."""
        lock = FileLock(self.store.home / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            self._text = f"The queue is run by {self._leader()}."
            yield False
            return
        except (OSError, NotImplementedError) as error:
            self._text = f"{self.store.home}: found no usable file locks there ({error}). Choose another home folder."
            yield False
            return
        try:
            yield True
        finally:
            self.leads = False
            lock.release()

    def _lead(self) -> None:
        """Work until closed; what a full or closed disk refuses is tried again."""
        adopted = False
        while not self._over.is_set():
            try:
                if not adopted:
                    self._announce()
                    self._adopt()
                    adopted = True
                self._reap()
                self._fill()
                self._text = "Runs the queue."
            except (SpectralError, OSError) as error:
                self._text, self._queue = f"The queue waits: {error}", None
            self._pause(_WATCH if self._children or self._waiting else _IDLE)

    def _announce(self) -> None:
        self._queue, self._children = None, {}
        about = {"name": self.host.name, "process": vars(processes.this())}
        files.write_bytes(self.store.home / _LEADER, json.dumps(about).encode())
        self.leads = True
        self.devices = self.devices or find_devices()

    def _leader(self) -> str:
        try:
            about = json.loads((self.store.home / _LEADER).read_bytes())
            return f"{about['name']} (process {about['process']['pid']} on {about['process']['host']})"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"

    def _pause(self, seconds: float) -> None:
        self._awake.wait(seconds)
        self._awake.clear()

    # --- what it does

    def _adopt(self) -> None:
        """Take over the children of an earlier host; say of those that are gone how far they had come."""
        for entry in self.store.active():
            process = settle.child(entry)
            if process is None:
                self.host.changed(self.store.settle(entry.id))
            else:
                self._children[entry.id] = _Child(entry.state.device or "cpu", process, None)

    def _reap(self) -> None:
        for id, child in list(self._children.items()):
            gone, code = child.ended()
            if gone:
                with contextlib.suppress(UnknownJob):  # someone has removed its folder
                    self.host.changed(self.store.settle(id, code))
                del self._children[id]

    def _fill(self) -> None:
        """Begin what waits, in its order, on the devices that are free."""
        signature = self.store.queue_signature()
        if signature != self._queue:
            self._waiting, self._queue = self.store.queue(), signature
        for id in list(self._waiting):
            entry = self.store.entry(id)
            device = self._device(entry)
            if device is not None and self._may_begin(entry):
                self._waiting.remove(id)
                self._begin(entry, device)

    def _device(self, entry: Entry) -> str | None:
        """The free device that the job may have, or None."""
        known = [device.id for device in self.devices]
        gpus = [id for id in known if id != "cpu"]
        wanted = (gpus or known) if entry.job.device == "auto" else [id for id in known if id == entry.job.device]
        if not wanted:
            self._say(entry, f"Waits for {entry.job.device}; found {', '.join(known)}. Choose another device for it.")
        taken = {child.device for child in self._children.values()}
        return next((id for id in wanted if id not in taken), None)

    def _may_begin(self, entry: Entry) -> bool:
        if not entry.job.options.wait_idle or self.host.idle():
            return True
        self._say(entry, f"Waits until {self.host.name} has nothing to do.")
        return False

    def _say(self, entry: Entry, text: str) -> None:
        if entry.state.text != text:
            self.host.changed(self.store.say(entry.id, text))

    def _begin(self, entry: Entry, device: str) -> None:
        begun = self.store.begin(entry.id, device)
        if begun is None:
            return
        self.host.changed(begun)
        if device != "cpu" and begun.job.options.unload:
            self.host.release()
        try:
            popen = _spawn(begun, device, self.store.home)
        except OSError as error:
            text = f"The process could not be started: {error}."
            result = {"reason": "failed", "text": text, "resumable": settle.checkpoint(begun)[1]}
            files.write_bytes(begun.folder / RESULT, json.dumps(result).encode())
            self.host.changed(self.store.settle(entry.id))
            return
        process = _identity(popen)
        self._children[entry.id] = _Child(device, process, popen)
        Thread(target=self._await, args=(popen,), name=f"await-{popen.pid}", daemon=True).start()
        self.host.changed(self.store.began(entry.id, process))

    def _await(self, popen: subprocess.Popen[bytes]) -> None:
        popen.wait()
        self.wake()


def _spawn(entry: Entry, device: str, home: Path) -> subprocess.Popen[bytes]:
    """Start the job's child in a session of its own, so that it outlives this process. Raises OSError."""
    if os.name == "nt":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    else:
        detached = {"start_new_session": True}
    with open(entry.folder / LOG, "ab") as log:
        log.write(f"{settle.ATTEMPT}{entry.state.attempts}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        log.flush()
        return subprocess.Popen(
            command(entry.folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,
            env=child_environment(os.environ, device),
            **detached,
        )


def _identity(popen: subprocess.Popen[bytes]) -> Process | None:
    try:
        return processes.of(popen.pid)
    except psutil.Error:  # it has ended already
        return None
