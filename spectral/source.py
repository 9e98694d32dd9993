"""Where weight changes come from: an adapter, a file of another kind, or a mixture of several.

Everything that reads changes (applying, fusing, comparing, exporting, extracting) reads them layer by layer through
`Source`, so it works for all of them alike and never holds more than one layer of a large model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor

from .adapter import Adapter, MatchReport, OnMismatch, check_layers
from .basis import Basis, Progress, WeightSource
from .cache import BasisCache
from .change import Change
from .errors import SettingError, UnknownLayerError
from .matching import AdapterLayer, check_fits, check_shape, find_basis, on_device
from .names import Family, guess_family

_SPOT_CHECKS = 8  # of a portable file's layers: information only, and as dear as using them


class Source(ABC):
    """Changes of weights by layer (kohya's spelling), at strength 1.

    name: what messages call it. kind: the method or the kind of file. shapes: {layer: shape of its weight}. gains:
    {norm: its channels}. metadata: strings for people and hosts, such as `modelspec.title`. left_out: tensors of the
    file that change no weight or gain, such as those of biases.
    """

    name: str
    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    gains: Mapping[str, int]
    metadata: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    @abstractmethod
    def change(self, layer: str, weight: Tensor | None = None, cache: BasisCache | None = None) -> Change:
        """The change of a layer's weight, flattened to m x n: fp32, on the weight's device, else the CPU.

        weight: the base's, untouched; needed where `needs_weight` says so. Raises UnknownLayerError, WrongBaseError (no
        weight where one is needed, or another shape).
        """

    def of_columns(
        self, layer: str, factors: Tensor, weight: Tensor | None = None, cache: BasisCache | None = None
    ) -> Change:
        """`change` with a factor for the piece of each of `columns(layer)`: factors (r,).

        Raises SettingError where the change is not made of columns, and what `change` raises.
        """
        raise SettingError(
            f"{self.name} ({self.kind}) is not made of columns, so none can be weighted; leave the columns out of the "
            "parts, or extract an adapter from it first"
        )

    def gain(self, norm: str) -> Tensor:
        """The shift (c,) of a norm's gain, fp32 on the CPU. Raises UnknownLayerError."""
        raise UnknownLayerError(f"{self.name} shifts no norm named {norm!r}")

    def needs_weight(self, layer: str) -> bool:
        """Whether the change of this layer can only be known with the base's weight."""
        return False

    def columns(self, layer: str) -> tuple[int, ...] | None:
        """The columns of the base's basis that the layer works on by construction; None where it knows none."""
        return None

    def frames(self, layer: str) -> Basis | None:
        """The singular triples that the file carries for the layer, where it does."""
        return None

    def check(
        self,
        weights: Mapping[str, WeightSource],
        *,
        on_mismatch: OnMismatch = "refuse",
        cache: BasisCache | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        model_name: str = "this model",
    ) -> MatchReport | None:
        """Judge the base before anything is used; what was found, or None for a source that fits by shape alone.

        Raises WrongBaseError as `check_layers` does.
        """
        return None

    @property
    def family(self) -> Family | None:
        """The kind of model whose layers these are, or None."""
        return guess_family(self.shapes)


class AdapterSource(Source):
    """An adapter of one of this package's methods."""

    def __init__(self, adapter: Adapter, name: str):
        self.adapter, self.name, self.kind = adapter, name, adapter.method.name
        self.shapes = {layer: found.shape for layer, found in adapter.layers.items()}
        self.gains = {norm: found.shape[0] for norm, found in adapter.gains.items()}
        self.metadata = adapter.metadata

    def change(self, layer: str, weight: Tensor | None = None, cache: BasisCache | None = None) -> Change:
        return self._change(layer, None, weight, cache)

    def of_columns(
        self, layer: str, factors: Tensor, weight: Tensor | None = None, cache: BasisCache | None = None
    ) -> Change:
        return self._change(layer, factors, weight, cache)

    def _change(self, layer: str, factors: Tensor | None, weight: Tensor | None, cache: BasisCache | None) -> Change:
        found = self._layer(layer)
        if weight is not None:
            check_shape(found, weight)
        basis = find_basis(found, self.adapter.method, weight, cache)
        basis = basis if weight is None else basis.to(weight.device)
        params, method = on_device(basis, found), self.adapter.method
        factors = None if factors is None else factors.to(basis.s)
        pair = method.factors(basis, params, columns=factors)
        return method.delta(basis, params, columns=factors) if pair is None else pair

    def gain(self, norm: str) -> Tensor:
        if norm not in self.adapter.gains:
            return super().gain(norm)
        return self.adapter.gains[norm].change().cpu()

    def needs_weight(self, layer: str) -> bool:
        return self._layer(layer).frames is None

    def columns(self, layer: str) -> tuple[int, ...]:
        return self._layer(layer).indices

    def frames(self, layer: str) -> Basis | None:
        return self._layer(layer).frames

    def check(
        self,
        weights: Mapping[str, WeightSource],
        *,
        on_mismatch: OnMismatch = "refuse",
        cache: BasisCache | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        model_name: str = "this model",
    ) -> MatchReport:
        return check_layers(
            self.adapter,
            weights,
            on_mismatch=on_mismatch,
            cache=cache,
            progress=progress,
            cancelled=cancelled,
            model_name=model_name,
            spot_checks=_SPOT_CHECKS,
        )

    def _layer(self, layer: str) -> AdapterLayer:
        if layer not in self.adapter.layers:
            raise UnknownLayerError(f"{self.name} has no layer {layer!r}; it has {len(self.shapes)}")
        return self.adapter.layers[layer]


def as_source(given: Source | Adapter) -> Source:
    """An adapter as a source, called by its title; a source as it is."""
    return given if isinstance(given, Source) else AdapterSource(given, given.title or given.method.name)


class Changes(Source):
    """Changes that are at hand: read from a file of another kind, or just made. {layer: (shape of weight, change)}."""

    def __init__(
        self,
        changes: Mapping[str, tuple[tuple[int, ...], Change]],
        *,
        name: str,
        kind: str,
        gains: Mapping[str, Tensor] | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        self._changes, self._gains = changes, dict(gains or {})
        self.name, self.kind, self.metadata = name, kind, dict(metadata or {})
        self.shapes = {layer: shape for layer, (shape, _) in changes.items()}
        self.gains = {norm: shift.shape[0] for norm, shift in self._gains.items()}

    def change(self, layer: str, weight: Tensor | None = None, cache: BasisCache | None = None) -> Change:
        if layer not in self._changes:
            raise UnknownLayerError(f"{self.name} has no layer {layer!r}; it has {len(self.shapes)}")
        shape, change = self._changes[layer]
        if weight is None:
            return change
        check_fits(self.name, layer, shape, weight)
        return change.to(weight.device) if isinstance(change, Tensor) else tuple(t.to(weight.device) for t in change)

    def gain(self, norm: str) -> Tensor:
        return self._gains[norm].float() if norm in self._gains else super().gain(norm)
