"""What the layers of a base get to see while it makes pictures with an adapter: for gradient fusion."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..spectral import names
from ..spectral.cache import BasisCache
from ..spectral.errors import Cancelled, SettingError
from ..spectral.fusion_facts import trigger_words
from ..spectral.merge import merge, module_weights
from ..spectral.mixture import Ingredient
from ..spectral.moments import Recorder, by_layer
from .base import Base, Part
from .events import Listener, Progress, silent
from .samples import Look, Shot, sample


@dataclass(frozen=True)
class Recorded:
    """moments: {layer: a matrix for each adapter}, for `fuse`. missing: layers without, which are summed."""

    moments: dict[str, tuple[Tensor, ...]]
    missing: tuple[str, ...]


def record(
    base: Base,
    ingredients: Sequence[Ingredient],
    prompts: Sequence[str],
    look: Look,
    *,
    seed: int = 0,
    cache: BasisCache | None = None,
    listen: Listener = silent,
    cancelled: Callable[[], bool] | None = None,
) -> Recorded:
    """One picture per adapter, made with the adapter merged at its weight and its own prompt; the base stays as it was.

    Raises WrongBaseError where an adapter does not belong to the base, Cancelled between two pictures.
    """
    wanted = dict.fromkeys(layer for one in ingredients for layer in one.source.shapes)
    live, recordings = _modules(base, wanted), []
    for done, (one, prompt) in enumerate(zip(ingredients, prompts), start=1):
        if cancelled is not None and cancelled():
            raise Cancelled("recording was cancelled; nothing was changed")
        with _merged(base, one, cache), Recorder(live) as recorder:
            sample(base, [Shot(prompt, seed)], look)
        recordings.append(recorder.moments)
        listen(Progress(done, len(ingredients), one.source.name))
    moments = by_layer(recordings)
    return Recorded(moments, tuple(layer for layer in wanted if layer not in moments))


def prompts_for(ingredients: Sequence[Ingredient], given: Sequence[str]) -> list[str]:
    """A prompt for each adapter: those given, in order, else its trigger words. Raises SettingError where some lack."""
    if given:
        if len(given) != len(ingredients):
            raise SettingError(
                f"found {len(given)} prompts for {len(ingredients)} adapters; expected one for each, in their order"
            )
        return list(given)
    words = [", ".join(trigger_words(one.source.metadata)) for one in ingredients]
    silent_ones = [one.source.name for one, own in zip(ingredients, words) if not own]
    if silent_ones:
        raise SettingError(
            f"{silent_ones[0]} names no trigger words to sample with; give every adapter a --prompt, in their order"
        )
    return words


def _modules(base: Base, wanted: Collection[str]) -> dict[str, nn.Module]:
    return {
        layer: part.module.get_submodule(path)
        for part in base.parts()
        for layer, path in names.layer_names(part.module, part.prefix, base.family).items()
        if layer in wanted
    }


@contextmanager
def _merged(base: Base, one: Ingredient, cache: BasisCache | None) -> Iterator[None]:
    """The base with the ingredient in its weights, which are put back bit by bit."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for part in _changed_parts(base, one):
            weights = module_weights(one.source, part.module, part.prefix).values()
            kept += [(weight, weight.detach().clone()) for weight in weights]
            merge(one.source, part.module, one.weight, prefix=part.prefix, cache=cache)
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)


def _changed_parts(base: Base, one: Ingredient) -> list[Part]:
    every = (*one.source.shapes, *one.source.gains)
    parts = [part for part in base.parts() if any(name.startswith(part.prefix) for name in every)]
    if not parts:
        raise SettingError(f"{one.source.name} changes no part of {base.name}; give the base it was trained on")
    return parts
