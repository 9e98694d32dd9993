"""What a line of an event log must hold to be read: another program, or a fault of the disk, may have written it.

Only fields that readers count on are named; further ones, and events of later versions, are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

_MOST = 1 << 53  # beyond it, pages' numbers are no longer exact
_NO_NUMBERS = ("NaN", "Infinity", "-Infinity")  # as event_log writes them


def is_event(line: Any) -> bool:
    """Whether it is an event whose fields have the types that they should have."""
    if not isinstance(line, Mapping) or not isinstance(line.get("event"), str):
        return False
    needed, perhaps = _FIELDS.get(line["event"], {}), _OPTIONAL.get(line["event"], {})
    if not _is_time(line.get("time")) or (line["event"] in _SHOWN_WHOLE and not _is_plain(line)):
        return False
    if not all(name in line and fits(line[name]) for name, fits in needed.items()):
        return False
    return all(line.get(name) is None or fits(line[name]) for name, fits in perhaps.items())


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _MOST) or value in _NO_NUMBERS


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _is_time(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value < _MOST)


def _is_plain(line: Mapping[str, Any]) -> bool:
    """Whether it is JSON for everybody: Python also reads 1e999 and NaN, and writes them so."""
    try:
        json.dumps(line, allow_nan=False)
    except ValueError:
        return False
    return True


_SHOWN_WHOLE = ("Plan", "Ended")
Fields = dict[str, Callable[[Any], bool]]
_FIELDS: dict[str, Fields] = {
    "Phase": {"name": _text},
    "Progress": {"done": _whole, "total": _whole, "item": _text},
    "Notice": {"text": _text},
    "Resumed": {"step": _whole},
    "Step": {"step": _whole, "steps": _whole, "loss": _number, "lr": _number},
    "Skipped": {"step": _whole, "reason": _text},
    "Validated": {"step": _whole, "loss": _number, "best": _truth},
    "Sampled": {"step": _whole, "paths": _texts, "prompts": _texts},
    "Checkpointed": {"step": _whole, "path": _text},
    "Saved": {"path": _text},
    "Ended": {"reason": _text, "step": _whole, "text": _text},
}
_OPTIONAL: dict[str, Fields] = {
    "Plan": {"steps": _whole},
    "Step": {"rate": _number, "memory": _whole},
    "Ended": {"resumable": _truth},
}
