"""The course of a run from its event log: what counts after resumes, read again only where the log has grown."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

from .. import files
from ..event_shapes import is_event
from ..running_mean import RunningMean

EVENTS = "events.jsonl"
_KEPT = "summary.json"
_NOTICES = 200  # of which the newest are kept
_CHUNK = 4 << 20  # bytes read at once
_ANEW = 1000  # resumes that one log is taken to have at most; see Course.generation


@dataclass
class History:
    """What a run's events say of its course, step -> value; `best` is the step of the lowest validation loss.

    The one reading of what counts: a Resumed event takes back what later steps said before.
    """

    losses: dict[int, float] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    memory: dict[int, int | None] = field(default_factory=dict)
    speeds: dict[int, float] = field(default_factory=dict)
    validations: dict[int, float] = field(default_factory=dict)
    checkpoints: dict[int, str] = field(default_factory=dict)
    samples: dict[int, tuple[list[str], list[str]]] = field(default_factory=dict)
    best: int | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        """Add what an event of the log says."""
        match event:
            case {"event": "Resumed", "step": step}:
                self.forget_after(step)
            case {"event": "Step", "step": step, "loss": loss, "lr": rate}:
                self.losses[step], self.rates[step] = float(loss), float(rate)
                self.memory[step], self.speeds[step] = event.get("memory"), float(event.get("rate", 0.0))
            case {"event": "Skipped", "step": step}:
                self.losses[step] = math.nan
            case {"event": "Validated", "step": step, "loss": loss, "best": best}:
                self.validations[step] = float(loss)
                self.best = step if best else self.best
            case {"event": "Checkpointed", "step": step, "path": path}:
                self.checkpoints[step] = path
            case {"event": "Sampled", "step": step, "paths": paths, "prompts": prompts}:
                self.samples[step] = (paths, prompts)

    def forget_after(self, step: int) -> None:
        """What later steps said does not count: the run went on from `step`."""
        for kept in (self.losses, self.rates, self.memory, self.speeds, self.validations, self.checkpoints,
                     self.samples):  # fmt: skip
            for later in [s for s in kept if s > step]:
                del kept[later]
        if self.best is not None and self.best > step:
            trained = [s for s in self.validations if s > 0]
            self.best = min(trained, key=self.validations.__getitem__, default=None)


@dataclass
class _Now:
    """Where a run stands, beside its history."""

    phase: str | None = None
    progress: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    step: int = 0
    steps: int | None = None
    saved: str | None = None
    ended: dict[str, Any] | None = None
    notices: list[dict[str, Any]] = field(default_factory=list)

    def take(self, event: Mapping[str, Any]) -> None:
        if event["event"] != "Ended":
            self.ended = None  # the run has gone on since
        match event:
            case {"event": "Phase", "name": name}:
                self.phase, self.progress = name, None
            case {"event": "Progress", "done": done, "total": total, "item": item}:
                self.progress = {"done": done, "total": total, "item": item}
            case {"event": "Plan"}:
                self.plan = {key: value for key, value in event.items() if key not in ("event", "time")}
                self.steps = event.get("steps")
            case {"event": "Step", "step": step, "steps": steps}:
                self.step, self.steps = step, steps
            case {"event": "Resumed", "step": step}:
                self.step = step
                self._note(event, "resumed", f"Going on after step {step}." if step else "Begins again.")
            case {"event": "Skipped", "step": step, "reason": reason}:
                self._note(event, "warning", f"Step {step} changed nothing: {reason}.")
            case {"event": "Notice", "text": text}:
                self._note(event, "notice", text)
            case {"event": "Saved", "path": path}:
                self.saved = path
            case {"event": "Ended"}:
                self.ended = {key: value for key, value in event.items() if key != "event"}
                self.phase = self.progress = None

    def _note(self, event: Mapping[str, Any], kind: str, text: str) -> None:
        self.notices.append({"time": event.get("time"), "step": self.step, "kind": kind, "text": text})
        del self.notices[:-_NOTICES]


class Course:
    """A run's folder as pages see it. Call `refresh` first; it reads only what is new. Safe to use from threads.

    generation: grows whenever what was said before no longer holds, by a resume or another attempt in the same folder.
    """

    def __init__(self, run: Path):
        self.run = run
        self.generation = 0
        self._lock = RLock()
        self._begin()

    def refresh(self) -> bool:
        """Read the events that have been added; whether there were any."""
        with self._lock:
            try:
                with open(self.run / EVENTS, "rb") as file:
                    return self._read(file)
            except FileNotFoundError:
                return False

    def summary(self) -> dict[str, Any]:
        """Where the run stands, as plain values. loss: smoothed. eta: seconds. rate: steps per second."""
        with self._lock:
            if self._file is None and (kept := self._kept()) is not None:
                return kept
            self.refresh()
            now, last = self._now, self._points[-1] if self._points else None
            steps_left = max(0, (now.steps or 0) - now.step)
            rate = last[4] if last else None
            return {
                "phase": now.phase,
                "progress": now.progress,
                "plan": now.plan,
                "step": now.step,
                "steps": now.steps,
                "loss": _finite(self._mean.value),
                "lr": last[2] if last else None,
                "rate": rate,
                "eta": round(steps_left / rate, 1) if rate and now.ended is None else None,
                "memory": last[3] if last else None,
                "best": self._best(),
                "notices": list(now.notices),
                "ended": now.ended,
                "saved": now.saved,
                "generation": self.generation,
            }

    def keep(self) -> None:
        """Write the summary of a run that has ended beside its events, so that lists need not read these again."""
        summary = self.summary()
        try:
            kept = {"of": self._events_signature(), "summary": summary}
            files.write_bytes(self.run / _KEPT, json.dumps(kept, allow_nan=False).encode())
        except OSError:  # it is only quicker with it
            return

    def curve(self, after: int = 0, generation: int | None = None) -> dict[str, Any]:
        """The curves beyond the `after` points that the caller has already, of the generation that they are of.

        `next` is the `after` of the next call. `reset`: forget all points, these are from the first on. What is not
        a finite number is None.
        """
        self.refresh()
        with self._lock:
            known = generation is None or generation == self.generation
            start = after if known and 0 <= after <= len(self._points) else 0
            columns = list(zip(*self._points[start:])) or [()] * 5
            history = self._history
            return {
                "generation": self.generation,
                "next": len(self._points),
                "total": len(self._points),
                "reset": start == 0,
                **{name: list(column) for name, column in zip(("steps", "loss", "lr", "memory", "rate"), columns)},
                "validations": [[step, _finite(loss)] for step, loss in sorted(history.validations.items())],
                "checkpoints": [
                    {"step": step, "best": step == history.best, "name": _name(path), "path": path}
                    for step, path in sorted(history.checkpoints.items())
                ],
                "samples": [
                    {"step": step, "paths": list(paths), "prompts": list(prompts)}
                    for step, (paths, prompts) in sorted(history.samples.items())
                ],
            }

    def _kept(self) -> dict[str, Any] | None:
        """The summary that was written when the run ended, where nothing was added since."""
        try:
            kept = json.loads((self.run / _KEPT).read_bytes())
            return kept["summary"] if kept["of"] == self._events_signature() else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _events_signature(self) -> list[int]:
        found = (self.run / EVENTS).stat()
        return [found.st_size, found.st_mtime_ns]

    def _begin(self) -> None:
        """Nothing has been read yet."""
        self._offset, self._file = 0, None
        self._history, self._now, self._mean = History(), _Now(), RunningMean()
        self._points: list[tuple[int, float | None, float | None, int | None, float | None]] = []

    def _read(self, file: Any) -> bool:
        found = os.fstat(file.fileno())
        identity = (found.st_dev, found.st_ino)
        if identity != self._file or found.st_size < self._offset:
            # Another attempt began in the folder, and set the old log aside.
            self._begin()
            self._file = identity
            self.generation = _ANEW * sum(1 for _ in self.run.glob("events-*.jsonl"))
        if found.st_size == self._offset:
            return False
        file.seek(self._offset)
        before = self._offset
        while block := file.read(_CHUNK):
            whole = block.rfind(b"\n") + 1
            if not whole:
                break  # the line is still being written
            for line in block[:whole].splitlines():
                self._take(line)
            self._offset += whole
            file.seek(self._offset)
        return self._offset > before

    def _take(self, line: bytes) -> None:
        """One line of the log; one torn by a crash, or that is no event of ours, is passed over."""
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return
        if is_event(event):
            self._count(event)

    def _count(self, event: Mapping[str, Any]) -> None:
        self._history.take(event)
        self._now.take(event)
        match event:
            case {"event": "Step", "step": step}:
                self._point(step)
            case {"event": "Resumed", "step": step}:
                self.generation += 1
                self._points = [point for point in self._points if point[0] <= step]
                self._mean = RunningMean()
                for point in self._points:
                    self._mean.add(math.nan if point[1] is None else point[1])

    def _point(self, step: int) -> None:
        history = self._history
        loss = history.losses[step]
        self._mean.add(loss)
        self._points.append(
            (step, _finite(loss), _finite(history.rates[step]), history.memory[step], _finite(history.speeds[step]))
        )

    def _best(self) -> dict[str, Any] | None:
        history = self._history
        if history.best is None or history.best not in history.validations:
            return None
        loss = history.validations[history.best]
        before = history.validations.get(0)
        than = "" if before is None else f"; before training it was {before:.4f}"
        text = f"Step {history.best} has the lowest loss on held-out pictures: {loss:.4f}{than}."
        return {"step": history.best, "loss": _finite(loss), "text": text}


def _finite(value: float) -> float | None:
    """The number to six digits, since 20,000 of them travel; None where it is none."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _name(path: str) -> str:
    """The last part of a path, of whatever system wrote it."""
    return path.replace("\\", "/").rpartition("/")[2]
