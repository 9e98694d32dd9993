"""The command `plan`: columns for the concepts of a set, so that they can be fused without mixing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..spectral.column_plan import HOWS


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Give every concept of a set its columns. blocks: one after another, which share none. sample: drawn by the "
        "concept's name, for people who train apart; the odds of a collision are printed. Trainings read the file: "
        "--column-plan plan.json --concept NAME."
    )
    add = command.add_argument
    add("concepts", nargs="+", metavar="CONCEPT", help="names of the concepts")
    add("--rank", type=int, default=8, help="columns of each (default: 8)")
    add("--how", choices=HOWS, default="blocks", help="blocks or sample (default: blocks)")
    add("--start", type=int, default=0, help="blocks: the first column (default: 0)")
    add("--pool", type=int, default=None, help="sample: drawn from so many columns (default: 16 times the rank)")
    add("--seed", type=int, default=0, help="sample: of the set; the same for all who take part (default: 0)")
    add("--out", type=Path, default=None, metavar="FILE", help="write the plan as .json; never overwrites")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Plan, print, write. Raises SpectralError for what cannot be planned, or a taken name."""
    from ..spectral.column_plan import plan_columns
    from .plan_file import write_plan

    made = plan_columns(args.concepts, args.rank, args.start, args.how, args.pool, args.seed)
    if args.out is not None:
        write_plan(made, args.out)
    print(json.dumps(made.as_json(), ensure_ascii=False) if args.json else made.text)
    if args.out is not None and not args.json:
        print(f"\nWrote {args.out}. Train with --column-plan {args.out} --concept NAME.")
    return 0
