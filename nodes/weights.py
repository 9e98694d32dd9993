"""The original weights behind a ModelPatcher: without any patch, dequantised, whatever is loaded at the moment."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor


def original_weight(patcher: comfy.model_patcher.ModelPatcher, key: str) -> Tensor:
    """The unpatched weight of `key` as an fp32 copy on the patcher's compute device.

    ComfyUI's own `get_key_patches` would do for ordinary models; it fails on quantised ones.
    """
    weight, _, dequantise = comfy.model_patcher.get_key_weight(patcher.model, key)
    if key in patcher.backup:
        weight = patcher.backup[key].weight
    if key in patcher.hook_backup:
        weight = patcher.hook_backup[key][0]
    weight = comfy.model_management.cast_to_device(weight, patcher.load_device, torch.float32, copy=True)
    return weight if dequantise is None else dequantise(weight, inplace=True)
