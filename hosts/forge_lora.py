"""Where the web UIs of Forge's family put a file of the Lora folder on a model, and how ours gets there.

Forge, reForge, Forge Classic and Forge Neo have a function `load_lora_for_models` in the module `networks` of their
Lora extension, called for each tag of a prompt with the models and the file's path. Ours is put before it, takes the
files of this package and hands all others on. The hosts' hooks further in see tensors alone, while what the tensors of
our files mean is said in the file's metadata; and by then nobody could judge a file as a whole.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor

from ..spectral.host_keys import places
from ..spectral.known_files import is_adapter
from . import settings
from .changes import Applied, Base, Kept, changes_of, model_name
from .host import Undo

_OWN = "spectral_adapters_original"  # the attribute of our function that keeps the host's
_CROSS = "attn2_to_k"  # the layer that tells how wide a model's text is
_LORA = "networks"  # the module of the host's Lora extension

#: {path: how the file fits}, of those that are on the model.
fits: dict[str, str] = {}


class Variant(Protocol):
    """What differs between the hosts of the family. patcher: a host's object that holds a module and its patches."""

    def register(self) -> None:
        """Makes our patches known to the host; again does no harm."""

    def unregister(self) -> None:
        """Takes them out again."""

    def keys(self, model: Any, clip: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """{layer name in any spelling: key in the module} of the UNet and of the text encoders."""

    def original(self, patcher: Any, key: str) -> Tensor:
        """A weight without any patch, dequantised, whatever is on the model at the moment; to be read only."""

    def patch(self, kept: Kept) -> object:
        """A change as the host's `add_patches` takes it."""


@dataclass(frozen=True)
class Target:
    """Where a layer lives in the host."""

    patcher: Any
    on_clip: bool
    key: str


@dataclass(frozen=True)
class Tag:
    """One tag of a prompt: a file, its strengths, and whether the host patches at each forward."""

    path: str
    strength_model: float
    strength_clip: float
    online: bool

    @property
    def of_host(self) -> dict[str, object]:
        """What the hosts that want to know more of a patch call it."""
        return {"filename": self.path, "online_mode": self.online}


def lora_extension() -> ModuleType | None:
    """The module that loads networks, in a host of the family."""
    found = sys.modules.get(_LORA)
    return found if hasattr(found, "load_lora_for_models") else None


def attach(variant: Variant) -> Undo:
    """Puts our `load_lora_for_models` before the one that the host calls, instead of ours of an earlier start."""
    networks = lora_extension()
    others = getattr(networks.load_lora_for_models, _OWN, networks.load_lora_for_models)
    variant.register()

    @functools.wraps(others)
    def load_lora_for_models(
        model: Any,
        clip: Any,
        lora: Mapping[str, Tensor],
        strength_model: float,
        strength_clip: float,
        filename: str = "default",
        *more: Any,
        **named: Any,  # some hosts of the family have more arguments than others
    ) -> tuple[Any, Any]:
        if not is_adapter(filename):
            return others(model, clip, lora, strength_model, strength_clip, filename, *more, **named)
        online = bool(named.get("online_mode", more[0] if more else False))
        return put_on(variant, model, clip, Tag(filename, strength_model, strength_clip, online))

    setattr(load_lora_for_models, _OWN, others)
    networks.load_lora_for_models = load_lora_for_models

    def undo() -> None:
        if networks.load_lora_for_models is load_lora_for_models:  # another extension may have put its own before it
            networks.load_lora_for_models = others
        variant.unregister()

    return undo


def put_on(variant: Variant, model: Any, clip: Any, tag: Tag) -> tuple[Any, Any]:
    """Clones of model and clip with a file's changes; the objects themselves where nothing is to be changed.

    Raises AdapterFileError, WrongBaseError, Cancelled.
    """
    fits.pop(tag.path, None)
    if tag.strength_model == 0 and tag.strength_clip == 0:
        return model, clip
    targets = targets_of(variant, model, clip)
    applied = _computed(tag.path, base_of(variant, model, targets))
    fits[tag.path] = applied.text
    return (
        _patched(model, _of_side(variant, applied, targets, on_clip=False), tag.strength_model, tag),
        _patched(clip, _of_side(variant, applied, targets, on_clip=True), tag.strength_clip, tag),
    )


def _computed(path: str, base: Base) -> Applied:
    """The changes of a file, with its progress shown where the web UI shows that of pictures."""
    from modules import shared

    state, name = shared.state, Path(path).stem

    def progress(done: int, total: int, _: str) -> None:
        state.textinfo = f"Spectral adapter {name}: layer {done} of {total}"

    return changes_of(path, base, settings.current(), progress=progress, cancelled=lambda: state.interrupted)


def targets_of(variant: Variant, model: Any, clip: Any) -> dict[str, Target]:
    """Every layer that the host knows, in all spellings, and the text encoders' norms, with their places."""
    unet_keys, clip_keys = variant.keys(model, clip)
    found: dict[str, Target] = {}
    if clip is not None:
        known = places(clip_keys, clip.cond_stage_model)
        found |= {name: Target(clip.patcher, True, key) for name, key in known.items()}
    known = places(unet_keys, model.model)
    return found | {name: Target(model, False, key) for name, key in known.items()}


def base_of(variant: Variant, model: Any, targets: Mapping[str, Target]) -> Base:
    """The model as files are judged on it."""
    weights = {name: partial(variant.original, target.patcher, target.key) for name, target in targets.items()}
    return Base(model.model, None, _name(model, weights), weights)


def _name(model: Any, weights: Mapping[str, Callable[[], Tensor]]) -> str:
    cross = next((weight() for name, weight in weights.items() if name.endswith(_CROSS)), None)
    return model_name(None if cross is None else cross.shape[1], type(model.model.diffusion_model).__name__)


def _of_side(variant: Variant, applied: Applied, targets: Mapping[str, Target], *, on_clip: bool) -> dict[str, object]:
    return {
        targets[name].key: variant.patch(kept)
        for name, kept in applied.layers.items()
        if targets[name].on_clip == on_clip
    }


def _patched(side: Any, patches: Mapping[str, object], strength: float, tag: Tag) -> Any:
    """A clone of the UNet's patcher, or of the text encoders, with the patches; itself where there are none."""
    if strength == 0 or not patches:
        return side
    clone = side.clone()
    patcher = getattr(clone, "patcher", clone)
    asked = inspect.signature(patcher.add_patches).parameters
    more = {name: value for name, value in tag.of_host.items() if name in asked}
    patcher.add_patches(patches=patches, strength_patch=strength, **more)
    return clone
