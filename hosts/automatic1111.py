"""AUTOMATIC1111's web UI: its Lora asks a list of module types who knows a layer of a file; this one is added last.

Lora then keeps the untouched weights, adds what the modules give for each layer and takes it off again. Here every
module gives its share of changes that were computed before, for the whole file, from the untouched weights: what Lora
passes has the changes of earlier files in it.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..spectral import names
from ..spectral.adapter import OnMismatch
from ..spectral.errors import SpectralError
from ..spectral.known_files import MARK
from ..spectral.names import Family
from . import settings
from .changes import Applied, Base, changes_of, model_name
from .host import Generation, Host, Undo

_OURS = "spectral_adapters_type"  # on the module type of an earlier start too, whose class is another one by then
_FUSED = ("q_proj", "k_proj", "v_proj")
_OUT = "_out_proj"
# Where the web UI's names of layers begin in the paths of a checkpoint.
_ROOTS = ("model.", "cond_stage_model.", "conditioner.embedders.")


@dataclass(frozen=True)
class Place:
    """Where a layer lives. module: whose weights Lora changes. key: its name there. part: of OpenCLIP's attention."""

    module: nn.Module
    key: str
    part: int | None = None

    def untouched(self) -> Tensor:
        """The weight without any network: Lora's backup, where it has made one."""
        kept = getattr(self.module, "fp16_weight", None)  # beside weights in fp8; Lora never changes it
        backup = getattr(self.module, "network_weights_backup", None)
        if isinstance(self.module, nn.MultiheadAttention):
            fused, out = backup or (self.module.in_proj_weight, self.module.out_proj.weight)
            return out if self.part is None else fused.chunk(3)[self.part]
        return next(weight for weight in (kept, backup, self.module.weight) if weight is not None)


@dataclass(frozen=True)
class _Chosen:
    """What a network of a file of ours holds while it is in use.

    of: the model that `applied` was computed for, and its checkpoint. policy: under which it was.
    """

    of: tuple[weakref.ref, Hashable]
    policy: OnMismatch
    model: str
    applied: Applied


def present() -> bool:
    """Whether Lora of AUTOMATIC1111 runs in this process."""
    return hasattr(sys.modules.get("networks"), "module_types")


def attach() -> Undo:
    import networks

    types = networks.module_types
    types[:] = [known for known in types if not hasattr(known, _OURS)]
    ours = _module_type()
    types.append(ours)

    def undo() -> None:
        types[:] = [known for known in types if known is not ours]

    return undo


def base() -> Base:
    """The loaded model, as its weights are without any network."""
    from modules import shared

    model = shared.sd_model
    known = places(model)
    return Base(model, _version(model), _name(model), {layer: place.untouched for layer, place in known.items()})


def prepare(generation: Generation) -> None:
    """Judges and computes the files of ours among the networks of this generation."""
    import networks
    from modules import shared

    _let_go(net for net in networks.networks_in_memory.values() if net not in networks.loaded_networks)
    ours = [net for net in dict.fromkeys(networks.loaded_networks) if MARK in net.network_on_disk.metadata]
    chosen = [net for net in ours if net.te_multiplier != 0 or net.unet_multiplier != 0]
    if not chosen:
        return
    onto, known = base(), places(shared.sd_model)
    for net in chosen:
        found = _choose(net, onto)
        net.modules = _modules(net, found.applied.layers, known)
        generation.comment(f"{net.name}: {found.applied.text}")


def _let_go(nets: Iterable[Any]) -> None:
    """Lora may keep networks for later; their changes are kept as long as the user's setting says, no longer."""
    for net in nets:
        net.spectral_chosen = None


def drop() -> None:
    import networks

    networks.loaded_networks.clear()


AUTOMATIC1111 = Host("AUTOMATIC1111", present, attach, base, prepare, drop)


def places(model: nn.Module) -> dict[str, Place]:
    """Layer or norm in kohya's spelling -> its place, for all that the model has."""
    mapping = model.network_layer_mapping
    family = names.CROSS_WIDTH.get(_width(mapping))
    found: dict[str, Place] = {}
    for layer in _layers(family) if family else ():
        key, part = _key(family, layer), names.fused_part(family, layer)
        module = mapping.get(key)
        around = mapping.get(key.removesuffix(_OUT)) if key.endswith(_OUT) else None
        if isinstance(around, nn.MultiheadAttention):
            module = around  # its forward, where Lora changes weights, does not call the layer inside
        if module is not None:
            found[layer] = Place(module, key if part is None else f"{key}_{_FUSED[part]}", part)
    return found


def _layers(family: Family) -> Iterable[str]:
    yield from names.unet_paths(family)
    for prefix in names.TEXT_PREFIXES[family]:
        yield from names.text_paths(family, prefix)
    yield from names.norm_paths(family)


def _key(family: Family, layer: str) -> str:
    """The web UI's name of the module that holds the layer's weight."""
    path = names.checkpoint_key(family, layer).removesuffix(".weight").removesuffix(".in_proj_weight")
    root = next(root for root in _ROOTS if path.startswith(root))
    return path.removeprefix(root).replace(".", "_")


def _width(mapping: dict[str, nn.Module]) -> int | None:
    cross = next((module for key, module in mapping.items() if key.endswith("attn2_to_k")), None)
    return None if cross is None else cross.weight.shape[1]


def _name(model: nn.Module) -> str:
    return model_name(_width(model.network_layer_mapping), type(model).__name__)


def _version(model: nn.Module) -> Hashable:
    """The checkpoint in the model: another one may be loaded into the same object."""
    file = model.sd_checkpoint_info.filename
    try:
        return file, os.stat(file).st_mtime_ns
    except OSError:
        return file, 0


def _choose(net: Any, onto: Base) -> _Chosen:
    """The changes of a network's file, which it then holds, so that they stay while it is in use."""
    from modules import shared

    state, wanted, of = shared.state, settings.current(), (weakref.ref(onto.owner), onto.version)
    kept: _Chosen | None = getattr(net, "spectral_chosen", None)
    if kept is not None and (kept.of, kept.policy) == (of, wanted.policy):
        return kept

    def progress(done: int, total: int, _: str) -> None:
        state.textinfo = f"Spectral adapter {net.name}: layer {done} of {total}"

    applied = changes_of(
        net.network_on_disk.filename,
        onto,
        wanted,
        progress=progress,
        cancelled=lambda: state.interrupted,
    )
    net.spectral_chosen = _Chosen(of, wanted.policy, onto.name, applied)
    return net.spectral_chosen


def _modules(net: Any, layers: Iterable[str], known: dict[str, Place]) -> dict[str, Any]:
    """Lora's modules of a file by its names of layers. Its own table leaves out norms and needs whole attentions."""
    make, modules = _module_type().module, {}
    for layer in layers:
        place = known[layer]
        modules[place.key] = make(net, layer, place)
        if isinstance(place.module, nn.MultiheadAttention):
            whole = place.key.removesuffix(_OUT)
            for part in _FUSED:
                whole = whole.removesuffix(f"_{part}")
            for part in (*_FUSED, "out_proj"):
                modules.setdefault(f"{whole}_{part}", make(net, None, Place(place.module, f"{whole}_{part}")))
    return modules


def change_here(net: Any, layer: str, weight: Tensor) -> Tensor | None:
    """What a network changes in a weight of the model that runs now, at strength 1, in the weight's shape, fp32.

    That model may be the refiner, which has been loaded amid a generation: of the same kind it has its own changes,
    of another kind none. Raises WrongBaseError where the file is not for it.
    """
    from modules import shared

    model, chosen = shared.sd_model, getattr(net, "spectral_chosen", None)
    if chosen is None or chosen.of[0]() is not model or chosen.of[1] != _version(model):
        if chosen is not None and chosen.model != _name(model):
            return None
        chosen = _choose(net, base())
    if layer not in chosen.applied.layers:
        return None
    return chosen.applied.change(layer, weight.device).reshape(weight.shape)


def _take_off(module: nn.Module) -> None:
    """Leaves a module whose networks were about to be added as if none had been: Lora takes note of them at the end."""
    import networks

    networks.network_restore_weights_from_backup(module)
    module.network_current_names = ()


def _module_type() -> Any:
    """Lora's classes exist only inside the web UI, so ours are made there."""
    import network

    class SpectralModule(network.NetworkModule):
        """One layer of a file; None for a part of an attention that the file leaves alone."""

        def __init__(self, net: network.Network, weights: network.NetworkWeights, layer: str | None):
            super().__init__(net, weights)
            self.layer = layer

        def multiplier(self) -> float:
            on_unet = (self.layer or "").startswith(names.UNET_PREFIX)
            return self.network.unet_multiplier if on_unet else self.network.te_multiplier

        def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, None]:
            strength, change = self.multiplier(), None
            if self.layer is not None and strength != 0:
                try:
                    change = change_here(self.network, self.layer, orig_weight)
                except SpectralError:
                    _take_off(self.sd_module)
                    raise
            if change is None:
                return torch.zeros_like(orig_weight, dtype=torch.float32), None
            return change * strength, None

    class SpectralType(network.ModuleType):
        def create_module(self, net: network.Network, weights: network.NetworkWeights) -> network.NetworkModule | None:
            if MARK not in net.network_on_disk.metadata:
                return None
            return SpectralModule(net, weights, weights.network_key.partition(".")[0])

        @staticmethod
        def module(net: network.Network, layer: str | None, place: Place) -> network.NetworkModule:
            weights = network.NetworkWeights(network_key=layer or "", sd_key=place.key, w={}, sd_module=place.module)
            return SpectralModule(net, weights, layer)

    ours = SpectralType()
    setattr(ours, _OURS, True)
    return ours
