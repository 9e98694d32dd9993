"""Drives a private AUTOMATIC1111. SPECTRAL_A1111_DIR and SPECTRAL_A1111_PYTHON: see `webui_driver`.

SPECTRAL_A1111_HF_HOME: a cache of the Hugging Face hub that holds the tokenizer and the settings of
openai/clip-vit-large-patch14; the user's own where it is not set.
"""

import json
from pathlib import Path

import random_checkpoints
from safetensors.torch import load_file, save_file
from webui_driver import WebUI

from spectral_adapters.spectral import names

# Narrow, with the structure of Stable Diffusion 1: what the web UI's and the checkpoint's settings say of widths.
WIDTHS = {"model_channels: 320": "model_channels: 32", "ch: 128": "ch: 32"}
CONFIG = {
    "unet": {"block_out_channels": [32, 64, 128, 128]},
    "vae": {"block_out_channels": [32, 64, 128, 128], "norm_num_groups": 32},
}
_LAST_NORM = "cond_stage_model.transformer.text_model.final_layer_norm.bias"


def write_checkpoint(path: Path) -> Path:
    """A checkpoint of random weights (280 MB) whose pictures can be compared."""
    config = json.loads((random_checkpoints.CONFIGS / "sd1.json").read_text(encoding="utf-8"))
    for part, widths in CONFIG.items():
        config[part] |= widths
    state = load_file(random_checkpoints.write(path, config=config))
    state[_LAST_NORM] += 0.05  # the web UI divides by the mean of what the text encoder gives
    save_file(state, path)
    return path


def layer_keys() -> dict[str, str]:
    """Kohya layer name -> key of the checkpoint: like sample_adapters', of Stable Diffusion 1's own layers."""
    blocks = ("down_blocks_0_attentions_0", "mid_block_attentions_0", "up_blocks_3_attentions_1")
    layers = [name for name in names.unet_paths("sd1") if any(f"_{b}_" in name for b in blocks) and "ff" not in name]
    layers += ["lora_unet_mid_block_resnets_0_conv1"]
    layers += [f"lora_te_text_model_encoder_layers_{part}" for part in ("3_self_attn_q_proj", "7_mlp_fc1")]
    return {name: names.checkpoint_key("sd1", name) for name in layers}


def norm_keys() -> dict[str, str]:
    """Those of norms, most of which the web UI's own table of layers leaves out."""
    wanted = ("conv_norm_out", "mid_block_", "layers_3_layer_norm1", "final_layer_norm")
    layers = [name for name in names.norm_paths("sd1") if any(part in name for part in wanted)]
    return {name: names.checkpoint_key("sd1", name) for name in layers}


class A1111(WebUI):
    """One process of AUTOMATIC1111's web UI."""

    name = "AUTOMATIC1111"
    host = "A1111"
    layers = 'sum(hasattr(known, "spectral_adapters_type") for known in networks.module_types)'
    arguments = ("--use-cpu", "all", "--no-half", "--do-not-download-clip", "--skip-install")

    def environment(self) -> dict[str, str]:
        home = self.given("HF_HOME")
        return {"TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"} | ({"HF_HOME": home} if home else {})

    def describe(self, checkpoint: Path) -> None:
        """Settings for a checkpoint of `write_checkpoint`, which the web UI takes from the file beside it."""
        text = (self.root / "configs" / "v1-inference.yaml").read_text()
        for found, wanted in WIDTHS.items():
            assert found in text, f"expected {found!r} in the web UI's settings of Stable Diffusion 1"
            text = text.replace(found, wanted)
        checkpoint.with_suffix(".yaml").write_text(text)

    def use(self, checkpoint: str) -> None:
        """Loads a checkpoint, by its name without ending."""
        status, answer = self.call("/sdapi/v1/options", {"sd_model_checkpoint": f"{checkpoint}.safetensors"})
        assert status == 200, answer
