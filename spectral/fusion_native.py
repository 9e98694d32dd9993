"""Fusions that are one adapter: parameters of several put side by side, or merged, in one basis.

Adapters carry singular vectors of their own, rounded to fp16. They may be merged only where these are of one basis:
columns that two share must be the same vectors, and all others at right angles, both to `TOLERANCE`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .adapter import Adapter
from .basis import Basis, Progress, WeightSource, fetch
from .cache import BasisCache
from .change import Change
from .columns import Columns
from .container import DTYPES
from .errors import Cancelled, SettingError
from .evidence import FINGERPRINT_DIGITS, make_evidence
from .format1 import resolve_columns
from .gains import Gain
from .matching import AdapterLayer, change_of, check_shape, find_basis, on_device
from .methods import method as make_method
from .methods.base import Method, Share, Unmergeable
from .mixture import FusionMode, Ingredient
from .parted import Parted
from .source import AdapterSource, Source
from .threads import single_threaded

TOLERANCE = 2e-3  # fp16 leaves 4e-4 between two roundings of one unit vector, and less between two at right angles
_SIGMA = 1e-4  # of sigma_1: how far singular values of shared columns may differ


def weights_needed(source: Source) -> bool:
    """Whether some layer of the source can only be known with the base's weight."""
    return any(source.needs_weight(layer) for layer in source.shapes)


def merged(
    ingredients: Sequence[Ingredient],
    mode: FusionMode,
    *,
    weights: Mapping[str, WeightSource] | None = None,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Adapter:
    """The mixture as one adapter. ingredients: with effective weights (`mixture.factors`).

    weights: the base's, for layers without frames. Raises Unmergeable with the reason where it is none, Cancelled.
    """
    parts = _adapters(ingredients)
    template = _one_method([(name, adapter) for name, adapter, _ in parts], mode)
    how = mode if mode in template.merges else "sum"
    if how == "sum":
        _check_sum(parts, template)
    names = list(dict.fromkeys(name for _, adapter, _ in parts for name in adapter.layers))
    layers: dict[str, AdapterLayer] = {}
    for done, name in enumerate(names, start=1):
        if cancelled is not None and cancelled():
            raise Cancelled("fusing was cancelled; nothing was changed")
        members = [(who, adapter.layers[name], weight) for who, adapter, weight in parts if name in adapter.layers]
        with single_threaded(all(layer.frames is not None for _, layer, _ in members)):
            layers[name] = _layer(name, members, template, how, weights, cache, _dtype(parts))
        if progress is not None:
            progress(done, len(names), name)
    found = make_method(template.name, **{**template.settings, "columns": _columns(parts, layers).text})
    profile = "portable" if found.portable and all(layer.frames is not None for layer in layers.values()) else "compact"
    return Adapter(found, layers, profile=profile, gains=_gains(parts))


def merge_target(
    layer: str, parts: Sequence[Ingredient], mode: FusionMode, weight: Tensor | None, cache: BasisCache | None
) -> Change:
    """The layer's change, fp64, as the mode's formula asks for: the independent side of a check."""
    found = _adapters(parts)
    members = [(name, adapter.layers[layer], share) for name, adapter, share in found]
    method = found[0][1].method
    basis, shares = _in_one_basis(layer, members, method, weight, cache)
    return method.merge_target(mode, basis, shares)


def _adapters(ingredients: Sequence[Ingredient]) -> list[tuple[str, Adapter, float]]:
    """Name, adapter and weight of the ingredients that count. Raises Unmergeable where one is no adapter."""
    return [(one.source.name, adapter_of(one.source), one.weight) for one in ingredients if one.weight]


def adapter_of(source: Source) -> Adapter:
    """The adapter, of a source limited to whole layers one of these layers."""
    if isinstance(source, AdapterSource):
        return source.adapter
    if not isinstance(source, Parted):
        raise Unmergeable(f"{source.name} ({source.kind}) has no spectral parameters")
    if source.parts.has_columns or any(source.factor(name) != 1 for name in (*source.shapes, *source.gains)):
        raise Unmergeable(f"parts of {source.name} have strengths of their own")
    whole = adapter_of(source.source)
    layers = {name: layer for name, layer in whole.layers.items() if name in source.shapes}
    return replace(whole, layers=layers, gains={n: gain for n, gain in whole.gains.items() if n in source.gains})


def _one_method(adapters: Sequence[tuple[str, Adapter]], mode: FusionMode) -> Method:
    """The method of all, with norms where one has them."""
    (first, leader), *rest = adapters
    for name, adapter in rest:
        if adapter.method.name != leader.method.name:
            raise Unmergeable(f"{first} is of method {leader.method.name}, {name} of method {adapter.method.name}")
        if not leader.method.merges and _other_settings(adapter.method) != _other_settings(leader.method):
            raise Unmergeable(f"{first} and {name} have different settings of {leader.method.name}")
    if mode in ("paper", "rotate", "shift") and mode not in leader.method.merges:
        raise Unmergeable(f"{first} is of method {leader.method.name}, which this mode does not fit")
    return next((adapter.method for _, adapter in adapters if adapter.method.shifts_gains), leader.method)


def _other_settings(method: Method) -> dict[str, object]:
    return {key: value for key, value in method.settings.items() if key != "columns"}


def _check_sum(parts: Sequence[tuple[str, Adapter, float]], method: Method) -> None:
    """Raises Unmergeable unless a sum of changes is one of parameters: at weights of 1, on columns of their own."""
    if method.adds:
        return
    for name, _, weight in parts:
        if weight != 1:
            raise Unmergeable(f"{name} counts {weight:.4g} times, and a scaled change is none of method {method.name}")
    shared: Counter[tuple[str, str]] = Counter()
    columns: dict[tuple[str, str], set[int]] = {}
    for (first, a, _), (second, b, _) in itertools.combinations(parts, 2):
        for layer in a.layers.keys() & b.layers.keys():
            if common := set(a.layers[layer].indices) & set(b.layers[layer].indices):
                shared[first, second] += 1
                columns.setdefault((first, second), set()).update(common)
    if shared:
        (first, second), count = shared.most_common(1)[0]
        where = _spans(columns[first, second])
        raise Unmergeable(f"{first} and {second} share columns {where} in {count:,} layer{'s' * (count != 1)}")


def _spans(columns: set[int], most: int = 4) -> str:
    """0-7, 12: runs of columns, ascending."""
    runs = [[c for _, c in run] for _, run in itertools.groupby(enumerate(sorted(columns)), lambda p: p[1] - p[0])]
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def _layer(
    name: str,
    members: Sequence[tuple[str, AdapterLayer, float]],
    method: Method,
    mode: str,
    weights: Mapping[str, WeightSource] | None,
    cache: BasisCache | None,
    dtype: torch.dtype,
) -> AdapterLayer:
    if len(members) == 1 and members[0][2] == 1:
        return replace(members[0][1], name=name)
    weight = None
    if any(layer.frames is None for _, layer, _ in members):
        if weights is None or name not in weights:
            who = next(who for who, layer, _ in members if layer.frames is None)
            raise Unmergeable(
                f"{who} is compact, and its parameters are merged only with its base at hand; give the base"
            )
        weight = fetch(weights[name])
    basis, shares = _in_one_basis(name, members, method, weight, cache)
    params = method.merged(mode, basis, shares)
    columns = None if basis.full else basis.columns
    made = AdapterLayer(name, members[0][1].shape, params, columns, basis)
    if weight is not None and basis.full:
        return _compact(made, method, dtype)
    return replace(made, frames=basis.to("cpu"))


def _compact(layer: AdapterLayer, method: Method, dtype: torch.dtype) -> AdapterLayer:
    """The layer with evidence of its change in place of a whole basis: those of all layers would need gigabytes."""
    rounded = {n: p if method.groups[n].exact else p.to(dtype).float() for n, p in layer.params.items()}
    layer = replace(layer, params=rounded)
    basis = layer.frames
    change = change_of(method, layer, basis, on_device(basis, layer))
    evidence = make_evidence(layer.name, basis, change, sketch=method.sign_sensitive)
    return replace(layer, frames=None, evidence=evidence)


def _in_one_basis(
    name: str,
    members: Sequence[tuple[str, AdapterLayer, float]],
    method: Method,
    weight: Tensor | None,
    cache: BasisCache | None,
) -> tuple[Basis, list[Share]]:
    """The basis that all layers are in, of all their columns, and each layer's share in it."""
    bases: list[Basis] = []
    for _, layer, _ in members:
        if weight is not None:
            check_shape(layer, weight)
        known = next((b for b, (_, seen, _) in zip(bases, members) if _same_kind(seen, layer, method)), None)
        bases.append(find_basis(layer, method, weight, cache) if known is None else known)
    basis = _union(name, [who for who, _, _ in members], bases)
    place = {column: i for i, column in enumerate(basis.columns)}
    shares = [
        Share(share, layer.params, torch.tensor([place[c] for c in layer.indices])) for _, layer, share in members
    ]
    return basis, shares


def _same_kind(a: AdapterLayer, b: AdapterLayer, method: Method) -> bool:
    """Whether one decomposition of the weight serves both: neither has frames or sketches of its own to follow."""
    return a.frames is None and b.frames is None and not method.sign_sensitive and a.indices == b.indices


def _union(name: str, who: Sequence[str], bases: Sequence[Basis]) -> Basis:
    """All columns of all bases, each from the first that has it. Raises Unmergeable where they are not of one basis."""
    first = bases[0]
    if all(basis is first for basis in bases):
        return first
    for (a, one), (b, other) in itertools.combinations(zip(who, bases), 2):
        if one is not other:
            _check_pair(name, a, one, b, other)
    full = next((basis for basis in bases if basis.full), None)
    if full is not None:
        return full
    owner: dict[int, tuple[Basis, int]] = {}
    for basis in bases:
        for i, column in enumerate(basis.columns):
            owner.setdefault(column, (basis, i))
    columns = sorted(owner)
    u, v = (torch.stack([getattr(owner[c][0], side)[:, owner[c][1]].cpu() for c in columns], 1) for side in ("u", "v"))
    s = torch.stack([owner[c][0].s[owner[c][1]].cpu() for c in columns])
    if bool((s.diff() > 0).any()):
        raise Unmergeable(f"{_names(who)} have singular values out of order in layer {name}, so their bases differ")
    prints = {basis.fingerprint[:FINGERPRINT_DIGITS] for basis in bases}
    return Basis(
        s,
        columns,
        first.shape,
        u=u,
        v=v,
        sigma_max=max(basis.sigma_max for basis in bases),
        fingerprint=prints.pop() if len(prints) == 1 else "",
    )


def _check_pair(layer: str, a: str, one: Basis, b: str, other: Basis) -> None:
    """Raises Unmergeable unless two sets of singular triples can be of one matrix."""
    theirs = {column: i for i, column in enumerate(other.columns)}
    both = [(i, theirs[column]) for i, column in enumerate(one.columns) if column in theirs]
    mine, yours = ([pair[side] for pair in both] for side in (0, 1))
    if both:
        apart = float((one.s.cpu()[mine] - other.s.cpu()[yours]).abs().max()) / max(one.sigma_max, 1e-30)
        if not apart <= _SIGMA:
            raise Unmergeable(
                f"{a} and {b} come from different bases: their sigma in layer {layer} differ by {apart:.1g}"
            )
    for side in _sides(one, other):
        x, y = (getattr(basis, side).cpu() for basis in (one, other))
        products = x.T @ y
        products[mine, yours] = (x[:, mine] - y[:, yours]).norm(dim=0) if both else 0
        worst = float(products.abs().max())
        if not worst <= TOLERANCE:
            raise Unmergeable(
                f"{a} and {b} come from different bases: their directions in layer {layer} are {worst:.1g} off "
                f"(at most {TOLERANCE:g} is rounding)"
            )


def _sides(one: Basis, other: Basis) -> tuple[str, ...]:
    """What is compared: of two whole decompositions the side at hand, because the other one follows from it."""
    if one.full and other.full:
        return ("u",) if one.wide else ("v",)
    return "u", "v"


def _names(who: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(who))


def _columns(parts: Sequence[tuple[str, Adapter, float]], layers: Mapping[str, AdapterLayer]) -> Columns:
    """A choice of columns for the whole, such that most layers need none of their own; it fits every layer."""
    for _, adapter, _ in parts:
        chosen = adapter.method.columns
        if all(_fits(chosen, layer) for layer in layers.values()):
            return chosen
    largest = max(layers.values(), key=lambda layer: (min(layer.matrix), len(layer.indices)))
    smallest = min(min(layer.matrix) for layer in layers.values())
    indices = largest.indices
    if len(indices) == min(largest.matrix):
        return Columns()
    if indices[-1] - indices[0] + 1 == len(indices) and indices[0] < smallest:
        return Columns("top", rank=len(indices), start=indices[0])
    if indices[-1] < smallest:
        return Columns("list", indices=tuple(indices))
    return Columns("top", rank=len(indices))


def _fits(columns: Columns, layer: AdapterLayer) -> bool:
    """Whether the layer has just the columns of this choice."""
    try:
        return resolve_columns(columns, min(layer.matrix)) == layer.indices
    except SettingError:
        return False


def _dtype(parts: Sequence[tuple[str, Adapter, float]]) -> torch.dtype:
    found = {adapter.metadata.get("spectral.dtype", "F16") for _, adapter, _ in parts}
    return DTYPES[found.pop()] if len(found) == 1 else torch.float32


def _gains(parts: Sequence[tuple[str, Adapter, float]]) -> dict[str, Gain]:
    gains: dict[str, Gain] = {}
    for name in dict.fromkeys(norm for _, adapter, _ in parts for norm in adapter.gains):
        own = [(adapter.gains[name], weight) for _, adapter, weight in parts if name in adapter.gains]
        bases = {gain.base for gain, _ in own}
        shift = sum(gain.shift.detach().cpu().float() * weight for gain, weight in own)
        gains[name] = Gain(name, shift, bases.pop() if len(bases) == 1 else "")
    return gains
