"""A small stand-in for kohya's sd-scripts: the order in which its trainer calls a network module, and its rules.

Own code after its documented behaviour: options as a namespace, folders named REPEATS_CLASS, captions beside the
pictures, latents and noise mixed by the scheduler's alphas, squared error weighted by Min-SNR.
"""

import ast
import importlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

NETWORK = "spectral_adapters.trainer.kohya"
DEFAULTS = {
    "network_module": NETWORK,
    "network_dim": None,
    "network_alpha": 1,
    "network_dropout": None,
    "network_args": None,
    "network_weights": None,
    "dim_from_weights": False,
    "network_train_unet_only": False,
    "network_train_text_encoder_only": False,
    "learning_rate": 2e-6,
    "unet_lr": None,
    "text_encoder_lr": None,
    "optimizer_type": "AdamW",
    "optimizer_args": None,
    "max_grad_norm": 1.0,
    "mixed_precision": "no",
    "full_bf16": False,
    "gradient_checkpointing": False,
    "save_model_as": "safetensors",
    "pretrained_model_name_or_path": "folder/base.safetensors",
    "resume": None,
}


def options(**given: object) -> Namespace:
    """sd-scripts' options with their defaults."""
    assert given.keys() <= DEFAULTS.keys()
    return Namespace(**{**DEFAULTS, **given})


class Host:
    """A training by sd-scripts up to its first step, and then step by step."""

    def __init__(self, args: Namespace, text_encoder: nn.Module | list[nn.Module], unet: nn.Module):
        self.args, self.text_encoder, self.unet = args, text_encoder, unet
        self.accelerator = Accelerator(cpu=True)
        self.network = _create(args, text_encoder, unet)
        try:
            self._begin()
        except BaseException:
            self.network.remove()
            raise

    def _begin(self) -> None:
        args, network, texts = self.args, self.network, self.text_encoders
        network.prepare_network(args)
        network.apply_to(
            self.text_encoder, self.unet, not args.network_train_unet_only, not args.network_train_text_encoder_only
        )
        if args.network_weights is not None:
            self.info = network.load_weights(args.network_weights)
        if args.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        rates = (args.text_encoder_lr, args.unet_lr, args.learning_rate)
        groups, self.descriptions = network.prepare_optimizer_params_with_multiple_te_lrs(*rates)
        optimizer = _optimizer(args, groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
        if args.full_bf16:
            network.to(torch.bfloat16)
        for module in (self.unet, *texts):
            module.requires_grad_(False)
            if args.mixed_precision == "bf16":
                nn.Module.to(module, torch.bfloat16)
        self.network, self.optimizer, self.scheduler = self.accelerator.prepare(network, optimizer, scheduler)
        self.network.prepare_grad_etc(self.text_encoder, self.unet)
        if args.resume is not None:
            self.accelerator.load_state(args.resume)
        self.network.on_epoch_start(self.text_encoder, self.unet)

    @property
    def text_encoders(self) -> list[nn.Module]:
        return self.text_encoder if isinstance(self.text_encoder, list) else [self.text_encoder]

    def step(self, loss_of: Callable[[], Tensor]) -> float:
        """One step on a loss; its value."""
        with self.accelerator.accumulate(self.network):
            self.network.on_step_start(self.text_encoder, self.unet)
            loss = loss_of()
            self.accelerator.backward(loss)
            if self.args.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.network.get_trainable_params(), self.args.max_grad_norm)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def save(self, path: Path, dtype: torch.dtype | None = torch.float32, **metadata: str) -> Path:
        self.network.save_weights(str(path), dtype, metadata)
        return path

    def save_state(self, folder: Path) -> Path:
        self.accelerator.save_state(str(folder))
        return folder


def _create(args: Namespace, text_encoder: nn.Module | list[nn.Module], unet: nn.Module) -> nn.Module:
    module = importlib.import_module(args.network_module)
    given = dict(each.split("=", 1) for each in args.network_args or ())
    if args.dim_from_weights:
        network, _ = module.create_network_from_weights(1, args.network_weights, None, text_encoder, unet, **given)
        return network
    given.setdefault("dropout", args.network_dropout)
    return module.create_network(
        1.0,
        args.network_dim,
        args.network_alpha,
        None,
        text_encoder,
        unet,
        neuron_dropout=args.network_dropout,
        **given,
    )


def _optimizer(args: Namespace, groups: list[dict]) -> torch.optim.Optimizer:
    kind, given = torch.optim.AdamW, {}
    for each in args.optimizer_args or ():
        key, value = each.split("=", 1)
        given[key] = ast.literal_eval(value)
    if "." in args.optimizer_type:
        module, _, name = args.optimizer_type.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
    return kind(groups, lr=args.learning_rate, **given)


def read_folders(root: Path) -> dict[str, tuple[Tensor, str]]:
    """{caption: (picture (3, H, W) in [-1, 1], class tokens)} of REPEATS_CLASS folders."""
    found = {}
    for folder in sorted(root.iterdir()):
        _, _, tokens = folder.name.partition("_")
        for path in sorted(folder.glob("*.png")):
            pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
            caption = path.with_suffix(".txt")
            text = caption.read_text(encoding="utf-8").splitlines()[0].strip() if caption.exists() else tokens
            found[text] = (pixels / 127.5 - 1, tokens)
    return found


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas: Tensor,
    gamma: float,
) -> Tensor:
    """Squared error of the predicted noise, per picture times min(SNR, gamma) / SNR, averaged."""
    a = alphas[timesteps].view(-1, 1, 1, 1)
    error = (predict(a.sqrt() * latents + (1 - a).sqrt() * noise, timesteps) - noise).square().mean(dim=(1, 2, 3))
    snr = alphas[timesteps] / (1 - alphas[timesteps])
    return (error * snr.clamp(max=gamma) / snr).mean()
