"""From an adapter to the patches of a model, before any strength. All is judged here and nothing is changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import comfy.lora
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ..spectral.adapter import MatchReport, OnMismatch, check_layers
from ..spectral.another_model import FAMILY_NAMES, applied_text, match_text, refuse_another_model
from ..spectral.basis import Progress, WeightSource, fetch
from ..spectral.cache import BasisCache
from ..spectral.change import Change
from ..spectral.errors import SettingError, WrongBaseError
from ..spectral.host_keys import places
from ..spectral.matching import LayerMatch
from ..spectral.names import CROSS_WIDTH
from ..spectral.source import AdapterSource, Source
from .adapters import Use
from .patch import Patch, dense_patch, gain_patch, thin_patch
from .prepared import Placed, Prepared
from .weights import original_weight
from .work import cancelled, interruptible

_SPOT_CHECKS = 8  # of a portable file's layers; all 128 of SD1.5's attention would take as long as patching them


@dataclass(frozen=True)
class Target:
    """Where a layer lives in ComfyUI."""

    patcher: ModelPatcher
    on_clip: bool
    key: str


@dataclass(frozen=True)
class Connected:
    """The model that adapters are put on: its name for messages, and the places of its layers by their names."""

    name: str
    targets: Mapping[str, Target]

    def weights(self, names: Collection[str]) -> dict[str, WeightSource]:
        """The untouched weights of those layers that are there, to be fetched one by one."""
        found = {name: self.targets[name] for name in names if name in self.targets}
        return {name: lambda t=target: original_weight(t.patcher, t.key) for name, target in found.items()}

    def placed(self, name: str, change: Change, is_gain: bool) -> Placed:
        """The patch of a layer's change, where ComfyUI wants it."""
        target = self.targets[name]
        return Placed(target.on_clip, target.key, _patch(target.key, change, is_gain))


def connected(model: ModelPatcher, clip: CLIP | None) -> Connected:
    """Every layer name ComfyUI knows, in all spellings, and the text encoders' norms, with their places."""
    maps = [(model, False, places(comfy.lora.model_lora_keys_unet(model.model, {}), model.model))]
    if clip is not None:
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
        maps.append((clip.patcher, True, places(known, clip.cond_stage_model)))
    targets = {name: Target(patcher, side, key) for patcher, side, names in maps for name, key in names.items()}
    config = model.model.model_config
    family = CROSS_WIDTH.get(config.unet_config.get("context_dim"))
    return Connected(FAMILY_NAMES[family] if family else type(config).__name__, targets)


def prepare(
    source: Source,
    use: Use,
    wanted: Collection[str],
    onto: Connected,
    on_mismatch: OnMismatch,
    progress: Progress,
) -> Prepared:
    """The patches of the wanted layers and norms of an adapter.

    Raises WrongBaseError, SettingError (parts or a mode that this kind of file does not have), ComfyUI's interrupt.
    """
    if on_mismatch == "refuse":
        refuse_another_model(source, wanted, onto.targets, onto.name)
    with interruptible():
        if isinstance(source, AdapterSource):
            return _of_adapter(source, use, wanted, onto, on_mismatch, progress)
        return _of_source(source, use, wanted, onto, on_mismatch, progress)


def _of_adapter(
    source: AdapterSource,
    use: Use,
    wanted: Collection[str],
    onto: Connected,
    on_mismatch: OnMismatch,
    progress: Progress,
) -> Prepared:
    """One of this package's methods: each layer is used while the check has its basis at hand."""
    adapter, family = source.adapter, source.family
    layers = {name: layer for name, layer in adapter.layers.items() if name in wanted}
    gains = {name: gain for name, gain in adapter.gains.items() if name in wanted}
    placed: dict[str, Placed] = {}

    def apply(name: str, match: LayerMatch) -> None:
        amount, columns = 1.0, None
        if use.parts is not None and name in layers:
            columns = use.parts.of_columns(layers[name].indices, min(layers[name].matrix))
        if use.mode == "spectral":
            amount = use.strength(name) * (1.0 if use.parts is None else use.parts.of(name, family))
        change = adapter.change(name, match, amount, use.mode, columns)
        placed[name] = onto.placed(name, change, name in gains)

    part = replace(adapter, layers=layers, gains=gains)
    report = check_layers(
        part,
        onto.weights((*layers, *gains)),
        on_mismatch=on_mismatch,
        cache=BasisCache(),
        progress=progress,
        cancelled=cancelled,
        model_name=onto.name,
        on_match=apply,
        spot_checks=_SPOT_CHECKS,
    )
    effort = f"{report.seconds:.1f} s; {report.from_cache} of {len(report.layers)} from cache"
    return Prepared(
        placed, _fit(placed, layers, gains, report), "no decomposition" if part.profile == "portable" else effort
    )


def _of_source(
    source: Source, use: Use, wanted: Collection[str], onto: Connected, on_mismatch: OnMismatch, progress: Progress
) -> Prepared:
    """Anything else that changes weights: a LoRA file, or a mixture."""
    if use.mode == "spectral":
        raise SettingError(f"found a {source.kind}, whose strength has no spectral mode; choose linear")
    if use.parts is not None and use.parts.has_columns:
        raise SettingError(
            f"found factors of columns for a {source.kind}, which has none of its own; leave the columns out of parts"
        )
    layers = [name for name in source.shapes if name in wanted]
    gains = [name for name in source.gains if name in wanted]
    weights, cache = onto.weights((*layers, *gains)), BasisCache()
    report = source.check(
        {name: weights[name] for name in layers if name in weights},
        on_mismatch=on_mismatch,
        cache=cache,
        cancelled=cancelled,
        model_name=onto.name,
    )
    placed: dict[str, Placed] = {}
    for done, (name, weight) in enumerate(weights.items(), 1):
        if name in source.gains:
            placed[name] = onto.placed(name, source.gain(name), True)
        else:
            try:
                placed[name] = onto.placed(name, source.change(name, fetch(weight), cache), False)
            except WrongBaseError:
                if on_mismatch == "refuse":
                    raise
        progress(done, len(weights), name)
    return Prepared(placed, _fit(placed, layers, gains, report), f"{source.kind}, no decomposition")


def _patch(key: str, change: Change, is_gain: bool) -> Patch:
    if is_gain:
        return gain_patch(change)
    return thin_patch(key, *change) if isinstance(change, tuple) else dense_patch(key, change)


def _fit(placed: Collection[str], layers: Collection[str], gains: Collection[str], report: MatchReport | None) -> str:
    """With the effort two short lines: the node shows no more without being enlarged."""
    match = match_text(report)
    return f"{applied_text(placed, layers, gains)}\n" + (f"{match}; " if match else "")
