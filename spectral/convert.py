"""Files that hosts without this pack read: LoRA, exact where the change has low rank, and full-difference files.

kohya's naming, so core ComfyUI, diffusers and the webui read them: `<layer>.lora_up.weight`, `.lora_down.weight`,
`.alpha`; `<layer>.diff` for a dense change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .adapter import Adapter
from .basis import Progress, WeightSource, fetch
from .cache import BasisCache
from .change import Change, balanced, dense, distance, norm, scaled, triples
from .errors import Cancelled, SettingError, SpectralError
from .linalg import leading
from .source import Source, as_source


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
    """A state dict in kohya's naming; `residual` says how far it is from its source."""

    residual = Residual()


def to_lora(
    source: Source | Adapter,
    weights: Mapping[str, WeightSource] | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float16,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Export:
    """Changes as a LoRA state dict in kohya's naming (alpha = rank); its `residual` is what the export lost.

    Gains of norms have no place in a LoRA: they are left out and named in `residual.left_out`.
    Changes of low rank, such as those of additive (rank 2r), rotation (rank r) and LoRA files, are exact up to rounding
    to `dtype`. rank: at most so many directions in every layer, the best ones. energy: in every layer the fewest
    directions that hold this share of ||change||^2, such as 0.99. Changes of full rank (svdiff, soda, LoHa) need one of
    them. weights: {layer: weight of the base}, for the layers that need theirs (`Source.needs_weight`).
    Raises SettingError where a rank or weights are needed and missing, Cancelled when cancelled() turns true.
    """
    _check_limits(rank, energy)
    source, out, tally = as_source(source), Export(), _Tally()
    for i, (name, shape) in enumerate(source.shapes.items(), 1):
        _continue(cancelled)
        change = scaled(_change(source, name, weights, cache), strength)
        up, down = (t.to(dtype) for t in _cut(source, name, change, rank, energy))
        tally.add(name, distance((up, down), change), norm(change), up.shape[1])
        out.update(_kohya(name, up.cpu(), down.cpu(), shape, dtype))
        if progress is not None:
            progress(i, len(source.shapes), name)
    out.residual = tally.residual(tuple(source.gains))
    return out


def to_diff(
    source: Source | Adapter,
    weights: Mapping[str, WeightSource] | None = None,
    *,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float16,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Export:
    """Changes as a full-difference state dict (`<layer>.diff`), norms included, exact up to rounding to `dtype`.

    As large as the changed layers of the model; for svdiff and soda the only lossless export. Raises SettingError
    where weights are needed and missing, Cancelled when cancelled() turns true.
    """
    source, out, tally = as_source(source), Export(), _Tally()
    for i, (name, shape) in enumerate(source.shapes.items(), 1):
        _continue(cancelled)
        change = dense(scaled(_change(source, name, weights, cache), strength))
        stored = change.to(dtype)
        tally.add(name, distance(stored, change), norm(change))
        out[f"{name}.diff"] = stored.reshape(shape).cpu().contiguous()
        if progress is not None:
            progress(i, len(source.shapes), name)
    out |= {f"{gain}.diff": (strength * source.gain(gain)).to(dtype).cpu() for gain in source.gains}
    out.residual = tally.residual(())
    return out


class _Tally:
    """Sums up what an export loses."""

    def __init__(self) -> None:
        self._errors = self._energy = 0.0
        self._per_layer: dict[str, float] = {}
        self._ranks: dict[str, int] = {}

    def add(self, layer: str, error: float, size: float, rank: int | None = None) -> None:
        self._errors, self._energy = self._errors + error**2, self._energy + size**2
        self._per_layer[layer] = error / size if size else 0.0
        if rank is not None:
            self._ranks[layer] = rank

    def residual(self, left_out: tuple[str, ...]) -> Residual:
        total = (self._errors / self._energy) ** 0.5 if self._energy else 0.0
        return Residual(self._per_layer, total, self._ranks, left_out)


def _check_limits(rank: int | None, energy: float | None) -> None:
    if rank is not None and rank < 1:
        raise SettingError(f"found rank {rank}; expected at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise SettingError(f"found energy {energy}; expected a share above 0, up to 1, such as 0.99")


def _continue(cancelled: Callable[[], bool] | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled("the export was cancelled; nothing was written")


def _cut(source: Source, layer: str, change: Change, rank: int | None, energy: float | None) -> tuple[Tensor, Tensor]:
    """Export factors of one layer in fp64: balanced, of the least rank that the wishes allow."""
    if isinstance(change, Tensor):
        if rank is None and energy is None:
            raise SettingError(
                f"{source.name}, layer {layer}: {source.kind} changes every direction of a weight, so no LoRA holds it "
                "exactly; give a rank (or an energy) for the best approximation, or export a difference file "
                "(convert --to diff)"
            )
        if energy is not None:
            return balanced(*_enough(change, energy, rank), min(change.shape))
        return balanced(*triples(change, rank), rank)
    u, s, v = triples(change)
    kept = len(s) if energy is None else rank_of_energy(s.square(), float(s.square().sum()), energy)
    return balanced(u, s, v, max(1, kept if rank is None else min(rank, kept)))


def _enough(change: Tensor, energy: float, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The fewest leading triples, fp64, of a dense change that hold the share `energy`, at most `rank`."""
    a = change.double()
    squares = torch.linalg.eigvalsh(a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a).flip(0).clamp_min(0)
    kept = max(1, rank_of_energy(squares, float(squares.sum()), energy))
    u, s, v = leading(change.float(), kept if rank is None else min(kept, rank))
    return u.double(), s.double(), v.double()


def rank_of_energy(squares: Tensor, whole: float, energy: float) -> int:
    """How many of the squared singular values, descending, it takes to hold the share `energy` of `whole`."""
    if not whole:
        return 0
    held = squares.double().cumsum(0) / whole
    # Rounding may leave the last sum a little below 1.
    return min(len(squares), int((held < energy * (1 - 1e-12)).sum()) + 1)


def _change(source: Source, name: str, weights: Mapping[str, WeightSource] | None, cache: BasisCache | None) -> Change:
    if not source.needs_weight(name):
        return source.change(name, cache=cache)
    if weights is None:
        raise SettingError(
            f"{source.name}: the changes of this {source.kind} can only be known with the base model's weights; "
            "give the base"
        )
    if name not in weights:
        raise SpectralError(f"the base has no weight for layer {name}; it is not the model this adapter was trained on")
    return source.change(name, fetch(weights[name]), cache)


def _kohya(name: str, up: Tensor, down: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    rank = up.shape[1]
    if len(shape) == 4:
        down, up = down.reshape(rank, *shape[1:]), up[:, :, None, None]
    return {
        f"{name}.lora_up.weight": up.contiguous(),
        f"{name}.lora_down.weight": down.contiguous(),
        f"{name}.alpha": torch.tensor(float(rank), dtype=dtype),
    }
