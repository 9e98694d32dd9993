"""Show a folder of ours in the file manager of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..spectral.errors import SpectralError


def can_open_folders() -> bool:
    """Whether this machine has a screen and a file manager, as far as can be told."""
    return _opener() is not None


def open_folder(folder: Path) -> None:
    """Open the folder's window. Raises SpectralError with the folder's path where that fails."""
    opener = _opener()
    if opener is None:
        raise SpectralError(f"found no screen or no file manager on this machine; the folder is {folder}")
    try:
        opener(folder)
    except OSError as error:
        raise SpectralError(f"opening the folder failed ({error}); it is {folder}") from error


def _opener() -> Callable[[Path], object] | None:
    if sys.platform == "win32":
        return os.startfile
    if sys.platform == "darwin":
        return lambda folder: _start("open", str(folder))
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    program = shutil.which("xdg-open")
    return (lambda folder: _start(program, str(folder))) if screen and program else None


def _start(*command: str) -> None:
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
