"""Which singular directions an adapter works on: all of them, a block, the bottom, a seeded sample, or a list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import SettingError

Kind = Literal["all", "top", "bottom", "sample", "list"]


@dataclass(frozen=True)
class Columns:
    """A choice of columns that does not yet know how many there are; `resolve(k)` makes it concrete.

    Indices count from 0 in order of descending singular value.
    """

    kind: Kind = "all"
    rank: int = 0
    start: int = 0
    seed: int = 0
    pool: int = 0
    indices: tuple[int, ...] = ()

    @classmethod
    def parse(cls, spec: ColumnsLike) -> Columns:
        """Read a choice of columns.

        None or "all": every column. 8 or "top:8": the first 8. "top:8@16": 8 columns from column 16 on.
        "bottom:8": the last 8. "sample:8:7": 8 columns drawn with seed 7; "sample:8:7:64" draws them from the first 64.
        A sequence of integers or "list:0,3,5": these columns.

        Raises SettingError for anything else.
        """
        if isinstance(spec, Columns):
            return spec
        if spec is None:
            return cls()
        if isinstance(spec, bool):
            raise SettingError(f"columns={spec!r} is not a choice of columns; {_GRAMMAR}")
        if isinstance(spec, int):
            return cls._checked(cls("top", rank=spec))
        if isinstance(spec, str):
            return cls._parse_text(spec.strip())
        return cls._checked(cls("list", indices=tuple(sorted(int(i) for i in spec))))

    @classmethod
    def _parse_text(cls, text: str) -> Columns:
        kind, _, rest = text.partition(":")
        try:
            if text == "all":
                return cls()
            if kind == "top":
                rank, _, start = rest.partition("@")
                return cls._checked(cls("top", rank=int(rank), start=int(start or 0)))
            if kind == "bottom":
                return cls._checked(cls("bottom", rank=int(rest)))
            if kind == "sample":
                rank, seed, pool = (*rest.split(":"), "0")[:3]
                return cls._checked(cls("sample", rank=int(rank), seed=int(seed), pool=int(pool)))
            if kind == "list":
                return cls._checked(cls("list", indices=tuple(sorted(int(i) for i in rest.split(",")))))
        except ValueError:
            pass
        raise SettingError(f"columns={text!r} is not a choice of columns; {_GRAMMAR}")

    @classmethod
    def _checked(cls, c: Columns) -> Columns:
        if c.kind == "list":
            if not c.indices or c.indices[0] < 0 or len(set(c.indices)) != len(c.indices):
                raise SettingError(f"columns={list(c.indices)} must be different indices counted from 0, at least one")
        elif c.rank < 1 or c.start < 0 or c.pool < 0:
            raise SettingError(f"columns={c.text!r}: the number of columns must be at least 1 and none may be negative")
        return c

    @property
    def text(self) -> str:
        """The canonical spelling, which `parse` reads back."""
        match self.kind:
            case "all":
                return "all"
            case "top":
                return f"top:{self.rank}" + (f"@{self.start}" if self.start else "")
            case "bottom":
                return f"bottom:{self.rank}"
            case "sample":
                return f"sample:{self.rank}:{self.seed}" + (f":{self.pool}" if self.pool else "")
            case _:
                return "list:" + ",".join(map(str, self.indices))

    def resolve(self, k: int) -> tuple[int, ...]:
        """The indices, ascending, in a matrix with k singular values.

        A rank larger than k is cut to k, so that one setting serves layers of every size.
        Raises SettingError where nothing is left: a start or a listed index at or beyond k.
        """
        match self.kind:
            case "all":
                chosen: Sequence[int] = range(k)
            case "top":
                chosen = range(self.start, min(k, self.start + self.rank))
            case "bottom":
                chosen = range(max(0, k - self.rank), k)
            case "sample":
                pool = min(k, self.pool or k)
                chosen = sorted(sorted(range(pool), key=self._draw)[: self.rank])
            case _:
                chosen = self.indices
        if not chosen or chosen[-1] >= k:
            raise SettingError(
                f"columns {self.text!r} do not fit a layer with {k} singular values; choose lower columns, or leave "
                "such layers out of the targets"
            )
        return tuple(chosen)

    def _draw(self, index: int) -> bytes:
        # A hash and not a library's generator: the same columns on every machine and version.
        return hashlib.sha256(f"spectral columns {self.seed} {index}".encode()).digest()


ColumnsLike = Columns | int | str | Sequence[int] | None

_GRAMMAR = (
    'expected "all", a number, "top:8", "top:8@16" (8 columns from column 16), "bottom:8", "sample:8:SEED", '
    '"sample:8:SEED:POOL" or a list of indices'
)
