"""Small web UIs of Forge's family, of our own: the names that ours touches, with what the real ones do behind them.

One class per way of patching: Forge (one loader per module keeps the weights), AdapterHost (reForge and Forge Neo:
objects of an adapter class, backups shared by clones), Classic (each clone keeps what it has patched itself).
"""

import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace

import torch
from adapters import base_weight
from torch import nn

BLOCK = "middle_block.1.transformer_blocks.0"
KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
UNET = {
    f"{KOHYA}_attn1_to_q": (f"diffusion_model.{BLOCK}.attn1.to_q.weight", (24, 24)),
    f"{KOHYA}_attn2_to_k": (f"diffusion_model.{BLOCK}.attn2.to_k.weight", (24, 768)),
    "lora_unet_mid_block_resnets_0_conv1": ("diffusion_model.middle_block.0.in_layers.2.weight", (20, 8, 3, 3)),
}
TEXT = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1": ("clip_l.text_model.encoder.layers.0.mlp.fc1.weight", (40, 24)),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (
        "clip_l.text_model.encoder.layers.0.self_attn.q_proj.weight",
        (24, 24),
    ),
}
UNET_NORM = {"lora_unet_conv_norm_out": ("diffusion_model.out.0.weight", (20,))}
TEXT_NORM = {
    "lora_te_text_model_encoder_layers_0_layer_norm1": (
        "clip_l.text_model.encoder.layers.0.layer_norm1.weight",
        (24,),
    )
}
LAYERS, NORMS = UNET | TEXT, UNET_NORM | TEXT_NORM
#: {layer: its weight in the checkpoint}, fp16 values.
WEIGHTS = {name: base_weight(shape, seed) for seed, (name, (_, shape)) in enumerate(LAYERS.items())} | {
    name: torch.linspace(0.5, 1.5, shape[0]).half().float() for name, (_, shape) in NORMS.items()
}

Backup = namedtuple("Backup", ["weight", "inplace_update"])


class Tree(nn.Module):
    """A module whose parameters have these keys."""

    def __init__(self, places: dict[str, tuple[str, tuple[int, ...]]]):
        super().__init__()
        for name, (key, _) in places.items():
            module, *rest = self, *key.split(".")[:-1]
            for part in rest:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.weight = nn.Parameter(WEIGHTS[name].clone(), requires_grad=False)


def put(model: nn.Module, key: str, weight: torch.Tensor) -> None:
    owner, name = key.rsplit(".", 1)
    setattr(model.get_submodule(owner), name, nn.Parameter(weight, requires_grad=False))


class Patcher:
    """What all patchers of the family have."""

    def __init__(self, model: nn.Module):
        self.model, self.patches = model, {}

    def clone(self) -> "Patcher":
        other = type(self)(self.model)
        other.patches = {key: list(known) for key, known in self.patches.items()}
        return other

    def _add(self, patches: dict, row) -> set[str]:
        known = dict(self.model.named_parameters())
        taken = {key for key in patches if key in known}
        for key in taken:
            self.patches.setdefault(key, []).append(row(patches[key]))
        return taken


class Clip:
    """Text encoders around a patcher."""

    def __init__(self, patcher: Patcher):
        self.patcher, self.cond_stage_model = patcher, patcher.model

    def clone(self) -> "Clip":
        return Clip(self.patcher.clone())


class Objects:
    def __init__(self, unet: Patcher, clip: Clip):
        self.unet, self.clip = unet, clip

    def shallow_copy(self) -> "Objects":
        return Objects(self.unet, self.clip)


class WebUI:
    """A host in `sys.modules` with one model loaded. tags: (file, strength of the UNet, of the text encoders)."""

    patcher: type[Patcher]

    def __init__(self, monkeypatch, online: bool = False):
        self._patch, self.online, self.handed_on = monkeypatch, online, []
        original = Objects(self.patcher(Tree(UNET | UNET_NORM)), Clip(self.patcher(Tree(TEXT | TEXT_NORM))))
        self.sd_model = SimpleNamespace(
            forge_objects_original=original, forge_objects_after_applying_lora=original, current_lora_hash="[]"
        )
        self.opts = SimpleNamespace(
            spectral_device="Processor", spectral_kept_mb=2048, spectral_mismatch="Stop with a message"
        )
        self.state = SimpleNamespace(textinfo="", interrupted=False)
        self.networks = self.module(
            "networks", loaded_networks=[], load_lora_for_models=self._others, load_networks=self.load_networks
        )
        self.module("modules")
        shared = self.module("modules.shared", sd_model=self.sd_model, opts=self.opts, state=self.state)
        devices = self.module("modules.devices", device=torch.device("cpu"))
        sys.modules["modules"].shared, sys.modules["modules"].devices = shared, devices

    def module(self, name: str, **members) -> ModuleType:
        made = ModuleType(name)
        made.__dict__.update(members)
        self._patch.setitem(sys.modules, name, made)
        return made

    def _others(self, model, clip, lora, strength_model, strength_clip, filename="default", *more, **named):
        """The host's own way with a file, which is none of ours."""
        self.handed_on.append((str(filename), strength_model, strength_clip, more, named))
        return model, clip

    def call(self, model, clip, file, strength_model, strength_clip):
        """As the host calls the function for one tag."""
        return self.networks.load_lora_for_models(model, clip, {}, strength_model, strength_clip, filename=file)

    def load_networks(self, *tags) -> None:
        model = self.sd_model
        wanted = str(tags)
        self.networks.loaded_networks[:] = [
            SimpleNamespace(name=str(tag[0]), network_on_disk=SimpleNamespace(filename=str(tag[0]))) for tag in tags
        ]
        if model.current_lora_hash == wanted:
            return
        model.current_lora_hash = wanted
        objects = model.forge_objects_original.shallow_copy()
        for file, unet, text in tags:
            objects.unet, objects.clip = self.call(objects.unet, objects.clip, str(file), unet, text)
        model.forge_objects_after_applying_lora = objects

    def weights(self, *tags) -> dict[str, torch.Tensor]:
        """What the layers and norms weigh in a picture of a prompt with these tags."""
        self.load_networks(*tags)
        objects, found = self.sd_model.forge_objects_after_applying_lora, {}
        for patcher, places in ((objects.unet, UNET | UNET_NORM), (objects.clip.patcher, TEXT | TEXT_NORM)):
            self.load(patcher)
            for name, (key, _) in places.items():
                found[name] = self.at_forward(patcher, key).clone()
        return found

    def load(self, patcher: Patcher) -> None:
        """Puts a patcher's weights into its module."""
        raise NotImplementedError

    def at_forward(self, patcher: Patcher, key: str) -> torch.Tensor:
        return patcher.model.get_parameter(key)


def keys_unet(model, key_map):
    key_map.update({name: key for name, (key, _) in (UNET | UNET_NORM).items()})
    return key_map


def keys_clip(model, key_map):
    key_map.update({name: key for name, (key, _) in TEXT.items()})  # matrices only, like the real ones
    return key_map


class ForgePatcher(Patcher):
    def __init__(self, model):
        super().__init__(model)
        if not hasattr(model, "lora_loader"):
            model.lora_loader = SimpleNamespace(backup={})
        self.lora_loader = model.lora_loader

    def add_patches(self, *, filename, patches, strength_patch=1.0, strength_model=1.0, online_mode=False):
        return self._add(patches, lambda patch: [strength_patch, patch, strength_model, online_mode, filename])


class Forge(WebUI):
    patcher = ForgePatcher

    def __init__(self, monkeypatch, online=False):
        super().__init__(monkeypatch, online)
        self.lora = self.module(
            "backend.patcher.lora",
            extra_weight_calculators={},
            model_lora_keys_unet=keys_unet,
            model_lora_keys_clip=keys_clip,
        )

    def call(self, model, clip, file, strength_model, strength_clip):
        return self.networks.load_lora_for_models(
            model, clip, {}, strength_model, strength_clip, filename=file, online_mode=self.online
        )

    def load(self, patcher):
        backup = patcher.lora_loader.backup
        for key, weight in backup.items():
            put(patcher.model, key, weight)
        backup.clear()
        for key, patches in patcher.patches.items():
            merged = [patch for patch in patches if not patch[3]]
            if merged:
                backup[key] = patcher.model.get_parameter(key)
                put(patcher.model, key, self.merge(merged, backup[key].float()))

    def at_forward(self, patcher, key):
        weight = patcher.model.get_parameter(key)
        online = [[p[0], moved(p[1]), *p[2:]] for p in patcher.patches.get(key, []) if p[3]]
        return self.merge(online, weight.half()).float() if online else weight

    def merge(self, patches, weight):
        weight = weight.clone()
        for strength, (kind, value), *_ in patches:
            weight = self.lora.extra_weight_calculators[kind](weight, strength, value)
        return weight


def moved(value):
    """Tensors within tuples as fp16, as the host keeps the patches that it adds at each forward."""
    if isinstance(value, tuple):
        return tuple(moved(each) for each in value)
    return value.half() if isinstance(value, torch.Tensor) else value


class AdapterPatcher(Patcher):
    def __init__(self, model):
        super().__init__(model)
        self.backup = {}

    def clone(self):
        other = super().clone()
        other.backup = self.backup
        return other

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        return self._add(patches, lambda patch: (strength_patch, patch, strength_model))


class WeightAdapterBase:
    """The host's class of patches."""

    def calculate_weight(self, weight, key, strength, strength_model, offset, function, intermediate_dtype, original):
        raise NotImplementedError


class AdapterHost(WebUI):
    patcher = AdapterPatcher

    def __init__(self, monkeypatch, online=False, module="ldm_patched.modules.lora"):
        super().__init__(monkeypatch, online)
        self.module(
            module,
            weight_adapter=SimpleNamespace(WeightAdapterBase=WeightAdapterBase),
            model_lora_keys_unet=keys_unet,
            model_lora_keys_clip=keys_clip,
        )

    def load(self, patcher):
        for key, kept in patcher.backup.items():
            put(patcher.model, key, kept.weight)
        patcher.backup.clear()
        for key, patches in patcher.patches.items():
            weight = patcher.model.get_parameter(key)
            patcher.backup[key] = Backup(weight, False)
            changed = weight.float().clone()
            for strength, patch, strength_model in patches:
                assert isinstance(patch, WeightAdapterBase)
                copy = type(patch)(patch.loaded_keys, patch.weights)
                changed = copy.calculate_weight(
                    changed, key, strength, strength_model, None, lambda a: a, torch.float32, {}
                )
            put(patcher.model, key, changed)


class ClassicPatcher(Patcher):
    def __init__(self, model):
        super().__init__(model)
        self.backup = {}

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        return self._add(patches, lambda patch: (strength_patch, patch, strength_model))

    def unpatch(self):
        for key, weight in self.backup.items():
            put(self.model, key, weight)
        self.backup = {}


class Classic(WebUI):
    patcher = ClassicPatcher

    def __init__(self, monkeypatch, online=False):
        super().__init__(monkeypatch, online)
        self.loaded: list[ClassicPatcher] = []
        self.module("ldm_patched.modules.lora", model_lora_keys_unet=keys_unet, model_lora_keys_clip=keys_clip)
        self.calculators = self.module("ldm_patched.modules.model_patcher", extra_weight_calculators={})
        self.module("ldm_patched.modules.model_management", unload_model_clones=self.unload_model_clones)

    def unload_model_clones(self, patcher):
        for other in [other for other in self.loaded if other.model is patcher.model]:
            other.unpatch()
            self.loaded.remove(other)

    def load(self, patcher):
        self.unload_model_clones(patcher)
        for key, patches in patcher.patches.items():
            patcher.backup[key] = patcher.model.get_parameter(key)
            weight = patcher.backup[key].float().clone()
            for strength, (kind, value), _ in patches:
                weight = self.calculators.extra_weight_calculators[kind](weight, strength, value)
            put(patcher.model, key, weight)
        self.loaded.append(patcher)
