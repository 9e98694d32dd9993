"""What parts come to, block by block, for people to read."""

from __future__ import annotations

from itertools import groupby

from .blocks import WORKS, Area, Place
from .parts import Parts

_UNET: tuple[tuple[str, Area, tuple[str, ...]], ...] = (
    ("down", "down", tuple(f"IN{i:02d}" for i in range(12))),
    ("mid", "mid", ("MID",)),
    ("up", "up", tuple(f"OUT{i:02d}" for i in range(12))),
    ("text", "text", tuple(f"TE-{i:02d}" for i in range(12))),
)


def in_words(parts: Parts) -> str:
    """What differs from 1: a line for each area with its blocks (SD1.x's names), one for kinds of layers, one for
    columns."""
    spans = ((title, _spans(parts, area, blocks)) for title, area, blocks in _UNET)
    lines = [f"{title}: {words}" for title, words in spans if words != "1"]
    factors = {work: parts.of_axis("work", Place("", "other", work)) for work in WORKS}
    if works := [f"{work} {factor:g}" for work, factor in factors.items() if factor != 1]:
        lines.append(f"times: {', '.join(works)}")
    columns = [rule.text for table in parts.tables for rule in table if rule.axis == "columns"]
    if columns:
        lines.append(f"times: {', '.join(columns).replace('=', ' ')}")
    return "\n".join(f"{line}." for line in lines or ["All parts as trained"])


def _spans(parts: Parts, area: Area, blocks: tuple[str, ...]) -> str:
    """Neighbours of one factor together: IN00-IN03 0.5, IN04 1."""
    spans = []
    for factor, found in groupby(blocks, lambda block: parts.of_axis("block", Place(block, area, "other"))):
        names = list(found)
        where = names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}"
        spans.append((where, f"{factor:g}"))
    if len(spans) == 1:
        return spans[0][1]
    return ", ".join(f"{where} {factor}" for where, factor in spans)
