"""Changes of a weight, and their algebra: sums, inner products, distances, best approximations of low rank.

A change is thin, up (m, R) @ down (R, n), as long as that takes fewer numbers than the m x n matrix; else dense (m, n).
Nothing here forms the matrix of a thin change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import SettingError
from .linalg import leading

Thin = tuple[Tensor, Tensor]
Change = Thin | Tensor


def size(change: Change) -> tuple[int, int]:
    """(m, n) of the weight that it changes."""
    if isinstance(change, Tensor):
        return change.shape[0], change.shape[1]
    return change[0].shape[0], change[1].shape[1]


def dense(change: Change) -> Tensor:
    """The change as one matrix (m, n)."""
    return change if isinstance(change, Tensor) else change[0] @ change[1]


def scaled(change: Change, factor: float) -> Change:
    """factor times the change."""
    return change * factor if isinstance(change, Tensor) else (change[0] * factor, change[1])


def total(changes: Sequence[Change]) -> Change:
    """The sum of changes of one weight: thin while that takes fewer numbers than the matrix.

    Raises SettingError for none, and for changes of different sizes.
    """
    if not changes:
        raise SettingError("found no changes to add; expected at least one")
    sizes = {size(change) for change in changes}
    if len(sizes) > 1:
        found = " and ".join(f"{m} x {n}" for m, n in sorted(sizes))
        raise SettingError(f"found changes of weights of {found}; only changes of one weight can be added")
    m, n = sizes.pop()
    thin = [change for change in changes if not isinstance(change, Tensor)]
    if len(thin) < len(changes) or sum(up.shape[1] for up, _ in thin) * (m + n) >= m * n:
        return sum((dense(change) for change in changes[1:]), start=dense(changes[0]))
    if len(thin) == 1:
        return thin[0]
    return torch.cat([up for up, _ in thin], 1), torch.cat([down for _, down in thin], 0)


def inner(a: Change, b: Change) -> float:
    """The Frobenius inner product <a, b>, in fp64."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return float((a.double() * b.double()).sum())
    if isinstance(a, Tensor):
        return inner(b, a)
    up, down = a[0].double(), a[1].double()
    if isinstance(b, Tensor):
        return float(((up.T @ b.double()) * down).sum())
    return float(((up.T @ b[0].double()) * (down @ b[1].double().T)).sum())


def norm(change: Change) -> float:
    """The Frobenius norm, in fp64."""
    return max(0.0, inner(change, change)) ** 0.5


def distance(a: Change, b: Change) -> float:
    """||a - b||, in fp64; exact for nearly equal thin changes too, where inner products would cancel."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return float((dense(a).double() - dense(b).double()).norm())
    # The difference of two products is one product of stacked factors; the cores of its QRs hold its norm.
    r_u = torch.linalg.qr(torch.cat([a[0], -b[0]], 1).double(), mode="r").R
    r_d = torch.linalg.qr(torch.cat([a[1], b[1]], 0).double().T, mode="r").R
    return float((r_u @ r_d.T).norm())


def refactor(up: Tensor, down: Tensor, rank: int | None = None) -> Thin:
    """The same product with balanced factors of the least rank, or the best of `rank`: (m, R), (R, n) fp64.

    QR of both sides, SVD of the small core, square roots of sigma to each side. In fp64, because exports are rounded
    to fp16 afterwards and unbalanced factors would lose digits there.
    """
    u, s, v = triples((up, down))
    return balanced(u, s, v, max(1, len(s)) if rank is None else rank)


def triples(change: Change, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """u (m, r), s (r,) descending, v (n, r), fp64: the singular triples that carry the change.

    A thin change gives all that are above 1e-12 of the first; a dense one the first `most` (None: all).
    """
    if isinstance(change, Tensor):
        r = min(change.shape) if most is None else min(most, *change.shape)
        u, s, v = (t.double() for t in leading(change.float(), r))
        return u, s, v
    q_u, r_u = torch.linalg.qr(change[0].double())
    q_d, r_d = torch.linalg.qr(change[1].double().T)
    u, s, vh = torch.linalg.svd(r_u @ r_d.T)
    keep = max(1, int((s > 1e-12 * s[0]).sum())) if s.numel() else 1
    keep = keep if most is None else min(keep, most)
    return q_u @ u[:, :keep], s[:keep], q_d @ vh[:keep].T


def balanced(u: Tensor, s: Tensor, v: Tensor, rank: int) -> Thin:
    """up (m, R), down (R, n) of the first `rank` triples, with the square root of s on each side."""
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:, :rank].T
