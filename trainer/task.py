"""A job beside training that makes files: a grid of pictures, an export. Its events are logged like a training's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..spectral.errors import Cancelled, SpectralError
from . import files
from .event_log import EventLog
from .events import Ended, Event, Listener, Reason
from .run_folder import Requests

EVENTS, REQUESTS = "events.jsonl", "requests"


@dataclass(frozen=True)
class Done:
    """How a task ended. path: what it made; resumable: begun again in the same folder it makes only what is missing."""

    reason: Reason
    text: str
    path: Path | None = None
    resumable: bool = False


class Task:
    """Open while a task works in `folder`; a context manager that logs its events there and how it ended.

    A stop is asked for by `stop`, or by a file requests/stop in the folder. Raises SpectralError where the folder
    cannot be written.
    """

    def __init__(self, folder: Path, listen: Listener, stop: Callable[[], bool]):
        self.folder, self._listen = folder, listen
        self.stop = Requests(folder / REQUESTS, also=stop).stop

    def tell(self, event: Event) -> None:
        self._listen(event)
        self._log(event)

    def end(self, done: Done) -> Done:
        """Say how it ended, and return it."""
        self._ended = True
        self.tell(Ended(done.reason, 0, done.text, done.resumable))
        return done

    def __enter__(self) -> Task:
        try:
            files.make_folder(self.folder / REQUESTS)
            files.clean(self.folder)
            (self.folder / REQUESTS / "stop").unlink(missing_ok=True)
            self._log = EventLog(self.folder / EVENTS)
        except OSError as error:
            raise files.refusal("beginning a task", self.folder, error, "Choose another folder") from error
        self._ended = False
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            if error is not None and not self._ended:
                self.end(Done(*_ending(error)))
        finally:
            self._log.close()


def _ending(error: BaseException) -> tuple[Reason, str]:
    if isinstance(error, (Cancelled, KeyboardInterrupt)):
        return "stopped", str(error) or "Interrupted."
    return "failed", str(error) if isinstance(error, SpectralError) else f"{type(error).__name__}: {error}"
