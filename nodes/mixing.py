"""What comes through a node's sockets, as the engine's sources: with strengths, parts and only the sides that count."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..spectral.errors import SettingError, WrongBaseError
from ..spectral.mixture import FusionMode, Ingredient
from ..spectral.parted import parted
from ..spectral.parts import Parts
from ..spectral.source import AdapterSource, Source
from .adapters import UNET_PREFIX, Use
from .apply import naming
from .gathering import named
from .prepare import Connected

# Of these, adapters keep their parameters, which a strength for each side would tear apart.
_BY_PARAMETERS: tuple[FusionMode, ...] = ("paper", "rotate", "shift")


@dataclass(frozen=True)
class Mixture:
    """ingredients: what takes part. uses: where each came from. notes: what does not, and why, in sentences."""

    ingredients: tuple[Ingredient, ...]
    uses: tuple[Use, ...]
    notes: tuple[str, ...]

    @property
    def sources(self) -> list[Source]:
        return [one.source for one in self.ingredients]

    @property
    def name(self) -> str:
        """Of what is made of them."""
        names = [source.name for source in self.sources]
        more = len(names) - 3
        return " + ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def mixture(uses: Sequence[Use], with_clip: bool, mode: FusionMode = "sum") -> Mixture:
    """The adapters with their strengths as weights; those that are off or have nothing to change are left out.

    with_clip: whether there is a text encoder to change. Raises AdapterFileError, and SettingError where nothing is
    left, or where a mode needs one strength of both sides.
    """
    made, kept, notes = [], [], []
    for use, name in zip(uses, named(tuple(uses))):
        with naming(f"{name}: "):
            one, note = _ingredient(use, name, with_clip, mode)
        notes += [f"{name}: {note}"] if note else []
        if one is not None:
            made.append(one)
            kept.append(replace(use, name=name))
    if not made:
        found = f"{len(uses)} adapter{'s' * (len(uses) > 1)} ({' '.join(notes)})" if uses else "no adapter at all"
        raise SettingError(
            f"found nothing to work on: {found}; expected at least one that is on, has a strength other than 0 and "
            "layers of the connected model."
        )
    return Mixture(tuple(made), tuple(kept), tuple(notes))


def refuse_another_model(mixed: Mixture, onto: Connected) -> None:
    """Raises WrongBaseError for an adapter of which not all layers are in the connected model, and names it.

    A LoRA file may have some more: many hold layers that ComfyUI itself leaves out.
    """
    for source in mixed.sources:
        names = (*source.shapes, *source.gains)
        missing = [name for name in names if name not in onto.targets]
        if missing and (len(missing) == len(names) or isinstance(source, AdapterSource)):
            raise WrongBaseError(
                f"{source.name}: {len(missing)} of its {len(names)} layers are not in the connected model "
                f"({onto.name}), such as {missing[0]!r}; expected all. Connect the kind of model it was made for, "
                "or leave it out."
            )


def present(mixed: Mixture, onto: Connected) -> Mixture:
    """Without the layers of LoRA files that the connected model lacks, or that ComfyUI itself leaves out."""
    made, notes = [], list(mixed.notes)
    for one in mixed.ingredients:
        source = copy.copy(one.source)
        source.shapes = {layer: shape for layer, shape in source.shapes.items() if layer in onto.targets}
        if lost := len(one.source.shapes) - len(source.shapes):
            notes.append(f"{source.name}: {lost} of {len(one.source.shapes)} layers are not in the connected model.")
        made.append(replace(one, source=source))
    return Mixture(tuple(made), mixed.uses, tuple(notes))


def _ingredient(use: Use, name: str, with_clip: bool, mode: FusionMode) -> tuple[Ingredient | None, str]:
    """The adapter as an ingredient, None where nothing of it counts; what is left of it out, in words."""
    if use.model == 0 and use.clip == 0:
        return None, "left out, its strengths are 0."
    opened = copy.copy(use.source.open())
    opened.name = name
    source = _limited(opened, use.model != 0, use.clip != 0 and with_clip)
    left = len(opened.shapes) - len(source.shapes)
    reason = "no CLIP is connected" if use.clip != 0 and not with_clip else "their strength is 0"
    note = f"{left} of {len(opened.shapes)} layers left out, {reason}." if left else ""
    if use.mode == "spectral":
        note = f"{note} Its spectral strength counts as linear here.".strip()
    if not source.shapes and not source.gains:
        return None, note or "left out, it changes nothing."
    if use.parts is not None:
        source = parted(source, use.parts)
    return _weighted(source, use, mode), note


def _weighted(source: Source, use: Use, mode: FusionMode) -> Ingredient:
    sides = {name.startswith(UNET_PREFIX) for name in (*source.shapes, *source.gains)}
    if sides == {True} or use.model == use.clip:
        return Ingredient(source, use.model)
    if sides == {False}:
        return Ingredient(source, use.clip)
    if mode in _BY_PARAMETERS:
        raise SettingError(
            f"found strengths {use.model:g} (model) and {use.clip:g} (clip), expected one strength for {mode}, which "
            "works on the adapter's parameters. Set both alike, or choose sum, mean or interpolate."
        )
    if abs(use.clip) <= abs(use.model):
        return Ingredient(parted(source, Parts.parse(f"text={_number(use.clip / use.model)}")), use.model)
    return Ingredient(parted(source, Parts.parse(f"*={_number(use.model / use.clip)}, text=1")), use.clip)


def _number(value: float) -> str:
    """As `Parts` reads it, without loss."""
    return repr(value) if math.isfinite(value) else "0"


def _limited(source: Source, unet: bool, text: bool) -> Source:
    """The source on these sides alone; an adapter stays one."""

    def is_wanted(name: str) -> bool:
        return unet if name.startswith(UNET_PREFIX) else text

    if all(is_wanted(name) for name in (*source.shapes, *source.gains)):
        return source
    if isinstance(source, AdapterSource):
        layers = {name: layer for name, layer in source.adapter.layers.items() if is_wanted(name)}
        gains = {name: gain for name, gain in source.adapter.gains.items() if is_wanted(name)}
        return AdapterSource(replace(source.adapter, layers=layers, gains=gains), source.name)
    sides = (f"*={int(unet)}", f"text={int(text)}")
    return parted(source, Parts.parse(", ".join(sides)))
