"""The node that writes adapters to a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from .adapters import ADAPTERS, Use
from .inputs import ADVANCED


class SpectralAdapterSave(io.ComfyNode):
    """Writes what adapters do, at their strengths, as one file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterSave",
            display_name="Spectral Adapter Save",
            category="advanced/model_merging",
            description="Writes adapters as one file: in this pack's own format, as a LoRA or as a difference that "
            "every program reads. Never overwrites; the report says what the file has lost.",
            is_output_node=True,
            inputs=[
                ADAPTERS.Input(
                    "adapters",
                    tooltip="What to save. Strengths and parts are saved with it; several adapters are summed.",
                ),
                io.String.Input("name", default="my_adapter", tooltip="Name of the file. A taken name gets a number."),
                io.DynamicCombo.Input(
                    "format",
                    options=[
                        io.DynamicCombo.Option("auto", []),
                        io.DynamicCombo.Option("native", []),
                        _lora(),
                        io.DynamicCombo.Option("difference", []),
                    ],
                    tooltip="native: this pack's own, smallest, in output/spectral_adapters. LoRA and difference: for "
                    "every program, in output/loras, where Load LoRA finds them; a difference is as large as the "
                    "changed layers. auto: native where that holds the change exactly, else a LoRA where that does, "
                    "else a difference.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The base model. Needed for adapters whose file does not carry its directions (SVDiff, "
                    "SODA) unless they are saved natively and unchanged.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Its text encoder, needed likewise."),
                *_words(),
            ],
            outputs=[
                io.Combo.Output(
                    display_name="adapter", tooltip="The file's name, for the loader; of a LoRA, for Load LoRA."
                ),
                io.String.Output(display_name="report", tooltip="Which file was written, and what it has lost."),
            ],
        )

    @classmethod
    def execute(
        cls,
        adapters: tuple[Use, ...],
        name: str,
        format: Mapping[str, Any] | None = None,
        model: io.Model.Type | None = None,
        clip: io.Clip.Type | None = None,
        title: str = "",
        trigger_words: str = "",
        description: str = "",
        author: str = "",
        license: str = "",
    ) -> io.NodeOutput:
        from . import report, saving

        words = saving.Words(title, trigger_words, description, author, license)
        saved = saving.save(adapters, name, saving.Format.of(format), words, model, clip)
        return io.NodeOutput(saved.name, saved.text, ui=report.show(saved.text))


def _lora() -> io.DynamicCombo.Option:
    return io.DynamicCombo.Option(
        "LoRA",
        [
            io.Int.Input(
                "rank",
                default=0,
                min=0,
                max=4096,
                tooltip="The most that each layer's LoRA may have. 0: as much as it needs for `energy`.",
            ),
            io.Float.Input(
                "energy",
                default=1.0,
                min=0.01,
                max=1.0,
                step=0.0001,
                round=False,
                tooltip="Used where rank is 0: the share of the change's energy (sum of squares) that each layer must "
                "keep. 1 keeps all, which only changes of low rank allow; 0.99 leaves an error of up to 10 %.",
            ),
        ],
    )


def _words() -> list[io.Input]:
    """What people read. All of it may stay empty."""
    shown = {
        "title": "The name to show. Empty: the adapter's own, or the file's name.",
        "trigger_words": "Separated by commas. Empty: those of the adapters.",
        "description": "What it is for. Empty: the adapter's own.",
        "author": "Who made it. Empty: the adapter's own.",
        "license": "What others may do with it, such as CC-BY-4.0. Empty: the adapter's own.",
    }
    return [
        io.String.Input(id, default="", optional=True, multiline=id == "description", tooltip=help, extra_dict=ADVANCED)
        for id, help in shown.items()
    ]
