"""The loss plot, drawn with Pillow because hosts rarely have a plotting library.

Upper panel: every step's loss faint, its running mean bold, held-out losses as points, the best of them ringed,
checkpoints as ticks on the axis. Lower panel: the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[int, float]]

SIZE = (900, 500)
PAPER, PANEL, GRID, INK, FAINT = "#fafaf8", "#ffffff", "#e7e8ea", "#1c1e22", "#6b7078"
RAW, SMOOTH, HELD_OUT, BEST, RATE, MARK = "#b9cfe8", "#1f5fae", "#d9691e", "#137a4b", "#7a57a6", "#8d939c"
# Drawn at twice the size and reduced: Pillow's lines have no smooth edges of their own.
_ZOOM = 2
# From this ratio of the largest to the smallest shown loss on, equal ratios get equal heights.
_LOG_FROM = 12.0
_LOG_NOTE = 110  # pixels of "logarithmic scale", which small pictures have no room for
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP, _RATE_SHARE = 76, 34, 66, 40, 30, 0.17


def plot_losses(
    losses: Points,
    validations: Points = (),
    *,
    smoothed: Points | None = None,
    best: int | None = None,
    checkpoints: Sequence[int] = (),
    rates: Points = (),
    title: str = "",
    size: tuple[int, int] = SIZE,
) -> Image.Image:
    """A picture of `size` pixels of a run's (step, loss) pairs, in order of their steps.

    Losses that are no finite numbers leave a gap. smoothed: the bold line; None draws `running_mean(losses)`.
    best: the step of the best validation. rates: (step, learning rate) pairs; without any there is one panel.
    """
    raw, held_out, rate = _array(losses), _array(validations), _array(rates)
    mean = running_mean(raw) if smoothed is None else _array(smoothed)
    ends = [a[-1, 0] for a in (raw, held_out, rate) if len(a)] + list(checkpoints)
    last = max([1.0, *map(float, ends)])
    canvas = Canvas(size)
    upper, lower = _panels(size, with_rates=len(rate) > 0)
    steps = Axis(0.0, last, log=False)
    loss_axis = _loss_axis(raw, mean, held_out)
    view = View(upper, steps, loss_axis)
    canvas.frame(view, _label_loss, bottom_labels=len(rate) == 0)
    if not np.isfinite(raw[:, 1]).any() and not len(held_out):
        canvas.centred(upper, "no finite loss was recorded")
    canvas.cloud(view, raw, RAW)
    canvas.line(view, mean, SMOOTH, 2.5)
    canvas.line(view, held_out, HELD_OUT, 1.2)
    for point in held_out[np.isfinite(held_out[:, 1])]:
        canvas.dot(view, point, HELD_OUT, 3.5)
    _mark_best(canvas, view, held_out, best)
    canvas.ticks(view, checkpoints, MARK)
    if len(rate):
        top = float(np.nanmax(np.where(np.isfinite(rate[:, 1]), rate[:, 1], 0.0))) or 1.0
        below = View(lower, steps, Axis(0.0, top * 1.12, log=False, wanted=2))
        canvas.frame(below, _label_rate, bottom_labels=True)
        canvas.line(below, rate, RATE, 1.6)
        canvas.note((lower.left, lower.top - 5), "learning rate", RATE, "ls")
    _headings(canvas, title, loss_axis, len(held_out) > 0, best is not None, len(checkpoints) > 0)
    return canvas.picture()


def running_mean(losses: Points | np.ndarray, share: float = 0.02) -> np.ndarray:
    """(n, 2) mean of (step, loss) pairs with weights that fall off exponentially to both sides.

    The weights fall to 1/e over `share` of the pairs, in short runs over six. A mean over the past alone would lag
    behind. Losses that are no finite numbers stay as they are and count for nothing.
    """
    made = _array(losses).copy()
    decay = 1 - 1 / max(1.0, share * len(made), min(6.0, len(made) / 5))
    good = np.isfinite(made[:, 1])
    values = np.where(good, made[:, 1], 0.0)
    sums = _decayed(values, decay) + _decayed(values[::-1], decay)[::-1] - values
    weights = _decayed(good, decay) + _decayed(good[::-1], decay)[::-1] - good
    made[good, 1] = sums[good] / weights[good]
    return made


def _decayed(values: np.ndarray, decay: float) -> np.ndarray:
    """Sum of all values up to each, those before it shrunk by `decay` per place."""
    total, made = 0.0, np.empty(len(values))
    for i, value in enumerate(values.astype(np.float64).tolist()):
        total = decay * total + value
        made[i] = total
    return made


@dataclass(frozen=True)
class Box:
    """A panel's place in pixels."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Axis:
    """A range of values; `log` spaces them by their ratio. wanted: about how many tick values."""

    low: float
    high: float
    log: bool
    wanted: int = 5

    def place(self, values: np.ndarray) -> np.ndarray:
        """Where values lie between the ends, 0 to 1 inside."""
        if self.log:
            values = np.log(np.maximum(values, self.low * 1e-3))
            low, high = math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return (values - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values within the range, few enough to be read."""
        if not self.log:
            step = round_step((self.high - self.low) / self.wanted)
            first = math.ceil(self.low / step - 1e-9)
            return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**ten for ten in tens for d in digits]
            found = [v for v in found if self.low * 0.999 <= v <= self.high * 1.001]
            if len(found) <= self.wanted + 3:
                break
        return found


@dataclass(frozen=True)
class View:
    """A panel with its two axes."""

    box: Box
    x: Axis
    y: Axis

    def points(self, pairs: np.ndarray) -> np.ndarray:
        """(n, 2) values -> (n, 2) pixels; heights outside the panel are drawn at its edge."""
        x = self.box.left + self.x.place(pairs[:, 0]) * (self.box.right - self.box.left)
        y = self.y.place(pairs[:, 1]).clip(0.0, 1.0)
        return np.stack([x, self.box.bottom - y * (self.box.bottom - self.box.top)], axis=1)


def round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `least`."""
    ten = 10.0 ** math.floor(math.log10(least))
    return next(digit * ten for digit in (1, 2, 2.5, 5, 10) if digit * ten >= least * (1 - 1e-9))


class Canvas:
    """Pillow drawing in the final picture's pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._image = Image.new("RGB", (size[0] * _ZOOM, size[1] * _ZOOM), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    @property
    def width(self) -> int:
        return self._image.width // _ZOOM

    def picture(self) -> Image.Image:
        return self._image.reduce(_ZOOM)

    def frame(self, view: View, label: Callable[[float, Sequence[float]], str], *, bottom_labels: bool) -> None:
        """Panel, grid and tick values."""
        box = view.box
        self._draw.rectangle(_zoomed(box.left, box.top, box.right, box.bottom), PANEL, GRID, _ZOOM)
        ticks = view.y.ticks()
        for value in ticks:
            y = float(view.points(np.array([[0.0, value]]))[0, 1])
            self._draw.line(_zoomed(box.left, y, box.right, y), GRID, _ZOOM)
            self.note((box.left - 8, y), label(value, ticks), FAINT, anchor="rm")
        for value in view.x.ticks():
            x = float(view.points(np.array([[value, view.y.low]]))[0, 0])
            self._draw.line(_zoomed(x, box.top, x, box.bottom), GRID, _ZOOM)
            if bottom_labels:
                self.note((x, box.bottom + 7), f"{value:,.0f}" if value == int(value) else "", FAINT, anchor="ma")
        if bottom_labels:
            self.note((box.right, box.bottom + 22), "step", FAINT, anchor="ra")

    def cloud(self, view: View, pairs: np.ndarray, colour: str) -> None:
        """Every value as part of a faint line; where many share a pixel column, their range."""
        for run in _runs(pairs):
            spots = view.points(run) * _ZOOM
            if len(spots) <= 2 * (view.box.right - view.box.left):
                self._stroke(spots, colour, 1.0)
                continue
            columns = spots[:, 0].astype(int)
            starts = np.flatnonzero(np.diff(columns, prepend=columns[0] - 1))
            lows, highs = np.minimum.reduceat(spots[:, 1], starts), np.maximum.reduceat(spots[:, 1], starts)
            for x, low, high in zip(columns[starts].tolist(), lows.tolist(), highs.tolist()):
                self._draw.line((x, low, x, high + 1), colour, 1)

    def line(self, view: View, pairs: np.ndarray, colour: str, width: float) -> None:
        """A line through the values, broken where one is missing."""
        for run in _runs(pairs):
            spots = view.points(run) * _ZOOM
            # More points than half pixels change nothing but the time it takes.
            every = max(1, len(spots) // int(2 * _ZOOM * (view.box.right - view.box.left)))
            self._stroke(np.concatenate([spots[::every], spots[-1:]]), colour, width)

    def _stroke(self, spots: np.ndarray, colour: str, width: float) -> None:
        if len(np.unique(spots, axis=0)) == 1:
            x, y = spots[0].tolist()
            radius = max(width, 1.5) * _ZOOM
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
        else:
            self._draw.line([tuple(spot) for spot in spots.tolist()], colour, round(width * _ZOOM), joint="curve")

    def dot(self, view: View, point: np.ndarray, colour: str, radius: float, ring: bool = False) -> tuple[float, float]:
        """A disc, or a ring around a point; where it is, in pixels."""
        x, y = view.points(point[None])[0].tolist()
        box = _zoomed(x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse(box, None if ring else colour, colour if ring else PANEL, round(2.2 * _ZOOM) if ring else 1)
        return x, y

    def ticks(self, view: View, steps: Sequence[int], colour: str) -> None:
        """Small triangles on the panel's lower edge."""
        for step in steps:
            x, y = view.points(np.array([[step, view.y.low]]))[0].tolist()
            spots = [(x - 4, y), (x + 4, y), (x, y - 7)]
            self._draw.polygon([(a * _ZOOM, b * _ZOOM) for a, b in spots], colour)

    def note(
        self, at: tuple[float, float], text: str, colour: str, anchor: str = "la", points: int = 12, halo: int = 0
    ) -> float:
        """Text at a place, on a paper-coloured rim of `halo` pixels; its width in pixels."""
        font = ImageFont.load_default(points * _ZOOM)
        spot = (at[0] * _ZOOM, at[1] * _ZOOM)
        self._draw.text(spot, text, colour, font, anchor, stroke_width=halo * _ZOOM, stroke_fill=PANEL)
        return self._draw.textlength(text, font) / _ZOOM

    def swatch(self, at: tuple[float, float], colour: str, kind: str) -> None:
        """A sample of how something is drawn, for the legend."""
        x, y = at
        if kind == "line":
            self._draw.line(_zoomed(x, y, x + 18, y), colour, 3 * _ZOOM)
        elif kind == "tick":
            spots = [(x + 5, y + 4), (x + 13, y + 4), (x + 9, y - 3)]
            self._draw.polygon([(a * _ZOOM, b * _ZOOM) for a, b in spots], colour)
        else:
            ring = kind == "ring"
            box = _zoomed(x + 5, y - 4, x + 13, y + 4)
            self._draw.ellipse(box, None if ring else colour, colour, 2 * _ZOOM if ring else 1)

    def fill(self, box: Box, colour: str) -> None:
        """A plain rectangle."""
        self._draw.rectangle(_zoomed(box.left, box.top, box.right, box.bottom), colour)

    def centred(self, box: Box, text: str) -> None:
        self.note(((box.left + box.right) / 2, (box.top + box.bottom) / 2), text, FAINT, "mm", 15)


def _panels(size: tuple[int, int], with_rates: bool) -> tuple[Box, Box]:
    """The losses' panel and, below it, the rates'."""
    width, height = size
    left, right, bottom = _LEFT, width - _RIGHT, height - _BOTTOM
    share = (bottom - _TOP) * _RATE_SHARE if with_rates else -_GAP
    lower = Box(left, bottom - share, right, bottom)
    return Box(left, _TOP, right, bottom - share - _GAP), lower


def _loss_axis(raw: np.ndarray, mean: np.ndarray, held_out: np.ndarray) -> Axis:
    """A range that shows the whole mean and every validation; single outliers of the raw loss do not stretch it."""
    values = [a[:, 1][np.isfinite(a[:, 1])] for a in (mean, held_out)]
    loose = raw[:, 1][np.isfinite(raw[:, 1])]
    if len(loose):
        values.append(np.quantile(loose, [0.01, 0.99] if len(loose) >= 200 else [0.0, 1.0]))
    shown = np.concatenate(values) if values else np.empty(0)
    if not len(shown):
        return Axis(0.0, 1.0, log=False)
    low, high = float(shown.min()), float(shown.max())
    if low > 0 and high / low > _LOG_FROM:
        return Axis(low / 1.15, high * 1.15, log=True)
    room = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    floor = 0.0 if 0 <= low < 0.35 * high else low - room
    return Axis(floor, high + room, log=False)


def _mark_best(canvas: Canvas, view: View, held_out: np.ndarray, best: int | None) -> None:
    found = held_out[held_out[:, 0] == best] if best is not None else held_out[:0]
    if not len(found) or not math.isfinite(found[0, 1]):
        return
    x, y = canvas.dot(view, found[0], BEST, 8, ring=True)
    at_the_end = x > view.box.left + 0.7 * (view.box.right - view.box.left)
    # Above the ring, or below it where it touches the panel's upper edge.
    height = y - 18 if y - 30 > view.box.top else y + 18
    canvas.note((x, height), f"best {found[0, 1]:.3g}, step {best:,}", BEST, "rm" if at_the_end else "lm", 13, halo=2)


def _headings(canvas: Canvas, title: str, axis: Axis, held_out: bool, best: bool, checkpoints: bool) -> None:
    """Title, and below it what is what."""
    canvas.note((_LEFT, 14), title or "Training loss", INK, points=17)
    entries = [("each step's loss", RAW, "line"), ("running mean", SMOOTH, "line")]
    if held_out:
        entries.append(("held-out pictures", HELD_OUT, "dot"))
    if best:
        entries.append(("best", BEST, "ring"))
    if checkpoints:
        entries.append(("checkpoint", MARK, "tick"))
    x = float(_LEFT)
    for text, colour, kind in entries:
        canvas.swatch((x, 50), colour, kind)
        x += 24 + canvas.note((x + 24, 50), text, FAINT, "lm") + 20
    if axis.log and x + _LOG_NOTE < canvas.width:
        canvas.note((x, 50), "logarithmic scale", FAINT, "lm")


def _label_loss(value: float, ticks: Sequence[float]) -> str:
    """A tick value with as many decimals as its neighbours need."""
    gap = min((b - a for a, b in pairwise(ticks)), default=abs(value) or 1.0)
    if value and not (gap >= 1e-4 and abs(value) < 1e5):
        return f"{value:.3g}"
    decimals = max(0, math.ceil(-math.log10(gap) - 1e-9))
    # A gap of 0.25 needs one more place than one of 0.2.
    return f"{value:.{decimals + (abs(round(gap, decimals) - gap) > 1e-9 * gap)}f}"


def _label_rate(value: float, _ticks: Sequence[float]) -> str:
    """1e-4 rather than 0.0001."""
    if not value or value >= 1e-2:
        return f"{value:.2g}"
    ten = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10.0**ten:.2g}e{ten}"


def _array(pairs: Points | np.ndarray) -> np.ndarray:
    """(n, 2) float64 of (step, value) pairs."""
    return np.asarray(pairs, dtype=np.float64).reshape(-1, 2)


def _runs(pairs: np.ndarray) -> list[np.ndarray]:
    """The stretches of pairs without a missing value."""
    good = np.isfinite(pairs[:, 1])
    edges = np.flatnonzero(np.diff(good.astype(np.int8), prepend=0, append=0))
    return [pairs[a:b] for a, b in zip(edges[::2], edges[1::2])]


def _zoomed(*numbers: float) -> tuple[float, ...]:
    return tuple(number * _ZOOM for number in numbers)
