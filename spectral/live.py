"""Adapters on a module that is in use: strengths moved, adapters exchanged, without loading anything again.

    W = W_0 + sum_i s_i D_i

W_0 is kept for every weight that was touched, and W is always made of it, in fp32: nothing accumulates, and with all
strengths at 0 the module has its own bits again. Only weights of adapters whose strength changed are written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .adapter import MatchReport, OnMismatch, check_layers
from .basis import Progress, WeightSource
from .cache import BasisCache
from .change import Change, Thin
from .errors import Cancelled, SettingError
from .merge import module_weights
from .open import open_source
from .source import AdapterSource, Source

_SPOT_CHECKS = 8  # of a portable file's layers: information only, and as dear as using them
# Rank from which adding a whole matrix is quicker on a CPU than multiplying its factors each time; kept so while there
# is room.
_DENSE_FROM = 32
HELD = 2 << 30  # bytes of changes of full rank that are kept; an svdiff adapter of SD1.5's attention has 0.28 GB


@dataclass
class _Held:
    """An adapter that is set.

    changes: those at strength 1 that are kept; the others are computed when needed. room: bytes left for dense ones.
    """

    source: Source
    strength: float
    weights: dict[str, nn.Parameter]
    changes: dict[str, Change]
    report: MatchReport | None = None
    room: int = 0

    @property
    def dense_bytes(self) -> int:
        return sum(_bytes(change) for change in self.changes.values())

    def keep(self, layer: str, change: Change) -> None:
        """Keep a change, unless it is dense and there is no room left for it."""
        if isinstance(change, tuple) and _better_dense(change, self.room):
            change = change[0] @ change[1]
        if _bytes(change) <= self.room:
            self.room -= _bytes(change)
            self.changes[layer] = change


class Live:
    """Adapters by name on one module, such as a diffusers UNet.

    prefix: which part of Stable Diffusion it is ("lora_unet_", "lora_te_", ...), "" for any other module; None finds it
    for each adapter. cache: where bases are looked up and kept. held: bytes that changes of full rank may take; those
    beyond are computed again, from the cached bases, whenever a weight needs them.
    While adapters are set, nothing else may write the module's weights; it may move to another device.
    """

    def __init__(
        self, module: nn.Module, prefix: str | None = None, *, cache: BasisCache | None = None, held: int = HELD
    ):
        self.module, self.prefix, self._cache, self._room = module, prefix, cache, held
        self._held: dict[str, _Held] = {}
        self._originals: dict[str, Tensor] = {}

    @property
    def strengths(self) -> dict[str, float]:
        """{name: strength} of the adapters that are set."""
        return {name: one.strength for name, one in self._held.items()}

    def set(
        self,
        name: str,
        source: Source | str | os.PathLike[str],
        strength: float = 1.0,
        *,
        on_mismatch: OnMismatch = "refuse",
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> MatchReport | None:
        """Put an adapter (or its file) on, or in the place of the one of this name.

        How well the base fits, or None for a source that fits by shape alone. All is read, checked and computed before
        the first weight is written. Raises AdapterFileError, WrongBaseError, SettingError, Cancelled; the module is
        then as it was.
        """
        _check_strength(name, strength)
        source = source if isinstance(source, Source) else open_source(source)
        weights = module_weights(source, self.module, self.prefix)
        made = _Held(source, strength, weights, {})
        self._prepare(made, name, on_mismatch, progress, cancelled)
        before = self._held.get(name)
        self._held[name] = made
        self._write({**(before.weights if before else {}), **weights})
        return made.report

    def move(self, strengths: Mapping[str, float]) -> None:
        """Give adapters that are set other strengths, {name: strength}, in one pass; those not named keep theirs.

        Raises SettingError for a name that is not set and for a strength that is no finite number.
        """
        for name, strength in strengths.items():
            if name not in self._held:
                known = ", ".join(self._held) or "none"
                raise SettingError(f"found no adapter {name!r} to move; those that are set: {known}")
            _check_strength(name, strength)
        moved = [name for name, strength in strengths.items() if self._held[name].strength != strength]
        touched: dict[str, nn.Parameter] = {}
        for name in moved:
            self._held[name].strength = strengths[name]
            touched |= self._held[name].weights
        self._write(touched)

    def remove(self, name: str) -> None:
        """Take an adapter off and forget it. Raises SettingError for a name that is not set."""
        if name not in self._held:
            raise SettingError(f"found no adapter {name!r} to remove; those that are set: {', '.join(self._held)}")
        self._write(self._held.pop(name).weights)

    def clear(self) -> None:
        """Take all adapters off: the module has its own weights again, bit for bit."""
        touched: dict[str, nn.Parameter] = {}
        for one in self._held.values():
            touched |= one.weights
        self._held.clear()
        self._write(touched)

    def _prepare(
        self,
        made: _Held,
        name: str,
        on_mismatch: OnMismatch,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        """Check the adapter against the untouched weights, and keep its changes as far as there is room."""
        originals = {layer: self._original(layer, weight) for layer, weight in made.weights.items()}
        made.room = self._room - sum(one.dense_bytes for other, one in self._held.items() if other != name)
        asked = {"on_mismatch": on_mismatch, "cache": self._cache, "cancelled": cancelled}
        if isinstance(made.source, AdapterSource):
            adapter = made.source.adapter
            made.report = check_layers(
                adapter,
                originals,
                progress=progress,
                on_match=lambda layer, match: made.keep(layer, adapter.change(layer, match)),
                spot_checks=_SPOT_CHECKS,
                **asked,
            )
            fitting = (*made.report.layers, *made.report.gains)
            made.weights = {layer: made.weights[layer] for layer in fitting}
            return
        made.report = made.source.check(originals, **asked)
        for done, layer in enumerate(originals, 1):
            if cancelled is not None and cancelled():
                raise Cancelled("putting the adapter on was cancelled; the module is unchanged")
            made.keep(layer, self._computed(made.source, layer, originals[layer]))
            if progress is not None:
                progress(done, len(originals), layer)

    def _change_of(self, one: _Held, layer: str, original: Tensor) -> Change:
        kept = one.changes.get(layer)
        return self._computed(one.source, layer, original) if kept is None else kept

    def _computed(self, source: Source, layer: str, original: WeightSource) -> Change:
        if layer in source.gains:
            return source.gain(layer)
        return source.change(layer, original if isinstance(original, Tensor) else original(), self._cache)

    def _original(self, layer: str, weight: nn.Parameter) -> WeightSource:
        kept = self._originals.get(layer)
        return weight.data if kept is None else partial(kept.to, weight.device)

    def _write(self, touched: Mapping[str, nn.Parameter]) -> None:
        """Make these weights anew of their originals and of what is set."""
        with torch.no_grad():
            for layer, weight in touched.items():
                parts = [one for one in self._held.values() if one.strength and layer in one.weights]
                if not parts:
                    self._restore(layer, weight)
                    continue
                if layer not in self._originals:
                    self._originals[layer] = weight.detach().to("cpu", copy=True)
                original = self._originals[layer].to(weight.device)
                changes = [(self._change_of(one, layer, original), one.strength) for one in parts]
                _put(weight.data, original, changes)

    def _restore(self, layer: str, weight: nn.Parameter) -> None:
        kept = self._originals.get(layer)
        if kept is None:
            return
        weight.copy_(kept)
        if not any(layer in one.weights for one in self._held.values()):
            del self._originals[layer]


def _bytes(change: Change) -> int:
    """What a change of full rank takes; thin ones and those of gains do not count."""
    return change.numel() * change.element_size() if isinstance(change, Tensor) and change.ndim > 1 else 0


def _better_dense(change: Thin, room: int) -> bool:
    (m, rank), n = change[0].shape, change[1].shape[1]
    return rank >= _DENSE_FROM and change[0].device.type == "cpu" and 4 * m * n <= room


def _put(weight: Tensor, original: Tensor, changes: Sequence[tuple[Change, float]]) -> None:
    """weight = original + sum of strength * change, in fp32; all thin changes by one product."""
    dense = [(change, strength) for change, strength in changes if isinstance(change, Tensor)]
    made = original.to(torch.float32, copy=bool(dense))
    for change, strength in dense:
        made.add_(change.to(made).reshape(made.shape), alpha=strength)
    thin = [(change, strength) for change, strength in changes if not isinstance(change, Tensor)]
    if not thin:
        weight.copy_(made)
        return
    up = torch.cat([(change[0] * strength).to(made) for change, strength in thin], 1)
    down = torch.cat([change[1].to(made) for change, _ in thin], 0)
    if weight.dtype == made.dtype and weight.is_contiguous():
        # Straight to where it belongs: what a change of strength costs is the traffic of whole weights.
        torch.addmm(made.flatten(1), up, down, out=weight.view(weight.shape[0], -1))
    else:
        weight.copy_(torch.addmm(made.flatten(1), up, down).reshape(weight.shape))


def _check_strength(name: str, strength: float) -> None:
    if not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise SettingError(f"{name}: found strength {strength!r}, expected a finite number such as 0.8")
