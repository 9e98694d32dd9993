"""The panel's strings, in the language asked for where it is there, else in English."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).resolve().parents[2] / "locales"
_OURS = "spectralAdapters"


def languages() -> list[str]:
    """The languages that have strings for the panel."""
    return sorted(path.parent.name for path in LOCALES.glob("*/main.json"))


def strings(language: str) -> dict[str, Any]:
    """The panel's strings: those of the language ("fr", "fr-FR") over the English ones, which are complete."""
    known = {name.lower(): name for name in languages()}
    wanted = language.lower()
    name = known.get(wanted) or known.get(wanted.partition("-")[0], "en")
    return _over(_read("en"), _read(name))


def _read(name: str) -> dict[str, Any]:
    path = LOCALES / name / "main.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found.get(_OURS, {})


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, the upper one's texts winning."""
    both = {name: _over(value, above[name]) for name, value in below.items() if _nested(value, above.get(name))}
    return {**below, **above, **both}


def _nested(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)
