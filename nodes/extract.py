"""The node that makes an adapter of a change that was trained otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from .adapters import ADAPTERS, Use

_LAYERS = ("attention", "cross-attention", "attention+ff", "all")


class SpectralAdapterExtract(io.ComfyNode):
    """The adapter of a method that comes nearest to a fine-tuned model or to other adapters."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterExtract",
            display_name="Spectral Adapter Extract",
            category="advanced/model_merging",
            description="Makes the adapter of a method that comes nearest to a change: what a fine-tuned model has "
            "beyond its base, or what LoRA files and other adapters do. The report says how much of it is explained.",
            inputs=[
                io.Model.Input("model", tooltip="The base model; what is applied to it does not count."),
                io.Clip.Input("clip", optional=True, tooltip="The base's text encoder, for its layers too."),
                ADAPTERS.Input(
                    "adapters",
                    optional=True,
                    tooltip="Adapters or LoRA files to extract from, as they are applied: several are summed. "
                    "Connect these or tuned_model.",
                ),
                io.Model.Input(
                    "tuned_model",
                    optional=True,
                    tooltip="A fine-tune of the base, with what is applied to it: a merge will do. Connect it or "
                    "adapters.",
                ),
                io.Clip.Input(
                    "tuned_clip", optional=True, tooltip="The fine-tune's text encoder; needs the base's clip too."
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option("additive", [_rank(16), _columns()]),
                        io.DynamicCombo.Option("rotation", [_rank(32), _columns()]),
                        io.DynamicCombo.Option("svdiff", [_columns()]),
                        io.DynamicCombo.Option("soda", [_columns()]),
                    ],
                    tooltip="additive: low-rank changes of singular vectors, holds most. rotation: turns of singular "
                    "vectors among themselves, very small. svdiff: shifts of singular values. soda: these and a "
                    "rotation of the inputs.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(_LAYERS),
                    default="attention",
                    tooltip="Which layers to read from a fine-tuned model. Of adapters, all layers that they change "
                    "are taken.",
                ),
            ],
            outputs=[
                ADAPTERS.Output(display_name="adapters", tooltip="The extracted adapter."),
                io.String.Output(display_name="report", tooltip="The explained energy, in all and of layers."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        method: Mapping[str, Any] | None = None,
        layers: str = "attention",
        clip: io.Clip.Type | None = None,
        adapters: tuple[Use, ...] | None = None,
        tuned_model: io.Model.Type | None = None,
        tuned_clip: io.Clip.Type | None = None,
    ) -> io.NodeOutput:
        from . import extracting, report

        given = extracting.Given(model, clip, adapters, tuned_model, tuned_clip, layers)
        use, text = extracting.extracted(given, method)
        return io.NodeOutput((use,), text, ui=report.show(text))


def _rank(default: int) -> io.Int.Input:
    return io.Int.Input(
        "rank",
        default=default,
        min=0,
        max=4096,
        tooltip="How many columns of the base to work on, from the strongest. 0 where columns says which.",
    )


def _columns() -> io.String.Input:
    return io.String.Input(
        "columns",
        default="",
        tooltip="Which columns: top:8@16 are eight from the 17th on, bottom:8, list:0,3,5. best or best:16: in each "
        "layer those that hold most, as LoRA files need. Empty: the first `rank`, for svdiff and soda all.",
    )
