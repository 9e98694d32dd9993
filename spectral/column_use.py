"""Which singular directions of the base a change works on, whatever made it.

In the base's basis a change D is C = U^T D V, and C_ij leads from input direction j to output direction i. Its energy
C_ij^2 is shared out between the columns i and j in proportion to how much D moves each of them in all, ||u_i^T D||^2
and ||D v_j||^2. So the energies of all columns add up to ||D||^2; a diagonal C, as of svdiff, keeps exactly its own
columns; and a change that turns or adds to the directions of a block, of which only one side lies in the block, is
counted there and not where its other side happens to fall. What that leaves for other columns is leakage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .basis import Basis
from .change import Change, norm
from .matching import on_device
from .source import AdapterSource, Source

CARRIED = 0.9  # of a change's energy lies in the columns that it is said to use, where it does not say so itself
_BELIEVED = 0.5  # of a change's energy must lie in the columns that it names
_NOTHING = 1e-4  # of a change's energy: what rounding leaves outside of columns that hold all of it
_ALIKE = 0.5  # cosine above which two frames' directions are the same, and below which they are others


@dataclass(frozen=True)
class Frame:
    """Directions that are known, of the columns (r) of k. onto_u: x (m, c) -> U^T x (r, c); onto_v: y (c, n) -> y V
    (c, r).
    """

    columns: tuple[int, ...]
    k: int
    onto_u: Callable[[Tensor], Tensor]
    onto_v: Callable[[Tensor], Tensor]

    @property
    def full(self) -> bool:
        """Whether all k columns are known."""
        return len(self.columns) == self.k


@dataclass(frozen=True)
class Use:
    """How one change spreads over the columns of one weight.

    columns (r,) int64: those that are known or named, ascending; energy (r,) fp64: of each (of those that are only
    named an even share of what the others leave); total: ||D||^2. used: the columns that it works on; None where that
    is not known. measured: `used` was found from the energy and not from what the file says.
    """

    columns: Tensor
    energy: Tensor
    total: float
    used: frozenset[int] | None
    measured: bool

    def on(self, columns: frozenset[int] | None) -> float | None:
        """The share of the change that lies on these columns; None where that cannot be told."""
        if self.total <= 0:
            return 0.0
        rest = 1 - float(self.energy.sum()) / self.total
        if columns is None or (rest > _NOTHING and not columns <= set(self.columns.tolist())):
            return None
        return min(1.0, float(self.energy[_among(self.columns, columns)].sum()) / self.total)

    def spread(self) -> dict[int, float]:
        """The energy of each used column."""
        picked = _among(self.columns, self.used or frozenset())
        return dict(zip(self.columns[picked].tolist(), self.energy[picked].tolist()))


def energies(change: Change, frame: Frame) -> tuple[Tensor, float]:
    """(r,) the energy of each of the frame's columns, and ||D||^2, fp64.

    Entries that lead to or come from directions that are not known count for the one column that is.
    """
    if isinstance(change, Tensor):
        left = frame.onto_u(change)
        core, rows, cols = frame.onto_v(left), left.square().sum(1), frame.onto_v(change).square().sum(0)
        total = float(change.double().square().sum())
    else:
        up, down = change
        left, right = frame.onto_u(up), frame.onto_v(down)
        rows = ((left @ (down @ down.T)) * left).sum(1).clamp_min(0)
        cols = ((up.T @ up @ right) * right).sum(0).clamp_min(0)
        core = left @ right
        total = float(((up.T @ up).double() * (down @ down.T).double()).sum())
    squares = core.square()
    both = rows[:, None] + cols[None, :]
    to_row = squares * torch.where(both > 0, rows[:, None] / both, 0.5)
    outside = (rows - squares.sum(1)).clamp_min(0) + (cols - squares.sum(0)).clamp_min(0)
    return (to_row.sum(1) + (squares - to_row).sum(0) + outside).cpu().double(), max(0.0, total)


def base_frame(basis: Basis) -> Frame:
    """All directions of a base's weight.

    Those of the large side come by way of the weight, V = W^T U / sigma, without ever being formed: that would cost
    more than all the rest. Where sigma carries no signal they are taken to be unknown.
    """
    small, inverse, weight = basis.small, basis.inverse, basis.weight
    if basis.wide:
        return Frame(basis.columns, basis.k, lambda x: small.T @ x, lambda y: (y @ weight.T @ small) * inverse)
    return Frame(basis.columns, basis.k, lambda x: inverse[:, None] * (small.T @ (weight.T @ x)), lambda y: y @ small)


def matrix_frame(u: Tensor, v: Tensor, columns: Sequence[int], k: int) -> Frame:
    """Directions as they stand: u (m, r), v (n, r)."""
    return Frame(tuple(columns), k, lambda x: u.T @ x, lambda y: y @ v)


def files_frame(frames: Sequence[Basis]) -> Frame | None:
    """The directions that files carry, together; None where they belong to different weights, or there are none.

    Columns of one number must point the same way, those of different numbers must be at right angles.
    """
    if not frames:
        return None
    u, v, columns = frames[0].u, frames[0].v, list(frames[0].columns)
    for other in frames[1:]:
        there = set(columns)
        new = [i for i, column in enumerate(other.columns) if column not in there]
        same = torch.tensor(columns)[:, None] == torch.tensor(other.columns)[None, :]
        for known, found in ((u, other.u), (v, other.v)):
            cosines = (known.T @ found).abs()
            if bool((cosines[same] < _ALIKE).any()) or bool((cosines[~same] > _ALIKE).any()):
                return None
        u, v = torch.cat([u, other.u[:, new]], 1), torch.cat([v, other.v[:, new]], 1)
        columns += [other.columns[i] for i in new]
    order = sorted(range(len(columns)), key=columns.__getitem__)
    return matrix_frame(u[:, order], v[:, order], [columns[i] for i in order], frames[0].k)


def use_of(change: Change, frame: Frame | None, says: tuple[int, ...] | None) -> Use:
    """How a change uses the columns of a frame; `says`: the columns that its file names."""
    if frame is None:
        none = torch.zeros(0, dtype=torch.float64)
        return Use(*_with_unknown((), none, norm(change) ** 2, says), _set(says), False)
    energy, total = energies(change, frame)
    use = Use(*_with_unknown(frame.columns, energy, total, says), _set(says), False)
    believed = says is not None and (total <= 0 or (use.on(frozenset(says)) or 0.0) >= _BELIEVED)
    if not frame.full or (believed and len(says) < frame.k):
        return use
    return replace(use, used=carrying(use.columns, use.energy, total), measured=True)


def _with_unknown(
    known: Sequence[int], energy: Tensor, total: float, says: tuple[int, ...] | None
) -> tuple[Tensor, Tensor, float]:
    """Columns, their energies and the total, with the columns that a file names and whose directions nobody knows.

    What the known ones do not hold is spread over them evenly.
    """
    there = set(known)
    missing = [column for column in says or () if column not in there]
    share = max(0.0, total - float(energy.sum())) / max(1, len(missing))
    columns = torch.tensor([*known, *missing], dtype=torch.int64)
    order = columns.argsort()
    return columns[order], torch.cat([energy, energy.new_full((len(missing),), share)])[order], total


def use_of_parameters(source: Source, layer: str) -> Use | None:
    """The use of columns as far as parameters and singular values alone tell it, for compact files without a base.

    Each column has the energy of what became of its singular triple (`Method.moved`). None for anything else.
    """
    if not isinstance(source, AdapterSource) or (found := source.adapter.layers[layer]).evidence is None:
        return None
    basis = Basis(found.evidence.sigma, found.indices, found.matrix)
    moved = source.adapter.method.moved(basis, on_device(basis, found))
    columns, energy = torch.tensor(found.indices, dtype=torch.int64), moved.columns.double().square().cpu()
    total = max(moved.total**2, float(energy.sum()))
    whole = len(found.indices) == basis.k
    used = carrying(columns, energy, float(energy.sum())) if whole else frozenset(found.indices)
    return Use(columns, energy, total, used, whole)


def unknown_use(says: tuple[int, ...] | None) -> Use:
    """Of a change that is not known; `says`: the columns that its file names."""
    columns = torch.tensor(says or (), dtype=torch.int64)
    return Use(columns, torch.zeros(len(columns), dtype=torch.float64), 0.0, _set(says), False)


def carrying(columns: Tensor, energy: Tensor, total: float) -> frozenset[int]:
    """The fewest columns that carry 90 % of a change; none of a change that is zero."""
    if total <= 0:
        return frozenset()
    order = energy.argsort(descending=True)
    count = int((energy[order].cumsum(0) < CARRIED * total).sum()) + 1
    return frozenset(columns[order[:count]].tolist())


def _among(columns: Tensor, wanted: frozenset[int]) -> Tensor:
    return torch.isin(columns, torch.tensor(sorted(wanted), dtype=torch.int64))


def _set(columns: tuple[int, ...] | None) -> frozenset[int] | None:
    return None if columns is None else frozenset(columns)
