"""The web UIs of Forge's family as a `Host`; which of them runs is told by the modules that it has imported."""

from __future__ import annotations

import sys

from . import forge_lora
from .adapter_class import AdapterClass
from .changes import Base
from .forge import Forge
from .forge_classic import Classic
from .forge_lora import Variant, base_of, fits, lora_extension, targets_of
from .host import Generation, Host, Undo

_FORGE, _OLD = "backend.patcher.lora", "ldm_patched.modules"


def variant() -> Variant | None:
    """What runs here, or None in any other program."""
    if (lora := sys.modules.get(_FORGE)) is not None:
        adapters = getattr(lora, "weight_adapter", None)
        return Forge(lora) if adapters is None else AdapterClass(lora, adapters.WeightAdapterBase)
    if (lora := sys.modules.get(f"{_OLD}.lora")) is None:
        return None
    if (adapters := getattr(lora, "weight_adapter", None)) is not None:
        return AdapterClass(lora, adapters.WeightAdapterBase)
    return Classic(lora, sys.modules[f"{_OLD}.model_patcher"], sys.modules[f"{_OLD}.model_management"])


def present() -> bool:
    """Whether a host of the family runs in this process."""
    return lora_extension() is not None and variant() is not None


def attach() -> Undo:
    return forge_lora.attach(variant())


def base() -> Base:
    """The loaded model, as its weights are without any network."""
    from modules import shared

    here, objects = variant(), shared.sd_model.forge_objects_original
    return base_of(here, objects.unet, targets_of(here, objects.unet, objects.clip))


def prepare(generation: Generation) -> None:
    """Says in the page how the files of ours fit. They are on the model by now."""
    for net in lora_extension().loaded_networks:
        if (fit := fits.get(net.network_on_disk.filename)) is not None:
            generation.comment(f"{net.name}: {fit}")


def drop() -> None:
    """Also lets the host ask again for the same prompt: the settings or the file may have changed by then."""
    from modules import shared

    lora_extension().loaded_networks.clear()
    model = shared.sd_model
    model.current_lora_hash = None
    model.forge_objects_after_applying_lora = model.forge_objects_original.shallow_copy()


FORGE_FAMILY = Host("Forge", present, attach, base, prepare, drop)
