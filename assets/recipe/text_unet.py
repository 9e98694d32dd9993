"""The words and the denoiser: tokenizer, CLIP text model and UNet, trained together from scratch on latents."""
from __future__ import annotations

import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from parallel import average_gradients, learning_rate, load_checkpoint, save_checkpoint
from pictures import words
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

POSITIONS = 24
WIDTH = 96
BATCH = 32
PEAK_RATE = 1.5e-3
EMA_DECAY = 0.998
EMPTY_CAPTIONS = 0.10
SNR_LIMIT = 5.0
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged, i = [], 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            merged.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return tuple(merged)


def learn_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (most frequent pair first) until every word is one token."""
    segmented = [(*word[:-1], word[-1] + "</w>") for word in vocabulary]
    merges = []
    while pairs := Counter(pair for word in segmented for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        segmented = [_merge(word, best) for word in segmented]
    return merges


def write_tokenizer(folder: Path) -> None:
    """CLIP tokenizer files: caption words are one token each, other words fall back to letters."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(words())
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'-!?"
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), BOS, EOS]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    settings = {**special, "model_max_length": POSITIONS, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True,
                "add_prefix_space": False, "errors": "replace"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained 3-layer text encoder for the tokenizer's vocabulary."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=POSITIONS, projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))


def build_unet() -> UNet2DConditionModel:
    """An untrained denoiser of 16 x 16 x 4 latents: attention at 8 x 8 and 4 x 4 only, where it is cheap."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(48, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2, 3), cross_attention_dim=WIDTH, norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )


def encode_captions(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token numbers of shape (n, POSITIONS)."""
    encoded = tokenizer(captions, padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt")
    return encoded.input_ids


def denoising_loss(unet: UNet2DConditionModel, text_encoder: CLIPTextModel, latents: torch.Tensor,
                   tokens: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Min-SNR-weighted error of the predicted noise (arXiv 2303.09556, weight min(SNR, 5) / SNR)."""
    noise = torch.randn_like(latents)
    t = torch.randint(0, len(alphas), (len(latents),))
    alpha = alphas[t][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    predicted = unet(noisy, t, text_encoder(tokens)[0]).sample
    snr = alphas[t] / (1 - alphas[t])
    error = (predicted - noise).square().mean(dim=(1, 2, 3))
    return (error * snr.clamp(max=SNR_LIMIT) / snr).mean()


def train_text_unet(rank: int, world: int, work: Path, steps: int, seed: int) -> None:
    """Train on `work`/latents.pt and tokens; leaves `work`/unet.pt. Goes on from its last checkpoint."""
    data = torch.load(work / "latents.pt", weights_only=True)
    latents, tokens = data["latents"], data["tokens"]
    tokenizer = CLIPTokenizer.from_pretrained(str(work / "tokenizer"))
    empty = encode_captions(tokenizer, [""])[0]
    torch.manual_seed(seed)
    modules = torch.nn.ModuleDict({"unet": build_unet(), "text": build_text_encoder(tokenizer)}).train()
    parameters = list(modules.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    mean = [p.detach().clone() for p in parameters]
    first, before, path = 0, 0.0, work / "unet.pt"
    if state := load_checkpoint(path):
        first, before, mean = state["step"], state["seconds"], state["mean"]
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
    alphas = build_scheduler().alphas_cumprod
    started = last_save = time.time()
    shown = 0.0
    for step in range(first, steps):
        rng = np.random.default_rng((seed, 2, step, rank))
        torch.manual_seed(int(rng.integers(2**31)))
        index = torch.from_numpy(rng.integers(len(latents), size=BATCH))
        drop = torch.from_numpy(rng.random(BATCH) < EMPTY_CAPTIONS)
        ids = torch.where(drop[:, None], empty, tokens[index])
        loss = denoising_loss(modules["unet"], modules["text"], latents[index].float(), ids, alphas)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_RATE, warmup=100, hold=0.45)
        optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(mean, [p.detach() for p in parameters], 1 - decay)
        shown = loss.item() if step == first else 0.98 * shown + 0.02 * loss.item()
        last = step + 1 == steps
        if rank == 0 and (last or (step + 1) % 100 == 0):
            print(f"unet {step + 1}/{steps} loss {shown:.4f} {time.time() - started:.0f} s", flush=True)
        if rank == 0 and (last or time.time() - last_save > 180):
            last_save = time.time()
            save_checkpoint(path, {"step": step + 1, "seconds": before + time.time() - started, "mean": mean,
                                   "modules": modules.state_dict(), "optimizer": optimizer.state_dict()})


def averaged_modules(work: Path) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The UNet and text encoder with their averaged weights."""
    state = load_checkpoint(work / "unet.pt")
    if state is None:
        raise FileNotFoundError(f"{work / 'unet.pt'} does not exist: train the UNet first")
    tokenizer = CLIPTokenizer.from_pretrained(str(work / "tokenizer"))
    modules = torch.nn.ModuleDict({"unet": build_unet(), "text": build_text_encoder(tokenizer)}).eval()
    with torch.no_grad():
        for parameter, value in zip(modules.parameters(), state["mean"]):
            parameter.copy_(value)
    return modules["unet"], modules["text"]
