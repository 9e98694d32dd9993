"""SODA: SVDiff, then a Kronecker-structured rotation of the layer's input. Zhang et al., arXiv 2405.21050.

W' = U diag(relu(sigma + delta)) V^T K^T,  K = K1 (x) K2 (x) K3 orthogonal. The rotation needs no SVD and acts on
activations; for a k x k convolution it mixes the input channels and leaves the window alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..basis import Basis
from ..change import Change
from ..columns import ColumnsLike
from ..errors import SettingError, SpectralError
from ..fit import inverse_cayley, nearest_turns, rotation_log, upper
from ..linalg import cayley, kron_factors, kron_rotate, orthogonal_power, rotation_power, skew
from ..ops import LinearMap
from .base import Method, Movement, ParamGroup, Params, Pieces, Setting, angle, few, weighted
from .svdiff import apply_shift, chosen, rebuilds, shift, shift_delta, shifted_weight

Parameterisation = Literal["stiefel", "cayley", "exp"]
_FACTORS = ("k1", "k2", "k3")
_LARGE_FACTOR = 64


class Soda(Method):
    """delta (r,) and three rotations with a*b*c = number of inputs (channels for a convolution).

    rotation="stiefel": k1, k2, k3 are the orthogonal matrices (a, a), (b, b), (c, c) themselves, for StiefelAdam.
    rotation="cayley" or "exp": they are the strict upper triangles (d(d-1)/2,) of a skew Q, for any optimiser.
    The shift starts at 0 and not at 1e-3 as in the authors' code, so that an untrained adapter changes nothing.
    """

    name = "soda"
    sign_sensitive = False
    lr = 5e-5
    default_columns = "all"
    portable = False

    def __init__(
        self,
        *,
        columns: ColumnsLike = None,
        rank: int | None = None,
        rotation: Parameterisation = "stiefel",
    ):
        super().__init__(columns=columns, rank=rank)
        if rotation not in get_args(Parameterisation):
            raise SettingError(f"soda: rotation={rotation!r} is unknown; expected one of {get_args(Parameterisation)}")
        self.rotation = rotation
        factor = ParamGroup(kind="stiefel" if rotation == "stiefel" else "adamw", exact=True)
        self.groups = {"delta": ParamGroup(weight_decay=1e-4), **dict.fromkeys(_FACTORS, factor)}

    @property
    def settings(self) -> dict[str, Setting]:
        return {**super().settings, "rotation": self.rotation}

    def param_shapes(self, weight_shape: Sequence[int], r: int) -> dict[str, tuple[int, ...]]:
        sizes = kron_factors(weight_shape[1])
        square = self.rotation == "stiefel"
        factors = {name: (d, d) if square else (d * (d - 1) // 2,) for name, d in zip(_FACTORS, sizes)}
        return {"delta": (r,), **factors}

    def init(self, weight: Tensor, basis: Basis) -> dict[str, Tensor]:
        sizes = kron_factors(weight.shape[1])
        if sizes[-1] > _LARGE_FACTOR:
            warnings.warn(
                f"soda: {weight.shape[1]} inputs split only into {sizes[0]} x {sizes[1]} x {sizes[2]}, so the largest "
                f"rotation has {sizes[2]} x {sizes[2]} entries; leave this layer out if the file should stay small",
                stacklevel=2,
            )
        params = super().init(weight, basis)
        if self.rotation == "stiefel":
            params |= {name: torch.eye(d, device=weight.device) for name, d in zip(_FACTORS, sizes)}
        return params

    def moved(self, basis: Basis, params: Params) -> Movement:
        """||s'_i K v_i - s_i v_i|| = sqrt((s' - s)^2 + 2 s s' (1 - c)), s' = s + g and c = v_i^T K v_i.

        A file holds no v_i, so c is its mean over all directions, tr K / n. ||W' - W||^2 is the sum of the squares.
        With limited columns, what the rotation does to the rest of the weight is not counted.
        """
        s, g = basis.s.cpu().double(), shift(basis, params["delta"]).cpu().double()
        kept = 1.0
        lost = 0.0  # 1 - tr K / n, summed so that a small rotation keeps its digits
        for k in self._powers(params, 1.0):
            part = float((k - torch.eye(len(k), dtype=k.dtype)).square().sum()) / (2 * len(k))
            lost, kept = lost + kept * part, kept * (1 - part)
        columns = (g.square() + 2 * s * (s + g) * lost).clamp_min(0).sqrt()
        return Movement(columns, float(columns.norm()), exact=lost == 0, turn=angle(lost))

    def fit(self, weight_shape: Sequence[int], basis: Basis, change: Change) -> dict[str, Tensor]:
        """A local optimum that is at least as near as the best shift alone; see `fit.nearest_turns`."""
        delta, turns = nearest_turns(basis, change, kron_factors(weight_shape[1]))
        if self.rotation != "stiefel":
            flatten = inverse_cayley if self.rotation == "cayley" else rotation_log
            turns = [upper(flatten(k)) for k in turns]
        return {"delta": delta, **{name: k.to(delta) for name, k in zip(_FACTORS, turns)}}

    def _apply(self, op: LinearMap, basis: Basis, params: Params, x: Tensor) -> Tensor:
        turns, g = self._rotations(params), shift(basis, params["delta"])
        # The rotation costs as much on a row of the weight as on a position.
        if basis.full and rebuilds(op, basis, x) and op.positions(x) > basis.shape[0]:
            return op.through(x, op.rotate_weight(shifted_weight(op, basis, g), *turns))
        x = op.rotate(x, *turns)
        return apply_shift(op, basis, g, x) if basis.full else op.thin(x, basis.v.T, basis.u * g)

    def check(self, params: Params, weight_shape: Sequence[int], r: int) -> str | None:
        if wrong := super().check(params, weight_shape, r):
            return wrong
        for name in _FACTORS if self.rotation == "stiefel" else ():
            k = params[name].double()
            defect = float((k.T @ k - torch.eye(k.shape[0], dtype=k.dtype, device=k.device)).abs().max())
            if not defect <= 1e-3:
                return f"{name} is not orthogonal: K^T K differs from I by {defect:.2g}, expected at most 0.001"
        return None

    def _rotations(self, params: Params) -> tuple[Tensor, ...]:
        if self.rotation == "stiefel":
            return tuple(params[name] for name in _FACTORS)
        to_rotation = cayley if self.rotation == "cayley" else torch.matrix_exp
        return tuple(to_rotation(skew(params[name], _side(params[name]))) for name in _FACTORS)

    def _powers(self, params: Params, strength: float) -> list[Tensor]:
        """exp(s log K_i) for the three factors, fp64 on the CPU."""
        raw = [params[name].detach().cpu().double() for name in _FACTORS]
        if self.rotation == "stiefel":
            return raw if strength == 1 else [orthogonal_power(k, strength) for k in raw]
        skews = [skew(q, _side(q)) for q in raw]
        if self.rotation == "exp":
            return [torch.matrix_exp(strength * q) for q in skews]
        return [cayley(q) if strength == 1 else rotation_power(q, strength) for q in skews]

    def pieces(self, basis: Basis, params: Params, strength: float = 1.0) -> Pieces:
        """u_i (sigma_i + g_i) (K v_i)^T, which are the whole change only where all columns are there."""
        self._check_whole(basis)
        turned = self._turned(basis.v.T, params, strength).T
        return Pieces(basis.u, basis.s + shift(basis, strength * params["delta"]), turned)

    def _factors(
        self, basis: Basis, params: Params, strength: float, columns: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        kept = few(basis, columns)
        if columns is None or kept is None:
            return None
        self._check_whole(basis)
        g, w, part = shift(basis, strength * params["delta"])[kept], columns.to(basis.s)[kept], chosen(basis, kept)
        turned, v = self._turned(part.v.T, params, strength), part.v.T
        # (sigma + g) K v - sigma v as a sum without the cancellation.
        return part.u * w, part.s[:, None] * (turned - v) + g[:, None] * turned

    def _delta(self, basis: Basis, params: Params, strength: float, columns: Tensor | None) -> Tensor:
        weight, g = _weight(basis), shift(basis, strength * params["delta"])
        if columns is not None:
            self._check_whole(basis)
            weight, g = weight + shift_delta(basis, (columns.to(g) - 1) * basis.s), weighted(g, columns)
        return self._turned(weight + shift_delta(basis, g), params, strength) - weight

    def _turned(self, rows: Tensor, params: Params, strength: float) -> Tensor:
        """rows (m, n) times K^T."""
        turns = [k.T.to(rows) for k in self._powers(params, strength)]
        channels = turns[0].shape[0] * turns[1].shape[0] * turns[2].shape[0]
        split = rows.reshape(rows.shape[0], channels, -1).mT
        return kron_rotate(split, *turns).mT.reshape(rows.shape)

    def _check_whole(self, basis: Basis) -> None:
        """Raises SettingError unless all columns are there: the rotation moves the others too."""
        if not basis.full:
            raise SettingError(
                f"soda: this adapter has {len(basis.columns)} of {basis.k} columns but rotates all of the weight, so "
                "its change cannot be told apart by columns; leave the columns out of the parts"
            )


def _side(q: Tensor) -> int:
    """d of a strict upper triangle with d(d-1)/2 entries."""
    return round((1 + (1 + 8 * q.shape[-1]) ** 0.5) / 2)


def _weight(basis: Basis) -> Tensor:
    weight = basis.weight
    if weight is not None:
        return weight
    if not basis.full:
        raise SpectralError("soda rotates the whole weight; this basis holds some columns only and no weight")
    return (basis.u * basis.s) @ basis.v.T
