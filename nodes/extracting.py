"""From a change of the connected model's weights to the adapter that comes nearest to it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ..spectral.blocks import place
from ..spectral.cache import BasisCache
from ..spectral.choose import asks_for_best
from ..spectral.errors import SettingError
from ..spectral.extract import difference, extract
from ..spectral.fusion import fuse
from ..spectral.methods import METHODS, Method, method
from ..spectral.source import AdapterSource, Source
from . import work
from .adapters import Held, Use
from .mixing import mixture
from .model_weights import own_layers
from .prepare import Connected, connected
from .weights import original_weight

Layers = Literal["attention", "cross-attention", "attention+ff", "all"]
_SELF = ("self-attention", "text-attention")
_KINDS: dict[Layers, tuple[str, ...] | None] = {
    "attention": (*_SELF, "cross-attention"),
    "cross-attention": ("cross-attention", "text-attention"),
    "attention+ff": (*_SELF, "cross-attention", "feed-forward", "text-feed-forward"),
    "all": None,
}
_TUNED = "fine-tune"


@dataclass(frozen=True)
class Given:
    """What the node got: the base, and adapters or a fine-tune of it, of which only these layers are read."""

    model: ModelPatcher
    clip: CLIP | None
    adapters: tuple[Use, ...] | None
    tuned_model: ModelPatcher | None
    tuned_clip: CLIP | None
    layers: Layers


def extracted(given: Given, chosen: Mapping[str, Any] | None) -> tuple[Use, str]:
    """The adapter, and how much of the change it holds.

    Raises SettingError (not one source of change, no such method), WrongBaseError, and ComfyUI's interrupt.
    """
    began = time.perf_counter()
    wanted, choose = method_of(chosen)
    onto, cache = connected(given.model, given.clip), BasisCache()
    with work.interruptible():
        source, notes = _source(given, onto, cache)
        made = extract(
            source,
            onto.weights((*source.shapes, *source.gains)),
            wanted,
            choose=choose,
            cache=cache,
            progress=work.progress(),
            cancelled=work.cancelled,
        )
    name = f"{source.name} as {wanted.name}"
    use = Use(Held.made(AdapterSource(made.adapter, name)), name)
    return use, "\n".join([made.text, *notes, f"Extracted in {time.perf_counter() - began:.1f} s."])


def method_of(chosen: Mapping[str, Any] | None) -> tuple[Method, bool]:
    """What the method widget brings, and whether each layer gets the columns that hold most. Raises SettingError."""
    chosen = chosen or {}
    name = chosen.get("method")
    if name not in METHODS:
        raise SettingError(f"method: found {name!r}, expected one of {', '.join(METHODS)}.")
    columns = chosen.get("columns", "").strip() or None
    rank = chosen.get("rank") or None
    best, count = asks_for_best(columns)
    if best:
        return method(name, rank=count or rank), True
    return method(name, columns=columns, rank=None if columns else rank), False


def _source(given: Given, onto: Connected, cache: BasisCache) -> tuple[Source, tuple[str, ...]]:
    if (given.adapters is None) == (given.tuned_model is None):
        found = "neither" if given.adapters is None else "both"
        raise SettingError(
            f"found {found} of adapters and tuned_model connected; expected one of them: it holds the change to "
            "extract from."
        )
    if given.tuned_model is not None:
        return _difference(given, onto), ()
    mixed = mixture(given.adapters, given.clip is not None)
    weights = onto.weights({name for source in mixed.sources for name in (*source.shapes, *source.gains)})
    if len(mixed.ingredients) == 1 and mixed.ingredients[0].weight == 1:
        return mixed.ingredients[0].source, mixed.notes
    made = fuse(mixed.ingredients, "sum", weights=weights, cache=cache, name=mixed.name, cancelled=work.cancelled)
    return made, mixed.notes


def _difference(given: Given, onto: Connected) -> Source:
    if (given.clip is None) != (given.tuned_clip is None):
        missing = "clip" if given.clip is None else "tuned_clip"
        raise SettingError(
            f"found one CLIP, expected both or none: connect {missing} too, or none to leave the text encoder out."
        )
    tuned = connected(given.tuned_model, given.tuned_clip)
    kinds = _KINDS[given.layers]
    names = [name for name in own_layers(onto, given.model) if kinds is None or place(name, None).work in kinds]
    theirs = set(own_layers(tuned, given.tuned_model))
    shared = {name: tuned.targets[name] for name in names if name in theirs}
    return difference(
        {name: lambda t=target: _current(t.patcher, t.key) for name, target in shared.items()},
        onto.weights(names),
        _TUNED,
    )


def _current(patcher: ModelPatcher, key: str) -> Tensor:
    """The weight with what is applied to the connected model: a merge of models is nothing but that. fp32."""
    weight = original_weight(patcher, key)
    if key not in patcher.patches:
        return weight
    return comfy.lora.calculate_weight(patcher.patches[key], weight.to(torch.float32, copy=True), key)
