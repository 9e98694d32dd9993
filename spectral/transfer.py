"""Carry a change to a related base by projecting it on that base's singular directions.

    both     D' = U_t U_t^T D V_t V_t^T                                        LoRA-X, arXiv 2501.16559
    either   D' = U_t U_t^T D + D V_t V_t^T - U_t U_t^T D V_t V_t^T            what touches either side

U_t, V_t are chosen columns of the target's own basis; nothing is trained, and the source's base is not needed where the
source carries its directions. All columns would change nothing, so the choice matters: the columns that the adapter
works on, or the target's first ones. LoRA-X trains inside the singular directions and projects on both sides; a change
of `additive` leaves them on one side at a time, which "both" would throw away and "either" keeps; only A_U S A_V^T, of
second order, leaves them on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .adapter import percent
from .basis import Basis, Progress, WeightSource, decompose, fetch
from .cache import BasisCache
from .change import Change, Thin, norm
from .columns import Columns
from .errors import SettingError, UnknownLayerError, WrongBaseError
from .extract import told_of
from .matching import check_fits
from .methods.base import matrix_shape
from .source import Source
from .stream import with_bases

Sides = Literal["both", "either"]
ENERGY = 0.9  # of ||W||^2, where a source knows no columns and the caller chooses none
RELATED = 0.9  # agreement below which a layer is named
_WITHIN = 0.99  # share of ||D||^2 in the source's own directions from which "both" loses nothing worth keeping


@dataclass(frozen=True)
class Carried:
    """One layer. rank: columns of the target that were used; None for all, which leaves the change as it is.

    agreement: mean squared cosine of the principal angles between the source's directions and the target's, over both
    sides; 1 is the same, r / k is chance; None where the source's are not known. kept: ||D'||^2 / ||D||^2.
    """

    agreement: float | None
    kept: float
    rank: int | None
    sides: Sides
    energy: float


@dataclass(frozen=True)
class Transferred:
    """A change carried to another base. `source` is the new one; it fetches and projects a layer when asked.

    layers: every layer that was carried or left out. left_out: those that agree less than was asked for. missing:
    layers that the target does not have.
    """

    source: Source
    layers: dict[str, Carried]
    left_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def agreement(self) -> dict[str, float]:
        """{layer: agreement of the directions}, where known."""
        return {name: found.agreement for name, found in self.layers.items() if found.agreement is not None}

    @property
    def kept(self) -> float:
        """Share of the energy of the change that is carried, layers left out and missing not counted."""
        carried = [found for name, found in self.layers.items() if name not in self.left_out]
        whole = sum(found.energy for found in carried)
        return sum(found.kept * found.energy for found in carried) / whole if whole else 0.0

    @property
    def text(self) -> str:
        """What was carried and how well the bases agree, in sentences."""
        lines = [f"Carried {len(self.source.shapes)} of {len(self.layers) + len(self.missing)} layers."]
        if all(found.rank is None for found in self.layers.values()):
            lines[0] += " The change works on all columns, so it is carried as it is."
        else:
            lines.append(f"Keeps {percent(self.kept)} of their change's energy.")
        if agreement := self.agreement:
            worst = min(agreement, key=agreement.__getitem__)
            mean = sum(agreement.values()) / len(agreement)
            least = f"least {percent(agreement[worst])} in {worst}"
            lines.append(f"The directions of the two bases agree to {percent(mean)}, {least}.")
            low = [name for name, share in agreement.items() if share < RELATED and name not in self.left_out]
            lines += _named(low, f"agree to less than {RELATED:.0%}")
        lines += _named(self.left_out, "agree too little and are left out")
        return "\n".join(lines + _named(self.missing, "are not in the new base"))

    def __str__(self) -> str:
        return self.text


class _Projected(Source):
    """The source's changes on another base, layer by layer."""

    def __init__(
        self,
        source: Source,
        weights: Mapping[str, WeightSource],
        home: Mapping[str, WeightSource],
        plan: Mapping[str, tuple[Columns, Sides]],
        shapes: Mapping[str, tuple[int, ...]],
    ):
        self._inner, self._weights, self._home, self._plan = source, weights, home, plan
        self.name, self.kind, self.metadata = source.name, source.kind, told_of(source)
        self.shapes, self.gains = dict(shapes), dict(source.gains)

    def change(self, layer: str, weight: Tensor | None = None, cache: BasisCache | None = None) -> Change:
        if layer not in self.shapes:
            raise UnknownLayerError(f"{self.name} has no layer {layer!r}; it has {len(self.shapes)}")
        if weight is not None:
            check_fits(self.name, layer, self.shapes[layer], weight)
        target, (columns, sides) = fetch(self._weights[layer]), self._plan[layer]
        change = _at_home(self._inner, layer, self._home, cache)
        if columns.kind != "all":
            change = projected(change, decompose(target, columns, cache=cache), sides)
        device = target.device if weight is None else weight.device
        return change.to(device) if isinstance(change, Tensor) else (change[0].to(device), change[1].to(device))

    def gain(self, norm: str) -> Tensor:
        return self._inner.gain(norm)

    def columns(self, layer: str) -> tuple[int, ...] | None:
        chosen, sides = self._plan[layer]
        return chosen.resolve(min(matrix_shape(self.shapes[layer]))) if sides == "both" else None


def transfer(
    source: Source,
    weights: Mapping[str, WeightSource],
    *,
    home: Mapping[str, WeightSource] | None = None,
    rank: int | None = None,
    energy: float | None = None,
    sides: Sides | None = None,
    least: float = 0.0,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Transferred:
    """The change of `source` on another base of the same architecture, without training.

    weights: {layer: the new base's untouched weight}. home: the same of the base that it was trained on; needed for a
    compact file, and measures the agreement for a LoRA. rank: project on the target's first columns; energy: on as many
    as hold this share of ||W||^2. With neither: on the columns that the source works on, or, where it knows none, as
    with energy=0.9. sides: see above; None takes "both" where the source's change lies within its own directions, so
    that carrying it to its own base would change nothing, else "either". least: layers whose directions agree less
    than this are left out (where the agreement is not known: those that keep less than this share of the change).
    Raises SettingError, WrongBaseError where nothing is shared, a shape differs or home is missing; Cancelled.
    """
    _check(source, rank, energy, sides, least)
    home = home or {}
    shared = [name for name in source.shapes if name in weights]
    _check_bases(source, shared, weights, home, cache, cancelled)
    ways = {name: _way(source, name, home, rank, energy, sides, cache) for name in shared}
    found: dict[str, Carried] = {}
    plan: dict[str, tuple[Columns, Sides]] = {}
    for name, basis in _bases(source, ways, weights, cache, cancelled):
        columns, side, share = ways[name]
        if share is not None and basis is not None:
            columns = Columns.parse(_least_rank(basis.s, share))
            basis = basis.select(columns.resolve(basis.k))
        found[name] = _carried(source, name, basis, side, home, cache)
        plan[name] = (columns, side)
        if progress is not None:
            progress(len(found), len(shared), name)
    left_out = tuple(n for n, c in found.items() if (c.kept if c.agreement is None else c.agreement) < least)
    if len(left_out) == len(found):
        raise WrongBaseError(_unrelated(source, found, least))
    shapes = {name: source.shapes[name] for name in shared if name not in left_out}
    missing = tuple(name for name in source.shapes if name not in weights)
    return Transferred(_Projected(source, weights, home, plan, shapes), found, left_out, missing)


def projected(change: Change, basis: Basis, sides: Sides) -> Thin:
    """The change (m x n) projected on the columns of a basis, as up (m, R), down (R, n)."""
    u, v = basis.u, basis.v
    if isinstance(change, Tensor):
        change = change.to(u)
        left, right = u.T @ change, change @ v
    else:
        up, down = (t.to(u) for t in change)
        left, right = (u.T @ up) @ down, up @ (down @ v)
    middle = left @ v
    if sides == "both":
        return u @ middle, v.T
    return torch.cat([u, right - u @ middle], 1), torch.cat([left, v.T], 0)


def agreement(a: Basis, b: Basis) -> float:
    """Mean squared cosine of the principal angles between the spans of two bases, over U and V; 1 is the same.

    Where they have different numbers of columns: how much of the smaller span lies in the larger.
    """
    r = min(len(a.columns), len(b.columns))
    b = b.to(a.s.device)
    cosines2 = sum(float((x.T @ y).double().square().sum()) for x, y in ((a.u, b.u), (a.v, b.v)))
    return min(1.0, cosines2 / (2 * r))  # frames rounded to fp16 are not quite orthonormal


def _bases(
    source: Source,
    ways: Mapping[str, tuple[Columns, Sides, float | None]],
    weights: Mapping[str, WeightSource],
    cache: BasisCache | None,
    cancelled: Callable[[], bool] | None,
) -> Iterator[tuple[str, Basis | None]]:
    """The target's basis for each layer, None for those that are carried as they are."""
    partly = {name: columns for name, (columns, _, share) in ways.items() if columns.kind != "all" or share is not None}
    for name, weight, basis in with_bases(list(partly), weights, partly, cache=cache, cancelled=cancelled):
        check_fits(source.name, name, source.shapes[name], weight)
        yield name, basis
    yield from ((name, None) for name in ways if name not in partly)


def _carried(
    source: Source,
    name: str,
    basis: Basis | None,
    sides: Sides,
    home: Mapping[str, WeightSource],
    cache: BasisCache | None,
) -> Carried:
    change = _at_home(source, name, home, cache)
    energy = norm(change) ** 2
    if basis is None:
        return Carried(None, 1.0, None, sides, energy)
    kept = norm(projected(change, basis, sides)) ** 2
    frames = _own_directions(source, name, basis, home, cache)
    agree = None if frames is None else agreement(frames, basis)
    return Carried(agree, kept / energy if energy else 1.0, len(basis.columns), sides, energy)


def _own_directions(
    source: Source, name: str, basis: Basis, home: Mapping[str, WeightSource], cache: BasisCache | None
) -> Basis | None:
    """What the target's directions are to be compared with: the file's, else those of the source's base."""
    if (frames := source.frames(name)) is not None:
        return frames
    return decompose(fetch(home[name]), basis.columns, cache=cache) if name in home else None


def _way(
    source: Source,
    name: str,
    home: Mapping[str, WeightSource],
    rank: int | None,
    energy: float | None,
    sides: Sides | None,
    cache: BasisCache | None,
) -> tuple[Columns, Sides, float | None]:
    """Columns to decompose, sides, and the share of energy that decides how many of the columns are used."""
    if rank is not None:
        return Columns.parse(rank), sides or "both", None
    own = source.columns(name)
    if energy is not None or own is None:
        return Columns.parse(None), sides or "both", energy or ENERGY
    if len(own) == min(matrix_shape(source.shapes[name])):
        return Columns.parse(None), "both", None
    columns = Columns.parse(own)
    if sides is not None:
        return columns, sides, None
    frames = source.frames(name)
    if frames is None and name in home:
        frames = decompose(fetch(home[name]), columns, cache=cache)
    if frames is None:
        return columns, "either", None
    change = _at_home(source, name, home, cache)
    inside = norm(projected(change, frames, "both")) ** 2 >= _WITHIN * norm(change) ** 2
    return columns, "both" if inside else "either", None


def _at_home(source: Source, name: str, home: Mapping[str, WeightSource], cache: BasisCache | None) -> Change:
    return source.change(name, fetch(home[name]) if source.needs_weight(name) else None, cache)


def _least_rank(s: Tensor, energy: float) -> int:
    """The least number of leading singular values that hold this share of the squares."""
    shares = s.double().square().cumsum(0)
    return 1 + int((shares < energy * shares[-1]).sum().clamp_max(len(s) - 1))


def _check(source: Source, rank: int | None, energy: float | None, sides: Sides | None, least: float) -> None:
    if rank is not None and energy is not None:
        raise SettingError(f"rank={rank} and energy={energy} both choose the target's columns; give one")
    if rank is not None and rank < 1:
        raise SettingError(f"found rank={rank}, expected at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise SettingError(f"found energy={energy}, expected a share above 0 and up to 1, such as 0.9")
    if sides is not None and sides not in get_args(Sides):
        raise SettingError(f"found sides={sides!r}, expected one of {', '.join(get_args(Sides))}")
    if not 0 <= least <= 1:
        raise SettingError(f"found least={least}, expected a share from 0 to 1")


def _check_bases(
    source: Source,
    shared: list[str],
    weights: Mapping[str, WeightSource],
    home: Mapping[str, WeightSource],
    cache: BasisCache | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    if not shared:
        raise WrongBaseError(
            f"none of the {len(source.shapes)} layers of {source.name} is in the new base: found layers such as "
            f"{next(iter(source.shapes), 'none at all')!r}, expected layers such as "
            f"{next(iter(weights), 'none at all')!r}; only bases of one architecture are related"
        )
    needed = [name for name in shared if source.needs_weight(name)]
    if absent := next((name for name in needed if name not in home), None):
        raise WrongBaseError(
            f"{source.name} holds no directions of its own (layer {absent}), so its change is known on its own base "
            "only; give the base that it was trained on too"
        )
    if needed:
        source.check(home, cache=cache, cancelled=cancelled, model_name="the base given as its own")


def _unrelated(source: Source, found: Mapping[str, Carried], least: float) -> str:
    best = max((c.kept if c.agreement is None else c.agreement) for c in found.values())
    return (
        f"{source.name}: no layer of the new base agrees to {least:.0%} with the one it was trained on (the best to "
        f"{percent(best)}); the bases are hardly related. Ask for less, or train anew"
    )


def _named(names: tuple[str, ...] | list[str], what: str) -> list[str]:
    if not names:
        return []
    return [f"{len(names)} layers {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."]
