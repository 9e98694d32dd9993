"""Who moves what, before adapters are put together: layer by layer and column by column, and where they collide.

Three numbers for every two adapters, over all layers that both change:

overlap: what their use of columns has in common, sum over layers and columns of min(p, q), where p and q are the shares
    of either's energy on the columns that it uses. 0: no column in common; 1: the same ones in the same measure.
cosine: <D_a, D_b> / (||D_a|| ||D_b||) of the effective changes; +1 alike, -1 opposite.
interference: the share of a's energy that lies on the columns that b uses, and of b's on a's. On disjoint columns only
    the leakage is left of it.

Adapters on disjoint columns: the parts added to U of one and of the other are orthogonal, and so are those added to V,
because their columns are; a part of U with a part of V need not be, and that is the cosine that remains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import Tensor

from . import conflict_rows, conflict_text
from .basis import Basis, Progress, WeightSource
from .blocks import Place, place
from .cache import BasisCache
from .change import Change, inner
from .column_use import Frame, Use, base_frame, files_frame, unknown_use, use_of, use_of_parameters
from .errors import Cancelled, SettingError, WrongBaseError
from .methods.base import matrix_shape
from .names import guess_family
from .source import Source
from .spectrum import band_edges
from .stream import with_bases
from .threads import single_threaded

MOST = 16  # adapters that are compared at once


@dataclass(frozen=True)
class Member:
    """One of the adapters. layers: how many it changes; norm: ||D|| over them. columns: those that it uses in most of
    its layers, None where there are no such; width: how many it uses on average, None where that is not known;
    measured: found from the change and not from the file.
    """

    name: str
    kind: str
    layers: int
    norm: float
    columns: tuple[int, ...] | None
    width: float | None
    measured: bool


@dataclass(frozen=True)
class Meeting:
    """Two adapters, a < b by place in the list, in one layer. inner: <D_a, D_b>; shared: columns that both use;
    overlap, interference: see the module, of this layer alone. Each None where it is not known.
    """

    a: int
    b: int
    inner: float | None
    shared: tuple[int, ...] | None
    overlap: float | None
    interference: tuple[float | None, float | None]


@dataclass(frozen=True)
class LayerConflict:
    """One layer. uses: by adapter, None where it leaves the layer alone."""

    name: str
    place: Place
    k: int
    uses: tuple[Use | None, ...]
    meetings: tuple[Meeting, ...]


@dataclass(frozen=True)
class Pair:
    """Two adapters in all layers. layers: those that both change; shared_layers: those where both use a column;
    columns: the shared ones, of most of these layers. The numbers: see the module.
    """

    a: int
    b: int
    layers: int
    shared_layers: int
    columns: tuple[int, ...]
    overlap: float | None
    cosine: float | None
    interference: tuple[float | None, float | None]


@dataclass(frozen=True)
class Conflict:
    """What `conflict` found. based: in a base's basis, not only in what the files carry. apart: layers in which the
    files' directions belong to different weights, so that columns of one number are not the same directions.
    """

    members: tuple[Member, ...]
    layers: tuple[LayerConflict, ...]
    pairs: tuple[Pair, ...]
    based: bool
    apart: int

    @property
    def edges(self) -> list[int]:
        """The first column of every band: single columns, then two bands per doubling."""
        ends = [int(use.columns.max()) for layer in self.layers for use in layer.uses if use and len(use.columns)]
        return band_edges(max(ends, default=0) + 1)

    def rows(self) -> list[dict[str, Any]]:
        """One row per block and kind of layer, in the order that data passes them; see docs/conflict.md."""
        return conflict_rows.rows(self)

    @property
    def sentence(self) -> str:
        """What to expect of putting them together, and what to do."""
        return conflict_text.sentence(self)

    @property
    def notes(self) -> list[str]:
        """What the numbers leave out, and what would bring it in."""
        return conflict_text.notes(self)

    @property
    def text(self) -> str:
        """Everything, as a terminal shows it."""
        return conflict_text.text(self)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for pages and files; see docs/conflict.md."""
        return conflict_rows.as_json(self)


def conflict(
    sources: Sequence[Source],
    weights: Mapping[str, WeightSource] | None = None,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Conflict:
    """Compare 2 to 16 adapters, holding one layer at a time.

    weights: {layer: the base's untouched weight}. With them every change is measured in the base's whole basis, which
    is decomposed or taken from the cache. Without, portable files are compared by the directions that they carry,
    compact ones by their parameters, and the rest (LoRA files) by the cosine of their changes and by what they do on
    the others' columns. Raises SettingError for too few or too many and for adapters of different kinds of models,
    WrongBaseError for a base that lacks a layer, has another shape or does not fit a compact file, Cancelled.
    """
    if not 2 <= len(sources) <= MOST:
        raise SettingError(f"found {len(sources)} adapters to compare; expected 2 to {MOST}")
    shapes = _shapes(sources)
    family, found, apart = guess_family(shapes), [], 0
    for i, (layer, weight, basis) in enumerate(_streamed(sources, shapes, weights, cache, cancelled)):
        with single_threaded():  # decompositions, between the layers, have all threads
            uses, meetings, differ = _layer(sources, layer, weight, basis, cache)
        found.append(LayerConflict(layer, place(layer, family), min(shapes[layer]), uses, meetings))
        apart += differ
        if progress is not None:
            progress(i + 1, len(shapes), layer)
    members = tuple(_member(i, name, sources[i].kind, found) for i, name in enumerate(_names(sources)))
    pairs = tuple(_pair(a, b, found) for a, b in combinations(range(len(sources)), 2))
    return Conflict(members, tuple(found), pairs, weights is not None, apart)


def _shapes(sources: Sequence[Source]) -> dict[str, tuple[int, int]]:
    """(m, n) of every layer that anyone changes."""
    found: dict[str, tuple[int, int]] = {}
    owner: dict[str, str] = {}
    for source in sources:
        for layer, shape in source.shapes.items():
            size = matrix_shape(shape)
            if found.setdefault(layer, size) != size:
                raise SettingError(
                    f"layer {layer} is {size[0]} x {size[1]} in {source.name} and {found[layer][0]} x "
                    f"{found[layer][1]} in {owner[layer]}; only adapters of one kind of base can be compared"
                )
            owner.setdefault(layer, source.name)
    return found


def _names(sources: Sequence[Source]) -> list[str]:
    """Their names, numbered where two have one."""
    seen: Counter[str] = Counter()
    names = []
    for source in sources:
        seen[source.name] += 1
        names.append(source.name if seen[source.name] == 1 else f"{source.name} ({seen[source.name]})")
    return names


def _streamed(
    sources: Sequence[Source],
    layers: Iterable[str],
    weights: Mapping[str, WeightSource] | None,
    cache: BasisCache | None,
    cancelled: Callable[[], bool] | None,
) -> Iterator[tuple[str, Tensor | None, Basis | None]]:
    """Each layer with the base's weight and its whole basis, where there is a base; it is judged first."""
    if weights is not None:
        if missing := next((layer for layer in layers if layer not in weights), None):
            who = next(source.name for source in sources if missing in source.shapes)
            raise WrongBaseError(
                f"the base has no layer {missing}, which {who} changes; compare with the kind of base it was made for"
            )
        for source in sources:
            if any(source.needs_weight(layer) for layer in source.shapes):
                source.check(weights, cache=cache, cancelled=cancelled)
        yield from with_bases(list(layers), weights, None, cache=cache, cancelled=cancelled)
        return
    for layer in layers:
        if cancelled is not None and cancelled():
            raise Cancelled("the comparison was cancelled; nothing was changed")
        yield layer, None, None


def _layer(
    sources: Sequence[Source], layer: str, weight: Tensor | None, basis: Basis | None, cache: BasisCache | None
) -> tuple[tuple[Use | None, ...], tuple[Meeting, ...], bool]:
    """Everyone's use of the columns, every two together, and whether the files' directions do not fit each other."""
    touching = [i for i, source in enumerate(sources) if layer in source.shapes]
    changes = {i: _change(sources[i], layer, weight, cache) for i in touching}
    own = {i: sources[i].frames(layer) for i in touching}
    if basis is not None:
        frame, differ = base_frame(basis), False
    else:
        carried = [frames for frames in own.values() if frames is not None]
        frame = files_frame(carried)
        differ = frame is None and len(carried) > 1
    uses: list[Use | None] = [None] * len(sources)
    for i in touching:
        uses[i] = _use(sources[i], layer, changes[i], _own_frame(own[i]) if differ else frame)
    meetings = (_meeting(a, b, uses, changes, comparable=not differ) for a, b in combinations(touching, 2))
    return tuple(uses), tuple(meetings), differ


def _change(source: Source, layer: str, weight: Tensor | None, cache: BasisCache | None) -> Change | None:
    """None where it can only be known with the base."""
    return None if weight is None and source.needs_weight(layer) else source.change(layer, weight, cache)


def _own_frame(basis: Basis | None) -> Frame | None:
    return files_frame([] if basis is None else [basis])


def _use(source: Source, layer: str, change: Change | None, frame: Frame | None) -> Use:
    says = source.columns(layer)
    if change is not None:
        return use_of(change, frame, says)
    return use_of_parameters(source, layer) or unknown_use(says)


def _meeting(
    a: int, b: int, uses: Sequence[Use | None], changes: Mapping[int, Change | None], *, comparable: bool
) -> Meeting:
    one, other = uses[a], uses[b]
    both_known = changes[a] is not None and changes[b] is not None
    shared, overlap = None, None
    if one.used is not None and other.used is not None:
        shared = tuple(sorted(one.used & other.used))
        overlap = _common(one.spread(), other.spread())
    onto = (one.on(other.used), other.on(one.used)) if comparable else (None, None)
    return Meeting(a, b, inner(changes[a], changes[b]) if both_known else None, shared, overlap, onto)


def _common(a: Mapping[int, float], b: Mapping[int, float], whole: tuple[float, float] | None = None) -> float | None:
    """Sum over what both have of the smaller share of the whole (None: of what each has here); None of nothing."""
    p, q = (sum(a.values()), sum(b.values())) if whole is None else whole
    if p <= 0 or q <= 0:
        return 0.0 if not a.keys() & b.keys() else None
    return min(1.0, sum(min(a[column] / p, b[column] / q) for column in a.keys() & b.keys()))


def _member(i: int, name: str, kind: str, layers: Sequence[LayerConflict]) -> Member:
    uses = [use for layer in layers if (use := layer.uses[i]) is not None]
    known = [use.used for use in uses if use.used is not None]
    measured = any(use.measured for use in uses)
    columns, count = Counter(known).most_common(1)[0] if known else (frozenset(), 0)
    named = tuple(sorted(columns)) if 2 * count > len(uses) else None
    width = sum(map(len, known)) / len(known) if known else None
    size = sum(use.total for use in uses) ** 0.5
    return Member(name, kind, len(uses), size, named, width, measured)


def _pair(a: int, b: int, layers: Sequence[LayerConflict]) -> Pair:
    meetings = [m for layer in layers for m in layer.meetings if (m.a, m.b) == (a, b)]
    shared = Counter(m.shared for m in meetings if m.shared)
    return Pair(
        a,
        b,
        layers=len(meetings),
        shared_layers=shared.total(),
        columns=shared.most_common(1)[0][0] if shared else (),
        overlap=_overlap(a, b, layers, meetings),
        cosine=_cosine(a, b, layers, meetings),
        interference=(_onto(a, b, layers), _onto(b, a, layers)),
    )


def _overlap(a: int, b: int, layers: Sequence[LayerConflict], meetings: Sequence[Meeting]) -> float | None:
    if any(m.shared is None for m in meetings):
        return None
    spreads = [[{} if use is None else use.spread() for use in (layer.uses[a], layer.uses[b])] for layer in layers]
    whole = tuple(sum(sum(pair[side].values()) for pair in spreads) for side in (0, 1))
    parts = [_common(one, other, whole) for one, other in spreads]
    return None if None in parts else min(1.0, sum(parts))


def _cosine(a: int, b: int, layers: Sequence[LayerConflict], meetings: Sequence[Meeting]) -> float | None:
    if any(m.inner is None for m in meetings):
        return None
    squares = [sum(use.total for layer in layers if (use := layer.uses[i]) is not None) for i in (a, b)]
    size = (squares[0] * squares[1]) ** 0.5
    return None if size <= 0 else max(-1.0, min(1.0, sum(m.inner for m in meetings) / size))


def _onto(a: int, b: int, layers: Sequence[LayerConflict]) -> float | None:
    """The share of a's change, over all its layers, that lies on the columns that b uses there."""
    found, size = 0.0, 0.0
    for layer in layers:
        use = layer.uses[a]
        if use is None:
            continue
        size += use.total
        meeting = next((m for m in layer.meetings if {m.a, m.b} == {a, b}), None)
        share = 0.0 if meeting is None else meeting.interference[a > b]
        if share is None:
            return None
        found += share * use.total
    return found / size if size > 0 else None
