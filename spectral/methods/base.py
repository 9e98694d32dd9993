"""What every spectral method has in common.

    W(theta) = P [ W - U_I S_I V_I^T + X C Y^T ] Q^T,    X = U_I E_U + A_U,    Y = V_I E_V + A_V

W is m x n; I is a choice of r columns of its canonical SVD; C the core, E rotations inside the frame, A free additions,
P and Q structured rotations of the outer spaces. A method says which of these it trains; at identity W(theta) = W.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..basis import Basis
from ..change import Change
from ..columns import Columns, ColumnsLike
from ..errors import SettingError
from ..ops import LinearMap, autocast_dtype

Params = Mapping[str, Tensor]
Mode = Literal["linear", "spectral"]
Setting = str | int | float | bool
#: The name, among a method's groups and in files, of the shift of a normalisation layer's gain.
GAIN = "gain"


@dataclass(frozen=True)
class ParamGroup:
    """How a parameter is optimised: the rule, its weight decay, and its rate relative to the method's.

    exact: files keep it in fp32 whatever their dtype, because rounding would break what it stands for (a rotation).
    """

    kind: Literal["adamw", "stiefel"] = "adamw"
    weight_decay: float = 0.0
    lr_scale: float = 1.0
    exact: bool = False


@dataclass(frozen=True)
class Pieces:
    """The rank-one pieces that a method has made of a layer's r singular triples: x (m, r), c (r,), y (n, r), fp32.

    W' - W = sum_i (x_i c_i y_i^T - sigma_i u_i v_i^T).
    """

    x: Tensor
    c: Tensor
    y: Tensor


class Unmergeable(SettingError):
    """Adapters whose mixture is no adapter of their method; the message is the reason, as part of a sentence."""


@dataclass(frozen=True)
class Share:
    """One adapter's part in a mixture: `weight` times its params, of the columns at `where` (r_i,) of the r in all."""

    weight: float
    params: Params
    where: Tensor

    def placed(self, name: str, r: int) -> Tensor:
        """weight times the parameter (d, r_i) or (r_i,), as (d, r) or (r,) with zeros in other columns; fp64, CPU."""
        own = self.params[name].detach().cpu().double()
        return own.new_zeros((*own.shape[:-1], r)).index_copy_(-1, self.where.cpu(), self.weight * own)


@dataclass(frozen=True)
class Movement:
    """How far a layer's parameters have moved its weight, in the weight's own units.

    columns (r,) fp64: for each column ||x_i c_i y_i^T - sigma_i u_i v_i^T||, the distance between the rank-one piece
    that the method has made of a singular triple and the triple itself. total: ||W' - W|| of the whole layer; the
    pieces are not orthogonal in every method, so it is not always the root of their sum of squares. exact: False where
    a number stands on an assumption, because the file holds no frames. turn: the angle in degrees whose cosine is the
    mean cosine between triples before and after a rotation; None for methods that do not rotate. (Norms: Frobenius.)
    """

    columns: Tensor
    total: float
    exact: bool = True
    turn: float | None = None


class Method(ABC):
    """One spectral method with its settings. Stateless: parameters and bases are passed in.

    Strength: "linear" multiplies the weight change; "spectral" scales the parameters themselves (along the geodesic
    for rotations). Both agree at 0 and at 1.
    """

    name: ClassVar[str]
    #: Whether the meaning of the parameters depends on the signs of singular vectors.
    sign_sensitive: ClassVar[bool]
    #: Learning rate on Stable Diffusion (reference values of the methods' own code).
    lr: ClassVar[float]
    default_columns: ClassVar[str]
    #: The modes of fusion (`mixture`) in which parameters of one basis are merged.
    merges: ClassVar[frozenset[str]] = frozenset()
    #: Whether any weighted sum of changes in one basis is again a change of this method, on shared columns too.
    adds: ClassVar[bool] = False
    #: The optimiser rule of every parameter. With `GAIN` among them, the gains of norms are shifted too.
    groups: Mapping[str, ParamGroup]

    def __init__(self, *, columns: ColumnsLike = None, rank: int | None = None):
        if columns is not None and rank is not None:
            raise SettingError(f"{self.name}: rank={rank} and columns={columns!r} both choose columns; give one")
        chosen = columns if columns is not None else rank
        self.columns = Columns.parse(self.default_columns if chosen is None else chosen)

    @property
    def settings(self) -> dict[str, Setting]:
        """Everything needed to make the method again: `method(name, **settings)`."""
        return {"columns": self.columns.text}

    @property
    def shifts_gains(self) -> bool:
        """Whether the method also shifts the gains of normalisation layers."""
        return GAIN in self.groups

    @property
    @abstractmethod
    def portable(self) -> bool:
        """Whether a file of this method carries its frames by default."""

    @abstractmethod
    def param_shapes(self, weight_shape: Sequence[int], r: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters for a weight (m, n) or (c_out, c_in, kh, kw) and r columns."""

    def init(self, weight: Tensor, basis: Basis) -> dict[str, Tensor]:
        """Parameters (fp32) at which the weight is unchanged."""
        shapes = self.param_shapes(tuple(weight.shape), len(basis.columns))
        return {name: torch.zeros(shape, device=weight.device) for name, shape in shapes.items()}

    def delta(
        self,
        basis: Basis,
        params: Params,
        strength: float = 1.0,
        mode: Mode = "linear",
        columns: Tensor | None = None,
    ) -> Tensor:
        """The weight change (m, n), fp32.

        columns (r,): a factor for the piece of each column (see `pieces`), at any strength; None changes none.
        Raises SettingError where a method's change is not the sum of its pieces.
        """
        _check_mode(mode)
        if strength == 0:
            return basis.s.new_zeros(basis.shape)
        if mode == "linear":
            return self._delta(basis, params, 1.0, columns) * strength
        return self._delta(basis, params, strength, columns)

    def factors(
        self,
        basis: Basis,
        params: Params,
        strength: float = 1.0,
        mode: Mode = "linear",
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """up (m, R), down (R, n) with up @ down the weight change, or None where the change has full rank.

        columns: as in `delta`; where most are 0, the change is thin with every method.
        """
        _check_mode(mode)
        pair = self._factors(basis, params, 1.0 if mode == "linear" else strength, columns)
        if pair is None:
            return None
        scale = strength if mode == "linear" or strength == 0 else 1.0
        return pair[0] * scale, pair[1]

    def apply(self, op: LinearMap, basis: Basis, params: Params, x: Tensor) -> Tensor:
        """The adapted layer on activations, without its bias; differentiable in params and x.

        Under autocast activations are multiplied in its dtype and parameters still in their own: a core is a difference
        of nearly equal matrices, of which half precision leaves nothing.
        """
        dtype = autocast_dtype(x)
        if dtype is None:
            return self._apply(op, basis, params, x)
        with torch.autocast(x.device.type, enabled=False):
            return self._apply(op, basis, params, x.to(dtype))

    def check(self, params: Params, weight_shape: Sequence[int], r: int) -> str | None:
        """A sentence on what is wrong with parameters read from a file, or None."""
        expected = self.param_shapes(weight_shape, r)
        if set(params) != set(expected):
            return f"found parameters {sorted(params)}, expected {sorted(expected)} for method {self.name}"
        for name, shape in expected.items():
            if tuple(params[name].shape) != shape:
                found = tuple(params[name].shape)
                return f"{name} has shape {found}, expected {shape} for a weight {tuple(weight_shape)}"
        return None

    @abstractmethod
    def pieces(self, basis: Basis, params: Params, strength: float = 1.0) -> Pieces:
        """What became of each singular triple, with the parameters scaled by `strength`.

        Needs both sides of the basis, or its weight. Raises SettingError where the change is not the sum of pieces.
        """

    def merged(self, mode: str, basis: Basis, shares: Sequence[Share]) -> dict[str, Tensor]:
        """Parameters (fp32, CPU) of the mixture in `basis`: mode "sum", or one of `merges`.

        "sum" is asked for on columns that no two share, at weights of 1, unless the method `adds`. Raises Unmergeable.
        """
        raise Unmergeable(f"{self.name} adapters have no parameters that could be merged")

    def merge_target(self, mode: str, basis: Basis, shares: Sequence[Share]) -> Tensor | tuple[Tensor, Tensor]:
        """The change that the formula of one of `merges` asks for, without `merged`'s parameters: fp64, on the CPU.

        Dense (m, n), or up (m, R), down (R, n).
        """
        raise Unmergeable(f"{self.name} adapters have no parameters that could be merged")

    @abstractmethod
    def moved(self, basis: Basis, params: Params) -> Movement:
        """How far the parameters move the weight; reads `basis.s`, and the frames only where both are at hand."""

    @abstractmethod
    def fit(self, weight_shape: Sequence[int], basis: Basis, change: Change) -> dict[str, Tensor]:
        """The parameters (fp32) whose change of the weight comes nearest to `change`, in the Frobenius norm."""

    def _apply(self, op: LinearMap, basis: Basis, params: Params, x: Tensor) -> Tensor:
        """`apply` outside autocast. Here for changes of low rank: two thin products beside the base."""
        pair = self._factors(basis, params, 1.0, None)
        if pair is None:
            raise SettingError(f"{self.name} states neither thin factors nor a form on activations")
        return op.thin(x, pair[1], pair[0])

    def _factors(
        self, basis: Basis, params: Params, strength: float, columns: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Thin factors with the parameters scaled by `strength`, the pieces by `columns`."""
        return None

    def _delta(self, basis: Basis, params: Params, strength: float, columns: Tensor | None) -> Tensor:
        """Dense change with the parameters scaled by `strength`, the pieces by `columns`."""
        pair = self._factors(basis, params, strength, columns)
        if pair is None:
            raise SettingError(f"{self.name} states neither thin factors nor a dense change")
        return pair[0] @ pair[1]


def matrix_shape(weight_shape: Sequence[int]) -> tuple[int, int]:
    """(m, n) of a weight (m, n) or (c_out, c_in, kh, kw)."""
    m, *rest = weight_shape
    n = 1
    for d in rest:
        n *= d
    return m, n


def weighted(values: Tensor, columns: Tensor | None) -> Tensor:
    """values (r,) times the factors of the columns, where there are any."""
    return values if columns is None else values * columns.to(values)


def few(basis: Basis, columns: Tensor | None) -> Tensor | None:
    """Which entries (of r) of `columns` differ from 0, where so few do that thin factors cost less than the matrix.

    At least one, so that factors always have a rank.
    """
    if columns is None:
        return None
    (kept,) = columns.nonzero(as_tuple=True)
    kept = kept if len(kept) else kept.new_zeros(1)
    m, n = basis.shape
    return kept if 2 * len(kept) * (m + n) <= m * n else None


def angle(lost: float) -> float:
    """Degrees of the angle whose cosine is 1 - lost, exact for small ones too."""
    return math.degrees(2 * math.asin(min(1.0, math.sqrt(max(0.0, lost) / 2))))


def _check_mode(mode: str) -> None:
    if mode not in ("linear", "spectral"):
        raise SettingError(f'strength mode {mode!r} is unknown; expected "linear" or "spectral"')
