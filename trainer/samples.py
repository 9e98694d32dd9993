"""Pictures made with the pipeline that inference uses, and sheets of labelled pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

_MARGIN, _GAP, _LABEL, _TITLE = 24, 12, 46, 40
_INK, _PAPER, _FAINT = (28, 30, 34), (250, 250, 248), (110, 114, 120)


@dataclass(frozen=True)
class Row:
    """One line of a sheet: a title above, pictures with a label under each."""

    title: str
    pictures: Sequence[Image.Image]
    labels: Sequence[str]


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    size: int,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 4.0,
) -> list[Image.Image]:
    """One RGB picture per prompt, `size` pixels square; picture i starts from the noise of seed + i."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    made = pipeline(
        list(prompts),
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
    )
    return made.images


def sheet(rows: Sequence[Row], cell: int = 224) -> Image.Image:
    """Rows of pictures scaled to `cell` pixels, with titles and labels."""
    across = max(len(row.pictures) for row in rows)
    height = _MARGIN * 2 + len(rows) * (_TITLE + cell + _LABEL)
    canvas = Image.new("RGB", (_MARGIN * 2 + across * (cell + _GAP) - _GAP, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    big, small = ImageFont.load_default(20), ImageFont.load_default(14)
    y = _MARGIN
    for row in rows:
        draw.text((_MARGIN, y + 6), row.title, _INK, big)
        y += _TITLE
        for i, (picture, label) in enumerate(zip(row.pictures, row.labels)):
            x = _MARGIN + i * (cell + _GAP)
            canvas.paste(picture.convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC), (x, y))
            draw.multiline_text((x, y + cell + 5), textwrap.fill(label, cell // 8), _FAINT, small)
        y += cell + _LABEL
    return canvas
