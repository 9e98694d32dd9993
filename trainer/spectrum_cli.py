"""The command `spectrum`: what an adapter's training moved, as text, as JSON, or as a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..spectral.spectrum import Spectrum

_BAR = 24  # characters of the longest bar


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, help="an adapter file (.safetensors)")
    command.add_argument("--png", type=Path, default=None, metavar="OUT", help="write a picture; never overwrites")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read the file, show what it moved. Raises SpectralError for a file that is no adapter, or a taken name."""
    from ..spectral.file import load
    from ..spectral.spectrum import measure

    if args.png is not None:
        check_new_png(args.png)
    found = measure(load(args.file))
    print(json.dumps(found.as_json()) if args.json else text(found))
    if args.png is not None:
        from .sample_files import save_png
        from .spectrum_plot import plot_spectrum

        save_png(args.png, plot_spectrum(found, f"What {args.file.stem} moved"))
        if not args.json:
            print(f"Wrote {args.png}.")
    return 0


def text(found: Spectrum) -> str:
    """The shares of blocks, kinds of layers and singular directions, as a terminal shows them."""
    layers = f"{len(found.layers):,} layer{'s' * (len(found.layers) != 1)}"
    note = "" if found.exact else "; estimated, because the file holds no directions of its base"
    lines = [f"{found.method}, columns {found.columns}: {layers}{note}", "", "Share of the change, by block"]
    lines += _bars([(row["block"] or "other", row["share"], _parts(row)) for row in found.blocks()])
    lines += ["", "by kind of layer"]
    lines += _bars([(row["kind"], row["share"], f"{row['layers']} layers") for row in found.kinds()])
    lines += ["", "by singular direction, the strongest first"]
    lines += _bars([(_span(row), row["share"], "") for row in found.bands()])
    return "\n".join(lines)


def _bars(rows: list[tuple[str, float, str]]) -> list[str]:
    """name, share, bar, more."""
    width = max(len(name) for name, _, _ in rows)
    most = max(share for _, share, _ in rows) or 1.0
    return [
        f"  {name:{width}}  {share:6.1%}  {'#' * round(_BAR * share / most):{_BAR}}  {more}".rstrip()
        for name, share, more in rows
    ]


def _parts(row: dict) -> str:
    """The three kinds of layers that moved most."""
    parts = sorted(row["kinds"].items(), key=lambda part: -part[1])
    if len(parts) == 1:
        return parts[0][0]
    return ", ".join(f"{kind} {share:.1%}" for kind, share in parts[:3]) + (", ..." if len(parts) > 3 else "")


def _span(row: dict) -> str:
    return f"{row['first']}" if row["first"] == row["last"] else f"{row['first']}-{row['last']}"


def check_new_png(path: Path) -> None:
    """Raise SettingError unless a picture can be written there without writing over anything."""
    from ..spectral.errors import SettingError

    if path.suffix.lower() != ".png":
        raise SettingError(f"{path}: found another ending, expected a name ending in .png")
    if path.exists():
        raise SettingError(f"{path}: found an existing file, expected a new name")
    if not path.parent.is_dir():
        raise SettingError(f"{path}: found no folder {path.parent}, expected an existing one")
