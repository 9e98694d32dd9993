"""Training in two one-thread processes that average their gradients, with checkpoints to go on from.

One process with two threads is slower: as soon as anything else runs, its threads wait for each other in every layer.
"""
from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _worker(rank: int, world: int, port: int, task: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    task(rank, world, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def launch(task: Callable, arguments: tuple, world: int) -> None:
    """Run `task(rank, world, *arguments)` in `world` processes and wait for all of them."""
    # glibc otherwise returns every large buffer to the kernel and faults it in again: a quarter of the time.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**33))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, args=(world, port, task, arguments), nprocs=world, join=True)


def average_gradients(parameters: Iterable[torch.nn.Parameter], world: int) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` so that a crash leaves the old file or the new one."""
    part = path.with_suffix(".part")
    with open(part, "wb") as handle:
        torch.save(state, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)


def load_checkpoint(path: Path) -> dict | None:
    """The state saved at `path`, or None where training starts afresh."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def learning_rate(step: int, steps: int, peak: float, warmup: int, hold: float) -> float:
    """Linear warm-up over `warmup` steps, constant to the share `hold` of `steps`, then linear to 2 % of `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = max(0.0, (step / steps - hold) / (1 - hold))
    return peak * (1 - 0.98 * min(1.0, done))
