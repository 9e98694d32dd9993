"""Writing the trained parts as one diffusers folder, and drawing pictures from it."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

SAMPLING_STEPS = 20
GUIDANCE = 4.0
# The oldest diffusers whose classes know every key we write.
DIFFUSERS_VERSION = "0.30.0"


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({key: value.half().contiguous() for key, value in state.items()}, path, {"format": "pt"})


def _write_model(folder: Path, model: AutoencoderKL | UNet2DConditionModel | DDIMScheduler, file: str) -> None:
    """Only settings that differ from the class's defaults are written, so that other versions can read them."""
    folder.mkdir(parents=True, exist_ok=True)
    defaults = set(model.config.get("_use_default_values", ()))
    config = {k: v for k, v in model.config.items() if not k.startswith("_") and k not in defaults}
    _write_json(folder / file, {"_class_name": type(model).__name__, "_diffusers_version": DIFFUSERS_VERSION, **config})


def _write_text_encoder(folder: Path, model: CLIPTextModel) -> None:
    """Keys carry the prefix `text_model.`, which every version of transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "max_position_embeddings", "projection_dim", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id",
            "pad_token_id")
    config = {key: getattr(model.config, key) for key in keys}
    _write_json(folder / "config.json", {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
                                         "torch_dtype": "float32", **config})
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in model.state_dict().items()}
    _write_weights(folder / "model.safetensors", state)


def write_pipeline(folder: Path, vae: AutoencoderKL, text_encoder: CLIPTextModel, unet: UNet2DConditionModel,
                   scheduler: DDIMScheduler, tokenizer: Path) -> None:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` loads; weights in float16."""
    for model, name in ((vae, "vae"), (unet, "unet")):
        _write_model(folder / name, model, "config.json")
        _write_weights(folder / name / "diffusion_pytorch_model.safetensors", model.state_dict())
    _write_model(folder / "scheduler", scheduler, "scheduler_config.json")
    _write_text_encoder(folder / "text_encoder", text_encoder)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    _write_json(folder / "model_index.json", {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": DIFFUSERS_VERSION,
        "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False,
        "safety_checker": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    })


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The folder as a pipeline in float32 without a progress bar."""
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder), torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: StableDiffusionPipeline, prompts: list[str], seeds: list[int],
           guidance: float = GUIDANCE, batch: int = 8) -> np.ndarray:
    """One uint8 picture (64, 64, 3) for each prompt and seed, the same whatever the batch size (up to rounding)."""
    pictures = []
    for start in range(0, len(prompts), batch):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
        output = pipeline(prompts[start : start + batch], height=64, width=64, num_inference_steps=SAMPLING_STEPS,
                          guidance_scale=guidance, generator=generators, output_type="np").images
        pictures.append((output * 255).round().astype(np.uint8))
    return np.concatenate(pictures)
