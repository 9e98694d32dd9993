"""Adapters as a file: in this package's own format, as a LoRA, as a difference. Never over another file."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from server import PromptServer
from torch import Tensor

from ..spectral.adapter import Adapter
from ..spectral.basis import fetch
from ..spectral.cache import BasisCache
from ..spectral.convert import Export, to_diff, to_lora
from ..spectral.errors import SettingError, SpectralError
from ..spectral.export import write_export
from ..spectral.file import save as save_adapter
from ..spectral.fusion import fuse
from ..spectral.source import AdapterSource, Source
from ..trainer.files import numbered
from ..trainer.places import SUFFIX, check_name
from . import folder, work
from .adapters import Use
from .mixing import Mixture, mixture
from .prepare import connected

Kind = Literal["auto", "native", "LoRA", "difference"]
KINDS: tuple[Kind, ...] = ("auto", "native", "LoRA", "difference")
_EVENT = "spectral_adapters"
Weights = Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Format:
    """What to write; rank and energy are of a LoRA (see `to_lora`), None where it decides nothing."""

    kind: Kind
    rank: int | None = None
    energy: float | None = None

    @classmethod
    def of(cls, chosen: Mapping[str, Any] | None) -> Format:
        """What the node's widget brings. Raises SettingError for a format that there is not."""
        chosen = chosen or {}
        kind = chosen.get("format")
        if kind not in KINDS:
            raise SettingError(f"format: found {kind!r}, expected one of {', '.join(KINDS)}.")
        if kind != "LoRA" or chosen["rank"]:
            return cls(kind, rank=chosen.get("rank"))
        return cls(kind, energy=None if chosen["energy"] >= 1 else chosen["energy"])


@dataclass(frozen=True)
class Words:
    """What people read; an empty one leaves the adapter's own."""

    title: str
    trigger_words: str
    description: str
    author: str
    license: str

    @property
    def triggers(self) -> list[str]:
        return [word.strip() for word in self.trigger_words.split(",") if word.strip()]

    @property
    def metadata(self) -> dict[str, str]:
        """Under the names that ModelSpec gives them."""
        given = {"title": self.title, "description": self.description, "author": self.author, "license": self.license}
        return {f"modelspec.{key}": text.strip() for key, text in given.items() if text.strip()}


@dataclass(frozen=True)
class Saved:
    """name: in the loader's list, or in that of LoRAs. text: what was written and what it lost."""

    name: str
    text: str


def save(
    uses: Sequence[Use], name: str, wanted: Format, words: Words, model: ModelPatcher | None, clip: CLIP | None
) -> Saved:
    """Write what the adapters do at their strengths. Nothing is left behind where it fails.

    Raises SettingError (a name that is none, a format that cannot hold the change, a missing model), AdapterFileError,
    WrongBaseError, and ComfyUI's interrupt.
    """
    stem = check_name(name.strip().removesuffix(SUFFIX), "name")
    mixed = mixture(uses, with_clip=True)
    names = [name for source in mixed.sources for name in (*source.shapes, *source.gains)]
    weights = None if model is None else connected(model, clip).weights(names)
    with work.interruptible():
        source, why = _one(mixed, weights)
        source = _described(source, words)
        native = source.adapter if isinstance(source, AdapterSource) else None
        kind = _decided(wanted.kind, source, native, weights)
        if kind == "native":
            if native is None:
                raise SettingError(
                    f"no adapter of one method holds this: {why}. Choose LoRA, difference or auto as the format, or "
                    "put Spectral Adapter Extract before."
                )
            path, text = _write_native(native, stem, words)
        else:
            path, text = _write_export(source, stem, replace(wanted, kind=kind), weights)
    wrote = f"Wrote {_short(path)}, {path.stat().st_size:,} bytes: {text}"
    _tell(path, f"Wrote {_short(path)}.")
    return Saved(path.name, "\n".join([wrote, *mixed.notes]))


def _one(mixed: Mixture, weights: Weights | None) -> tuple[Source, str]:
    """Everything as one source, and why it is no adapter where it is none."""
    first = mixed.ingredients[0]
    if len(mixed.ingredients) == 1 and first.weight == 1 and isinstance(first.source, AdapterSource):
        return first.source, ""
    made = fuse(
        mixed.ingredients, "sum", weights=weights, cache=BasisCache(), name=mixed.name, cancelled=work.cancelled
    )
    if len(mixed.ingredients) == 1:
        made.metadata = first.source.metadata
        if made.native is not None:
            made.adapter = replace(made.native, metadata=dict(first.source.metadata))
    return made, made.why


def _described(source: Source, words: Words) -> Source:
    """The source with these words in its metadata; the one that came is left as it is."""
    described = copy.copy(source)
    given = words.metadata | ({"modelspec.trigger_phrase": ", ".join(words.triggers)} if words.triggers else {})
    described.metadata = {**source.metadata, **given}
    return described


def _decided(kind: Kind, source: Source, native: Adapter | None, weights: Weights | None) -> Kind:
    """What auto means here: the smallest that holds everything."""
    if kind != "auto":
        return kind
    if native is not None:
        return "native"
    return "LoRA" if not source.gains and _is_thin(source, weights) else "difference"


def _is_thin(source: Source, weights: Weights | None) -> bool:
    cache = BasisCache()
    return all(
        isinstance(source.change(layer, _weight(source, layer, weights), cache), tuple) for layer in source.shapes
    )


def _weight(source: Source, layer: str, weights: Weights | None) -> Tensor | None:
    """The base's weight where the source cannot do without it."""
    if not source.needs_weight(layer):
        return None
    _require(source, weights)
    return fetch(weights[layer])


def _require(source: Source, weights: Weights | None) -> None:
    """Raises SettingError where the source needs weights of a model that is not connected."""
    lacking = [layer for layer in source.shapes if source.needs_weight(layer) and layer not in (weights or {})]
    if lacking:
        what = "the model" if weights is None else "its CLIP, or the model it was trained on"
        raise SettingError(
            f"{source.name}: the change of {len(lacking)} layers, such as {lacking[0]}, is known only with the base "
            f"model's weights. Connect {what}. Native files need none, where strengths are 1."
        )


def _write_native(adapter: Adapter, stem: str, words: Words) -> tuple[Path, str]:
    path = _free(folder.FOLDER, stem, folder.names())
    save_adapter(adapter, path, trigger_words=words.triggers, metadata=words.metadata)
    return path, f"{adapter.method.name}, {len(adapter.layers)} layers, as exact as the adapter itself."


def _write_export(source: Source, stem: str, wanted: Format, weights: Weights | None) -> tuple[Path, str]:
    _require(source, weights)
    options = {"cache": BasisCache(), "progress": work.progress(), "cancelled": work.cancelled}
    if wanted.kind == "LoRA":
        made: Export = to_lora(source, weights, rank=wanted.rank or None, energy=wanted.energy, **options)
    else:
        made = to_diff(source, weights, **options)
    path = _free(folder.LORAS, stem, folder_paths.get_filename_list(folder.LORAS))
    write_export(made, source, path)
    return path, f"{wanted.kind}, {made.residual}."


def _free(kind: str, stem: str, known: Sequence[str]) -> Path:
    """The first of NAME, NAME-2, ... in the output folder of that kind that no list has under this name."""
    home = Path(folder_paths.get_output_directory()) / kind
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpectralError(f"the folder {home} cannot be made ({error}); free the name or the disk") from error
    taken = {name.casefold() for name in known}
    paths = (home / f"{free}{SUFFIX}" for free in numbered(stem))
    return next(path for path in paths if not os.path.lexists(path) and path.name.casefold() not in taken)


def _short(path: Path) -> str:
    """As users know it: from ComfyUI's output folder on."""
    return f"output/{path.parent.name}/{path.name}"


def _tell(path: Path, text: str) -> None:
    """The open pages list it at once."""
    about = {"id": str(path), "kind": "save", "name": path.stem, "status": "finished", "text": text}
    PromptServer.instance.send_sync(_EVENT, about)
