"""Sheets of labelled pictures; the contact sheet of a run's samples."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .sample_files import Sample, read_samples

_MARGIN, _GAP, _LABEL, _TITLE, _HEADING = 24, 12, 46, 40, 44
_INK, _PAPER, _FAINT, _EMPTY = (28, 30, 34), (250, 250, 248), (110, 114, 120), (236, 236, 234)


@dataclass(frozen=True)
class Row:
    """One line of a sheet: a title above, pictures with a label under each. None leaves an empty place.

    heading: above the title, in larger letters, where a group of rows begins.
    """

    title: str
    pictures: Sequence[Image.Image | None]
    labels: Sequence[str]
    heading: str = ""


def sheet(rows: Sequence[Row], cell: int = 224) -> Image.Image:
    """Rows of pictures scaled to `cell` pixels' width, with titles and labels."""
    across = max(len(row.pictures) for row in rows)
    width = _MARGIN * 2 + across * (cell + _GAP) - _GAP
    scaled = [[None if p is None else _scaled(p, cell) for p in row.pictures] for row in rows]
    heights = [max((p.height for p in line if p is not None), default=cell) for line in scaled]
    headings = _HEADING * sum(bool(row.heading) for row in rows)
    canvas = Image.new("RGB", (width, _MARGIN * 2 + sum(heights) + headings + len(rows) * (_TITLE + _LABEL)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    huge, big, small = (ImageFont.load_default(points) for points in (26, 20, 14))
    y = _MARGIN
    for row, pictures, height in zip(rows, scaled, heights):
        if row.heading:
            draw.text((_MARGIN, y + 4), _fitting(row.heading, width - 2 * _MARGIN, huge), _INK, huge)
            y += _HEADING
        draw.text((_MARGIN, y + 6), _fitting(row.title, width - 2 * _MARGIN, big), _INK, big)
        y += _TITLE
        for i, (picture, label) in enumerate(zip(pictures, row.labels)):
            x = _MARGIN + i * (cell + _GAP)
            if picture is None:
                draw.rectangle((x, y, x + cell - 1, y + height - 1), _EMPTY)
            else:
                canvas.paste(picture, (x, y))
            draw.multiline_text((x, y + height + 5), textwrap.fill(label, cell // 8), _FAINT, small)
        y += height + _LABEL
    return canvas


def contact_sheet(folder: Path, cell: int = 256, most: int = 12) -> Image.Image | None:
    """A sheet of the samples in a folder: a row per prompt, a column per step, the untrained model first.

    At most `most` columns, the first and the last among them. None where there are no samples.
    """
    found = read_samples(folder)
    if not found:
        return None
    steps = _thinned(sorted({s.step for s in found}), most)
    # By prompt and not by number: a resumed run may have been given other prompts.
    by_prompt: dict[str, dict[int, Sample]] = {}
    for s in sorted(found, key=lambda s: (s.number, s.step)):
        by_prompt.setdefault(_title(s), {})[s.step] = s
    labels = [f"step {step:,}" if step else "before training" for step in steps]
    return sheet(
        [
            Row(title, [opened(own[step].path, cell) if step in own else None for step in steps], labels)
            for title, own in by_prompt.items()
        ],
        cell,
    )


def _thinned(steps: list[int], most: int) -> list[int]:
    """At most `most` of them, evenly spread, both ends kept."""
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _title(sample: Sample) -> str:
    """What the row shows: the prompt and seed in the file, or its number."""
    with Image.open(sample.path) as picture:
        prompt, seed = picture.info.get("prompt"), picture.info.get("seed")
    return f"{prompt or 'no prompt'}   (seed {seed})" if seed else f"sample {sample.number}"


def opened(path: Path, cell: int) -> Image.Image:
    """A picture file as a sheet needs it, so that many full-size ones are never held at once."""
    with Image.open(path) as picture:
        return _scaled(picture, cell)


def _scaled(picture: Image.Image, width: int) -> Image.Image:
    """RGB, `width` pixels wide, in its own shape."""
    height = max(1, round(picture.height * width / picture.width))
    if picture.mode == "RGB" and picture.size == (width, height):
        return picture.copy()
    return picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
