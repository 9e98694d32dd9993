"""Long work inside a node: a progress bar, and Cancel heard in every step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import comfy.model_management
from comfy.utils import ProgressBar

from ..spectral.basis import Progress
from ..spectral.errors import Cancelled

cancelled = comfy.model_management.processing_interrupted


def progress() -> Progress:
    """(done, total, layer) shown on the running node. Raises ComfyUI's interrupt once the user has pressed Cancel."""
    bar = ProgressBar(1)

    def show(done: int, total: int, layer: str) -> None:
        bar.update_absolute(done, total)

    return show


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """The engine's `Cancelled` as ComfyUI's own interrupt, which ends the prompt without an error."""
    try:
        yield
    except Cancelled:
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise
