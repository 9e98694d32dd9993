"""What `--network_dim` and `--network_args` of kohya's sd-scripts say of the adapter to train, read as a `TrainSpec`.

The names and meanings are those of the settings of this package's own training, so that one description serves both.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..spectral.errors import SettingError
from .spec import TrainSpec, kinds, read_value

ARGUMENTS = (
    "method",
    "rank",
    "columns",
    "column_plan",
    "concept",
    "avoid",
    "rotation",
    "norms",
    "targets",
    "text_targets",
    "text_targets_2",
    "start_from",
    "norm_lr",
    "weight_decay",
)
# Of an adapter that is gone on from, these are the file's.
OF_FILE = tuple(name for name in ARGUMENTS if name not in ("norm_lr", "weight_decay"))
# Any optimiser keeps these rotations orthogonal, so they are what sd-scripts trains unless it is told otherwise.
ROTATION = "cayley"
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def read_arguments(network_dim: int | None, given: Mapping[str, str]) -> TrainSpec:
    """The settings of the adapter; of the other fields of a TrainSpec none means anything here.

    network_dim: the rank, None for the method's own columns. given: texts, as sd-scripts hands them on. `avoid` lists
    files as JSON or separated by semicolons. rotation is "cayley" unless named. Raises SettingError for an unknown
    name, a value of another kind, and settings that exclude each other.
    """
    if unknown := [name for name in given if name not in ARGUMENTS]:
        near = difflib.get_close_matches(unknown[0], ARGUMENTS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise SettingError(f"network_args: {unknown[0]!r} is unknown{hint} This module has {', '.join(ARGUMENTS)}")
    values = {name: _value(name, text) for name, text in given.items()}
    if network_dim is not None and values.setdefault("rank", network_dim) != network_dim:
        raise SettingError(f"network_dim={network_dim} and rank={values['rank']} both say the rank; give one")
    if values.get("method") == "soda":
        values.setdefault("rotation", ROTATION)
    spec = TrainSpec(base="", images=Path(), out=Path(), **values)
    spec.check_adapter()
    return spec


def _value(name: str, text: str) -> Any:
    """A text as the setting's own kind of value."""
    kind = kinds()[name]
    if kind is bool:
        if text.strip().lower() not in _TRUTHS:
            raise SettingError(f"network_args: {name}={text!r}; expected true or false")
        return _TRUTHS[text.strip().lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            what = "a whole number" if kind is int else "a number"
            raise SettingError(f"network_args: {name}={text!r}; expected {what}") from error
    return read_value(name, _paths(name, text) if name == "avoid" else text)


def _paths(name: str, text: str) -> list[str]:
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(";") if part.strip()]
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingError(f"network_args: {name}={text!r} is no list in JSON: {error}") from error
