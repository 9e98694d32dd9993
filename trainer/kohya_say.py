"""What the network module tells the person who started sd-scripts: lines on its standard output."""

from __future__ import annotations

import os
import time

_EVERY = 5.0  # seconds between lines on the decomposition


def say(text: str) -> None:
    """One line, said by the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"spectral_adapters: {text}", flush=True)


class Decomposing:
    """A progress listener that says a line every few seconds, and at the end."""

    def __init__(self, part: str) -> None:
        self._part, self._last = part, time.monotonic()

    def __call__(self, done: int, total: int, layer: str) -> None:
        if done < total and time.monotonic() - self._last < _EVERY:
            return
        self._last = time.monotonic()
        say(f"decomposed {done} of {total} layers of the {self._part}: {layer}")
