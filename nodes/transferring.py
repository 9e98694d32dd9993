"""From adapters to what they become on a related model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ..spectral.cache import BasisCache
from ..spectral.errors import SettingError
from ..spectral.parted import parted
from ..spectral.source import Source
from ..spectral.transfer import Sides, transfer
from . import work
from .adapters import Held, Use
from .apply import naming
from .gathering import named
from .prepare import Connected, connected

Models = tuple[ModelPatcher, CLIP | None]
_AS_ADAPTER, _AUTO = "as the adapter", "auto"


@dataclass(frozen=True)
class Wanted:
    """Which directions of the target, None for those of the adapter; see `transfer`."""

    rank: int | None
    energy: float | None
    sides: Sides | None
    least: float

    @classmethod
    def of(cls, columns: Mapping[str, Any] | None, sides: str, least: float) -> Wanted:
        """What the node's widgets bring. Raises SettingError for a choice that there is not."""
        chosen = columns or {}
        if chosen.get("columns") not in (_AS_ADAPTER, "rank", "energy"):
            raise SettingError(
                f"columns: found {chosen.get('columns')!r}, expected one of {_AS_ADAPTER}, rank, energy."
            )
        return cls(chosen.get("rank"), chosen.get("energy"), None if sides == _AUTO else sides, least)


def transferred(
    uses: Sequence[Use], target: Models, home: Models | None, wanted: Wanted
) -> tuple[tuple[Use, ...], str]:
    """Each adapter on the target, at its own strengths, and how well that went.

    Raises AdapterFileError, WrongBaseError (another kind of model, a missing home), SettingError, and the interrupt.
    """
    began = time.perf_counter()
    cache, onto = BasisCache(), connected(*target)
    origin = None if home is None else connected(*home)
    made, lines = [], []
    for use, name in zip(uses, named(tuple(uses))):
        with naming(f"{name}: "), work.interruptible():
            source, text = _carried(use, onto, origin, wanted, cache)
        made.append(Use(Held.made(source), name, use.model, use.clip))
        lines += [f"{name}: {text}"]
    return tuple(made), "\n".join([*lines, f"Took {time.perf_counter() - began:.1f} s."])


def _carried(
    use: Use, onto: Connected, origin: Connected | None, wanted: Wanted, cache: BasisCache
) -> tuple[Source, str]:
    source = use.source.open()
    if use.parts is not None:
        source = parted(source, use.parts)
    if origin is None and (bare := next((layer for layer in source.shapes if source.needs_weight(layer)), None)):
        raise SettingError(
            f"found a {source.kind} file without directions of its own (layer {bare}), so its change is known only on "
            "the model it was trained on. Connect that model to home_model, and its CLIP to home_clip."
        )
    names = (*source.shapes, *source.gains)
    found = transfer(
        source,
        onto.weights(names),
        home=None if origin is None else origin.weights(names),
        rank=wanted.rank,
        energy=wanted.energy,
        sides=wanted.sides,
        least=wanted.least,
        cache=cache,
        progress=work.progress(),
        cancelled=work.cancelled,
    )
    return found.source, found.text
