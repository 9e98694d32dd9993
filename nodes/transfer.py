"""The node that carries adapters to a related model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from .adapters import ADAPTERS, Use
from .inputs import ADVANCED


class SpectralAdapterTransfer(io.ComfyNode):
    """Projects what adapters do onto the directions of another model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterTransfer",
            display_name="Spectral Adapter Transfer",
            category="advanced/model_merging",
            description="Carries adapters to a related model by projecting their changes onto its own directions "
            "(LoRA-X), without training. The report says how well the directions agree.",
            inputs=[
                ADAPTERS.Input("adapters", tooltip="What to carry over; each adapter on its own, LoRA files too."),
                io.Model.Input("model", tooltip="The model to carry it to, of the same kind as the one it is for."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Its text encoder. Without it, the adapters' text-encoder layers are left out.",
                ),
                io.Model.Input(
                    "home_model",
                    optional=True,
                    tooltip="The model that the adapters were trained on. Needed for files that do not carry their "
                    "directions (SVDiff, SODA); for LoRA files it tells how related the two models are.",
                ),
                io.Clip.Input("home_clip", optional=True, tooltip="Its text encoder, for the same."),
                io.DynamicCombo.Input(
                    "columns",
                    options=[
                        io.DynamicCombo.Option("as the adapter", []),
                        io.DynamicCombo.Option("rank", [_rank()]),
                        io.DynamicCombo.Option("energy", [_energy()]),
                    ],
                    tooltip="Which of the model's directions to project onto. as the adapter: the columns that it was "
                    "trained on; for a LoRA, which knows none, 90 % of the energy.",
                ),
                io.Combo.Input(
                    "sides",
                    options=["auto", "both", "either"],
                    default="auto",
                    tooltip="both keeps what lies in the directions on the input and on the output side, as LoRA-X "
                    "does; either keeps what touches one of them, which additive adapters need. auto looks at the "
                    "adapter.",
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "least",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Leave out layers whose directions agree less than this.",
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                ADAPTERS.Output(display_name="adapters", tooltip="The adapters for the target model."),
                io.String.Output(display_name="report", tooltip="The agreement, and what was kept of each."),
            ],
        )

    @classmethod
    def execute(
        cls,
        adapters: tuple[Use, ...],
        model: io.Model.Type,
        columns: Mapping[str, Any] | None = None,
        sides: str = "auto",
        least: float = 0.0,
        clip: io.Clip.Type | None = None,
        home_model: io.Model.Type | None = None,
        home_clip: io.Clip.Type | None = None,
    ) -> io.NodeOutput:
        from . import report, transferring

        wanted = transferring.Wanted.of(columns, sides, least)
        home = None if home_model is None else (home_model, home_clip)
        uses, text = transferring.transferred(adapters, (model, clip), home, wanted)
        return io.NodeOutput(uses, text, ui=report.show(text))


def _rank() -> io.Int.Input:
    return io.Int.Input("rank", default=64, min=1, max=4096, tooltip="So many of the strongest directions.")


def _energy() -> io.Float.Input:
    return io.Float.Input(
        "energy",
        default=0.9,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="As many of the strongest directions as carry this share of each weight's energy.",
    )
