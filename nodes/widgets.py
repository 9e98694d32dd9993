"""A training setting as a widget, and back. Every widget can be left alone: then the preset decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..trainer.form import METHODS

AS_PRESET = "as the preset"
_YES = {"on": True, "off": False}
# As an extra entry: an `advanced` argument would be a TypeError on older ComfyUI.
ADVANCED = {"advanced": True}
_BOTH = ("rank", "columns")  # of every method

Row = Mapping[str, Any]  # of `trainer.form.form(...)["settings"]`


def widget(row: Row, id: str | None = None, advanced: bool = False, multiline: bool = False) -> io.Input:
    """The widget of a setting, under its own name or `id`."""
    extra = ADVANCED if advanced else None
    id, help, kind = id or row["name"], row["help"], row["kind"]
    if kind == "bool":
        return io.Combo.Input(id, options=[AS_PRESET, *_YES], tooltip=help, extra_dict=extra)
    if "choices" in row or (row.get("suggestions") and row["name"] != "columns"):
        options = [AS_PRESET, *(row.get("choices") or row["suggestions"])]
        return io.Combo.Input(id, options=options, tooltip=help, extra_dict=extra)
    if kind == "int":
        help = f"{help} 0: as the preset."
        return io.Int.Input(id, default=0, min=0, max=int(row["max"]), tooltip=help, extra_dict=extra)
    if kind == "float":
        help = f"{help} 0: as the preset."
        return io.Float.Input(
            id, default=0.0, min=0.0, max=row["max"], step=1e-6, round=False, tooltip=help, extra_dict=extra
        )
    return io.String.Input(id, default="", multiline=multiline, tooltip=help, extra_dict=extra)


def method_widget(rows: Mapping[str, Row]) -> io.DynamicCombo.Input:
    """The choice of a method, each with the settings that only some methods have."""
    options = [io.DynamicCombo.Option(AS_PRESET, [])]
    for method in METHODS:
        own = [row for name, row in rows.items() if name in _BOTH or method in row.get("methods", ())]
        options.append(io.DynamicCombo.Option(method, [widget(row) for row in own]))
    return io.DynamicCombo.Input("method", options=options, tooltip=rows["method"]["help"])


def chosen(row: Row, value: Any) -> Any:
    """What a widget of that setting asks for; None where it was left alone."""
    if value in (None, AS_PRESET, 0, "") or (isinstance(value, str) and not value.strip()):
        return None
    if row["kind"] == "bool":
        return _YES[value]
    if row["kind"] == "texts":
        return [line.strip() for line in value.splitlines() if line.strip()]
    return value.strip() if isinstance(value, str) else value
