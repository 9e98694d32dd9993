"""Run by ComfyUI-Manager once and by a web UI at every start: says what is missing, installs nothing.

Applying adapters needs torch, numpy and safetensors, which every host brings; another version of one of them can break
the host. Training in ComfyUI needs what requirements.txt lists; the Manager has installed that by the time it runs this
file. A web UI only applies adapters, so there not a word is said unless one of the three is missing.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

APPLYING = ("torch", "numpy", "safetensors")
OLDEST = (3, 10)
# Python has its own copy of tomli from 3.11 on.
IMPORT_NAMES = {"pillow": "PIL", "tomli": "tomllib" if sys.version_info >= (3, 11) else "tomli"}


def in_web_ui() -> bool:
    """Whether a web UI started this process: its folder, with launch.py and modules/, is then on the path."""
    launch = find_spec("launch")
    return launch is not None and launch.origin is not None and (Path(launch.origin).parent / "modules").is_dir()


def missing(requirements: Path) -> list[str]:
    """The packages of a requirements file that cannot be imported here. Nothing is imported to find out."""
    names = (line.split("#")[0].split(";")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    return [name for name in names if name and find_spec(IMPORT_NAMES.get(name, name)) is None]


def web_ui_faults() -> list[str]:
    """What keeps adapters from being applied in the web UI, in sentences."""
    absent = [name for name in APPLYING if find_spec(name) is None]
    faults = []
    if sys.version_info < OLDEST:
        faults.append(f"found Python {sys.version.split()[0]}, expected {'.'.join(map(str, OLDEST))} or newer")
    if absent:
        faults.append(f"{', '.join(absent)} cannot be found in {sys.executable}, which the web UI itself installs")
    return faults


def main() -> None:
    """Print what is missing, and what to do; nothing where nothing is."""
    if in_web_ui():
        for fault in web_ui_faults():
            print(f"Spectral Adapters cannot be applied: {fault}. Have the web UI install its own packages again.")
        return
    absent = missing(Path(__file__).parent / "requirements.txt")
    if absent:
        print(f"Spectral Adapters: training needs {', '.join(absent)}; applying adapters works without.")
        print(f"  To train, run: python -m pip install {' '.join(absent)}")


if __name__ == "__main__":
    main()
