"""SVDiff: shift the singular values. W' = U diag(relu(sigma + delta)) V^T. Han et al., arXiv 2303.11305."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..basis import Basis
from ..change import Change
from ..columns import ColumnsLike
from ..errors import SettingError
from ..fit import nearest_shift
from ..ops import LinearMap
from .base import GAIN, Method, Movement, ParamGroup, Params, Pieces, Setting, Share, Unmergeable, few, weighted

_CLIP = 1e-6  # of sigma_1: what rounding leaves of a singular value that is shifted to 0


class SVDiff(Method):
    """delta (r,): one shift per singular value.

    With all columns the change has full rank; with a limited rank it is U_I diag(.) V_I^T and the file can carry the
    frames. Directions with sigma_i <= 1e-5 sigma_1 are left alone: no machine could repeat their vectors.
    norms=True also shifts the gains of normalisation layers, as the paper does, at a thousandth of the rate: 1e-6, as
    in mkshing's code (which shifts them by one number per layer; here, as in the authors', it is one per channel).
    """

    name = "svdiff"
    sign_sensitive = False
    lr = 1e-3
    default_columns = "all"
    merges = frozenset({"paper", "shift", "interpolate"})
    adds = True

    def __init__(self, *, columns: ColumnsLike = None, rank: int | None = None, norms: bool = False):
        super().__init__(columns=columns, rank=rank)
        if not isinstance(norms, bool):
            raise SettingError(f"svdiff: norms={norms!r} is no choice; expected true or false")
        self.groups = {"delta": ParamGroup()} | ({GAIN: ParamGroup(lr_scale=1e-3)} if norms else {})

    @property
    def settings(self) -> dict[str, Setting]:
        # Only named when chosen: files without norms stay readable by versions that do not know the setting.
        return {**super().settings, **({"norms": True} if self.shifts_gains else {})}

    @property
    def portable(self) -> bool:
        return self.columns.kind != "all"

    def param_shapes(self, weight_shape: Sequence[int], r: int) -> dict[str, tuple[int, ...]]:
        return {"delta": (r,)}

    def moved(self, basis: Basis, params: Params) -> Movement:
        """|g_i| with g = relu(sigma + delta) - sigma; the pieces are orthogonal, so ||W' - W|| = ||g||."""
        g = shift(basis, params["delta"]).double().abs()
        return Movement(g, float(g.norm()))

    def fit(self, weight_shape: Sequence[int], basis: Basis, change: Change) -> dict[str, Tensor]:
        """The optimum, in closed form; see `fit.nearest_shift`."""
        return {"delta": nearest_shift(basis, change)}

    def _apply(self, op: LinearMap, basis: Basis, params: Params, x: Tensor) -> Tensor:
        if not basis.full:
            return super()._apply(op, basis, params, x)
        return apply_shift(op, basis, shift(basis, params["delta"]), x)

    def merged(self, mode: str, basis: Basis, shares: Sequence[Share]) -> dict[str, Tensor]:
        """delta = sum w_i delta_i; for "sum" delta = sum w_i g_i, the shifts as they act, unless sigma would be < 0."""
        r = len(basis.columns)
        if mode != "sum":
            return {"delta": sum(share.placed("delta", r) for share in shares).float()}
        s = basis.s.cpu()
        delta = sum(self._acting(basis, share).placed("delta", r) for share in shares)
        if bool((s + delta < -_CLIP * basis.sigma_max).any()):
            raise Unmergeable("the sum of the shifts would make singular values negative")
        return {"delta": delta.float()}

    def merge_target(self, mode: str, basis: Basis, shares: Sequence[Share]) -> Tensor | tuple[Tensor, Tensor]:
        """U diag(relu(sigma + sum w delta) - sigma) V^T."""
        u, s, v = (t.cpu().double() for t in (basis.u, basis.s, basis.v))
        moved = s.clone()
        for share in shares:
            moved[share.where] += share.weight * share.params["delta"].cpu().double()
        up = u * torch.where(basis.live.cpu(), moved.clamp_min(0) - s, 0)
        return up @ v.T if basis.full else (up, v.T)

    @staticmethod
    def _acting(basis: Basis, share: Share) -> Share:
        """The share with the shifts that are left after relu."""
        g = shift(chosen(basis, share.where), share.params["delta"].to(basis.s))
        return Share(share.weight, {"delta": g}, share.where)

    def pieces(self, basis: Basis, params: Params, strength: float = 1.0) -> Pieces:
        """u_i (sigma_i + g_i) v_i^T."""
        return Pieces(basis.u, basis.s + shift(basis, strength * params["delta"]), basis.v)

    def _factors(
        self, basis: Basis, params: Params, strength: float, columns: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        g = weighted(shift(basis, strength * params["delta"]), columns)
        kept = few(basis, columns)
        if kept is not None:
            part = chosen(basis, kept)
            return part.u * g[kept], part.v.T
        return None if basis.full else (basis.u * g, basis.v.T)

    def _delta(self, basis: Basis, params: Params, strength: float, columns: Tensor | None) -> Tensor:
        return shift_delta(basis, weighted(shift(basis, strength * params["delta"]), columns))


def shift(basis: Basis, delta: Tensor) -> Tensor:
    """g (r,) = relu(sigma + delta) - sigma on live directions, 0 elsewhere."""
    g = torch.relu(basis.s + delta) - basis.s
    return torch.where(basis.live, g, torch.zeros_like(g))


def chosen(basis: Basis, kept: Tensor) -> Basis:
    """The basis of some of its own columns, given as positions among them."""
    return basis.select([basis.columns[i] for i in kept.tolist()])


def gains(basis: Basis, g: Tensor) -> Tensor:
    """g / sigma (r,), 0 where sigma carries no signal."""
    return g * basis.inverse


def shift_delta(basis: Basis, g: Tensor) -> Tensor:
    """U diag(g) V^T (m, n), by one product with the large side."""
    if basis.two_sided or (weight := basis.weight) is None:
        return (basis.u * g) @ basis.v.T
    turn = (basis.small * gains(basis, g)) @ basis.small.T
    return turn @ weight if basis.wide else weight @ turn


def shifted_weight(op: LinearMap, basis: Basis, g: Tensor) -> Tensor:
    """W + U diag(g) V^T (m, n), cheaper than `shift_delta` for a caller that comes back (see `Basis.projected`)."""
    q, projected = basis.small * gains(basis, g), basis.projected()
    pair = (q, projected) if basis.wide else (projected, q.T)
    weight = op.weight.reshape(basis.shape)
    return torch.addmm(weight, *(side.to(weight) for side in pair))


def rebuilds(op: LinearMap, basis: Basis, x: Tensor) -> bool:
    """Whether a training step on x costs less with the rebuilt weight than on activations; in multiplications.

    Never in half precision, where a weight plus a small shift rounds to the weight.
    """
    if x.dtype.itemsize < 4 or not basis.has_weight:
        return False
    positions, side = op.positions(x), max(basis.shape)
    return basis.k * side * (positions + 2 * basis.k) < 4 * basis.k**2 * positions


def apply_shift(op: LinearMap, basis: Basis, g: Tensor, x: Tensor) -> Tensor:
    """(W + U diag(g) V^T) x, by the cheapest of three exact forms.

    m <= n: y + U ((g/sigma) * U^T y) with y = W x, which needs no unfolding of a convolution. m > n: the same on x.
    Rebuilding the weight wins where positions are many and the layer is small.
    """
    if rebuilds(op, basis, x):
        return op.through(x, shifted_weight(op, basis, g))
    if op.conv and not basis.wide:
        return op.thin(x, basis.v.T, basis.u * g)
    side = basis.small_as(x.dtype)
    if basis.wide:
        return op.stretch(op.base(x), side, gains(basis, g))
    return op.base(op.stretch(x, side, gains(basis, g)))
