"""The page of all training settings, made from their own metadata: docs/training_settings.md is its output."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .layering import DEFAULT_PRESET
from .options import COMMON, TITLES, default_text, is_required
from .spec import TrainSpec, settings

_ON_RESUME = {
    "refuse": "must be the checkpoint's",
    "checkpoint": "the checkpoint's value is kept",
    "spec": "may be changed",
}
_TYPES = {Path: "path", str: "text", int: "whole number", float: "number", bool: "true or false"}
_HEAD = """# Training settings

Made by `python -m spectral_adapters settings` from the settings themselves; do not edit.

The same names in a spec file (`batch_size = 4`), on the command line (`--batch-size 4`) and in Python
(`TrainSpec(batch_size=4)`). Values come from the preset ({preset} unless you say otherwise, `preset = "none"` for the
defaults below), then the spec file, then the flags; each wins over the ones before. Relative paths in a spec file count
from its folder, on the command line from where you are. As a number on the command line, `none` takes the default.

*When resumed* says what happens if the setting differs from the checkpoint's. "Must be the checkpoint's" refuses to go
on and names both values; files count by their content, not by their place, and a batch may be split differently as long
as a step sees as many pictures. Whatever else differs is said in the output and in `resumes.jsonl`.

{common}
"""


def page() -> str:
    """The page, in Markdown."""
    kinds = get_type_hints(TrainSpec)
    common = ", ".join(f"[`{name}`](#{name})" for name in COMMON)
    blocks = [_HEAD.format(preset=DEFAULT_PRESET, common=_filled(f"The settings that most runs need: {common}."))]
    for group, title in TITLES.items():
        blocks.append(f"## {title[:1].upper()}{title[1:]}\n")
        blocks += [_entry(field, kinds[field.name]) for field in settings() if field.metadata["group"] == group]
    return "\n".join(blocks)


def _entry(field: Field, kind: Any) -> str:
    facts = [type_text(kind), "required" if is_required(field) else f"default {_default(field)}"]
    return (
        f"### `{field.name}`\n\n{_filled(field.metadata['help'])}\n\n"
        f"*{', '.join(facts)}. When resumed: {_ON_RESUME[field.metadata['resume']]}.*\n"
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _default(field: Field) -> str:
    if field.name == "preset":
        return f"`{DEFAULT_PRESET}` on the command line"
    if field.default is None:
        return "left open (see above)"
    if field.default in ((), ""):
        return "empty"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{default_text(field)}`" if isinstance(field.default, (str, int, float)) else "empty"


def type_text(kind: Any) -> str:
    """A field's type in words."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is tuple:
        return f"list of {_TYPES[get_args(kind)[0]]}s"
    if get_origin(kind) is Mapping:
        return "table"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in get_args(kind))
    return _TYPES[kind]
