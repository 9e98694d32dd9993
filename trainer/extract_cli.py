"""The command `extract`: the adapter of a method that comes nearest to a fine-tuned model, a LoRA or an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..spectral.extract import Extracted
    from ..spectral.source import Source
    from .base_weights import BaseWeights


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("source", help="a fine-tuned model (checkpoint or diffusers folder), a LoRA or LyCORIS file, or an adapter")
    add("out", type=Path, help="adapter file to write (.safetensors); never overwrites")
    add("--base", required=True, help="the base model: tiny, a diffusers folder, or a .safetensors checkpoint")
    add("--method", default="additive", help="svdiff, additive, rotation or soda (default: additive)")
    add("--rank", type=int, default=None, help="columns per layer, from the first on (default: the method's own)")
    add("--columns", default=None, help="which columns instead of the first: all, top:8@16, bottom:8, list:0,3,5; best "
        "or best:16: in each layer those that hold most, as LoRA files need")  # fmt: skip
    add("--targets", default="all", help="layers: attention, cross-attention, attention+ff, all, or a pattern of paths")
    add("--norms", action="store_true", help="svdiff: also take over the gains of norms")
    add("--layers", action="store_true", help="say of every layer how much of its change the adapter holds")


def run(args: argparse.Namespace) -> int:
    """Extract and write; prints how much of the change the adapter holds. Raises SpectralError."""
    from ..spectral.cache import BasisCache
    from ..spectral.choose import asks_for_best
    from ..spectral.container import refuse_existing
    from ..spectral.extract import extract
    from ..spectral.file import save
    from ..spectral.methods import method
    from .base_weights import open_base
    from .console import Console
    from .events import Phase, Progress

    refuse_existing(args.out, overwrite=False)
    settings = {"norms": True} if args.norms else {}
    best, count = asks_for_best(args.columns)
    chosen = method(args.method, columns=None if best else args.columns, rank=count or args.rank, **settings)
    base = open_base(args.base)
    source = _source(args.source, base)
    only = _chosen(base, source, args.targets, args.norms)
    with Console() as console:
        console(Phase("extracting"))
        made = extract(
            source,
            base,
            chosen,
            only=only,
            choose=best,
            base_name=base.name,
            base_hash=base.file_hash,
            cache=BasisCache(),
            progress=lambda *at: console(Progress(*at)),
        )
    path = save(made.adapter, args.out)
    print(layer_table(made) if args.layers else "", end="")
    print(made.text)
    print(f"Wrote {path} ({path.stat().st_size:,} bytes).")
    return 0


def layer_table(made: Extracted) -> str:
    """One line for each layer, the worst first."""
    width = max(map(len, made.explained))
    rows = sorted(made.explained.items(), key=lambda row: row[1])
    return "".join(f"{name:{width}}  {share:7.2%}\n" for name, share in rows)


def _source(given: str, base: BaseWeights) -> Source:
    from ..spectral.extract import difference
    from ..spectral.open import open_source
    from .base_weights import is_base, open_base

    if not is_base(given):
        return open_source(given)
    tuned = open_base(given)
    return difference(tuned, base, tuned.name, shapes=tuned.shapes)


def _chosen(base: BaseWeights, source: Source, targets: str, norms: bool) -> set[str] | None:
    """The layers that `targets` stands for, with all norms where these are wanted; None for everything."""
    from ..spectral.errors import SettingError
    from ..spectral.targets import matching

    if targets == "all":
        return None
    names = {base.paths[layer]: layer for layer in source.shapes if layer in base}
    picked = matching({path: len(base.shapes[layer]) == 4 for path, layer in names.items()}, targets)
    if names and not picked:
        raise SettingError(
            f"--targets {targets!r} chose none of the {len(names)} layers of {source.name}, such as "
            f"{next(iter(names))}; choose attention, cross-attention, attention+ff, all or a pattern of such paths"
        )
    return {names[path] for path in picked} | (source.gains.keys() if norms else set())
