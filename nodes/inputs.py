"""Inputs that several nodes have in common."""

from __future__ import annotations

from comfy_api.latest import io

# As an extra entry: an `advanced` argument would be a TypeError on older ComfyUI.
ADVANCED = {"advanced": True}


def on_mismatch(force: str = "force applies the layers that fit") -> io.Combo.Input:
    """The choice between refusing an adapter of another model and using what fits of it; `force` says what that is."""
    return io.Combo.Input(
        "on_mismatch",
        options=["refuse", "force"],
        default="refuse",
        tooltip="What to do with an adapter that does not belong to this model: refuse stops with the reason; "
        f"{force}.",
        extra_dict=ADVANCED,
    )
