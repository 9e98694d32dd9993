"""Loading a base model to train on, wholly offline: the tiny base, a diffusers folder, or a single-file SD1.x.

Weights are widened to float32 from the bits the file holds, so that decompositions and fingerprints made here are the
ones that a user of the same file gets.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..spectral import names
from ..spectral.errors import SpectralError

ASSETS = Path(__file__).parent.parent / "assets"
TINY = "tiny"
PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
HUB_TOKENIZER = "openai/clip-vit-large-patch14"
# A part of a key that only one kind of file has, and what that file is. Looked up in this order.
FOREIGN_KEYS = (
    ("double_blocks.0.", "a Flux model"),
    ("joint_blocks.0.", "a Stable Diffusion 3 model"),
    ("lora_down", "a LoRA, not a base model"),
    (".lora_A.", "a LoRA, not a base model"),
    ("sketch_u", "a spectral adapter, not a base model"),
    (".probe", "a spectral adapter, not a base model"),
    ("frame_u", "a spectral adapter, not a base model"),
)


class BaseModelError(SpectralError):
    """A base model that cannot be trained on."""


@dataclass
class Base:
    """A text-to-image model taken apart for training. Everything float32, in eval mode."""

    name: str
    family: names.Family | None
    file_hash: str
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    tokenizer: CLIPTokenizer | None
    noise: DDPMScheduler

    @property
    def scale(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """Pictures' sides must be divisible by this many pixels."""
        return self.scale * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        return int(self.unet.config.sample_size) * self.scale

    def to(self, device: torch.device) -> Base:
        for part in (self.unet, self.text_encoder, self.vae):
            part.to(device)
        return self

    @property
    def v_prediction(self) -> bool:
        """Whether the UNet predicts the velocity instead of the noise."""
        return self.noise.config.prediction_type == "v_prediction"

    def is_cut(self, caption: str) -> bool:
        """Whether the text encoder does not get to see the whole caption."""
        return len(self.tokenizer(caption).input_ids) > self.tokenizer.model_max_length

    def tokens(self, captions: list[str]) -> Tensor:
        """(B, length) token ids, padded and cut to the text encoder's length as the pipeline does."""
        length = self.tokenizer.model_max_length
        found = self.tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return found.input_ids.to(self.text_encoder.device)

    def encode(self, captions: list[str]) -> Tensor:
        """(B, length, width) text states that the UNet attends to."""
        return self.text_encoder(self.tokens(captions))[0]

    def weights(self) -> dict[str, Tensor]:
        """Layer name -> weight of every Linear and Conv2d of the UNet and the text encoder."""
        parts = ((self.unet, names.UNET_PREFIX), (self.text_encoder, "lora_te_"))
        return {
            name: part.get_submodule(path).weight
            for part, prefix in parts
            for name, path in names.layer_names(part, prefix).items()
        }

    def pipeline(self) -> StableDiffusionPipeline:
        """The same modules as diffusers' pipeline with a DDIM sampler: what inference runs."""
        # Alpha of step 0 set to 1 and no clipping: Stable Diffusion's own DDIM settings.
        sampler = DDIMScheduler.from_config(self.noise.config, clip_sample=False, set_alpha_to_one=False)
        pipeline = StableDiffusionPipeline(
            self.vae, self.text_encoder, self.tokenizer, self.unet, sampler, None, None, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_base(source: str, tokenizer: str | None = None, *, weights_only: bool = False) -> Base:
    """The base model at `source`: the word "tiny", a diffusers folder, or a single-file SD1.x `.safetensors`.

    `tokenizer` is a folder with CLIP's vocab.json and merges.txt, needed for a single file where none is found (see
    `find_tokenizer`); `weights_only` does without one, for work that reads no text. Raises BaseModelError with what was
    found, what was expected and what to do.
    """
    path = ASSETS / "tiny_base" if source == TINY else Path(source).expanduser()
    if path.is_dir():
        base = _from_folder(path, source, tokenizer)
    elif path.is_file():
        base = _from_file(path, tokenizer, weights_only)
    else:
        raise BaseModelError(
            f"no base model at {path}. Give the word {TINY!r}, a diffusers folder, or a .safetensors checkpoint."
        )
    for part in (base.unet, base.text_encoder, base.vae):
        part.float().eval().requires_grad_(False)
    if base.tokenizer is not None:
        base.tokenizer.model_max_length = base.text_encoder.config.max_position_embeddings
    return base


def _from_folder(folder: Path, source: str, tokenizer: str | None) -> Base:
    index = folder / "model_index.json"
    if not index.is_file():
        raise BaseModelError(f"{folder} has no model_index.json, so it is not a model folder in diffusers' layout.")
    kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise BaseModelError(f"{folder} holds a {kind}; this trainer takes a StableDiffusionPipeline (SD1.x, SD2.x).")
    variant = _variant(folder / "unet")
    try:
        unet = UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", variant=variant, local_files_only=True, use_safetensors=True
        )
        vae = AutoencoderKL.from_pretrained(
            folder, subfolder="vae", variant=_variant(folder / "vae"), local_files_only=True, use_safetensors=True
        )
        text_encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            variant=_variant(folder / "text_encoder"),
            local_files_only=True,
            use_safetensors=True,
        )
        noise = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"{folder} could not be loaded as safetensors in diffusers' layout: {error}") from error
    if unet.config.in_channels != 4:
        raise BaseModelError(f"{folder} {_channels(unet.config.in_channels)}; expected a text-to-image model.")
    words = find_tokenizer(tokenizer or str(folder / "tokenizer"))
    name = "tiny_base" if source == TINY else folder.resolve().name
    digest = _sha256(sorted((folder / "unet").glob("*.safetensors")))
    return Base(name, names.module_family(unet), digest, unet, text_encoder, vae, words, noise)


def _variant(folder: Path) -> str | None:
    plain = any(not p.name.endswith(".fp16.safetensors") for p in folder.glob("*.safetensors"))
    return "fp16" if not plain and any(folder.glob("*.fp16.safetensors")) else None


def _from_file(path: Path, tokenizer: str | None, weights_only: bool) -> Base:
    if path.suffix.lower() in PICKLED:
        raise BaseModelError(
            f"{path.name} is a pickled checkpoint, which can run code when it is opened. Convert it to .safetensors "
            "first: in ComfyUI, Load Checkpoint followed by Save Checkpoint; in the webui, the checkpoint merger with "
            "one model."
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            _check_sd1(path, file, keys)
            words = None if weights_only else find_tokenizer(tokenizer)
            return _assemble(path, file, keys, words)
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{path} cannot be read as a safetensors file ({error}). Download it again.") from error


def _check_sd1(path: Path, file: safe_open, keys: set[str]) -> None:
    found = identify({key: tuple(file.get_slice(key).get_shape()) for key in keys})
    if found != "sd1":
        raise BaseModelError(f"{path.name} is {found}; expected a single-file checkpoint of Stable Diffusion 1.x.")


def identify(shapes: dict[str, tuple[int, ...]]) -> str:
    """What a single-file model is, from its keys and shapes: "sd1" or a description of what else it is."""
    root = names.UNET_ROOT
    conv_in = shapes.get(f"{root}input_blocks.0.0.weight")
    if conv_in is None:
        for part, what in FOREIGN_KEYS:
            if any(part in key for key in shapes):
                return what
        if "conv_in.weight" in shapes or any(key.startswith("down_blocks.") for key in shapes):
            return "one part of a diffusers model (give the folder that holds model_index.json)"
        return f"no Stable Diffusion checkpoint ({len(shapes)} tensors, none at {root}input_blocks)"
    if conv_in[1] != 4:
        return f"a model that {_channels(conv_in[1])}"
    widths = {s[1] for k, s in shapes.items() if k.startswith(root) and k.endswith("attn2.to_k.weight")}
    family = names.CROSS_WIDTH.get(next(iter(widths))) if len(widths) == 1 else None
    if family == "sd1" and f"{root}input_blocks.1.1.proj_in.weight" in shapes:
        return "sd1"
    if widths == {1280}:
        return "a Stable Diffusion XL refiner"
    labels = {"sd2": "a Stable Diffusion 2.x checkpoint", "sdxl": "a Stable Diffusion XL checkpoint"}
    return labels.get(family or "", f"an unknown UNet with cross-attention width {sorted(widths)}")


def _channels(count: int) -> str:
    kinds = {9: "was made for inpainting", 8: "was made for editing by instruction", 5: "was made for depth"}
    return f"{kinds.get(count, 'is of another kind')} ({count} input channels instead of 4)"


def _assemble(path: Path, file: safe_open, keys: set[str], tokenizer: CLIPTokenizer | None) -> Base:
    config = json.loads((ASSETS / "configs" / "sd1.json").read_text(encoding="utf-8"))
    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel(**config["unet"])
        vae = AutoencoderKL(**config["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))
    vae_modules = list(names.vae_modules())
    _fill(unet, {m.diffusers: names.UNET_ROOT + m.ldm for m in names.unet_modules("sd1")}, path, file, keys)
    _fill(vae, {m.diffusers: names.VAE_ROOT + m.ldm for m in vae_modules}, path, file, keys)
    root = names.TEXT_ROOTS["sd1", "lora_te_"][0]
    modules = {key.rsplit(".", 1)[0] for key in text_encoder.state_dict()}
    _fill(text_encoder, {m: root + _text_key(m, root, keys) for m in modules}, path, file, keys)
    noise = DDPMScheduler(**config["scheduler"])
    return Base(path.stem, "sd1", _sha256([path]), unet, text_encoder, vae, tokenizer, noise)


def _text_key(module: str, root: str, keys: set[str]) -> str:
    """Early checkpoints and some merges lack the `text_model` level."""
    full = names.with_text_model(module)
    short = full.removeprefix("text_model.")
    return short if f"{root}{short}.weight" in keys else full


def _fill(module: nn.Module, paths: dict[str, str], path: Path, file: safe_open, keys: set[str]) -> None:
    """Give an empty module its weights, float32, from the checkpoint's own names."""
    state, missing = {}, []
    for name, parameter in module.named_parameters():
        owner, part = name.rsplit(".", 1)
        key = f"{paths[owner]}.{part}"
        if key not in keys:
            missing.append(key)
            continue
        tensor = file.get_tensor(key).float()
        # LDM keeps the VAE's attention matrices as 1x1 convolutions.
        if tensor.dim() == 4 and tensor.shape[:2] == parameter.shape:
            tensor = tensor.flatten(1)
        if tensor.shape != parameter.shape:
            raise BaseModelError(
                f"{path.name}: {key} has shape {tuple(tensor.shape)}; expected {tuple(parameter.shape)} for SD1.x."
            )
        state[name] = tensor
    if missing:
        raise BaseModelError(
            f"{path.name} lacks {len(missing)} tensors of the {type(module).__name__}, the first is {missing[0]}. "
            "A whole checkpoint (UNet, text encoder and VAE in one file) is needed."
        )
    module.load_state_dict(state, strict=False, assign=True)


def find_tokenizer(given: str | None) -> CLIPTokenizer:
    """CLIP's tokenizer from the given folder, else ComfyUI's copy, else the Hugging Face cache. No network."""
    folders = [Path(given)] if given else [*_comfy_folders()]
    for folder in folders:
        if any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            return CLIPTokenizer.from_pretrained(folder)
    if given:
        raise BaseModelError(
            f"{given} has neither vocab.json nor tokenizer.json, so it is no CLIP tokenizer. Give the folder of one "
            "with --tokenizer."
        )
    try:
        return CLIPTokenizer.from_pretrained(HUB_TOKENIZER, local_files_only=True)
    except OSError as error:
        raise BaseModelError(
            "no CLIP tokenizer was found, and a single-file checkpoint carries none. Give a folder with vocab.json "
            "and merges.txt with --tokenizer, or set COMFYUI_DIR to a ComfyUI folder (it ships one), or fetch it once: "
            f"`huggingface-cli download {HUB_TOKENIZER} vocab.json merges.txt tokenizer_config.json`."
        ) from error


def _comfy_folders() -> Iterable[Path]:
    """Where ComfyUI ships the tokenizer: below COMFYUI_DIR, or around this pack when it lies in custom_nodes."""
    roots = [Path(os.environ["COMFYUI_DIR"])] if os.environ.get("COMFYUI_DIR") else []
    pack = Path(__file__).absolute().parent.parent
    if pack.parent.name == "custom_nodes":
        roots.append(pack.parent.parent)
    return (root / "comfy" / "sd1_tokenizer" for root in roots)


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
