"""Runs inside Forge's Python: which layers of each kind of model its own tables of names have no place for.

    python forge_keys_inside.py CHECKOUT PACK

prints JSON, {family: [layers and norms without the right place]}. No model is loaded; the tables get names alone.
"""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import torch

CHECKOUT, PACK = sys.argv[1:]
sys.path[:0] = [CHECKOUT, f"{CHECKOUT}/repositories/huggingface_guess", f"{CHECKOUT}/packages_3rdparty"]
_spec = spec_from_file_location("spectral_adapters", f"{PACK}/__init__.py", submodule_search_locations=[PACK])
sys.modules["spectral_adapters"] = module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["spectral_adapters"])

from packages_3rdparty.comfyui_lora_collection import lora  # noqa: E402

from spectral_adapters.spectral import names  # noqa: E402
from spectral_adapters.spectral.host_keys import places  # noqa: E402

_DEEP = {"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]}
_FLAT = {"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3}
_LEVELS = {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1}
SETTINGS = {
    "sd1": _FLAT | _LEVELS,
    "sd2": _FLAT | _LEVELS,
    "sdxl": _DEEP | {"num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth_middle": 10},
}
ENCODERS = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}


class Named:
    """Stands for a module of these layers, {layer: key}: norms have one dimension, all others two."""

    def __init__(self, layers: dict[str, str], norms: set[str], settings: dict):
        self._state = {key: torch.empty([1] * (1 if layer in norms else 2)) for layer, key in layers.items()}
        self.diffusion_model = SimpleNamespace(config=settings)
        self.config = SimpleNamespace(huggingface_repo="")

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._state


def lost(family: names.Family) -> list[str]:
    """Layers and norms for which the host's table leads nowhere, or elsewhere."""
    norms = names.norm_paths(family)
    unet = {
        layer: names.checkpoint_key(family, layer).removeprefix("model.")
        for layer in (*names.unet_paths(family), *norms)
        if layer.startswith(names.UNET_PREFIX)
    }
    text = {}
    for prefix, encoder in zip(names.TEXT_PREFIXES[family], ENCODERS[family]):
        paths = names.text_paths(family, prefix) | {n: path for n, path in norms.items() if n.startswith(prefix)}
        text |= {name: f"{encoder}.transformer.{names.with_text_model(p)}.weight" for name, p in paths.items()}
    missing = []
    for wanted, table in ((unet, lora.model_lora_keys_unet), (text, lora.model_lora_keys_clip)):
        module = Named(wanted, set(norms), SETTINGS[family])
        found = places(table(module, {})[1], module)
        missing += [layer for layer, key in wanted.items() if found.get(layer) != key]
    return missing


print(json.dumps({family: lost(family) for family in names.FAMILIES}))
