"""The node that shows where adapters would act on the same."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io

from .adapters import Use
from .gathering import adapters_input, gathered


class SpectralAdapterConflict(io.ComfyNode):
    """A picture and a sentence of what fusing adapters would mix, before they are fused."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterConflict",
            display_name="Spectral Adapter Conflict",
            category="advanced/model_merging",
            description="Shows before fusing which layers and columns each adapter changes, where they overlap, and "
            "says in a sentence what to expect.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, whose singular directions are the columns."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder. Without it, the adapters' text-encoder layers are left out.",
                ),
                adapters_input(
                    "Adapters from loaders or stacks, ordinary LoRA files among them. A new input appears as soon as "
                    "this one is taken."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="picture", tooltip="Layers by columns: who changes what, and where twice."
                ),
                io.String.Output(display_name="report", tooltip="The sentence, and the numbers of each pair."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        clip: io.Clip.Type | None = None,
        adapters: Mapping[str, tuple[Use, ...]] | None = None,
    ) -> io.NodeOutput:
        from . import comparing, pictures, report

        uses = gathered(adapters)
        found = comparing.compared(uses, model, clip)
        image = pictures.image(found.picture)
        shown = report.show(found.sentence) | pictures.preview(image, cls)
        return io.NodeOutput(image, found.text, ui=shown)
