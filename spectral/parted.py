"""A source of which every part has its own strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .adapter import MatchReport, OnMismatch
from .basis import Basis, Progress, WeightSource
from .cache import BasisCache
from .change import Change, scaled
from .errors import SettingError
from .parts import Parts
from .source import Source


def parted(source: Source, parts: Parts) -> Source:
    """The source's changes times the factors of `parts`; layers and norms whose factor is 0 drop out.

    Raises SettingError where columns are weighted in a source that is not made of columns.
    """
    return Parted(source, parts) if parts.tables else source


class Parted(Source):
    """See `parted`."""

    def __init__(self, source: Source, parts: Parts):
        self.source, self.parts, self.name, self.kind = source, parts, source.name, source.kind
        family = source.family
        self._factors = {name: parts.of(name, family) for name in (*source.shapes, *source.gains)}
        self.shapes = {layer: shape for layer, shape in source.shapes.items() if self._factors[layer] != 0}
        self.gains = {norm: channels for norm, channels in source.gains.items() if self._factors[norm] != 0}
        self.metadata: Mapping[str, str] = source.metadata
        if parts.has_columns and any(source.columns(layer) is None for layer in self.shapes):
            raise SettingError(
                f"{self.name} ({self.kind}) is not made of columns, so {parts.text!r} cannot be applied to it; leave "
                "the columns out of the parts, or extract an adapter from it first"
            )

    def factor(self, layer: str) -> float:
        """What the change of a layer or norm is multiplied with, its columns aside."""
        return self._factors.get(layer, 0.0)

    def change(self, layer: str, weight: Tensor | None = None, cache: BasisCache | None = None) -> Change:
        columns = self._columns_of(layer)
        if columns is None:
            return scaled(self.source.change(layer, weight, cache), self._factors.get(layer, 1.0))
        return scaled(self.source.of_columns(layer, columns, weight, cache), self._factors[layer])

    def of_columns(
        self, layer: str, factors: Tensor, weight: Tensor | None = None, cache: BasisCache | None = None
    ) -> Change:
        if (own := self._columns_of(layer)) is not None:
            every = own.to(factors)
            every[own.to(factors.device) != 0] *= factors
            factors = every
        return scaled(self.source.of_columns(layer, factors, weight, cache), self._factors.get(layer, 1.0))

    def gain(self, norm: str) -> Tensor:
        return self.source.gain(norm) * self._factors.get(norm, 1.0)

    def needs_weight(self, layer: str) -> bool:
        return self.source.needs_weight(layer)

    def columns(self, layer: str) -> tuple[int, ...] | None:
        """Those that have a factor other than 0."""
        found, factors = self.source.columns(layer), self._columns_of(layer)
        if found is None or factors is None:
            return found
        return tuple(column for column, factor in zip(found, factors.tolist()) if factor != 0)

    def frames(self, layer: str) -> Basis | None:
        return self.source.frames(layer)

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
        """The source as a whole is judged: evidence stands for a whole layer."""
        return self.source.check(
            weights,
            on_mismatch=on_mismatch,
            cache=cache,
            progress=progress,
            cancelled=cancelled,
            model_name=model_name,
        )

    def _columns_of(self, layer: str) -> Tensor | None:
        indices = self.source.columns(layer) if self.parts.has_columns else None
        if indices is None or layer not in self.shapes:
            return None
        m, *rest = self.shapes[layer]
        n = 1
        for size in rest:
            n *= size
        return self.parts.of_columns(indices, min(m, n))
