"""Starting sd-scripts: its own Python, an argument list without a shell, an environment without secrets."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from ...spectral.errors import SpectralError
from ..console import OFFLINE
from ..jobs.environment import PACK, child_environment
from .checkout import Checkout

COMMAND = "sd-scripts-child"
# What leads a Python to packages that are not its own.
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONSTARTUP")
_WAIT = 10  # seconds for a process to end when asked


def command(checkout: Checkout, job: Path) -> list[str]:
    """How the process is started."""
    return [str(checkout.python), str(PACK), COMMAND, str(job)]


def environment(host: Mapping[str, str], device: str | None) -> dict[str, str]:
    """The environment of sd-scripts' Python, made from ours. device: "cpu" keeps it off the GPU."""
    # As by hand, sd-scripts may fetch a tokenizer, unless the user keeps everything off the network.
    dropped = (*_FOREIGN, "HF_HUB_OFFLINE") if OFFLINE in host else _FOREIGN
    found = {name: value for name, value in child_environment(host, "").items() if name not in dropped}
    if device == "cpu":
        found |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    return found


def start(checkout: Checkout, job: Path, device: str | None) -> subprocess.Popen[bytes]:
    """The process, with its whole output on one pipe. Raises SpectralError where it cannot be started.

    It is in a group of its own, so that Ctrl-C reaches us alone and sd-scripts is asked politely.
    """
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    try:
        return subprocess.Popen(
            command(checkout, job),
            cwd=checkout.folder,
            env=environment(os.environ, device),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            **group,
        )
    except OSError as error:
        raise SpectralError(f"sd-scripts: {checkout.python} could not be started ({error}).") from error


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it has started, by force where it does not listen."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.terminate()
        for each in psutil.wait_procs(family, timeout=_WAIT)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()
