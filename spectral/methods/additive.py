"""Spectral Adapter A: additive change of the frames. Zhang and Pilanci, arXiv 2405.13952.

W' = (U_I + A_U) S_I (V_I + A_V)^T + rest, so  W' - W = [A_U S | (U + A_U) S] [V | A_V]^T,  of rank 2r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..basis import Basis
from .base import Method, ParamGroup, Params, matrix_shape


class Additive(Method):
    """a_u (m, r), a_v (n, r): added to the chosen singular vectors. Concepts on disjoint columns do not cross."""

    name = "additive"
    sign_sensitive = True
    lr = 1e-4
    default_columns = "top:8"
    groups: ClassVar = {"a_u": ParamGroup(weight_decay=1e-2), "a_v": ParamGroup(weight_decay=1e-2)}
    portable = True

    def param_shapes(self, weight_shape: Sequence[int], r: int) -> dict[str, tuple[int, ...]]:
        m, n = matrix_shape(weight_shape)
        return {"a_u": (m, r), "a_v": (n, r)}

    def _factors(self, basis: Basis, params: Params, strength: float) -> tuple[Tensor, Tensor]:
        a_u, a_v = strength * params["a_u"], strength * params["a_v"]
        up = torch.cat([a_u * basis.s, (basis.u + a_u) * basis.s], dim=1)
        return up, torch.cat([basis.v, a_v], dim=1).T
