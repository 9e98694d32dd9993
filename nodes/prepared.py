"""The patches of the last adapters, so that moving a strength does not prepare them again."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from .adapters import Key, Made
from .patch import Patch

if TYPE_CHECKING:
    from .adapters import Use

_LIMIT = 2 << 30  # bytes; the dense changes of SD1.5 need 190 MB for its attention layers, 1.7 GB for all


@dataclass(frozen=True)
class Placed:
    """The patch of one layer. on_clip: whether it is one of the text encoder's. key: in the model's state dict."""

    on_clip: bool
    key: str
    patch: Patch

    @property
    def bytes(self) -> int:
        parts = self.patch[1] if isinstance(self.patch, tuple) else self.patch.weights
        return sum(t.numel() * t.element_size() for t in parts if isinstance(t, Tensor))


@dataclass(frozen=True)
class Prepared:
    """Patches by layer, for strength 1 (or, in spectral mode, for one strength), and what to tell the user."""

    layers: dict[str, Placed]
    fit: str
    effort: str

    @property
    def bytes(self) -> int:
        return sum(placed.bytes for placed in self.layers.values())


@dataclass(frozen=True)
class Identity:
    """What the patches depend on. Modules and what nodes have made are held weakly: a reloaded model is another one.

    exact: what cannot be moved afterwards: strengths in spectral mode, parts that tell columns apart.
    """

    file: Key | None
    owners: tuple[weakref.ref | None, ...]
    sides: tuple[bool, bool]
    exact: tuple[float | str, ...]
    on_mismatch: str


_kept: dict[Identity, Prepared] = {}


def identity(use: Use, model: ModelPatcher, clip: CLIP | None, on_mismatch: str) -> Identity:
    key, parts = use.source.key, use.parts
    owners = (model.model, None if clip is None else clip.cond_stage_model, key if isinstance(key, Made) else None)
    spectral = use.mode == "spectral"
    return Identity(
        None if isinstance(key, Made) else key,
        tuple(None if owner is None else weakref.ref(owner) for owner in owners),
        (use.model != 0, use.clip != 0),
        (
            *((use.model, use.clip) if spectral else ()),
            parts.text if parts is not None and (spectral or parts.has_columns) else "",
        ),
        on_mismatch,
    )


def find(wanted: Identity) -> Prepared | None:
    """The kept patches, moved to the front; entries of models that are gone are dropped."""
    for known in [k for k in _kept if any(ref is not None and ref() is None for ref in k.owners)]:
        del _kept[known]
    ready = _kept.pop(wanted, None)
    if ready is not None:
        _kept[wanted] = ready
    return ready


def keep(wanted: Identity, ready: Prepared) -> None:
    """Keeps the patches if they fit, and as many older ones as do."""
    _kept[wanted] = ready
    while sum(p.bytes for p in _kept.values()) > _LIMIT:
        del _kept[next(iter(_kept))]


def forget() -> None:
    """Drops everything that is kept."""
    _kept.clear()
