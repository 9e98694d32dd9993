"""The connected models' untouched weights, and the modules that hold them, by the layer names that files carry."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import comfy.lora
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor, nn

from ..spectral.errors import WrongBaseError
from ..spectral.names import CROSS_WIDTH, TEXT_PREFIXES, Family, norm_paths, text_paths, unet_paths
from .keys import places
from .weights import original_weight


@dataclass(frozen=True)
class Place:
    """Where a layer lives in ComfyUI."""

    patcher: ModelPatcher
    key: str

    def weight(self) -> Tensor:
        """The original weight, to be read only."""
        return original_weight(self.patcher, self.key)

    @property
    def module(self) -> nn.Module:
        return self.patcher.model.get_submodule(self.key.removesuffix(".weight"))


def layer_places(model: ModelPatcher, clip: CLIP | None) -> dict[str, Place]:
    """Every layer name that ComfyUI knows, in all spellings, and the text encoders' norms, with their places."""
    maps = [(model, places(comfy.lora.model_lora_keys_unet(model.model, {}), model.model))]
    if clip is not None:
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
        maps.append((clip.patcher, places(known, clip.cond_stage_model)))
    return {name: Place(patcher, key) for patcher, names in maps for name, key in names.items()}


def model_weights(model: ModelPatcher, clip: CLIP | None) -> dict[str, Callable[[], Tensor]]:
    """{layer name: what fetches its original weight}, in all spellings: to look up, not to go through."""
    return {name: place.weight for name, place in layer_places(model, clip).items()}


def own_layers(model: ModelPatcher, clip: CLIP | None, what: str = "the connected model") -> dict[str, Place]:
    """Every layer once, under the name that files of the model's family carry; norms are left out.

    Raises WrongBaseError for a model that is no Stable Diffusion 1.x, 2.x or XL.
    """
    family = model_family(model)
    if family is None:
        raise WrongBaseError(
            f"{what} is a {type(model.model.model_config).__name__}; expected Stable Diffusion 1.x, 2.x or XL, whose "
            "layers adapter files name. Connect such a checkpoint."
        )
    known = [*unet_paths(family), *(name for p in TEXT_PREFIXES[family] for name in text_paths(family, p))]
    found = layer_places(model, clip)
    return {name: found[name] for name in known if name in found}


def own_norms(model: ModelPatcher, clip: CLIP | None) -> dict[str, Place]:
    """Every normalisation layer that files may name; none for a model of another family."""
    family = model_family(model)
    found = layer_places(model, clip)
    return {name: found[name] for name in norm_paths(family) if name in found} if family else {}


def model_family(model: ModelPatcher) -> Family | None:
    """Which Stable Diffusion the connected model is, or None."""
    return CROSS_WIDTH.get(model.model.model_config.unet_config.get("context_dim"))


def modules(places: dict[str, Place], layers: Collection[str]) -> dict[str, nn.Module]:
    """The live modules of those layers that are there."""
    return {layer: places[layer].module for layer in layers if layer in places}
