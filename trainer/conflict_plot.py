"""A picture of a conflict: who moves what by block and singular direction, where they collide, how alike they are.

Every cell of the map has one stripe per adapter, the darker the more of its change lies there; a frame marks columns
that two of them use. Laid out for 640 pixels and enlarged, so that it can be read where a node shows it so small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageColor, ImageFont

from ..spectral.conflict import Conflict
from ..spectral.conflict_rows import matrices
from ..spectral.conflict_text import columns_text
from .plot import FAINT, INK, PANEL, PAPER, Box, Canvas

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; further adapters begin again.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_COLD, _WARM = "#2166ac", "#b35806"  # of negative and positive cosines
WIDTH = 1280
_UNIT = 640  # the width in which everything here is measured
_MARGIN, _LABELS, _SIDE, _LINE = 12, 104, 176, 15
_ROW, _LEAST_ROW, _GAP = 11.0, 7.0, 3.0
_WIDEST = 38  # of a band
_CELL = 34  # of a matrix
_PALEST = 0.002  # of the most in any cell; less is leakage that would only tint the map
_REST = 0.02  # of an adapter's change in columns that are not known, from which on they get a place in the map


def draw(found: Conflict, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture, `size` pixels; None: 1280 wide and as high as it needs.

    Where the height does not do for a row per block and kind of layer there is one per block, then one per area.
    """
    width = WIDTH if size is None else size[0]
    head = _Head.of(found)
    rows, height = _fitting(found, head.height, None if size is None else size[1] * _UNIT / width)
    page = _Page(width, round(height * width / _UNIT) if size is None else size[1])
    head.draw(page)
    _map(page, found, rows, head.height)
    _matrices(page, found, head.height)
    for i, line in enumerate(_foot(found)):
        page.text(_MARGIN, page.height - 10 - _LINE * (len(_foot(found)) - 1 - i), line, FAINT, 9, "lm")
    return page.canvas.picture()


class _Page:
    """A canvas measured in units of a 640th of its width."""

    def __init__(self, width: int, height: int) -> None:
        self.canvas, self._scale = Canvas((width, height)), width / _UNIT
        self.height = height / self._scale

    def fill(self, x: float, y: float, right: float, bottom: float, colour: str) -> None:
        self.canvas.fill(Box(*(side * self._scale for side in (x, y, right, bottom))), colour)

    def frame(self, x: float, y: float, right: float, bottom: float, colour: str, thick: float = 0.6) -> None:
        self.fill(x, y, right, y + thick, colour)
        self.fill(x, bottom - thick, right, bottom, colour)
        self.fill(x, y, x + thick, bottom, colour)
        self.fill(right - thick, y, right, bottom, colour)

    def text(self, x: float, y: float, text: str, colour: str, points: float = 10, anchor: str = "lm") -> None:
        self.canvas.note((x * self._scale, y * self._scale), text, colour, anchor, round(points * self._scale))


@dataclass(frozen=True)
class _Head:
    """The sentence, and below it who is who."""

    said: list[str]
    legend: list[tuple[str, str]]

    @classmethod
    def of(cls, found: Conflict) -> _Head:
        legend = [(m.name, f"{m.kind}, {columns_text(m)}") for m in found.members]
        return cls(_wrapped(found.sentence, 12, _UNIT - 2 * _MARGIN)[:5], legend)

    @property
    def height(self) -> float:
        """Down to the map's column heads."""
        return 10 + 17 * len(self.said) + 6 + _LINE * len(self.legend) + 26

    def draw(self, page: _Page) -> None:
        y = 18.0
        for line in self.said:
            page.text(_MARGIN, y, line, INK, 12)
            y += 17
        y += 6
        names = [_cut(name, 11, 190) for name, _ in self.legend]
        start = _MARGIN + 16 + max(_length(name, 11) for name in names) + 12
        for i, (name, (_, about)) in enumerate(zip(names, self.legend)):
            page.fill(_MARGIN, y - 5, _MARGIN + 10, y + 5, _colour(i))
            page.text(_MARGIN + 16, y, name, INK, 11)
            page.text(start, y, _cut(about, 10, _UNIT - start - _MARGIN), FAINT, 10)
            y += _LINE


def _map(page: _Page, found: Conflict, rows: Sequence[_Row], top: float) -> None:
    """The heat map with its labels."""
    heads, n = _heads(found, rows), len(found.members)
    room = _UNIT - _MARGIN - _SIDE - _LABELS - 14
    across = min(_WIDEST, room / len(heads))
    most = max((value for row in rows for values in row.cells(n) for value in values), default=0.0)
    page.text(_LABELS + 4, top - 19, "share of each adapter's change, by singular direction from", FAINT, 9)
    for i, text in enumerate(heads):
        if across >= 15 or i % 2 == 0 or text == "rest":
            page.text(_LABELS + 4 + (i + 0.5) * across, top - 6, text, FAINT, 8.5, "mm")
    y, tall = top, _tall(rows, page.height - top - 16 - _LINE * len(_foot(found)))
    for row, last in zip(rows, [None, *rows]):
        if last is None or last.block != row.block:
            y += _GAP if last is not None else 0
            page.text(_MARGIN, y + tall / 2, row.block or "other", INK, min(10, tall), "lm")
        if row.kind:
            page.text(_LABELS - 2, y + tall / 2, _short(row.kind), FAINT, min(8.5, tall), "rm")
        _stripes(page, row, heads, (_LABELS + 4, y, across, tall), most)
        y += tall


def _stripes(page: _Page, row: _Row, heads: Sequence[str], at: tuple[float, float, float, float], most: float) -> None:
    """One row: in every cell a stripe per adapter, framed where columns are shared."""
    left, y, across, tall = at
    n = len(row.bands)
    cells = row.cells(n)
    for b in range(len(heads)):
        x, end = left + b * across, left + (b + 1) * across - 1
        page.fill(x, y, end, y + tall - 1, PANEL)
        wide = (end - x) / n
        for i in range(n):
            value = cells[i][b] if b < len(cells[i]) else 0.0
            if value > _PALEST * most:
                page.fill(x + i * wide, y, x + (i + 1) * wide, y + tall - 1, _tint(i, value / most))
        if b < len(row.shared) and row.shared[b]:
            page.frame(x - 0.5, y - 0.5, end + 0.5, y + tall - 0.5, INK)


def _matrices(page: _Page, found: Conflict, top: float) -> None:
    """Every two adapters: the cosine of their changes, the overlap of their columns, and what lies on the other's."""
    values, n = matrices(found), len(found.members)
    tables = (
        ("cosine of the changes", "cosine", _number, lambda v: _mixed(_WARM if v > 0 else _COLD, v)),
        ("overlap of the columns", "overlap", _percent, _grey),
        ("row's change on column's", "interference", _percent, _grey),
    )
    left, y = _UNIT - _MARGIN - _SIDE + 10, top - 19
    cell = min(_CELL, (_SIDE - 24) / n)
    for title, name, said, colour in tables:
        if y + 24 + n * cell > page.height - 12 - _LINE * len(_foot(found)):
            return
        page.text(left, y, title, FAINT, 9)
        _table(page, values[name], (left, y + 10, cell), said, colour)
        y += 24 + n * cell + 12


def _table(
    page: _Page,
    values: Sequence[Sequence[float | None]],
    at: tuple[float, float, float],
    said: Callable[[float], str],
    colour: Callable[[float], str],
) -> None:
    left, top, cell = at
    n = len(values)
    for i in range(n):
        page.fill(left + 12 + i * cell, top, left + 11 + (i + 1) * cell, top + 4, _colour(i))
        page.fill(left + 4, top + 8 + i * cell, left + 8, top + 7 + (i + 1) * cell, _colour(i))
        for j in range(n):
            x, y, value = left + 12 + j * cell, top + 8 + i * cell, values[i][j]
            shade = PANEL if value is None or i == j else colour(value)
            page.fill(x, y, x + cell - 1, y + cell - 1, shade)
            if i != j and cell >= 20:
                ink = PAPER if _is_dark(shade) else INK
                page.text(x + cell / 2, y + cell / 2, "?" if value is None else said(value), ink, cell / 4, "mm")


@dataclass(frozen=True)
class _Row:
    """Layers shown together. bands: by adapter and band; rest: by adapter, in columns that are not known."""

    block: str
    kind: str
    bands: tuple[tuple[float, ...], ...]
    rest: tuple[float, ...]
    shared: tuple[int, ...]

    def cells(self, n: int) -> list[tuple[float, ...]]:
        """By adapter: the bands, then the rest."""
        return [(*self.bands[i], self.rest[i]) for i in range(n)]


def _fitting(found: Conflict, top: float, height: float | None) -> tuple[list[_Row], float]:
    """The finest rows that fit, and the whole height."""
    finest = found.rows()
    beneath = 16 + _LINE * len(_foot(found))
    tables = top - 19 + 3 * (36 + min(_CELL, (_SIDE - 24) / len(found.members)) * len(found.members)) + beneath
    keys = (lambda r: (r["block"], r["kind"]), lambda r: (r["block"], ""), lambda r: (r["area"], ""))
    for key in keys:
        rows = _gathered(finest, key)
        if height is None or _extent(rows, _LEAST_ROW) <= height - top - beneath:
            break
    return rows, max(tables, top + _extent(rows, _ROW) + beneath) if height is None else height


def _gathered(rows: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], tuple[str, str]]) -> list[_Row]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    made = []
    for (block, kind), members in groups.items():
        n = len(members[0]["bands"])
        bands = tuple(tuple(map(sum, zip(*(row["bands"][i] for row in members)))) for i in range(n))
        whole = [sum(row["shares"][i] for row in members) for i in range(n)]
        rest = tuple(max(0.0, whole[i] - sum(bands[i])) for i in range(n))
        made.append(_Row(block, kind, bands, rest, tuple(map(sum, zip(*(row["shared"] for row in members))))))
    return made


def _heads(found: Conflict, rows: Sequence[_Row]) -> list[str]:
    """The first column of each band, and "rest" where much lies in columns that are not known."""
    unknown = max(sum(row.rest[i] for row in rows) for i in range(len(found.members)))
    return [*map(str, found.edges), *(["rest"] if unknown > _REST else [])]


def _extent(rows: Sequence[_Row], tall: float) -> float:
    return tall * len(rows) + _GAP * (len({row.block for row in rows}) - 1)


def _tall(rows: Sequence[_Row], room: float) -> float:
    gaps = _extent(rows, 0.0)
    return min(2 * _ROW, (room - gaps) / len(rows))


def _foot(found: Conflict) -> list[str]:
    notes = [line for note in found.notes[:2] for line in _wrapped(note, 9, _UNIT - 2 * _MARGIN)]
    return ["framed: two adapters use a column there; more of a change is darker", *notes]


def _short(kind: str) -> str:
    return kind.replace("text-", "").replace("-attention", " attn").replace("attention", "attn")


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _tint(i: int, share: float) -> str:
    """Darker by the square root, since few columns hold most."""
    return _mixed(_colour(i), min(1.0, share) ** 0.5)


def _mixed(colour: str, strength: float) -> str:
    """The colour laid on the panel's white."""
    strength = min(1.0, abs(strength))
    pairs = zip(ImageColor.getrgb(PANEL), ImageColor.getrgb(colour))
    return "#" + "".join(f"{round(a + (b - a) * strength):02x}" for a, b in pairs)


def _grey(value: float) -> str:
    return _mixed(INK, 0.7 * value)


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _is_dark(colour: str) -> bool:
    r, g, b = ImageColor.getrgb(colour)
    return 0.3 * r + 0.59 * g + 0.11 * b < 140


def _length(text: str, points: float) -> float:
    return ImageFont.load_default(64).getlength(text) * points / 64


def _cut(text: str, points: float, most: float) -> str:
    """The text, ended by an ellipsis where it is longer than its place."""
    if _length(text, points) <= most:
        return text
    while text and _length(f"{text}…", points) > most:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _wrapped(text: str, points: float, most: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _length(longer, points) <= most:
            lines[-1] = longer
        else:
            lines.append(_cut(word, points, most))
    return [line for line in lines if line]
