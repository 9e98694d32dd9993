"""Adapters onto a model. All are read, judged and prepared before the first patch is added."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ..spectral.adapter import OnMismatch
from ..spectral.errors import SpectralError, WrongBaseError
from ..spectral.source import Source
from . import prepared
from .adapters import UNET_PREFIX, Use
from .patch import Patch
from .prepare import Connected, connected, prepare
from .prepared import Prepared


@dataclass(frozen=True)
class Applied:
    """The node's outputs and the text it shows."""

    model: ModelPatcher
    clip: CLIP | None
    trigger_words: str
    text: str


@dataclass(frozen=True)
class _Row:
    """One adapter, read. label: what its text and its errors begin with. wanted: the layers and norms to change."""

    use: Use
    source: Source
    label: str
    wanted: frozenset[str]


@dataclass(frozen=True)
class Patches:
    """The patches of one adapter, on the model and on the text encoder: {strength: {key: patch}}, none at 0."""

    model: dict[float, dict[str, Patch]]
    clip: dict[float, dict[str, Patch]]


@dataclass(frozen=True)
class Ready:
    """The patches of several adapters in their order, their trigger words, and the text on what was found."""

    patches: list[Patches]
    trigger_words: str
    text: str


def apply_uses(
    uses: Sequence[Use],
    model: ModelPatcher,
    clip: CLIP | None,
    on_mismatch: OnMismatch,
    labels: Sequence[str] = (),
) -> Applied:
    """Clones of model and clip with the adapters' patches, in order; the inputs themselves where there is nothing.

    labels and what is raised: as for `ready_patches`.
    """
    ready = ready_patches(uses, model, clip, on_mismatch, labels)
    for patches in ready.patches:
        model, clip = _with(model, patches.model), _with(clip, patches.clip)
    return Applied(model, clip, ready.trigger_words, ready.text)


def ready_patches(
    uses: Sequence[Use],
    model: ModelPatcher,
    clip: CLIP | None,
    on_mismatch: OnMismatch,
    labels: Sequence[str] = (),
) -> Ready:
    """The adapters' patches for these models, which stay as they are.

    labels: one for each, which its line of the text and its errors begin with; "" for none.
    Raises AdapterFileError (unreadable file), WrongBaseError (a file for another model), SettingError (parts or a mode
    that a file does not have), and ComfyUI's interrupt; the message says which of the adapters it was.
    """
    rows = [_read(use, clip, label) for use, label in zip(uses, labels or [""] * len(uses))]
    ready = _ready(rows, model, clip, on_mismatch)
    texts = [_text(row, found, effort, clip) for row, (found, effort) in zip(rows, ready)]
    patches = [_patches(row, found) for row, (found, _) in zip(rows, ready) if found is not None]
    return Ready(patches, _words(rows), "\n".join(texts))


def collect(uses: Sequence[Use], labels: Sequence[str]) -> tuple[str, str]:
    """The trigger words of adapters that are only handed on, and a line of text. Raises AdapterFileError."""
    rows = [_read(use, None, label) for use, label in zip(uses, labels)]
    count = len(rows)
    text = f"{count} adapter{'s' * (count != 1)} handed on; no model is connected, so nothing is applied."
    return _words(rows), text


def _words(rows: Sequence[_Row]) -> str:
    return ", ".join(dict.fromkeys(word for row in rows for word in trigger_words(row.source)))


def trigger_words(source: Source) -> list[str]:
    """The words that call up what it changes, as its file says."""
    stored = source.metadata.get("spectral.trigger_words")
    if stored:
        return [str(word) for word in json.loads(stored)]
    return [word.strip() for word in source.metadata.get("modelspec.trigger_phrase", "").split(",") if word.strip()]


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Errors of this package begin with the label."""
    try:
        yield
    except SpectralError as error:
        raise type(error)(f"{label}{error}") from error


def _read(use: Use, clip: CLIP | None, label: str) -> _Row:
    with naming(label):
        source = use.source.open()
    names = (*source.shapes, *source.gains)
    wanted = (n for n in names if use.strength(n) != 0 and (clip is not None or n.startswith(UNET_PREFIX)))
    return _Row(use, source, label, frozenset(wanted))


def _ready(
    rows: Sequence[_Row], model: ModelPatcher, clip: CLIP | None, on_mismatch: OnMismatch
) -> list[tuple[Prepared | None, str]]:
    """The patches of each row, None where it changes nothing, and what it took to have them."""
    names = [prepared.identity(row.use, model, clip, on_mismatch) for row in rows]
    found = [prepared.find(name) if row.wanted else None for name, row in zip(names, rows)]
    ready = [(each, "kept from the last run") for each in found]
    new = [i for i, row in enumerate(rows) if row.wanted and found[i] is None]
    if not new:
        return ready
    onto: Connected = connected(model, clip)
    bar = comfy.utils.ProgressBar(sum(len(rows[i].wanted) for i in new))
    before = 0
    for i in new:
        row = rows[i]

        def progress(done: int, total: int, layer: str, before: int = before) -> None:
            bar.update_absolute(before + done)  # raises when the user pressed Cancel

        made = prepared.find(names[i])  # the same adapter may stand in two rows
        if made is None:
            with naming(row.label):
                made = prepare(row.source, row.use, row.wanted, onto, on_mismatch, progress)
            prepared.keep(names[i], made)
        ready[i] = (made, made.effort)
        before += len(row.wanted)
    return ready


def _patches(row: _Row, ready: Prepared) -> Patches:
    """The patches of one row, each at its strength."""
    made = Patches({}, {})
    for layer, placed in ready.layers.items():
        strength = _strength(row, layer)
        if strength != 0:
            (made.clip if placed.on_clip else made.model).setdefault(strength, {})[placed.key] = placed.patch
    return made


def _strength(row: _Row, layer: str) -> float:
    """What a layer's prepared patch is multiplied with."""
    if row.use.mode == "spectral":
        return 1.0
    part = 1.0 if row.use.parts is None else row.use.parts.of(layer, row.source.family)
    return row.use.strength(layer) * part


def _with(target: ModelPatcher | CLIP | None, by_strength: dict[float, dict[str, Patch]]) -> ModelPatcher | CLIP | None:
    if not by_strength:
        return target
    clone = target.clone()
    for strength, patches in by_strength.items():
        kept = clone.add_patches(patches, strength)
        if len(kept) != len(patches):
            lost = sorted(set(patches) - set(kept))
            raise WrongBaseError(
                f"ComfyUI took {len(kept)} of {len(patches)} patches and dropped some, such as {lost[0]!r}; expected "
                "all. Another node seems to have replaced layers of this model: put the loader before it."
            )
    return clone


def _text(row: _Row, ready: Prepared | None, effort: str, clip: CLIP | None) -> str:
    said = "Nothing applied." if ready is None else f"{ready.fit}{effort}."
    parts = row.use.parts
    still = 0 if parts is None else sum(parts.of(layer, row.source.family) == 0 for layer in row.wanted)
    off = f"{still} of them left alone: their part is 0." if still else ""
    unused = len(row.source.left_out)
    beside = f"{unused} tensors of the file change no weight, such as those of biases: left out." if unused else ""
    return "\n".join(filter(None, (row.label + said, off, beside, _left_out(row, clip))))


def _left_out(row: _Row, clip: CLIP | None) -> str:
    count = sum(name not in row.wanted for name in row.source.shapes)
    if count == 0:
        return ""
    if row.use.model == 0 and row.use.clip == 0:
        reason = "both strengths are 0"
    elif clip is None:
        reason = "no CLIP is connected"
    else:
        reason = "their strength is 0"
    return f"{count} of {len(row.source.shapes)} layers left out: {reason}."
