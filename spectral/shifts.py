"""Analyses of shifted singular values, as in SVDiff (arXiv 2303.11305): how alike two adapters are, rank limiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .adapter import Adapter, check_layers
from .basis import Basis, Progress, WeightSource, decompose, fetch
from .cache import BasisCache
from .columns import Columns, ColumnsLike
from .errors import Cancelled, SettingError
from .evidence import FINGERPRINT_DIGITS
from .matching import AdapterLayer, check_shape
from .methods import method as make_method

SHIFT = "delta"  # the parameter that shifts singular values


@dataclass(frozen=True)
class Correlation:
    """How alike the shifts of several adapters are.

    matrix (n, n) fp64: the cosine of two adapters' shifts on the columns that both have, averaged over layers; 1 on the
    diagonal, NaN where two share no column that moved. layers (n, n): over how many layers. strange (n, n): how many of
    these are of different weights, in whose bases the same column may be another direction.
    """

    names: tuple[str, ...]
    matrix: Tensor
    layers: Tensor
    strange: Tensor

    def as_json(self) -> dict[str, object]:
        """Plain lists; null for NaN."""
        cosines = [[None if value != value else value for value in row] for row in self.matrix.tolist()]
        return {
            "names": list(self.names),
            "cosines": cosines,
            "layers": self.layers.tolist(),
            "other_bases": self.strange.tolist(),
        }

    @property
    def text(self) -> str:
        """A table, and a warning where bases differ."""
        width = max(8, *(len(name) for name in self.names))
        lines = [" " * width + "".join(f"  {name:>{width}}" for name in self.names)]
        for name, row in zip(self.names, self.matrix.tolist()):
            cells = ("-" if value != value else f"{value:+.3f}" for value in row)
            lines.append(f"{name:<{width}}" + "".join(f"  {cell:>{width}}" for cell in cells))
        if most := int(self.strange.max()):
            lines.append(
                f"Up to {most:,} layers of a pair are of different weights, in which one column may be two directions."
            )
        return "\n".join(lines)


def correlation(adapters: Sequence[Adapter], names: Sequence[str]) -> Correlation:
    """The cosines of the adapters' shifts, layer by layer, averaged: near 1 for one concept trained twice.

    Adapters whose shifts point alike blend when they are added, because all act on the same directions. Raises
    SettingError for fewer than two, for methods that shift no singular values, and for layers of different shapes.
    """
    if len(adapters) < 2:
        raise SettingError(f"found {len(adapters)} adapter to correlate, expected at least two")
    for adapter, name in zip(adapters, names):
        _check_shifts(adapter, name, "compare shows what any two adapters have in common")
    n = len(adapters)
    matrix = torch.eye(n, dtype=torch.float64)
    layers = torch.diag(torch.tensor([len(adapter.layers) for adapter in adapters]))
    strange = torch.zeros((n, n), dtype=torch.long)
    for i in range(n):
        for j in range(i):
            cosines, other = _cosines(adapters[i], names[i], adapters[j], names[j])
            mean = sum(cosines) / len(cosines) if cosines else float("nan")
            matrix[i, j] = matrix[j, i] = mean
            layers[i, j] = layers[j, i] = len(cosines)
            strange[i, j] = strange[j, i] = other
    return Correlation(tuple(names), matrix, layers, strange)


def _cosines(a: Adapter, first: str, b: Adapter, second: str) -> tuple[list[float], int]:
    """The cosine in every layer where both move a column, and how many of these layers have different weights."""
    cosines, strange = [], 0
    for name in a.layers.keys() & b.layers.keys():
        one, other = a.layers[name], b.layers[name]
        if one.matrix != other.matrix:
            raise SettingError(
                f"layer {name}: {first} was trained on a weight of shape {one.shape}, {second} on {other.shape}; "
                "correlate adapters of one kind of model"
            )
        x, y = _common(one, other)
        size = float(x.norm() * y.norm())
        if size > 0:
            cosines.append(float(x @ y) / size)
            strange += _fingerprint(one) != _fingerprint(other)
    return cosines, strange


def _common(one: AdapterLayer, other: AdapterLayer) -> tuple[Tensor, Tensor]:
    """The shifts of both on the columns that both have, fp64."""
    theirs = {column: i for i, column in enumerate(other.indices)}
    pairs = [(i, theirs[column]) for i, column in enumerate(one.indices) if column in theirs]
    x, y = (layer.params[SHIFT].detach().cpu().double() for layer in (one, other))
    return x[[i for i, _ in pairs]], y[[j for _, j in pairs]]


def _fingerprint(layer: AdapterLayer) -> str:
    if layer.frames is not None:
        return layer.frames.fingerprint[:FINGERPRINT_DIGITS]
    return layer.evidence.fingerprint if layer.evidence is not None else ""


def limited(
    adapter: Adapter,
    columns: ColumnsLike,
    weights: Mapping[str, WeightSource] | None = None,
    *,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Adapter:
    """The adapter with the shifts of `columns` alone (see `Columns.parse`), as in SVDiff's rank limiting.

    The result carries the frames of its columns, so that it needs its base no more. weights: {layer: the base's
    weight}, for an adapter that has no frames; it is judged first. Norm gains stay. Raises SettingError for a method
    that is not made of shifts alone, for missing weights, and where no column is left; WrongBaseError, Cancelled.
    Layers too small for the columns drop out.
    """
    _check_shifts(adapter, adapter.title or adapter.method.name, "choose an svdiff adapter")
    if not adapter.method.adds:
        raise SettingError(f"{adapter.method.name} does more than shift singular values; limit takes svdiff adapters")
    wanted = Columns.parse(columns)
    if wanted.kind == "all":
        raise SettingError("columns all: found no limit; expected a choice such as 8, top:64 or bottom:8")
    bare = [name for name, layer in adapter.layers.items() if layer.frames is None]
    if bare and weights is None:
        raise SettingError("this adapter is compact and holds no directions; give the base it was trained on")
    if bare:
        check_layers(adapter, weights, cache=cache, cancelled=cancelled)
    layers: dict[str, AdapterLayer] = {}
    for done, (name, layer) in enumerate(adapter.layers.items(), start=1):
        if cancelled is not None and cancelled():
            raise Cancelled("limiting was cancelled; nothing was changed")
        chosen = _resolved(wanted, min(layer.matrix))
        kept = tuple(column for column in layer.indices if column in chosen)
        if kept:
            weight = None if layer.frames is not None else _weight(name, layer, weights)
            layers[name] = _limited(layer, kept, weight, cache)
        if progress is not None:
            progress(done, len(adapter.layers), name)
    if not layers:
        raise SettingError(f"columns {wanted.text}: found none of them in the adapter; choose among those it has")
    method = make_method(adapter.method.name, **{**adapter.method.settings, "columns": wanted.text})
    return Adapter(method, layers, dict(adapter.metadata), gains=dict(adapter.gains))


def kept_share(adapter: Adapter, columns: ColumnsLike) -> float:
    """The share of ||change||^2 that `columns` hold: shifts are independent, so squares add up (relu left aside)."""
    wanted, whole, kept = Columns.parse(columns), 0.0, 0.0
    for layer in adapter.layers.values():
        squares = layer.params[SHIFT].detach().cpu().double().square()
        chosen = _resolved(wanted, min(layer.matrix))
        inside = torch.tensor([column in chosen for column in layer.indices])
        whole, kept = whole + float(squares.sum()), kept + float(squares[inside].sum())
    return kept / whole if whole else 0.0


def _resolved(wanted: Columns, k: int) -> set[int]:
    """The columns of a layer with k of them; none where it is too small for the choice."""
    try:
        return set(wanted.resolve(k))
    except SettingError:
        return set()


def _check_shifts(adapter: Adapter, name: str, instead: str) -> None:
    if any(SHIFT not in layer.params for layer in adapter.layers.values()):
        raise SettingError(f"{name} is of method {adapter.method.name}, which shifts no singular values; {instead}")


def _weight(name: str, layer: AdapterLayer, weights: Mapping[str, WeightSource]) -> Tensor:
    if name not in weights:
        raise SettingError(f"the base has no weight for layer {name}; give the base that the adapter was trained on")
    weight = fetch(weights[name])
    check_shape(layer, weight)
    return weight


def _limited(
    layer: AdapterLayer, kept: tuple[int, ...], weight: Tensor | None, cache: BasisCache | None
) -> AdapterLayer:
    frames = layer.frames.select(kept) if weight is None else decompose(weight, kept, cache=cache)
    place = {column: i for i, column in enumerate(layer.indices)}
    delta = layer.params[SHIFT].detach()[[place[column] for column in kept]]
    columns = None if len(kept) == min(layer.matrix) else kept
    return replace(layer, params={SHIFT: delta}, columns=columns, frames=_bare(frames), evidence=None)


def _bare(frames: Basis) -> Basis:
    """Rounded as a portable file stores them, and without a hold on the weight's memory."""
    return frames.half_rounded().fetched_from(None)
