"""The parts of the model that sd-scripts hands to a network module, and the layers of each that are to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import nn

from ..spectral.adapter import Adapter
from ..spectral.errors import SettingError, WrongBaseError
from ..spectral.names import TEXT_PREFIXES, TEXT_PROJECTION, UNET_PREFIX, layer_names, modules_of
from ..spectral.targets import Preset, Targets, select
from .kohya_say import notice
from .spec import TrainSpec

Field = Literal["unet", "text_encoder", "text_encoder_2"]
TextEncoders = nn.Module | Sequence[nn.Module] | None
_PROJECTION = "text_projection"


@dataclass(frozen=True)
class Part:
    """One module of the model, kohya's prefix of its layers, and which of them are trained."""

    field: Field
    module: nn.Module
    prefix: str
    targets: Targets

    @property
    def trained(self) -> bool:
        return self.targets != "none"


def parts_of(text_encoder: TextEncoders, unet: nn.Module) -> dict[Field, tuple[nn.Module, str]]:
    """{part: (module, prefix)}. text_encoder: one model, or for SDXL a list of two.

    Raises SettingError for a model that is no UNet of Stable Diffusion, naming it and its layers.
    """
    texts = list(text_encoder) if isinstance(text_encoder, Sequence) else [text_encoder]
    texts = [text for text in texts if text is not None]
    _refuse_other_models(unet, texts)
    prefixes = TEXT_PREFIXES["sdxl" if len(texts) == 2 else "sd1"]
    fields: tuple[Field, ...] = ("text_encoder", "text_encoder_2")
    return {"unet": (unet, UNET_PREFIX)} | {f: (text, p) for f, text, p in zip(fields, texts, prefixes)}


def chosen_parts(spec: TrainSpec, text_encoder: TextEncoders, unet: nn.Module) -> list[Part]:
    """The parts with the layers that the settings choose. Raises SettingError where there are none such."""
    found = parts_of(text_encoder, unet)
    wanted: dict[Field, str] = {
        "unet": spec.targets,
        "text_encoder": spec.text_targets,
        "text_encoder_2": spec.text_targets_2,
    }
    if lacking := next((f for f, targets in wanted.items() if targets != "none" and f not in found), None):
        name = "text_targets_2" if lacking == "text_encoder_2" else "text_targets"
        raise SettingError(
            f"{name}={wanted[lacking]!r}, but this model has {len(found) - 1} text encoders; leave it out"
        )
    parts = [_readable(Part(f, *found[f], targets)) for f, targets in wanted.items() if f in found]
    if not any(part.trained for part in parts):
        raise SettingError('targets and text_targets are both "none", so there is nothing to train')
    return parts


def parts_of_file(adapter: Adapter, text_encoder: TextEncoders, unet: nn.Module) -> list[Part]:
    """The parts with exactly the layers that an adapter file has. Raises WrongBaseError for layers of another model."""
    if TEXT_PROJECTION in adapter.layers:
        raise SettingError(
            f"the adapter changes {TEXT_PROJECTION}, which sd-scripts reads transposed from a checkpoint and which it "
            "therefore cannot go on training; train without sd-scripts"
        )
    found = parts_of(text_encoder, unet)
    parts, known = [], set()
    for field, (module, prefix) in found.items():
        names = layer_names(module, prefix)
        known |= names.keys()
        wanted = {module.get_submodule(names[name]) for name in adapter.layers if name in names}
        parts.append(Part(field, module, prefix, _targets(module, wanted)))
    if strange := [name for name in adapter.layers if name not in known]:
        raise WrongBaseError(
            f"{len(strange)} layers of the adapter, such as {strange[0]!r}, are not in the model here; it was trained "
            f"on another kind of model{f' ({adapter.base_name})' if adapter.base_name else ''}"
        )
    return parts


def _readable(part: Part) -> Part:
    """The part without the projection of SDXL's pooled text. Raises SettingError where nothing is chosen.

    sd-scripts (0.10.1) does not transpose it when it reads a checkpoint in one file, as OpenCLIP's layout asks: what it
    would train there is a layer of no model that the file is used with.
    """
    chosen = select(part.module, part.targets)
    if part.field != "text_encoder_2" or _PROJECTION not in chosen:
        return part
    notice(f"{_PROJECTION} of the {part.field} is not trained: sd-scripts reads it transposed.")
    return replace(part, targets=[path for path in chosen if path != _PROJECTION] or "none")


def trained_parts(
    parts: Sequence[Part], here: dict[Field, tuple[nn.Module, str]], with_text: bool, with_unet: bool
) -> list[Part]:
    """The parts to put an adapter on: those with layers, in the halves of the model that sd-scripts' options train.

    here: the modules to put it on. Raises SettingError where nothing is left.
    """
    wanted = [Part(part.field, *here[part.field], part.targets) for part in parts if part.trained]
    kept = [part for part in wanted if (with_unet if part.field == "unet" else with_text)]
    if not kept:
        raise SettingError(
            "sd-scripts trains only the other half of the model, for which targets or text_targets choose nothing; "
            "leave network_train_unet_only or network_train_text_encoder_only out, or set the targets"
        )
    if with_text and all(part.field == "unet" for part in kept):
        notice("no layer of a text encoder is trained; network_train_unet_only spares what sd-scripts does for them.")
    for part in wanted:
        if part not in kept:
            notice(f"the layers chosen of the {part.field} are not trained: sd-scripts' options leave that part out.")
    return kept


def _targets(module: nn.Module, wanted: set[nn.Module]) -> Targets:
    """The preset that chooses exactly these layers where there is one: it also says which norms go with them."""
    if not wanted:
        return "none"
    modules = modules_of(module)
    for preset in get_args(Preset):
        if preset != "none" and {modules[path] for path in _selected(module, preset)} == wanted:
            return preset
    return lambda _path, layer: layer in wanted


def _selected(module: nn.Module, preset: Preset) -> list[str]:
    try:
        return select(module, preset)
    except SettingError:  # this module has no such layers
        return []


def _refuse_other_models(unet: nn.Module, texts: Sequence[nn.Module]) -> None:
    layers = [path for path, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if any(path.endswith("attn2.to_k") for path in layers) and len(texts) <= 2:
        return
    raise SettingError(
        f"found a {type(unet).__name__} with {len(texts)} text encoders and layers such as "
        f"{', '.join(layers[:3]) or '(none)'}; expected the UNet of Stable Diffusion 1.x, 2.x or XL. Layers of other "
        "models are not supported; start train_network.py or sdxl_train_network.py"
    )
