"""What an adapter file changes in a model, computed once from the untouched weights and only scaled afterwards.

For every web UI alike; nothing here knows one. A file is judged whole before a host may use any of it:

    Base(owner, version, name, weights)                     the model, as a host describes it
    changes_of(path, base, settings) -> Applied             judged and computed, or found among those that are kept
    Applied.change(layer, device) -> Tensor                 at strength 1, (m, n) fp32; a norm's (c,)
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..spectral.adapter import Adapter, MatchReport, OnMismatch, check_layers
from ..spectral.another_model import FAMILY_NAMES, fit_text, refuse_another_model
from ..spectral.basis import Progress
from ..spectral.cache import BasisCache
from ..spectral.file import load
from ..spectral.matching import LayerMatch
from ..spectral.names import CROSS_WIDTH
from ..spectral.source import AdapterSource

_SPOT_CHECKS = 8  # of a portable file's layers: information only, and as dear as using them


@dataclass(frozen=True)
class Settings:
    """How changes are computed and kept.

    device: where weights are decomposed, None for where they lie. kept_bytes: of changes that are not in use.
    policy: what to do with an adapter of another base.
    """

    device: torch.device | None = None
    kept_bytes: int = 2 << 30
    policy: OnMismatch = "refuse"


@dataclass(frozen=True)
class Base:
    """The model that files are put on.

    owner: the model's object, held weakly. version: what tells two checkpoints in one object apart, such as the
    checkpoint's file. name: what messages call the kind of model (`model_name`). weights: {layer or norm in kohya's
    spelling: a function that gives its untouched weight}.
    """

    owner: object
    version: Hashable
    name: str
    weights: Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Thin:
    """A change of low rank: up (m, r), down (r, n), fp32."""

    up: Tensor
    down: Tensor

    def dense(self, device: torch.device | None = None) -> Tensor:
        with _full_precision():
            return self.up.to(device) @ self.down.to(device)

    @property
    def bytes(self) -> int:
        return 4 * (self.up.numel() + self.down.numel())


@dataclass(frozen=True)
class Dense:
    """A change of full rank, or of a norm: matrix (m, n) or (c,) in fp16 with largest magnitude 1, times scale.

    The scale keeps fp16's full precision: changes are often smaller than fp16's smallest normal number.
    """

    matrix: Tensor
    scale: float

    def dense(self, device: torch.device | None = None) -> Tensor:
        return self.matrix.to(device, torch.float32, copy=True).mul_(self.scale)

    @property
    def bytes(self) -> int:
        return 2 * self.matrix.numel()


Kept = Thin | Dense


@dataclass(frozen=True)
class Applied:
    """One file on one base.

    layers: the changes at strength 1, of layers and norms that the base has. text: what to tell the user, such as
    "264 of 264 layers applied, 0 unused. Match 99.9 %". report: how each layer fits.
    """

    layers: Mapping[str, Kept]
    text: str
    trigger_words: tuple[str, ...]
    report: MatchReport

    def change(self, layer: str, device: torch.device | None = None) -> Tensor:
        """The change of a layer's weight, flattened to (m, n), or of a norm's gain (c,), at strength 1: fp32, to be
        multiplied by any strength. Raises KeyError for a layer that is not among `layers`."""
        return self.layers[layer].dense(device)

    @property
    def bytes(self) -> int:
        return sum(kept.bytes for kept in self.layers.values())


def model_name(context_width: int | None, otherwise: str) -> str:
    """What messages call a model whose text has this width: "Stable Diffusion 1.x" for 768; else what is given."""
    family = CROSS_WIDTH.get(context_width) if context_width is not None else None
    return otherwise if family is None else FAMILY_NAMES[family]


def changes_of(
    path: str | os.PathLike[str],
    base: Base,
    settings: Settings,
    *,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Applied:
    """The changes of a file of this package on a base; nothing is computed again for a file and base that are kept.

    Raises AdapterFileError (unreadable), WrongBaseError (of another model, unless the policy is force), Cancelled.
    """
    path = Path(path)
    with _lock:
        key = _key(path, base, settings.policy)
        found = _kept.pop(key, None)
        if found is None:
            found = compute(path, base, settings, progress=progress, cancelled=cancelled)
        _kept[key] = found
        _drop_oldest(settings.kept_bytes)
        return found


def compute(
    path: Path,
    base: Base,
    settings: Settings,
    *,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Applied:
    """`changes_of`, without looking among the kept ones."""
    adapter = load(path)
    names = (*adapter.layers, *adapter.gains)
    if settings.policy == "refuse":
        refuse_another_model(AdapterSource(adapter, path.stem), names, base.weights, base.name)
    layers: dict[str, Kept] = {}

    def keep(name: str, match: LayerMatch) -> None:
        layers[name] = _kept_form(adapter, name, match)

    weights = {name: partial(_fetch, base.weights[name], settings.device) for name in names if name in base.weights}
    with torch.no_grad(), _full_precision():
        report = check_layers(
            adapter,
            weights,
            on_mismatch=settings.policy,
            cache=BasisCache(),
            progress=progress,
            cancelled=cancelled,
            model_name=base.name,
            on_match=keep,
            spot_checks=_SPOT_CHECKS,
        )
    return Applied(
        layers, fit_text(layers, adapter.layers, adapter.gains, report), tuple(adapter.trigger_words), report
    )


def forget() -> None:
    """Drops everything that is kept."""
    with _lock:
        _kept.clear()


def kept_bytes() -> int:
    """How much memory the kept changes take."""
    return sum(applied.bytes for applied in _kept.values())


@dataclass(frozen=True)
class _Key:
    """What changes depend on. The owner is held weakly: a model that is loaded again is another one."""

    path: str
    stamp: tuple[int, int]
    owner: weakref.ref
    version: Hashable
    policy: OnMismatch


_kept: dict[_Key, Applied] = {}  # the least recently used first
_lock = threading.RLock()


def _key(path: Path, base: Base, policy: OnMismatch) -> _Key:
    try:
        found = path.stat()
        stamp = (found.st_mtime_ns, found.st_size)
    except OSError:
        stamp = (0, 0)  # reading it says why
    return _Key(str(path), stamp, weakref.ref(base.owner), base.version, policy)


def _drop_oldest(limit: int) -> None:
    """Lets go of models that are gone and of the oldest changes; the newest stays, since it is about to be used."""
    for key in [key for key in _kept if key.owner() is None]:
        del _kept[key]
    while len(_kept) > 1 and kept_bytes() > limit:
        del _kept[next(iter(_kept))]


@contextmanager
def _full_precision() -> Iterator[None]:
    """Web UIs make pictures under autocast, which would round every product here to 16 bits."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _fetch(weight: Callable[[], Tensor], device: torch.device | None) -> Tensor:
    return weight().detach().to(device)


def _kept_form(adapter: Adapter, name: str, match: LayerMatch) -> Kept:
    change = adapter.change(name, match)
    if isinstance(change, tuple):
        return Thin(*(side.float().cpu().contiguous() for side in change))
    scale = float(change.abs().max()) or 1.0
    return Dense((change / scale).half().cpu().contiguous(), scale)
