"""The node that says how strongly each part of a model is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .adapters import PARTS

if TYPE_CHECKING:
    from ..spectral.parts import Parts

_SLIDERS = {
    "down": "The first half of the diffusion model (IN00 to IN11): layout and large shapes.",
    "mid": "Its middle block.",
    "up": "Its second half (OUT00 to OUT11): details, colours, style.",
    "text": "The text encoder.",
    "self-attention": "Layers in which a place of the picture looks at the others.",
    "cross-attention": "Layers in which the picture looks at the prompt.",
    "feed-forward": "The layers between those two.",
    "convolution": "The convolutions, of adapters that change them.",
}


class SpectralAdapterBlocks(io.ComfyNode):
    """Factors by block, by kind of layer and by column."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterBlocks",
            display_name="Spectral Adapter Blocks",
            category="loaders",
            description="How strongly each part of a model is changed: halves of the model, kinds of layers, single "
            "blocks, columns of the singular basis. Connect it to a loader or a stack.",
            is_output_node=True,
            inputs=[
                *(
                    io.Float.Input(
                        name.replace("-", "_"),
                        default=1.0,
                        min=0.0,
                        max=2.0,
                        step=0.05,
                        display_mode=io.NumberDisplay.slider,
                        tooltip=f"{tooltip} 1 is as trained, 0 leaves it untouched.",
                    )
                    for name, tooltip in _SLIDERS.items()
                ),
                io.String.Input(
                    "single",
                    default="",
                    multiline=True,
                    tooltip="Single blocks and columns, such as: IN04=0.5, OUT*=1.2, TE-11=0, columns 0-3=0.5. The "
                    "more specific one decides: a block over its half of the model. *=0, OUT05=1 leaves one block.",
                ),
                PARTS.Input("parts", optional=True, tooltip="Another Spectral Adapter Blocks, to multiply with."),
            ],
            outputs=[
                PARTS.Output(display_name="parts", tooltip="For a loader, a stack or another of these."),
                io.String.Output(display_name="text", tooltip="All of it in words, as a row of a stack takes it."),
            ],
        )

    @classmethod
    def validate_inputs(cls, single: str | None) -> bool | str:
        """What is wrong with the text, before anything runs. A linked one comes as None."""
        from ..spectral.errors import SettingError
        from ..spectral.parts import Parts

        try:
            Parts.parse(single or "")
        except SettingError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        down: float,
        mid: float,
        up: float,
        text: float,
        self_attention: float,
        cross_attention: float,
        feed_forward: float,
        convolution: float,
        single: str,
        parts: Parts | None = None,
    ) -> io.NodeOutput:
        # Imported at first use: the engine would slow down every start of ComfyUI.
        from ..spectral.part_words import in_words
        from ..spectral.parts import Parts
        from ..trainer.parts_plot import plot_parts
        from . import report
        from .pictures import image, preview

        factors = (down, mid, up, text, self_attention, cross_attention, feed_forward, convolution)
        moved = [f"{name}={factor!r}" for name, factor in zip(_SLIDERS, factors) if factor != 1]
        own = Parts.parse(", ".join([*moved, single]))
        both = own if parts is None else parts * own
        picture = image(plot_parts(both))
        return io.NodeOutput(both, both.text, ui={**report.show(in_words(both)), **preview(picture, cls)})
