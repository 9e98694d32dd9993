"""Pictures of prompts, made with the pipeline and the sampler that inference uses.

A picture depends on its prompt, seed and settings alone: not on what else is sampled, and not on the training's random
numbers. Nothing of the training changes through sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from .events import Listener, Progress, silent
from .sample_files import sample_name, save_png

if TYPE_CHECKING:
    from .models import Base
    from .spec import TrainSpec


@dataclass(frozen=True)
class Shot:
    """A picture to make: the prompt, and the seed of its noise (drawn on the CPU, as ComfyUI does)."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Look:
    """How pictures are made. size: (width, height) in pixels, multiples of the base's `scale`."""

    size: tuple[int, int]
    steps: int = 25
    guidance: float = 7.5
    negative: str = ""


def shots(prompts: Sequence[str], seed: int) -> list[Shot]:
    """One per prompt, all from the same seed; a prompt that is given again starts from the next one."""
    return [Shot(prompt, seed + list(prompts[:i]).count(prompt)) for i, prompt in enumerate(prompts)]


def sample(base: Base, wanted: Sequence[Shot], look: Look, *, batch: int = 1) -> list[Image.Image]:
    """RGB pictures, `batch` at a time. More at once is quicker on small bases and may change the last bits."""
    made: list[Image.Image] = []
    with _posed(base) as pipeline:
        for start in range(0, len(wanted), batch):
            made += _pictures(pipeline, wanted[start : start + batch], look, base.scale)
    return made


def save_samples(
    base: Base,
    spec: TrainSpec,
    folder: Path,
    step: int,
    size: tuple[int, int],
    listen: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Path, ...]:
    """Make the spec's sample pictures as the model stands after `step`, each written to `folder` when it is done.

    Names are `sample_name(step, number)`; a sample of the same step and number is replaced. The PNGs carry prompt,
    negative prompt, seed, step, sampling steps and guidance as text. When `stop` says yes, the rest is left out.
    Raises SpectralError where a picture cannot be written.
    """
    look = Look(size, spec.sample_steps, spec.sample_guidance, spec.sample_negative)
    wanted = shots(spec.sample_prompts, spec.sample_seed)
    paths: list[Path] = []
    with _posed(base) as pipeline:
        for number, shot in enumerate(wanted, start=1):
            if stop():
                break
            picture = _pictures(pipeline, [shot], look, base.scale)[0]
            paths.append(folder / sample_name(step, number))
            save_png(paths[-1], picture, {"step": str(step), **facts(shot, look)})
            listen(Progress(number, len(wanted), shot.prompt))
    return tuple(paths)


def facts(shot: Shot, look: Look) -> dict[str, str]:
    """The texts in a picture's file that say how it was made."""
    return {
        "prompt": shot.prompt,
        "negative": look.negative,
        "seed": str(shot.seed),
        "sampling_steps": str(look.steps),
        "guidance": str(look.guidance),
    }


@contextmanager
def _posed(base: Base) -> Iterator[DiffusionPipeline]:
    """The base as a pipeline: all parts in eval mode on the UNet's device, and back as they were afterwards."""
    pipeline = base.pipeline()
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    places = [(part, part.device) for part in parts if part.device != base.unet.device]
    try:
        for part in parts:
            part.eval()
        for part, _ in places:
            part.to(base.unet.device)
        yield pipeline
    finally:
        for module, training in modes:
            module.training = training
        for part, device in places:
            part.to(device)


@torch.no_grad()
def _pictures(pipeline: DiffusionPipeline, wanted: Sequence[Shot], look: Look, scale: int) -> list[Image.Image]:
    width, height = look.size
    unet = pipeline.unet
    shape = (unet.config.in_channels, height // scale, width // scale)
    # Drawn in float32 whatever the precision: half precision draws other numbers from the same seed.
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(shot.seed)) for shot in wanted]
    latents = pipeline(
        prompt=[shot.prompt for shot in wanted],
        negative_prompt=[look.negative] * len(wanted),
        width=width,
        height=height,
        num_inference_steps=look.steps,
        guidance_scale=look.guidance,
        latents=torch.stack(noise).to(unet.device, unet.dtype),
        output_type="latent",
    ).images
    pixels = torch.cat([_decode(pipeline.vae, one[None]) for one in latents])
    return pipeline.image_processor.postprocess(pixels, output_type="pil")


def _decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """(1, C, h, w) latents -> (1, 3, H, W) pixels in the VAE's own precision; in tiles where memory is short."""
    latents = latents.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    try:
        return vae.decode(latents).sample
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
    tiling = vae.use_tiling
    vae.enable_tiling()
    try:
        return vae.decode(latents).sample
    finally:
        vae.use_tiling = tiling
