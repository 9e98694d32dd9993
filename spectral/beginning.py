"""Where a training begins: at identity, at another adapter's parameters, on columns that other adapters leave free."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .adapter import Adapter, check_layers
from .basis import Basis, Progress, WeightSource, decompose_all
from .cache import BasisCache
from .errors import SettingError, WrongBaseError
from .gains import check_gain_shape
from .matching import check_shape
from .methods import Method
from .names import layer_names, norm_names
from .occupied import Occupied


def part_of_start(
    start: Adapter | None, method: Method, module: nn.Module, prefix: str, chosen: Mapping[str, nn.Module]
) -> Adapter | None:
    """The part of `start` that belongs to this module, fitting in method, names and shapes."""
    if start is None:
        return None
    if (start.method.name, start.method.settings) != (method.name, method.settings):
        raise SettingError(
            f"the adapter to start from is {start.method.name} with {start.method.settings}; expected {method.name} "
            f"with {method.settings}. Train with its settings, or start from nothing"
        )
    layers = {name: layer for name, layer in start.layers.items() if name.startswith(prefix)}
    gains = {name: gain for name, gain in start.gains.items() if name.startswith(prefix)}
    known = layer_names(module, prefix) | norm_names(module, prefix)
    for name in (*layers, *gains):
        if name not in known:
            raise WrongBaseError(
                f"the adapter to start from has a layer {name!r}, which this {type(module).__name__} has not; it was "
                f"trained on another kind of model{f' ({start.base_name})' if start.base_name else ''}"
            )
        if name not in chosen:
            raise SettingError(
                f"the adapter to start from also changes {name!r}, which targets leaves out; choose targets that "
                "include all of its layers"
            )
    for name, layer in layers.items():
        check_shape(layer, chosen[name].weight)
        if wrong := method.check(layer.params, layer.shape, len(layer.indices)):
            raise SettingError(f"the adapter to start from: layer {name}: {wrong}")
    for name, gain in gains.items():
        check_gain_shape(gain, chosen[name].weight)
    return Adapter(method, layers, start.metadata, start.profile, gains)


def check_covered(start: Adapter, prefixes: tuple[str, ...]) -> None:
    """Raise SettingError where the start changes a part that is not trained: it would be lost without a word."""
    if left := [name for name in (*start.layers, *start.gains) if not name.startswith(prefixes)]:
        raise SettingError(
            f"the adapter to start from also changes {len(left)} layers of a part that is not trained, such as "
            f"{left[0]}; choose targets for that part too"
        )


def check_avoided(avoid: Occupied, module: nn.Module, prefix: str) -> None:
    known = layer_names(module, prefix)
    for name in avoid.layers:
        if name.startswith(prefix) and name not in known:
            raise SettingError(
                f"an adapter to avoid ({' and '.join(avoid.layers[name].users)}) has a layer {name!r}, which this "
                f"{type(module).__name__} has not; only columns of the same base can be avoided"
            )


def first_bases(
    method: Method,
    layers: Mapping[str, nn.Module],
    sources: Mapping[str, WeightSource],
    *,
    start: Adapter | None,
    avoid: Occupied | None,
    cache: BasisCache | None,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> dict[str, Basis]:
    """The basis of every layer, as it is trained in: the start's where it has the layer, else decomposed now.

    Raises SettingError where `avoid` leaves no columns, WrongBaseError where a compact start does not fit the weights.
    """
    done = _bases_of_start(start, layers, sources, cache, progress, cancelled) if start else {}
    fresh = {name: sources[name] for name in layers if name not in done}
    wanted = {name: method.columns for name in fresh}
    if avoid is not None:
        wanted = avoid.free_blocks(method.columns, {name: tuple(layers[name].weight.shape) for name in fresh})
    bases = decompose_all(fresh, wanted, cache=cache, progress=progress, cancelled=cancelled)
    bases = done | {name: basis.half_rounded() if method.portable else basis for name, basis in bases.items()}
    return {name: _lean(method, bases[name], sources[name]) for name in layers}


def _bases_of_start(
    start: Adapter,
    layers: Mapping[str, nn.Module],
    sources: Mapping[str, WeightSource],
    cache: BasisCache | None,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> dict[str, Basis]:
    """The frames that the start carries; for its compact layers the weight's, aligned, judged by its probe."""
    framed = {name: layer.frames for name, layer in start.layers.items() if layer.frames is not None}
    bases = {name: frames.to(layers[name].weight.device) for name, frames in framed.items()}
    compact = {name: layer for name, layer in start.layers.items() if name not in framed}
    if compact:
        check_layers(
            Adapter(start.method, compact, start.metadata, start.profile),
            {name: sources[name] for name in compact},
            cache=cache,
            progress=progress,
            cancelled=cancelled,
            model_name="the base to train on",
            on_match=lambda name, match: bases.update({name: match.basis}),
        )
    return bases


def _lean(method: Method, basis: Basis, source: WeightSource) -> Basis:
    """The basis without a hold on weights that it does not need, or can read again."""
    if method.portable:
        return basis.fetched_from(None)
    return basis if isinstance(source, Tensor) else basis.fetched_from(source)
