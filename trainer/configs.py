"""Settings of the architectures, so that a single file can be loaded offline, and the family of a UNet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ..spectral import names
from ..spectral.names import Family

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

ASSETS = Path(__file__).parent.parent / "assets"
CONFIGS = ASSETS / "configs"


class Config(TypedDict, total=False):
    """Constructor arguments of each part, as in diffusers' folders; text_encoder_2 for SDXL alone."""

    name: str
    resolution: int
    unet: dict
    vae: dict
    text_encoder: dict
    text_encoder_2: dict
    scheduler: dict


def read_config(family: Family) -> Config:
    return json.loads((CONFIGS / f"{family}.json").read_text(encoding="utf-8"))


def cross_widths() -> dict[int, Family]:
    """Width of the text states -> the family that has it."""
    return {read_config(family)["unet"]["cross_attention_dim"]: family for family in names.FAMILIES}


def unet_family(unet: UNet2DConditionModel) -> Family | None:
    """The family whose layers and text width the UNet has; None when there is none."""
    family = cross_widths().get(unet.config.cross_attention_dim)
    own = {name.rsplit(".", 1)[0] for name, _ in unet.named_parameters()}
    return family if family and own == {module.diffusers for module in names.unet_modules(family)} else None
