"""The optimiser for kohya's sd-scripts that steps SODA's orthogonal factors as well as ordinary parameters.

`--optimizer_type spectral_adapters.trainer.kohya_optimizer.SpectralOptimizer`: sd-scripts has one optimiser for all
parameters, so this one holds two and gives each group to the one of its `kind`. The network module marks its groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from ..spectral.errors import SettingError
from ..spectral.stiefel import StiefelAdam

_HALVES = (torch.float16, torch.bfloat16)
_MASTER = "master"
_OURS = ("params", "kind", "name")  # of a group, and no business of the optimiser that steps it


class SpectralOptimizer(Optimizer):
    """AdamW for groups of kind "adamw" (and those without one), StiefelAdam for groups of kind "stiefel".

    betas, eps and weight_decay are AdamW's; a group's own weight decay wins. stiefel_betas, stiefel_eps and adaptive
    are StiefelAdam's. clip: the largest norm of the gradient of each kind by itself, to be used with
    `--max_grad_norm 0`, which clips both together; None leaves it. Parameters in half precision are stepped as fp32
    copies, which are part of the state. Raises SettingError for an unknown kind and settings out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        stiefel_betas: tuple[float, float] = (0.9, 0.999),
        stiefel_eps: float = 1e-5,
        adaptive: bool = True,
        clip: float | None = None,
    ):
        if clip is not None and not clip > 0:
            raise SettingError(f"SpectralOptimizer: found clip={clip}; expected a positive number, or None")
        self._adamw = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        self._stiefel = {"betas": stiefel_betas, "eps": stiefel_eps, "adaptive": adaptive}
        self._clip = clip
        self._steppers: list[Optimizer] = []  # one per group
        self._masters: dict[Tensor, Tensor] = {}
        super().__init__(params, {"lr": lr, "kind": "adamw"})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        settings = {"params": group["params"], **_settings(group)}
        if group["kind"] == "adamw":
            self._steppers.append(AdamW([settings], **self._adamw))
        elif group["kind"] == "stiefel":
            self._steppers.append(StiefelAdam([settings], **self._stiefel))
        else:
            raise SettingError(f"SpectralOptimizer: found a group of kind {group['kind']!r}; expected adamw or stiefel")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._share()
        if self._clip is not None:
            self._clip_kinds(self._clip)
        for stepper in self._steppers:
            stepper.step()
        for p, master in self._masters.items():
            p.copy_(master)
            master.grad = None
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's: by the place of each parameter what its own optimiser keeps, and its fp32 copy."""
        for p, stepper in self._all():
            if state := stepper.state.get(self._stepped(p)):
                self.state[p] = {**state, **({_MASTER: self._masters[p]} if p in self._masters else {})}
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state, exactly. Raises ValueError, as torch's, for groups of other sizes."""
        super().load_state_dict(state_dict)
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        for (p, stepper), place in zip(self._all(), places):
            # torch casts what it loads to the parameter's dtype, which would round the state of one in half precision.
            state = {k: _placed(k, v, p) for k, v in state_dict["state"].get(place, {}).items()}
            stepped = self._stepped(p)
            if (master := state.pop(_MASTER, None)) is not None and stepped is not p:
                stepped.copy_(master)
            if state:
                stepper.state[stepped] = state

    def _all(self) -> Iterator[tuple[Tensor, Optimizer]]:
        for group, stepper in zip(self.param_groups, self._steppers):
            yield from ((p, stepper) for p in group["params"])

    def _share(self) -> None:
        """Give each optimiser its group's settings of this step, and what it is to step."""
        for group, stepper in zip(self.param_groups, self._steppers):
            stepped = [self._stepped(p) for p in group["params"]]
            for p, master in zip(group["params"], stepped):
                if master is not p:
                    master.grad = None if p.grad is None else p.grad.float()
            stepper.param_groups[0].update(_settings(group), params=stepped)

    def _stepped(self, p: Tensor) -> Tensor:
        """The parameter itself, or its fp32 copy; the network may have been cast after this was made."""
        if p.dtype not in _HALVES:
            return p
        if p not in self._masters:
            self._masters[p] = p.detach().float()
        return self._masters[p]

    def _clip_kinds(self, most: float) -> None:
        for kind in ("adamw", "stiefel"):
            stepped = [
                self._stepped(p) for group in self.param_groups if group["kind"] == kind for p in group["params"]
            ]
            if stepped:
                clip_grad_norm_(stepped, most)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in _OURS}


def _placed(name: str, value: Any, p: Tensor) -> Any:
    """A value of the state where the parameter is; AdamW counts its steps on the CPU."""
    return value.to(p.device, copy=True) if isinstance(value, Tensor) and name != "step" else value
