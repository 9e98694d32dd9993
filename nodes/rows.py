"""The rows of the stack: how they are written into a workflow, and read again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..spectral.errors import SettingError

LARGEST = 10.0  # a strength; as the loader's
MOST = 100
_KEYS = ("on", "adapter", "model", "clip", "parts")


@dataclass(frozen=True)
class Row:
    """One adapter of a stack. adapter: its name in the list, "" while none is chosen. parts: rules of `Parts`."""

    on: bool
    adapter: str
    model: float
    clip: float
    parts: str

    @property
    def counts(self) -> bool:
        return self.on and self.adapter != ""


def read_rows(text: str) -> tuple[Row, ...]:
    """Rows from JSON: [{"on": true, "adapter": "a.safetensors", "model": 1, "clip": 1, "parts": ""}].

    Only `adapter` is needed: a row is on, at strength 1, its clip as its model. Raises SettingError, naming the row.
    """
    try:
        found = json.loads(text.strip() or "[]")
    except ValueError as error:
        raise SettingError(f"rows: found text that is no JSON ({error}); expected a list of rows") from error
    if not isinstance(found, list) or len(found) > MOST:
        raise SettingError(f"rows: found {_shown(found)}, expected a list of at most {MOST} rows")
    return tuple(_row(row, f"row {number}") for number, row in enumerate(found, 1))


def _row(row: Any, where: str) -> Row:
    if not isinstance(row, Mapping) or not isinstance(row.get("adapter"), str):
        raise SettingError(f"{where}: found {_shown(row)}, expected the name of an adapter under 'adapter'")
    unknown = [key for key in row if key not in _KEYS]
    if unknown:
        raise SettingError(f"{where}: found {_shown(unknown[0])}; a row has {', '.join(_KEYS)}")
    on, parts = row.get("on", True), row.get("parts", "")
    if not isinstance(on, bool) or not isinstance(parts, str):
        raise SettingError(f"{where}: found on={_shown(on)}, parts={_shown(parts)}; expected true or false, and text")
    model = _strength(row.get("model", 1.0), f"{where}, model")
    return Row(on, row["adapter"], model, _strength(row.get("clip", model), f"{where}, clip"), parts)


def _strength(value: Any, where: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or abs(value) > LARGEST:
        raise SettingError(f"{where}: found {_shown(value)}, expected a strength from -{LARGEST:g} to {LARGEST:g}")
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
