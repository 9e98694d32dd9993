"""The parameters of a method whose change of a weight comes nearest to a given one (Frobenius norm).

D is the change (m x n) that is wanted, U_I S_I V_I^T the singular triples that the method works on. What is found is
the optimum in closed form for shifts, frames and rotations, by von Neumann's trace inequality and Eckart and Young; for
the Kronecker rotation of SODA it is a local optimum, reached by sweeps of which none makes it worse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .basis import Basis
from .change import Change, total, triples
from .linalg import kron_rotate

_GAP = 1e-3  # rotation angles closer to pi are stopped here: the Cayley transform sends pi itself to infinity
_POLISH = 6  # Gauss-Newton steps of the gauge; each gains about two digits where the change is small
_SWEEPS = 12
_STILL = 1e-4  # relative gain of a sweep below which the next is not worth its products


def core(basis: Basis, change: Change) -> Tensor:
    """U_I^T D V_I (r, r), fp64 on the CPU."""
    if isinstance(change, Tensor):
        return (basis.u.T @ (change @ basis.v)).cpu().double()
    return ((basis.u.T @ change[0]).cpu().double()) @ ((change[1] @ basis.v).cpu().double())


def diagonal(basis: Basis, change: Change) -> Tensor:
    """u_i^T D v_i (r,), fp32, from the small side where the other one is not at hand: v_i = W^T u_i / sigma_i."""
    if basis.two_sided or not basis.has_weight:
        left, right, scale = basis.u, basis.v, torch.ones_like(basis.s)
    elif basis.wide:
        left, right, scale = basis.u, basis.projected().T, basis.inverse
    else:
        left, right, scale = basis.projected(), basis.v, basis.inverse
    if isinstance(change, Tensor):
        return (left * (change @ right)).sum(0) * scale
    return ((left.T @ change[0]) * (change[1] @ right).T).sum(1) * scale


def nearest_shift(basis: Basis, change: Change) -> Tensor:
    """delta (r,) that minimises ||D - U_I diag(relu(sigma + delta) - sigma) V_I^T||; 0 on directions without signal.

    The directions do not meet in the norm, so each shift is the entry of the diagonal, cut where sigma reaches zero.
    """
    found = torch.maximum(diagonal(basis, change), -basis.s)
    return torch.where(basis.live, found, torch.zeros_like(found))


def nearest_frames(basis: Basis, change: Change) -> tuple[Tensor, Tensor]:
    """a_u (m, r), a_v (n, r) that minimise ||D - ((U + a_u) S (V + a_v)^T - U S V^T)||, and of those nearly the least.

    X S Y^T can be any matrix of rank r, so the optimum is the best one to D + U S V^T. Its factors are free up to
    X -> X G, Y -> Y G^-T (with sqrt(S) on both sides), which is spent on keeping X near U and Y near V.
    """
    live = basis.live.nonzero().flatten()
    u, s, v = basis.u[:, live].double(), basis.s[live].double(), basis.v[:, live].double()
    p, theta, q = triples(total([change, ((u * s).float(), v.T.float())]), len(live))
    root = s.sqrt()
    x, y = _padded(p * theta.sqrt(), len(live)), _padded(q * theta.sqrt(), len(live))
    x, y = _near(x, y, u * root, v * root)
    a_u, a_v = torch.zeros_like(basis.u), torch.zeros_like(basis.v)
    a_u[:, live], a_v[:, live] = (x / root - u).to(a_u), (y / root - v).to(a_v)
    return a_u, a_v


def nearest_rotations(basis: Basis, change: Change) -> tuple[Tensor, Tensor]:
    """Rotations R_U, R_V (r, r), fp64, that minimise ||D - U (R_U S R_V^T - S) V^T||.

    With M = S + U^T D V = P Theta Q^T (SVD), P and Q are the optimum over orthogonal matrices, and with one column
    turned over the optimum over rotations (Miranda and Thompson, Linear Algebra Appl. 1993).
    """
    p, _, qh = torch.linalg.svd(torch.diag(basis.s.cpu().double()) + core(basis, change))
    q = qh.T
    agree = p.diagonal() + q.diagonal()
    signs = torch.where(agree < 0, -1.0, 1.0).to(p)  # (P E, Q E) is as good for every diagonal E of +-1
    p, q = p * signs, q * signs
    turned_p, turned_q = (bool(torch.linalg.det(side) < 0) for side in (p, q))
    if turned_p and turned_q:
        flip = int((p.diagonal() + q.diagonal()).argmin())
        p[:, flip], q[:, flip] = -p[:, flip], -q[:, flip]
    elif turned_p:
        p[:, -1] = -p[:, -1]  # sigma is least there, so this costs least
    elif turned_q:
        q[:, -1] = -q[:, -1]
    return p, q


def nearest_turns(
    basis: Basis, change: Change, sizes: tuple[int, int, int]
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """delta (r,) and rotations K1, K2, K3 that bring (W + U diag(g(delta)) V^T) (K1 x K2 x K3)^T near to W + D.

    By turns: the shift for these rotations, one rotation for the others (orthogonal Procrustes). Starts at the best
    shift without rotation and never gets worse. sizes: those of the K, whose product is the number of input channels.
    """
    weight = _weight_of(basis)
    goal = _rows(weight + (change if isinstance(change, Tensor) else change[0] @ change[1]), sizes)
    turns = [torch.eye(d, dtype=torch.float64) for d in sizes]
    delta, gains = nearest_shift(basis, change), []
    for _ in range(_SWEEPS):
        shifted = _rows(weight + _shifted(basis, delta), sizes)
        moments = (goal.mT.flatten(0, 1).T @ shifted.mT.flatten(0, 1)).cpu().double()
        gains.append(_turn_all(turns, moments.reshape(*sizes, *sizes)))
        back = kron_rotate(goal.mT, *(k.to(goal) for k in turns)).mT.reshape(weight.shape)
        delta = nearest_shift(basis, back - weight)
        if len(gains) > 1 and gains[-1] - gains[-2] <= _STILL * abs(gains[-1] - gains[0]):
            break
    return delta, tuple(turns)


def inverse_cayley(r: Tensor) -> Tensor:
    """Skew-symmetric Q (d, d), fp64, with (I + Q)(I - Q)^-1 = R for a rotation R (d, d).

    Q has eigenvalues i tan(angle / 2). Angles within 1e-3 of pi, where R + I cannot be inverted, are replaced by
    pi - 1e-3, so the rotation that comes back is off by at most 2e-3.
    """
    r = r.double()
    cosines, y = torch.linalg.eigh((r + r.T) / 2)
    near = int((cosines < -1 + _GAP**2 / 2).sum())
    near -= near % 2  # they come in pairs but for rounding
    turn = y.T @ ((r - r.T) / 2) @ y
    q = turn / (1 + cosines)[:, None].clamp_min(1e-30)
    q[:near], q[:, :near] = 0, 0
    for i in range(0, near, 2):
        q[i, i + 1], q[i + 1, i] = -2 / _GAP, 2 / _GAP
    q = y @ q @ y.T
    return (q - q.T) / 2


def rotation_log(r: Tensor) -> Tensor:
    """Skew-symmetric log R (d, d), fp64, of a rotation; angles near pi as in `inverse_cayley`."""
    theta, y = torch.linalg.eigh(-1j * inverse_cayley(r).to(torch.complex128))
    return ((y * (2j * torch.arctan(theta))) @ y.mH).real


def upper(q: Tensor) -> Tensor:
    """The strict upper triangle (d(d-1)/2,) of a skew matrix, row by row, as parameters hold it: fp32."""
    i, j = torch.triu_indices(*q.shape, 1, device=q.device)
    return q[i, j].float()


def nearest_rotation(m: Tensor) -> Tensor:
    """The rotation R (d, d) that maximises <R, M>."""
    u, _, vh = torch.linalg.svd(m)
    if bool(torch.linalg.det(u @ vh) < 0):
        u = torch.cat([u[:, :-1], -u[:, -1:]], 1)
    return u @ vh


def _near(x: Tensor, y: Tensor, goal_x: Tensor, goal_y: Tensor) -> tuple[Tensor, Tensor]:
    """x G, y G^-T with G near the minimum of ||x G - goal_x||^2 + ||y G^-T - goal_y||^2: Procrustes, then Newton."""
    a, _, bh = torch.linalg.svd(x.T @ goal_x + y.T @ goal_y)
    x, y = x @ (a @ bh), y @ (a @ bh)
    for _ in range(_POLISH):
        step = _gauge_step(x, y, x - goal_x, y - goal_y)
        turn = torch.eye(len(step), dtype=step.dtype, device=step.device) + step
        if float(torch.linalg.matrix_norm(step, 2)) >= 0.5:  # beyond this the linear model of G^-T says nothing
            break
        nx, ny = x @ turn, torch.linalg.solve(turn, y.T).T
        if _miss(nx, goal_x) + _miss(ny, goal_y) >= _miss(x, goal_x) + _miss(y, goal_y):
            break
        x, y = nx, ny
    return x, y


def _gauge_step(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """E that minimises ||a + x E||^2 + ||b - y E^T||^2: the Sylvester equation X E + E Y = b^T y - x^T a."""
    lam, p = torch.linalg.eigh(x.T @ x)
    mu, q = torch.linalg.eigh(y.T @ y)
    floor = 1e-12 * (lam[-1] + mu[-1]).clamp_min(1e-30)
    return p @ ((p.T @ (b.T @ y - x.T @ a) @ q) / (lam[:, None] + mu[None, :]).clamp_min(floor)) @ q.T


def _miss(side: Tensor, goal: Tensor) -> float:
    return float((side - goal).square().sum())


def _padded(side: Tensor, r: int) -> Tensor:
    """(d, r) with columns of zeros where there are fewer."""
    return torch.cat([side, side.new_zeros(side.shape[0], r - side.shape[1])], 1)


def _weight_of(basis: Basis) -> Tensor:
    weight = basis.weight
    return (basis.u * basis.s) @ basis.v.T if weight is None else weight


def _shifted(basis: Basis, delta: Tensor) -> Tensor:
    """U diag(g) V^T (m, n)."""
    g = torch.relu(basis.s + delta) - basis.s
    if basis.two_sided or not basis.has_weight:
        return (basis.u * g) @ basis.v.T
    side = basis.small * (g * basis.inverse)
    return side @ basis.projected() if basis.wide else basis.projected() @ side.T


def _rows(matrix: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """(m, channels, window) of an m x n matrix."""
    return matrix.reshape(matrix.shape[0], sizes[0] * sizes[1] * sizes[2], -1)


def _turn_all(turns: list[Tensor], moments: Tensor) -> float:
    """Each factor in turn by Procrustes; what <K1 x K2 x K3, moments> has become. moments (a, b, c, a, b, c)."""
    for i, equation in enumerate(("abcdef,be,cf->ad", "abcdef,ad,cf->be", "abcdef,ad,be->cf")):
        rest = [k for j, k in enumerate(turns) if j != i]
        turns[i] = nearest_rotation(torch.einsum(equation, moments, *rest))
    return float(torch.einsum("abcdef,ad,be,cf->", moments, *turns))
