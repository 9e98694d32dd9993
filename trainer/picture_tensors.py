"""Pictures and masks as tensors: apart from `pictures`, so that folders can be looked at without torch."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .pictures import Crop, cut


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [-1, 1] from an RGB picture."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def mask_tensor(mask: Image.Image, crop: Crop, pixels: int) -> Tensor:
    """(1, h, w) float32 in [0, 1]: the mask cut like its picture, averaged over each latent's `pixels`² pixels."""
    cropped = cut(mask, crop, Image.Resampling.BOX)
    values = torch.from_numpy(np.asarray(cropped, dtype=np.float32) / 255)
    return functional.avg_pool2d(values[None], pixels)
