"""The node that lets the strength of adapters change in the course of sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..spectral.curve import EASINGS, MOST_LEVELS
from . import inputs
from .adapters import ADAPTERS

if TYPE_CHECKING:
    from .adapters import Use

_STRENGTH = {"min": -10.0, "max": 10.0, "step": 0.01}
_SHARE = {"min": 0.0, "max": 1.0, "step": 0.001}


class SpectralAdapterSchedule(io.ComfyNode):
    """Hangs adapters on the conditionings of a text encoder, as ComfyUI's own hooks with keyframes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterSchedule",
            display_name="Spectral Adapter Schedule",
            category="loaders",
            description="Lets the strength of adapters change while a picture is sampled: from start to end along a "
            "curve. Encode the prompts with the text encoder that comes out; the model needs no other node.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that the prompts will be sampled with. It is only read here."
                ),
                ADAPTERS.Input(
                    "adapters",
                    tooltip="The adapters, with their own strengths, which the curve multiplies. From a Spectral "
                    "Adapter Stack without a model, for instance.",
                ),
                io.Float.Input(
                    "strength_start",
                    default=1.0,
                    **_STRENGTH,
                    tooltip="The strength before the curve begins, when the picture's layout is made.",
                ),
                io.Float.Input(
                    "strength_end",
                    default=0.0,
                    **_STRENGTH,
                    tooltip="The strength once the curve has ended, when details are made.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    **_SHARE,
                    tooltip="Where the curve begins: a share of the sampling, 0 is its start and 1 its end.",
                ),
                io.Float.Input("end_percent", default=1.0, **_SHARE, tooltip="Where the curve ends."),
                io.Combo.Input(
                    "easing",
                    options=list(EASINGS),
                    default="smooth",
                    tooltip="The way between them. step jumps in the middle; between has the end's strength from "
                    "start_percent to end_percent and the start's elsewhere; constant keeps the start's.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder. All prompts that are encoded with the one that comes out follow the "
                    "curve.",
                ),
                io.Int.Input(
                    "levels",
                    default=20,
                    min=1,
                    max=MOST_LEVELS,
                    tooltip="Into how many levels a slope is cut. Each new level is put on the weights anew, and each "
                    "prompt is encoded for it.",
                    extra_dict=inputs.ADVANCED,
                ),
                io.Boolean.Input(
                    "schedule_clip",
                    default=True,
                    tooltip="On: the text encoder follows the curve too. Off: its strength is that of the adapters "
                    "throughout, and each prompt is encoded once.",
                    extra_dict=inputs.ADVANCED,
                ),
                inputs.on_mismatch(),
            ],
            outputs=[
                io.Clip.Output(display_name="clip", tooltip="The text encoder to encode the prompts with."),
                io.Hooks.Output(
                    display_name="hooks",
                    tooltip="The same for ComfyUI's nodes that set hooks on single conditionings, for regional prompts "
                    "for instance.",
                ),
                io.String.Output(display_name="trigger words", tooltip="The adapters' words, separated by commas."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        adapters: tuple[Use, ...],
        strength_start: float,
        strength_end: float,
        start_percent: float,
        end_percent: float,
        easing: str,
        levels: int,
        schedule_clip: bool,
        on_mismatch: str,
        clip: io.Clip.Type | None = None,
    ) -> io.NodeOutput:
        # Imported at first use: the engine would slow down every start of ComfyUI.
        from ..spectral.curve import Curve
        from . import report
        from .apply import ready_patches
        from .hooking import hook_group, hooked

        curve = Curve(strength_start, strength_end, start_percent, end_percent, easing)
        keyframes = curve.keyframes(levels)
        labels = [f"{use.name}: " if len(adapters) > 1 else "" for use in adapters]
        ready = ready_patches(adapters, model, clip, on_mismatch, labels)
        follows = schedule_clip or not any(patches.clip for patches in ready.patches)
        silent = follows and all(strength == 0 for _, strength in keyframes)
        hooks = hook_group(() if silent else ready.patches, keyframes)
        if clip is not None and hooks.hooks:
            clip = hooked(clip, hooks, schedule_clip)
        text = f"{curve.text}; {_count(len(keyframes), 'level')}.\n{ready.text}".strip()
        return io.NodeOutput(clip, hooks, ready.trigger_words, ui=report.show(text))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
