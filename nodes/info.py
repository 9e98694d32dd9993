"""The node that shows what an adapter file is, and changes what it says of itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..spectral.errors import SettingError
from . import folder
from .adapters import ADAPTERS, Held, Use, short_name

if TYPE_CHECKING:
    from torch import Tensor

_NO, _YES = "no", "yes"


class SpectralAdapterInfo(io.ComfyNode):
    """Reads files; writes only where `edit` says so."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterInfo",
            display_name="Spectral Adapter Info",
            category="loaders",
            description="Shows what an adapter or LoRA file is: method, base, columns, trigger words, training, "
            "hashes, what it moved, its preview. Can change its title, texts and preview.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "adapter",
                    options=folder.all_names(),
                    tooltip="The file. R refreshes the list. Not used where adapters are connected.",
                ),
                ADAPTERS.Input(
                    "adapters", optional=True, tooltip="Adapters from another node, shown in place of the chosen file."
                ),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="A picture to keep in the file as its preview, made small. Used where edit is yes.",
                ),
                io.DynamicCombo.Input(
                    "edit",
                    options=[io.DynamicCombo.Option(_NO, []), io.DynamicCombo.Option(_YES, _fields())],
                    tooltip="no: the file is only read. yes: what is filled in is written into it, whole or not at "
                    "all; its parameters stay bit for bit. Only files in the folders of adapters, and adapters among "
                    "LoRA files.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="All facts, line by line."),
                io.Image.Output(display_name="spectrum", tooltip="How far each singular direction has moved."),
                io.Image.Output(
                    display_name="preview", tooltip="The picture in the file; a small blank one where it has none."
                ),
                io.String.Output(display_name="trigger words", tooltip="What calls it up, separated by commas."),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        adapter: str | None,
        edit: dict[str, Any] | None = None,
        adapters: object = None,
        preview: object = None,
    ) -> tuple[int, int]:
        """Changes when the file does. Linked inputs come as None."""
        if adapter is None:
            return 0, 0
        stat = os.stat(folder.path_of(adapter))
        return stat.st_mtime_ns, stat.st_size

    @classmethod
    def execute(
        cls,
        adapter: str,
        edit: dict[str, Any] | None = None,
        adapters: tuple[Use, ...] | None = None,
        preview: Tensor | None = None,
    ) -> io.NodeOutput:
        # Imported at first use: the engine would slow down every start of ComfyUI.
        from . import file_facts, pictures, report

        uses = adapters or (_chosen(adapter),)
        said = ""
        if (edit or {}).get("edit") == _YES:
            if len(uses) != 1:
                raise SettingError(f"found {len(uses)} adapters to edit; expected one: choose a file, or connect one")
            said = "Changed.\n" if file_facts.change(uses[0], edit, preview) else "Nothing to change.\n"
            uses = (_again(uses[0]),)
        found = [file_facts.shown(use) for use in uses]
        text = file_facts.lines(found, [use.name for use in uses])
        words = dict.fromkeys(word for each in found for word in each.trigger_words)
        drawn = pictures.images([each.spectrum for each in found])
        kept = pictures.images([each.preview for each in found])
        shown = report.show(said + text) | pictures.preview(drawn, cls)
        return io.NodeOutput(text, drawn, kept, ", ".join(words), ui=shown)


def _fields() -> list[io.Input]:
    keep = " Empty: as it is."
    return [
        io.String.Input("title", optional=True, default="", tooltip="The name that people see." + keep),
        io.String.Input(
            "description", optional=True, default="", multiline=True, tooltip="What it does and how to use it." + keep
        ),
        io.String.Input(
            "trigger_words", optional=True, default="", tooltip="What calls it up, separated by commas." + keep
        ),
        io.String.Input(
            "licence",
            optional=True,
            default="",
            tooltip="What others may do with it; a short name such as cc-by-4.0." + keep,
        ),
        io.String.Input("author", optional=True, default="", tooltip="Who made it." + keep),
    ]


def _chosen(adapter: str) -> Use:
    return Use(Held.file(folder.path_of(adapter)), short_name(adapter))


def _again(use: Use) -> Use:
    """The file as it is after the change."""
    return Use(Held.file(use.source.path), use.name)
