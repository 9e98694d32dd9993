"""What a training will take, asked while someone chooses its settings: the estimating process and its questions.

Needs no torch itself. The process is started by the first question, ends by itself when there are none for a minute,
and is started again by the next.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock, Thread
from typing import IO, Any

from ..spectral.errors import SettingError, SpectralError
from .jobs.environment import PACK, child_environment

TIMEOUT = 120.0  # seconds; the first question on SDXL takes some ten
_TAIL = 600  # characters of what a process that died has said


class EstimateFault(SpectralError):
    """The estimating process gave no answer."""


class Estimator:
    """Estimates by a process of its own. home: the jobs' folder, whose past runs tell how fast this machine is.

    Any thread may ask; questions are answered one after the other.
    """

    def __init__(self, home: Path) -> None:
        self._home = Path(home)
        self._process: _Process | None = None
        self._numbers = itertools.count()
        self._lock = Lock()
        self._closed = False

    def ask(
        self, spec: Mapping[str, Any], device: str = "auto", *, unload: bool = False, timeout: float = TIMEOUT
    ) -> dict[str, Any]:
        """{"parameters", "layers": by part, "file_bytes", "pictures", "buckets": {"512x512": 4}, "resolution",
        "memory": bytes by part, "memory_bytes", "free_bytes", "step_seconds", "seconds", "device", "sources"}.

        spec: TrainSpec.as_json(). device: as for a job. unload: whether this process gives up its memory on the GPU
        before the training. free_bytes, step_seconds, seconds: None where nobody tells. sources: {"time": "measured"
        (with the same settings), "calibrated" (by other runs on such a base), "estimated" (by a calibration alone) or
        "unknown"}. Raises SettingError with the sentence that training would raise, EstimateFault for no answer.
        """
        question = {"id": next(self._numbers), "spec": dict(spec), "device": device, "unload": unload}
        with self._lock:
            answer = self._answer(question, timeout)
        if "error" in answer:
            raise SettingError(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        """End the process; a question that waits is answered by an EstimateFault."""
        self._closed = True
        if (process := self._process) is not None:
            process.end()

    def _answer(self, question: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        # A process that ended by itself, for want of questions, at the moment of this one is started again.
        for _ in range(2):
            process = self._running()
            if (answer := process.answer(question, timeout)) is not None:
                return answer
            if said := process.end():
                raise EstimateFault(f"the estimating process ended without an answer; it said: {said}")
        raise EstimateFault("the estimating process ended twice without an answer")

    def _running(self) -> _Process:
        if self._closed:
            raise EstimateFault("the estimator is closed")
        if self._process is None or not self._process.lives():
            self._process = _Process(self._home)
        return self._process


class _Process:
    """A running estimating process."""

    def __init__(self, home: Path):
        # A file and not a pipe: nobody reads it as long as all goes well.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._ending = Lock()  # who closes the estimator and who waits for an answer may end it at once
        environment = child_environment(os.environ, "cpu") | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        try:
            self._popen = subprocess.Popen(
                [sys.executable, str(PACK), "estimate-server", str(home)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=environment,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            self._said.close()
            raise EstimateFault(f"the estimating process could not be started: {error}") from error
        self._lines: queue.Queue[bytes] = queue.Queue()
        Thread(target=self._read, args=(self._popen.stdout,), daemon=True).start()

    def _read(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def lives(self) -> bool:
        return self._popen.poll() is None

    def answer(self, question: Mapping[str, Any], timeout: float) -> dict[str, Any] | None:
        """The answer, or None where the process ended instead. Raises EstimateFault after `timeout` seconds."""
        end = time.monotonic() + timeout
        try:
            self._popen.stdin.write(json.dumps(question).encode() + b"\n")
            self._popen.stdin.flush()
            while line := self._lines.get(timeout=max(0.0, end - time.monotonic())):
                answer = json.loads(line)
                if answer["id"] == question["id"]:
                    return answer
        except OSError:  # it has closed its end
            return None
        except queue.Empty:
            self.end()
            raise EstimateFault(f"there was no estimate within {timeout:g} seconds") from None
        return None

    def end(self) -> str:
        """End it where it still runs; the last of what it said, "" where it ended by itself and in peace."""
        with self._ending:
            in_peace = self._popen.poll() == 0
            self._popen.kill()
            self._popen.wait()
            self._popen.stdin.close()
            if self._said.closed:
                return ""
            self._said.seek(0)
            said = self._said.read().decode("utf-8", "replace").strip()
            self._said.close()
            return "" if in_peace else said[-_TAIL:]
