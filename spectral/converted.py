"""What the reading of another tool's spectral file gives."""

from __future__ import annotations

from dataclasses import dataclass

from .adapter import Adapter
from .convert import Residual


@dataclass(frozen=True)
class Converted:
    """An adapter, how far its file will be from what the other one holds, and what a person should know of it."""

    adapter: Adapter
    residual: Residual
    notes: tuple[str, ...] = ()
