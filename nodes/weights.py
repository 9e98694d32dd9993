"""The original weights behind a ModelPatcher: without any patch, dequantised, whatever is loaded at the moment."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor


def original_weight(patcher: comfy.model_patcher.ModelPatcher, key: str) -> Tensor:
    """The unpatched weight of `key` on the compute device, to be read only: it may be the model's own tensor.

    In the dtype it is stored in, fp32 where it was quantised. (ComfyUI's `get_key_patches` fails on quantised models.)
    """
    weight, _, dequantise = comfy.model_patcher.get_key_weight(patcher.model, key)
    # In this order: hooks are put over patches, so that what they keep is patched already.
    if key in patcher.backup:
        weight = patcher.backup[key].weight
    elif key in patcher.hook_backup:
        weight = patcher.hook_backup[key][0]
    if dequantise is None:
        return weight.to(patcher.load_device)
    weight = comfy.model_management.cast_to_device(weight, patcher.load_device, torch.float32, copy=True)
    return dequantise(weight, inplace=True)
