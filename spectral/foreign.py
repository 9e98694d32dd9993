"""Telling what a file is that is not a spectral adapter: one table by first bytes, one by tensor names."""

from __future__ import annotations

from collections.abc import Iterable

# First bytes, after white space where the file is text.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive or a PyTorch .pt/.ckpt file, which can run code when opened"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x80\x02", "a Python pickle (.pt, .ckpt, .bin), which can run code when opened"),
    (b"\x80\x03", "a Python pickle (.pt, .ckpt, .bin), which can run code when opened"),
    (b"\x80\x04", "a Python pickle (.pt, .ckpt, .bin), which can run code when opened"),
    (b"\x80\x05", "a Python pickle (.pt, .ckpt, .bin), which can run code when opened"),
    (b"GGUF", "a GGUF model"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"RIFF", "a WebP picture or a sound"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
)
_TEXT: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, a short text that stands for the file (run `git lfs pull`)"),
    (b"<", "a web page, saved instead of the file (the download needs a login or another link)"),
    (b"{", "a JSON text, perhaps an error message saved instead of the file"),
)

# The first row whose marks all match a file's tensor names decides; a mark is looked for inside the name.
_BY_NAME: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("model.diffusion_model.",), "a full checkpoint", "Load it as the base model"),
    ((".dora_scale",), "a DoRA file", "Load it with the LoRA loader"),
    ((".hada_w1_a",), "a LoHa file", "Load it with the LoRA loader"),
    ((".hada_w1_b",), "a LoHa file", "Load it with the LoRA loader"),
    ((".lokr_w",), "a LoKr file", "Load it with the LoRA loader"),
    ((".oft_blocks",), "an OFT or BOFT file", "Load it with the LoRA loader"),
    ((".oft_diag",), "an OFT file", "Load it with the LoRA loader"),
    ((".lora_mid.",), "a LoCon file", "Load it with the LoRA loader"),
    ((".lora_up.",), "a LoRA file", "Load it with the LoRA loader"),
    ((".lora_down.",), "a LoRA file", "Load it with the LoRA loader"),
    ((".lora_A.",), "a LoRA file (PEFT or diffusers)", "Load it with the LoRA loader"),
    ((".lora.up.",), "a LoRA file (diffusers)", "Load it with the LoRA loader"),
    ((".on_input",), "an IA3 file", "Load it with the LoRA loader"),
    ((".a1.weight", ".b1.weight"), "a GLoRA file", "Load it with the LoRA loader"),
    ((".diff",), "a difference file (.diff)", "Load it with the LoRA loader"),
    (("emb_params",), "a textual inversion embedding", "Put it into the folder of embeddings"),
    (("string_to_param",), "a textual inversion embedding", "Put it into the folder of embeddings"),
    (("clip_l",), "a text encoder or an embedding", "Choose an adapter file"),
    (("control_model.",), "a ControlNet", "Load it with the ControlNet loader"),
    (("controlnet_cond_embedding",), "a ControlNet", "Load it with the ControlNet loader"),
    (("first_stage_model.",), "a VAE or a checkpoint", "Load it with the VAE loader"),
    (("down_blocks.", "conv_in.weight"), "a UNet or VAE of diffusers", "Load it as the base model"),
    (("text_model.embeddings.",), "a text encoder", "Load it with the CLIP loader"),
    (("decoder.", "encoder."), "a VAE", "Load it with the VAE loader"),
    (
        (".delta",),
        "a file of spectral shifts of svdiff-pytorch, which names no base",
        "Make an adapter of it with `python -m spectral_adapters convert`",
    ),
)


def kind_of_bytes(head: bytes) -> str | None:
    """What a file is by its first bytes (64 are enough), or None where it may be safetensors."""
    if not head:
        return "an empty file"
    if head[4:9] == b"\0\0\0\0{":
        # Safetensors begins with a length, whose low bytes may be those of any magic: 0x580 looks like a pickle.
        return None
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None) or next(
        (kind for magic, kind in _TEXT if text.startswith(magic)), None
    )


def kind_of_names(names: Iterable[str]) -> tuple[str, str] | None:
    """What a safetensors file is by its tensor names, and what to do with it; None where nothing fits."""
    names = list(names)
    for marks, kind, advice in _BY_NAME:
        if names and all(any(mark in name for name in names) for mark in marks):
            return kind, advice
    return None
