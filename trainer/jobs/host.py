"""What the program that shows trainings can do for them, and which devices it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .job import Entry

_PROBE_S = 120  # seconds; the first import of torch on a cold disk is slow
# What `_known` asks of torch, for a process of its own.
_PROBE = """
import json, torch
cuda = torch.cuda
names = [cuda.get_device_name(i) for i in range(cuda.device_count())] if cuda.is_available() else []
print(json.dumps([names, torch.backends.mps.is_available()]))
"""


class Host(Protocol):
    """A program around the supervisor. Its methods are called from the supervisor's thread.

    name: as people know it. can: what its pages may offer: "graph" (put a loader into a graph), "open" (open a folder).
    """

    name: str
    can: frozenset[str]

    def idle(self) -> bool:
        """Whether nothing of the host's own is at work, so that a training that waits for that may begin."""
        ...

    def release(self) -> None:
        """Give the GPU's memory back, as far as the host holds any."""
        ...

    def changed(self, entry: Entry) -> None:
        """A job's state has changed; a finished one has a new adapter file."""
        ...


class Standalone:
    """No program around: nothing to wait for, nothing to release."""

    name = "Spectral Adapters"
    can = frozenset({"open"})

    def idle(self) -> bool:
        return True

    def release(self) -> None:
        return None

    def changed(self, entry: Entry) -> None:
        return None


@dataclass(frozen=True)
class Device:
    """Where one training at a time can run. id: cpu, mps or cuda:N."""

    id: str
    label: str


CPU = Device("cpu", "CPU")


def find_devices() -> tuple[Device, ...]:
    """The GPUs, then the CPU. Where torch is not loaded a short-lived process asks it, so that this one stays light."""
    torch = sys.modules.get("torch")
    names, apple = _asked() if torch is None else _known(torch)
    found = [Device(f"cuda:{i}", name) for i, name in enumerate(names)]
    return (*found, *([Device("mps", "Apple GPU")] if apple else []), CPU)


def _known(torch: Any) -> tuple[list[str], bool]:
    """The names of the GPUs that CUDA or ROCm sees, and whether there is Apple's."""
    cuda = torch.cuda
    names = [cuda.get_device_name(i) for i in range(cuda.device_count())] if cuda.is_available() else []
    return names, torch.backends.mps.is_available()


def _asked() -> tuple[list[str], bool]:
    try:
        found = subprocess.run(
            [sys.executable, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_S,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            cwd=os.path.dirname(sys.executable) or None,
            check=True,
        )
        names, apple = json.loads(found.stdout.splitlines()[-1])
        return [str(name) for name in names], bool(apple)
    # The training itself says what is wrong with torch.
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return [], False
