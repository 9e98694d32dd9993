"""How much of a change each method can hold, and how long the extraction takes per layer.

    python benchmarks/extract.py

Three matrices of SD1.5's shapes with decaying spectra. The changes: LoRAs of random directions of 3 % and 10 % of the
weight's size, a change that follows the weight's own directions (E W + W F with random E and F), and noise.
"""

from __future__ import annotations

import sys
import time

import torch
from common import decaying, write
from torch import Tensor

import spectral_adapters as sa
from spectral_adapters.spectral.source import Changes

SHAPES = {"lora_unet_a": (320, 320), "lora_unet_b": (640, 768), "lora_unet_c": (1280, 320)}
METHODS = {
    "additive, first 8": ("additive", {"rank": 8}, False),
    "additive, weakest 8": ("additive", {"columns": "bottom:8"}, False),
    "additive, chosen 8": ("additive", {"rank": 8}, True),
    "additive, first 32": ("additive", {"rank": 32}, False),
    "additive, chosen 32": ("additive", {"rank": 32}, True),
    "rotation, first 32": ("rotation", {"rank": 32}, False),
    "rotation, first 128": ("rotation", {"rank": 128}, False),
    "svdiff, all": ("svdiff", {}, False),
    "soda, all": ("soda", {}, False),
}


def lora(weight: Tensor, rank: int, share: float, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    up, down = torch.randn(weight.shape[0], rank, generator=gen), torch.randn(rank, weight.shape[1], generator=gen)
    return up * share * weight.norm() / (up @ down).norm(), down


def following(weight: Tensor, share: float, gen: torch.Generator) -> Tensor:
    left, right = (torch.randn(size, size, generator=gen) for size in weight.shape)
    change = left @ weight + weight @ right
    return change * share * weight.norm() / change.norm()


def noise(weight: Tensor, share: float, gen: torch.Generator) -> Tensor:
    change = torch.randn(weight.shape, generator=gen)
    return change * share * weight.norm() / change.norm()


def changes() -> dict[str, Changes]:
    makers = {
        "LoRA of rank 8, 3 %": lambda w, gen: lora(w, 8, 0.03, gen),
        "LoRA of rank 8, 10 %": lambda w, gen: lora(w, 8, 0.1, gen),
        "LoRA of rank 32, 5 %": lambda w, gen: lora(w, 32, 0.05, gen),
        "following the weight, 5 %": lambda w, gen: following(w, 0.05, gen),
        "noise, 5 %": lambda w, gen: noise(w, 0.05, gen),
    }
    found = {}
    for name, make in makers.items():
        gen, made = torch.Generator().manual_seed(5), {}
        for layer, weight in weights().items():
            made[layer] = (tuple(weight.shape), make(weight, gen))
        found[name] = Changes(made, name=name, kind="LoRA" if "LoRA" in name else "difference")
    return found


def weights() -> dict[str, Tensor]:
    return {name: decaying(shape, seed).half().float() for seed, (name, shape) in enumerate(SHAPES.items())}


def main() -> int:
    own, result = weights(), {}
    for name, source in changes().items():
        result[name] = {}
        for label, (method, settings, choose) in METHODS.items():
            start = time.perf_counter()
            made = sa.extract(source, own, sa.method(method, **settings), choose=choose)
            seconds = (time.perf_counter() - start) / len(SHAPES)
            result[name][label] = {"held": round(made.total, 4), "seconds_per_layer": round(seconds, 2)}
    write("extract", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
