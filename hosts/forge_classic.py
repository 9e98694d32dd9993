"""Forge Classic, and Forge as it was at first: each clone of a patcher keeps the weights that it has patched itself."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from .changes import Kept
from .forge import KIND, attribute
from .forge_patch import added, parts


class Classic:
    """The host's `ldm_patched.modules`: lora (names of layers), model_patcher (kinds of patches), model_management."""

    def __init__(self, lora: ModuleType, model_patcher: ModuleType, model_management: ModuleType):
        self._lora, self._patcher, self._management = lora, model_patcher, model_management

    def register(self) -> None:
        self._patcher.extra_weight_calculators[KIND] = added

    def unregister(self) -> None:
        self._patcher.extra_weight_calculators.pop(KIND, None)

    def keys(self, model: Any, clip: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        unet = self._lora.model_lora_keys_unet(model.model, {})
        return unet, {} if clip is None else self._lora.model_lora_keys_clip(clip.cond_stage_model, {})

    def original(self, patcher: Any, key: str) -> Tensor:
        # Another clone may have patched the weights and keeps what they were; the host unloads it before the next
        # picture anyway, since the patches change.
        self._management.unload_model_clones(patcher)
        return attribute(patcher.model, key)

    def patch(self, kept: Kept) -> object:
        return KIND, parts(kept)
