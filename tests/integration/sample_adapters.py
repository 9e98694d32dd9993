"""Adapters with random parameters for the small checkpoint, one file per method and profile."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_checkpoint import ATTENTION, UNET
from torch import Tensor

import spectral_adapters as sa
from spectral_adapters.spectral.gains import Gain, gain_fingerprint

SIZES = {"delta": 0.5, "a_u": 0.03, "a_v": 0.03, "q_u": 0.25, "q_v": 0.25, "k1": 0.05, "k2": 0.05, "k3": 0.05}
PROFILES = {
    "additive": ("additive", "portable"),
    "rotation": ("rotation", "portable"),
    "svdiff": ("svdiff", "compact"),
    "soda": ("soda", "compact"),
    "rotation-compact": ("rotation", "compact"),
}
"""File name -> method and profile."""
TRIGGERS = ("sks", "dog")


def layer_keys(text_encoder: bool = True, convolutions: bool = True) -> dict[str, str]:
    """Kohya layer name -> key of the small checkpoint: attention, 1x1 and 3x3 convolutions, a little text encoder."""
    keys = {}
    for kohya, ldm in ATTENTION.items():
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                path = f"transformer_blocks.0.{attention}.{part}"
                keys[f"lora_unet_{kohya}_{path.replace('.', '_')}"] = f"{UNET}{ldm}.{path}.weight"
        if convolutions:
            keys[f"lora_unet_{kohya}_proj_in"] = f"{UNET}{ldm}.proj_in.weight"
    if convolutions:
        keys["lora_unet_mid_block_resnets_0_conv1"] = f"{UNET}middle_block.0.in_layers.2.weight"
    if text_encoder:
        for path in ("encoder.layers.3.self_attn.q_proj", "encoder.layers.7.mlp.fc1"):
            name = "lora_te_text_model_" + path.replace(".", "_")
            keys[name] = f"cond_stage_model.transformer.text_model.{path}.weight"
    return keys


def norm_keys() -> dict[str, str]:
    """Kohya layer name -> key of the small checkpoint: norms of the UNet, two of the text encoder."""
    keys = {"lora_unet_conv_norm_out": f"{UNET}out.0.weight"}
    for kohya, ldm in ATTENTION.items():
        keys[f"lora_unet_{kohya}_norm"] = f"{UNET}{ldm}.norm.weight"
        for i in (1, 2, 3):
            keys[f"lora_unet_{kohya}_transformer_blocks_0_norm{i}"] = f"{UNET}{ldm}.transformer_blocks.0.norm{i}.weight"
    for i, ldm in ((1, "in_layers.0"), (2, "out_layers.0")):
        keys[f"lora_unet_mid_block_resnets_0_norm{i}"] = f"{UNET}middle_block.0.{ldm}.weight"
    for path in ("encoder.layers.3.layer_norm1", "final_layer_norm"):
        name = "lora_te_text_model_" + path.replace(".", "_")
        keys[name] = f"cond_stage_model.transformer.text_model.{path}.weight"
    return keys


def gains(weights: Mapping[str, Tensor], seed: int = 8) -> dict[str, Gain]:
    """Shifts far above what training reaches, so that fp16 storage shows them."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: Gain(name, 0.2 * torch.randn(weight.shape, generator=random), gain_fingerprint(weight))
        for name, weight in weights.items()
    }


def make(method: sa.Method, weights: Mapping[str, Tensor], profile: str, seed: int = 5) -> sa.Adapter:
    """An adapter whose parameters lie as far from identity as training takes them. weights: layer name -> weight."""
    random = torch.Generator().manual_seed(seed)
    layers = {}
    for name, weight in weights.items():
        basis = sa.decompose(weight, method.columns)
        frames = basis.half_rounded() if method.portable else basis
        params = {part: _disturbed(method, part, p, random) for part, p in method.init(weight, frames).items()}
        layers[name] = sa.AdapterLayer(name, tuple(weight.shape), params, basis.columns, frames)
    return sa.Adapter(method, layers, {}, profile)


def _disturbed(method: sa.Method, part: str, value: Tensor, random: torch.Generator) -> Tensor:
    noise = SIZES[part] * torch.randn(value.shape, generator=random)
    if method.groups[part].kind == "stiefel":
        return value @ torch.linalg.matrix_exp(noise - noise.T)
    return value + noise


def write_all(
    folder: Path,
    state: Mapping[str, Tensor],
    layers: Mapping[str, str] | None = None,
    norms: Mapping[str, str] | None = None,
) -> None:
    """One file per entry of PROFILES, exact LoRA exports beside them, and what users pick by mistake.

    layers, norms: of another checkpoint than the small one, kohya layer name -> key.
    """
    weights = {name: state[key].float() for name, key in (layers or layer_keys()).items()}
    for file, (name, profile) in PROFILES.items():
        adapter = make(sa.method(name), weights, profile)
        save(adapter, folder / f"{file}.safetensors")
        if name in ("additive", "rotation") and profile == "portable":
            save_file(sa.to_lora(adapter), folder / f"{file}-lora.safetensors")
    shifted = make(sa.method("svdiff", norms=True), weights, "compact")
    shifted.gains = gains({name: state[key].float() for name, key in (norms or norm_keys()).items()})
    save(shifted, folder / "norms.safetensors")
    another = {layer: weight for layer, weight in weights.items() if layer.startswith("lora_unet") and "attn" in layer}
    save(make(sa.method("rotation", rank=4), another, "portable", seed=6), folder / "unet-only.safetensors")
    save(sdxl(), folder / "sdxl.safetensors")
    whole = (folder / "rotation.safetensors").read_bytes()
    (folder / "cut-off.safetensors").write_bytes(whole[: len(whole) // 2])


def save(adapter: sa.Adapter, path: Path) -> None:
    sa.save(adapter, path, profile=adapter.profile, base_name="small", trigger_words=TRIGGERS)


def sdxl() -> sa.Adapter:
    """A few layers of SDXL: some of their names exist in SD1.x too, and some even with the same shape."""
    random = torch.Generator().manual_seed(7)
    shapes = {
        "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (640, 640),
        "input_blocks_4_1_transformer_blocks_1_attn1_to_q": (640, 640),
        "input_blocks_4_1_transformer_blocks_0_attn2_to_k": (640, 2048),
    }
    weights = {f"lora_unet_{name}": torch.randn(shape, generator=random) / 30 for name, shape in shapes.items()}
    return make(sa.method("additive", rank=2), weights, "portable")
