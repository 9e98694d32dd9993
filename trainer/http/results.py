"""Routes of what came out: the grid, the spectrum, two runs side by side."""

from __future__ import annotations

from typing import Any

from ..grid_request import FINAL
from ..studio import Studio
from .call import Call
from .route import Route


def grid(studio: Studio, call: Call) -> dict[str, Any]:
    """A grid's axes and the pictures made so far."""
    return studio.grid(call.path["id"])


def spectrum(studio: Studio, call: Call) -> dict[str, Any]:
    """Which layers and columns the training moved."""
    return studio.spectrum(call.path["id"], call.text("checkpoint", FINAL))


def compare(studio: Studio, call: Call) -> dict[str, Any]:
    """Two runs' settings, curves and samples."""
    return studio.compare(call.text("a"), call.text("b"))


ROUTES = (
    Route("GET", "/jobs/{id}/grid", grid),
    Route("GET", "/jobs/{id}/spectrum", spectrum, ("checkpoint",)),
    Route("GET", "/compare", compare, ("a", "b")),
)
