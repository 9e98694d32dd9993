"""What a call asks, read and bounded: names in the path, and the query's or the body's values, each of a known type."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ...spectral.errors import SettingError

if TYPE_CHECKING:
    from .guard import Access

SHORT = 4096  # characters of a text


@dataclass(frozen=True)
class Call:
    """One call: `path` holds the names in its path, `values` the query of a GET or the JSON object of a POST.

    from_query: numbers come as texts.
    """

    path: Mapping[str, str]
    values: Mapping[str, Any]
    access: Access
    from_query: bool = False

    def text(self, name: str, default: str | None = None, most: int = SHORT) -> str:
        """A text of at most `most` characters. Raises SettingError."""
        value = self._value(name, default)
        if not isinstance(value, str) or len(value) > most:
            raise SettingError(f"{name}: expected a text of at most {most} characters")
        return value

    def whole(self, name: str, default: int | None = None, least: int = 0, most: int = 1 << 53) -> int:
        """A whole number between bounds. Raises SettingError."""
        value = self._value(name, default)
        if self.from_query and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise SettingError(f"{name}: found {str(value)[:50]!r}; expected a whole number from {least} to {most}")
        return value

    def maybe_whole(self, name: str) -> int | None:
        """A whole number, or None where there is none or it is empty."""
        return self.whole(name) if self.values.get(name) not in (None, "") else None

    def yes(self, name: str) -> bool:
        """True or false; false where it is missing. Raises SettingError."""
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise SettingError(f"{name}: expected true or false")
        return value

    def texts(self, name: str, most: int = 1000) -> list[str]:
        """A list of at most `most` texts, empty where it is missing. Raises SettingError."""
        value = self.values.get(name, [])
        if not isinstance(value, list) or len(value) > most or not all(isinstance(item, str) for item in value):
            raise SettingError(f"{name}: expected a list of at most {most} texts")
        return value

    def table(self, name: str) -> Mapping[str, Any]:
        """A JSON object; empty where it is missing. Raises SettingError."""
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            raise SettingError(f"{name}: expected names and values")
        return value

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name, default)
        if value is None:
            raise SettingError(f"{name} is missing")
        return value


def read_body(blob: bytes) -> dict[str, Any]:
    """The JSON object in a call's body. Raises SettingError for anything else."""
    try:
        values = json.loads(blob, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"the body is no JSON ({error}); expected one JSON object") from error
    if not isinstance(values, dict):
        raise SettingError(f"the body is a {type(values).__name__}; expected one JSON object")
    return values


def check_names(values: Mapping[str, Any], takes: Collection[str]) -> None:
    """Raise SettingError for a name that the route does not take."""
    for name in values:
        if name not in takes:
            listed = ", ".join(sorted(takes)) or "none"
            raise SettingError(f"found {name[:50]!r} among the call's values; expected only: {listed}")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")
