"""The command `kohya`: a training by sd-scripts, from the settings that `train` takes."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..options import add_train_arguments, read_train_spec

if TYPE_CHECKING:
    from ..events import Event
    from ..spec import TrainSpec
    from .checkout import Checkout
    from .run import DryRun

_SAID = (
    "Train an adapter with kohya's sd-scripts: your own checkout, run with its own Python, on the settings of `train`. "
    "docs/kohya.md says how to set it up, and what is different."
)
_USAGE = "%(prog)s [SPEC] [--sd-scripts DIR --python PY] [--base … --images … --out …] [more options]"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """All options of `train`, and which sd-scripts does it."""
    add_train_arguments(command)
    command.description, command.usage = _SAID, _USAGE
    which = command.add_argument_group("sd-scripts")
    which.add_argument(
        "--sd-scripts", type=Path, metavar="DIR",
        help="its checkout (default: SPECTRAL_SD_SCRIPTS_DIR, else what was remembered)",
    )  # fmt: skip
    which.add_argument(
        "--python", type=Path, metavar="PY",
        help="the Python it is installed in (default: SPECTRAL_SD_SCRIPTS_PYTHON, else what was remembered, else its "
        "own venv)",
    )  # fmt: skip
    keep = which.add_mutually_exclusive_group()
    keep.add_argument("--remember", action="store_true", help="use this checkout from now on; the panel offers it too")
    keep.add_argument("--forget", action="store_true", help="remember none any more")


def run(args: argparse.Namespace) -> int:
    """Remember a checkout, or train with it. Raises SpectralError."""
    from . import place

    if args.forget:
        place.forget()
        print(f"{place.remembered_file()} is removed.")
        return 0
    checkout = place.find(args.sd_scripts, args.python)
    if args.remember:
        return _remember(checkout)
    from ..console import quiet_libraries

    spec = read_train_spec(args)
    quiet_libraries()
    if args.dry_run:
        from .run import dry_run

        _show(dry_run(spec, checkout, lambda event: _note(event, args.json)), checkout, args.json)
        return 0
    return _train(args, spec, checkout)


def _remember(checkout: Checkout) -> int:
    from .checkout import check_python
    from .place import remember

    check_python(checkout)
    version = f" (version {checkout.version})" if checkout.version else ""
    print(f"sd-scripts in {checkout.folder}{version} with {checkout.python} is remembered in {remember(checkout)}.")
    return 0


def _train(args: argparse.Namespace, spec: TrainSpec, checkout: Checkout) -> int:
    from ...spectral.errors import SpectralError
    from ..console import Console, Follower, StopOnSignal, print_json, resume_command
    from .run import run as train

    with Console(resume_command(args.typed), spec.run_folder) as console, StopOnSignal() as stop:
        follower = Follower(print_json if args.json else console)
        try:
            train(spec, checkout, follower, stop=stop, resume=args.resume, allow=args.allow)
        except SpectralError as error:
            follower.end(error)
        return follower.status


def _note(event: Event, as_json: bool) -> None:
    from ..console import event_text
    from ..events import Notice

    if isinstance(event, Notice) and not as_json:
        print(event_text(event))


def _show(found: DryRun, checkout: Checkout, as_json: bool) -> None:
    if as_json:
        values = {"command": found.command, "folder": str(checkout.folder)}
        print(json.dumps({**values, "files": {str(path): text for path, text in found.files.items()}}))
        return
    print(f"\nIn {checkout.folder}:\n  {shlex.join(found.command)}")
    for path, text in found.files.items():
        print(f"\n--- {path}\n{text}", end="")
    print("\nNothing was trained, and no file was written.")
