"""What the rest of this room needs to know of a web UI; each has one `Host`, in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .changes import Base

Undo = Callable[[], None]
#: The host's `StableDiffusionProcessing`: one generation.
Generation = Any


@dataclass(frozen=True)
class Host:
    """One kind of web UI.

    name: for people. present: whether this is the one that runs. attach: makes its Lora understand the files of this
    package, once however often it is called, and returns how to undo it. base: the model that is loaded now. prepare:
    called when a generation has chosen its networks, before any weight is changed; raises SpectralError to stop the
    generation. drop: forgets what a generation has chosen, so that nothing of it is applied.
    """

    name: str
    present: Callable[[], bool]
    attach: Callable[[], Undo]
    base: Callable[[], Base]
    prepare: Callable[[Generation], None]
    drop: Callable[[], None]
