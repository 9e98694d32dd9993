"""Which sd-scripts is used here: what the command line says, else the environment, else what was remembered.

A program is named here, so nothing of this ever comes from a request: pages and nodes learn only whether there is one.
Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ...spectral.errors import SettingError, SpectralError
from .. import files
from .checkout import Checkout, open_checkout

FOLDER_VARIABLE, PYTHON_VARIABLE = "SPECTRAL_SD_SCRIPTS_DIR", "SPECTRAL_SD_SCRIPTS_PYTHON"
HOW = (
    "Give both with --sd-scripts DIR --python PY, or once for all with `kohya --remember --sd-scripts DIR --python PY`"
)


def find(folder: Path | None = None, python: Path | None = None) -> Checkout:
    """The checkout to use. Raises SettingError where none is set up, or it is not usable.

    folder, python: of the command line; each is looked for by itself where it is not given. Where only the folder is
    known, its own virtual environment is taken.
    """
    kept = _remembered()
    folder = folder or _variable(FOLDER_VARIABLE) or kept.get("folder")
    if folder is None:
        raise SettingError(f"found no sd-scripts set up here; expected its folder and its Python. {HOW}.")
    python = python or _variable(PYTHON_VARIABLE) or kept.get("python") or _own_python(folder)
    if python is None:
        raise SettingError(
            f"found sd-scripts in {folder} but no Python for it: no venv or .venv lies in that folder. {HOW}."
        )
    return open_checkout(folder, python)


def why_not() -> str:
    """A sentence saying why sd-scripts cannot be used here, "" where it can. Nothing of it is run."""
    try:
        find()
    except SettingError as error:
        return str(error)
    return ""


def remember(checkout: Checkout) -> Path:
    """Keep the checkout for every later command and panel of this user; the file written. Raises SpectralError."""
    path = remembered_file()
    values = {"folder": str(checkout.folder), "python": str(checkout.python)}
    try:
        files.make_folder(path.parent)
        files.write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())
    except OSError as error:
        raise files.refusal("remembering sd-scripts", path, error, f"Set {FOLDER_VARIABLE} instead") from error
    return path


def forget() -> None:
    """Keep none any more."""
    try:
        remembered_file().unlink(missing_ok=True)
    except OSError as error:
        raise SpectralError(f"{remembered_file()}: cannot be removed ({error.strerror or error})") from error


def remembered_file() -> Path:
    """One for the user, whatever program shows the panel."""
    return Path.home() / "spectral_adapters" / "sd_scripts.json"


def _remembered() -> dict[str, Path]:
    path = remembered_file()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: found {error}; expected what `kohya --remember` writes. Remove it.") from error
    if not isinstance(values, dict) or not all(isinstance(values.get(name), str) for name in ("folder", "python")):
        raise SettingError(f"{path}: found no folder and python in it; expected what `kohya --remember` writes")
    return {name: Path(values[name]) for name in ("folder", "python")}


def _variable(name: str) -> Path | None:
    return Path(os.environ[name]) if os.environ.get(name) else None


def _own_python(folder: Path) -> Path | None:
    """The Python of a virtual environment inside the checkout, as its own and its GUI's installers make one."""
    places = ("Scripts/python.exe",) if os.name == "nt" else ("bin/python",)
    found = (folder.expanduser() / venv / place for venv in ("venv", ".venv") for place in places)
    return next((path for path in found if path.is_file()), None)
