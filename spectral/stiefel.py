"""Adam and momentum on the orthogonal group, for the Kronecker factors of SODA.

For X (d, d) orthogonal with gradient G: the Riemannian gradient in the canonical metric is X A, A = X^T G - G^T X,
skew. Moments are kept of A, which lives in one vector space at every X, so nothing needs transporting:
    Y <- b1 Y + (1 - b1) A,  P <- b2 P + (1 - b2) A^2,  H = Y^ / (sqrt(P^) + eps)  (skew),  X <- X cayley(-lr H / 2).
Source: Kong, Wang and Tao, arXiv 2205.14173; the Cayley retraction replaces their Euler step with Newton iterations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from .errors import SettingError
from .linalg import cayley


class StiefelAdam(Optimizer):
    """Optimiser for square orthogonal matrices (d, d); parameters of one size are stepped as one batch.

    lr: step along the geodesic, in radians per entry for adaptive=True. betas: decay of the moments.
    adaptive=False leaves the division out: momentum on the orthogonal group. eps: 1e-5, the value that the authors'
    code uses in effect. No weight decay: decaying an orthogonal matrix leaves the group.
    Cost per step and size: one batched solve and four batched products; no host synchronisation.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
        adaptive: bool = True,
    ):
        if lr < 0 or eps <= 0 or not all(0 <= b < 1 for b in betas):
            found = f"lr={lr}, eps={eps}, betas={betas}"
            raise SettingError(f"StiefelAdam: found {found}; expected lr >= 0, eps > 0, 0 <= beta < 1")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "adaptive": adaptive})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2 or p.shape[0] != p.shape[1]:
                    raise SettingError(f"StiefelAdam steps square matrices; found a parameter {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            batches: dict[tuple, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    batches[p.shape[0], p.device, self._begin(p, group)].append(p)
            for (_, _, t), batch in batches.items():
                self._step_batch(batch, t, group)
        return loss

    def _begin(self, p: Tensor, group: dict) -> int:
        """Count the step of p, creating its state at the first."""
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
            if group["adaptive"]:
                state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
        state["step"] += 1
        return state["step"]

    def _step_batch(self, batch: list[Tensor], t: int, group: dict) -> None:
        beta1, beta2 = group["betas"]
        states = [self.state[p] for p in batch]
        x = torch.stack([p.float() for p in batch])
        g = torch.stack([p.grad.float() for p in batch])
        a = x.mT @ g
        a = a - a.mT
        y = torch.lerp(torch.stack([s["exp_avg"] for s in states]), a, 1 - beta1)
        h = y / (1 - beta1**t)
        for state, new in zip(states, y):
            state["exp_avg"].copy_(new)
        if group["adaptive"]:
            p2 = torch.lerp(torch.stack([s["exp_avg_sq"] for s in states]), a.square(), 1 - beta2)
            h = h / ((p2 / (1 - beta2**t)).sqrt() + group["eps"])
            for state, new in zip(states, p2):
                state["exp_avg_sq"].copy_(new)
        x = polish(x @ cayley(-0.5 * group["lr"] * h))
        for p, new in zip(batch, x):
            p.copy_(new)


def polish(x: Tensor) -> Tensor:
    """One Newton-Schulz step towards the nearest orthogonal matrix (..., d, d): undoes the drift of rounding."""
    return 1.5 * x - 0.5 * x @ (x.mT @ x)
