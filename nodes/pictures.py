"""Pictures as ComfyUI's images, and shown on a node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor


def image(picture: Image.Image) -> Tensor:
    """(1, height, width, 3) in 0 to 1, as ComfyUI's IMAGE."""
    return images([picture])


def images(pictures: Sequence[Image.Image]) -> Tensor:
    """(n, height, width, 3) in 0 to 1, as ComfyUI's IMAGE; all in the first one's size."""
    same = [picture.resize(pictures[0].size) if picture.size != pictures[0].size else picture for picture in pictures]
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in same]
    return torch.from_numpy(np.stack(arrays))


def preview(image: Tensor, node: type[io.ComfyNode]) -> dict[str, list]:
    """The part of a node's `ui` that shows the images on it."""
    return {"images": list(ui.PreviewImage(image, cls=node).as_dict()["images"])}
