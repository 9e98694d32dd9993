"""Adapters on a base's weights at any strength, one after the other, and the weights back bit for bit.

The base is held once. The weights that are changed are kept on the CPU, in half precision where that loses nothing,
and one adapter's change beside them; where that change has full rank and would not fit into memory, it is made again
for every strength from the cached decompositions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import psutil
import torch
from torch import Tensor

from ..spectral.adapter import Adapter, MatchReport, check_layers
from ..spectral.basis import Progress, WeightSource
from ..spectral.cache import BasisCache
from ..spectral.errors import Cancelled
from ..spectral.matching import LayerMatch
from .base import Base

Change = tuple[Tensor, Tensor] | Tensor
_SHARE = 0.4  # of the free memory that a change may take
_SPOT_CHECKS = 8  # layers with frames that are compared with the base; all would cost as much as applying them


class Dial:
    """What is on the base's weights now; strength is linear on the weight change, as in the loader.

    layers: every layer and norm that an adapter will change. Their weights are read at once, so the base may be cast to
    another precision afterwards: changes are made from the weights that the file holds. room: bytes that one adapter's
    change may take in memory; None takes a share of what is free.
    """

    def __init__(
        self,
        base: Base,
        layers: Collection[str],
        *,
        cache: BasisCache | None = None,
        room: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ):
        self._live = base.weights()
        self._kept = {name: _narrow(self._live[name].detach()) for name in layers if name in self._live}
        self._base, self._cache, self._stop_asked = base, cache, stop
        self._most = room
        self._adapter: Adapter | None = None
        self._changes: dict[str, Change] | None = None

    def mount(self, adapter: Adapter, progress: Progress | None = None) -> MatchReport:
        """Take an adapter in hand, in place of the last one; the weights are the base's until `turn`.

        progress(done, total, layer): a compact adapter of a large base takes a while.
        Raises WrongBaseError where it does not fit, Cancelled when stop() says so.
        """
        self.restore()
        self._adapter, self._changes = adapter, None
        changes: dict[str, Change] = {}
        held, room = 0, self._room()

        def note(name: str, match: LayerMatch) -> None:
            nonlocal held
            if held <= room:
                change = _on_cpu(adapter.change(name, match))
                held += sum(t.nbytes for t in (change if isinstance(change, tuple) else (change,)))
                changes[name] = change
            if held > room:
                changes.clear()

        report = self._checked(adapter, note, progress)
        self._changes = changes if held <= room else None
        return report

    def turn(self, strength: float) -> None:
        """Give the weights base + strength * change, of the adapter in hand. Raises Cancelled, at the base."""
        if strength == 0 or self._adapter is None:
            self.restore()
        elif self._changes is not None:
            for name, change in self._changes.items():
                self._set(name, change, strength)
        else:
            self.restore()
            adapter = self._adapter
            try:
                self._checked(adapter, lambda name, match: self._set(name, adapter.change(name, match), strength))
            except Cancelled:
                self.restore()
                raise

    @torch.no_grad()
    def restore(self) -> None:
        """The base's own weights, bit for bit."""
        for name, kept in self._kept.items():
            self._live[name].copy_(kept)

    def _checked(
        self, adapter: Adapter, note: Callable[[str, LayerMatch], None], progress: Progress | None = None
    ) -> MatchReport:
        device = self._base.unet.device
        weights: dict[str, WeightSource] = {name: partial(_wide, kept, device) for name, kept in self._kept.items()}
        return check_layers(
            adapter,
            weights,
            cache=self._cache,
            progress=progress,
            cancelled=self._stop_asked,
            model_name=self._base.name,
            on_match=note,
            spot_checks=_SPOT_CHECKS,
        )

    @torch.no_grad()
    def _set(self, name: str, change: Change, strength: float) -> None:
        live = self._live[name]
        dense = change[0].to(live.device) @ change[1].to(live.device) if isinstance(change, tuple) else change
        # Summed in fp32: in half precision the weight would swallow a small change's low bits twice.
        whole = self._kept[name].to(live.device, torch.float32)
        live.copy_(torch.add(whole, dense.to(live.device).reshape(whole.shape), alpha=strength))

    def _room(self) -> int:
        return int(psutil.virtual_memory().available * _SHARE) if self._most is None else self._most


def _wide(kept: Tensor, device: torch.device) -> Tensor:
    return kept.to(device, torch.float32)


def _narrow(weight: Tensor) -> Tensor:
    """A copy on the CPU, as fp16 where it holds every bit."""
    half = weight.to(torch.float16)
    exact = weight.dtype == torch.float32 and torch.equal(half.float().view(torch.int32), weight.view(torch.int32))
    return (half if exact else weight.clone()).to("cpu")


def _on_cpu(change: Change) -> Change:
    return tuple(t.detach().cpu() for t in change) if isinstance(change, tuple) else change.detach().cpu()
