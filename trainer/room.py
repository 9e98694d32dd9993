"""Memory that a training could have, asked without touching the GPU: a process that uses it takes some itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

import psutil

_PATIENCE = 3.0  # seconds
_MIB = 1 << 20


def free_bytes(device: str, host: int | None = None) -> int | None:
    """Free bytes of the machine ("cpu") or of a GPU ("cuda", "cuda:N"); None where nobody tells.

    host: the id of a process that will give up its memory on the GPU before.
    """
    if device == "cpu":
        return psutil.virtual_memory().available
    if not device.startswith("cuda"):
        return None
    gpu = _physical(int(device.partition(":")[2] or 0))
    free = _ask(["--query-gpu=memory.free", f"--id={gpu}"])
    if not free:
        return None
    held = _ask(["--query-compute-apps=pid,used_gpu_memory", f"--id={gpu}"]) if host is not None else []
    return _MIB * (int(free[0][0]) + sum(int(size) for pid, size in held if pid == str(host) and size.isdigit()))


def _physical(number: int) -> str:
    """The driver's number, or id, of the GPU that this process counts as `number`."""
    seen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return seen[number] if number < len(seen) else str(number)


def _ask(query: Sequence[str]) -> list[list[str]]:
    """The rows of nvidia-smi's answer; none where it is missing or says something else."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, *query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
