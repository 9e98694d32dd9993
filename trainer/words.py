"""Numbers as people say them."""

from __future__ import annotations


def size_text(count: int) -> str:
    """1,234 bytes as people read them: 1.2 KB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def duration_text(seconds: float) -> str:
    """Seconds as people say them: 42 s, 12 min, 3 h 20 min, 2 days 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"
