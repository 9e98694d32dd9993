"""The layers of the connected models, each once and under the name that files carry, and the modules that hold them."""

from __future__ import annotations

from collections.abc import Collection

from comfy.model_patcher import ModelPatcher
from torch import nn

from ..spectral.errors import WrongBaseError
from ..spectral.names import CROSS_WIDTH, TEXT_PREFIXES, Family, text_paths, unet_paths
from .prepare import Connected


def own_layers(onto: Connected, model: ModelPatcher) -> list[str]:
    """Every layer that files of the model's family may name and that is there; norms are left out.

    Raises WrongBaseError for a model that is no Stable Diffusion 1.x, 2.x or XL.
    """
    family = model_family(model)
    if family is None:
        raise WrongBaseError(
            f"the connected model is a {onto.name}; expected Stable Diffusion 1.x, 2.x or XL, whose layers adapter "
            "files name. Connect such a checkpoint."
        )
    known = [*unet_paths(family), *(name for p in TEXT_PREFIXES[family] for name in text_paths(family, p))]
    return [name for name in known if name in onto.targets]


def model_family(model: ModelPatcher) -> Family | None:
    """Which Stable Diffusion the connected model is, or None."""
    return CROSS_WIDTH.get(model.model.model_config.unet_config.get("context_dim"))


def modules(onto: Connected, layers: Collection[str]) -> dict[str, nn.Module]:
    """The live modules of those layers that are there."""
    found = {layer: onto.targets[layer] for layer in layers if layer in onto.targets}
    return {layer: at.patcher.model.get_submodule(at.key.removesuffix(".weight")) for layer, at in found.items()}
