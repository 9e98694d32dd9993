"""Which columns each concept of a set trains on, so that all of them can be fused without mixing.

blocks: people who talk to each other take one block after another. sample: people who cannot draw their columns, each
by the name of the concept, and the odds of a collision are known beforehand. Both as in arXiv 2405.13952, section 4.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from .columns import Columns
from .errors import SettingError

How = Literal["blocks", "sample"]
HOWS: tuple[How, ...] = ("blocks", "sample")
FORMAT = 1
MOST = 64  # concepts
_LONGEST = 100  # characters of a concept's name
_MOST_COLUMN = 1 << 16
_POOL = 16  # times the rank: what samples are drawn from where nothing is said


@dataclass(frozen=True)
class Planned:
    """One concept and its columns, as `Columns` spells them."""

    name: str
    columns: str


@dataclass(frozen=True)
class Plan:
    """Columns for a set of concepts. pool, seed: of samples; pool 0 for blocks."""

    how: How
    rank: int
    start: int
    pool: int
    seed: int
    concepts: tuple[Planned, ...]

    def columns(self, concept: str) -> str:
        """The columns of one concept. Raises SettingError for one that it has not."""
        wanted = _key(concept)
        found = next((each.columns for each in self.concepts if _key(each.name) == wanted), None)
        if found is None:
            names = ", ".join(each.name for each in self.concepts)
            raise SettingError(f"concept={concept!r}: found no such concept in the plan, expected one of: {names}")
        return found

    @property
    def odds(self) -> dict[str, float]:
        """Before the names are known: pair, that two concepts share a column; any, that any two of the set do; shared,
        how many columns two share on average. Exact for layers with at least `pool` singular values.
        """
        n = len(self.concepts)
        if self.how == "blocks":
            return {"pair": 0.0, "any": 0.0, "shared": 0.0}
        return {
            "pair": 1 - _all_differ(2, self.rank, self.pool),
            "any": 1 - _all_differ(n, self.rank, self.pool),
            "shared": self.rank**2 / self.pool,
        }

    def collisions(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """What really came out: every two concepts that share columns, with these."""
        columns = [(each.name, set(self._resolved(each))) for each in self.concepts]
        pairs = ((a, b, tuple(sorted(one & other))) for (a, one), (b, other) in combinations(columns, 2))
        return [pair for pair in pairs if pair[2]]

    def _resolved(self, planned: Planned) -> tuple[int, ...]:
        """A concept's columns, one by one, in layers that are large enough for the plan."""
        return Columns.parse(planned.columns).resolve(self.pool or self.start + self.rank * len(self.concepts))

    @property
    def text(self) -> str:
        """The concepts with their columns, and the odds."""
        width = max(len(each.name) for each in self.concepts)
        lines = [f"  {each.name:{width}}  {each.columns}" for each in self.concepts]
        return "\n".join([*lines, "", *self.said])

    @property
    def said(self) -> list[str]:
        """What is to be known of it, in sentences."""
        if self.how == "blocks":
            last = self.start + self.rank * len(self.concepts) - 1
            return [
                f"Blocks share no column. They reach to column {last}; smaller layers have room for fewer concepts."
            ]
        odds = self.odds
        said = [
            f"Two concepts drawn like this share a column with {odds['pair']:.1%}, any two of these "
            f"{len(self.concepts)} with {odds['any']:.1%}; two share {odds['shared']:.2f} of {self.rank} columns on "
            "average."
        ]
        said += [f"{a} and {b} share {_listed(shared)}." for a, b, shared in self.collisions()]
        return said if len(said) > 1 else [*said, "These share none."]

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` reads them, and what follows from them."""
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in ("how", "rank", "start", "pool", "seed")},
            "concepts": [
                {"name": each.name, "columns": each.columns, "indices": list(self._resolved(each))}
                for each in self.concepts
            ],
            "odds": self.odds,
            "collisions": [{"a": a, "b": b, "columns": list(shared)} for a, b, shared in self.collisions()],
            "said": self.said,
        }

    @classmethod
    def from_json(cls, values: object) -> Plan:
        """Read a plan. Raises SettingError for anything that `as_json` does not make."""
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise SettingError(
                f"found no plan of format {FORMAT}; expected one made by `plan`, by this version or older"
            )
        rows = values.get("concepts")
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise SettingError("the plan's concepts: expected a list of names with columns")
        concepts = []
        for row in rows:
            if not isinstance(row.get("name"), str) or not isinstance(row.get("columns"), str):
                raise SettingError(f"the plan's concept {len(concepts)}: expected a name and columns, both texts")
            concepts.append(Planned(row["name"], Columns.parse(row["columns"]).text))
        numbers = {name: values.get(name) for name in ("rank", "start", "pool", "seed")}
        for name, value in numbers.items():
            _whole(name, value, 0, 2**53)
        made = cls(_one_of(values.get("how")), **numbers, concepts=tuple(concepts))
        _check(
            made.rank,
            made.start,
            made.how,
            made.pool if made.how == "sample" else None,
            [each.name for each in made.concepts],
        )
        return made


def plan_columns(
    concepts: Sequence[str],
    rank: int = 8,
    start: int = 0,
    how: How = "blocks",
    pool: int | None = None,
    seed: int = 0,
) -> Plan:
    """Columns for each concept. blocks: `rank` columns each, one block after another from column `start` on.

    sample: `rank` of the first `pool` columns (None: 16 times the rank), drawn by the concept's name and the seed, so
    that a name alone has the same columns wherever it is planned. Raises SettingError for what cannot be.
    """
    how = _one_of(how)
    if pool is not None and how == "blocks":
        raise SettingError(f"pool={pool}: blocks are not drawn; leave it out, or choose how=sample")
    if how == "sample" and pool is None:
        pool = _POOL * rank
    _check(rank, start, how, pool, concepts)
    _whole("seed", seed, 0, 2**53 - 1)
    names = [unicodedata.normalize("NFC", name.strip()) for name in concepts]
    planned = tuple(Planned(name, _columns(i, name, rank, start, how, pool, seed)) for i, name in enumerate(names))
    return Plan(how, rank, start, pool or 0, seed, planned)


def _columns(i: int, name: str, rank: int, start: int, how: How, pool: int | None, seed: int) -> str:
    if how == "blocks":
        return Columns("top", rank=rank, start=start + i * rank).text
    return Columns("sample", rank=rank, seed=_draw(name, seed), pool=pool or 0).text


def _draw(name: str, seed: int) -> int:
    """A seed from a name; capitals and outer spaces make no difference."""
    digest = hashlib.sha256(f"spectral plan {seed} {_key(name)}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def _all_differ(n: int, rank: int, pool: int) -> float:
    """That n draws of `rank` from `pool` share nothing: each next one must miss all before it."""
    odds = 1.0
    for taken in range(rank, n * rank, rank):
        odds *= math.comb(max(0, pool - taken), rank) / math.comb(pool, rank)
    return odds


def _check(rank: int, start: int, how: How, pool: int | None, concepts: Sequence[str]) -> None:
    _whole("rank", rank, 1, 4096)
    _whole("start", start, 0, _MOST_COLUMN)
    if how == "sample" and start:
        raise SettingError(f"start={start}: samples are drawn from the first columns on; leave it out, or take blocks")
    if pool is not None:
        _whole("pool", pool, rank, _MOST_COLUMN)
    if not 1 <= len(concepts) <= MOST:
        raise SettingError(f"found {len(concepts)} concepts; expected 1 to {MOST}")
    seen: dict[str, str] = {}
    for name in concepts:
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST or not name.strip().isprintable():
            raise SettingError(f"concept {str(name)[:50]!r}: expected a name of 1 to {_LONGEST} printable characters")
        if seen.setdefault(_key(name), name) is not name:
            raise SettingError(
                f"concept {name!r}: found twice, as {seen[_key(name)]!r} before; expected different names"
            )


def _one_of(how: object) -> How:
    if how not in HOWS:
        raise SettingError(f"how={how!r}; expected one of {', '.join(HOWS)}")
    return how


def _whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise SettingError(f"{name}={value!r}; expected a whole number from {least:,} to {most:,}")


def _listed(columns: Sequence[int]) -> str:
    return f"column{'s' * (len(columns) > 1)} {', '.join(map(str, columns))}"
