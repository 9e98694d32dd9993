"""Bake an adapter, or whatever else changes weights, into a module."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from .adapter import Adapter, LayerMatch, MatchReport, check_layers
from .cache import BasisCache
from .change import Change, dense, scaled
from .errors import SettingError, WrongBaseError
from .matching import check_fits
from .methods import Mode
from .names import TEXT_PREFIXES, UNET_PREFIX, layer_names, norm_names
from .source import AdapterSource, Source

# Longest first: "lora_te_" is no prefix of "lora_te1_", but "" is a prefix of everything.
PREFIXES = (UNET_PREFIX, *sorted({p for prefixes in TEXT_PREFIXES.values() for p in prefixes}), "")


def module_weights(adapter: Adapter | Source, module: nn.Module, prefix: str | None = None) -> dict[str, nn.Parameter]:
    """{layer name: weight parameter} of the layers and norms of an adapter or another source that `module` has.

    prefix: which part of Stable Diffusion the module is ("lora_unet_", "lora_te_", ...), "" for any other module; None
    tries all and takes the one under which most layers are found. Raises WrongBaseError where none is found.
    """
    best: dict[str, nn.Parameter] = {}
    layers = adapter.layers if isinstance(adapter, Adapter) else adapter.shapes
    wanted = (*layers, *adapter.gains)
    for candidate in PREFIXES if prefix is None else (prefix,):
        names = layer_names(module, candidate) | norm_names(module, candidate)
        found = {name: module.get_submodule(names[name]).weight for name in wanted if name in names}
        best = max(best, found, key=len)
    if not best:
        raise WrongBaseError(
            f"none of the adapter's {len(layers)} layers (such as {next(iter(layers), '-')}) is in "
            f"this {type(module).__name__}; give the model, and the part of it, that the adapter was trained on"
        )
    return best


def merge(
    adapter: Adapter | Source,
    module: nn.Module,
    strength: float = 1.0,
    *,
    mode: Mode = "linear",
    prefix: str | None = None,
    on_mismatch: Literal["refuse", "force"] = "refuse",
    cache: BasisCache | None = None,
) -> MatchReport | None:
    """Add strength times the change of an adapter, or of another source, to the module's weights, in place.

    How well the base matched, or None for a source that fits by shape alone. Every change is computed before the first
    weight is touched, so a refusal leaves the module as it was. Layers that this module does not have (a text
    encoder's, say) are left to another call; an adapter's report names them.
    Raises WrongBaseError where the base does not match, SettingError for "spectral" strength of what has no parameters.
    """
    weights = {name: p.data for name, p in module_weights(adapter, module, prefix).items()}
    if isinstance(adapter, AdapterSource):
        adapter = adapter.adapter
    if isinstance(adapter, Adapter):
        report, changes = _of_adapter(adapter, weights, strength, mode, on_mismatch, cache)
    else:
        report, changes = _of_source(adapter, weights, strength, mode, on_mismatch, cache)
    for name, change in changes.items():
        weight = weights[name]
        moved = change.to(weight.device) if isinstance(change, Tensor) else _product(change, weight)
        # Sum in fp32: an fp16 weight plus a small fp16 change would lose the change's low bits twice.
        weight.copy_(weight.float() + moved.reshape(weight.shape))
    return report


def _of_adapter(
    adapter: Adapter,
    weights: dict[str, Tensor],
    strength: float,
    mode: Mode,
    on_mismatch: Literal["refuse", "force"],
    cache: BasisCache | None,
) -> tuple[MatchReport, dict[str, Change]]:
    """A change from every match as the check makes it, so that nothing is decomposed twice."""
    changes: dict[str, Change] = {}

    def note(layer: str, match: LayerMatch) -> None:
        changes[layer] = adapter.change(layer, match, strength, mode)

    report = check_layers(adapter, weights, on_mismatch=on_mismatch, cache=cache, on_match=note)
    return report, changes


def _of_source(
    source: Source,
    weights: dict[str, Tensor],
    strength: float,
    mode: Mode,
    on_mismatch: Literal["refuse", "force"],
    cache: BasisCache | None,
) -> tuple[MatchReport | None, dict[str, Change]]:
    """Layers of another shape are refused, under "force" left out."""
    if mode != "linear":
        raise SettingError(f"{source.name} ({source.kind}) has no parameters, so its strength is linear; choose linear")
    report = source.check(weights, on_mismatch=on_mismatch, cache=cache)
    changes: dict[str, Change] = {}
    for name, weight in weights.items():
        is_norm = name in source.gains
        try:
            check_fits(source.name, name, (source.gains[name],) if is_norm else source.shapes[name], weight)
        except WrongBaseError:
            if on_mismatch == "refuse":
                raise
            continue
        changes[name] = scaled(source.gain(name) if is_norm else source.change(name, weight, cache), strength)
    return report, changes


def _product(change: tuple[Tensor, Tensor], weight: Tensor) -> Tensor:
    return dense((change[0].to(weight.device), change[1].to(weight.device)))
