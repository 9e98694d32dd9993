"""A run's values from their layers: the preset lowest, over it a file, flags, or what a form sends.

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .presets import PRESETS, Kind, preset_values

DEFAULT_PRESET = "subject"
# Settings of which one rules the others out: naming one drops what a lower layer said of the others.
_RIVALS = (("rank", "columns", "column_plan"), ("masks", "alpha_masks"), ("validation", "validation_images"))
_TEXT = ("text_targets", "text_targets_2")


def over_preset(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all layers, later ones over earlier ones, over those of the preset that they choose.

    The preset's are those for the chosen base and method; without a method it is the preset's own. Raises SettingError
    for an unknown preset or method.
    """
    chosen = layered(*layers)
    preset = chosen.get("preset") or DEFAULT_PRESET
    method = chosen.get("method") or own_method(preset)
    below = {"method": method, **preset_values(preset, method, base_kind(str(chosen.get("base", ""))))}
    values = layered(below, *layers, {"preset": preset})
    # Rates that only the preset names are dropped with what they are for.
    if all(values.get(name, "none") == "none" for name in _TEXT) and "text_lr" not in chosen:
        values.pop("text_lr", None)
    return values


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """All layers' values, later ones over earlier ones; of settings that exclude each other, the later one's."""
    values: dict[str, Any] = {}
    for layer in layers:
        planned = values.get("column_plan")
        for rivals in _RIVALS:
            if any(layer.get(name) for name in rivals):
                values = {name: value for name, value in values.items() if name not in rivals}
        if planned and not values.get("column_plan") and not layer.get("column_plan"):
            values.pop("concept", None)  # it belonged to the plan that has been pushed out
        values.update(layer)
    return values


def own_method(preset: str) -> str:
    """The method that a preset begins with; "additive" for none."""
    return PRESETS[preset].method if preset in PRESETS else "additive"


def base_kind(base: str) -> Kind:
    """What presets need to know of a base, from its header alone; "sd" where it cannot be read."""
    if base == "tiny":
        return "tiny"
    path = Path(base)
    index = path / "model_index.json"
    try:
        if index.is_file():
            return "sdxl" if "XL" in index.read_text(encoding="utf-8") else "sd"
        with path.open("rb") as file:
            header = file.read(min(int.from_bytes(file.read(8), "little"), 1 << 26))
    except OSError:
        return "sd"  # loading the base says what is wrong with it
    return "sdxl" if b'"conditioner.embedders.1.' in header else "sd"
