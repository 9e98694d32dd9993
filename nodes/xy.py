"""The node that samples one picture for each adapter and strength, and lays them out in a labelled grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.samplers
from comfy_api.latest import io

from . import inputs
from .adapters import ADAPTERS

if TYPE_CHECKING:
    from .adapters import Use

_SIDE = {"default": 512, "min": 64, "max": 4096, "step": 8}


class SpectralAdapterXY(io.ComfyNode):
    """A grid of strength by adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterXY",
            display_name="Spectral Adapter XY",
            category="sampling",
            description="One picture for each adapter and each strength, all from the same seed, in a grid with "
            "labels. Loads, encodes, samples and decodes by itself.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to put the adapters on."),
                io.Clip.Input("clip", tooltip="Its text encoder; adapters change it too."),
                io.Vae.Input("vae", tooltip="What makes pictures of latents."),
                ADAPTERS.Input(
                    "adapters",
                    tooltip="A row of the grid for each, at its own strengths times those of the columns. From a "
                    "Spectral Adapter Stack without a model, for instance.",
                ),
                io.String.Input("positive", multiline=True, default="", tooltip="What to draw."),
                io.String.Input("negative", multiline=True, default="", tooltip="What to keep out."),
                io.String.Input(
                    "strengths",
                    default="0, 0.5, 1",
                    tooltip="A column of the grid for each, separated by commas. 0 is the model without the adapter.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of every picture.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps of each picture."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Weight of the prompt."),
                io.Combo.Input("sampler_name", options=list(comfy.samplers.KSampler.SAMPLERS), tooltip="The sampler."),
                io.Combo.Input(
                    "scheduler", options=list(comfy.samplers.KSampler.SCHEDULERS), tooltip="How noise is taken away."
                ),
                io.Int.Input("width", **_SIDE, tooltip="Of each picture, in pixels."),
                io.Int.Input("height", **_SIDE, tooltip="Of each picture, in pixels."),
                io.Boolean.Input(
                    "trigger_words",
                    default=True,
                    tooltip="Put each row's trigger words before the prompt, where it does not have them.",
                ),
                io.Boolean.Input(
                    "together",
                    default=False,
                    tooltip="Add a row with all adapters at once.",
                    extra_dict=inputs.ADVANCED,
                ),
                inputs.on_mismatch(),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="All pictures with their labels, as one."),
                io.Image.Output(display_name="pictures", tooltip="The single pictures, row by row."),
            ],
        )

    @classmethod
    def validate_inputs(cls, strengths: str | None) -> bool | str:
        """What is wrong with the strengths, before anything runs. Linked ones come as None."""
        from ..spectral.errors import SettingError
        from .grid import read_strengths

        try:
            read_strengths(strengths or "0")
        except SettingError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        clip: io.Clip.Type,
        vae: io.Vae.Type,
        adapters: tuple[Use, ...],
        positive: str,
        negative: str,
        strengths: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        trigger_words: bool,
        together: bool,
        on_mismatch: str,
    ) -> io.NodeOutput:
        # Imported at first use: the engine would slow down every start of ComfyUI.
        from . import report
        from .grid import Prompts, Sampling, draw, grid_rows, read_strengths
        from .pictures import image, preview

        sampling = Sampling(model, clip, vae, seed, steps, cfg, sampler_name, scheduler, width, height, on_mismatch)
        rows = grid_rows(adapters, together)
        sheet, pictures = draw(rows, read_strengths(strengths), sampling, Prompts(positive, negative, trigger_words))
        grid = image(sheet)
        text = f"{len(pictures)} pictures: {len(rows)} by {len(pictures) // len(rows)}."
        return io.NodeOutput(grid, pictures, ui={**report.show(text), **preview(grid, cls)})
