"""The command `convert`: adapters and LoRAs as LoRAs or differences, other tools' spectral files as adapters."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EPILOG = """
From adapters of this package and files of the LoRA family (LoRA, LoCon, LoHa, LoKr, DoRA, .diff): --to lora or diff.
From spectral files of other tools: --to native (the default), lora or diff. A folder or file of svdiff-pytorch's
shifts and a SODA list (.pt) need --base; a checkpoint of Spectral Adapter's own code (.pth) needs none.
docs/conversion.md says what each holds and loses.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.epilog = _EPILOG
    add = command.add_argument
    add("file", type=Path, help="file to read, or a folder of svdiff-pytorch")
    add("--to", choices=("native", "lora", "diff"), default=None, help="the kind of file to write")
    add("out", type=Path, help="file to write (.safetensors); never overwrites")
    add("--base", default=None, help="the base model; needed where the file holds no directions of its own")
    add("--rank", type=int, default=None, help="rank of the LoRA at most; or --energy, for svdiff, soda and LoHa")
    add("--energy", type=float, default=None, help="share of each layer's change that the LoRA keeps, such as 0.99")
    add("--columns", default=None, help="columns of a Spectral Adapter checkpoint (default: top:RANK, its block 0)")
    add("--dtype", choices=("fp16", "fp32"), default=None, help="of a native file's parameters")


def run(args: argparse.Namespace) -> int:
    """Write the file and say what it lost. Raises SpectralError as `convert` and `convert_foreign` do."""
    from .importing import is_foreign

    path, lost, notes = _foreign(args) if is_foreign(args.file) else _export(args)
    print(f"Wrote {path} ({path.stat().st_size:,} bytes, from {_size(args.file):,}).")
    print(f"What the export lost: {lost}.")
    for note in notes:
        print(f"Note: {note}")
    return 0


def _export(args: argparse.Namespace) -> tuple[Path, str, tuple[str, ...]]:
    from ..spectral.errors import SettingError
    from .export_task import MOST_RANK, ExportRequest, convert

    if args.to in (None, "native"):
        raise SettingError(
            f"{args.file.name}: found --to {args.to}, expected --to lora or --to diff. Only spectral files of other "
            "tools are converted to adapters of this package; `extract` makes the best adapter of a LoRA"
        )
    _check_rank(args, MOST_RANK)
    return (*convert(ExportRequest(args.file, args.out, args.to, args.base, args.rank, args.energy)), ())


def _foreign(args: argparse.Namespace) -> tuple[Path, str, tuple[str, ...]]:
    from .export_task import MOST_RANK
    from .importing import Import, convert_foreign

    _check_rank(args, MOST_RANK)
    dtype = {"fp16": "F16", "fp32": "F32", None: None}[args.dtype]
    wanted = Import(args.file, args.out, args.to or "native", args.base, args.columns, args.rank, args.energy, dtype)
    return convert_foreign(wanted, _progress if sys.stderr.isatty() else None)


def _check_rank(args: argparse.Namespace, most: int) -> None:
    from ..spectral.errors import SettingError

    if args.rank is not None and not 1 <= args.rank <= most:
        raise SettingError(f"found --rank {args.rank}, expected 1 to {most}")


def _progress(done: int, total: int, layer: str) -> None:
    print(f"\r{done} of {total} layers", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.iterdir() if p.is_file()) if path.is_dir() else path.stat().st_size
