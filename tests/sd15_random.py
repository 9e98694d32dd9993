"""A random checkpoint with the real SD1.5 architecture, as one fp16 file in the original layout (about 2.1 GB).

Its weights have decaying spectra, as trained layers do: a flat random matrix would make every top-r decomposition
unusually hard and every singular vector arbitrary. Used by slow tests; also runs by itself:
``python tests/sd15_random.py FILE``.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

import spectral_adapters
from spectral_adapters.spectral import names

CONFIG = Path(spectral_adapters.__file__).parent / "assets" / "configs" / "sd1.json"
SHARED_RANK = 64


def decaying(shape: tuple[int, ...], gain: float, generator: torch.Generator) -> Tensor:
    """A weight with 64 directions falling like i^-0.7 above noise; entries have size gain / sqrt(fan in)."""
    m, n = shape[0], int(torch.tensor(shape[1:]).prod())
    r = min(m, n, SHARED_RANK)
    noise = torch.randn(m, n, generator=generator)
    u, v = torch.randn(m, r, generator=generator), torch.randn(r, n, generator=generator)
    sigma = torch.arange(1, r + 1).float() ** -0.7
    weight = 0.6 * noise + (u * (0.8 * sigma / sigma.norm())) @ v
    return (weight * (gain / n**0.5)).reshape(shape)


def state(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            value = torch.zeros(parameter.shape)
        elif parameter.dim() == 1:
            value = torch.ones(parameter.shape)
        elif "embedding" in name and "time" not in name:
            value = 0.02 * torch.randn(parameter.shape, generator=generator)
        else:
            value = decaying(tuple(parameter.shape), 0.7, generator)
        tensors[name] = value.half()
    return tensors


def write(path: Path, seed: int = 0) -> Path:
    """Write the checkpoint to `path`. The same seed gives the same bytes."""
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config["unet"])
        vae = AutoencoderKL(**config["vae"])
        text = CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))
    generator = torch.Generator().manual_seed(seed)
    checkpoint = {}
    for module, root, table in (
        (unet, names.UNET_ROOT, {m.diffusers: m.ldm for m in names.unet_modules("sd1")}),
        (vae, names.VAE_ROOT, {m.diffusers: m.ldm for m in names.vae_modules()}),
        (text, names.TEXT_ROOTS["sd1", "lora_te_"][0], None),
    ):
        for name, tensor in state(module, generator).items():
            owner, part = name.rsplit(".", 1)
            there = table[owner] if table else names.with_text_model(owner)
            # LDM keeps the VAE's attention matrices as 1x1 convolutions.
            tensor = tensor[..., None, None] if ".attn_1." in there and tensor.dim() == 2 else tensor
            checkpoint[f"{root}{there}.{part}"] = tensor.contiguous()
    checkpoint[names.TEXT_ROOTS["sd1", "lora_te_"][0] + "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(checkpoint, path, metadata={"format": "pt"})
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
