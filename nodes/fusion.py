"""The node that fuses adapters into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from . import inputs
from .adapters import ADAPTERS, Use
from .gathering import adapters_input, gathered

_MODES = (
    "sum: every adapter's change of the weights at its full strength. mean: the same, divided by how many there are. "
    "paper: the adapters' own parameters, divided likewise, as published. rotate: rotations of one frame are composed. "
    "shift: SVDiff's shifts are added before singular values are kept from turning negative. interpolate: strengths "
    "are shares of 1. gradient: the one set of weights that acts on what each adapter's prompt brings as that adapter "
    "would; much slower."
)
_PLAIN = ("sum", "mean", "paper", "rotate", "shift", "interpolate")


class SpectralAdapterFusion(io.ComfyNode):
    """Fuses adapters of any methods into one, verified layer by layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterFusion",
            display_name="Spectral Adapter Fusion",
            category="advanced/model_merging",
            description="Fuses any number of adapters into one, which is applied to the model and can be saved as one "
            "file. Adapters trained on columns of their own fuse without mixing; Spectral Adapter Conflict shows it.",
            inputs=[
                io.Model.Input("model", tooltip="The base model, which the fused adapter is applied to."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder. Without it, the adapters' text-encoder layers are left out.",
                ),
                adapters_input(
                    "Adapters from loaders or stacks. Their strengths are their weights. A new input appears as soon "
                    "as this one is taken."
                ),
                io.DynamicCombo.Input(
                    "mode",
                    options=[*(io.DynamicCombo.Option(mode, []) for mode in _PLAIN), _gradient()],
                    tooltip=_MODES,
                ),
                inputs.on_mismatch("force fuses the layers that fit"),
                io.Boolean.Input(
                    "verify",
                    default=True,
                    tooltip="Compute every layer a second way, in double precision, and report the largest error. "
                    "Takes about as long as fusing.",
                    extra_dict=inputs.ADVANCED,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the fused adapter."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the fused adapter."),
                io.String.Output(display_name="trigger words", tooltip="Those of all adapters, separated by commas."),
                ADAPTERS.Output(display_name="adapters", tooltip="The fused adapter: to save, compare or schedule."),
                io.String.Output(display_name="report", tooltip="What was fused, how, and the largest error."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        mode: Mapping[str, Any] | None = None,
        on_mismatch: str = "refuse",
        verify: bool = True,
        clip: io.Clip.Type | None = None,
        adapters: Mapping[str, tuple[Use, ...]] | None = None,
    ) -> io.NodeOutput:
        # Imported at first use: the engine would slow down every start of ComfyUI.
        from . import fusing, report

        wanted = fusing.Wanted.of(mode)
        made = fusing.fused(gathered(adapters), model, clip, wanted, on_mismatch, verify)
        applied, shown = made.applied, report.show(made.text)
        return io.NodeOutput(applied.model, applied.clip, applied.trigger_words, (made.use,), made.text, ui=shown)


def _gradient() -> io.DynamicCombo.Option:
    return io.DynamicCombo.Option(
        "gradient",
        [
            io.Int.Input(
                "steps",
                default=8,
                min=1,
                max=100,
                tooltip="Steps of the sampling run that records what each layer gets to see; one run per adapter. "
                "Costs as much as sampling these small pictures, and up to 1 GB of memory per adapter while it fuses.",
            ),
            io.Int.Input(
                "size",
                default=256,
                min=64,
                max=1024,
                step=64,
                tooltip="Width and height of those runs in pixels. Smaller is quicker and tells nearly the same.",
            ),
            io.String.Input(
                "prompts",
                default="",
                multiline=True,
                tooltip="What to sample with each adapter: one line per adapter, in their order. Empty: its trigger "
                "words.",
            ),
        ],
    )
