"""Who a process is, so that it is told apart from another that gets its number later."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK = 2.0  # seconds by which two readings of a process's start may differ


@dataclass(frozen=True)
class Process:
    """A process of a machine. started: seconds from the machine's boot, boot: its id where the system has one."""

    pid: int
    started: float
    boot: str
    host: str

    def is_gone(self) -> bool:
        """Whether the process is certainly no longer there; of another machine that is never known."""
        if self.host != platform.node():
            return False
        if self.boot != _boot():
            return True
        try:
            # A zombie has died but its parent, perhaps a web server, has not asked how.
            zombie = psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            return zombie or abs(_started(self.pid) - self.started) > _CLOCK
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


def this() -> Process:
    """The process that asks."""
    return of(os.getpid())


def of(pid: int) -> Process:
    """The process of this machine that has the number now. Raises psutil.NoSuchProcess."""
    return Process(pid, _started(pid), _boot(), platform.node())


def _boot() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def _started(pid: int) -> float:
    # From boot, because setting the clock moves both readings alike.
    return round(psutil.Process(pid).create_time() - psutil.boot_time(), 1)
