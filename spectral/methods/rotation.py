"""Spectral Adapter R: rotation of the frames within their own span. Zhang and Pilanci, arXiv 2405.13952.

W' = (U_I R_U) S_I (V_I R_V)^T + rest, so  W' - W = U_I (R_U S_I R_V^T - S_I) V_I^T,  of rank r.
R = (I + Q)(I - Q)^-1 with Q skew-symmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..basis import Basis
from ..change import Change
from ..fit import inverse_cayley, nearest_rotations, upper
from ..linalg import cayley, cayley_generator, rotation_log, rotation_power, skew
from ..ops import LinearMap
from .base import Method, Movement, ParamGroup, Params, Pieces, Share, Unmergeable, angle, weighted

_STEEPEST = 100.0  # tan of half an angle of 178.9 degrees: from here on fp32 has no digits left for the small angles


class Rotation(Method):
    """q_u, q_v (r(r-1)/2,): the strict upper triangles of Q_U and Q_V, row by row.

    Strength in spectral mode follows the geodesic: every rotation angle times s, orthogonal at every s.
    """

    name = "rotation"
    sign_sensitive = True
    lr = 1e-2
    default_columns = "top:8"
    groups: ClassVar = {"q_u": ParamGroup(exact=True), "q_v": ParamGroup(exact=True)}
    portable = True
    merges = frozenset({"paper", "rotate", "interpolate"})

    def param_shapes(self, weight_shape: Sequence[int], r: int) -> dict[str, tuple[int, ...]]:
        return {"q_u": (r * (r - 1) // 2,), "q_v": (r * (r - 1) // 2,)}

    def moved(self, basis: Basis, params: Params) -> Movement:
        """sigma_i sqrt(2 - 2 c_i), c_i = (R_U)_ii (R_V)_ii the cosine between a triple before and after.

        ||W' - W|| = ||R_U Sigma R_V^T - Sigma||: both need no frames.
        """
        s = basis.s.cpu().double()
        r_u, r_v = (_rotation(params[name], len(s), 1.0) for name in ("q_u", "q_v"))
        eye = torch.eye(len(s), dtype=s.dtype)
        # 1 - (R)_ii = |R e_i - e_i|^2 / 2, which keeps its digits for a small rotation.
        lost_u, lost_v = ((r - eye).square().sum(0) / 2 for r in (r_u, r_v))
        lost = lost_u + lost_v - lost_u * lost_v
        total = ((r_u * s) @ r_v.T - torch.diag(s)).norm()
        return Movement(s * (2 * lost).clamp_min(0).sqrt(), float(total), turn=angle(float(lost.mean())))

    def fit(self, weight_shape: Sequence[int], basis: Basis, change: Change) -> dict[str, Tensor]:
        """The optimum, in closed form; see `fit.nearest_rotations`."""
        turns = nearest_rotations(basis, change)
        return {name: upper(inverse_cayley(r)).to(basis.s) for name, r in zip(("q_u", "q_v"), turns)}

    def _apply(self, op: LinearMap, basis: Basis, params: Params, x: Tensor) -> Tensor:
        r_u, r_v = cayley(skew(torch.stack([params["q_u"], params["q_v"]]), len(basis.s)))
        core = (r_u * basis.s) @ r_v.T - torch.diag(basis.s)
        return op.thin(x, basis.v.T, basis.u, core)

    def merged(self, mode: str, basis: Basis, shares: Sequence[Share]) -> dict[str, Tensor]:
        """Q = sum l_i Q_i; for "rotate" and "interpolate" the Q of exp(sum w_i log R_i). Zeros in others' columns.

        Raises Unmergeable where an angle comes so near 180 degrees that Q has no digits for it.
        """
        r = len(basis.columns)
        upper = torch.triu_indices(r, r, 1)
        found = {}
        for name in ("q_u", "q_v"):
            if mode in ("rotate", "interpolate"):
                q = cayley_generator(sum(_spread(share, name, r, rotation_log) for share in shares))
            else:
                q = sum(_spread(share, name, r) for share in shares)
            if float(torch.linalg.matrix_norm(q, 2)) > _STEEPEST:
                raise Unmergeable("the rotations together turn by almost 180 degrees, which no parameters state")
            found[name] = q[upper[0], upper[1]].float()
        return found

    def merge_target(self, mode: str, basis: Basis, shares: Sequence[Share]) -> tuple[Tensor, Tensor]:
        """U (R_U S R_V^T - S) V^T with R the rotation that the mode asks for, by inverse and logarithm of matrices."""
        r, (u, s, v) = len(basis.columns), (t.cpu().double() for t in (basis.u, basis.s, basis.v))
        eye, turns = torch.eye(r, dtype=torch.float64), []
        for name in ("q_u", "q_v"):
            if mode == "paper":
                q = sum(_spread(share, name, r) for share in shares)
                turns.append((eye + q) @ torch.linalg.inv(eye - q))
            else:
                turns.append(torch.matrix_exp(sum(_spread(share, name, r, _log_of_rotation) for share in shares)))
        return u, ((turns[0] * s) @ turns[1].T - torch.diag(s)) @ v.T

    def pieces(self, basis: Basis, params: Params, strength: float = 1.0) -> Pieces:
        """(U R_U)_i sigma_i (V R_V)_i^T."""
        r_u, r_v = (_rotation(params[name], len(basis.s), strength).to(basis.s) for name in ("q_u", "q_v"))
        return Pieces(basis.u @ r_u, basis.s, basis.v @ r_v)

    def _factors(self, basis: Basis, params: Params, strength: float, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        r_u, r_v = (_rotation(params[name], len(basis.s), strength) for name in ("q_u", "q_v"))
        s = weighted(basis.s.cpu().double(), columns)
        # The bracket is a difference of nearly equal matrices: in fp64, before anything thin is multiplied.
        core = ((r_u * s) @ r_v.T - torch.diag(s)).to(basis.s)
        return basis.u, core @ basis.v.T


def _rotation(q: Tensor, r: int, strength: float) -> Tensor:
    q = skew(q.detach().cpu().double(), r)
    return cayley(q) if strength == 1 else rotation_power(q, strength)


def _spread(share: Share, name: str, r: int, also: Callable[[Tensor], Tensor] = lambda q: q) -> Tensor:
    """weight times also(Q) (r, r), fp64, with zeros in the columns of others."""
    own = also(skew(share.params[name].detach().cpu().double(), len(share.where)))
    where = share.where.cpu()
    whole = own.new_zeros(r, r)
    whole[where[:, None], where] = share.weight * own
    return whole


def _log_of_rotation(q: Tensor) -> Tensor:
    """The logarithm of cayley(Q) from the eigenvalues of the rotation itself."""
    lam, y = torch.linalg.eig(cayley(q))
    return (y @ torch.diag(lam.log()) @ torch.linalg.inv(y)).real
