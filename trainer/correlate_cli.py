"""The command `correlate`: how alike the shifts of svdiff adapters are."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.description = (
        "The cosine of the adapters' shifts of singular values, averaged over layers. Near 1: one concept trained "
        "twice. The higher, the more two adapters blend when they are added."
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="svdiff adapters (.safetensors)")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read and compare. Raises SpectralError for files that are no adapters or shift no singular values."""
    from ..spectral.file import load
    from ..spectral.shifts import correlation

    found = correlation([load(path) for path in args.files], [path.stem for path in args.files])
    print(json.dumps(found.as_json()) if args.json else found.text)
    return 0
