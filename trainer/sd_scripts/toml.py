"""Settings as TOML text; the standard library reads TOML and does not write it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ...spectral.errors import SettingError


def dumps(values: Mapping[str, Any]) -> str:
    """Texts, numbers, truths, lists of these, tables and lists of tables. Raises SettingError for another value."""
    return "\n".join(_lines(values, ())).lstrip("\n") + "\n"


def _lines(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {name: value for name, value in values.items() if not _is_table(value) and not _are_tables(value)}
    lines = [f"{_key(name)} = {_value(name, value)}" for name, value in plain.items()]
    for name, value in values.items():
        inner = (*path, name)
        header = ".".join(map(_key, inner))
        if _is_table(value):
            lines += ["", f"[{header}]", *_lines(value, inner)]
        elif _are_tables(value):
            lines += [line for one in value for line in ("", f"[[{header}]]", *_lines(one, inner))]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_table, value))


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _text(name)


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(name, item) for item in value) + "]"
    raise SettingError(f"{name}={value!r} cannot be written as TOML; expected a text, a number, true, false or a list")


def _text(value: str) -> str:
    """A basic string: JSON's, whose escapes TOML shares, but for the delete character, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
