"""About a second of products and of small operations: what a device does per second, for estimates of time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .memory import LiveStorage
from .speed import Machine

_SECONDS = 0.5  # of each of the two
_LEAST = 10  # repeats, also where other work takes the machine
_DEAREST = 5e-5  # seconds that no machine in use needs to start an operation, unless something else holds it up
_SIDE = {"cpu": 768, "cuda": 4096, "mps": 2048}
_LAYERS = 24


def calibrate(device: torch.device, dtype: torch.dtype) -> Machine:
    """The best of several repeats, since other work on the machine only ever makes it slower."""
    side = _SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = _best(lambda: a @ b, device)
    chain, x = _small_layers(device), torch.randn(8, 32, device=device)
    with LiveStorage() as live:
        _both_ways(chain, x)
    start = _best(lambda: _both_ways(chain, x), device) / live.calls
    return Machine(2 * side**3 / product, min(start, _DEAREST))


def _small_layers(device: torch.device) -> nn.Module:
    """Layers so small that only starting their operations takes time."""
    layers = (nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.SiLU()) for _ in range(_LAYERS))
    return nn.Sequential(*layers).to(device)


def _both_ways(module: nn.Module, x: Tensor) -> None:
    torch.autograd.grad(module(x).sum(), list(module.parameters()))


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest repeat; the first call is left out."""
    _seconds(work, device)
    end, found = time.perf_counter() + _SECONDS, []
    while len(found) < _LEAST or time.perf_counter() < end:
        found.append(_seconds(work, device))
    return min(found)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - started
