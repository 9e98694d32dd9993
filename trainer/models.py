"""Loading a base model to train on, wholly offline: the tiny base, a diffusers folder, or a single-file checkpoint.

SD1.x, SD2.x (noise and v-prediction) and SDXL. Weights are widened from the bits the file holds, so that decompositions
and fingerprints made here are the ones that a user of the same file gets.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import transformers
from accelerate import init_empty_weights
from diffusers import DDPMScheduler, UNet2DConditionModel
from packaging.version import Version
from safetensors import SafetensorError, safe_open
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..spectral import names
from .base import Autoencoder, Base, BaseModelError, Part, Prediction, Text
from .configs import ASSETS, unet_family
from .single_file import describe_channels, load_parts
from .tokenizers import find_tokenizer, holds_tokenizer, tokenizers_for

__all__ = ["ASSETS", "TINY", "Base", "BaseModelError", "Part", "Prediction", "Text", "find_tokenizer", "load_base"]

TINY = "tiny"
PIPELINES = {"StableDiffusionPipeline": 1, "StableDiffusionXLPipeline": 2}  # and how many text encoders each has
Module = TypeVar("Module", UNet2DConditionModel, Autoencoder, CLIPTextModel, CLIPTextModelWithProjection)
# The argument of transformers' from_pretrained has changed its name.
_TEXT_DTYPE = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def load_base(
    source: str,
    tokenizer: str | None = None,
    *,
    weights_only: bool = False,
    prediction: Prediction = "auto",
    dtype: torch.dtype | None = torch.float32,
    fake: FakeTensorMode | None = None,
) -> Base:
    """The base model at `source`: the word "tiny", a diffusers folder, or a single-file `.safetensors` checkpoint.

    tokenizer: a folder with CLIP's vocab.json and merges.txt, needed for a single file where none is found (see
    `tokenizers`). weights_only: without one, for work that reads no text. prediction: what the UNet predicts, where the
    model says it wrongly. dtype: of UNet and text encoders; None keeps the file's, which saves memory and changes no
    bit of a weight; the VAE is always float32. fake: give the modules weights of that mode, which have shapes and no
    data: quick, for estimates; the base then has no file hash. Raises BaseModelError with what was found, what was
    expected and what to do.
    """
    path = ASSETS / "tiny_base" if source == TINY else Path(source).expanduser()
    if path.is_dir():
        base = _from_folder(path, tokenizer, weights_only, prediction, dtype, fake)
    elif path.is_file():
        base = _from_file(path, tokenizer, weights_only, prediction, dtype, fake)
    else:
        raise BaseModelError(
            f"no base model at {path}. Give the word {TINY!r}, a diffusers folder, or a .safetensors checkpoint."
        )
    for part in (base.unet, *base.text_encoders, base.vae):
        part.eval().requires_grad_(False)
    for words, encoder in zip(base.tokenizers, base.text_encoders):
        words.model_max_length = encoder.config.max_position_embeddings
        if len(words) > encoder.config.vocab_size:
            raise BaseModelError(
                f"the tokenizer has {len(words)} words, but {base.name}'s text encoder knows "
                f"{encoder.config.vocab_size}. Give CLIP's own tokenizer with --tokenizer."
            )
    return base


def _from_file(
    path: Path,
    tokenizer: str | None,
    weights_only: bool,
    prediction: Prediction,
    dtype: torch.dtype | None,
    fake: FakeTensorMode | None,
) -> Base:
    parts = load_parts(path, prediction, dtype, fake=fake)
    words = () if weights_only else tokenizers_for(parts.family, tokenizer)
    digest = _sha256([path]) if fake is None else ""
    return Base(path.stem, parts.family, digest, parts.unet, parts.text_encoders, words, parts.vae, parts.noise)


def _from_folder(
    folder: Path,
    tokenizer: str | None,
    weights_only: bool,
    prediction: Prediction,
    dtype: torch.dtype | None,
    fake: FakeTensorMode | None,
) -> Base:
    count = _check_index(folder)
    unet = _read(UNet2DConditionModel, folder / "unet", dtype, fake)
    if unet.config.in_channels != 4:
        raise BaseModelError(f"{folder} {describe_channels(unet.config.in_channels)}; expected a text-to-image model.")
    family = unet_family(unet)
    if count == 2 and family != "sdxl":
        raise BaseModelError(
            f"{folder} holds a UNet whose layers are not those of Stable Diffusion XL base, such as SSD-1B, Vega or a "
            "refiner has; expected SDXL base or a fine-tune of it."
        )
    noise = _noise(folder / "scheduler", prediction)
    texts = [_read(CLIPTextModel, folder / "text_encoder", dtype, fake)]
    if count == 2:
        texts.append(_read(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype, fake))
    vae = _read(Autoencoder, folder / "vae", torch.float32, fake)
    words = () if weights_only else _folder_tokenizers(folder, count, family, tokenizer)
    digest = _sha256(sorted((folder / "unet").glob("*.safetensors"))) if fake is None else ""
    return Base(folder.resolve().name, family, digest, unet, tuple(texts), words, vae, noise)


def _check_index(folder: Path) -> int:
    """How many text encoders the model folder has; raises BaseModelError for other kinds of model."""
    index = folder / "model_index.json"
    if not index.is_file():
        hint = " It holds one part of a model; give the folder above." if (folder / "config.json").is_file() else ""
        raise BaseModelError(
            f"{folder} has no model_index.json, so it is not a model folder in diffusers' layout.{hint}"
        )
    kind = _json(index).get("_class_name")
    if kind not in PIPELINES:
        raise BaseModelError(
            f"{folder} holds a {kind}; this trainer takes a StableDiffusionPipeline (SD1.x, SD2.x) or a "
            "StableDiffusionXLPipeline."
        )
    return PIPELINES[kind]


def _read(kind: type[Module], folder: Path, dtype: torch.dtype | None, fake: FakeTensorMode | None) -> Module:
    """One module of a diffusers folder, in `dtype` or, where that is None, in the file's."""
    stored = _stored(folder)
    wanted = dtype or (stored.dtype if stored.dtype in (torch.float16, torch.bfloat16) else torch.float32)
    if fake is not None:
        return _without_data(kind, folder, wanted, fake)
    argument = _TEXT_DTYPE if issubclass(kind, transformers.PreTrainedModel) else "torch_dtype"
    try:
        module, report = kind.from_pretrained(
            folder,
            variant=stored.variant,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **{argument: wanted},
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(
            f"{folder} could not be loaded as safetensors in diffusers' layout: {error}. Download it again."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise BaseModelError(
            f"{folder} lacks {len(missing)} tensors of the {kind.__name__}, the first is {missing[0]}. Download it "
            "again."
        )
    return module


def _without_data(kind: type[Module], folder: Path, dtype: torch.dtype, fake: FakeTensorMode) -> Module:
    """The module that the folder's settings describe, its weights of the fake mode."""
    settings = _json(folder / "config.json")
    with init_empty_weights(include_buffers=False):
        if issubclass(kind, transformers.PreTrainedModel):
            module = kind(kind.config_class(**settings))
        else:
            module = kind.from_config(settings)
    with fake:
        state = {name: torch.empty(p.shape, dtype=dtype) for name, p in module.named_parameters()}
    module.load_state_dict(state, strict=False, assign=True)
    return module


class _Stored(NamedTuple):
    """How a folder keeps its weights: the variant in its files' names, and their precision if they share one."""

    variant: str | None
    dtype: torch.dtype | None


def _stored(folder: Path) -> _Stored:
    plain = [path for path in sorted(folder.glob("*.safetensors")) if ".fp16." not in path.name]
    files = plain or sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin"))
        raise BaseModelError(
            f"{folder} holds {'pickled weights (.bin), which can run code when opened' if pickled else 'no weights'}; "
            "expected .safetensors. Download the model in that form, or convert it with diffusers' save_pretrained."
        )
    kinds: set[torch.dtype] = set()
    try:
        for path in files:
            with safe_open(path, framework="pt") as file:
                kinds |= {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{path} cannot be read as a safetensors file ({error}). Download it again.") from error
    return _Stored(None if plain else "fp16", kinds.pop() if len(kinds) == 1 else None)


def _noise(folder: Path, prediction: Prediction) -> DDPMScheduler:
    """The folder's noise schedule as DDPM's, whatever sampler it is saved for."""
    settings = _json(folder / "scheduler_config.json")
    sampler = settings.get("_class_name", "")
    if sampler.startswith("EDM") or "FlowMatch" in sampler:
        raise BaseModelError(
            f"{folder.parent} is made for the {sampler}; expected a model with Stable Diffusion's noise levels."
        )
    if prediction != "auto":
        settings["prediction_type"] = prediction
    # At zero SNR a model that predicts noise has nothing to learn from.
    settings["rescale_betas_zero_snr"] = (
        bool(settings.get("rescale_betas_zero_snr")) and settings.get("prediction_type") == "v_prediction"
    )
    return DDPMScheduler.from_config(settings)


def _folder_tokenizers(
    folder: Path, count: int, family: names.Family | None, given: str | None
) -> tuple[CLIPTokenizer, ...]:
    own = [folder / "tokenizer", folder / "tokenizer_2"][:count]
    if given or not all(holds_tokenizer(path) for path in own):
        return tokenizers_for(family, given)
    return tuple(find_tokenizer(str(path)) for path in own)


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} is no readable JSON ({error}). Download it again.") from error


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
