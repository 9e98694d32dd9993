"""Finding CLIP's tokenizer without a network: a given folder, ComfyUI's copy, Hugging Face's cache.

Single-file checkpoints carry no tokenizer. SD1, SD2 and both encoders of SDXL share one vocabulary; they differ in what
follows the end of the text: CLIP-L repeats the end token, OpenCLIP (SD2, SDXL's second) has zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import CLIPTokenizer

from ..spectral.names import Family
from .base import BaseModelError

HUB_TOKENIZER = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "tokenizer.json")
VOCABULARY = ("vocab.json", "merges.txt")


def tokenizers_for(family: Family | None, given: str | None) -> tuple[CLIPTokenizer, ...]:
    """One tokenizer per text encoder of the family, each with its own padding. Raises BaseModelError."""
    if family == "sd2":
        return (_padded_with_zeros(find_tokenizer(given)),)
    if family == "sdxl":
        return (find_tokenizer(given), _padded_with_zeros(find_tokenizer(given)))
    return (find_tokenizer(given),)


def _padded_with_zeros(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    # Set afterwards: given to from_pretrained, "!" (token 0) would count as special and change texts that contain it.
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def find_tokenizer(given: str | None) -> CLIPTokenizer:
    """CLIP's tokenizer from the given folder, else ComfyUI's copy, else the Hugging Face cache. No network.

    Raises BaseModelError saying how to get one.
    """
    for folder in [Path(given).expanduser()] if given else _comfy_folders():
        if holds_tokenizer(folder):
            return _read(folder)
    if given:
        raise BaseModelError(
            f"{given} has neither {' nor '.join(FILES)}, so it is no CLIP tokenizer. Give the folder of one with "
            "--tokenizer."
        )
    try:
        found = CLIPTokenizer.from_pretrained(HUB_TOKENIZER, local_files_only=True)
    except OSError as error:
        raise BaseModelError(_NONE) from error
    # transformers 5 makes an empty tokenizer of a cache that has none.
    if len(found) < _LEAST:
        raise BaseModelError(_NONE)
    return found


_LEAST = 1000  # words of a real vocabulary
_NONE = (
    "no CLIP tokenizer was found, and a single-file checkpoint carries none. Give a folder with vocab.json "
    "and merges.txt with --tokenizer, or set COMFYUI_DIR to a ComfyUI folder (it ships one), or fetch it once: "
    f"`huggingface-cli download {HUB_TOKENIZER} vocab.json merges.txt tokenizer_config.json`."
)


def vocabulary(given: str | None) -> Path | None:
    """The folder with CLIP's vocabulary as two files: the given one, else ComfyUI's copy, else the Hugging Face cache.

    None where neither is there. Raises BaseModelError where the given one lacks the files.
    """
    folders = [Path(given).expanduser()] if given else [*_comfy_folders(), *_cached_folder()]
    found = next((each for each in folders if all((each / name).is_file() for name in VOCABULARY)), None)
    if given and found is None:
        raise BaseModelError(f"{given} lacks {' or '.join(VOCABULARY)}; expected the folder of CLIP's tokenizer")
    return found


def _cached_folder() -> Iterable[Path]:
    path = try_to_load_from_cache(HUB_TOKENIZER, VOCABULARY[0])
    return [Path(path).parent] if isinstance(path, str) else []


def holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _read(folder: Path) -> CLIPTokenizer:
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"the tokenizer in {folder} cannot be read ({error}). Expected CLIP's vocab.json and merges.txt; copy them "
            "again."
        ) from error


def _comfy_folders() -> Iterable[Path]:
    """Where ComfyUI ships the tokenizer: below COMFYUI_DIR, or around this pack when it lies in custom_nodes."""
    roots = [Path(os.environ["COMFYUI_DIR"])] if os.environ.get("COMFYUI_DIR") else []
    pack = Path(__file__).absolute().parent.parent
    if pack.parent.name == "custom_nodes":
        roots.append(pack.parent.parent)
    return (root / "comfy" / "sd1_tokenizer" for root in roots)
