"""Base models: what a file is, where the tokenizer comes from, and the tiny base."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from spectral_adapters.trainer import configs, models, single_file, tokenizers
from spectral_adapters.trainer.base import BaseModelError

TINY = "tiny"
TINY_TOKENIZER = models.ASSETS / "tiny_base" / "tokenizer"
ROOT = "model.diffusion_model."
CONV_IN, PROJ, TO_K, LABEL = (
    f"{ROOT}{path}.weight"
    for path in (
        "input_blocks.0.0",
        "input_blocks.1.1.proj_in",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
        "label_emb.0.0",
    )
)


@pytest.fixture(scope="module")
def tiny() -> models.Base:
    return models.load_base(TINY)


# --- what a file is


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ({CONV_IN: (320, 4, 3, 3), PROJ: (320, 320, 1, 1), TO_K: (320, 768)}, "sd1"),
        ({CONV_IN: (320, 4, 3, 3), PROJ: (320, 320), TO_K: (320, 1024)}, "sd2"),
        ({CONV_IN: (320, 4, 3, 3), TO_K: (640, 2048), LABEL: (1280, 2816)}, "sdxl"),
        ({CONV_IN: (384, 4, 3, 3), TO_K: (768, 1280), LABEL: (1536, 2560)}, "a Stable Diffusion XL refiner"),
        ({CONV_IN: (320, 4, 3, 3), TO_K: (320, 1024), LABEL: (1280, 1536)}, "unCLIP"),
        ({CONV_IN: (320, 4, 3, 3), TO_K: (320, 640)}, r"an unknown UNet with cross-attention width [640]"),
        ({CONV_IN: (320, 4, 3, 3), TO_K: (640, 2048)}, "an unknown UNet"),
        ({CONV_IN: (320, 9, 3, 3), PROJ: (320, 320, 1, 1), TO_K: (320, 768)}, "made for inpainting"),
        ({CONV_IN: (320, 9, 3, 3), TO_K: (640, 2048), LABEL: (1280, 2816)}, "made for inpainting"),
        ({CONV_IN: (320, 8, 3, 3), TO_K: (320, 768)}, "editing by instruction"),
        ({CONV_IN: (320, 5, 3, 3), TO_K: (320, 1024)}, "made for depth"),
        ({CONV_IN: (320, 8, 3, 3), f"{ROOT}input_blocks.1.1.time_stack.0.norm1.weight": (320,)}, "a video model"),
        ({f"{ROOT}double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "a Flux model"),
        ({f"{ROOT}joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}, "a Stable Diffusion 3 model"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (8, 320)}, "a LoRA, not a base model"),
        ({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": (320, 8)}, "a LyCORIS adapter"),
        ({"lora_unet_mid_block_attentions_0_proj_in.frame_u": (320, 8)}, "a spectral adapter, not a base model"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "a ControlNet"),
        ({"conv_in.weight": (320, 4, 3, 3)}, "one part of a diffusers model"),
        ({"encoder.conv_in.weight": (1,), "encoder.down_blocks.0.resnets.0.conv1.weight": (1,)}, "one part of a diff"),
        ({"input_blocks.0.0.weight": (320, 4, 3, 3)}, "a UNet alone"),
        ({"encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3)}, "a VAE alone"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768)}, "a text encoder alone"),
        ({"something": (2,)}, "no Stable Diffusion checkpoint"),
    ],
)
def test_single_files_are_named_for_what_they_are(shapes, found):
    assert found in single_file.identify(shapes)


def test_other_files_are_declined_with_a_sentence(tmp_path):
    other = tmp_path / "inpaint.safetensors"
    save_file({CONV_IN: torch.zeros(1, 9, 3, 3), TO_K: torch.zeros(1, 768)}, other)
    with pytest.raises(BaseModelError, match=r"inpaint.safetensors is a model that was made for inpainting.*expected"):
        models.load_base(str(other))
    for name in ("model.ckpt", "model.pt"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        with pytest.raises(BaseModelError, match=r"pickled checkpoint.*Convert it to \.safetensors"):
            models.load_base(str(tmp_path / name))
    (tmp_path / "cut.safetensors").write_bytes(other.read_bytes()[:40])
    with pytest.raises(BaseModelError, match="cannot be read as a safetensors file"):
        models.load_base(str(tmp_path / "cut.safetensors"))
    with pytest.raises(BaseModelError, match="no base model at"):
        models.load_base(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"PK\x03\x04 archive of torch.save", "is a pickled checkpoint"),
        (b"\x80\x02}q\x00", "is a pickled checkpoint"),
        (b"GGUF\x03\x00\x00\x00", "is a quantised GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"", "cannot be read as a safetensors file"),
    ],
)
def test_other_contents_under_the_right_name_are_recognised(start, message, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(start)
    with pytest.raises(BaseModelError, match=message):
        models.load_base(str(tmp_path / "model.safetensors"))


def test_other_folders_are_declined_with_a_sentence(tmp_path):
    with pytest.raises(BaseModelError, match=r"has no model_index\.json"):
        models.load_base(str(tmp_path))
    with pytest.raises(BaseModelError, match=r"holds one part of a model; give the folder above"):
        models.load_base(str(models.ASSETS / "tiny_base" / "unet"))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(BaseModelError, match=r"holds a FluxPipeline.*takes a StableDiffusionPipeline"):
        models.load_base(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BaseModelError, match=r"pickled weights.*expected \.safetensors"):
        models.load_base(str(tmp_path))


# --- tokenizers


def test_without_a_tokenizer_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "HUB_TOKENIZER", str(tmp_path / "not-cached"))
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    with pytest.raises(BaseModelError, match=r"--tokenizer.*COMFYUI_DIR"):
        tokenizers.find_tokenizer(None)
    monkeypatch.setattr(tokenizers, "HUB_TOKENIZER", "nobody/has-this")
    with pytest.raises(BaseModelError, match=r"--tokenizer.*COMFYUI_DIR"):
        tokenizers.find_tokenizer(None)
    with pytest.raises(BaseModelError, match=r"neither vocab\.json nor tokenizer\.json"):
        tokenizers.find_tokenizer(str(tmp_path))
    host = tmp_path / "comfy" / "sd1_tokenizer"
    host.parent.mkdir()
    host.symlink_to(TINY_TOKENIZER)
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert tokenizers.find_tokenizer(None)("a mug").input_ids


def test_padding_is_the_end_of_text_for_clip_l_and_zero_for_openclip():
    """And being the padding changes nothing about token 0 where it is written in a caption."""
    for family, pads in (("sd1", ["end"]), ("sd2", ["zero"]), ("sdxl", ["end", "zero"])):
        found = tokenizers.tokenizers_for(family, str(TINY_TOKENIZER))
        assert len(found) == len(pads)
        for tokenizer, pad in zip(found, pads):
            plain = tokenizer("a mug, a cat").input_ids
            padded = tokenizer("a mug, a cat", padding="max_length", max_length=20).input_ids
            assert padded[: len(plain)] == plain == found[0]("a mug, a cat").input_ids
            assert set(padded[len(plain) :]) == {0 if pad == "zero" else plain[-1]}


# --- the tiny base


def test_the_bases_own_bits_are_kept(tiny):
    """fp16 files are widened, never rounded again: fingerprints made here are those of the file."""
    assert all(torch.equal(p, p.half().float()) and p.dtype == torch.float32 for p in tiny.unet.parameters())
    narrow = models.load_base(TINY, dtype=None)
    assert next(narrow.unet.parameters()).dtype == next(narrow.text_encoder.parameters()).dtype == torch.float16
    assert next(narrow.vae.parameters()).dtype == torch.float32
    wide = tiny.weights()
    assert all(torch.equal(wide[name], weight.float()) for name, weight in narrow.weights().items())


def test_captions_are_padded_and_cut_to_the_text_encoders_length(tiny):
    assert tiny.tokenizer.model_max_length == tiny.text_encoder.config.max_position_embeddings
    assert tiny.tokens(["a photo " * 60]).shape == (1, tiny.tokenizer.model_max_length)
    assert tiny.is_cut("a photo " * 60) and not tiny.is_cut("a photo")


# --- full-size architectures without weights


@pytest.mark.parametrize(
    ("family", "part", "matrices", "gains"),
    [
        ("sd1", "unet", 222_696, 100_160),
        ("sd2", "unet", 225_768, 100_160),
        ("sdxl", "unet", 909_800, 294_080),
        ("sdxl", "text_encoder", 55_296, 19_200),
        ("sdxl", "text_encoder_2", 247_040, 83_200),
    ],
)
def test_the_bundled_settings_have_the_published_sizes(family, part, matrices, gains):
    """Singular values of all matrices, and norm gains, as counted on the original models."""
    kinds = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    settings = configs.read_config(family)[part]
    with torch.device("meta"):
        module = kinds[part](**settings) if part == "unet" else kinds[part](CLIPTextConfig(**settings))
    layers = [m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert sum(min(w.shape[0], w[0].numel()) for w in layers) == matrices
    assert sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)) == gains
