"""Single-file checkpoints in the original layout: what a file is, and its parts as diffusers' modules.

The file is memory-mapped and read tensor by tensor, so that beside the modules no second copy of it is held. Weights
are widened from the bits the file holds, never rounded: decompositions and fingerprints made here are the ones that
every user of the same file gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import init_empty_weights
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..spectral import names
from ..spectral.names import Family
from .base import Autoencoder, BaseModelError, Prediction
from .configs import cross_widths, read_config
from .native import V_MARK, V_SPREAD

PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PICKLE = (
    "a pickled checkpoint, which can run code when it is opened. Convert it to .safetensors first: in ComfyUI, Load "
    "Checkpoint followed by Save Checkpoint; in the webui, the checkpoint merger with one model."
)
# How files begin that are no safetensors, whatever their name says.
STARTS = (
    (b"PK\x03\x04", PICKLE),
    (b"\x80", PICKLE),
    (b"GGUF", "a quantised GGUF file. Use the model that it was made from."),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself. Fetch it with `git lfs pull`."),
    (b"<", "a web page, so a download went wrong. Download the file again, logged in if the site asks for it."),
)
LABELS: dict[str, str] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
}
WANTED = "expected a whole checkpoint (UNet, text encoder and VAE) of Stable Diffusion 1.x, 2.x or XL"
# A part of a key that only one kind of file has, and what that file is. Looked up in this order.
FOREIGN_KEYS = (
    ("lora_down", "a LoRA, not a base model"),
    (".lora_A.", "a LoRA, not a base model"),
    (".hada_w1", "a LyCORIS adapter, not a base model"),
    (".lokr_w", "a LyCORIS adapter, not a base model"),
    ("sketch_u", "a spectral adapter, not a base model"),
    (".probe", "a spectral adapter, not a base model"),
    ("frame_u", "a spectral adapter, not a base model"),
    ("control_model.", "a ControlNet, not a base model"),
    ("controlnet_", "a ControlNet, not a base model"),
    ("ip_adapter.", "an IP-Adapter, not a base model"),
    ("motion_modules.", "a motion module, not a base model"),
    ("double_blocks.0.", "a Flux model"),
    ("single_transformer_blocks.0.", "a Flux model"),
    ("joint_blocks.0.", "a Stable Diffusion 3 model"),
)
# Where a file without a whole checkpoint's UNet starts, and what it is then.
ALONE = (
    ("input_blocks.", "a UNet alone, without text encoder and VAE"),
    ("diffusion_model.input_blocks.", "a UNet alone, without text encoder and VAE"),
    ("encoder.down.", "a VAE alone"),
    (names.VAE_ROOT, "a VAE alone"),
    ("conv_in.", "one part of a diffusers model (give the folder that holds model_index.json)"),
    ("down_blocks.", "one part of a diffusers model (give the folder that holds model_index.json)"),
    ("encoder.down_blocks.", "one part of a diffusers model (give the folder that holds model_index.json)"),
    ("text_model.", "a text encoder alone"),
    ("transformer.resblocks.", "a text encoder alone"),
)
# Besides names.TEXT_ROOTS: SD1 and SD2 saved by tools that keep every model in SDXL's frame.
OTHER_ROOTS = {
    ("sd1", "lora_te_"): ("conditioner.embedders.0.transformer.",),
    ("sd2", "lora_te_"): ("conditioner.embedders.0.model.",),
}
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
FLOATS = {**HALVES, "F32": torch.float32, "F64": torch.float64}


@dataclass
class Parts:
    """A checkpoint's modules, on the CPU."""

    family: Family
    unet: UNet2DConditionModel
    text_encoders: tuple[CLIPTextModel | CLIPTextModelWithProjection, ...]
    vae: Autoencoder
    noise: DDPMScheduler


@dataclass(frozen=True)
class Source:
    """Where a parameter lies in the checkpoint: its key, which third of a fused q, k, v, and whether transposed."""

    key: str
    third: int | None = None
    transposed: bool = False


def load_parts(
    path: Path, prediction: Prediction, dtype: torch.dtype | None, *, fake: FakeTensorMode | None = None
) -> Parts:
    """Read a whole checkpoint of SD1.x, SD2.x or SDXL; `dtype` None keeps the file's.

    fake: read shapes and precisions only, and give the modules weights of that mode, without data.
    Raises BaseModelError with what the file is, what was expected and what to do.
    """
    with _reading(path), safe_open(path, framework="pt") as file:
        return _reader(path, file, dtype, fake).parts(prediction)


def layers_of(path: Path) -> tuple[Family, dict[str, StoredLayer]]:
    """The family of a whole checkpoint, and every layer and norm of its UNet and text encoders, still in the file.

    The file stays open as long as one of them is held. Raises BaseModelError as `load_parts` does.
    """
    with _reading(path):
        reader = _reader(path, safe_open(path, framework="pt"), None, None)
        return reader.family, dict(reader.layers())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says what a file is that cannot be read as a checkpoint."""
    if path.suffix.lower() in PICKLED:
        raise BaseModelError(f"{path.name} is {PICKLE}")
    try:
        with path.open("rb") as start:
            head = start.read(32)
        # A safetensors file has the length of its header in 8 bytes, then JSON.
        if what := next((what for begin, what in STARTS if head.startswith(begin) and head[8:9] != b"{"), None):
            raise BaseModelError(f"{path.name} is {what}")
        yield
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{path} cannot be read as a safetensors file ({error}). Download it again.") from error


def _reader(path: Path, file: safe_open, dtype: torch.dtype | None, fake: FakeTensorMode | None) -> _Reader:
    shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    return _Reader(path, file, shapes, _whole_family(path, shapes), dtype, fake)


def identify(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a single-file model is, from its keys and shapes: "sd1", "sd2", "sdxl", or a description of what else."""
    root = names.UNET_ROOT
    conv_in = shapes.get(f"{root}input_blocks.0.0.weight")
    if conv_in is None:
        return _foreign(shapes)
    if any(".time_stack." in key or ".time_mixer." in key for key in shapes):
        return "a video model"
    if len(conv_in) != 4 or conv_in[1] != 4:
        return f"a model that {describe_channels(conv_in[1])}"
    crosses = {s[1] for k, s in shapes.items() if k.startswith(root) and k.endswith("attn2.to_k.weight")}
    family = cross_widths().get(next(iter(crosses))) if len(crosses) == 1 else None
    labelled = f"{root}label_emb.0.0.weight" in shapes
    if crosses == {1280}:
        return "a Stable Diffusion XL refiner (train on the base model)"
    if family == "sd2" and labelled:
        return "a Stable Diffusion 2.1 unCLIP model, which is conditioned on pictures"
    if family is None or (family == "sdxl") != labelled:
        return f"an unknown UNet with cross-attention width {sorted(crosses)}"
    return family


def _foreign(shapes: Mapping[str, tuple[int, ...]]) -> str:
    for part, what in FOREIGN_KEYS:
        if any(part in key for key in shapes):
            return what
    for start, what in ALONE:
        if any(key.startswith(start) for key in shapes):
            return what
    return f"no Stable Diffusion checkpoint ({len(shapes)} tensors, none at {names.UNET_ROOT}input_blocks)"


def describe_channels(count: int) -> str:
    kinds = {9: "was made for inpainting", 8: "was made for editing by instruction", 5: "was made for depth"}
    return f"{kinds.get(count, 'is of another kind')} ({count} input channels instead of 4)"


def _whole_family(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Family:
    """The family of a checkpoint that has all blocks and all parts; raises BaseModelError for anything else."""
    found = identify(shapes)
    if found not in names.FAMILIES:
        raise BaseModelError(f"{path.name} is {found}; {WANTED}.")
    cross = ".attn2.to_k.weight"
    blocks = sum(key.startswith(names.UNET_ROOT) and key.endswith(cross) for key in shapes)
    wanted = sum(f"{module.ldm}.weight".endswith(cross) for module in names.unet_modules(found))
    if blocks != wanted:
        raise BaseModelError(
            f"{path.name} has {blocks} transformer blocks where {LABELS[found]} has {wanted}: a smaller relative "
            f"(SSD-1B, Vega, small-sd) or an incomplete file; {WANTED}."
        )
    absent = [] if any(key.startswith(names.VAE_ROOT) for key in shapes) else ["VAE"]
    for prefix in names.TEXT_PREFIXES[found]:
        if not any(key.startswith(root) for root in _roots(found, prefix) for key in shapes):
            absent.append("text encoder" if prefix == "lora_te_" else f"text encoder {prefix[7]}")
    if absent:
        raise BaseModelError(
            f"{path.name} holds {LABELS[found]}'s UNet without {' and '.join(absent)}; {WANTED}. In ComfyUI, Save "
            "Checkpoint with MODEL, CLIP and VAE connected writes one."
        )
    return found


def _roots(family: Family, prefix: str) -> list[str]:
    return [names.TEXT_ROOTS[family, prefix][0], *OTHER_ROOTS.get((family, prefix), ())]


@dataclass(frozen=True)
class _Reader:
    """An open checkpoint of a known family, and the precision that its weights are given in."""

    path: Path
    file: safe_open
    shapes: Mapping[str, tuple[int, ...]]
    family: Family
    dtype: torch.dtype | None
    fake: FakeTensorMode | None = None

    def parts(self, prediction: Prediction) -> Parts:
        config = read_config(self.family)
        noise = self._noise(config["scheduler"], prediction)
        if self.family == "sd2" and noise.config.prediction_type == "epsilon":
            # Stability's noise-predicting SD2 models are those of 512 instead of 768 pixels.
            config["unet"]["sample_size"] = config["unet"]["sample_size"] * 2 // 3
        with init_empty_weights(include_buffers=False):
            unet, vae = UNet2DConditionModel(**config["unet"]), Autoencoder(**config["vae"])
            texts = [CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))]
            if "text_encoder_2" in config:
                texts.append(CLIPTextModelWithProjection(CLIPTextConfig(**config["text_encoder_2"])))
        ldm = {module.diffusers: module.ldm for module in names.unet_modules(self.family)}
        self._fill(unet, lambda name: _plain(ldm, names.UNET_ROOT, name), self.dtype)
        ldm_vae = {module.diffusers: module.ldm for module in names.vae_modules()}
        self._fill(vae, lambda name: _plain(ldm_vae, names.VAE_ROOT, name), torch.float32)
        for text, prefix in zip(texts, names.TEXT_PREFIXES[self.family]):
            self._fill(text, self._text_sources(prefix), self.dtype)
        return Parts(self.family, unet, tuple(texts), vae, noise)

    def layers(self) -> Iterator[tuple[str, StoredLayer]]:
        """Name and place of every Linear, Conv2d and norm of UNet and text encoders, as adapters name them."""
        for module in names.unet_modules(self.family):
            place = Source(f"{names.UNET_ROOT}{module.ldm}.weight")
            yield names.from_ldm(self.family, module.ldm), self._layer(place, module.diffusers, module.kind)
        for prefix in names.TEXT_PREFIXES[self.family]:
            sources, rename = self._text_sources(prefix), names.renamer(prefix)
            for module in names.text_modules(self.family, prefix):
                if module.kind != "embedding":
                    place = sources(f"{module.diffusers}.weight")
                    yield rename(module.diffusers), self._layer(place, module.diffusers, module.kind)
            if prefix == names.TEXT_PREFIXES["sdxl"][1]:
                place = sources("text_projection.weight")
                yield names.TEXT_PROJECTION, self._layer(place, "text_projection", "linear")

    def _layer(self, place: Source, path: str, kind: names.Kind) -> StoredLayer:
        if place.key not in self.shapes:
            raise BaseModelError(
                f"{self.path.name} lacks the tensor {place.key}; {WANTED}. Download it again, or use the model it was "
                "made from."
            )
        shape = list(self.shapes[place.key])
        if place.third is not None:
            shape[0] //= 3
        if place.transposed:
            shape.reverse()
        # LDM keeps some matrices as 1x1 convolutions.
        return StoredLayer(self, place, path, tuple(shape[:2] if kind == "linear" else shape))

    def _noise(self, settings: dict, prediction: Prediction) -> DDPMScheduler:
        """The noise schedule with what the file says of it, or with `prediction` where that is not "auto"."""
        if edm := next((key for key in ("edm_mean", "edm_vpred.sigma_max") if key in self.shapes), None):
            raise BaseModelError(
                f"{self.path.name} is trained on EDM's noise levels (it holds {edm}; Playground 2.5 and CosXL are so); "
                f"{WANTED} with Stable Diffusion's own noise levels."
            )
        kind = self._prediction() if prediction == "auto" else prediction
        # The marker has no meaning for noise prediction, which at zero SNR has nothing to learn from.
        zero = "ztsnr" in self.shapes and kind == "v_prediction"
        return DDPMScheduler(**settings | {"prediction_type": kind, "rescale_betas_zero_snr": zero})

    def _prediction(self) -> Literal["epsilon", "v_prediction"]:
        """From the marker key, then ModelSpec's metadata, then SD2's weights; else the noise."""
        said = (self.file.metadata() or {}).get("modelspec.prediction_type", "")
        if "v_pred" in self.shapes or said in ("v", "v_prediction"):
            return "v_prediction"
        if self.family != "sd2" or said or V_MARK not in self.shapes:
            return "epsilon"
        spread = self.file.get_tensor(V_MARK).float().std(unbiased=False)
        return "v_prediction" if spread > V_SPREAD else "epsilon"

    def _text_sources(self, prefix: str) -> Callable[[str], Source]:
        """Hugging Face's parameter name -> its place; early checkpoints and some merges lack the `text_model` level."""
        root = next(r for r in _roots(self.family, prefix) if any(key.startswith(r) for key in self.shapes))
        modules = {module.diffusers: module.ldm for module in names.text_modules(self.family, prefix)}
        openclip = names.TEXT_ROOTS[self.family, prefix][1]

        def clip(name: str) -> Source:
            full = root + names.with_text_model(name)
            short = root + names.with_text_model(name).removeprefix("text_model.")
            return Source(short if short in self.shapes else full)

        def fused(name: str) -> Source:
            if name == "text_projection.weight":
                # OpenCLIP multiplies by it from the right; some tools save it as Hugging Face's Linear.
                linear = f"{root}{name}"
                return Source(linear) if linear in self.shapes else Source(f"{root}text_projection", transposed=True)
            owner, part = names.with_text_model(name).rsplit(".", 1)
            there = root + modules[owner]
            if there.endswith("positional_embedding"):
                return Source(there)
            if there.endswith("attn.in_proj"):
                return Source(f"{there}_{part}", third=("q_proj", "k_proj", "v_proj").index(owner.rsplit(".", 1)[1]))
            return Source(f"{there}.{part}")

        return fused if openclip else clip

    def _fill(self, module: nn.Module, source: Callable[[str], Source], dtype: torch.dtype | None) -> None:
        """Give an empty module its weights, one by one; `dtype` None takes the file's."""
        wanted = {name: source(name) for name, _ in module.named_parameters()}
        if missing := sorted({place.key for place in wanted.values()} - self.shapes.keys()):
            raise BaseModelError(
                f"{self.path.name} lacks {len(missing)} tensors of the {type(module).__name__}, the first is "
                f"{missing[0]}; {WANTED}. Download it again, or use the model it was made from."
            )
        dtype = dtype or self._stored({place.key for place in wanted.values()})
        state = {
            name: self.tensor(wanted[name], name, tuple(parameter.shape)).to(dtype)
            for name, parameter in module.named_parameters()
        }
        module.load_state_dict(state, strict=False, assign=True)

    def _stored(self, keys: set[str]) -> torch.dtype:
        """The half precision that all these tensors have; float32 for mixtures and everything else."""
        kinds = {self.file.get_slice(key).get_dtype() for key in keys}
        return HALVES.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32

    def tensor(self, place: Source, name: str, shape: tuple[int, ...]) -> Tensor:
        """One parameter as the file holds it, in the parameter's shape."""
        tensor = self._stored_tensor(place) if self.fake is None else self._stand_in(place, self.fake)
        if not tensor.is_floating_point():
            raise BaseModelError(
                f"{self.path.name}: {place.key} is quantised ({tensor.dtype}); expected fp16, bf16 or fp32 weights. "
                "Use the model that it was made from."
            )
        # LDM keeps some matrices as 1x1 convolutions.
        if tensor.dim() == 4 and tensor.shape[:2] == shape:
            tensor = tensor.flatten(1)
        tensor = tensor.T.contiguous() if place.transposed else tensor
        if tensor.shape != shape:
            raise BaseModelError(
                f"{self.path.name}: {place.key} has shape {self.shapes[place.key]}, which does not give {shape} as "
                f"{name} has in {LABELS[self.family]}. Use an unmodified {LABELS[self.family]} checkpoint."
            )
        return tensor

    def _stored_tensor(self, place: Source) -> Tensor:
        if place.third is None:
            return self.file.get_tensor(place.key)
        rows = self.shapes[place.key][0] // 3
        return self.file.get_slice(place.key)[place.third * rows : (place.third + 1) * rows]

    def _stand_in(self, place: Source, fake: FakeTensorMode) -> Tensor:
        """What `_stored_tensor` gives, by its shape and precision."""
        shape = list(self.shapes[place.key])
        if place.third is not None:
            shape[0] //= 3
        kind = self.file.get_slice(place.key).get_dtype()
        with fake:
            return torch.empty(shape, dtype=FLOATS.get(kind, torch.uint8))


@dataclass(frozen=True)
class StoredLayer:
    """A weight in a checkpoint, read when it is called. path: diffusers' or Hugging Face's, of its module."""

    reader: _Reader
    place: Source
    path: str
    shape: tuple[int, ...]

    def __call__(self) -> Tensor:
        with _reading(self.reader.path):
            return self.reader.tensor(self.place, self.path, self.shape)


def _plain(modules: Mapping[str, str], root: str, name: str) -> Source:
    owner, part = name.rsplit(".", 1)
    return Source(f"{root}{modules[owner]}.{part}")
