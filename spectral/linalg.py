"""Linear algebra of one matrix: thin SVD of its small side or of its top, skew maps, Kronecker rotations.

W is m x n (outputs x inputs), k = min(m, n). The *small side* is U (m x m) where m <= n and V (n x n) where m > n.
Pure functions on tensors; accuracies are checked in tests/test_linalg.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Below this fraction of the largest singular value a direction carries no signal and its partner is not determined.
NULL = 1e-5
TAIL = 1e-2  # from here down V is re-orthogonalised: dividing by a small sigma amplifies the fp32 rounding of U
_VOID = 1e-7  # below this the quotient W^T u / sigma is rounding noise


def fix_signs(side: Tensor) -> Tensor:
    """Signs (r,) of +-1 that make the largest-magnitude entry of every column of `side` (d, r) positive."""
    top = side.abs().argmax(dim=0, keepdim=True)
    signs = torch.sign(side.gather(0, top)).squeeze(0)
    return torch.where(signs == 0, torch.ones_like(signs), signs)


def small_side(w: Tensor) -> tuple[Tensor, Tensor]:
    """Square singular basis q (k, k) of the small side of w (m, n) and sigma (k,), descending, fp32.

    Gram matrix and eigendecomposition in fp64: squaring the condition number in fp64 leaves sigma accurate to
    about 1e-7 sigma_1, which fp32 rounding would not (1e-3 sigma_1).
    """
    a = (w if w.shape[0] <= w.shape[1] else w.T).double()
    lam, q = torch.linalg.eigh(a @ a.T)
    q, s = q.flip(-1), lam.flip(-1).clamp_min(0).sqrt()
    return (q * fix_signs(q)).float(), s.float()


def other_side(w: Tensor, q: Tensor, s: Tensor, sigma_max: float) -> Tensor:
    """The large-side vectors (max(m, n), r) that belong to small-side vectors q (k, r) with sigma s (r,), fp32.

    w^T u / sigma where sigma is large enough; the tail is orthogonalised against the head, and directions without
    signal are completed to an orthonormal set (seeded, so the same everywhere up to rounding). Where q reaches into
    the tail (sigma <= 1e-2 sigma_max) it must hold every column above it, for the tail to be orthogonal to them.
    """
    a = (w if w.shape[0] <= w.shape[1] else w.T).double()
    s, top = s.double(), sigma_max
    b = a.T @ q.double()
    void = s <= _VOID * top
    p = torch.where(void, torch.zeros_like(b), b / torch.where(void, torch.ones_like(s), s))
    tail = s <= TAIL * top
    if bool(tail.any()):
        p[:, tail] = _complete(p[:, ~tail], torch.where(void[tail], _noise(b[:, tail]), p[:, tail]))
    return p.float()


def _noise(like: Tensor) -> Tensor:
    gen = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=gen, dtype=torch.float64).to(like)


def _complete(head: Tensor, tail: Tensor) -> Tensor:
    """Orthonormal columns spanning `tail` (d, t) minus the span of the orthonormal `head` (d, h)."""
    for _ in range(2):  # one pass of Gram-Schmidt leaves the rounding of the first
        tail = tail - head @ (head.T @ tail)
    q, r = torch.linalg.qr(tail)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)


def top_svd(
    w: Tensor, r: int, *, tolerance: float = 2e-6, block: int = 16, budget: float = 0.3
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The r leading triples u (m, r), s (r,), v (n, r) of w (m, n) by block Krylov, or None where it would not pay.

    Full reorthogonalisation; stops when every kept triple has ||W v - sigma u|| <= tolerance * sigma_1. Gives up (None)
    when more than `budget` * k basis vectors would be needed, as for flat spectra: the small side is then cheaper.
    Method: Musco and Musco, arXiv 1504.05477, with a residual stop in place of a fixed depth.
    """
    a = w if w.shape[0] <= w.shape[1] else w.T
    k = a.shape[0]
    most = int(budget * k)
    block = max(block, r + 8)
    if most < 2 * block:
        return None
    x = torch.randn((k, block), generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(a)
    q = torch.linalg.qr(a @ (a.T @ x)).Q
    basis, images = [q], []
    while True:
        images.append(a @ (a.T @ q))
        u, s, residual = _ritz(torch.cat(basis, 1), torch.cat(images, 1), r)
        if residual <= tolerance * float(s[0]):
            return _triples(a, u, w.shape[0] <= w.shape[1])
        if _hopeless(len(basis), residual / max(float(s[0]), 1e-30), tolerance, block, most):
            return None
        q = _next_block(basis, images[-1])
        basis.append(q)


def leading(w: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r leading triples u (m, r), s (r,), v (n, r) of w (m, n), by block Krylov where that pays."""
    if (triples := top_svd(w, r)) is not None:
        return triples
    q, s = small_side(w)
    q, top, wide = q[:, :r].contiguous(), s[:r].contiguous(), w.shape[0] <= w.shape[1]
    p = other_side(w, q, top, float(s[0]))
    return (q, top, p) if wide else (p, top, q)


def _ritz(q: Tensor, gq: Tensor, r: int) -> tuple[Tensor, Tensor, float]:
    """Ritz vectors u (k, r) of G in span(q), their sigma, and the largest residual ||G u - s^2 u|| / s."""
    t = q.T.double() @ gq.double()
    lam, y = torch.linalg.eigh((t + t.T) / 2)
    y, lam = y.flip(-1)[:, :r].to(q), lam.flip(-1)[:r].clamp_min(1e-30)
    u, s = q @ y, lam.sqrt().to(q)
    residual = (gq @ y - u * s.square()).norm(dim=0) / s
    return u, s, float(residual.max())


def _hopeless(depth: int, residual: float, tolerance: float, block: int, most: int) -> bool:
    """Whether the observed rate of convergence cannot reach `tolerance` within `most` basis vectors."""
    if (depth + 1) * block > most:
        return True
    # Early residuals say little. On decaying spectra each block gains a factor of 3 or more from the third on.
    left = most // block - depth
    return depth >= 3 and residual > tolerance * 30.0**left


def _next_block(basis: list[Tensor], z: Tensor) -> Tensor:
    q = torch.cat(basis, 1)
    for _ in range(2):
        z = z - q @ (q.T @ z)
        z = torch.linalg.qr(z).Q
    return z


def _triples(a: Tensor, u: Tensor, wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sign-fixed triples from orthonormal left vectors u (k, r) of a (k, N); swapped back where W was transposed."""
    u = torch.linalg.qr(u.double()).Q
    # A Rayleigh-Ritz step in fp64 on the r vectors alone: restores diagonal sigma after the rounding of fp32.
    b = a.double().T @ u
    lam, y = torch.linalg.eigh(b.T @ b)
    y, s = y.flip(-1), lam.flip(-1).clamp_min(0).sqrt()
    u = u @ y
    signs = fix_signs(u)
    u, p = u * signs, other_side(a.float(), u * signs, s, float(s[0]))
    u, s = u.float(), s.float()
    return (u, s, p) if wide else (p, s, u)


def skew(q: Tensor, r: int) -> Tensor:
    """Skew-symmetric Q (..., r, r) = T - T^T from its strict upper triangle q (..., r(r-1)/2), row by row."""
    i, j = torch.triu_indices(r, r, 1, device=q.device)
    t = q.new_zeros((*q.shape[:-1], r, r))
    t[..., i, j] = q
    return t - t.mT


def cayley(q: Tensor) -> Tensor:
    """(I + Q)(I - Q)^-1, a rotation, from skew-symmetric Q (..., d, d). Spectral Adapter, arXiv 2405.13952."""
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    # (I + Q) and (I - Q)^-1 commute, so one solve from the left serves. solve_ex: no host synchronisation.
    return torch.linalg.solve_ex(eye - q, eye + q)[0]


def rotation_power(q: Tensor, strength: float) -> Tensor:
    """exp(s log R) (d, d) for R = cayley(Q): every rotation angle 2 arctan(theta) of R times s. In fp64."""
    theta, y = torch.linalg.eigh(-1j * q.to(torch.complex128))  # Q = i Y diag(theta) Y^H with real theta
    phase = torch.polar(torch.ones_like(theta), 2 * strength * torch.arctan(theta))
    return ((y * phase) @ y.mH).real.to(torch.float64)


def rotation_log(q: Tensor) -> Tensor:
    """log cayley(Q) (d, d), skew: angles 2 arctan(theta) about the axes of Q = i Y diag(theta) Y^H. In fp64."""
    theta, y = torch.linalg.eigh(-1j * q.to(torch.complex128))
    return (1j * (y * (2 * torch.arctan(theta))) @ y.mH).real


def cayley_generator(log: Tensor) -> Tensor:
    """Q (d, d) with cayley(Q) = exp(log) for a skew `log`: tan(phi / 2) for every angle phi. In fp64.

    Beyond all bounds where an angle is 180 degrees, which no Q reaches.
    """
    phi, y = torch.linalg.eigh(-1j * log.to(torch.complex128))
    return (1j * (y * torch.tan(phi / 2)) @ y.mH).real


def orthogonal_power(k: Tensor, strength: float) -> Tensor:
    """exp(s log K) (d, d) for a rotation K without eigenvalue -1, through its inverse Cayley transform. In fp64."""
    k = k.double()
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    q = torch.linalg.solve(k + eye, k - eye)
    return rotation_power((q - q.mT) / 2, strength)


def kron_factors(n: int) -> tuple[int, int, int]:
    """a <= b <= c with a*b*c = n and the smallest a^2 + b^2 + c^2, so that three small rotations cost least.

    320 -> (5, 8, 8), 768 -> (8, 8, 12), 1024 -> (8, 8, 16), 1280 -> (8, 10, 16). A prime n leaves (1, 1, n).
    """
    best = (1, 1, n)
    for a in range(1, round(n ** (1 / 3)) + 2):
        if n % a:
            continue
        rest = n // a
        for b in range(math.isqrt(rest), a - 1, -1):
            if rest % b == 0:
                triple = (a, b, rest // b)
                best = min(best, triple, key=lambda t: sum(d * d for d in t))
                break
    return best


def kron_rotate(x: Tensor, k1: Tensor, k2: Tensor, k3: Tensor) -> Tensor:
    """x (..., n) -> x (K1 (x) K2 (x) K3) without forming the n x n product; n = a*b*c."""
    a, b, c = k1.shape[0], k2.shape[0], k3.shape[0]
    y = x.reshape(-1, c) @ k3
    y = torch.einsum("tabc,bd->tadc", y.reshape(-1, a, b, c), k2)
    y = torch.einsum("tabc,ad->tdbc", y, k1)
    return y.reshape(x.shape)
