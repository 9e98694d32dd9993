"""Two trainings side by side: the settings in which they differ, their curves, and their samples in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from .engines import BUILT_IN, Engine
from .options import TITLES
from .spec import settings

# Where a run keeps its things says nothing of what it learns.
_PLACES = {"out", "run", "cache_dir"}


@dataclass(frozen=True)
class Side:
    """One of the two. spec: TrainSpec.as_json(); curve: `Course.curve()`; best: {"step", "loss", "text"}, None without
    held-out pictures; samples: {"step", "number", "prompt", and whatever shows the picture}.
    """

    id: str
    name: str
    spec: Mapping[str, Any]
    curve: Mapping[str, Any]
    best: Mapping[str, Any] | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    engine: Engine = BUILT_IN


def compare(a: Side, b: Side) -> dict[str, Any]:
    """What there is to see of two runs, as plain values.

    "settings": those that differ, {"name", "label", "group", "a", "b"}, None where a value is left to the method; the
    engine, where they are of two, is the first.
    "runs": both with their "curve", "validations", "best" and "samples". "pairs": for every prompt that either has
    samples of, {"prompt", "steps": [{"step", "a", "b": a sample or None}]}, those of both runs first.
    """
    runs = [
        {
            "id": side.id,
            "name": side.name,
            "curve": dict(side.curve),
            "validations": list(side.curve.get("validations", ())),
            "best": side.best,
            "samples": list(side.samples),
        }
        for side in (a, b)
    ]
    return {
        "settings": [*_engines(a, b), *differences(a.spec, b.spec)],
        "runs": runs,
        "pairs": pairs(a.samples, b.samples),
    }


def _engines(a: Side, b: Side) -> list[dict[str, Any]]:
    if a.engine == b.engine:
        return []
    return [{"name": "engine", "label": "Engine", "group": TITLES["training"], "a": a.engine, "b": b.engine}]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings with different values, in the order of the form; those that neither's method has are left out."""
    methods = {a.get("method"), b.get("method")}
    rows = []
    for field in settings():
        applies = not field.metadata["methods"] or methods & set(field.metadata["methods"])
        one, other = a.get(field.name), b.get(field.name)
        if field.name in _PLACES or not applies or one == other:
            continue
        group = field.metadata["group"]
        one, other = _short(one, other)
        row = {"name": field.name, "label": field.metadata["label"], "group": TITLES[group]}
        rows.append({**row, "a": one, "b": other})
    return rows


def pairs(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The samples of two runs by prompt and step; of a prompt that is given twice, each number by itself."""
    tables = [_by_prompt(side) for side in (a, b)]
    prompts = sorted(dict.fromkeys((*tables[0], *tables[1])), key=lambda p: not all(p in table for table in tables))
    rows = []
    for prompt in prompts:
        one, other = (table.get(prompt, {}) for table in tables)
        steps = sorted({*one, *other})
        rows.append({"prompt": prompt[0], "steps": [{"step": s, "a": one.get(s), "b": other.get(s)} for s in steps]})
    return rows


def _by_prompt(samples: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], dict[int, Mapping[str, Any]]]:
    """(prompt, how often it came before in its step) -> step -> sample."""
    found: dict[tuple[str, int], dict[int, Mapping[str, Any]]] = {}
    for sample in sorted(samples, key=lambda sample: (sample["step"], sample["number"])):
        again = 0
        while sample["step"] in found.setdefault((sample["prompt"], again), {}):
            again += 1
        found[sample["prompt"], again][sample["step"]] = sample
    return found


def _short(one: Any, other: Any) -> tuple[Any, Any]:
    """Two paths by their last parts, where these tell them apart."""
    if not all(isinstance(value, str) and _is_path(value) for value in (one, other)):
        return one, other
    names = tuple(PureWindowsPath(value).name for value in (one, other))
    return names if names[0] != names[1] and all(names) else (one, other)


def _is_path(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
