"""The node that applies an adapter file to a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import folder, inputs
from .adapters import ADAPTERS, PARTS, Held, Use, short_name

if TYPE_CHECKING:
    from ..spectral.parts import Parts

_STRENGTH = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}


class SpectralAdapterLoader(io.ComfyNode):
    """Applies a spectral adapter to a diffusion model and, where one is connected, its text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterLoader",
            display_name="Spectral Adapter Loader",
            category="loaders",
            description="Applies a spectral adapter (SVDiff, Spectral Adapter A or R, SODA) to a model. "
            "A file made for another base model is refused with the reason.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to adapt. LoRAs before or after are fine."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder to adapt. May be left out; the file's text-encoder layers then are too.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=folder.names(),
                    tooltip="A file in models/spectral_adapters or output/spectral_adapters, or an adapter among the "
                    "LoRA files, named loras/NAME. R refreshes the list.",
                ),
                io.Float.Input(
                    "strength_model",
                    **_STRENGTH,
                    tooltip="How strongly to change the diffusion model. 1 is as trained, 0 leaves it untouched.",
                ),
                io.Float.Input(
                    "strength_clip",
                    **_STRENGTH,
                    tooltip="How strongly to change the text encoder. 1 is as trained, 0 leaves it untouched.",
                ),
                io.Combo.Input(
                    "strength_mode",
                    options=["linear", "spectral"],
                    default="linear",
                    tooltip="linear multiplies the weight change; spectral scales the adapter's own parameters "
                    "(singular values, rotation angles). Both agree at 0 and 1. "
                    "Spectral prepares the adapter anew at each strength.",
                    extra_dict=inputs.ADVANCED,
                ),
                inputs.on_mismatch(),
                PARTS.Input(
                    "parts",
                    optional=True,
                    tooltip="How strongly each part of the model is changed, from Spectral Adapter Blocks.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The adapted diffusion model."),
                io.Clip.Output(display_name="clip", tooltip="The adapted text encoder."),
                io.String.Output(
                    display_name="trigger words", tooltip="The words the adapter was trained with, separated by commas."
                ),
                ADAPTERS.Output(
                    display_name="adapter",
                    tooltip="The adapter itself with its strengths, for nodes that mix, compare, schedule or save.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        adapter: str | None,
        strength_model: float | None,
        strength_clip: float | None,
        strength_mode: str | None,
        on_mismatch: str | None,
        model: object = None,
        clip: object = None,
        parts: object = None,
    ) -> tuple[int, int]:
        """Changes when the file does, so that a replaced adapter is loaded again. Linked inputs come as None."""
        if adapter is None:
            return 0, 0  # the node that it comes from says when it is another one
        stat = os.stat(folder.path_of(adapter))
        return stat.st_mtime_ns, stat.st_size

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        adapter: str,
        strength_model: float,
        strength_clip: float,
        strength_mode: str,
        on_mismatch: str,
        clip: io.Clip.Type | None = None,
        parts: Parts | None = None,
    ) -> io.NodeOutput:
        # Imported at first use: the engine would slow down every start of ComfyUI.
        from . import report
        from .apply import apply_uses

        held = Held.file(folder.path_of(adapter))
        use = Use(held, short_name(adapter), strength_model, strength_clip, parts, strength_mode)
        applied = apply_uses([use], model, clip, on_mismatch)
        return io.NodeOutput(applied.model, applied.clip, applied.trigger_words, (use,), ui=report.show(applied.text))
