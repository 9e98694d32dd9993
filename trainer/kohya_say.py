"""What the network module tells of its work: events, by default as lines on standard output."""

from __future__ import annotations

import os
import time

from .events import Event, Listener, Notice, Phase, Progress

_EVERY = 5.0  # seconds between lines on the decomposition


class Lines:
    """A listener that prints what a person wants to see among sd-scripts' own output; the first process speaks."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.done < event.total and time.monotonic() - self._last < _EVERY:
            return
        self._last = time.monotonic()
        if os.environ.get("RANK", "0") == "0":
            print(f"spectral_adapters: {_sentence(event)}", flush=True)


_listener: Listener = Lines()


def heard_by(listener: Listener) -> None:
    """Have another listener told, such as that of a program which has started sd-scripts."""
    global _listener
    _listener = listener


def tell(event: Event) -> None:
    _listener(event)


def notice(text: str) -> None:
    tell(Notice(text))


def _sentence(event: Event) -> str:
    if isinstance(event, Progress):
        return f"decomposed {event.done} of {event.total} layers of the model: {event.item}"
    return event.name if isinstance(event, Phase) else event.text if isinstance(event, Notice) else str(event)
