"""A conflict as plain values: layers in bands of columns, rows of layers of one kind, every two adapters."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .conflict import Conflict, LayerConflict, Meeting, Pair

FORMAT = 1


def as_json(found: Conflict) -> dict[str, Any]:
    """{format, adapters, based, apart, bands, rows, layers, pairs, cosine, overlap, interference, sentence, notes}.

    Energies in rows and layers are shares of the adapter's whole change, so that all adapters have one scale; what is
    not known is null.
    """
    edges = found.edges
    return {
        "format": FORMAT,
        "adapters": [
            {
                "name": m.name,
                "kind": m.kind,
                "layers": m.layers,
                "norm": m.norm,
                "columns": None if m.columns is None else spans(m.columns),
                "width": m.width,
                "measured": m.measured,
            }
            for m in found.members
        ],
        "based": found.based,
        "apart": found.apart,
        "bands": [{"first": first, "last": last} for first, last in _bands(edges)],
        "rows": rows(found),
        "layers": [_layer(found, layer, edges) for layer in found.layers],
        "pairs": [_pair(pair) for pair in found.pairs],
        **matrices(found),
        "sentence": found.sentence,
        "notes": found.notes,
    }


def rows(found: Conflict) -> list[dict[str, Any]]:
    """[{block, area, kind, layers, shares, bands, shared, cosine}] in the order that data passes them.

    shares: by adapter, the row's share of its whole change. bands: by adapter, the share in each band of columns; the
    rest of the row's share lies in columns that are not known. shared: by band, how many columns of how many layers at
    least two adapters use. cosine: by pair, in the order of `Conflict.pairs`.
    """
    groups: dict[tuple[str, str], list[LayerConflict]] = defaultdict(list)
    for layer in sorted(found.layers, key=lambda layer: layer.place.order):
        groups[layer.place.block, layer.place.work].append(layer)
    edges = found.edges
    return [_row(found, layers, edges) for layers in groups.values()]


def spans(columns: Iterable[int]) -> list[list[int]]:
    """[[first, last], ...] of ascending columns."""
    found: list[list[int]] = []
    for column in columns:
        if found and column == found[-1][1] + 1:
            found[-1][1] = column
        else:
            found.append([column, column])
    return found


def _row(found: Conflict, layers: Sequence[LayerConflict], edges: Sequence[int]) -> dict[str, Any]:
    first, n = layers[0], len(found.members)
    bands = [[0.0] * len(edges) for _ in range(n)]
    shared = [0] * len(edges)
    for layer in layers:
        for i, values in enumerate(_by_band(found, layer, edges)):
            bands[i] = [a + b for a, b in zip(bands[i], values)] if values is not None else bands[i]
        for column, count in _shared(layer).items():
            shared[_band(edges, column)] += count
    return {
        "block": first.place.block,
        "area": first.place.area,
        "kind": first.place.work,
        "layers": len(layers),
        "shares": [sum(_share(found, layer, i) for layer in layers) for i in range(n)],
        "bands": bands,
        "shared": shared,
        "cosine": [_row_cosine(pair, layers) for pair in found.pairs],
    }


def _layer(found: Conflict, layer: LayerConflict, edges: Sequence[int]) -> dict[str, Any]:
    return {
        "name": layer.name,
        "block": layer.place.block,
        "area": layer.place.area,
        "kind": layer.place.work,
        "k": layer.k,
        "norms": [None if use is None else use.total**0.5 for use in layer.uses],
        "shares": [_share(found, layer, i) for i in range(len(found.members))],
        "used": [None if use is None or use.used is None else spans(sorted(use.used)) for use in layer.uses],
        "bands": _by_band(found, layer, edges),
        "pairs": [_meeting(layer, meeting) for meeting in layer.meetings],
    }


def _meeting(layer: LayerConflict, meeting: Meeting) -> dict[str, Any]:
    return {
        "a": meeting.a,
        "b": meeting.b,
        "shared": None if meeting.shared is None else spans(meeting.shared),
        "overlap": meeting.overlap,
        "cosine": _cosine(meeting.inner, *(layer.uses[i].total for i in (meeting.a, meeting.b))),
        "interference": list(meeting.interference),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "a": pair.a,
        "b": pair.b,
        "layers": pair.layers,
        "shared_layers": pair.shared_layers,
        "shared": spans(pair.columns),
        "overlap": pair.overlap,
        "cosine": pair.cosine,
        "interference": list(pair.interference),
    }


def _by_band(found: Conflict, layer: LayerConflict, edges: Sequence[int]) -> list[list[float] | None]:
    """By adapter, the share of its whole change in each band of this layer; None where it leaves the layer alone."""
    starts, made = torch.tensor(edges), []
    for member, use in zip(found.members, layer.uses):
        if use is None:
            made.append(None)
            continue
        band = torch.bucketize(use.columns, starts, right=True) - 1
        sums = torch.zeros(len(edges), dtype=torch.float64).index_add_(0, band, use.energy)
        made.append((sums / max(member.norm**2, 1e-300)).tolist())
    return made


def _share(found: Conflict, layer: LayerConflict, i: int) -> float:
    use = layer.uses[i]
    return 0.0 if use is None else use.total / max(found.members[i].norm ** 2, 1e-300)


def _shared(layer: LayerConflict) -> dict[int, int]:
    """1 for each column that at least two adapters use."""
    return dict.fromkeys((column for meeting in layer.meetings for column in meeting.shared or ()), 1)


def _row_cosine(pair: Pair, layers: Sequence[LayerConflict]) -> float | None:
    """The cosine of two adapters' changes in these layers."""
    meetings = [(layer, m) for layer in layers for m in layer.meetings if (m.a, m.b) == (pair.a, pair.b)]
    if not meetings or any(m.inner is None for _, m in meetings):
        return None
    squares = [sum(layer.uses[i].total for layer in layers if layer.uses[i] is not None) for i in (pair.a, pair.b)]
    return _cosine(sum(m.inner for _, m in meetings), *squares)


def _cosine(inner: float | None, a: float, b: float) -> float | None:
    size = (a * b) ** 0.5
    return None if inner is None or size <= 0 else max(-1.0, min(1.0, inner / size))


def _bands(edges: Sequence[int]) -> list[tuple[int, int]]:
    """First and last column of every band; the last one ends where its doubling would."""
    width = edges[-1] - edges[-2] if len(edges) > 1 else 1
    ends = [*edges[1:], edges[-1] + max(1, width)]
    return [(first, end - 1) for first, end in zip(edges, ends)]


def _band(edges: Sequence[int], column: int) -> int:
    return bisect_right(edges, column) - 1


def matrices(found: Conflict) -> dict[str, list[list[float | None]]]:
    """Adapters by adapters: cosine, overlap, and interference: how much of the row's lies on the column's columns."""
    n = len(found.members)
    made = {name: [[None] * n for _ in range(n)] for name in ("cosine", "overlap", "interference")}
    for i in range(n):
        made["cosine"][i][i] = made["overlap"][i][i] = made["interference"][i][i] = 1.0
    for pair in found.pairs:
        a, b = pair.a, pair.b
        made["cosine"][a][b] = made["cosine"][b][a] = pair.cosine
        made["overlap"][a][b] = made["overlap"][b][a] = pair.overlap
        made["interference"][a][b], made["interference"][b][a] = pair.interference
    return made
