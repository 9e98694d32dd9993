"""What a training moved: how far it went from the base in every layer and along every singular direction.

One unit for all methods and layers, so that they can be compared: the distance between a singular triple sigma_i u_i
v_i^T of the base's weight and what the adapter has made of it (`Method.moved`), as a share of the weight's largest
singular value. 0.01 in a column: that direction's piece of the weight has changed by a hundredth of the strongest one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .adapter import Adapter
from .basis import Basis
from .blocks import Place, place
from .errors import SpectralError
from .matching import AdapterLayer, on_device
from .methods.base import Movement
from .names import guess_family
from .threads import single_threaded

MOST_COLUMNS = 64  # of a layer, given one by one; those of more are given in bands


@dataclass(frozen=True)
class LayerMoved:
    """One layer. columns: indices from 0, by descending singular value; moved: of each, and total: ||W' - W||, both as
    shares of the weight's largest singular value. share: of the squared totals of all layers. turn: degrees, of methods
    that rotate (see `Movement`).
    """

    name: str
    place: Place
    columns: tuple[int, ...]
    moved: Tensor
    total: float
    share: float
    turn: float | None
    exact: bool

    def bands(self, edges: Sequence[int]) -> list[tuple[int, int, float]]:
        """(first column, number of columns, root mean square of moved) of each band that has any of the columns."""
        band = torch.bucketize(torch.tensor(self.columns), torch.tensor(edges), right=True) - 1
        squares = self.moved.new_zeros(len(edges)).index_add_(0, band, self.moved.square())
        counts = torch.bincount(band, minlength=len(edges)).tolist()
        rows = zip(edges, counts, squares.tolist())
        return [(first, count, (total / count) ** 0.5) for first, count, total in rows if count]


@dataclass(frozen=True)
class Spectrum:
    """An adapter's movement. exact: whether no number stands on an assumption (see `Movement`). norms: {name: root mean
    square of the shift of its gain}, which is in gains and not in singular values.
    """

    method: str
    columns: str
    family: str | None
    layers: tuple[LayerMoved, ...]
    norms: dict[str, float]

    @property
    def exact(self) -> bool:
        return all(layer.exact for layer in self.layers)

    @property
    def last(self) -> int:
        """The highest column of any layer."""
        return max(layer.columns[-1] for layer in self.layers)

    @property
    def edges(self) -> list[int]:
        """The first column of every band: single columns, then two bands per doubling."""
        return band_edges(self.last + 1)

    def blocks(self) -> list[dict[str, Any]]:
        """Every block in the order that data passes them: its share, and of that the shares of its kinds of layers."""
        found: dict[str, list[LayerMoved]] = defaultdict(list)
        for layer in sorted(self.layers, key=lambda layer: layer.place.order):
            found[layer.place.block].append(layer)
        return [
            {"block": block, "area": layers[0].place.area, **_sums(layers), "kinds": _by_kind(layers)}
            for block, layers in found.items()
        ]

    def kinds(self) -> list[dict[str, Any]]:
        """Every kind of layer with its share, the largest first."""
        found: dict[str, list[LayerMoved]] = defaultdict(list)
        for layer in self.layers:
            found[layer.place.work].append(layer)
        return sorted(({"kind": kind, **_sums(layers)} for kind, layers in found.items()), key=lambda k: -k["share"])

    def bands(self) -> list[dict[str, Any]]:
        """Every band of columns with its share of what moved; a layer's columns share its share by their squares."""
        edges, shares = self.edges, defaultdict(float)
        for layer in self.layers:
            squares = float(layer.moved.square().sum())
            scale = layer.share / squares if squares > 0 else 0.0
            for first, count, moved in layer.bands(edges):
                shares[first] += scale * count * moved**2
        ends = [*edges[1:], self.last + 1]
        return [{"first": a, "last": b - 1, "share": shares[a]} for a, b in zip(edges, ends) if a in shares]

    def as_json(self, most: int = MOST_COLUMNS) -> dict[str, Any]:
        """Plain values. Layers of more than `most` columns give bands: first column, width, moved."""
        edges = self.edges
        return {
            "method": self.method,
            "columns": self.columns,
            "family": self.family,
            "exact": self.exact,
            "layers": [_layer_json(layer, edges, most) for layer in self.layers],
            "blocks": self.blocks(),
            "kinds": self.kinds(),
            "bands": self.bands(),
            "norms": [{"name": name, "moved": moved} for name, moved in self.norms.items()],
        }


def measure(adapter: Adapter) -> Spectrum:
    """How far every layer and column of an adapter is from the base; needs the adapter's file alone.

    Raises SpectralError for an adapter without layers, or with one that has neither frames nor evidence.
    """
    if not adapter.layers:
        raise SpectralError("the adapter has no layers, so there is no spectrum to show; train it on some layers first")
    family = guess_family({name: layer.shape for name, layer in adapter.layers.items()})
    with single_threaded():
        found = {name: (layer, _moved(adapter, layer)) for name, layer in adapter.layers.items()}
    squares = sum(moved.total**2 for _, moved in found.values())
    layers = tuple(
        LayerMoved(
            name=name,
            place=place(name, family),
            columns=layer.indices,
            moved=moved.columns,
            total=moved.total,
            share=moved.total**2 / squares if squares else 0.0,
            turn=moved.turn,
            exact=moved.exact,
        )
        for name, (layer, moved) in found.items()
    )
    norms = {name: float(gain.shift.detach().double().square().mean().sqrt()) for name, gain in adapter.gains.items()}
    return Spectrum(adapter.method.name, adapter.method.columns.text, family, layers, norms)


def spectrum(adapter: Adapter, most: int = MOST_COLUMNS) -> dict[str, Any]:
    """`measure` as plain values, for pages and files; see `Spectrum.as_json`."""
    return measure(adapter).as_json(most)


def band_edges(count: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16, 24 ...: the first columns of the bands that cover `count` columns."""
    edges = [0, 1, 2, 3]
    while edges[-1] < count:
        edges.append(2 * edges[-2])
    return [edge for edge in edges if edge < count]


def _layer_json(layer: LayerMoved, edges: Sequence[int], most: int) -> dict[str, Any]:
    rows = [(column, 1, moved) for column, moved in zip(layer.columns, layer.moved.tolist())]
    columns, widths, moved = zip(*(layer.bands(edges) if len(rows) > most else rows))
    return {
        "name": layer.name,
        "block": layer.place.block,
        "area": layer.place.area,
        "kind": layer.place.work,
        "columns": list(columns),
        "widths": list(widths),
        "moved": list(moved),
        "total": layer.total,
        "share": layer.share,
        "turn": layer.turn,
    }


def _moved(adapter: Adapter, layer: AdapterLayer) -> Movement:
    """In shares of the weight's largest singular value, on the CPU."""
    basis = layer.frames
    if basis is None:
        if layer.evidence is None:
            raise SpectralError(f"layer {layer.name} has neither frames nor evidence; load it from a file or train it")
        basis = Basis(layer.evidence.sigma, layer.indices, layer.matrix)
    found = adapter.method.moved(basis, on_device(basis, layer))
    scale = 1 / max(basis.sigma_max, 1e-30)
    return replace(found, columns=found.columns.cpu() * scale, total=found.total * scale)


def _sums(layers: Sequence[LayerMoved]) -> dict[str, Any]:
    return {"layers": len(layers), "share": sum(layer.share for layer in layers)}


def _by_kind(layers: Iterable[LayerMoved]) -> dict[str, float]:
    shares: dict[str, float] = defaultdict(float)
    for layer in layers:
        shares[layer.place.work] += layer.share
    return dict(shares)
