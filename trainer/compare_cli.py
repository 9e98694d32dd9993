"""The command `compare`: who moves what, and where adapters collide, as text, as JSON, or as a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .spectrum_cli import check_new_png


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.description = "Say where adapters or LoRA files collide, before they are fused. Nothing is changed."
    command.add_argument("files", type=Path, nargs="+", metavar="FILE", help="two or more adapter or LoRA files")
    command.add_argument(
        "--base",
        default=None,
        help='measure on this base: a .safetensors checkpoint, a diffusers folder, or "tiny"; shows which columns LoRA '
        "files and compact files move",
    )
    command.add_argument("--png", type=Path, default=None, metavar="OUT", help="write a picture; never overwrites")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Compare the files. Raises SpectralError for files that cannot be compared, or a taken name."""
    from ..spectral.cache import BasisCache
    from .console import Console
    from .events import silent
    from .mix_request import ConflictRequest
    from .mix_task import compared

    if args.png is not None:
        check_new_png(args.png)
    adapters = [{"name": path.name, "path": str(path)} for path in args.files]
    request = ConflictRequest.from_json({"adapters": adapters, "base": args.base})
    with Console() as console:
        found = compared(request, BasisCache(), silent if args.json else console)
    print(json.dumps(found.as_json(), allow_nan=False) if args.json else found.text)
    if args.png is not None:
        from .conflict_plot import draw
        from .sample_files import save_png

        save_png(args.png, draw(found))
        if not args.json:
            print(f"\nWrote {args.png}.")
    return 0
