"""A picture of what a training moved: a row per block and kind of layer, a column per band of singular directions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from PIL import Image, ImageColor

from ..spectral.spectrum import Spectrum
from .plot import FAINT, GRID, INK, SMOOTH, Box, Canvas

# From nothing to the largest movement; even steps of its square root, since a few columns move far more than the rest.
RAMP = ("#f4f7fb", "#b9cfe8", "#5b94d3", "#1f5fae", "#0b2a57")
WIDTH = 900
_LEFT, _TOP, _ROW, _GAP, _BARS, _FOOT = 230, 112, 17, 7, 150, 96
_WIDEST = 56  # pixels of a band


@dataclass(frozen=True)
class HeatRow:
    """One kind of layer in one block. moved: root mean square by band, None where none of its layers has a column."""

    block: str
    kind: str
    layers: int
    share: float
    moved: tuple[float | None, ...]


def heat_rows(found: Spectrum) -> list[HeatRow]:
    """The rows in the order that data passes them, each with one value per band of `found.bands()`."""
    edges = found.edges
    shown = [band["first"] for band in found.bands()]
    groups = defaultdict(list)
    for layer in sorted(found.layers, key=lambda layer: layer.place.order):
        groups[layer.place.block, layer.place.work].append(layer)
    rows = []
    for (block, kind), layers in groups.items():
        squares, counts = defaultdict(float), defaultdict(int)
        for layer in layers:
            for first, count, moved in layer.bands(edges):
                squares[first] += count * moved**2
                counts[first] += count
        moved = tuple((squares[first] / counts[first]) ** 0.5 if first in counts else None for first in shown)
        rows.append(HeatRow(block, kind, len(layers), sum(layer.share for layer in layers), moved))
    return rows


def plot_spectrum(found: Spectrum, title: str = "") -> Image.Image:
    """The rows as a heat map, 900 pixels wide; to the right each row's share of the change, below each band's."""
    rows, bands = heat_rows(found), found.bands()
    tops = _tops(rows)
    canvas = Canvas((WIDTH, int(tops[-1] + _ROW + _FOOT)))
    most = max((moved for row in rows for moved in row.moved if moved is not None), default=0.0)
    across = min(_WIDEST, (WIDTH - _LEFT - _BARS - 20) / len(bands))
    _headings(canvas, title or f"What the training moved: {found.method}", most, found.exact)
    for i, band in enumerate(bands):
        canvas.note((_LEFT + (i + 0.5) * across, _TOP - 6), str(band["first"]), FAINT, "ms", 11)
    canvas.note((_LEFT - 12, _TOP - 6), "from direction", FAINT, "rs", 11)
    bars = _LEFT + len(bands) * across + 16
    canvas.note((bars, _TOP - 6), "share of the change", FAINT, "ls", 11)
    widest = max(row.share for row in rows) or 1.0
    for row, last, top in zip(rows, [None, *rows], tops):
        if last is None or last.block != row.block:
            canvas.note((16, top + _ROW / 2), row.block or "other", INK, "lm", 12)
        canvas.note((_LEFT - 12, top + _ROW / 2), row.kind, FAINT, "rm", 11)
        for i, moved in enumerate(row.moved):
            if moved is not None:
                left = _LEFT + i * across
                canvas.fill(Box(left, top, left + across - 1, top + _ROW - 1), _colour(moved, most))
        length = (_BARS - 60) * row.share / widest
        canvas.fill(Box(bars, top + 3, bars + max(1.0, length), top + _ROW - 4), SMOOTH)
        canvas.note((bars + length + 6, top + _ROW / 2), _percent(row.share), FAINT, "lm", 11)
    _foot(canvas, bands, tops[-1] + _ROW + 12, across)
    return canvas.picture()


def _tops(rows: list[HeatRow]) -> list[float]:
    """Where each row begins; a gap between blocks."""
    tops, y = [], float(_TOP)
    for row, last in zip(rows, [None, *rows]):
        y += _GAP if last is not None and last.block != row.block else 0
        tops.append(y)
        y += _ROW
    return tops


def _headings(canvas: Canvas, title: str, most: float, exact: bool) -> None:
    canvas.note((16, 14), title, INK, points=17)
    said = "How far each singular direction has moved, as a share of its layer's largest singular value"
    canvas.note((16, 44), said + ("" if exact else " (estimated: the file holds no directions)"), FAINT, points=12)
    left, steps = 16.0, 60
    canvas.note((left, 74), "0", FAINT, "lm", 11)
    for i in range(steps):
        x = left + 14 + 2 * i
        canvas.fill(Box(x, 68, x + 2, 80), _colour(most * (i / (steps - 1)) ** 2, most))
    canvas.note((left + 14 + 2 * steps + 6, 74), f"{most:.2g}", FAINT, "lm", 11)


def _foot(canvas: Canvas, bands: list[dict], top: float, across: float) -> None:
    """Each band's share of the change, as bars that stand on a line."""
    floor, widest = top + 44, max(band["share"] for band in bands) or 1.0
    canvas.note((_LEFT - 12, floor - 12), "share of the change", FAINT, "rm", 11)
    for i, band in enumerate(bands):
        left = _LEFT + i * across
        canvas.fill(Box(left, floor - 36 * band["share"] / widest, left + across - 1, floor), SMOOTH)
        canvas.note((left + across / 2, floor + 6), _percent(band["share"]), FAINT, "ma", 10)
    canvas.fill(Box(_LEFT, floor, _LEFT + len(bands) * across - 1, floor + 1), GRID)
    canvas.note((_LEFT, floor + 24), "directions by falling singular value, counted from 0", FAINT, "la", 11)


def _colour(value: float, most: float) -> str:
    """A place on the ramp."""
    place = min(1.0, max(0.0, value / most)) ** 0.5 * (len(RAMP) - 1) if most > 0 else 0.0
    low = min(int(place), len(RAMP) - 2)
    pairs = zip(*(ImageColor.getrgb(colour) for colour in RAMP[low : low + 2]))
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in pairs)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0095 or share == 0 else "<1%"
