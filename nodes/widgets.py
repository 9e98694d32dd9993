"""A training setting as a widget, and back. Every widget can be left alone: then the preset decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..spectral.errors import SettingError
from ..trainer.form import METHODS
from .inputs import ADVANCED

AS_PRESET = "as the preset"
_YES = {"on": True, "off": False}
_BOTH = ("rank", "columns")  # of every method
_FREE = ("columns",)  # texts of which the form only suggests some
_SHOWN = {"lr": "learning_rate", "norm_lr": "norm_learning_rate", "seed": "seed"}

Row = Mapping[str, Any]  # of `trainer.form.form(...)["settings"]`


def widget(row: Row, id: str | None = None, advanced: bool = False, multiline: bool = False) -> io.Input:
    """The widget of a setting, under its own name or `id`."""
    id, shown, help = id or row["name"], _SHOWN.get(row["name"]), row["help"]
    extra = ADVANCED if advanced else None
    options = list(_YES) if row["kind"] == "bool" else row.get("choices") or row.get("suggestions")
    if options and row["name"] not in _FREE:
        return io.Combo.Input(id, [AS_PRESET, *options], shown, tooltip=help, extra_dict=extra)
    if row["kind"] == "int":
        help = f"{help} 0: as the preset."
        return io.Int.Input(id, shown, default=0, min=0, max=int(row["max"]), tooltip=help, extra_dict=extra)
    if row["kind"] == "float":
        help = f"{help} 0: as the preset."
        return io.Float.Input(
            id, shown, default=0.0, min=0.0, max=row["max"], step=1e-6, round=False, tooltip=help, extra_dict=extra
        )
    return io.String.Input(id, shown, default="", multiline=multiline, tooltip=help, extra_dict=extra)


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
        if value not in _YES:
            raise SettingError(f"{row['name']}: found {value!r}, expected {AS_PRESET}, {' or '.join(_YES)}")
        return _YES[value]
    if row["kind"] == "texts":
        return [line.strip() for line in value.splitlines() if line.strip()]
    return value.strip() if isinstance(value, str) else value
