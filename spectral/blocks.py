"""Where a layer sits, in the words that users know: its block (IN04, MID, OUT05, text layer 3) and its kind of work.

Blocks of the UNet are counted as in kohya's tools and in block-weight extensions: by the original checkpoint's
input_blocks and output_blocks. A UNet of another family has its own blocks (DOWN0, UP1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .names import TEXT_PREFIXES, UNET_PREFIX, Family, to_ldm

Area = Literal["text", "down", "mid", "up", "other"]
Work = Literal[
    "self-attention", "cross-attention", "feed-forward", "projection", "convolution", "time", "text-attention",
    "text-feed-forward", "other",
]  # fmt: skip
AREAS: tuple[Area, ...] = ("text", "down", "mid", "up", "other")
WORKS: tuple[Work, ...] = (
    "text-attention", "text-feed-forward", "self-attention", "cross-attention", "feed-forward", "projection",
    "convolution", "time", "other",
)  # fmt: skip

_UNET: tuple[tuple[str, str, Area], ...] = (
    (r"input_blocks_(\d+)_", "IN{:02d}", "down"),
    (r"down_blocks_(\d+)_", "DOWN{}", "down"),
    (r"middle_block_|mid_block_", "MID", "mid"),
    (r"output_blocks_(\d+)_", "OUT{:02d}", "up"),
    (r"up_blocks_(\d+)_", "UP{}", "up"),
    (r"_conv_in$", "INPUT", "down"),
    (r"_conv_out$|out_2$", "OUTPUT", "up"),
)
_ENDS = {"INPUT": -1, "OUTPUT": 1}
# The first that is found in a name decides.
_WORKS: tuple[tuple[str, Work], ...] = (
    ("_attn1_", "self-attention"),
    ("_attn2_", "cross-attention"),
    ("_ff_net_", "feed-forward"),
    ("_self_attn_", "text-attention"),
    ("_mlp_fc", "text-feed-forward"),
    ("time_emb", "time"),
    ("_emb_layers_", "time"),
    ("add_embedding", "time"),
    ("label_emb", "time"),
    ("_proj_in", "projection"),
    ("_proj_out", "projection"),
)
_CONVOLUTIONS = re.compile(
    r"_conv\d?$|conv_(in|out|shortcut)$|_in_layers_|_out_layers_|_skip_connection|_op$|input_blocks_0_0$|out_2$"
)


@dataclass(frozen=True)
class Place:
    """block: a short name, "" where there is none; area: the third of the UNet it is in; work: what its layer does."""

    block: str
    area: Area
    work: Work

    @property
    def order(self) -> tuple[int, int, str, int]:
        """Sorts places as data passes them: text, down, mid, up."""
        return AREAS.index(self.area), _ENDS.get(self.block, 0), self.block, WORKS.index(self.work)


def place(layer: str, family: Family | None) -> Place:
    """Where a layer (kohya's spelling) sits; family None for a model that is none of the three."""
    work = _work(layer)
    for prefix in {p for prefixes in TEXT_PREFIXES.values() for p in prefixes}:
        if layer.startswith(prefix):
            part = prefix.removeprefix("lora_").rstrip("_").upper()
            number = re.search(r"_layers_(\d+)_", layer)
            return Place(f"{part}-{int(number[1]):02d}" if number else part, "text", work)
    path = layer
    if family is not None and layer.startswith(UNET_PREFIX):
        path = to_ldm(family, layer).replace(".", "_")
    for pattern, name, area in _UNET:
        if found := re.search(pattern, path):
            return Place(name.format(*map(int, found.groups())), area, work)
    return Place("TIME" if work == "time" else "", "other", work)


def _work(layer: str) -> Work:
    for part, work in _WORKS:
        if part in layer:
            return work
    return "convolution" if _CONVOLUTIONS.search(layer) else "other"
