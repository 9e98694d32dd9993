"""The three settings, on the web UI's own settings page."""

from __future__ import annotations

import torch

from .changes import Settings

SECTION = ("spectral_adapters", "Spectral Adapters")
DEVICE, KEPT, MISMATCH = "spectral_device", "spectral_kept_mb", "spectral_mismatch"
GRAPHICS_CARD, PROCESSOR = "Graphics card", "Processor"
REFUSE, FORCE = "Stop with a message", "Apply what fits"


def register() -> None:
    """Adds the settings; those that the user has changed stay as they are."""
    import gradio
    from modules import shared

    def choice(default: str, label: str, *choices: str) -> shared.OptionInfo:
        return shared.OptionInfo(default, label, gradio.Radio, {"choices": list(choices)}, section=SECTION)

    options = {
        DEVICE: choice(GRAPHICS_CARD, "Decompose weights on", GRAPHICS_CARD, PROCESSOR).info(
            "compact files need a decomposition the first time they are used with a checkpoint; "
            "the processor is slower and needs no video memory"
        ),
        KEPT: shared.OptionInfo(
            2048,
            "Memory for changes that were computed, in MB",
            gradio.Slider,
            {"minimum": 0, "maximum": 16384, "step": 128},
            section=SECTION,
        ).info("main memory; what is kept is not computed again when a file returns"),
        MISMATCH: choice(REFUSE, "When a file was trained on another model", REFUSE, FORCE),
    }
    for key, option in options.items():
        shared.opts.add_option(key, option)


def current() -> Settings:
    """The settings as they are now, those that a generation overrides included."""
    from modules import devices, shared

    opts = shared.opts
    return Settings(
        device=torch.device("cpu") if getattr(opts, DEVICE) == PROCESSOR else torch.device(devices.device),
        kept_bytes=int(float(getattr(opts, KEPT)) * (1 << 20)),
        policy="force" if getattr(opts, MISMATCH) == FORCE else "refuse",
    )
