"""Writes a small checkpoint with random weights that ComfyUI accepts as Stable Diffusion 1.x.

ComfyUI recognises SD1.x by 320 base channels, a 768-wide context and convolutional `proj_in`; levels, depths and block
counts are free, so the UNet here has one level. The text encoder has its full size (its shape is not read from the
file) and is stored in fp8. Sampling converges to smooth pictures in which nothing is clipped, so that a changed weight
shows as a small change.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CHANNELS = 320
CONTEXT = 768
UNET = "model.diffusion_model."
ATTENTION = {
    "down_blocks_0_attentions_0": "input_blocks.1.1",
    "mid_block_attentions_0": "middle_block.1",
    "up_blocks_0_attentions_1": "output_blocks.1.1",
}
"""The three transformers: kohya spelling of the diffusers path -> LDM path."""


class Weights:
    """A state dict under construction, filled from one random stream."""

    def __init__(self, seed: int):
        self.state: dict[str, Tensor] = {}
        self.random = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def matrix(self, key: str, *shape: int, gain: float = 1.0, strong: int = 10) -> None:
        """Noise scaled by its fan-in, and above it `strong` directions of falling strength, as in trained weights."""
        rows, cols = shape[0], math.prod(shape[1:])
        edge = 1 + math.sqrt(rows / cols)
        u, v = self.randn(rows, strong) / math.sqrt(rows), self.randn(strong, cols) / math.sqrt(cols)
        sizes = edge * (1.2 + 2.0 * torch.arange(strong, 0, -1) / strong)
        self.state[key] = (gain * (0.7 * self.randn(rows, cols) / math.sqrt(cols) + u * sizes @ v)).reshape(shape)

    def layer(self, name: str, *shape: int, gain: float = 1.0, bias: bool = True, strong: int = 10) -> None:
        self.matrix(name + ".weight", *shape, gain=gain, strong=strong)
        if bias:
            self.state[name + ".bias"] = 0.02 * self.randn(shape[0])

    def norm(self, name: str, width: int) -> None:
        self.state[name + ".weight"] = 1 + 0.05 * self.randn(width)
        self.state[name + ".bias"] = 0.02 * self.randn(width)


def residual(w: Weights, name: str, n_in: int) -> None:
    w.norm(f"{name}.in_layers.0", n_in)
    w.layer(f"{name}.in_layers.2", CHANNELS, n_in, 3, 3, gain=0.7)
    w.layer(f"{name}.emb_layers.1", CHANNELS, 4 * CHANNELS, gain=0.3)
    w.norm(f"{name}.out_layers.0", CHANNELS)
    w.layer(f"{name}.out_layers.3", CHANNELS, CHANNELS, 3, 3, gain=0.2)
    if n_in != CHANNELS:
        w.layer(f"{name}.skip_connection", CHANNELS, n_in, 1, 1)


def transformer(w: Weights, name: str) -> None:
    c = CHANNELS
    w.norm(f"{name}.norm", c)
    w.layer(f"{name}.proj_in", c, c, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, width in (("attn1", c), ("attn2", CONTEXT)):
        w.layer(f"{block}.{attention}.to_q", c, c, bias=False)
        w.layer(f"{block}.{attention}.to_k", c, width, bias=False)
        w.layer(f"{block}.{attention}.to_v", c, width, bias=False)
        w.layer(f"{block}.{attention}.to_out.0", c, c, gain=0.3)
    w.layer(f"{block}.ff.net.0.proj", 8 * c, c, gain=0.5)
    w.layer(f"{block}.ff.net.2", c, 4 * c, gain=0.3)
    for i in (1, 2, 3):
        w.norm(f"{block}.norm{i}", c)
    w.layer(f"{name}.proj_out", c, c, 1, 1, gain=0.4)


def unet(w: Weights, prefix: str = UNET) -> None:
    w.layer(prefix + "time_embed.0", 4 * CHANNELS, CHANNELS)
    w.layer(prefix + "time_embed.2", 4 * CHANNELS, 4 * CHANNELS)
    w.layer(prefix + "input_blocks.0.0", CHANNELS, 4, 3, 3)
    for name in ("input_blocks.1.0", "middle_block.0", "middle_block.2"):
        residual(w, prefix + name, CHANNELS)
    for name in ("output_blocks.0.0", "output_blocks.1.0"):
        residual(w, prefix + name, 2 * CHANNELS)
    for name in ATTENTION.values():
        transformer(w, prefix + name)
    w.norm(prefix + "out.0", CHANNELS)
    w.layer(prefix + "out.2", 4, CHANNELS, 3, 3, gain=0.3)
    carry_input_to_output(w, prefix)


def carry_input_to_output(w: Weights, prefix: str) -> None:
    """Lets the noisy latent reach the output through the outermost skip connection: the predicted noise then resembles
    the input, as a trained model's does, and sampling converges. silu(a) - silu(-a) = a undoes the last activation."""
    first = w.state[prefix + "input_blocks.0.0.weight"]
    skip = w.state[prefix + "output_blocks.1.0.skip_connection.weight"]
    last = w.state[prefix + "out.2.weight"]
    first[:8], skip[:10] = 0, 0.1 * skip[:10]
    w.state[prefix + "input_blocks.0.0.bias"][:8] = 0
    last[:, :8] *= 0.1
    for channel in range(4):
        for feature, sign in ((channel, 1.0), (4 + channel, -1.0)):
            first[feature, channel, 1, 1] = sign
            skip[feature, CHANNELS + feature] = 6.0
            last[channel, feature, 1, 1] = 0.9 * sign


def text_encoder(w: Weights, prefix: str = "cond_stage_model.transformer.text_model.") -> None:
    """CLIP-L; its twelve blocks are copies of one, which is enough to test with and much quicker to make."""
    w.state[prefix + "embeddings.token_embedding.weight"] = 0.02 * w.randn(49408, CONTEXT)
    w.state[prefix + "embeddings.position_embedding.weight"] = 0.005 * w.randn(77, CONTEXT)
    block = Weights(1)
    for q in ("q_proj", "k_proj", "v_proj"):
        block.layer(f"self_attn.{q}", CONTEXT, CONTEXT)
    block.layer("self_attn.out_proj", CONTEXT, CONTEXT, gain=0.2)
    block.layer("mlp.fc1", 4 * CONTEXT, CONTEXT)
    block.layer("mlp.fc2", CONTEXT, 4 * CONTEXT, gain=0.2)
    block.norm("layer_norm1", CONTEXT)
    block.norm("layer_norm2", CONTEXT)
    for i in range(12):
        w.state |= {f"{prefix}encoder.layers.{i}.{name}": value for name, value in block.state.items()}
    w.norm(prefix + "final_layer_norm", CONTEXT)


def tiny_decoder(w: Weights, prefix: str = "first_stage_model.taesd_decoder.") -> None:
    """The decoder of a tiny autoencoder: 64 channels, three doublings of the resolution."""
    w.layer(f"{prefix}1", 64, 4, 3, 3, strong=0)
    index = 3
    for stage in range(4):
        for block in range(3 if stage < 3 else 1):
            for i, gain in ((0, 1.2), (2, 1.2), (4, 0.3)):
                w.layer(f"{prefix}{index + block}.conv.{i}", 64, 64, 3, 3, gain=gain, strong=0)
        index += 4 if stage < 3 else 1
        if stage < 3:
            w.layer(f"{prefix}{index}", 64, 64, 3, 3, gain=1.2, bias=False, strong=0)
            index += 1
    w.layer(f"{prefix}{index}", 3, 64, 3, 3, gain=0.9, strong=0)
    w.state[f"{prefix}{index}.bias"] = torch.full((3,), 0.45)
    w.state["first_stage_model.vae_scale"] = torch.tensor(0.18215)
    w.state["first_stage_model.vae_shift"] = torch.tensor(0.0)


def unet_state(seed: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The UNet alone, with a checkpoint's keys."""
    w = Weights(seed)
    unet(w)
    return {key: value.to(dtype) for key, value in w.state.items()}


def scaled_fp8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformers' linear weights as fp8 with a scale per layer, marked the way ComfyUI marks them."""
    out = dict(state)
    for key in [k for k in state if ".transformer_blocks." in k and k.endswith(".weight") and state[k].ndim == 2]:
        layer, weight = key.removesuffix(".weight"), state[key].float()
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        out[key] = (weight / scale).to(torch.float8_e4m3fn)
        out[f"{layer}.weight_scale"] = scale
        out[f"{layer}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    return out


def write(path: Path, seed: int = 0, change: float = 0.0) -> Path:
    """A whole checkpoint (175 MB); `change` adds that much relative noise to the UNet, as another fine-tune would."""
    state = unet_state(seed)
    if change:
        noise = torch.Generator().manual_seed(seed + 1)
        for key, value in state.items():
            state[key] = (value + change * value.float().std() * torch.randn(value.shape, generator=noise)).half()
    w = Weights(seed + 2)
    tiny_decoder(w)
    text_encoder(w)
    for key, value in w.state.items():
        stored_fp8 = key.startswith("cond_stage_model.") and value.ndim > 1
        state[key] = value.to(torch.float8_e4m3fn if stored_fp8 else torch.float16)
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path
