"""The base's weights with the bits of its file, where sd-scripts has cast what it loaded or is about to.

A bf16 copy of an fp16 checkpoint has other singular values. Read from the file, an adapter describes the model that
people have; and no second copy of the model stays in memory beside the cast one.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..spectral.basis import decompose
from ..spectral.cache import BasisCache
from ..spectral.methods import Method
from ..spectral.names import layer_names, modules_of, norm_names
from ..spectral.targets import select
from .events import Progress
from .kohya_parts import Part
from .kohya_say import notice, tell

Weights = Mapping[str, Callable[[], Tensor]]


class Originals:
    """Brings a layer's weight by its name in the file: the base file's where the model's is its cast, else the model's.

    Which it is, is decided when a layer is first asked for. What differs from the file (other weights were merged in)
    is kept as it is then.
    """

    def __init__(self, file: Weights, part: Part):
        paths = layer_names(part.module, part.prefix) | norm_names(part.module, part.prefix)
        self._file, self._module, self._paths = file, part.module, paths
        self._chosen: dict[str, Callable[[], Tensor]] = {}

    def __call__(self, layer: str) -> Tensor:
        if layer not in self._chosen:
            self._chosen[layer] = self._choose(layer)
        return self._chosen[layer]()

    def _choose(self, layer: str) -> Callable[[], Tensor]:
        live = self._module.get_submodule(self._paths[layer]).weight.detach()
        if (stored := self._file.get(layer)) is not None and _is_cast_of(live, stored()):
            return stored
        return lambda: live


def base_file(args: Namespace | None, parts: Iterable[Part]) -> Weights | None:
    """The weights of the base's file, where the model is or will be in another precision than float32."""
    source = getattr(args, "pretrained_model_name_or_path", None)
    cast = getattr(args, "mixed_precision", None) not in (None, "no")
    if source is None or not (cast or any(_is_half(part.module) for part in parts)):
        return None
    if not Path(source).exists():
        return None  # a name on a hub: sd-scripts has its files, we do not know where
    from .base import BaseModelError  # brings diffusers, which sd-scripts has loaded by now
    from .base_weights import open_base

    try:
        return open_base(source)
    except BaseModelError as error:
        notice(f"the base's weights are taken as sd-scripts has loaded them, rounded where it has cast them: {error}")
        return None


def decompose_ahead(
    part: Part, method: Method, originals: Originals | None, cache: BasisCache, device: torch.device
) -> None:
    """Fill the cache with the bases of a part's layers, made on `device` one by one.

    sd-scripts has its models on the CPU when the network is put on them, where those of SDXL take minutes.
    """
    modules = modules_of(part.module)
    chosen = {modules[path] for path in select(part.module, part.targets)}
    found = {name: part.module.get_submodule(path) for name, path in layer_names(part.module, part.prefix).items()}
    layers = {name: layer for name, layer in found.items() if layer in chosen}
    for done, (name, layer) in enumerate(layers.items(), start=1):
        weight = layer.weight if originals is None else originals(name)
        decompose(weight.detach().to(device), method.columns, cache=cache)
        tell(Progress(done, len(layers), name))


def _is_half(module: nn.Module) -> bool:
    return any(p.dtype != torch.float32 for p in module.parameters())


def _is_cast_of(live: Tensor, stored: Tensor) -> bool:
    return stored.shape == live.shape and torch.equal(stored.to(live.dtype), live.cpu())
