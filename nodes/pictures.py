"""Pictures as ComfyUI's images, and shown on a node."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor


def image(picture: Image.Image) -> Tensor:
    """(1, height, width, 3) in 0 to 1, as ComfyUI's IMAGE."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def preview(image: Tensor, node: type[io.ComfyNode]) -> dict[str, list]:
    """The part of a node's `ui` that shows the images on it."""
    return {"images": list(ui.PreviewImage(image, cls=node).as_dict()["images"])}
