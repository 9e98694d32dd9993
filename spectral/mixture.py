"""What is to be fused: sources with weights, and the ways to do it.

D_i is the change of ingredient i, w_i its weight, n how many there are.

    sum          sum_i w_i D_i
    mean         sum_i w_i D_i / n: the average of the fused weights, as in FedAvg and in Spectral Adapter's code
    paper        parameters added at l_i = w_i / n: (U + sum l_i A_i) S (V + sum l_i B_i)^T  (arXiv 2405.13952)
    rotate       rotations of one basis composed along their axes: exp(sum_i w_i log R_i)
    shift        singular values shifted together: relu(sigma + sum_i w_i delta_i)  (SVDiff, arXiv 2303.11305, eq. 4)
    interpolate  weights made to add up to 1; on parameters where all share method and basis (SVDiff, eq. 5), else D_i
    gradient     argmin_X sum_i ||(W + w_i D_i - X) Z_i||^2 for recorded inputs Z_i: the change which does to every
                 concept's activations what its own does; layers without records: sum
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import SettingError
from .matching import trimmed
from .source import Source

FusionMode = Literal["sum", "mean", "paper", "rotate", "shift", "interpolate", "gradient"]
MODES: tuple[FusionMode, ...] = get_args(FusionMode)
_LEAST = 1e-6  # below this, weights that should be made to add up to 1 cancel each other


@dataclass(frozen=True)
class Ingredient:
    """A source and how much of it: 1 is as it was trained, negative takes it away."""

    source: Source
    weight: float = 1.0


def factors(ingredients: Sequence[Ingredient], mode: FusionMode) -> list[float]:
    """What each ingredient is multiplied by in this mode, its change or its parameters; norm gains too.

    Raises SettingError for no ingredients, an unknown mode, weights that are no numbers or cannot add up to 1.
    """
    if mode not in MODES:
        raise SettingError(f"fusion mode {mode!r} is unknown; expected one of {', '.join(MODES)}")
    if not ingredients:
        raise SettingError("found no adapters to fuse; give at least one")
    for one in ingredients:
        if not math.isfinite(one.weight):
            raise SettingError(f"{one.source.name}: found weight {one.weight}, expected a number such as 1.0")
    weights = [float(one.weight) for one in ingredients]
    if not any(weights):
        raise SettingError("every weight is 0, so nothing is left to fuse; give at least one adapter a weight")
    if mode in ("mean", "paper"):
        return [weight / len(weights) for weight in weights]
    if mode != "interpolate":
        return weights
    total = sum(weights)
    if abs(total) < _LEAST:
        raise SettingError(f"interpolate: the weights {weights} add up to {total:g}; give weights that can be made 1")
    return [weight / total for weight in weights]


def shapes_of(sources: Sequence[Source]) -> dict[str, tuple[int, ...]]:
    """{layer: shape of its weight} of all sources, in their order.

    Raises SettingError where they are of different kinds of model, or disagree on a layer.
    """
    families = {source.family: source.name for source in sources if source.family is not None}
    if len(families) > 1:
        found = " and ".join(f"{name} ({family})" for family, name in families.items())
        raise SettingError(f"found adapters of different kinds of model: {found}; fuse adapters of one kind")
    shapes: dict[str, tuple[int, ...]] = {}
    owner: dict[str, str] = {}
    for source in sources:
        for layer, shape in source.shapes.items():
            if trimmed(shapes.setdefault(layer, shape)) != trimmed(shape):
                raise SettingError(
                    f"layer {layer}: {owner[layer]} changes a weight of shape {tuple(shapes[layer])}, {source.name} "
                    f"one of {tuple(shape)}; fuse adapters of one kind of model"
                )
            owner.setdefault(layer, source.name)
    return shapes


def channels_of(sources: Sequence[Source]) -> dict[str, int]:
    """{norm: its channels} of all sources. Raises SettingError where they disagree."""
    channels: dict[str, int] = {}
    for source in sources:
        for norm, count in source.gains.items():
            if channels.setdefault(norm, count) != count:
                raise SettingError(
                    f"norm {norm}: {source.name} shifts {count} channels, another one {channels[norm]}; fuse adapters "
                    "of one kind of model"
                )
    return channels
