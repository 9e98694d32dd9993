"""What a grid of pictures is made of: checkpoints, strengths, prompts. Knows no torch: pages ask for one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from ..spectral.errors import SettingError
from .checkpoint import ADAPTER, Checkpoints, fault, step_of
from .event_log import curve
from .sample_files import read_samples
from .spec import Precision, Prediction

STRENGTHS = (0.0, 0.5, 1.0, 1.25)
FINAL = "final"
MOST = {"adapters": 12, "strengths": 12, "prompts": 8}
MOST_PICTURES, MOST_STEPS, MOST_TEXT, MOST_SIDE, MOST_SEED = 400, 150, 500, 2048, 2**63 - 1
REACH = 3.0  # strengths lie between -REACH and REACH
# What people may choose, and its name in `GridRequest`.
_ASKED = {name: name for name in ("strengths", "prompts", "seed", "size", "guidance", "negative", "device")} | {
    "steps": "sampling_steps"
}
_SHOWN = 6  # checkpoints of a grid that names none


@dataclass(frozen=True)
class GridAdapter:
    """A row of the grid: an adapter file of a step. loss: on the held-out pictures after that step, None where unknown.

    final: the training's result; best: the step with the lowest held-out loss.
    """

    path: Path
    step: int
    label: str
    best: bool = False
    final: bool = False
    loss: float | None = None


@dataclass(frozen=True)
class GridRequest:
    """A grid to make. size: (width, height) in pixels, None for the base's own."""

    base: str
    adapters: tuple[GridAdapter, ...]
    strengths: tuple[float, ...] = STRENGTHS
    prompts: tuple[str, ...] = ()
    seed: int = 1
    size: tuple[int, int] | None = None
    sampling_steps: int = 25
    guidance: float = 7.5
    negative: str = ""
    tokenizer: str | None = None
    prediction: Prediction = "auto"
    precision: Precision = "fp32"
    device: str = "auto"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GridRequest:
        """Read a request made of plain values. Raises SettingError for unknown, missing or unusable ones."""
        given = dict(_known(cls, values, "a grid"))
        _refuse_missing(given, ("base", "adapters", "prompts"))
        given["adapters"] = tuple(_adapter(row) for row in _list(given, "adapters"))
        given["strengths"] = _strengths(_list(given, "strengths", STRENGTHS))
        given["prompts"] = tuple(_text("prompts", text) for text in _list(given, "prompts"))
        if given.get("size") is not None:
            given["size"] = _size_of(given["size"])
        request = cls(**given)
        request._check()
        return request

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` reads them."""
        plain = asdict(self)
        rows = [{**row, "path": str(row["path"])} for row in plain["adapters"]]
        size = None if self.size is None else list(self.size)
        lists = {"strengths": list(self.strengths), "prompts": list(self.prompts), "size": size}
        return {**plain, **lists, "adapters": rows}

    @property
    def axes(self) -> dict[str, Any]:
        """What the grid's rows, columns and pages stand for."""
        shown = ("step", "label", "best", "final", "loss")
        rows = [{name: getattr(row, name) for name in shown} for row in self.adapters]
        lists = {"strengths": list(self.strengths), "prompts": list(self.prompts)}
        return {"checkpoints": rows, **lists, "seed": self.seed}

    @property
    def pictures(self) -> int:
        """How many different pictures it has: at strength 0 every checkpoint is the base."""
        changed = sum(strength != 0 for strength in self.strengths)
        return len(self.prompts) * (changed * len(self.adapters) + (0.0 in self.strengths))

    @property
    def digest(self) -> str:
        """The same for requests whose pictures are the same, on whatever device; 64 hex digits."""
        plain = {name: value for name, value in self.as_json().items() if name != "device"}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def _check(self) -> None:
        _whole("seed", self.seed, 0, MOST_SEED)
        _whole("sampling_steps", self.sampling_steps, 1, MOST_STEPS)
        _number("guidance", self.guidance, 0.0, 100.0)
        _text("negative", self.negative)
        for name in ("base", "device"):
            if not isinstance(value := getattr(self, name), str) or not value:
                raise SettingError(f"grid: found {name}={value!r}, expected a text")
        for name, choices in (("prediction", get_args(Prediction)), ("precision", get_args(Precision))):
            if (value := getattr(self, name)) not in choices:
                raise SettingError(f"grid: found {name}={value!r}, expected one of {', '.join(choices)}")
        if self.pictures > MOST_PICTURES:
            raise SettingError(
                f"grid: found {self.pictures} pictures to make, expected at most {MOST_PICTURES}; take fewer "
                "checkpoints, strengths or prompts"
            )


def grid_request(
    run: Path, spec: Mapping[str, Any], adapter: Path | None, asked: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The request for a grid of a training run, as plain values for `make_grid`.

    run: its folder; spec: TrainSpec.as_json() of it; adapter: the file it has written, if any. asked may have
    "checkpoints" (names of checkpoint folders, step numbers, or "final"; up to six evenly spread ones where missing),
    strengths, prompts, seed, size, steps (of sampling), guidance, negative, device. What is not asked for is as the
    run's samples were. Raises SettingError for a run without an adapter yet, and for names that it has not.
    """
    asked = {name: value for name, value in (asked or {}).items() if value is not None}
    names = asked.pop("checkpoints", None)
    if strange := sorted(asked.keys() - _ASKED.keys()):
        raise SettingError(f"a grid has no setting {strange[0]!r} to choose; it has checkpoints, {', '.join(_ASKED)}")
    rows = adapters_of(run, adapter)
    chosen = _thinned(rows) if names is None else _named(rows, names)
    values = {
        "base": spec["base"],
        "prompts": _prompts(spec),
        "seed": spec.get("sample_seed", 1),
        "sampling_steps": spec.get("sample_steps", 25),
        "guidance": spec.get("sample_guidance", 7.5),
        "negative": spec.get("sample_negative", ""),
        "size": _size(run),
        **{name: spec[name] for name in ("tokenizer", "prediction", "precision") if spec.get(name)},
        **{_ASKED[name]: value for name, value in asked.items()},
        "adapters": [asdict(row) for row in chosen],
    }
    return GridRequest.from_json(values).as_json()


def adapters_of(run: Path, adapter: Path | None) -> list[GridAdapter]:
    """The adapters that a run has kept, by step: its complete checkpoints, and its result where that is another one.

    Raises SettingError where there is none.
    """
    kept = Checkpoints(run / "checkpoints")
    losses = {step: loss for step, loss in curve(run / "events.jsonl", "Validated") if math.isfinite(loss)}
    best = kept.best()
    paths = [path for path in kept.steps() if fault(path, contents=False) is None and (path / ADAPTER).is_file()]
    digests = {path: data_digest(path / ADAPTER) for path in paths}
    # A run that was cut short names the adapter in its last checkpoint as what it has come to.
    there = adapter is not None and adapter.is_file() and kept.folder not in adapter.parents
    final = data_digest(adapter) if there else None
    rows = [
        _row(path / ADAPTER, step_of(path), path == best, final is not None and digests[path] == final, losses)
        for path in paths
    ]
    if there and not any(row.final for row in rows):
        last = max((step for step, _ in curve(run / "events.jsonl")), default=0)
        rows.append(_row(adapter, last, False, True, {}))
    if not rows:
        raise SettingError(f"{run}: found no checkpoint and no finished adapter; expected at least one to show")
    return rows


def data_digest(path: Path) -> str:
    """The SHA-256 of an adapter file's tensors, as its own metadata says it; "" for a file without one.

    Two files of one training state have the same, though their names and texts differ.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 100_000_000)))
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: found {error}; expected an adapter file (.safetensors)") from error
    return str(header.get("__metadata__", {}).get("sshs_model_hash", ""))


def _row(path: Path, step: int, best: bool, final: bool, losses: Mapping[int, float]) -> GridAdapter:
    marks = [text for text, there in (("best", best), (FINAL, final)) if there]
    label = ", ".join([f"step {step:,}", *marks])
    return GridAdapter(path, step, label, best, final, losses.get(step))


def _thinned(rows: Sequence[GridAdapter]) -> list[GridAdapter]:
    """At most `_SHOWN` of them, evenly spread; the last, the best and the final one are kept."""
    if len(rows) <= _SHOWN:
        return list(rows)
    kept = {i for i, row in enumerate(rows) if row.best or row.final} | {len(rows) - 1}
    spread = (round(i * (len(rows) - 1) / (_SHOWN - 1)) for i in range(_SHOWN))
    for i in spread:
        if len(kept) < _SHOWN:
            kept.add(i)
    return [rows[i] for i in sorted(kept)]


def _named(rows: Sequence[GridAdapter], names: Collection[str | int]) -> list[GridAdapter]:
    if not isinstance(names, (list, tuple)) or not names:
        raise SettingError(f"grid: found checkpoints={names!r}, expected a list of at least one")
    by_name: dict[str | int, GridAdapter] = {}
    for row in rows:
        by_name |= {row.step: row, f"step-{row.step:06d}": row, **({FINAL: row} if row.final else {})}
    for name in names:
        if not isinstance(name, (str, int)) or name not in by_name:
            has = ", ".join(row.label for row in rows)
            raise SettingError(f"grid: found the checkpoint {name!r}, expected one that the run has kept: {has}")
    chosen = {by_name[name].path: by_name[name] for name in names}
    return sorted(chosen.values(), key=lambda row: row.step)


def _prompts(spec: Mapping[str, Any]) -> list[str]:
    """The run's own prompts, each once; else one with its trigger word."""
    own = list(dict.fromkeys(spec.get("sample_prompts") or ()))
    if own or not spec.get("trigger"):
        return own[: MOST["prompts"]]
    return [f"a photo of {spec['trigger']}"]


def _size(run: Path) -> list[int] | None:
    """The size of the run's own samples."""
    found = read_samples(run / "samples")
    if not found:
        return None
    with Image.open(found[0].path) as picture:
        return list(picture.size)


def _known(kind: type, values: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    known = [f.name for f in fields(kind)]
    if not isinstance(values, Mapping):
        raise SettingError(f"{what}: found a {type(values).__name__}, expected a table with {', '.join(known)}")
    if strange := [name for name in values if name not in known]:
        raise SettingError(f"{what} has no setting {strange[0]!r}; it has {', '.join(known)}")
    return values


def _refuse_missing(values: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if not values.get(name):
            raise SettingError(f"grid: found no {name}, expected at least one")


def _list(values: Mapping[str, Any], name: str, default: Sequence[Any] = ()) -> Sequence[Any]:
    found = values.get(name, default)
    if not isinstance(found, (list, tuple)) or not 1 <= len(found) <= MOST[name]:
        count = len(found) if isinstance(found, (list, tuple)) else f"a {type(found).__name__}"
        raise SettingError(f"grid: found {name} with {count}, expected a list of 1 to {MOST[name]}")
    return found


def _adapter(row: Mapping[str, Any]) -> GridAdapter:
    values = dict(_known(GridAdapter, row, "a grid's adapter"))
    if not isinstance(values.get("path"), (str, Path)) or not str(values["path"]):
        raise SettingError(f"grid: found an adapter with path={values.get('path')!r}, expected the path of a file")
    step = _whole("step", values.get("step", 0), 0, MOST_SEED)
    loss = values.get("loss")
    return GridAdapter(
        Path(values["path"]),
        step,
        _text("label", values.get("label") or f"step {step:,}"),
        values.get("best") is True,
        values.get("final") is True,
        None if loss is None else _number("loss", loss, -math.inf, math.inf),
    )


def _strengths(values: Sequence[Any]) -> tuple[float, ...]:
    found = tuple(_number("strengths", value, -REACH, REACH) + 0.0 for value in values)
    return tuple(sorted(set(found)))


def _size_of(value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise SettingError(f"grid: found size={value!r}, expected width and height")
    width, height = (_whole("size", side, 8, MOST_SIDE) for side in value)
    return width, height


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        found = f"{len(value)} characters" if isinstance(value, str) else f"a {type(value).__name__}"
        raise SettingError(f"grid: found {name} with {found}, expected a text of at most {MOST_TEXT} characters")
    return value


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise SettingError(f"grid: found {name}={value!r}, expected a whole number from {low} to {high}")
    return value


def _number(name: str, value: Any, low: float, high: float) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high:
        raise SettingError(f"grid: found {name}={value!r}, expected a number from {low:g} to {high:g}")
    return float(value)
