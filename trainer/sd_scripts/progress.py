"""sd-scripts' output, line by line, as events: what our part in its process says, and what its own log tells."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator

from ..events import Event, Listener, Phase, Progress
from .wire import Over, heard

# What sd-scripts logs when a stretch of work begins, in the order of a run.
_PHASES = (
    ("prepare images", "checking the pictures"),
    ("loading u-net", "loading the base model"),
    ("building U-Net", "loading the base model"),
    ("load StableDiffusion checkpoint", "loading the base model"),
    ("load Diffusers pretrained models", "loading the base model"),
    ("loading model for process", "loading the base model"),
    ("caching latents", "encoding the pictures"),
    ("caching Text Encoder outputs", "encoding the captions"),
    ("import network module", "decomposing the base's weights"),
    ("prepare optimizer, data loader", "preparing the training"),
    ("generating sample images at step", "sampling"),
)
_BAR = re.compile(r"(?:^|:\s*)\d+%\|[^|]*\| *(\d+)/(\d+) \[")
_OWN_BAR = "steps:"  # of the training: its steps are told by our part
_EVERY = 0.5  # seconds between two events of one bar
_KEPT = 60  # last lines, for the sentence of an error
_ERROR = re.compile(r"(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)|AssertionError|SystemExit)\b.*")


class Reader:
    """Turns lines into events for `tell`, and keeps what an error's sentence is made of.

    over: the last word of our part in the process, None before. begun: whether the steps have begun.
    """

    def __init__(self, tell: Listener, log: Callable[[str], object]):
        self._tell, self._log = tell, log
        self._last: deque[str] = deque(maxlen=_KEPT)
        self._phase, self._told = "", 0.0
        self.over: Over | None = None
        self.begun = False

    def line(self, line: str) -> None:
        """Take one line, without its end."""
        message = heard(line)
        if isinstance(message, Over):
            self.over = message
        elif message is not None:
            self._event(message)
        elif line.strip():
            self._log(line)
            self._last.append(line.strip())
            self._plain(line)

    def why(self) -> str:
        """The last line that names an error, else the last of all."""
        errors = [line for line in self._last if _ERROR.fullmatch(line)]
        return errors[-1] if errors else next(reversed(self._last), "it said nothing")

    def _event(self, event: Event) -> None:
        if isinstance(event, Phase):
            if event.name == self._phase:
                return
            self._phase = event.name
            self.begun = self.begun or event.name == "training"
        self._tell(event)

    def _plain(self, line: str) -> None:
        for text, phase in _PHASES:
            if text in line:
                self._event(Phase(phase))
                return
        if (bar := _BAR.search(line)) and self._phase not in ("", "training") and not line.startswith(_OWN_BAR):
            self._progress(int(bar[1]), int(bar[2]))

    def _progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if total and (done == total or now - self._told >= _EVERY):
            self._told = now
            self._tell(Progress(done, total, ""))


def lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """The lines of output that comes in pieces; a progress bar's carriage return ends a line too."""
    rest = b""
    for chunk in chunks:
        *whole, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from (each.decode("utf-8", "replace") for each in whole)
    yield rest.decode("utf-8", "replace")
