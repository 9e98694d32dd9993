"""What the layers of the connected model get to see while it samples with an adapter: for gradient fusion."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.utils import ProgressBar
from torch import Tensor

from ..spectral.adapter import OnMismatch
from ..spectral.errors import SettingError
from ..spectral.moments import Recorder, by_layer
from .adapters import Use
from .apply import apply_uses
from .model_weights import modules
from .prepare import Connected

_SEED = 0
_LATENT = 8  # pixels per number of a latent
_CFG = 1.0  # the prompt alone: what an empty one would see is no concept's


@dataclass(frozen=True)
class Run:
    """A sampling run. size: of the square picture, in pixels."""

    steps: int
    size: int


@dataclass(frozen=True)
class Recorded:
    """moments: {layer: a matrix for each adapter}. left_out: layers without, which are summed; text: in a sentence."""

    moments: dict[str, tuple[Tensor, ...]]
    left_out: tuple[str, ...]
    text: str


def record(
    uses: Sequence[Use],
    layers: Collection[str],
    prompts: Sequence[str],
    run: Run,
    onto: Connected,
    model: ModelPatcher,
    clip: CLIP | None,
    on_mismatch: OnMismatch,
) -> Recorded:
    """One run per adapter, at its own strength and with its own prompt. Raises SettingError without a text encoder."""
    if clip is None:
        raise SettingError(
            "gradient: found no CLIP, expected one: it samples with prompts. Connect the checkpoint's CLIP, or choose "
            "another mode."
        )
    live, recordings, left = modules(onto, layers), [], ()
    bar = ProgressBar(len(uses) * run.steps)
    for use, prompt in zip(uses, prompts):
        applied = apply_uses((use,), model, clip, on_mismatch)
        with Recorder(live) as recorder:
            _sample(applied.model, applied.clip, prompt, run, bar)
        recordings.append(recorder.moments)
        left = recorder.left_out
    moments = by_layer(recordings)
    missing = tuple(layer for layer in layers if layer not in moments)
    size = sum(m.numel() * m.element_size() for found in moments.values() for m in found)
    text = f"Recorded {len(moments)} layers in {run.steps} steps per adapter ({size / 1e6:,.0f} MB)."
    if missing:
        text += f" {len(missing)} layers were not recorded and are summed{', the largest ones' if left else ''}."
    return Recorded(moments, missing, text)


def prompts_of(text: str, uses: Sequence[Use], words: Sequence[str]) -> list[str]:
    """A prompt per adapter: the lines of the widget, else the trigger words. Raises SettingError where some lack."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and len(lines) != len(uses):
        raise SettingError(
            f"prompts: found {len(lines)} lines for {len(uses)} adapters; expected one line per adapter, in their "
            "order, or none to sample with the trigger words."
        )
    if lines:
        return lines
    silent = [use.name for use, own in zip(uses, words) if not own]
    if silent:
        raise SettingError(
            f"gradient: {silent[0]} names no trigger words to sample with; write a prompt for each adapter into "
            "prompts, one per line."
        )
    return list(words)


def _sample(model: ModelPatcher, clip: CLIP, prompt: str, run: Run, bar: ProgressBar) -> None:
    """A short sampling run whose picture nobody wants. Raises ComfyUI's interrupt."""
    seen = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    side = run.size // _LATENT
    latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, side, side))
    comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, _SEED),
        run.steps,
        _CFG,
        "euler",
        "normal",
        seen,
        seen,
        latent,
        callback=lambda step, x0, x, total: bar.update(1),
        disable_pbar=True,
        seed=_SEED,
    )
