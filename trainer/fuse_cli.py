"""The command `fuse`: several adapters, LoRA files too, as one file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .mix_request import MODES, TO

if TYPE_CHECKING:
    from ..spectral.cache import BasisCache
    from ..spectral.fusion import Fused, FusedAdapter
    from ..spectral.mixture import Ingredient
    from ..spectral.parts import Parts
    from ..spectral.source import Source
    from .console import Console

MOST_ERROR = 0.01  # of a layer, relative; rounding to bf16 leaves 0.004
_STEPS = 20


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Fuse adapters and files of the LoRA family into one file. Every layer of the result is checked against an "
        "independent computation before it is written; docs/fusion.md says what each mode does."
    )
    add = command.add_argument
    add(
        "adapters",
        nargs="+",
        metavar="FILE[:WEIGHT]",
        help="adapter or LoRA files; the weight is 1 where none is given",
    )
    add("--out", type=Path, required=True, help="file to write (.safetensors); never overwrites")
    add("--mode", default="sum", choices=(*MODES, "gradient"), help="how they are put together (default: sum)")
    add("--base", default=None, help="the base model; needed for compact files and for gradient")
    add("--to", default="auto", choices=TO, help="kind of file; auto: an adapter, else a LoRA, else a difference")
    add("--rank", type=int, default=None, help="rank of a LoRA, where it should be less than exact")
    add(
        "--energy", type=float, default=None, help="instead: keep this share of the change in every layer, such as 0.99"
    )
    add(
        "--take",
        action="append",
        default=[],
        metavar="NAME=PART,...",
        help="only these parts of it: blocks (IN04, MID, OUT*, down, text), work (cross-attention), columns 0-3",
    )
    add("--force", action="store_true", help="use compact adapters on a base they do not fit")
    add(
        "--prompt",
        action="append",
        default=[],
        help="gradient: what to sample with, one per adapter (default: its words)",
    )
    add("--steps", type=int, default=_STEPS, help=f"gradient: sampling steps (default: {_STEPS})")
    add("--size", type=int, default=None, help="gradient: pixels of a side (default: the base's)")


def run(args: argparse.Namespace) -> int:
    """Fuse, check, write; prints what was made and the largest error. Raises SpectralError, with nothing written."""
    from ..spectral.cache import BasisCache
    from ..spectral.container import refuse_existing
    from ..spectral.errors import SpectralError
    from ..spectral.fusion import fuse, verify
    from .base_weights import open_base
    from .console import Console
    from .events import Phase, Progress

    _check(args)
    refuse_existing(args.out, overwrite=False)
    ingredients = read_ingredients(args.adapters, args.take)
    cache = BasisCache()
    with Console() as console:
        told = {"cache": cache, "progress": lambda *at: console(Progress(*at))}
        moments = _recorded(args, ingredients, cache, console) if args.mode == "gradient" else None
        weights = None if args.base is None else open_base(args.base)
        console(Phase("fusing"))
        made = fuse(
            ingredients,
            args.mode,
            weights=weights,
            moments=moments,
            name=args.out.stem,
            on_mismatch="force" if args.force else "refuse",
            **told,
        )
        _check_base(made, weights)
        print(_sentence(made.text))
        console(Phase("checking"))
        report = verify(made, ingredients, args.mode, weights, moments=moments, **told)
        if not report.largest <= MOST_ERROR:
            raise SpectralError(f"the fusion is not what it should be ({report.text}); nothing was written")
        print(f"{_sentence(report.text)}.")
        console(Phase("writing"))
        path, lost = _write(made, args, weights, told)
    print(f"Wrote {path} ({path.stat().st_size:,} bytes).")
    if lost:
        print(f"What the file lost: {lost}.")
    return 0


def read_ingredients(given: Sequence[str], take: Sequence[str] = ()) -> list[Ingredient]:
    """The sources of FILE[:WEIGHT], each under a name of its own, limited to the parts that `take` names.

    Raises AdapterFileError, and SettingError for a part or an adapter that there is not.
    """
    from ..spectral.errors import SettingError
    from ..spectral.mixture import Ingredient
    from ..spectral.open import open_source
    from ..spectral.parted import parted

    sources: dict[str, tuple[Source, float]] = {}
    for text in given:
        path, weight = split_weight(text)
        source = open_source(path)
        count = sum(name.partition(" (")[0] == path.stem for name in sources)
        source.name = f"{path.stem} ({count + 1})" if count else path.stem
        sources[source.name] = source, weight
    for text in take:
        name, equals, parts = text.partition("=")
        if not equals or name not in sources:
            raise SettingError(f"--take {text!r}: expected NAME=PART,... with NAME one of {', '.join(sources)}")
        source, weight = sources[name]
        sources[name] = parted(source, taking(parts)), weight
        if not sources[name][0].shapes:
            raise SettingError(f"--take {text!r}: {name} has no layers in these parts; `spectrum` lists its blocks")
    return [Ingredient(source, weight) for source, weight in sources.values()]


def split_weight(text: str) -> tuple[Path, float]:
    """FILE:0.8 -> FILE and 0.8; 1 where no number follows the last colon, or a file has that name."""
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(head), float(tail)
    except ValueError:
        return Path(text), 1.0


def taking(text: str) -> Parts:
    """IN*, MID, cross-attention -> parts that are 1 there and 0 elsewhere. Raises SettingError for unknown names."""
    from ..spectral.blocks import WORKS, Place
    from ..spectral.parts import Parts

    names = [name.strip() for name in text.split(",") if name.strip()]
    kept = Parts.parse(", ".join(f"{name}=1" for name in names))
    rules = [rule for table in kept.tables for rule in table]
    works = [rule.name for rule in rules if rule.axis == "work"]
    left = [work for work in WORKS if works and all(Parts.parse(f"{n}=0").at(Place("", "other", work)) for n in works)]
    blocks, columns = (any(rule.axis == axis for rule in rules) for axis in ("block", "columns"))
    none = ["*=0"] * blocks + [f"{work}=0" for work in left] + ["columns *=0"] * columns
    return Parts.parse(", ".join([*none, kept.text]))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _check(args: argparse.Namespace) -> None:
    """Raises SettingError for options that do not go together, before anything is read."""
    from ..spectral.errors import SettingError
    from .mix_request import checked

    checked({name: getattr(args, name) for name in ("to", "rank", "energy") if getattr(args, name) is not None})
    if args.mode == "gradient" and args.base is None:
        raise SettingError("gradient makes pictures with the base model; give the base with --base")
    if args.mode != "gradient" and (args.prompt or args.size or args.steps != _STEPS):
        raise SettingError(f"--prompt, --steps and --size belong to --mode gradient; found --mode {args.mode}")
    if args.steps < 1 or (args.size is not None and args.size < 8):
        raise SettingError(f"found --steps {args.steps} --size {args.size}, expected at least 1 step and 8 pixels")


def _check_base(made: Fused | FusedAdapter, weights: Mapping[str, Any] | None) -> None:
    """Raises SettingError where the fusion cannot be computed without the base."""
    from ..spectral.errors import SettingError
    from ..spectral.fusion_native import weights_needed

    if weights is None and made.native is None and weights_needed(made):
        compact = next(one.source.name for one in made.ingredients if weights_needed(one.source))
        raise SettingError(
            f"{compact}: found a compact file, which holds no directions of its own; give the base that it was trained "
            "on with --base"
        )


def _recorded(
    args: argparse.Namespace, ingredients: Sequence[Ingredient], cache: BasisCache, console: Console
) -> dict[str, Any]:
    """The moments of a short sampling run with each adapter."""
    import torch

    from .console import quiet_libraries
    from .events import Phase
    from .recording import prompts_for, record
    from .samples import Look

    prompts = prompts_for(ingredients, args.prompt)
    quiet_libraries()
    from .models import load_base

    console(Phase("loading"))
    base = load_base(args.base).to("cuda" if torch.cuda.is_available() else "cpu")
    side = args.size or base.resolution
    console(Phase("recording"))
    # Without guidance: what an empty prompt sees is no concept's.
    found = record(base, ingredients, prompts, Look((side, side), args.steps, 1.0), cache=cache, listen=console)
    if found.missing:
        print(f"{len(found.missing)} layers were not recorded and are summed, such as {found.missing[0]}.")
    return found.moments


def _write(
    made: Fused | FusedAdapter, args: argparse.Namespace, weights: Mapping[str, Any] | None, told: dict[str, Any]
) -> tuple[Path, str]:
    """The file, and what it has lost, in words."""
    from ..spectral.convert import to_diff, to_lora
    from ..spectral.errors import SettingError
    from ..spectral.export import write_export
    from ..spectral.file import save

    if args.to == "native" and made.native is None:
        raise SettingError(f"--to native: this is no single adapter, because {made.why}; choose auto, lora or diff")
    is_lora = args.to == "lora" or args.rank is not None or args.energy is not None
    if made.native is not None and args.to != "diff" and not is_lora:
        return save(made.native, args.out), ""
    if args.to == "diff" or not (is_lora or _is_thin(made, weights, told["cache"])):
        export = to_diff(made, weights, **told)
    else:
        export = to_lora(made, weights, rank=args.rank, energy=args.energy, **told)
    return write_export(export, made, args.out), str(export.residual)


def _is_thin(made: Source, weights: Mapping[str, Callable[[], Any]] | None, cache: BasisCache) -> bool:
    """Whether every change has low rank, so that a LoRA holds it."""
    from ..spectral.basis import fetch

    for layer in made.shapes:
        weight = fetch(weights[layer]) if made.needs_weight(layer) and weights is not None else None
        if not isinstance(made.change(layer, weight, cache), tuple):
            return False
    return True
