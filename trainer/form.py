"""The form of a training, made from the settings' own metadata, and the values that a preset gives it.

Needs no torch. Labels and helps are English; pages have those of other languages (locales/).
"""

from __future__ import annotations

from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_origin

from . import engines
from .layering import base_kind, over_preset, own_method
from .options import COMMON, TITLES
from .presets import NO_PRESET, PRESETS, preset_sources
from .request import DATASETS, LEAST, LONGEST, MOST, OFFERED, PLAN, installed_optimizers
from .spec import choices, kinds, limits, plain, settings

if TYPE_CHECKING:
    from .places import Places

Kind = Literal["int", "float", "text", "bool", "choice", "texts", "dataset", "adapter", "adapters", "table"]

METHODS = {
    "additive": ("Additive", "Learns most and travels to related models: the safest start. Files of some megabytes."),
    "rotation": ("Rotation", "Gentle: turns what the model has and adds nothing. The smallest files."),
    "svdiff": ("SVDiff", "Shifts singular values. Files of some hundred kilobytes that need exactly their base."),
    "soda": ("SODA", "SVDiff with a rotation of each layer's input: learns more, and needs exactly its base."),
}
_PRESETS = {"subject": "Subject", "style": "Style", "single": "One picture", "tiny-file": "Tiny file"}
_NO_PRESET = ("No preset", "Every setting at its own default.")
# A text that may be anything, with the values that people choose.
_SUGGESTIONS = {
    "targets": ("attention", "cross-attention", "attention+ff", "all", "none"),
    "text_targets": ("none", "attention", "attention+ff", "all"),
    "text_targets_2": ("none", "attention", "attention+ff", "all"),
    "columns": ("top:8", "top:8@8", "bottom:8", "sample:8:1", "all"),
}
_STEPS = {"resolution": 16, "caption_dropout": 0.05, "mask_floor": 0.05, "noise_offset": 0.01, "sample_guidance": 0.5}
_UNITS = {
    **dict.fromkeys(("steps", "warmup", "checkpoint_every", "validate_every", "sample_every", "sample_steps"), "steps"),
    **dict.fromkeys(("validation", "class_count"), "pictures"),
    "resolution": "px",
    "patience": "validations",
}


def form(places: Places) -> dict[str, Any]:
    """Everything a page needs to draw the form.

    {"groups": [{id, title}], "settings": [{name, group, label, help, kind, advanced, optional, default, and where they
    say something: choices, suggestions, min, max, above, step, longest, methods, unit}], "presets": [{name,
    title, help, method}], "methods": [{name, title, help}], "common": [names], "engines": as `engines.describe` has
    them}. optional: null means "left to the method or the base". above: the value must be more than it. longest:
    characters of a text. methods: the ones that alone have it.
    """
    return {
        "groups": [{"id": group, "title": _capital(title)} for group, title in TITLES.items()],
        "settings": [_setting(each, places) for each in settings() if each.name in OFFERED],
        "presets": [
            *({"name": name, "title": _PRESETS[name], "help": _sentence(preset.purpose), "method": preset.method}
              for name, preset in PRESETS.items()),
            {"name": NO_PRESET, "title": _NO_PRESET[0], "help": _NO_PRESET[1], "method": own_method(NO_PRESET)},
        ],
        "methods": [{"name": name, "title": title, "help": text} for name, (title, text) in METHODS.items()],
        "common": [name for name in COMMON if name in OFFERED],
        "engines": engines.describe(),
    }  # fmt: skip


def _setting(each: Field, places: Places) -> dict[str, Any]:
    name, kind = each.name, kind_of(each.name)
    least, most = limits(name)
    least = LEAST.get(name, least)
    strict = name in ("lr", "text_lr", "norm_lr", "clip")
    offered = {
        "choices": _choices(name, places),
        "suggestions": list(_SUGGESTIONS.get(name, ())),
        "min": None if strict else least,
        "above": least if strict else None,
        "max": MOST.get(name, most),
        "step": _STEPS.get(name, 1 if kind == "int" else None),
        "longest": LONGEST.get(name, 500) if kind in ("text", "texts") else None,
        "methods": list(each.metadata["methods"]),
        "unit": _UNITS.get(name),
    }
    return {
        "name": name,
        "group": each.metadata["group"],
        "label": each.metadata["label"],
        "help": each.metadata["help"],
        "kind": kind,
        "advanced": name not in COMMON,
        "optional": each.default is None,
        "default": _default(each),
        **{key: value for key, value in offered.items() if value not in (None, [])},
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return f"{_capital(text)}."


def kind_of(name: str) -> Kind:
    """Which control a setting wants."""
    kind = kinds()[name]
    if name in DATASETS:
        return "dataset"
    if name in ("method", "optimizer", PLAN) or get_origin(kind) is Literal:
        return "choice"
    plain_kinds: dict[Any, Kind] = {int: "int", float: "float", bool: "bool", str: "text", Path: "adapter"}
    if kind in plain_kinds:
        return plain_kinds[kind]
    if get_origin(kind) is tuple:
        return "adapters" if kind == tuple[Path, ...] else "texts"
    return "table"


def _choices(name: str, places: Places) -> list[str]:
    if name == "method":
        return list(METHODS)
    if name == "optimizer":
        return installed_optimizers()
    if name == PLAN:
        return sorted(places.plan_files())
    if kind_of(name) in ("adapter", "adapters"):
        return sorted(places.adapter_files())
    return [value for value in choices().get(name, ()) if value is not None]


def _default(each: Field) -> Any:
    return plain(each.default_factory() if callable(each.default_factory) else each.default)


def values(preset: str, method: str | None, base: str, places: Places) -> dict[str, Any]:
    """What every setting of the form is under a preset, a method (None: the preset's own) and a base of that name.

    {"method", "values": {name: value}, "sources": {name: where the preset has it from}}. Raises SettingError for an
    unknown preset, method or base.
    """
    path = places.base(base)
    chosen = {"preset": preset, "base": path, **({"method": method} if method else {})}
    given = over_preset(chosen)
    sources = preset_sources(preset, given["method"], base_kind(path))
    shown = {each.name: given.get(each.name, _default(each)) for each in settings() if each.name in OFFERED}
    return {
        "method": given["method"],
        "values": {name: plain(value) for name, value in shown.items()},
        "sources": {name: sources[name].source for name in shown if name in sources and name in given},
    }
