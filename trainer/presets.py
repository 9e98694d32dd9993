"""Settings to start from: for a subject, a style, a single picture, or a file as small as can be.

Every value carries where it comes from. Values for Stable Diffusion are those of the methods' own papers and code, and
were not measured here; values for the tiny base were (docs/presets.md).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

from ..spectral.errors import SettingError

Kind = Literal["tiny", "sd", "sdxl"]


@dataclass(frozen=True)
class Value:
    """A setting's value and its source."""

    value: Any
    source: str


@dataclass(frozen=True)
class Preset:
    """What a preset is for, and the method to begin with."""

    purpose: str
    method: str


PRESETS: dict[str, Preset] = {
    "subject": Preset("one person, animal or thing, from a handful of pictures", "additive"),
    "style": Preset("a way of drawing or photographing, from pictures of different things", "additive"),
    "single": Preset("one picture, to vary or edit it by its caption", "svdiff"),
    "tiny-file": Preset("the smallest file that still shows the concept", "svdiff"),
}
NO_PRESET = "none"

# docs/presets.md says what these words stand for.
_SVDIFF = "SVDiff"
_SVDIFF_CODE = "svdiff-pytorch"
_SPECTRAL = "Spectral Adapter"
_SODA = "SODA"
_BASE = "Stable Diffusion"
_OURS = "our choice"
_TRIED = "tried here"


def _all(source: str, **values: Any) -> dict[str, Value]:
    return {name: Value(value, source) for name, value in values.items()}


# What the methods' own recipes for Stable Diffusion say, by method.
_METHODS: dict[str, dict[str, Value]] = {
    "svdiff": {
        **_all(_SVDIFF, targets="all", norms=True, text_targets="all", batch_size=1, steps=1000),
        **_all(_SVDIFF_CODE, lr=1e-3, text_lr=1e-3, schedule="constant", class_count=200, prior_weight=1.0),
    },
    "additive": {
        **_all(_SPECTRAL, rank=8, targets="attention", text_targets="attention", lr=1e-4, text_lr=1e-5),
        **_all(_SPECTRAL, batch_size=2, schedule="linear", noise_offset=0.01),
        **_all(f"{_SPECTRAL}, for 5 pictures", steps=1250),
    },
    "rotation": {
        **_all(_SPECTRAL, rank=24, targets="attention", text_targets="attention", lr=1e-2, text_lr=1e-4),
        **_all(_SPECTRAL, batch_size=2, schedule="linear", noise_offset=0.01),
        **_all(f"{_SPECTRAL}, for 5 pictures", steps=1250),
    },
    "soda": {
        **_all(_SODA, targets="attention", text_targets="attention", lr=5e-5, text_lr=5e-6, dco_beta=1000.0),
        **_all(_SODA, batch_size=1, schedule="constant", steps=1000),
    },
}
_NO_TEXT: dict[str, Value | None] = {"text_targets": None, "text_targets_2": None, "text_lr": None}
_ONE_PICTURE = f"{_SPECTRAL}, for 1 picture"

# How the presets differ from that; None leaves a setting at its default.
_CHANGES: dict[tuple[str, str], dict[str, Value | None]] = {
    **{
        ("style", method): {
            **_all(_BASE, caption_dropout=0.1),
            **(_NO_TEXT if method != "soda" else {}),
        }
        for method in _METHODS
    },
    ("single", "svdiff"): _all(_SVDIFF_CODE, steps=500, sample_guidance=3.0),
    ("single", "additive"): _all(_ONE_PICTURE, batch_size=1, steps=500),
    ("single", "rotation"): _all(_ONE_PICTURE, batch_size=1, steps=500),
    ("single", "soda"): _all(_SODA, steps=1000),
    ("tiny-file", "svdiff"): {
        **_all(_SVDIFF, targets="cross-attention"),
        "norms": None,
        **_NO_TEXT,
    },
    ("tiny-file", "additive"): {**_all(_OURS, rank=1, targets="cross-attention"), **_NO_TEXT},
    ("tiny-file", "rotation"): {**_all(_SPECTRAL, rank=8, lr=5e-2), **_NO_TEXT},
    ("tiny-file", "soda"): {**_all(_OURS, targets="cross-attention"), **_NO_TEXT},
}

# On the tiny base a picture is a thousand numbers and a run takes a minute: rates far above Stable Diffusion's.
_TINY: dict[str, dict[str, Value]] = {
    "svdiff": _all(_TRIED, lr=2e-2),
    "additive": _all(_TRIED, lr=1e-3, rank=8),
    "rotation": _all(_TRIED, lr=2e-3, rank=16),
    "soda": _all(_TRIED, lr=1.2e-2),
}
_TINY_COMMON = {
    **_all(_TRIED, targets="all", steps=200, batch_size=8, warmup=20, schedule="linear"),
    **_all(_TRIED, sample_guidance=4.0),
}
# A single picture makes batches of one: the noise of a step is averaged by accumulation instead.
_TINY_SINGLE = {"batch_size": 1, "accumulation": 8}
_TINY_CHANGES: dict[tuple[str, str], dict[str, Value]] = {
    ("style", "svdiff"): _all(_TRIED, dco_beta=1000.0),
    ("style", "additive"): _all(_TRIED, dco_beta=1000.0),
    ("style", "rotation"): _all(_OURS, dco_beta=1000.0),
    ("style", "soda"): _all(_OURS, dco_beta=1000.0),
    ("single", "svdiff"): _all(_TRIED, **_TINY_SINGLE),
    ("single", "additive"): _all(_TRIED, **_TINY_SINGLE),
    ("single", "rotation"): _all(_OURS, **_TINY_SINGLE),
    ("single", "soda"): _all(_OURS, **_TINY_SINGLE),
    ("tiny-file", "svdiff"): _all(_TRIED, targets="attention+ff"),
    ("tiny-file", "additive"): _all(_TRIED, targets="attention+ff", rank=2, lr=2e-3),
    ("tiny-file", "rotation"): _all(_TRIED, rank=8, lr=4e-3),
    ("tiny-file", "soda"): _all(_TRIED, targets="attention+ff"),
}


def preset_values(name: str, method: str, kind: Kind) -> dict[str, Any]:
    """Settings of a run (`TrainSpec`'s names) for a preset, a method and a kind of base.

    kind: "tiny", "sd" (SD1.x, SD2.x) or "sdxl". "none" has no values; what is not named stays at its default. Raises
    SettingError for an unknown preset, with the nearest, and for an unknown method.
    """
    return {setting: found.value for setting, found in preset_sources(name, method, kind).items()}


def preset_sources(name: str, method: str, kind: Kind) -> dict[str, Value]:
    """The same with the source of each value."""
    if name == NO_PRESET:
        return {}
    _known(name, [*PRESETS, NO_PRESET], "preset")
    known_method(method)
    if kind == "tiny":
        return {**_TINY_COMMON, **_TINY[method], **_TINY_CHANGES.get((name, method), {})}
    merged = {**_METHODS[method], **_CHANGES.get((name, method), {})}
    values = {setting: found for setting, found in merged.items() if found is not None}
    return _for_sdxl(values) if kind == "sdxl" else values


def _for_sdxl(values: dict[str, Value]) -> dict[str, Value]:
    """Both text encoders alike, and less memory. Only SODA's values were published for SDXL."""
    text = values.get("text_targets")
    return {
        **values,
        **({} if text is None else {"text_targets_2": text}),
        **_all(_OURS, gradient_checkpointing=True),
    }


def known_method(name: str) -> None:
    """Raise SettingError, with the nearest, for an unknown method; without torch."""
    _known(name, list(_METHODS), "method")


def _known(name: str, names: list[str], what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
        raise SettingError(f"{name!r} is no {what}; {hint}")


def tables(kind: Kind) -> str:
    """Markdown of every preset's values on a kind of base, a table for each method, with the sources."""
    return "\n\n".join(f"**{method}**\n\n{_table(method, kind)}" for method in _METHODS)


def _table(method: str, kind: Kind) -> str:
    columns = {name: preset_sources(name, method, kind) for name in PRESETS}
    settings = dict.fromkeys(setting for column in columns.values() for setting in column)
    rows = [["setting", *PRESETS, "source"], ["---"] * (len(PRESETS) + 2)]
    for setting in settings:
        found = [column.get(setting) for column in columns.values()]
        sources = dict.fromkeys(value.source for value in found if value is not None)
        cells = ["default" if value is None else f"{value.value}" for value in found]
        rows.append([f"`{setting}`", *cells, "; ".join(sources)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
