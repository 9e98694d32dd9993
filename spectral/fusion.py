"""Fusion: one source of weight changes out of several. `mixture` says what each mode means.

Where the algebra allows, the result is an adapter of the ingredients' own method, which can be saved as one small file;
else it is the changes themselves, worked out layer by layer when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .adapter import Adapter, MatchReport, OnMismatch
from .basis import Progress, WeightSource, fetch
from .cache import BasisCache
from .change import Change, scaled, total
from .errors import Cancelled, SettingError, UnknownLayerError
from .fusion_check import FusionReport, verify
from .fusion_facts import fused_metadata
from .fusion_native import merged, weights_needed
from .matching import check_fits
from .methods.base import Unmergeable
from .mixture import MODES, FusionMode, Ingredient, channels_of, factors, shapes_of
from .moments import REGULARISER, least_squares
from .source import AdapterSource, Source

Moments = Mapping[str, Sequence[Tensor]]


class Fused(Source):
    """Several sources as one: sum_i l_i D_i, or for a layer the change that is `solved` for it (of gradient fusion).

    ingredients: with their effective weights l_i. why: the reason why this is no single adapter.
    """

    native: Adapter | None = None

    def __init__(
        self,
        ingredients: Sequence[Ingredient],
        mode: FusionMode,
        *,
        name: str,
        why: str,
        solved: Mapping[str, Change] | None = None,
    ):
        sources = [one.source for one in ingredients]
        self.ingredients, self.mode, self.name, self.why = tuple(ingredients), mode, name, why
        self.solved, self.kind = dict(solved or {}), f"fusion ({mode})"
        live = [one.source for one in ingredients if one.weight]
        self.shapes, self.gains = shapes_of(live), channels_of(live)
        self.metadata = fused_metadata(sources, mode, name)
        self.left_out = tuple(f"{source.name}: {key}" for source in sources for key in source.left_out)

    def change(self, layer: str, weight: Tensor | None = None, cache: BasisCache | None = None) -> Change:
        members = self._members(layer)
        if weight is not None:
            check_fits(self.name, layer, self.shapes[layer], weight)
        if layer in self.solved:
            return _on("cpu" if weight is None else weight.device, self.solved[layer])
        return total([scaled(one.source.change(layer, weight, cache), one.weight) for one in members])

    def gain(self, norm: str) -> Tensor:
        own = [one for one in self.ingredients if one.weight and norm in one.source.gains]
        shifts = [one.weight * one.source.gain(norm) for one in own]
        return torch.stack(shifts).sum(0) if shifts else super().gain(norm)

    def needs_weight(self, layer: str) -> bool:
        return layer not in self.solved and any(one.source.needs_weight(layer) for one in self._members(layer))

    def columns(self, layer: str) -> tuple[int, ...] | None:
        found = [one.source.columns(layer) for one in self._members(layer)]
        return (
            None
            if layer in self.solved or None in found
            else tuple(sorted({c for columns in found for c in columns or ()}))
        )

    def check(
        self,
        weights: Mapping[str, WeightSource],
        *,
        on_mismatch: OnMismatch = "refuse",
        cache: BasisCache | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        model_name: str = "this model",
    ) -> MatchReport | None:
        """Every ingredient is judged; the report of the one that fits worst, or None where all fit by shape alone.

        An adapter with frames is applied as trained, so one that depends on its base counts as worse.
        """
        reports = [
            one.source.check(
                weights,
                on_mismatch=on_mismatch,
                cache=cache,
                progress=progress,
                cancelled=cancelled,
                model_name=model_name,
            )
            for one in self.ingredients
            if one.weight
        ]
        judged = [report for report in reports if report is not None]
        return min(judged, key=lambda report: (report.error is None, report.match or 0.0), default=None)

    @property
    def text(self) -> str:
        """What was fused, why it is no single adapter, and what of the files changes no weight."""
        said = f"{_what(self.ingredients, self.mode, self.shapes)}, as changes of weights: {self.why}."
        if not self.left_out:
            return said
        first, count = self.left_out[0], len(self.left_out)
        return f"{said} Left out, because no weight changes: {count:,} tensor{'s' * (count != 1)}, such as {first}."

    def _members(self, layer: str) -> list[Ingredient]:
        """The ingredients that change this layer."""
        if layer not in self.shapes:
            raise UnknownLayerError(f"{self.name} has no layer {layer!r}; it has {len(self.shapes)}")
        return [one for one in self.ingredients if one.weight and layer in one.source.shapes]


class FusedAdapter(AdapterSource):
    """A fusion that is one adapter of the ingredients' own method."""

    why = ""

    def __init__(self, adapter: Adapter, name: str, mode: FusionMode, ingredients: Sequence[Ingredient]):
        super().__init__(adapter, name)
        self.native, self.mode, self.ingredients = adapter, mode, tuple(ingredients)

    @property
    def text(self) -> str:
        """One sentence: what was fused, and into what."""
        what = _what(self.ingredients, self.mode, self.shapes)
        return f"{what}, as one {self.kind} adapter, columns {self.native.method.columns.text}."


def fuse(
    ingredients: Sequence[Ingredient],
    mode: FusionMode = "sum",
    *,
    weights: Mapping[str, WeightSource] | None = None,
    cache: BasisCache | None = None,
    moments: Moments | None = None,
    eps: float = REGULARISER,
    name: str = "fused",
    on_mismatch: OnMismatch = "refuse",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Fused | FusedAdapter:
    """The ingredients as one source; its `native` is an Adapter where it is one, its `why` says why not otherwise.

    weights: {layer: the base's untouched weight}. With them every source that needs its base is judged first, and
    adapters without frames can be merged too; without them the result may need weights later, as its ingredients do.
    moments: for "gradient", {layer: Z Z^T (n, n) for each ingredient} (see `moments.by_layer`); solved here and not
    kept. eps: of the mean eigenvalue of their sum. "sum", "mean", "interpolate" and "gradient" fit all sources; the
    other modes need adapters of one method and one basis. Raises SettingError where a mode does not fit, naming the
    adapter and what to choose, WrongBaseError where an ingredient does not belong to the weights, Cancelled.
    """
    effective = [Ingredient(one.source, factor) for one, factor in zip(ingredients, factors(ingredients, mode))]
    sources = [one.source for one in effective]
    shapes_of(sources), channels_of(sources)
    _check_moments(mode, moments, effective)
    if weights is not None:
        _judge(effective, weights, on_mismatch, cache, cancelled)
    if moments is not None:
        solved = _solve(effective, moments, eps, weights, cache, progress, cancelled)
        return Fused(effective, mode, name=name, why="it mixes the directions of all inputs", solved=solved)
    try:
        adapter = merged(effective, mode, weights=weights, cache=cache, progress=progress, cancelled=cancelled)
    except Unmergeable as reason:
        if mode in ("paper", "rotate", "shift"):
            raise SettingError(f"{mode}: {reason}; choose sum, mean or interpolate") from reason
        return Fused(effective, mode, name=name, why=str(reason))
    adapter.metadata = fused_metadata(sources, mode, name)
    return FusedAdapter(adapter, name, mode, effective)


def _solve(
    ingredients: Sequence[Ingredient],
    moments: Moments,
    eps: float,
    weights: Mapping[str, WeightSource] | None,
    cache: BasisCache | None,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> dict[str, Change]:
    """{layer: the least-squares change} of every layer that has moments; fp32, on the CPU."""
    live = {i: one for i, one in enumerate(ingredients) if one.weight}
    layers = [layer for layer in shapes_of([one.source for one in live.values()]) if layer in moments]
    solved: dict[str, Change] = {}
    for done, layer in enumerate(layers, start=1):
        if cancelled is not None and cancelled():
            raise Cancelled("fusing was cancelled; nothing was changed")
        weight = fetch(weights[layer]) if weights is not None and layer in weights else None
        members = {i: one for i, one in live.items() if layer in one.source.shapes}
        changes = [scaled(one.source.change(layer, weight, cache), one.weight) for one in members.values()]
        found, together = moments[layer], sum(moments[layer][i] for i in live)
        solved[layer] = _on("cpu", least_squares(changes, [found[i] for i in members], together, eps))
        if progress is not None:
            progress(done, len(layers), layer)
    return solved


def _on(device: torch.device | str, change: Change) -> Change:
    return change.to(device) if isinstance(change, Tensor) else (change[0].to(device), change[1].to(device))


def _what(ingredients: Sequence[Ingredient], mode: FusionMode, shapes: Mapping[str, tuple[int, ...]]) -> str:
    parts = ", ".join(f"{one.source.name} x {one.weight:.4g}" for one in ingredients)
    return f"{mode} of {parts}: {len(shapes):,} layer{'s' * (len(shapes) != 1)}"


def _judge(
    ingredients: Sequence[Ingredient],
    weights: Mapping[str, WeightSource],
    on_mismatch: OnMismatch,
    cache: BasisCache | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    """Judge the base of every source that cannot do without it. Raises WrongBaseError."""
    for one in ingredients:
        if one.weight and weights_needed(one.source):
            one.source.check(weights, on_mismatch=on_mismatch, cache=cache, cancelled=cancelled)


def _check_moments(mode: FusionMode, moments: Moments | None, ingredients: Sequence[Ingredient]) -> None:
    if (mode == "gradient") != (moments is not None):
        found = "none" if moments is None else f"some for mode {mode}"
        raise SettingError(
            f"found moments: {found}; expected them for mode gradient alone; record them from a sampling run with "
            "moments.Recorder, or choose sum"
        )
    for layer, found in (moments or {}).items():
        if len(found) != len(ingredients) or any(m.ndim != 2 or m.shape != found[0].shape for m in found):
            raise SettingError(
                f"moments of layer {layer}: found {len(found)} matrices of shapes {[tuple(m.shape) for m in found]}, "
                f"expected one (n, n) for each of the {len(ingredients)} adapters"
            )
        if not all(bool(torch.isfinite(m).all()) for m in found):
            raise SettingError(f"moments of layer {layer}: found NaN or infinity; the sampling run went wrong")


__all__ = [
    "MODES",
    "Fused",
    "FusedAdapter",
    "FusionMode",
    "FusionReport",
    "Ingredient",
    "Moments",
    "fuse",
    "verify",
]
