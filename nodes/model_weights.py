"""The layers of the connected models, each once and under the name that files carry, and the modules that hold them."""

from __future__ import annotations

from collections.abc import Collection

from comfy.model_patcher import ModelPatcher
from torch import nn

from ..spectral.errors import WrongBaseError
from ..spectral.names import CROSS_WIDTH, TEXT_PREFIXES, UNET_PREFIX, Family
from .prepare import Connected

_ROOT, _END = "diffusion_model.", ".weight"


def own_layers(onto: Connected, model: ModelPatcher) -> list[str]:
    """Every linear layer and convolution, under kohya's name; norms and embeddings are left out.

    ComfyUI knows several names of each. Raises WrongBaseError for a model that is no Stable Diffusion 1.x, 2.x or XL.
    """
    family = model_family(model)
    if family is None:
        raise WrongBaseError(
            f"the connected model is a {onto.name}; expected Stable Diffusion 1.x, 2.x or XL, whose layers adapter "
            "files name. Connect such a checkpoint."
        )
    # The names are made from the configuration; a smaller model lacks some of the layers.
    patchers = {at.patcher for at in onto.targets.values()}
    matrices = {p: {key for key, value in p.model.state_dict().items() if value.ndim > 1} for p in patchers}
    found: dict[tuple[ModelPatcher, str], str] = {}
    for name, at in onto.targets.items():
        if at.key in matrices[at.patcher] and _is_own(name, at.key, family):
            found[at.patcher, at.key] = name
    return list(found.values())


def _is_own(name: str, key: str, family: Family) -> bool:
    """Whether files of the family name the layer so: by the LDM path in SDXL's UNet, else by the diffusers path."""
    if not name.startswith(UNET_PREFIX):
        return name.startswith(TEXT_PREFIXES[family])
    ldm = UNET_PREFIX + key.removeprefix(_ROOT).removesuffix(_END).replace(".", "_")
    return (name == ldm) == (family == "sdxl")


def model_family(model: ModelPatcher) -> Family | None:
    """Which Stable Diffusion the connected model is, or None."""
    return CROSS_WIDTH.get(model.model.model_config.unet_config.get("context_dim"))


def modules(onto: Connected, layers: Collection[str]) -> dict[str, nn.Module]:
    """The live modules of those layers that are there."""
    found = {layer: onto.targets[layer] for layer in layers if layer in onto.targets}
    return {layer: at.patcher.model.get_submodule(at.key.removesuffix(_END)) for layer, at in found.items()}
