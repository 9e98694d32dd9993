"""Narrow models in their real structure for a real sd-scripts: it builds what the constants of its code say.

A run takes seconds and 2 GB instead of a minute and 7 GB. Widths are multiples of 64: sd-scripts has groups of norms
of 32 and, in SDXL, heads of 64 channels in place.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import random_checkpoints
from safetensors.torch import load_file, save_file

from spectral_adapters.spectral.names import Family
from spectral_adapters.trainer import configs

TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
TEXT_2 = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "projection_dim": 64}
VAE = {"block_out_channels": [16, 24, 32, 32], "norm_num_groups": 8}
WIDTHS, WIDTHS_XL = [64, 128, 128, 128], [64, 128, 256]
CONTEXT_XL, ADDED = 48 + 64, 64 + 6 * 256
UNET = "library.original_unet"
UNET_XL = "library.sdxl_original_unet"
UTIL = "library.model_util"
_UNET = {"BLOCK_OUT_CHANNELS": WIDTHS, "TIMESTEP_INPUT_DIM": WIDTHS[0], "TIME_EMBED_DIM": 4 * WIDTHS[0]}


@dataclass(frozen=True)
class Model:
    """One narrow model. ours: changes of this package's own configuration. theirs: what `sd_scripts_inside` is told."""

    script: str
    arguments: tuple[str, ...]
    ours: dict[str, dict]
    theirs: dict[str, dict]


MODELS: dict[Family, Model] = {
    "sd1": Model(
        "train_network",
        (),
        {"unet": {"block_out_channels": WIDTHS, "cross_attention_dim": 48}, "text_encoder": TEXT},
        {"constants": {UNET: _UNET, UTIL: {"UNET_PARAMS_CONTEXT_DIM": 48}}, "text": {"768": TEXT}},
    ),
    "sd2": Model(
        "train_network",
        ("--v2",),
        {
            "unet": {"block_out_channels": WIDTHS, "cross_attention_dim": 64, "attention_head_dim": [1, 2, 2, 2]},
            "text_encoder": TEXT_2,
        },
        {
            "constants": {
                UNET: _UNET,
                UTIL: {"V2_UNET_PARAMS_CONTEXT_DIM": 64, "V2_UNET_PARAMS_ATTENTION_HEAD_DIM": [1, 2, 2, 2]},
            },
            "text": {"1024": TEXT_2},
        },
    ),
    "sdxl": Model(
        "sdxl_train_network",
        (),
        {
            "unet": {
                "block_out_channels": WIDTHS_XL,
                "attention_head_dim": [1, 2, 4],
                "cross_attention_dim": CONTEXT_XL,
                "projection_class_embeddings_input_dim": ADDED,
            },
            "text_encoder": TEXT,
            "text_encoder_2": TEXT_2,
        },
        {
            "constants": {UNET_XL: {"MODEL_CHANNELS": 64, "TIME_EMBED_DIM": 256, "ADM_IN_CHANNELS": ADDED}},
            "text": {"768": TEXT, "1280": TEXT_2},
            "context": CONTEXT_XL,
        },
    ),
}


def plan(family: Family) -> dict:
    """What `sd_scripts_inside` is told of the model."""
    model = MODELS[family]
    return {"script": model.script, "narrow": {"vae": VAE, "context": None, **model.theirs}}


def config(family: Family) -> dict:
    """This package's configuration of the narrow model."""
    found = json.loads((configs.ASSETS / "configs" / f"{family}.json").read_text(encoding="utf-8"))
    for part, changes in {"vae": VAE, **MODELS[family].ours}.items():
        found[part] |= changes
    return found


@contextmanager
def readable(family: Family, folder: Path) -> Iterator[None]:
    """This package's reader of checkpoints expects the family to be narrow meanwhile."""
    changed = Path(shutil.copytree(configs.ASSETS / "configs", folder / f"configs-{family}", dirs_exist_ok=True))
    (changed / f"{family}.json").write_text(json.dumps(config(family)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "CONFIGS", changed)
        yield


def write(family: Family, path: Path) -> Path:
    """A random checkpoint of the narrow model."""
    random_checkpoints.write(path, family, config=config(family))
    return symmetric_projection(path) if family == "sdxl" else path


def symmetric_projection(checkpoint: Path) -> Path:
    """sd-scripts (0.10.1) reads the pooled text's projection without transposing it, as OpenCLIP's layout asks.

    So its pooled text of SDXL is another than ComfyUI's, diffusers' and ours. Here that shall make no difference.
    """
    tensors, key = load_file(checkpoint), "conditioner.embedders.1.model.text_projection"
    tensors[key] = (tensors[key] + tensors[key].T) / 2
    save_file(tensors, checkpoint)
    return checkpoint
