"""The check of a fusion: every layer against an independent computation of what its mode means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .basis import Progress, WeightSource, fetch
from .cache import BasisCache
from .change import Change, dense, distance, norm, scaled, total
from .errors import Cancelled, SettingError
from .fusion_native import adapter_of, merge_target
from .methods.base import Unmergeable
from .mixture import FusionMode, Ingredient, factors
from .moments import REGULARISER
from .source import AdapterSource, Source
from .threads import single_threaded


@dataclass(frozen=True)
class FusionReport:
    """How far a fusion is from what it should be: per layer ||found - expected|| / ||expected||, and in all."""

    per_layer: dict[str, float] = field(default_factory=dict)
    total: float = 0.0

    @property
    def largest(self) -> float:
        """The largest error of a layer; 0 without layers."""
        return max(self.per_layer.values(), default=0.0)

    @property
    def where(self) -> str:
        """The layer with the largest error, or ""."""
        return max(self.per_layer, key=self.per_layer.__getitem__, default="")

    @property
    def text(self) -> str:
        """One line."""
        if not self.per_layer:
            return "no layers to check"
        count = f"{len(self.per_layer):,} layer{'s' * (len(self.per_layer) != 1)}"
        return f"{count} checked in fp64: error {self.total:.1e} in all, largest {self.largest:.1e} in {self.where}"


def verify(
    made: Source,
    ingredients: Sequence[Ingredient],
    mode: FusionMode = "sum",
    weights: Mapping[str, WeightSource] | None = None,
    *,
    moments: Mapping[str, Sequence[Tensor]] | None = None,
    eps: float = REGULARISER,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> FusionReport:
    """Compare `made`, a fusion or the file it was saved to, layer by layer with what the mode says, computed in fp64.

    ingredients: as they were given to `fuse`. Changes are added densely or by their factors in fp64; what is merged in
    parameters is compared with the mode's formula on the dense matrices. A least-squares layer is judged by its normal
    equations. Raises WrongBaseError where a weight is needed and missing, Cancelled.
    """
    numbered = enumerate(zip(ingredients, factors(ingredients, mode)))
    effective = {i: Ingredient(one.source, factor) for i, (one, factor) in numbered if factor}
    layers = list(dict.fromkeys(layer for one in effective.values() for layer in one.source.shapes))
    if missing := [layer for layer in layers if layer not in made.shapes]:
        raise SettingError(f"{made.name} lacks layer {missing[0]!r}, which its ingredients have; fuse them again")
    per_layer: dict[str, float] = {}
    errors = energy = 0.0
    for done, layer in enumerate(layers, start=1):
        if cancelled is not None and cancelled():
            raise Cancelled("checking the fusion was cancelled; nothing was changed")
        weight = fetch(weights[layer]) if weights is not None and layer in weights else None
        members = {i: one for i, one in effective.items() if layer in one.source.shapes}
        if (moments or {}).get(layer) is None:
            with single_threaded(not any(one.source.needs_weight(layer) for one in members.values())):
                error, whole = _against_formula(layer, made, list(members.values()), mode, weight, cache)
        else:
            own = [(one, moments[layer][i]) for i, one in members.items()]
            together = sum(moments[layer][i] for i in effective)
            error, whole = _against_normal_equations(layer, made, own, together, eps, weight, cache)
        errors, energy = errors + error**2, energy + whole**2
        per_layer[layer] = _relative(error, whole)
        if progress is not None:
            progress(done, len(layers), layer)
    return FusionReport(per_layer, _relative(errors**0.5, energy**0.5))


def _relative(error: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if error == 0 else float("inf")
    return error / whole


def _against_formula(
    layer: str,
    made: Source,
    parts: Sequence[Ingredient],
    mode: FusionMode,
    weight: Tensor | None,
    cache: BasisCache | None,
) -> tuple[float, float]:
    """||found - expected|| and ||expected|| of a layer whose change its mode states."""
    if weight is None and _is_passed_on(made, layer, parts):
        return 0.0, 0.0
    if mode in ("paper", "rotate", "shift") or (mode == "interpolate" and isinstance(made, AdapterSource)):
        wanted = merge_target(layer, parts, mode, weight, cache)
    else:
        wanted = total([scaled(_exact(one.source.change(layer, weight, cache)), one.weight) for one in parts])
    return distance(_exact(made.change(layer, weight, cache)), wanted), norm(wanted)


def _is_passed_on(made: Source, layer: str, parts: Sequence[Ingredient]) -> bool:
    """Whether a compact layer is one ingredient's own, bit for bit, so that no weight is needed to compare them."""
    if len(parts) != 1 or parts[0].weight != 1 or not isinstance(made, AdapterSource) or not made.needs_weight(layer):
        return False
    try:
        own = adapter_of(parts[0].source).layers[layer]
    except Unmergeable:
        return False
    found = made.adapter.layers[layer]
    if found.evidence is not own.evidence or found.params.keys() != own.params.keys():
        return False
    return all(torch.equal(found.params[name], param) for name, param in own.params.items())


def _against_normal_equations(
    layer: str,
    made: Source,
    parts: Sequence[tuple[Ingredient, Tensor]],
    together: Tensor,
    eps: float,
    weight: Tensor | None,
    cache: BasisCache | None,
) -> tuple[float, float]:
    """||X (M + e I) - sum_i l_i D_i M_i|| and ||sum_i l_i D_i M_i||; without records those of the plain sum."""
    found = dense(_exact(made.change(layer, weight, cache)))
    changes = [(dense(_exact(one.source.change(layer, weight, cache))) * one.weight, own) for one, own in parts]
    gram = together.double()
    shift = eps * float(gram.trace()) / len(gram)
    if shift == 0:
        wanted = sum(change for change, _ in changes)
        return float((found - wanted).norm()), float(wanted.norm())
    wanted = sum(change @ own.double() for change, own in changes)
    image = found @ (gram + shift * torch.eye(len(gram), dtype=gram.dtype))
    return float((image - wanted).norm()), float(wanted.norm())


def _exact(change: Change) -> Change:
    """In fp64, on the CPU: not every accelerator has it."""
    if isinstance(change, Tensor):
        return change.cpu().double()
    return change[0].cpu().double(), change[1].cpu().double()
