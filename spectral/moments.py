"""Second moments of what goes into a layer, and the least-squares fusion that they make possible.

Gradient Fusion (Gu et al., Mix-of-Show, arXiv 2305.18292) looks for the weight whose outputs on every concept's inputs
are those of the concept's own weight: argmin_X sum_i ||(W + D_i) Z_i - X Z_i||^2, Z_i (n, samples). That is ordinary
least squares, so no optimiser is needed:  X = W + (sum_i D_i M_i) (sum_i M_i + e I)^-1,  M_i = Z_i Z_i^T / samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .change import Change, size, total
from .errors import SettingError

REGULARISER = 1e-5  # e, in mean eigenvalues of sum_i M_i: directions in which no concept has inputs stay the base's
_MOST_BYTES = 1 << 30


class Recorder:
    """While entered, sums z z^T over all inputs z that the modules are given.

    modules: {layer: nn.Linear or nn.Conv2d}; a convolution's inputs are its unfolded patches (c_in kh kw). most_bytes:
    of all matrices (n, n) together, fp32 on the CPU; the smallest come first, and `left_out` names the layers that did
    not fit, or of a kind that has no such matrix (grouped or non-zero padded convolutions, other modules).
    """

    def __init__(self, modules: Mapping[str, nn.Module], *, most_bytes: int = _MOST_BYTES):
        sides = {layer: _inputs(module) for layer, module in modules.items()}
        chosen, room = set(), most_bytes
        for layer, n in sorted(sides.items(), key=lambda item: item[1]):
            if n and 4 * n * n <= room:
                chosen.add(layer)
                room -= 4 * n * n
        self._modules = {layer: module for layer, module in modules.items() if layer in chosen}
        self.left_out = tuple(layer for layer in modules if layer not in chosen)
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Recorder:
        for layer, module in self._modules.items():
            self._hooks.append(module.register_forward_pre_hook(partial(self._note, layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    @property
    def moments(self) -> dict[str, Tensor]:
        """{layer: mean of z z^T (n, n), fp32 on the CPU}; layers that were never run are absent."""
        return {layer: found / self._rows[layer] for layer, found in self._sums.items()}

    def _note(self, layer: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            for rows in _rows(module, inputs[0].detach()):
                rows = rows.float()
                added = (rows.T @ rows).cpu()
                self._sums[layer] = added if layer not in self._sums else self._sums[layer].add_(added)
                self._rows[layer] = self._rows.get(layer, 0) + rows.shape[0]


def _inputs(module: nn.Module) -> int:
    """n of the module's flattened weight, or 0 where its inputs are no rows of n numbers."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if not isinstance(module, nn.Conv2d) or module.groups > 1 or module.padding_mode != "zeros":
        return 0
    if isinstance(module.padding, str):  # "same" pads unevenly, which unfolding cannot
        return 0
    return module.in_channels * module.kernel_size[0] * module.kernel_size[1]


def _rows(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The inputs as matrices (rows, n); of a convolution one per picture, because patches take kh kw times the room."""
    if isinstance(module, nn.Linear):
        return [x.reshape(-1, x.shape[-1])]
    unfold = partial(
        F.unfold,
        kernel_size=module.kernel_size,
        dilation=module.dilation,
        padding=module.padding,
        stride=module.stride,
    )
    return [unfold(one[None])[0].T for one in (x if x.ndim == 4 else x[None])]


def by_layer(recordings: Sequence[Mapping[str, Tensor]]) -> dict[str, tuple[Tensor, ...]]:
    """{layer: a matrix for each recording}, of the layers that all recordings have: what `fuse` reads."""
    if not recordings:
        return {}
    shared = [layer for layer in recordings[0] if all(layer in one for one in recordings)]
    return {layer: tuple(one[layer] for one in recordings) for layer in shared}


def least_squares(
    changes: Sequence[Change], moments: Sequence[Tensor], together: Tensor, eps: float = REGULARISER
) -> Change:
    """(sum_i D_i M_i) (M + e I)^-1 for changes D_i (m, n), their moments M_i and M (n, n) of all concepts; fp32.

    e = eps tr(M) / n. Solved in fp64; thin changes give a thin one. Where nothing was recorded (M = 0) the plain sum.
    Raises SettingError where the sizes do not agree, or eps is not above 0.
    """
    n = size(changes[0])[1]
    if any(found.shape != (n, n) for found in (*moments, together)):
        raise SettingError(f"found moments of shape {tuple(together.shape)} for a weight with {n} inputs; record again")
    if not eps > 0:
        raise SettingError(f"found eps={eps}, expected a small positive number such as {REGULARISER}")
    gram = together.double()
    shift = eps * float(gram.trace()) / n
    if shift == 0:
        return total(changes)
    device = changes[0].device if isinstance(changes[0], Tensor) else changes[0][0].device
    mixed = total([_times(change, found.double()) for change, found in zip(changes, moments)])
    solve = _solver(gram, shift)
    if isinstance(mixed, Tensor):
        return solve(mixed.T).T.float().to(device)
    return mixed[0].float().to(device), solve(mixed[1].T).T.float().to(device)


def _times(change: Change, moments: Tensor) -> Change:
    """D M in fp64 on the CPU, thin where D is."""
    if isinstance(change, Tensor):
        return change.cpu().double() @ moments
    return change[0].cpu().double(), change[1].cpu().double() @ moments


def _solver(gram: Tensor, shift: float) -> Callable[[Tensor], Tensor]:
    """b (n, r) -> (M + shift I)^-1 b, with M's negative eigenvalues, which are rounding, taken as 0."""
    factor, failed = torch.linalg.cholesky_ex(gram + shift * torch.eye(len(gram), dtype=gram.dtype))
    if not int(failed):
        return lambda b: torch.cholesky_solve(b, factor)
    lam, q = torch.linalg.eigh(gram)
    inverse = 1 / (lam.clamp_min(0) + shift)
    return lambda b: q @ (inverse[:, None] * (q.T @ b))
