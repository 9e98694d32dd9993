"""The picture autoencoder: 64 x 64 x 3 to 16 x 16 x 4 and back."""
from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from parallel import average_gradients, learning_rate, load_checkpoint, save_checkpoint
from torch.nn import functional

WIDTHS = (24, 40, 56)
BATCH = 8
PEAK_RATE = 2.5e-3
KL_WEIGHT = 1e-4


def build_vae(scaling_factor: float = 1.0) -> AutoencoderKL:
    """An untrained autoencoder: one layer per block, no attention. Latents times `scaling_factor` have variance 1."""
    blocks = len(WIDTHS)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=WIDTHS, layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=64,
        mid_block_add_attention=False, scaling_factor=scaling_factor,
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images: torch.Tensor) -> np.ndarray:
    """float (n, 3, h, w) in -1..1 to uint8 (n, h, w, 3)."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + 0.4 L1 of the differences between neighbours + 3 MSE: the second term keeps edges sharp."""
    difference = output - target
    edges = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    edges = edges + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return difference.abs().mean() + 0.4 * edges + 3 * difference.square().mean()


def psnr(output: np.ndarray, target: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; both uint8 (n, h, w, 3)."""
    error = ((output.astype(np.float64) - target) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-9))))


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """Encode and decode uint8 pictures."""
    parts = []
    for start in range(0, len(pictures), 32):
        latents = vae.encode(to_tensor(pictures[start : start + 32])).latent_dist.mode()
        parts.append(to_pictures(vae.decode(latents).sample))
    return np.concatenate(parts)


def train_vae(rank: int, world: int, work: Path, steps: int, seed: int, bf16: bool) -> None:
    """Train on `work`/vae_pictures.npy; leaves `work`/vae.pt. Goes on from its last checkpoint.

    `bf16` multiplies in bfloat16 (weights stay float32): 1.8 times as fast where the processor has AVX512-BF16.
    """
    pictures = np.load(work / "vae_pictures.npy", mmap_mode="r")
    torch.manual_seed(seed)
    vae = build_vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    first, before, path = 0, 0.0, work / "vae.pt"
    if state := load_checkpoint(path):
        first, before = state["step"], state["seconds"]
        vae.load_state_dict(state["vae"])
        if first < steps:
            optimizer.load_state_dict(state["optimizer"])
    started, last_save, mean_loss = time.time(), time.time(), 0.0
    for step in range(first, steps):
        rng = np.random.default_rng((seed, 1, step, rank))
        torch.manual_seed(int(rng.integers(2**31)))
        target = to_tensor(pictures[np.sort(rng.integers(len(pictures), size=BATCH))])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            posterior = vae.encode(target).latent_dist
            output = vae.decode(posterior.sample()).sample
        output = output.float()
        loss = reconstruction_loss(output, target) + KL_WEIGHT * posterior.kl().mean() / math.prod((4, 16, 16))
        optimizer.zero_grad()
        loss.backward()
        average_gradients(vae.parameters(), world)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_RATE, warmup=50, hold=0.4)
        optimizer.step()
        error = functional.mse_loss(output.detach().clamp(-1, 1), target).item()
        mean_loss = error if step == first else 0.98 * mean_loss + 0.02 * error
        last = step + 1 == steps
        if rank == 0 and (last or (step + 1) % 100 == 0):
            decibel = 10 * math.log10(4 / mean_loss)
            print(f"vae {step + 1}/{steps} psnr {decibel:.2f} dB {(time.time() - started):.0f} s", flush=True)
        if rank == 0 and (last or time.time() - last_save > 120):
            last_save = time.time()
            save_checkpoint(path, {"step": step + 1, "seconds": before + time.time() - started,
                                   "vae": vae.state_dict(), "optimizer": optimizer.state_dict()})
