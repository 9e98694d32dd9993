"""A picture of how strongly each part of a model is changed: kinds of layers by blocks, the text encoder, columns."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageColor

from ..spectral.blocks import Area, Place, Work
from ..spectral.parts import Parts
from .plot import FAINT, INK, Box, Canvas
from .spectrum_plot import RAMP

WIDTH = 640
COLUMNS = 24  # of the basis, the strongest first
_LEFT, _TOP, _ROW, _GAP, _CELL = 104, 26, 20, 24, 21
_STRONGEST, _AGAINST = 2.0, "#d9691e"
_WORKS: tuple[Work, ...] = ("self-attention", "cross-attention", "feed-forward", "projection", "convolution")
_BLOCKS: tuple[tuple[str, Area], ...] = (
    *((f"IN{i:02d}", "down") for i in range(12)),
    ("MID", "mid"),
    *((f"OUT{i:02d}", "up") for i in range(12)),
)
_TEXT = tuple(f"TE-{i:02d}" for i in range(12))


def plot_parts(parts: Parts) -> Image.Image:
    """The factors as cells with their numbers, 640 pixels wide; blocks are counted as in SD1.x."""
    below = 2 if parts.has_columns else 1
    canvas = Canvas((WIDTH, _TOP + len(_WORKS) * _ROW + below * (_ROW + _GAP) + 8))
    _heads(canvas, _TOP, [name.removeprefix("IN").removeprefix("OUT") for name, _ in _BLOCKS])
    for start, area in ((0, "IN"), (13, "OUT")):
        canvas.note((_LEFT + start * _CELL, _TOP - 15), area, FAINT, "ls", 9)
    for i, work in enumerate(_WORKS):
        factors = [parts.at(Place(name, area, work)) for name, area in _BLOCKS]
        _line(canvas, _TOP + i * _ROW, work, factors)
    top = _TOP + len(_WORKS) * _ROW + _GAP
    _heads(canvas, top, [name.removeprefix("TE-") for name in _TEXT])
    _line(canvas, top, "text encoder", [parts.at(Place(name, "text", "text-attention")) for name in _TEXT])
    if parts.has_columns:
        top += _ROW + _GAP
        factors = parts.of_columns(range(COLUMNS), COLUMNS)
        _heads(canvas, top, [str(i) for i in range(COLUMNS)])
        _line(canvas, top, "columns", [1.0] * COLUMNS if factors is None else factors.tolist())
    return canvas.picture()


def _heads(canvas: Canvas, top: float, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        canvas.note((_LEFT + (i + 0.5) * _CELL, top - 4), name, FAINT, "ms", 9)


def _line(canvas: Canvas, top: float, title: str, factors: Sequence[float]) -> None:
    canvas.note((_LEFT - 8, top + _ROW / 2), title, INK, "rm", 11)
    for i, factor in enumerate(factors):
        left = _LEFT + i * _CELL
        canvas.fill(Box(left, top, left + _CELL - 1, top + _ROW - 1), _colour(factor))
        ink = "#ffffff" if abs(factor) > 0.6 * _STRONGEST else INK
        canvas.note((left + _CELL / 2 - 0.5, top + _ROW / 2), _short(factor), ink, "mm", 9)


def _colour(factor: float) -> str:
    """A place on the ramp from 0 to 2; below 0 a colour of its own."""
    if factor < 0:
        return _AGAINST
    place = min(1.0, factor / _STRONGEST) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    pairs = zip(*(ImageColor.getrgb(colour) for colour in RAMP[low : low + 2]))
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in pairs)


def _short(factor: float) -> str:
    """At most three characters, where it can be: .25 for 0.25."""
    text = f"{factor:.2f}".rstrip("0").rstrip(".")
    return text.replace("0.", ".") if abs(factor) < 1 else text
