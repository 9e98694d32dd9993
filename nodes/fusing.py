"""From adapters to one that stands for all of them, on the connected model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ..spectral.adapter import OnMismatch
from ..spectral.cache import BasisCache
from ..spectral.errors import SettingError
from ..spectral.fusion import Fused, FusedAdapter, fuse, verify
from ..spectral.mixture import MODES, FusionMode
from . import recording, work
from .adapters import Held, Use
from .apply import Applied, apply_uses, trigger_words
from .mixing import Mixture, mixture, refuse_another_model
from .prepare import Connected, connected
from .recording import Run


@dataclass(frozen=True)
class Wanted:
    """The mode, and for gradient its runs and prompts."""

    mode: FusionMode
    run: Run | None = None
    prompts: str = ""

    @classmethod
    def of(cls, chosen: Mapping[str, Any] | None) -> Wanted:
        """What the node's widget brings. Raises SettingError for a mode that there is not."""
        mode = (chosen or {}).get("mode")
        if mode not in MODES:
            raise SettingError(f"mode: found {mode!r}, expected one of {', '.join(MODES)}.")
        if mode != "gradient":
            return cls(mode)
        return cls(mode, Run(chosen["steps"], chosen["size"]), chosen["prompts"])


@dataclass(frozen=True)
class Fusion:
    """The fused adapter, what it was applied to, and the report."""

    use: Use
    applied: Applied
    text: str


def fused(
    uses: Sequence[Use],
    model: ModelPatcher,
    clip: CLIP | None,
    wanted: Wanted,
    on_mismatch: OnMismatch,
    checked: bool,
) -> Fusion:
    """Fuse, apply and, where `checked`, verify.

    Raises AdapterFileError, WrongBaseError, SettingError (a mode that does not fit), and ComfyUI's interrupt.
    """
    began = time.perf_counter()
    mixed = mixture(uses, clip is not None, wanted.mode)
    onto = connected(model, clip)
    if on_mismatch == "refuse":
        refuse_another_model(mixed, onto)
    lines = list(mixed.notes)
    moments = None
    if wanted.run is not None:
        recorded = _recorded(mixed, wanted, onto, model, clip, on_mismatch)
        moments = recorded.moments
        lines.append(recorded.text)
    weights = onto.weights({name for source in mixed.sources for name in (*source.shapes, *source.gains)})
    cache = BasisCache()
    with work.interruptible():
        made = fuse(
            mixed.ingredients,
            wanted.mode,
            weights=weights,
            cache=cache,
            moments=moments,
            name=mixed.name,
            on_mismatch=on_mismatch,
            progress=work.progress(),
            cancelled=work.cancelled,
        )
    use = Use(Held.made(made), made.name)
    applied = apply_uses((use,), model, clip, on_mismatch)
    lines = [made.text, *lines, applied.text]
    if checked:
        with work.interruptible():
            lines.append(_verified(made, mixed, wanted, weights, moments, cache))
    lines.append(f"Fused in {time.perf_counter() - began:.1f} s.")
    return Fusion(use, applied, "\n".join(lines))


def _recorded(
    mixed: Mixture,
    wanted: Wanted,
    onto: Connected,
    model: ModelPatcher,
    clip: CLIP | None,
    on_mismatch: OnMismatch,
) -> recording.Recorded:
    words = [", ".join(trigger_words(source)) for source in mixed.sources]
    prompts = recording.prompts_of(wanted.prompts, mixed.uses, words)
    layers = dict.fromkeys(layer for source in mixed.sources for layer in source.shapes)
    return recording.record(mixed.uses, layers, prompts, wanted.run, onto, model, clip, on_mismatch)


def _verified(
    made: Fused | FusedAdapter,
    mixed: Mixture,
    wanted: Wanted,
    weights: Mapping[str, Any],
    moments: Mapping[str, Any] | None,
    cache: BasisCache,
) -> str:
    report = verify(
        made,
        mixed.ingredients,
        wanted.mode,
        weights,
        moments=moments,
        cache=cache,
        progress=work.progress(),
        cancelled=work.cancelled,
    )
    return f"Verified: {report.text}."
