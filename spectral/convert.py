"""Files that hosts without this pack read: LoRA, exact where the change has low rank, and full-difference files.

kohya's naming, so core ComfyUI, diffusers and the webui read them: `<layer>.lora_up.weight`, `.lora_down.weight`,
`.alpha`; `<layer>.diff` for a dense change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .adapter import Adapter
from .basis import WeightSource, fetch
from .cache import BasisCache
from .change import Change, balanced, distance, norm, refactor, triples
from .errors import SettingError, SpectralError


@dataclass(frozen=True)
class Residual:
    """How far an export is from the change it stands for, per layer and in all: ||export - change|| / ||change||.

    left_out: norms whose gains the export cannot hold; the other numbers do not count them.
    """

    per_layer: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    ranks: dict[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.per_layer:
            return "no layers"
        worst = max(self.per_layer, key=self.per_layer.__getitem__)
        layers = f"{len(self.per_layer)} layers, residual {self.total:.2%} in all"
        text = f"{layers}; worst {self.per_layer[worst]:.2%} in {worst}"
        return f"{text}; without the {len(self.left_out)} norm gains, which no LoRA holds" if self.left_out else text


class Export(dict[str, Tensor]):
    """A state dict in kohya's naming; `residual` says how far it is from the adapter."""

    residual = Residual()


def to_lora(
    adapter: Adapter,
    weights: Mapping[str, WeightSource] | None = None,
    *,
    rank: int | None = None,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float16,
    cache: BasisCache | None = None,
) -> Export:
    """The adapter as a LoRA state dict in kohya's naming (alpha = rank); its `residual` is what the export lost.

    Gains of norms have no place in a LoRA: they are left out and named in `residual.left_out`.
    Additive (rank 2r) and rotation (rank r) are exact up to rounding to `dtype`; `rank` truncates them. Methods of full
    rank (svdiff, soda) need `rank`: the result is the best approximation of that rank, and its residual says how good.
    weights: {layer: weight of the base}, needed for a compact file and for full rank.
    Raises SettingError where rank or weights are needed and missing.
    """
    out = Export()
    errors, energy, per_layer, ranks = 0.0, 0.0, {}, {}
    for name, layer in adapter.layers.items():
        up, down, change = _thin(adapter, name, weights, rank, strength, cache)
        up16, down16 = up.to(dtype), down.to(dtype)
        num, den = distance((up16, down16), change) ** 2, norm(change) ** 2
        errors, energy = errors + num, energy + den
        per_layer[name], ranks[name] = (num / den) ** 0.5 if den else 0.0, up.shape[1]
        out.update(_kohya(name, up16, down16, layer.shape, dtype))
    out.residual = Residual(per_layer, (errors / energy) ** 0.5 if energy else 0.0, ranks, tuple(adapter.gains))
    return out


def to_diff(
    adapter: Adapter,
    weights: Mapping[str, WeightSource],
    *,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float16,
    cache: BasisCache | None = None,
) -> Export:
    """The adapter as a full-difference state dict (`<layer>.diff`), norms included, exact up to rounding to `dtype`.

    As large as the adapted layers of the model; for svdiff and soda the only lossless export.
    """
    out = Export()
    errors, energy, per_layer = 0.0, 0.0, {}
    for name, layer in adapter.layers.items():
        change = adapter.delta(name, _fetch(weights, name), strength, cache=cache)
        stored = change.reshape(layer.shape).to(dtype).contiguous()
        num = float((stored.double() - change.reshape(layer.shape).double()).square().sum())
        den = float(change.double().square().sum())
        errors, energy = errors + num, energy + den
        per_layer[name] = (num / den) ** 0.5 if den else 0.0
        out[f"{name}.diff"] = stored
    out |= {f"{name}.diff": gain.change(strength).to(dtype).cpu() for name, gain in adapter.gains.items()}
    out.residual = Residual(per_layer, (errors / energy) ** 0.5 if energy else 0.0)
    return out


def _thin(
    adapter: Adapter,
    name: str,
    weights: Mapping[str, WeightSource] | None,
    rank: int | None,
    strength: float,
    cache: BasisCache | None,
) -> tuple[Tensor, Tensor, Change]:
    """Export factors of one layer in fp64, and the change they stand for."""
    weight = None if weights is None else _fetch(weights, name)
    pair = adapter.factors(name, weight, strength, cache=cache)
    if pair is not None:
        up, down = (t.double() for t in pair)
        return *refactor(up, down, rank), (up, down)
    if rank is None:
        raise SettingError(
            f"{adapter.method.name} changes every direction of a weight, so no LoRA holds it exactly; give a rank for "
            "the best approximation, or export a difference file (convert --to diff)"
        )
    if weight is None:
        raise SettingError(f"{adapter.method.name} needs the base model's weights for this export; give the base")
    change = adapter.delta(name, weight, strength, cache=cache).reshape(weight.shape[0], -1).double()
    return *balanced(*triples(change, rank), rank), change


def _fetch(weights: Mapping[str, WeightSource], name: str) -> Tensor:
    if name not in weights:
        raise SpectralError(f"the base has no weight for layer {name}; it is not the model this adapter was trained on")
    return fetch(weights[name])


def _kohya(name: str, up: Tensor, down: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    rank = up.shape[1]
    if len(shape) == 4:
        down, up = down.reshape(rank, *shape[1:]), up[:, :, None, None]
    return {
        f"{name}.lora_up.weight": up.contiguous(),
        f"{name}.lora_down.weight": down.contiguous(),
        f"{name}.alpha": torch.tensor(float(rank), dtype=dtype),
    }
