"""How strongly each part of a model is changed: by block, by the kind of work its layers do, by column of their basis.

    down=0.5, IN04=1, OUT*=1.2, self-attention=0.8, text=0, columns 0-3=0.5

A layer's factor is that of its block times that of its work; both are 1 where no rule matches. Where several rules
match, the most specific one decides: for blocks one named in full before a pattern (OUT*), that before down, mid, up
and text, that before *; for work self-attention and cross-attention before attention; for columns the narrowest
range. Of equally specific ones the later decides. So "*=0, OUT05=1" leaves one block alone. Tables that are separated
by ";" are multiplied with each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, cast

import torch
from torch import Tensor

from .blocks import WORKS, Area, Place, Work, place
from .errors import SettingError
from .names import Family

Axis = Literal["block", "work", "columns"]
LARGEST = 10.0  # as for strengths

_EVERYTHING = "*"
_AREAS: tuple[Area, ...] = ("down", "mid", "up", "text")
#: Names for several kinds of work.
_WORK_GROUPS: Mapping[str, tuple[Work, ...]] = {"attention": ("self-attention", "cross-attention")}
_OTHER_NAMES = {"ALL": _EVERYTHING, "ff": "feed-forward", "conv": "convolution", "BASE": "text", "M00": "mid"}
_NUMBERED = (("IN", "{:02d}", 12), ("OUT", "{:02d}", 12), ("DOWN", "{}", 4), ("UP", "{}", 4))
_TEXT = ("TE", "TE1", "TE2")
_TEXT_LAYERS = 32  # of the largest text encoder, SDXL's second
BLOCKS = (
    "INPUT", "MID", "OUTPUT",
    *(name + form.format(i) for name, form, count in _NUMBERED for i in range(count)),
    *_TEXT, *(f"{name}-{i:02d}" for name in _TEXT for i in range(_TEXT_LAYERS)),
)  # fmt: skip
_KNOWN = (
    "*, down, mid, up, text; IN00-IN11, MID, OUT00-OUT11, INPUT, OUTPUT, DOWN0-DOWN3, UP0-UP3, TE-00 (TE1-00 and "
    f"TE2-00 of SDXL), or a pattern such as OUT*; attention, {', '.join(WORKS)}; columns 0-3, columns 8-, columns *"
)
_COLUMNS = re.compile(r"columns?\s*(?:(?P<all>\*)|(?P<first>\d+)\s*(?P<to>-)?\s*(?P<last>\d+)?)$")


@dataclass(frozen=True)
class Rule:
    """axis and name: the layers or columns that are meant. factor: what their change is multiplied with."""

    axis: Axis
    name: str
    factor: float

    @property
    def range(self) -> tuple[int, float]:
        """The first and the last column of a rule on columns; the last is infinite where it is open."""
        found = cast("re.Match[str]", _COLUMNS.match(self.name))
        if found["all"]:
            return 0, math.inf
        first = int(found["first"])
        return first, float(found["last"]) if found["last"] else (math.inf if found["to"] else first)

    @property
    def text(self) -> str:
        short = f"{self.factor:g}"
        return f"{self.name}={short if float(short) == self.factor else repr(self.factor)}"


@dataclass(frozen=True)
class Parts:
    """Tables of rules; the factors of the tables are multiplied. Without a rule everything is changed as it is."""

    tables: tuple[tuple[Rule, ...], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Parts:
        """Rules as people write them, separated by commas or lines. Raises SettingError, naming what was found."""
        tables = [_table(part) for part in text.split(";")]
        return cls(tuple(table for table in tables if table))

    @property
    def text(self) -> str:
        """The rules again; `parse` makes an equal object of it."""
        return "; ".join(", ".join(rule.text for rule in table) for table in self.tables)

    @property
    def has_columns(self) -> bool:
        """Whether columns are told apart."""
        return any(rule.axis == "columns" for table in self.tables for rule in table)

    def of(self, layer: str, family: Family | None) -> float:
        """The factor of a layer or norm (kohya's spelling), without that of its columns."""
        return self.at(place(layer, family)) if self.tables else 1.0

    def at(self, where: Place) -> float:
        """The factor of the layers at a place."""
        return self.of_axis("block", where) * self.of_axis("work", where)

    def of_axis(self, axis: Literal["block", "work"], where: Place) -> float:
        """What the rules on blocks alone, or on kinds of work alone, make of a place."""
        return math.prod(_decide(table, axis, where) for table in self.tables)

    def of_columns(self, indices: Sequence[int], k: int) -> Tensor | None:
        """The factors (r,) fp32 of columns, given as indices among all k; None where none differs from 1."""
        if not self.has_columns:
            return None
        factors = torch.ones(k)
        for table in self.tables:
            factors *= _column_factors(table, k)
        factors = factors[torch.as_tensor(indices, dtype=torch.long)]
        return None if bool((factors == 1).all()) else factors

    def __mul__(self, other: Parts) -> Parts:
        """Both, multiplied with each other."""
        return Parts(self.tables + other.tables)


def _table(text: str) -> tuple[Rule, ...]:
    rules: dict[str, Rule] = {}
    for part in re.split(r"[,\n]", text):
        if not part.strip():
            continue
        rule = _rule(part.strip())
        if rule.name in rules:
            raise SettingError(f"parts: found {rule.name} twice; expected each name once (or write ; between tables)")
        rules[rule.name] = rule
    return tuple(rules.values())


def _rule(text: str) -> Rule:
    name, equals, number = text.partition("=")
    try:
        factor = float(number) if equals else math.nan
    except ValueError:
        factor = math.nan
    if not abs(factor) <= LARGEST:
        raise SettingError(f"parts: found {text!r}, expected a name and a number up to {LARGEST:g}, such as IN04=0.5")
    axis, name = _named(name.strip())
    return Rule(axis, name, factor)


def _named(found: str) -> tuple[Axis, str]:
    """The axis and the one spelling of a name. Raises SettingError for one that nothing has."""
    lower, upper = found.lower(), _numbers_filled(found.upper())
    if matched := _COLUMNS.match(lower):
        return "columns", _range_name(matched)
    name = _OTHER_NAMES.get(upper) or _OTHER_NAMES.get(lower) or found
    if name.lower() in (*WORKS, *_WORK_GROUPS):
        return "work", name.lower()
    if name.lower() in _AREAS or name == _EVERYTHING:
        return "block", name.lower()
    if any(fnmatchcase(block, upper) for block in BLOCKS):
        return "block", upper
    raise SettingError(f"parts: found the name {found!r}, which no part has; expected one of: {_KNOWN}")


def _numbers_filled(name: str) -> str:
    """IN4 -> IN04, TE-3 -> TE-03."""
    return re.sub(r"^(IN|OUT|TE[12]?-)(\d)$", r"\g<1>0\2", name)


def _range_name(matched: re.Match[str]) -> str:
    if matched["all"]:
        return "columns *"
    first, last = int(matched["first"]), matched["last"]
    if last is None:
        return f"columns {first}-" if matched["to"] else f"columns {first}"
    if not matched["to"] or int(last) < first:
        raise SettingError(f"parts: found {matched[0]!r}, expected columns with the smaller number first, such as 0-3")
    return f"columns {first}-{int(last)}"


def _decide(table: Sequence[Rule], axis: Axis, where: Place) -> float:
    matching = [(_rank(rule, where), i) for i, rule in enumerate(table) if rule.axis == axis and _rank(rule, where)]
    return table[max(matching)[1]].factor if matching else 1.0


def _rank(rule: Rule, where: Place) -> int:
    """How specifically a rule means a place; 0: not at all."""
    if rule.axis == "work":
        return 2 * (rule.name == where.work) or int(where.work in _WORK_GROUPS.get(rule.name, ()))
    if rule.name == _EVERYTHING:
        return 1
    if rule.name in _AREAS:
        return 2 * (rule.name == where.area)
    return (4 if rule.name == where.block else 3) * fnmatchcase(where.block, rule.name)


def _column_factors(table: Sequence[Rule], k: int) -> Tensor:
    factors = torch.ones(k)
    ranges = [(*rule.range, rule.factor) for rule in table if rule.axis == "columns"]
    for first, last, factor in sorted(ranges, key=lambda each: each[0] - each[1]):  # the widest first
        factors[first : None if last == math.inf else int(last) + 1] = factor
    return factors
