"""Which layer, and which part of its change, a tensor of a LoRA file is: every spelling in use, to the names of files.

    kohya, LyCORIS   lora_unet_down_blocks_0_..._to_q.lora_up.weight       SD1/2 also by LDM paths, SDXL by diffusers'
    SimpleTuner      lycoris_down_blocks_0_..._to_q.lokr_w1
    ComfyUI          diffusion_model.input_blocks.1.1...to_q.lora_up.weight, text_encoders.clip_l.transformer....
    diffusers        unet.down_blocks.0...to_q.lora_A.weight, ...to_q.lora.up.weight, ...processor.to_q_lora.up.weight
    PEFT             base_model.model.down_blocks.0...to_q.lora_A.weight

What a path means depends on the family: the blocks of SD1 and SDXL share many names. A family must know nearly all
layers of a file; where several do, the width of its text decides, then a second text encoder, then the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Literal, NamedTuple

from .names import CROSS_WIDTH, FAMILIES, TEXT_PREFIXES, UNET_PREFIX, Family, text_paths, unet_spellings

Part = Literal[
    "up", "down", "mid", "alpha", "dora_scale", "magnitude", "diff", "diff_b", "w_norm", "b_norm", "hada_w1_a",
    "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2",
    "lokr_w2_a", "lokr_w2_b", "lokr_t2",
]  # fmt: skip
Space = Literal["unet", "te", "te1", "te2", "other"]

# The end of a key and the part it is; the first that fits decides. PEFT puts the adapter's name before `weight`.
_ENDS: tuple[tuple[re.Pattern[str], Part | None], ...] = (
    (re.compile(r"[._]lora[._]up(\.weight)?$|\.lora_linear_layer\.up\.weight$"), "up"),
    (re.compile(r"[._]lora[._]down(\.weight)?$|\.lora_linear_layer\.down\.weight$"), "down"),
    (re.compile(r"\.lora_B(\.(?!bias$)\w+)?(\.weight)?$"), "up"),
    (re.compile(r"\.lora_A(\.(?!bias$)\w+)?(\.weight)?$"), "down"),
    (re.compile(r"\.lora_mid\.weight$"), "mid"),
    (re.compile(r"\.lora_magnitude_vector(\.\w+)?(\.weight)?$"), "magnitude"),
    (re.compile(r"\.(hada_[wt][12](?:_[ab])?|lokr_w[12](?:_[ab])?|lokr_t2)(\.default)?$"), None),
    (re.compile(r"\.(alpha|dora_scale|diff|diff_b|w_norm|b_norm)$"), None),
)
_SPACES: tuple[tuple[str, Space], ...] = (
    ("lora_unet_", "unet"),
    ("lycoris_", "unet"),
    ("lora_te1_", "te1"),
    ("lora_te2_", "te2"),
    ("lora_te_", "te"),
    ("unet.", "unet"),
    ("diffusion_model.", "unet"),
    ("model.diffusion_model.", "unet"),
    ("text_encoder_2.", "te2"),
    ("text_encoder.", "te"),
    ("text_encoders.clip_g.transformer.", "te2"),
    ("text_encoders.clip_l.transformer.", "te"),
    ("text_encoders.clip_h.transformer.", "te"),
    ("clip_g.transformer.", "te2"),
    ("clip_l.transformer.", "te"),
    ("clip_h.transformer.", "te"),
    ("text_model.", "te"),
)
_BLOCKS = re.compile(
    r"(down_blocks|up_blocks|mid_block|conv_in|conv_norm_out|conv_out|time_embedding|add_embedding"
    r"|input_blocks|output_blocks|middle_block)([._]|$)"
)
# diffusers' first text LoRAs named the projections as a UNet's attention does.
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_SURE = 0.95  # the share of a file's layers that its family must know: some tools add a few of their own
_INPUTS = ("down", "diff", "hada_w1_b")  # parts as wide as the layer's input
_VERSIONS: tuple[tuple[str, Family], ...] = (
    ("sdxl", "sdxl"),
    ("stable-diffusion-xl", "sdxl"),
    ("sd_v2", "sd2"),
    ("stable-diffusion-v2", "sd2"),
)


Place = tuple[Space, str]


class Key(NamedTuple):
    """A tensor's place as its file spells it: the model it belongs to, the path with underscores, the part."""

    space: Space
    path: str
    part: Part


def read_key(key: str) -> Key | None:
    """The place of a tensor, or None where its name's end is none of a LoRA's."""
    for pattern, part in _ENDS:
        if (found := pattern.search(key)) is not None:
            return Key(*read_place(key[: found.start()]), part or found[1])
    return None


def read_place(path: str) -> Place:
    """The model that a layer's path, in any spelling, belongs to, and the path in it, with underscores."""
    path = path.removeprefix("base_model.model.")
    for prefix, space in _SPACES:
        if path.startswith(prefix):
            kept = path if prefix == "text_model." else path[len(prefix) :]
            return space, _spelled(kept, space)
    # diffusers' attention processors name no model: only UNets had them.
    if _BLOCKS.match(path):
        return "unet", _spelled(path, "unet")
    return "other", path.replace(".", "_")


def _spelled(path: str, space: Space) -> str:
    path = path.replace(".processor.", ".")
    if space == "unet":
        return (path + ".0" if path.endswith(".to_out") else path).replace(".", "_")
    head, _, last = path.rpartition(".")
    path = f"{head}.{_TEXT_PROJECTIONS.get(last, last)}".replace(".", "_").lstrip("_")
    return f"text_model_{path}" if path.startswith(("encoder_", "embeddings_", "final_layer_norm")) else path


def layer_names(
    places: Collection[Place], width: int | None, metadata: Mapping[str, str]
) -> tuple[dict[Place, str], Family | None]:
    """The name that files of this package give each place, and the family they were read as.

    width: the inputs of the cross-attention's keys and values, where they are known. Layers that no family knows keep
    the spelling of their file, with kohya's prefix.
    """
    family = _family(places, width, metadata)
    return {place: _name(*place, family) for place in sorted(places)}, family


def text_width(keys: Mapping[str, Key], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The inputs of the cross-attention's keys and values, where a part of one shows them."""
    for key, found in keys.items():
        if found.part in _INPUTS and found.path.endswith(("attn2_to_k", "attn2_to_v")) and len(shapes[key]) >= 2:
            return shapes[key][1]
    return None


def _name(space: Space, path: str, family: Family | None) -> str:
    if space == "unet":
        return (_index(family).get(path) if family else None) or UNET_PREFIX + path
    if space == "other":
        return path if path.startswith("lora_") else f"lora_{path}"
    if space == "te2":
        return f"lora_te2_{path}"
    prefix = TEXT_PREFIXES[family][0] if family else "lora_te1_" if space == "te1" else "lora_te_"
    return prefix + path


def _family(places: Collection[Place], width: int | None, metadata: Mapping[str, str]) -> Family | None:
    paths = {path for space, path in places if space == "unet"}
    spaces = {space for space, _ in places}
    if not paths:
        return _family_of_text(spaces, {path for space, path in places if space in ("te", "te1")}, metadata)
    if width is not None and width not in CROSS_WIDTH:
        return None
    known = {family: len(paths & _index(family).keys()) for family in FAMILIES}
    least = max(_SURE * len(paths), *known.values())
    fitting = [family for family in FAMILIES if known[family] >= least]
    said = [CROSS_WIDTH.get(width or 0), "sdxl" if "te2" in spaces else None, _said(metadata), *fitting]
    return next((family for family in said if family in fitting), None)


def _family_of_text(spaces: Collection[Space], paths: set[str], metadata: Mapping[str, str]) -> Family | None:
    said = _said(metadata)
    if "te2" in spaces or ("te1" in spaces and said != "sd1"):
        return "sdxl"
    if "te" not in spaces:
        return None
    if said is not None:
        return said
    known = {name.removeprefix("lora_te_") for name in text_paths("sd1")}
    return "sd1" if paths <= known else "sd2"


def _said(metadata: Mapping[str, str]) -> Family | None:
    text = f"{metadata.get('ss_base_model_version', '')} {metadata.get('modelspec.architecture', '')}".lower()
    found = next((family for mark, family in _VERSIONS if mark in text), None)
    return found or ("sd1" if "sd_v1" in text or "stable-diffusion-v1" in text else None)


@cache
def _index(family: Family) -> dict[str, str]:
    """Path with underscores, in LDM's and in diffusers' spelling -> layer name, of a family's UNet."""
    return {path.replace(".", "_"): name for path, name in unet_spellings(family)}
