"""A conflict in words: what to expect of putting adapters together, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .conflict_rows import spans

if TYPE_CHECKING:
    from .conflict import Conflict, Member, Pair

_SAME = 0.999  # cosine from which two changes are one
_MUCH = 0.1  # overlap that is worth a warning
_ALIKE = 0.3  # cosine that is worth one, also where no column is shared; pictures of one kind alone give 0.1
_TOLD = 3  # spans of columns, and groups of pairs, before "and others"
# What two adapters do to each other, and what follows from it.
_APART = ("change no layer in common", ": they fuse without mixing")
_FREE = ("share no column", ": they fuse without mixing")
_RETRAIN, _BLEND = ": retrain one with `avoid`, or expect blending", ": expect blending"
_LITTLE = ": little blending is to be expected"


def sentence(found: Conflict) -> str:
    """What collides, the worst first and what is alike in one breath; then what does not."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in sorted(found.pairs, key=_harm, reverse=True):
        groups.setdefault(_verdict(found, pair), []).append(pair)
    told = sorted(groups.items(), key=lambda group: group[0] in (_FREE, _APART))
    said: dict[str, list[str]] = {}
    for (what, then), pairs in told:
        said.setdefault(then, []).append(_told(found, pairs, what))
    return "; ".join(_clause(parts, then) for then, parts in said.items()) + "."


def _clause(parts: list[str], then: str) -> str:
    rest = len(parts) - _TOLD
    more = [f"so it is with {rest} other{_s(rest)}"] if rest > 0 else []
    return f"{', '.join([*parts[:_TOLD], *more])}{then}"


def _verdict(found: Conflict, pair: Pair) -> tuple[str, str]:
    """What two adapters do to each other, without their names, and what follows."""
    a, b, cosine = found.members[pair.a], found.members[pair.b], pair.cosine or 0.0
    layers = f"in {pair.shared_layers:,} layer{_s(pair.shared_layers)}"
    if pair.layers == 0:
        return _APART
    if not (a.norm and b.norm):
        return "do not meet, because one of them changes nothing", ""
    if cosine >= _SAME:
        return f"make the same change (cosine {cosine:.2f})", ": use one of them"
    if pair.overlap is None:
        return _unmeasured(a, b, pair)
    if pair.shared_layers == 0:
        return _FREE if abs(cosine) < _ALIKE else (f"share no column, but their changes {_likeness(cosine)}", _BLEND)
    if a.measured or b.measured:
        what = f"overlap by {_percent(pair.overlap)} in the directions that they move {layers}"
        return what, _BLEND if _collides(pair) else _LITTLE
    what = f"both use column{_s(len(pair.columns))} {spelled(pair.columns)} {layers}"
    return (what, _RETRAIN) if _collides(pair) else (f"{what}, but weakly", _LITTLE)


def _told(found: Conflict, pairs: Sequence[Pair], what: str) -> str:
    """Of cat and dog both; of cat, dog and hat all, where it holds for every two; else of the pairs one by one."""
    names = [m.name for m in found.members]
    members = sorted({i for pair in pairs for i in (pair.a, pair.b)})
    if len(pairs) < len(members) * (len(members) - 1) // 2:
        if len(pairs) > _TOLD and pairs[0].shared_layers == 0:
            return f"the other {len(pairs)} pairs {what}"
        return f"{', '.join(f'{names[pair.a]} and {names[pair.b]}' for pair in pairs)} {what}"
    return f"{_joined([names[i] for i in members])} {what if len(members) == 2 else what.replace('both', 'all', 1)}"


def notes(found: Conflict) -> list[str]:
    """What is left out, by adapter."""
    said = []
    if found.apart:
        said.append(
            f"In {found.apart} layer{_s(found.apart)} the files' directions belong to different weights: columns of "
            "one number are not the same directions there. Give the base to compare what the changes do to it."
        )
    unknown = [m.name for m in found.members if m.width is None]
    if unknown:
        carry, move = ("carries", "it moves") if len(unknown) == 1 else ("carry", "they move")
        said.append(
            f"{_joined(unknown)} {carry} no directions of a base: only the cosine of whole changes is exact. Give the "
            f"base to see which columns {move}."
        )
    if any(pair.cosine is None and pair.layers for pair in found.pairs) and all(m.norm for m in found.members):
        said.append("Compact files hold no directions, so cosines with them are not known. Give the base.")
    return said


def text(found: Conflict) -> str:
    """Adapters, pairs, blocks; the sentence first."""
    lines = [found.sentence, ""]
    width = max(len(m.name) for m in found.members)
    for m in found.members:
        layers = f"{m.layers:,} layer{_s(m.layers)}"
        lines.append(f"  {m.name:{width}}  {m.kind:9}  {layers:>12}  {columns_text(m)}")
    lines += ["", f"  {'':{2 * width + 3}}  overlap   cosine  interference"]
    for pair in found.pairs:
        a, b = found.members[pair.a].name, found.members[pair.b].name
        numbers = f"{_percent(pair.overlap):>7}  {_number(pair.cosine):>7}  {_onto(pair)}"
        lines.append(f"  {f'{a} / {b}':{2 * width + 3}}  {numbers}")
    lines += ["", *_blocks(found)]
    return "\n".join([*lines, *(f"\nNote: {note}" for note in found.notes)]).rstrip()


def spelled(columns: Sequence[int]) -> str:
    """0-7, or 0-3, 9, 12-15 and 40 others."""
    parts = spans(columns)
    shown = [f"{a}-{b}" if b > a else f"{a}" for a, b in parts[:_TOLD]]
    rest = sum(b - a + 1 for a, b in parts[_TOLD:])
    return ", ".join(shown) + (f" and {rest} other{_s(rest)}" if rest else "")


def _harm(pair: Pair) -> float:
    return max(abs(pair.cosine or 0.0), pair.overlap or 0.0)


def _collides(pair: Pair) -> bool:
    return (pair.overlap or 0.0) >= _MUCH or abs(pair.cosine or 0.0) >= _ALIKE


def _likeness(cosine: float) -> str:
    return f"are {'alike' if cosine > 0 else 'opposed'} (cosine {cosine:.2f})"


def _unmeasured(a: Member, b: Member, pair: Pair) -> tuple[str, str]:
    """Without a basis in which both can be seen."""
    said = [] if pair.cosine is None else [f"have changes of cosine {pair.cosine:.2f}"]
    for member, share, other in ((a, pair.interference[0], b), (b, pair.interference[1], a)):
        if share is not None:
            said.append(f"{_percent(share)} of {member.name} lies on the columns of {other.name}")
    return ", and ".join(said) or "cannot be compared by their files alone", "; give the base to see their columns"


def columns_text(m: Member) -> str:
    """Which columns an adapter uses, or how many."""
    if m.width is None:
        return "columns not known"
    if m.columns is not None and not m.measured:
        return f"column{_s(len(m.columns))} {spelled(m.columns)}"
    if not m.measured:
        return f"{m.width:.0f} columns, not the same in every layer"
    return f"90 % of the change in {m.width:,.0f} columns on average"


def _onto(pair: Pair) -> str:
    """How much of either lies on the other's columns."""
    return f"{_percent(pair.interference[0])} of the first, {_percent(pair.interference[1])} of the second"


def _blocks(found: Conflict) -> list[str]:
    """Each block's share of every adapter's change, and in how many of its layers columns are shared."""
    blocks: dict[str, list[dict]] = {}
    for row in found.rows():
        blocks.setdefault(row["block"] or "other", []).append(row)
    names = [m.name for m in found.members]
    widths = [max(7, len(name)) for name in names]
    head = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths))
    lines = [f"  {'share of the change':20}  {head}  shared columns"]
    for block, rows in blocks.items():
        shares = [sum(row["shares"][i] for row in rows) for i in range(len(names))]
        cells = "  ".join(f"{_percent(share):>{width}}" for share, width in zip(shares, widths))
        shared = sum(sum(row["shared"]) for row in rows)
        lines.append(f"  {block:20}  {cells}  {shared or '-'}")
    return lines


def _joined(names: Sequence[str], comma: str = ", ") -> str:
    return names[0] if len(names) == 1 else f"{comma.join(names[:-1])} and {names[-1]}"


def _percent(share: float | None) -> str:
    if share is None:
        return "?"
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _s(count: int) -> str:
    return "s" * (count != 1)
