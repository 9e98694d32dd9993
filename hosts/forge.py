"""Forge (lllyasviel): one object of its own keeps the untouched weights of each module, the same for all clones."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from .changes import Kept
from .forge_patch import added, parts

KIND = "spectral"  # of our patches, among those that the host knows


class Forge:
    """`backend.patcher.lora`, as the host has imported it."""

    def __init__(self, lora: ModuleType):
        self._lora = lora

    def register(self) -> None:
        """Lets the host know how to add our patches."""
        self._lora.extra_weight_calculators[KIND] = added

    def unregister(self) -> None:
        self._lora.extra_weight_calculators.pop(KIND, None)

    def keys(self, model: Any, clip: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        # With a dict of their own: the host's functions fill a shared one otherwise.
        unet = self._lora.model_lora_keys_unet(model.model, {})
        return unet, {} if clip is None else self._lora.model_lora_keys_clip(clip.cond_stage_model, {})

    def original(self, patcher: Any, key: str) -> Tensor:
        kept = patcher.lora_loader.backup.get(key)
        return dequantised(attribute(patcher.model, key) if kept is None else kept)

    def patch(self, kept: Kept) -> object:
        return KIND, parts(kept)


def dequantised(weight: Tensor) -> Tensor:
    """The weight behind Forge's low-bit parameters; an ordinary one as it is."""
    if hasattr(weight, "bnb_quantized"):
        from backend.operations_bnb import functional_dequantize_4bit

        return functional_dequantize_4bit(weight)
    if getattr(weight, "gguf_cls", None) is not None:
        from backend.operations_gguf import dequantize_tensor

        return dequantize_tensor(weight)
    return weight


def attribute(model: Any, key: str) -> Any:
    """What the names of a key lead to in a module."""
    for name in key.split("."):
        model = getattr(model, name)
    return model
