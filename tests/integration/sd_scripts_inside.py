"""Runs in sd-scripts' own Python: one of its trainers, of its real model or a narrow one, if wanted with given draws.

    python sd_scripts_inside.py PLAN.json ARGUMENT ...

PLAN: script, the name of the trainer's module; narrow, null or what `sd_scripts_narrow` says of a narrow model; draws,
null or: file (safetensors with noise (steps, pictures, 4, h, w) and timesteps (steps, pictures)), captions (of the
pictures, in the order of the draws), first (the first step's place in the draws), seen (a file to write: latents
(pictures, 4, h, w) and the loss of every step). With draws, latents are the mean of their distribution, so that nothing
else is random.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Draws:
    """The given noise and timesteps, dealt out by picture; remembers what it saw."""

    def __init__(self, plan: dict):
        table = load_file(plan["file"])
        self.noise, self.timesteps = table["noise"], table["timesteps"]
        self.captions, self.step, self.seen = plan["captions"], plan["first"], Path(plan["seen"])
        self.pictures: list[int] = []
        self.latents: dict[int, Tensor] = {}
        self.losses: list[float] = []

    def deal(self, _args: object, scheduler: object, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In the place of sd-scripts' function: noise, noisy latents, timesteps."""
        self.latents |= {picture: latent.detach().clone() for picture, latent in zip(self.pictures, latents)}
        noise, timesteps = self.noise[self.step, self.pictures], self.timesteps[self.step, self.pictures]
        noisy = scheduler.add_noise(latents, noise, timesteps)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.cpu()
        self.step += 1
        return noise, noisy, timesteps

    def write(self) -> None:
        latents = torch.stack([self.latents[picture] for picture in sorted(self.latents)])
        save_file({"latents": latents.contiguous(), "losses": torch.tensor(self.losses)}, self.seen)


def with_draws(trainer: type, draws: Draws) -> type:
    """The trainer's class, telling the draws which pictures are in a batch."""

    class Fixed(trainer):
        def process_batch(self, batch: dict, *args: object, **settings: object) -> Tensor:
            draws.pictures = [draws.captions.index(caption) for caption in batch["captions"]]
            loss = super().process_batch(batch, *args, **settings)
            draws.losses.append(loss.item())
            return loss

    return Fixed


def narrow(widths: dict) -> None:
    """Make the next model a narrow one: the widths that are constants of sd-scripts' code, and those in place."""
    from library import model_util, sdxl_model_util, sdxl_original_unet

    for name, values in widths["constants"].items():
        for constant, value in values.items():
            setattr(importlib.import_module(name), constant, value)

    class Transformer2DModel(sdxl_original_unet.Transformer2DModel):
        def __init__(self, **own: object):
            super().__init__(**(own | {"cross_attention_dim": widths["context"]}))

    if widths["context"]:
        sdxl_original_unet.Transformer2DModel = Transformer2DModel
    config, vae = model_util.CLIPTextConfig, model_util.create_vae_diffusers_config()
    for module in (model_util, sdxl_model_util):
        module.CLIPTextConfig = lambda **own: config(**(own | widths["text"][str(own["hidden_size"])]))
    model_util.create_vae_diffusers_config = lambda: vae | widths["vae"]


def train(module: ModuleType, trainer: type, arguments: list[str]) -> None:
    """What the module does as a program, with another trainer."""
    from library import train_util

    parser = module.setup_parser()
    args = parser.parse_args(arguments)
    train_util.verify_command_line_training_args(args)
    trainer().train(train_util.read_config_from_file(args, parser))


def main(plan: dict, arguments: list[str]) -> None:
    sys.path[0] = str(Path.cwd())  # the checkout, in the place of this file's folder
    module = importlib.import_module(plan["script"])
    if plan["narrow"]:
        narrow(plan["narrow"])
    own = module.SdxlNetworkTrainer if plan["script"].startswith("sdxl") else module.NetworkTrainer
    if not plan["draws"]:
        train(module, own, arguments)
        return
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from library import train_util

    draws = Draws(plan["draws"])
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    train_util.get_noise_noisy_latents_and_timesteps = draws.deal
    train(module, with_draws(own, draws), arguments)
    draws.write()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2:])
