"""Show a folder of ours in the file manager of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..spectral.errors import SpectralError


def show_folder(folder: Path, *, here: bool) -> None:
    """Open the folder, where `here` says that the user sits at this machine.

    Raises SpectralError with the folder's path where there is no file manager to show it.
    """
    show = _way() if here else None
    if show is None:
        raise SpectralError(f"this server cannot open a folder's window on its machine; the folder is {folder}")
    try:
        show(folder)
    except OSError as error:
        raise SpectralError(f"opening the folder failed ({error}); it is {folder}") from error


def can_show_folders() -> bool:
    """Whether this machine has a screen and a file manager, as far as can be told."""
    return _way() is not None


def _way() -> Callable[[Path], object] | None:
    if sys.platform == "win32":
        return os.startfile
    if sys.platform == "darwin":
        return lambda folder: _start(["open", str(folder)])
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    opener = shutil.which("xdg-open")
    return (lambda folder: _start([opener, str(folder)])) if screen and opener else None


def _start(command: list[str]) -> None:
    subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
