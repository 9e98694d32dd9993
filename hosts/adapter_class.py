"""reForge and Forge Neo: their patches are objects of ComfyUI's adapter class, taken over with its model patcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .changes import Kept
from .forge import attribute, dequantised
from .forge_patch import added, parts


class AdapterClass:
    """A host with the adapter class. lora: its module with the functions for layer names; base: the class."""

    def __init__(self, lora: ModuleType, base: type):
        self._lora, self._patch = lora, patch_class(base)

    def register(self) -> None:
        """Nothing: a patch of ours knows itself how it is added."""

    def unregister(self) -> None:
        """Nothing, as above."""

    def keys(self, model: Any, clip: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        unet = self._lora.model_lora_keys_unet(model.model, {})
        return unet, {} if clip is None else self._lora.model_lora_keys_clip(clip.cond_stage_model, {})

    def original(self, patcher: Any, key: str) -> Tensor:
        weight = _kept(patcher, key)
        weight = attribute(patcher.model, key) if weight is None else weight
        owner, name = key.rsplit(".", 1)
        convert = getattr(attribute(patcher.model, owner), f"convert_{name}", None)
        return dequantised(weight) if convert is None else convert(weight)

    def patch(self, kept: Kept) -> object:
        return self._patch(set(), parts(kept))


def _kept(patcher: Any, key: str) -> Tensor | None:
    """What the host keeps of a weight that is patched, or None. Clones share it."""
    loader = getattr(patcher, "lora_loader", None)  # of a Neo that still has Forge's way of patching
    if loader is not None:
        return loader.backup.get(key)
    if key in patcher.backup:
        return patcher.backup[key].weight
    hooked = getattr(patcher, "hook_backup", {}).get(key)
    return None if hooked is None else hooked[0]


def patch_class(base: type) -> type:
    """The host's adapter class with our way to change a weight. Hosts make copies of a patch from its two arguments."""

    class SpectralPatch(base):
        name = "spectral"

        def __init__(self, loaded_keys: set[str], weights: tuple):
            self.loaded_keys, self.weights = loaded_keys, weights

        def calculate_weight(
            self,
            weight: Tensor,
            key: str,
            strength: float,
            strength_model: float,
            offset: tuple[int, int, int] | None,
            function: Callable[[Tensor], Tensor],
            intermediate_dtype: torch.dtype = torch.float32,
            original_weight: Mapping[str, object] | None = None,
        ) -> Tensor:
            return added(weight, strength, self.weights)

    return SpectralPatch
