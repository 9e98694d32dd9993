"""Where adapters meet in the connected model, before they are fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from PIL import Image

from ..spectral.cache import BasisCache
from ..spectral.conflict import conflict
from ..trainer import conflict_plot
from . import work
from .adapters import Use
from .mixing import mixture, present, refuse_another_model
from .prepare import connected


@dataclass(frozen=True)
class Compared:
    """The heat map, the sentence, and all numbers as text."""

    picture: Image.Image
    sentence: str
    text: str


def compared(uses: Sequence[Use], model: ModelPatcher, clip: CLIP | None) -> Compared:
    """Measured in the model's whole basis. Raises SettingError (fewer than two), WrongBaseError, the interrupt."""
    mixed, onto = mixture(uses, clip is not None), connected(model, clip)
    refuse_another_model(mixed, onto)
    mixed = present(mixed, onto)
    weights = onto.weights({layer for source in mixed.sources for layer in source.shapes})
    with work.interruptible():
        found = conflict(mixed.sources, weights, cache=BasisCache(), progress=work.progress(), cancelled=work.cancelled)
    text = "\n".join([found.text, *mixed.notes])
    return Compared(conflict_plot.draw(found), found.sentence, text)
