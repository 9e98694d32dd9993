"""Where the layers that adapter files name live in the models of ComfyUI and of web UIs that are built on its code."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

# Their map of text encoders names the matrices only; this one leads to the others of the same encoder.
_ANCHOR = ("text_model_encoder_layers_0_mlp_fc1", "text_model.encoder.layers.0.mlp.fc1.weight")


def places(known: Mapping[str, str | tuple], model: nn.Module) -> dict[str, str]:
    """Layer name -> key in the model's state dict: those that the host maps (`known`), and the text encoders' norms.

    Parts of a fused weight, which hosts map to a key with an offset, are not among the layers of our files.
    """
    found = {name: key for name, key in known.items() if isinstance(key, str)}
    name_end, key_end = _ANCHOR
    roots = {
        name.removesuffix(name_end): key.removesuffix(key_end)
        for name, key in found.items()
        if name.endswith(name_end) and key.endswith(key_end)
    }
    state = [key for key, value in model.state_dict().items() if key.endswith(".weight") and value.ndim == 1]
    for prefix, root in roots.items():
        for key in state:
            if key.startswith(root):
                path = key.removeprefix(root).removesuffix(".weight")
                found.setdefault(prefix + path.replace(".", "_"), key)
    return found
