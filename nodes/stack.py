"""The node that applies many adapters, each a row that can be switched, weighed and moved."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..spectral.errors import SettingError
from . import folder, inputs
from .adapters import ADAPTERS, PARTS, Held, Use, short_name
from .rows import Row, read_rows

if TYPE_CHECKING:
    from ..spectral.parts import Parts

#: The page draws the rows; elsewhere they are JSON text.
WIDGET = "SPECTRAL_ADAPTER_ROWS"


class SpectralAdapterStack(io.ComfyNode):
    """Applies the adapters of its rows in order, as loaders one after the other would."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterStack",
            display_name="Spectral Adapter Stack",
            category="loaders",
            description="Applies any number of spectral adapters and LoRA files: a row for each, to switch, weigh and "
            "move. The same picture as loaders one after the other.",
            inputs=[
                io.Model.Input(
                    "model", optional=True, tooltip="The diffusion model to adapt. Without it the rows only come out."
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder to adapt. May be left out."),
                ADAPTERS.Input("adapters", optional=True, tooltip="Adapters to apply before those of the rows."),
                PARTS.Input(
                    "parts",
                    optional=True,
                    tooltip="How strongly each part of the model is changed, by every row. A row's own parts come on "
                    "top, multiplied.",
                ),
                io.String.Input(
                    "rows",
                    default="[]",
                    tooltip="The adapters. Drag a row by its handle, or press the arrow keys on it; the two strengths "
                    "are of the model and of the text encoder.",
                    extra_dict={"widgetType": WIDGET, "adapters": folder.all_names()},
                ),
                inputs.on_mismatch(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The adapted diffusion model."),
                io.Clip.Output(display_name="clip", tooltip="The adapted text encoder."),
                io.String.Output(
                    display_name="trigger words", tooltip="The words of all adapters that are on, separated by commas."
                ),
                ADAPTERS.Output(
                    display_name="adapters",
                    tooltip="All adapters that are on, with their strengths, for nodes that mix, compare, schedule or "
                    "save.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, rows: str | None) -> bool | str:
        """What is wrong with the rows, before anything runs. Linked ones come as None."""
        if rows is None:
            return True
        try:
            _counting(rows)
        except (SettingError, FileNotFoundError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        rows: str | None,
        on_mismatch: str | None,
        model: object = None,
        clip: object = None,
        adapters: object = None,
        parts: object = None,
    ) -> tuple[tuple[int, int], ...]:
        """Changes when one of the files does, so that a replaced adapter is loaded again."""
        if rows is None:
            return ()  # the node that they come from says when they are others
        stats = [os.stat(folder.path_of(row.adapter)) for _, row in _counting(rows)]
        return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)

    @classmethod
    def execute(
        cls,
        rows: str,
        on_mismatch: str,
        model: io.Model.Type | None = None,
        clip: io.Clip.Type | None = None,
        adapters: tuple[Use, ...] = (),
        parts: Parts | None = None,
    ) -> io.NodeOutput:
        # Imported at first use: the engine would slow down every start of ComfyUI.
        from . import report
        from .apply import apply_uses, collect

        before = tuple(adapters or ())
        named = [(f"{use.name}: ", use) for use in before] + [
            _use(number, row, parts) for number, row in _counting(rows)
        ]
        labels, uses = [label for label, _ in named], tuple(use for _, use in named)
        if model is None:
            words, text = collect(uses, labels)
            return io.NodeOutput(None, clip, words, uses, ui=report.show(text))
        applied = apply_uses(uses, model, clip, on_mismatch, labels)
        text = applied.text or "No row is on."
        return io.NodeOutput(applied.model, applied.clip, applied.trigger_words, uses, ui=report.show(text))


def _counting(rows: str) -> list[tuple[int, Row]]:
    """The rows that are on, with their numbers. A missing file is named with its row."""
    found = [(number, row) for number, row in enumerate(read_rows(rows), 1) if row.counts]
    for number, row in found:
        try:
            folder.path_of(row.adapter)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"row {number}: {error}") from error
    return found


def _use(number: int, row: Row, parts: Parts | None) -> tuple[str, Use]:
    """A row with the parts that hold for all, and what its messages begin with."""
    from ..spectral.parts import Parts
    from .apply import naming

    name = short_name(row.adapter)
    label = f"row {number} ({name}): "
    with naming(label):
        own = Parts.parse(row.parts) if row.parts.strip() else None
    both = parts * own if parts is not None and own is not None else own or parts
    return label, Use(Held.file(folder.path_of(row.adapter)), name, row.model, row.clip, both)
