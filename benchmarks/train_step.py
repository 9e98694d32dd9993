"""Seconds of one training step of the SD1.5 UNet's attention layers beside a LoRA's, in one run on one machine.

    python benchmarks/train_step.py [--pixels 256] [--repeats 3]

The UNet has SD1.5's architecture and random weights. A step is forward, backward and no optimiser. "lora" is a plain
rank-8 LoRA on the same layers, put on in the same way; "svdiff rebuilt" forms U diag(.) V^T at every forward, as other
implementations do. The variants take turns, so that a busy machine slows all of them alike; the fastest turn counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from common import sd15_unet, write
from torch import Tensor, nn

import spectral_adapters as sa
from spectral_adapters.spectral.basis import Basis
from spectral_adapters.spectral.methods.base import Params
from spectral_adapters.spectral.methods.svdiff import SVDiff, shift
from spectral_adapters.spectral.ops import LinearMap
from spectral_adapters.spectral.targets import select


class RebuiltSVDiff(SVDiff):
    """SVDiff as it is usually trained: the whole weight anew at every forward."""

    name = "svdiff rebuilt"

    def apply(self, op: LinearMap, basis: Basis, params: Params, x: Tensor) -> Tensor:
        return op.base(x, (basis.u * shift(basis, params["delta"])) @ basis.v.T)


def put_on_lora(unet: nn.Module, rank: int = 8) -> Callable[[], None]:
    unet.requires_grad_(False)
    layers = [unet.get_submodule(path) for path in select(unet, "attention")]
    for layer in layers:
        down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        up = nn.Parameter(torch.zeros(layer.out_features, rank))
        own = layer.forward
        layer.forward = lambda x, own=own, down=down, up=up: own(x) + (x @ down.T) @ up.T

    def take_off() -> None:
        for layer in layers:
            del layer.__dict__["forward"]

    return take_off


def put_on(unet: nn.Module, method: sa.Method, bases: sa.BasisCache) -> Callable[[], None]:
    _, adapter = sa.inject(unet, method, "attention", prefix="lora_unet_", cache=bases)
    return adapter.remove


def step(unet: nn.Module, pixels: int) -> float:
    gen = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 4, pixels // 8, pixels // 8, generator=gen)
    text = torch.randn(1, 77, 768, generator=gen)
    start = time.perf_counter()
    unet(noisy, torch.tensor([500]), text).sample.square().mean().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    unet, cache = sd15_unet(), sa.BasisCache()
    variants = {
        "lora": lambda: put_on_lora(unet),
        "svdiff": lambda: put_on(unet, sa.method("svdiff"), cache),
        "svdiff rebuilt": lambda: put_on(unet, RebuiltSVDiff(), cache),
        "additive rank 8": lambda: put_on(unet, sa.method("additive", rank=8), cache),
        "rotation rank 8": lambda: put_on(unet, sa.method("rotation", rank=8), cache),
        "soda": lambda: put_on(unet, sa.method("soda"), cache),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(args.repeats):
        for name, variant in variants.items():
            take_off = variant()
            step(unet, args.pixels)  # fills what the first step keeps, such as projected weights
            seconds[name].append(step(unet, args.pixels))
            take_off()
            print(turn, name, round(seconds[name][-1], 2), flush=True)
    best = {name: min(times) for name, times in seconds.items()}
    write(
        "train_step",
        {
            "pixels": args.pixels,
            "seconds": {name: round(t, 2) for name, t in best.items()},
            "times_lora": {name: round(t / best["lora"], 2) for name, t in best.items()},
        },
    )


if __name__ == "__main__":
    main()
