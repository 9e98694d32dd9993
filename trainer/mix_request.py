"""What is asked of adapters together, checked: a comparison, or a fusion into one file. Knows no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..spectral.errors import SettingError
from .places import LORA_SUFFIX

# The modes that need no sampling run; `spectral.mixture` says what each is.
Mode = Literal["sum", "mean", "paper", "rotate", "shift", "interpolate"]
MODES: tuple[Mode, ...] = ("sum", "mean", "paper", "rotate", "shift", "interpolate")
To = Literal["auto", "native", "lora", "diff"]
TO: tuple[To, ...] = ("auto", "native", "lora", "diff")
MOST = 16  # adapters
MOST_RANK = 4096
REACH = 10.0  # weights lie between -REACH and REACH
_LONGEST = 300  # characters of a name


@dataclass(frozen=True)
class Mixed:
    """One adapter of several. name: as lists show it; path: its file."""

    name: str
    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class ConflictRequest:
    """Adapters to compare. base: of the model to measure them on, None for the files alone."""

    adapters: tuple[Mixed, ...]
    base: str | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ConflictRequest:
        """Read a request made of plain values. Raises SettingError for unknown, missing or unusable ones."""
        _check_names(cls, values, "a comparison")
        return cls(_adapters(values.get("adapters"), least=2), _base(values.get("base")))

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` reads them."""
        return {"adapters": _plain(self.adapters), "base": self.base}


@dataclass(frozen=True)
class FuseRequest:
    """Adapters to fuse. base: needed where a source or the format does; to: the kind of file, auto for native where the
    algebra allows it, else a LoRA where the change has low rank, else a difference. rank, energy: of a LoRA, at most
    one of them. out: where a native file goes; lora: where another kind goes, None for NAME.lora.safetensors beside it.
    """

    adapters: tuple[Mixed, ...]
    out: Path
    lora: Path | None = None
    mode: Mode = "sum"
    base: str | None = None
    to: To = "auto"
    rank: int | None = None
    energy: float | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FuseRequest:
        """Read a request made of plain values. Raises SettingError for unknown, missing or unusable ones."""
        _check_names(cls, values, "a fusion")
        if not isinstance(values.get("out"), (str, Path)) or not str(values["out"]):
            raise SettingError(f"fuse: found out={values.get('out')!r}, expected the path of a file")
        adapters = _adapters(values.get("adapters"), least=1)
        asked = {name: values[name] for name in ("mode", "to", "rank", "energy") if values.get(name) is not None}
        lora = values.get("lora")
        if lora is not None and (not isinstance(lora, (str, Path)) or not str(lora)):
            raise SettingError(f"fuse: found lora={lora!r}, expected the path of a file or none")
        asked["lora"] = None if lora is None else Path(lora)
        return cls(adapters, Path(values["out"]), base=_base(values.get("base")), **checked(asked))

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` reads them."""
        paths = {"out": str(self.out), "lora": None if self.lora is None else str(self.lora)}
        return {**asdict(self), "adapters": _plain(self.adapters), **paths}

    @property
    def other(self) -> Path:
        """Where a file goes that is no adapter of this package."""
        return self.out.with_name(f"{self.out.stem}{LORA_SUFFIX}") if self.lora is None else self.lora


def checked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """mode, to, rank and energy as far as they are given. Raises SettingError for those that cannot be."""
    given = dict(asked)
    if given.get("mode", "sum") == "gradient":
        raise SettingError(
            "gradient fusion records a sampling run of the model; the node Spectral Adapter Fusion does it"
        )
    for name, known in (("mode", MODES), ("to", TO)):
        if given.get(name, known[0]) not in known:
            raise SettingError(f"fuse: found {name}={str(given[name])[:50]!r}, expected one of {', '.join(known)}")
    rank, energy = given.get("rank"), given.get("energy")
    if rank is not None and not (type(rank) is int and 1 <= rank <= MOST_RANK):
        raise SettingError(f"fuse: found rank={str(rank)[:50]}, expected a whole number from 1 to {MOST_RANK}")
    if energy is not None and not (_is_number(energy) and 0 < energy <= 1):
        raise SettingError(f"fuse: found energy={str(energy)[:50]}, expected a share above 0 and up to 1, such as 0.99")
    if rank is not None and energy is not None:
        raise SettingError(f"rank={rank} and energy={energy:g} both choose the rank of the LoRA; give one")
    if given.get("to") in ("native", "diff") and (rank or energy):
        raise SettingError(f"rank and energy belong to a LoRA, not to to={given['to']}; leave them out")
    return given


def digest(asked: object, paths: Sequence[Path]) -> str:
    """64 hex digits that are the same for the same question about the same files."""
    stamps = [[str(path), found.st_size, found.st_mtime_ns] for path in paths for found in [path.stat()]]
    return hashlib.sha256(json.dumps([asked, stamps], sort_keys=True).encode()).hexdigest()


def _check_names(kind: type, values: object, what: str) -> None:
    known = [f.name for f in fields(kind)]
    if not isinstance(values, Mapping):
        raise SettingError(f"{what}: found a {type(values).__name__}, expected a table with {', '.join(known)}")
    if strange := sorted(map(str, values.keys() - set(known))):
        raise SettingError(f"{what} has no setting {strange[0][:50]!r}; it has {', '.join(known)}")


def _adapters(rows: object, least: int) -> tuple[Mixed, ...]:
    if not isinstance(rows, (list, tuple)) or not least <= len(rows) <= MOST:
        count = len(rows) if isinstance(rows, (list, tuple)) else f"a {type(rows).__name__}"
        raise SettingError(f"adapters: found {count}, expected a list of {least} to {MOST}")
    return tuple(_adapter(row) for row in rows)


def _adapter(row: object) -> Mixed:
    _check_names(Mixed, row, "an adapter to mix")
    name, path, weight = row.get("name"), row.get("path"), row.get("weight", 1.0)
    if not isinstance(path, (str, Path)) or not str(path):
        raise SettingError(f"adapters: found path={path!r}, expected the path of a file")
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST:
        raise SettingError(f"adapters: found name={str(name)[:50]!r}, expected a text of 1 to {_LONGEST} characters")
    return Mixed(name, Path(path), weight_of(weight))


def weight_of(value: object) -> float:
    """The weight of an adapter in a fusion. Raises SettingError."""
    if not _is_number(value) or not -REACH <= value <= REACH:
        raise SettingError(f"weight={str(value)[:50]}; expected a number from {-REACH:g} to {REACH:g}")
    return float(value)


def _base(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise SettingError(f"base: found {str(value)[:50]!r}, expected a model or none")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(adapters: Sequence[Mixed]) -> list[dict[str, Any]]:
    return [{"name": each.name, "path": str(each.path), "weight": each.weight} for each in adapters]
