"""Spectral Adapter A: additive change of the frames. Zhang and Pilanci, arXiv 2405.13952.

W' = (U_I + A_U) S_I (V_I + A_V)^T + rest, so  W' - W = [A_U S | (U + A_U) S] [V | A_V]^T,  of rank 2r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..basis import Basis
from ..change import Change
from ..fit import nearest_frames
from .base import Method, Movement, ParamGroup, Params, Pieces, Share, matrix_shape, weighted


class Additive(Method):
    """a_u (m, r), a_v (n, r): added to the chosen singular vectors. Concepts on disjoint columns do not cross."""

    name = "additive"
    sign_sensitive = True
    lr = 1e-4
    default_columns = "top:8"
    groups: ClassVar = {"a_u": ParamGroup(weight_decay=1e-2), "a_v": ParamGroup(weight_decay=1e-2)}
    portable = True
    merges = frozenset({"paper", "interpolate"})

    def param_shapes(self, weight_shape: Sequence[int], r: int) -> dict[str, tuple[int, ...]]:
        m, n = matrix_shape(weight_shape)
        return {"a_u": (m, r), "a_v": (n, r)}

    def moved(self, basis: Basis, params: Params) -> Movement:
        """sigma_i ||(u_i + a_i)(v_i + b_i)^T - u_i v_i^T||, with a, b the columns of A_U and A_V.

        Squared: sigma^2 (|a|^2 |v + b|^2 + |u|^2 |b|^2 + 2 (a.u)((v + b).b)). Without frames a and b are taken to be at
        right angles to u and v, and the pieces to each other.
        """
        a, b, s = (t.double() for t in (params["a_u"], params["a_v"], basis.s))
        if not basis.two_sided:
            a2, b2 = a.square().sum(0), b.square().sum(0)
            columns = s * (a2 * (1 + b2) + b2).sqrt()
            return Movement(columns, float(columns.norm()), exact=False)
        u, v = basis.u.double(), basis.v.double()
        y = v + b
        crossed = 2 * (a * u).sum(0) * (y * b).sum(0)
        squares = a.square().sum(0) * y.square().sum(0) + u.square().sum(0) * b.square().sum(0) + crossed
        up, down = torch.cat([a * s, u * s], 1), torch.cat([y, b], 1)
        total = ((up.T @ up) * (down.T @ down)).sum()
        return Movement(s * squares.clamp_min(0).sqrt(), float(total.clamp_min(0).sqrt()))

    def merged(self, mode: str, basis: Basis, shares: Sequence[Share]) -> dict[str, Tensor]:
        """A = sum l_i A_i with zeros in the columns of others; the paper's l_i are 1 / n."""
        r = len(basis.columns)
        return {name: sum(share.placed(name, r) for share in shares).float() for name in ("a_u", "a_v")}

    def merge_target(self, mode: str, basis: Basis, shares: Sequence[Share]) -> tuple[Tensor, Tensor]:
        """(U + sum l A) S (V + sum l B)^T - U S V^T, whose cancellation fp64 can afford."""
        u, s, v = (t.cpu().double() for t in (basis.u, basis.s, basis.v))
        x, y = u.clone(), v.clone()
        for share in shares:
            x[:, share.where] += share.weight * share.params["a_u"].cpu().double()
            y[:, share.where] += share.weight * share.params["a_v"].cpu().double()
        return torch.cat([x * s, -u * s], 1), torch.cat([y, v], 1).T

    def pieces(self, basis: Basis, params: Params, strength: float = 1.0) -> Pieces:
        """(u_i + s a_i) sigma_i (v_i + s b_i)^T."""
        return Pieces(basis.u + strength * params["a_u"], basis.s, basis.v + strength * params["a_v"])

    def fit(self, weight_shape: Sequence[int], basis: Basis, change: Change) -> dict[str, Tensor]:
        """The optimum, in closed form; see `fit.nearest_frames`."""
        return dict(zip(("a_u", "a_v"), nearest_frames(basis, change)))

    def _factors(self, basis: Basis, params: Params, strength: float, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        a_u, a_v, s = strength * params["a_u"], strength * params["a_v"], weighted(basis.s, columns)
        up = torch.cat([a_u * s, (basis.u + a_u) * s], dim=1)
        return up, torch.cat([basis.v, a_v], dim=1).T
