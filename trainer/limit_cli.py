"""The command `limit`: an svdiff adapter with the shifts of some columns alone."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Keep only the shifts of some columns, as in SVDiff's rank limiting. The new file carries the directions of "
        "its columns, so it needs its base no more."
    )
    add = command.add_argument
    add("file", type=Path, help="an svdiff adapter (.safetensors)")
    add("out", type=Path, help="file to write (.safetensors); never overwrites")
    add("--columns", required=True, help="which columns to keep: 64 (the first), top:8@16, bottom:8, list:0,3,5")
    add("--base", default=None, help="the base model; needed where the file holds no directions (info says compact)")


def run(args: argparse.Namespace) -> int:
    """Limit and write; prints the share of the change that is left. Raises SpectralError."""
    from ..spectral.cache import BasisCache
    from ..spectral.container import refuse_existing
    from ..spectral.file import load, save
    from ..spectral.shifts import kept_share, limited
    from .base_weights import open_base
    from .console import Console
    from .events import Phase, Progress

    refuse_existing(args.out, overwrite=False)
    columns = int(args.columns) if args.columns.isdecimal() else args.columns
    adapter = load(args.file)
    weights = None if args.base is None else open_base(args.base)
    with Console() as console:
        console(Phase("limiting"))
        made = limited(adapter, columns, weights, cache=BasisCache(), progress=lambda *at: console(Progress(*at)))
    path = save(made, args.out)
    print(f"{len(made.layers):,} layers keep {kept_share(adapter, columns):.1%} of the change.")
    print(f"Wrote {path} ({path.stat().st_size:,} bytes).")
    return 0
