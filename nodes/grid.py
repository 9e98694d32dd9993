"""Pictures of adapters at several strengths: applied, encoded, sampled and decoded one after the other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from PIL import Image
from torch import Tensor

from ..spectral.adapter import OnMismatch
from ..spectral.errors import SettingError
from ..trainer.sheet import Row, sheet
from .adapters import Use
from .apply import apply_uses

_LARGEST = 10.0  # a strength; as the loader's
_MOST = 100  # pictures
_CELL = 512  # pixels of a picture's width in the grid
_PREVIEW = 1024  # pixels of the grid while it grows


@dataclass(frozen=True)
class Sampling:
    """What all pictures have in common."""

    model: ModelPatcher
    clip: CLIP
    vae: VAE
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    width: int
    height: int
    on_mismatch: OnMismatch


@dataclass(frozen=True)
class Prompts:
    """with_words: put trigger words before the positive one."""

    positive: str
    negative: str
    with_words: bool

    def calling(self, words: str) -> str:
        """The positive prompt with those of the trigger words that it lacks."""
        lower = self.positive.lower()
        missing = [word for word in words.split(", ") if word and word.lower() not in lower]
        return ", ".join(filter(None, (*missing, self.positive))) if self.with_words else self.positive


@dataclass(frozen=True)
class GridRow:
    """Adapters that are applied at once."""

    title: str
    uses: tuple[Use, ...]

    def at(self, strength: float) -> tuple[Use, ...]:
        return tuple(replace(use, model=use.model * strength, clip=use.clip * strength) for use in self.uses)


def grid_rows(uses: Sequence[Use], together: bool) -> list[GridRow]:
    """A row for each adapter, and one for all of them. Raises SettingError for none."""
    if not uses:
        raise SettingError("found no adapter; connect a stack or a loader that has one")
    rows = [GridRow(use.name, (use,)) for use in uses]
    return [*rows, GridRow(" + ".join(use.name for use in uses), tuple(uses))] if together and len(uses) > 1 else rows


def read_strengths(text: str) -> list[float]:
    """Numbers separated by commas or blanks. Raises SettingError, naming what was found."""
    found = []
    for word in filter(None, re.split(r"[,;\s]+", text)):
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not abs(number) <= _LARGEST:
            raise SettingError(f"strengths: found {word!r}, expected numbers up to {_LARGEST:g}, such as 0, 0.5, 1")
        found.append(number)
    if not found:
        raise SettingError("strengths: found none, expected numbers such as 0, 0.5, 1")
    return found


def draw(
    rows: Sequence[GridRow], strengths: Sequence[float], sampling: Sampling, prompts: Prompts
) -> tuple[Image.Image, Tensor]:
    """The grid, and the pictures (rows times strengths, height, width, 3), row by row.

    Raises SettingError for more than 100 pictures, what `apply_uses` raises, and ComfyUI's interrupt.
    """
    count = len(rows) * len(strengths)
    if count > _MOST:
        raise SettingError(
            f"found {len(rows)} rows by {len(strengths)} strengths, {count} pictures; expected at most {_MOST}"
        )
    bar = comfy.utils.ProgressBar(count * sampling.steps)
    pictures: list[Tensor] = []
    # The model without adapters looks the same in all rows that share a prompt.
    plain: dict[str, Tensor] = {}
    for row in rows:
        for strength in strengths:
            shown = _preview(_grid(rows, strengths, pictures)) if pictures else None

            def step(done: int, before: int = len(pictures) * sampling.steps, shown: tuple | None = shown) -> None:
                bar.update_absolute(before + done, preview=shown)  # raises when the user pressed Cancel

            step(0)
            pictures.append(_cell(row.at(strength), sampling, prompts, plain, step))
    whole = _grid(rows, strengths, pictures)
    bar.update_absolute(count * sampling.steps, preview=_preview(whole))
    return whole, torch.cat(pictures)


def _preview(grid: Image.Image) -> tuple[str, Image.Image, int]:
    # ComfyUI would enlarge a smaller one.
    return "JPEG", grid, min(_PREVIEW, max(grid.size))


def _cell(
    uses: tuple[Use, ...],
    sampling: Sampling,
    prompts: Prompts,
    plain: dict[str, Tensor],
    step: Callable[[int], None],
) -> Tensor:
    """One picture (1, height, width, 3)."""
    applied = apply_uses(uses, sampling.model, sampling.clip, sampling.on_mismatch, [f"{use.name}: " for use in uses])
    prompt = prompts.calling(applied.trigger_words)
    bare = applied.model is sampling.model and applied.clip is sampling.clip
    if bare and prompt in plain:
        return plain[prompt]
    picture = _sampled(applied.model, applied.clip, sampling, (prompt, prompts.negative), step)
    if bare:
        plain[prompt] = picture
    return picture


def _sampled(
    model: ModelPatcher, clip: CLIP, sampling: Sampling, prompts: tuple[str, str], step: Callable[[int], None]
) -> Tensor:
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts)
    empty = torch.zeros(1, 4, sampling.height // 8, sampling.width // 8)
    latent = comfy.sample.fix_empty_latent_channels(model, empty)
    samples = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, sampling.seed),
        sampling.steps,
        sampling.cfg,
        sampling.sampler_name,
        sampling.scheduler,
        positive,
        negative,
        latent,
        callback=lambda done, denoised, noisy, total: step(done + 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=sampling.seed,
    )
    picture = sampling.vae.decode(samples)
    return picture.reshape(-1, *picture.shape[-3:])[:1].cpu()


def _grid(rows: Sequence[GridRow], strengths: Sequence[float], pictures: Sequence[Tensor]) -> Image.Image:
    """The sheet with the pictures that are there yet."""
    drawn = [Image.fromarray((p[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()) for p in pictures]
    cells = [*drawn, *[None] * (len(rows) * len(strengths) - len(drawn))]
    across = len(strengths)
    lines = [cells[i * across : (i + 1) * across] for i in range(len(rows))]
    labels = [f"strength {strength:g}" for strength in strengths]
    width = min(_CELL, max((p.width for p in drawn), default=_CELL))
    return sheet([Row(row.title, line, labels) for row, line in zip(rows, lines)], width)
