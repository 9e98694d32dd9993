"""What a base model is and the size of its pictures, from headers and settings files alone: quick, and without torch.

Loading the base finds the same (`dataset.sizes_for`); this is for forms, which ask before anything is loaded.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .pictures import FULL_STEP

ASSETS = Path(__file__).parent.parent / "assets"
FAMILIES = ("sd1", "sd2", "sdxl")
_MOST_HEADER = 64 << 20
_CROSS = ".attn2.to_k.weight"
# This norm's bias spreads wider in Stability's v-prediction weights than in those that predict noise. ComfyUI tells
# SD2 checkpoints apart by the same number (comfy/supported_models.py, class SD20).
V_MARK = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_SPREAD = 0.09
_WIDTHS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Native:
    """resolution: side of the square pictures the base was made for. multiple: sides must be divisible by it. step:
    sides of its buckets are multiples of this. All in pixels."""

    resolution: int
    multiple: int
    step: int


def native(base: str, prediction: str = "auto") -> Native | None:
    """What a base takes: "tiny", a single file, or a diffusers folder; None where its header does not say.

    prediction: as in TrainSpec, since SD2's two kinds differ in size.
    """
    path = ASSETS / "tiny_base" if base == "tiny" else Path(base)
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path, prediction)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None  # loading the base says what is wrong with it


@dataclass(frozen=True)
class Kind:
    """family: "sd1", "sd2" or "sdxl". v_prediction: whether the UNet predicts velocity. zero_snr: whether its noise
    levels end in pure noise."""

    family: str
    v_prediction: bool
    zero_snr: bool


def kind(base: str, prediction: str = "auto") -> Kind | None:
    """Which model a single file or a diffusers folder holds; None where its header does not say."""
    path = Path(base)
    try:
        return _kind_of_folder(path, prediction) if path.is_dir() else _kind_of_file(path, prediction)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None  # loading the base says what is wrong with it


def _kind_of_folder(folder: Path, prediction: str) -> Kind:
    family = _family(_json(folder / "unet" / "config.json")["cross_attention_dim"])
    settings = _json(folder / "scheduler" / "scheduler_config.json")
    said = settings.get("prediction_type", "epsilon") if prediction == "auto" else prediction
    v_prediction = said == "v_prediction"
    return Kind(family, v_prediction, v_prediction and bool(settings.get("rescale_betas_zero_snr")))


def _kind_of_file(path: Path, prediction: str) -> Kind:
    with path.open("rb") as file:
        header, length = _header(file)
        family = _family(_text_width(header))
        # V_MARK tells the kinds of SD2 alone.
        known = header if family == "sd2" else {name: entry for name, entry in header.items() if name != V_MARK}
        v_prediction = _predicts_v(file, known, 8 + length, prediction)
    return Kind(family, v_prediction, v_prediction and "ztsnr" in header)


def _header(file: Any) -> tuple[Any, int]:
    """The header of a safetensors file and its length. Raises ValueError."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MOST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    return json.loads(file.read(length)), length


def _family(width: int) -> str:
    """The family whose texts have this width. Raises ValueError."""
    family = next((name for name in FAMILIES if _config(name)["unet"]["cross_attention_dim"] == width), None)
    if family is None:
        raise ValueError(f"texts of width {width}")
    return family


def _of_folder(folder: Path) -> Native:
    unet, vae = (_json(folder / part / "config.json") for part in ("unet", "vae"))
    known = unet["cross_attention_dim"] in {_config(family)["unet"]["cross_attention_dim"] for family in FAMILIES}
    return _of_configs(unet, vae, known)


def _of_file(path: Path, prediction: str) -> Native:
    with path.open("rb") as file:
        header, length = _header(file)
        family = _family(_text_width(header))
        config = _config(family)
        unet = config["unet"]
        if family == "sd2" and not _predicts_v(file, header, 8 + length, prediction):
            unet["sample_size"] = unet["sample_size"] * 2 // 3  # noise-predicting SD2 models are of 512 pixels
    return _of_configs(unet, config["vae"], True)


def _text_width(header: Any) -> int:
    if not isinstance(header, dict):
        raise ValueError(f"a header that is a {type(header).__name__}")
    return next((entry["shape"][1] for key, entry in header.items() if key.endswith(_CROSS)), 0)


def _of_configs(unet: Mapping[str, Any], vae: Mapping[str, Any], known: bool) -> Native:
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    multiple = scale * 2 ** (len(unet["block_out_channels"]) - 1)
    return Native(int(unet["sample_size"]) * scale, multiple, max(multiple, FULL_STEP) if known else multiple)


def _predicts_v(file: Any, header: Mapping[str, Any], start: int, prediction: str) -> bool:
    """Whether an SD2 file predicts velocity, asked in the order in which loading asks."""
    said = header.get("__metadata__", {}).get("modelspec.prediction_type", "")
    if prediction != "auto":
        return prediction == "v_prediction"
    if "v_pred" in header or said in ("v", "v_prediction"):
        return True
    if said or V_MARK not in header:
        return False
    begin, end = header[V_MARK]["data_offsets"]
    file.seek(start + begin)
    values = np.frombuffer(file.read(min(end - begin, 1 << 20)), _WIDTHS[header[V_MARK]["dtype"]])
    if header[V_MARK]["dtype"] == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return bool(values.astype(np.float32).std() > V_SPREAD)


def _config(family: str) -> dict[str, Any]:
    return _json(ASSETS / "configs" / f"{family}.json")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
