"""What a resumed run does where it and its checkpoint disagree: every difference is refused or said aloud."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Collection, Mapping
from dataclasses import Field, replace
from pathlib import Path
from typing import Any

from ..spectral.errors import SettingError
from .spec import TrainSpec, settings

# Fields whose content counts where it is known, and not the place it is read from.
CONTENT = ("base", "images", "masks", "class_images", "validation_images", "start_from", "column_plan")
_TEXT_PATHS = ("base", "tokenizer")  # paths that are texts in the settings
_TINY = "tiny"  # the base that is no path
_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "numpy")
# Together they make the batch of an optimiser step, and are judged together with the number of processes.
_BATCH = ("batch_size", "accumulation")
# Columns may be named in several ways; the method knows when two mean the same.
_COLUMNS = ("rank", "columns", "rotation")


def facts(content: Mapping[str, str], processes: int, device: str) -> dict[str, Any]:
    """What a checkpoint remembers beside the settings.

    content: hashes by field of CONTENT, as far as they are known ("base": of the model, "images": of the pictures and
    captions). processes: that train together. device: its name.
    """
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a source tree on the path
            versions[name] = "unknown"
    return {"content": dict(content), "processes": processes, "device": device, "versions": versions}


def absolute(spec: TrainSpec) -> TrainSpec:
    """The settings with every path absolute, so that a run means the same from wherever it is resumed."""
    changes: dict[str, Any] = {}
    for f in settings():
        value = getattr(spec, f.name)
        if isinstance(value, Path):
            changes[f.name] = value.absolute()
        elif isinstance(value, tuple) and any(isinstance(item, Path) for item in value):
            changes[f.name] = tuple(Path(item).absolute() for item in value)
    for name in _TEXT_PATHS:
        value = getattr(spec, name)
        if value is not None and value != _TINY:
            changes[name] = str(Path(value).expanduser().absolute())
    return replace(spec, **changes)


def decide(
    saved_spec: Mapping[str, Any],
    new_spec: TrainSpec,
    saved_facts: Mapping[str, Any],
    new_facts: Mapping[str, Any],
    allow: Collection[str] = (),
) -> tuple[TrainSpec, list[str]]:
    """The settings to go on with, and a sentence for every difference.

    saved_spec and saved_facts: of the checkpoint. allow: names of fields that the user takes the new value of although
    they would be refused. Raises SettingError for a difference that would make another training of it.
    """
    unknown = [name for name in saved_spec if name not in {f.name for f in settings()}]
    if unknown:
        raise SettingError(
            f"{unknown[0]}: found this setting in the checkpoint, expected only settings this version knows. A newer "
            "version of this package made it: update the package, or train anew with another run folder."
        )
    if strange := set(allow) - {f.name for f in settings()}:
        raise SettingError(f"--allow {min(strange)}: found no such setting; expected the name of one, such as images")
    saved = TrainSpec.from_mapping(saved_spec)
    kept: dict[str, Any] = {}
    notices: list[str] = []
    for f in settings():
        old, new = getattr(saved, f.name), getattr(new_spec, f.name)
        same_place = _meaning(f.name, old) == _meaning(f.name, new)
        same = _same_content(f.name, saved_facts, new_facts, same_place)
        if same and not same_place:
            notices.append(f"{f.name}: now read from {_shown(new)} instead of {_shown(old)}; the content is the same.")
        elif same or f.name in _BATCH or (f.name in _COLUMNS and _same_columns(saved, new_spec)):
            continue
        elif f.metadata["resume"] == "checkpoint":
            kept[f.name] = old
            notices.append(f"{f.name}: the checkpoint's {_shown(old)} is kept, not {_shown(new)}.")
        elif f.metadata["resume"] == "spec" or f.name in allow:
            notices.append(f"{f.name}: {_change(old, new, same_place)}, as now asked.")
        else:
            raise SettingError(_no(f, old, new, same_place))
    notices += _batch(saved, new_spec, saved_facts, new_facts, allow)
    notices += _surroundings(saved_facts, new_facts)
    return replace(new_spec, **kept), notices


def refuse_finished(step: int, spec: TrainSpec) -> None:
    """Raise SettingError where a checkpoint of `step` leaves nothing to do: its adapter is written, or `steps` is less.

    A run that came to its last step and was killed before the adapter was written does go on, to write it.
    """
    if step >= spec.steps and spec.out.exists():
        raise SettingError(
            f"steps={spec.steps}: found that this run came to step {step} and wrote {spec.out}, expected steps left to "
            "train. To train longer, set steps higher and out to another name."
        )
    if step > spec.steps:
        raise SettingError(
            f"steps={spec.steps}: found a checkpoint of step {step} already, expected at least as many steps. "
            f"Set steps to {step} to write its adapter, or higher to train on."
        )


def _same_content(name: str, saved: Mapping[str, Any], new: Mapping[str, Any], same_place: bool) -> bool:
    """Whether a field means the same: by the hashes of its content where both are known, else by its value."""
    if name in CONTENT:
        old_hash, new_hash = saved.get("content", {}).get(name), new.get("content", {}).get(name)
        if old_hash and new_hash:
            return old_hash == new_hash
    return same_place


def _same_columns(saved: TrainSpec, new: TrainSpec) -> bool:
    if saved.method != new.method:
        return False
    return saved.build_method().settings == new.build_method().settings


def _batch(
    saved: TrainSpec,
    new: TrainSpec,
    saved_facts: Mapping[str, Any],
    new_facts: Mapping[str, Any],
    allow: Collection[str],
) -> list[str]:
    """The pictures of an optimiser step must stay as many; how they are split may change."""
    old = (saved.batch_size, saved.accumulation, saved_facts.get("processes", 1))
    now = (new.batch_size, new.accumulation, new_facts.get("processes", 1))
    if old == now:
        return []
    said = [f"batch_size {b} x accumulation {a} x {p} process{'es' * (p > 1)}" for b, a, p in (old, now)]
    before, after = old[0] * old[1] * old[2], now[0] * now[1] * now[2]
    if before == after:
        effect = "the training is the same" if old[0] == now[0] else "pictures are grouped differently from here on"
        return [f"{said[1]} instead of {said[0]}: {after} pictures per step as before, so {effect}."]
    if "batch_size" in allow:
        return [f"{said[1]} instead of {said[0]}: {after} pictures per step, not {before}, as now asked."]
    raise SettingError(
        f"batch_size and accumulation: found {said[1]} = {after} pictures per step, expected the checkpoint's {before} "
        f"({said[0]}). Choose them so that batch_size x accumulation x {now[2]} is {before}, or train anew with "
        "another run folder."
    )


def _surroundings(saved: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    notices = []
    if saved.get("device") and new.get("device") and saved["device"] != new["device"]:
        notices.append(f"device: {saved['device']} -> {new['device']}; numbers may differ in the last digits.")
    old, now = saved.get("versions", {}), new.get("versions", {})
    if changed := [f"{name} {old[name]} -> {now[name]}" for name in old if name in now and old[name] != now[name]]:
        notices.append(f"Other versions than before: {', '.join(changed)}; numbers may differ in the last digits.")
    return notices


def _no(f: Field, old: Any, new: Any, same_place: bool) -> str:
    if same_place:
        return (
            f"{f.name}: found other content in {_shown(new)} than when the checkpoint was saved, expected the same. "
            f"Put back what was changed, take it as it is with --allow {f.name}, or train anew with another run folder."
        )
    return (
        f"{f.name}: found {_shown(new)}, expected the checkpoint's {_shown(old)}. With another value it would be "
        f"another training: set {f.name} back, take it all the same with --allow {f.name}, or train anew with another "
        "run folder."
    )


def _change(old: Any, new: Any, same_place: bool) -> str:
    return f"other content in {_shown(new)}" if same_place else f"{_shown(old)} -> {_shown(new)}"


def _meaning(name: str, value: Any) -> Any:
    """A value in a form that is equal where it means the same: paths resolved, tables and lists by content."""
    if isinstance(value, Path) or (isinstance(value, str) and name in _TEXT_PATHS and value != _TINY):
        return Path(value).expanduser().resolve()
    if isinstance(value, (tuple, list)):
        return [_meaning(name, item) for item in value]
    return {key: _meaning(name, item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return repr(value) if isinstance(value, str) else str(value)
