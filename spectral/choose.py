"""Which columns of a weight hold a given change best, for a method that works on r of them.

Trying all choices is out of the question; tried are those that are best for some kind of change, and the one whose fit
comes nearest is taken. A LoRA from elsewhere hardly meets the strong directions of a weight; `additive` then holds it
best on the weakest ones, which it can replace at next to no cost.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .basis import Basis
from .change import Change, distance
from .errors import SettingError
from .fit import diagonal
from .methods import Method

BEST = "best"


def asks_for_best(columns: str | None) -> tuple[bool, int | None]:
    """Whether a choice of columns is "best" or "best:16", and the number. Raises SettingError for another ending."""
    word, _, count = (columns or "").strip().partition(":")
    if word != BEST:
        return False, None
    if count and not (count.isdecimal() and int(count)):
        raise SettingError(f'columns={columns!r}: expected "best" or a number of them, such as "best:16"')
    return True, int(count) if count else None


def best_columns(method: Method, shape: tuple[int, ...], basis: Basis, change: Change, r: int) -> tuple[int, ...]:
    """The r columns, ascending, of a full basis on which the method's nearest change is nearest to D.

    Tried: the strongest, the weakest that carry a signal, those that D moves on the diagonal (the optimum for shifts),
    those that D touches on either side, and those among which it mixes most.
    """
    best, found = float("inf"), tuple(range(r))
    for columns in dict.fromkeys(_candidates(basis, change, r)):
        part = basis.select(columns)
        params = method.fit(shape, part, change)
        pair = method.factors(part, params)
        missed = distance(change, method.delta(part, params) if pair is None else pair)
        if missed < best:
            best, found = missed, columns
    return found


def _candidates(basis: Basis, change: Change, r: int) -> Iterator[tuple[int, ...]]:
    alive = int(basis.live.sum())
    yield tuple(range(r))
    yield tuple(range(max(0, alive - r), max(alive, r)))
    yield _largest(diagonal(basis, change).abs(), r)
    left, right = _touched(basis, change)
    yield _largest(left + right, r)
    yield _largest(left * right, r)


def _touched(basis: Basis, change: Change) -> tuple[Tensor, Tensor]:
    """||u_i^T D||^2 and ||D v_i||^2 (k,)."""
    if isinstance(change, Tensor):
        return (basis.u.T @ change).square().sum(1), (change @ basis.v).square().sum(0)
    up, down = change
    left, right = basis.u.T @ up, down @ basis.v
    return ((left @ (down @ down.T)) * left).sum(1), ((up.T @ up @ right) * right).sum(0)


def _largest(values: Tensor, r: int) -> tuple[int, ...]:
    return tuple(sorted(values.topk(r).indices.tolist()))
