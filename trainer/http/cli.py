"""The command `ui`: the panel as a page of its own, for people without ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..jobs.host import Device
    from ..studio import Studio

DEFAULT_PORT = 8190


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `ui`."""
    command.description = (
        "Show the training panel in the browser. Only this machine can reach it, and only with the token in the "
        "address that is printed. Trainings go on when it is closed."
    )
    add = command.add_argument
    add("--home", type=Path, default=None, help="folder of the jobs (default: spectral_adapters in the home folder)")
    add(
        "--root",
        type=_named_folder,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a folder whose sub-folders are datasets (repeatable)",
    )
    add(
        "--models",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with base models, .safetensors or diffusers folders (repeatable)",
    )
    add("--port", type=_port, default=DEFAULT_PORT, help=f"0 for any free one (default: {DEFAULT_PORT})")
    add("--no-browser", action="store_true", help="only print the address")
    add("--device", default=None, metavar="NAME", help="train on this device alone: cpu, cuda:0, ... (default: all)")


def run(args: argparse.Namespace) -> int:
    """Serve until asked to stop. Raises SpectralError."""
    import secrets

    from .app import serve

    studio = _studio(args)
    studio.start()
    try:
        serve(studio, args.port, secrets.token_urlsafe(32), lambda address: _ready(address, not args.no_browser))
    finally:
        studio.close()
    return 0


def _studio(args: argparse.Namespace) -> Studio:
    from ...spectral.errors import SettingError
    from ..files import refusal
    from ..jobs.cli import DEFAULT_HOME
    from ..jobs.host import Standalone
    from ..places import standalone
    from ..studio import Studio

    home = Path.home() / DEFAULT_HOME if args.home is None else args.home
    for folder in args.models:
        if not folder.is_dir():
            raise SettingError(f"--models: found no folder {folder}, expected one with base models")
    try:
        places = standalone(home, dict(args.root), args.models)
    except OSError as error:
        raise refusal("making the home folder", home, error, "Choose another with --home") from error
    return Studio(places, Standalone(), None if args.device is None else (_device(args.device),))


def _device(id: str) -> Device:
    from ...spectral.errors import SettingError
    from ..jobs.host import CPU, find_devices

    known = (CPU,) if id == CPU.id else find_devices()
    found = next((device for device in known if device.id == id), None)
    if found is None:
        raise SettingError(
            f"--device {id}: found {', '.join(device.id for device in known)} here; expected one of these"
        )
    return found


def _ready(address: str, browser: bool) -> None:
    print(f"Spectral Adapters: {address}", flush=True)
    print("Ctrl-C closes it; trainings go on.", flush=True)
    if browser:
        import webbrowser
        from threading import Thread

        # In a thread: where there is no screen it may be a text browser, which returns at its end.
        Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; expected 0 to 65535")
    return int(text)


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path).expanduser().absolute()
