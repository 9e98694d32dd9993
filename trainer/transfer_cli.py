"""The command `transfer`: an adapter or LoRA carried to a related base."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..spectral.source import Source
    from ..spectral.transfer import Transferred
    from .base_weights import BaseWeights
    from .console import Console


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("adapter", help="an adapter file, or a LoRA or LyCORIS file")
    add("out", type=Path, help="file to write (.safetensors); never overwrites")
    add("--to", required=True, help="the base to carry it to: a .safetensors checkpoint or a diffusers folder")
    add("--from", dest="home", default=None, help="the base it was trained on; needed for compact files")
    add("--rank", type=int, default=None, help="project on so many first columns of the new base")
    add("--energy", type=float, default=None, help="project on as many as hold this share of each weight, such as 0.9")
    add(
        "--sides", choices=("both", "either"), default=None, help="see docs/extract.md; default: what the adapter needs"
    )
    add("--least", type=float, default=0.0, help="leave out layers whose directions agree less, such as 0.5")
    add("--as", dest="form", choices=("native", "lora", "diff"), default=None, help="kind of file (default: native "
        "for adapters with frames, lora where the change has low rank, else diff)")  # fmt: skip
    add("--lora-rank", type=int, default=None, help="rank of a LoRA; default: what it takes to be exact")


def run(args: argparse.Namespace) -> int:
    """Carry it over and write it; prints agreement and what was kept. Raises SpectralError."""
    from ..spectral.cache import BasisCache
    from ..spectral.container import refuse_existing
    from ..spectral.open import open_source
    from ..spectral.transfer import transfer
    from .base_weights import open_base
    from .console import Console
    from .events import Phase, Progress

    refuse_existing(args.out, overwrite=False)
    source, target, cache = open_source(args.adapter), open_base(args.to), BasisCache()
    _check_form(args.form, source)
    with Console() as console:
        console(Phase("carrying over"))
        carried = transfer(
            source,
            target,
            home=open_base(args.home) if args.home else None,
            rank=args.rank,
            energy=args.energy,
            sides=args.sides,
            least=args.least,
            cache=cache,
            progress=lambda *at: console(Progress(*at)),
        )
        lost = _write(args, source, carried, target, cache, console)
    print(carried.text)
    print(lost)
    print(f"Wrote {args.out} ({args.out.stat().st_size:,} bytes).")
    return 0


def _write(
    args: argparse.Namespace,
    source: Source,
    carried: Transferred,
    target: BaseWeights,
    cache: object,
    console: Console,
) -> str:
    """Write the file; a sentence on what its form loses."""
    from ..spectral.convert import to_diff, to_lora
    from ..spectral.export import write_export
    from ..spectral.extract import extract
    from ..spectral.file import save
    from .events import Phase, Progress

    form = args.form or _form(source, carried)
    console(Phase("writing"))
    told = {"cache": cache, "progress": lambda *at: console(Progress(*at))}
    if form == "native":
        named = {"base_name": target.name, "base_hash": target.file_hash}
        made = extract(carried.source, target, source.adapter.method, **named, **told)
        save(made.adapter, args.out)
        return f"As an adapter: {made.text}"
    made = to_lora(carried.source, rank=args.lora_rank, **told) if form == "lora" else to_diff(carried.source, **told)
    write_export(made, carried.source, args.out)
    return f"As a {'LoRA' if form == 'lora' else 'difference file'}: {made.residual}."


def _form(source: Source, carried: Transferred) -> str:
    """An adapter stays one where its method can hold a projected change; a change of full rank is a difference."""
    if _has_method(source) and source.adapter.method.portable:
        return "native"
    return "lora" if all(found.rank is not None for found in carried.layers.values()) else "diff"


def _has_method(source: Source) -> bool:
    from ..spectral.source import AdapterSource

    return isinstance(source, AdapterSource)


def _check_form(form: str | None, source: Source) -> None:
    from ..spectral.errors import SettingError

    if form == "native" and not _has_method(source):
        raise SettingError(
            f"{source.name} is a {source.kind} file, not an adapter; choose --as lora, and `extract` an adapter from it"
        )
