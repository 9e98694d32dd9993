"""From a folder of pictures to cached latents and captions, every fault found before training starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..spectral.errors import SettingError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder and what there is to remark about them."""

    pictures: list[Picture]
    trigger: str
    notices: list[str]


def scan(folder: Path, trigger: str = "") -> Folder:
    """The pictures of `folder` in name order, with their captions.

    A caption is the text of the file of the same name ending in .txt. A picture without one gets the trigger word;
    without a trigger word either, the folder's own name (`10_red_mug` gives "red mug"). Raises SettingError naming
    every file that cannot be used.
    """
    if not folder.is_dir():
        raise SettingError(f"{folder} is not a folder. Give the folder that holds the pictures.")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise SettingError(f"{folder} holds no picture. Expected files ending in {', '.join(SUFFIXES)}.")
    faults = [f"  {path.name}: {fault}" for path in files if (fault := picture_fault(path))]
    if faults:
        raise SettingError(
            f"{len(faults)} of {len(files)} pictures in {folder} cannot be used. Replace or remove them:\n"
            + "\n".join(faults)
        )
    captions = {path: read_caption(path) for path in files}
    without = [path.name for path, caption in captions.items() if not caption]
    fallback = trigger or re.sub(r"^\d+_", "", folder.resolve().name).replace("_", " ")
    notices = []
    if without and not trigger:
        notices.append(
            f"{len(without)} pictures have no .txt caption and there is no trigger word; using {fallback!r}."
        )
    elif trigger and not any(trigger in (caption or trigger) for caption in captions.values()):
        notices.append(f"no caption contains the trigger word {trigger!r}, so it will call nothing up.")
    pictures = [Picture(path, caption or fallback) for path, caption in captions.items()]
    return Folder(pictures, trigger or (fallback if without else ""), notices)


def read_caption(picture: Path) -> str:
    """The caption beside a picture, in one line; empty when there is none."""
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return ""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise SettingError(f"the caption {path} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error


def picture_fault(path: Path) -> str | None:
    """Why a file cannot serve as a training picture; None when it can. The whole file is decoded."""
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                return f"an animation of {image.n_frames} frames; expected a still picture"
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"cannot be decoded ({error})"
    return None


def open_picture(path: Path) -> Image.Image:
    """RGB as a viewer shows it: turned by the EXIF orientation, transparency laid on white."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("LA", "PA") or "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def to_square(image: Image.Image, resolution: int) -> Image.Image:
    """Scaled so that the short side fits, then cropped around the centre."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1).contiguous()


@torch.no_grad()
def cache_latents(
    vae: torch.nn.Module, pictures: list[Picture], resolution: int, progress: Callable[[int, int, str], None]
) -> torch.Tensor:
    """(N, C, h, w) latents: the mean of the VAE's posterior, scaled as the UNet expects."""
    weight = next(vae.parameters())
    latents = []
    for i, picture in enumerate(pictures):
        pixels = to_tensor(to_square(open_picture(picture.path), resolution))[None]
        posterior = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
        latents.append(posterior.mode().float() * vae.config.scaling_factor)
        progress(i + 1, len(pictures), picture.path.name)
    return torch.cat(latents)


def order(seed: int, count: int, position: int) -> int:
    """Which of `count` pictures the `position`-th sample of a run is: each epoch is its own seeded shuffle."""
    epoch, offset = divmod(position, count)
    generator = torch.Generator().manual_seed(stream(seed, epoch, -1))
    return int(torch.randperm(count, generator=generator)[offset])


def stream(seed: int, step: int, sample: int) -> int:
    """One 63-bit seed per (seed, step, sample): the same whatever the batch size, the device count or a resume."""
    mask, mixed = (1 << 64) - 1, 0
    for part in (seed, step, sample):
        # splitmix64's finaliser: neighbouring inputs give unrelated generators.
        mixed = (mixed + (part & mask) + 0x9E3779B97F4A7C15) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        mixed ^= mixed >> 31
    return mixed >> 1
