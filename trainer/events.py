"""What a training run tells the outside: small immutable objects handed to a listener."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Reason = Literal["finished", "stopped", "diverged"]


@dataclass(frozen=True)
class Phase:
    """A stretch of work begins: loading, caching, decomposing, training, saving."""

    name: str


@dataclass(frozen=True)
class Progress:
    """Within a phase: `done` of `total` items, `item` being the last one."""

    done: int
    total: int
    item: str


@dataclass(frozen=True)
class Notice:
    """Something the user should know although the run goes on."""

    text: str


@dataclass(frozen=True)
class Plan:
    """Said before the first step. `file_bytes` is the expected size of the adapter file."""

    method: str
    layers: int
    parameters: int
    steps: int
    pictures: int
    resolution: int
    file_bytes: int


@dataclass(frozen=True)
class Step:
    """One optimiser step is done. `loss` is the weighted mean of its batch; `lr` belongs to the first group."""

    step: int
    steps: int
    loss: float
    lr: float


@dataclass(frozen=True)
class Saved:
    path: Path
    file_bytes: int


@dataclass(frozen=True)
class Ended:
    """The last event of a run that reached training. `text` is a sentence for people."""

    reason: Reason
    step: int
    text: str


Event = Phase | Progress | Notice | Plan | Step | Saved | Ended
Listener = Callable[[Event], None]


def silent(_event: Event) -> None:
    """A listener for callers who want only the result."""
