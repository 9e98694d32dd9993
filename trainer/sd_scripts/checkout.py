"""A checkout of sd-scripts and the Python that runs it: whether both are what this package can start.

A checkout says its version only in its README; what counts is what its files hold.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ...spectral.errors import SettingError

LEAST = "0.10.0"
TRIED = "0.10.1"
# What the trainers have that is counted on, by file; 0.10.0 is the first version with all of it.
_MARKS = {
    "train_network.py": (
        "class NetworkTrainer",
        "def process_batch(",
        "def post_process_network(",
        "def setup_parser(",
    ),
    "sdxl_train_network.py": ("class SdxlNetworkTrainer", "def setup_parser("),
    "library/train_util.py": ("def read_config_from_file(", "def save_and_remove_state_stepwise("),
}
_VERSION = re.compile(r"\*\*Version (\d+\.\d+\.\d+)")
_NEEDED = (
    "torch", "numpy", "safetensors", "accelerate", "transformers", "diffusers", "toml", "voluptuous",
    "imagesize", "cv2", "filelock", "psutil",
)  # fmt: skip
_PROBE = """
import importlib.util, json, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
print(json.dumps([list(sys.version_info[:2]), missing]))
"""
_PROBE_S = 60  # seconds; a Python on a cold or remote disk is slow to start


@dataclass(frozen=True)
class Checkout:
    """A folder of sd-scripts and its Python, both absolute; made by `open_checkout`.

    version: of the newest entry in its README, "" where that says none.
    """

    folder: Path
    python: Path
    version: str = ""

    def trainer(self, family: str) -> tuple[str, str]:
        """The module and the class that train networks on a base of this family."""
        if family == "sdxl":
            return "sdxl_train_network", "SdxlNetworkTrainer"
        return "train_network", "NetworkTrainer"


def open_checkout(folder: Path, python: Path) -> Checkout:
    """The checkout, after a look at its files; nothing of it is run. Raises SettingError for what is not usable."""
    folder, python = folder.expanduser().absolute(), python.expanduser().absolute()
    if not folder.is_dir():
        raise SettingError(f"sd-scripts: found no folder {folder}; expected a checkout of kohya's sd-scripts")
    version = _version(folder)
    for name, marks in _MARKS.items():
        text = _read(folder / name)
        if text is None:
            raise SettingError(
                f"sd-scripts: found no {name} in {folder}; expected a checkout of kohya's sd-scripts, the folder that "
                "holds train_network.py"
            )
        if lacking := next((mark for mark in marks if mark not in text), None):
            raise SettingError(
                f"sd-scripts: found {_shown(version)} in {folder}, whose {name} has no {lacking.strip('(')!r}; "
                f"expected version {LEAST} or newer. Update it with git pull."
            )
    # A virtual environment's Python is a link, and only under that name it finds its packages: it is not followed.
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise SettingError(
            f"sd-scripts: found no program {python}; expected the Python that sd-scripts is installed in, for instance "
            f"{folder / 'venv' / _PYTHON_IN_VENV}"
        )
    return Checkout(folder, python, version)


def check_python(checkout: Checkout) -> None:
    """Raise SettingError unless its Python starts and has the packages that a training needs. Takes a second."""
    command = [str(checkout.python), "-c", _PROBE, *_NEEDED]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=True)
        version, missing = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise SettingError(
            f"sd-scripts: found that {checkout.python} does not run ({said[-1] if said else error}); expected the "
            "Python that sd-scripts is installed in"
        ) from error
    if tuple(version) < (3, 10):
        found = ".".join(map(str, version))
        raise SettingError(f"sd-scripts: found Python {found} at {checkout.python}; expected 3.10 or newer")
    if missing:
        raise SettingError(
            f"sd-scripts: found no {' and no '.join(missing)} in {checkout.python}; expected sd-scripts to be "
            f"installed there. Install what is missing: {checkout.python} -m pip install -r "
            f"{checkout.folder / 'requirements.txt'}"
        )


_PYTHON_IN_VENV = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")


def _shown(version: str) -> str:
    return f"version {version}" if version else "an unknown version"


def _version(folder: Path) -> str:
    """The newest version that the README's list of changes names."""
    found = _VERSION.findall(_read(folder / "README.md") or "")
    return max(found, key=lambda text: tuple(map(int, text.split("."))), default="")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
