"""Which layers of a module an adapter is put on, and which of its norms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

from torch import nn

from .errors import SettingError
from .gains import has_gain
from .names import modules_of
from .ops import adaptable

Preset = Literal["attention", "cross-attention", "attention+ff", "all", "none"]
Targets = Preset | str | Iterable[str] | Callable[[str, nn.Module], bool]

# Names of attention and feed-forward modules in diffusers and transformers, as whole components of the path.
_ATTENTION = r"(^|\.)(attn\d?|self_attn|cross_attn|encoder_attn|attention|crossattention)\."
_CROSS = r"(^|\.)(attn2|cross_attn|encoder_attn|crossattention)\."
_FEED_FORWARD = r"(^|\.)(ff|mlp|ffn|feed_forward)\."
_PRESETS: dict[str, str] = {
    "attention": _ATTENTION,
    "cross-attention": _CROSS,
    "attention+ff": f"{_ATTENTION}|{_FEED_FORWARD}",
    "all": "",
}


def select(module: nn.Module, targets: Targets) -> list[str]:
    """Dotted paths (see `names.modules_of`) of the layers chosen by `targets`, in module order.

    "attention", "cross-attention", "attention+ff": the Linear layers inside modules of these kinds. "all": every Linear
    and ungrouped Conv2d. "none": no layer. Any other string: a regular expression searched in the path. A list:
    exactly these paths. A function (path, module) -> bool: where it is true. Raises SettingError where nothing is
    found or a listed path is missing.
    """
    if targets == "none":
        return []
    layers = {path: m for path, m in modules_of(module).items() if adaptable(m)}
    if not isinstance(targets, str) and not callable(targets):
        return _listed(layers, list(targets))
    if callable(targets):
        chosen = [path for path, m in layers.items() if targets(path, m)]
    else:
        chosen = matching({path: isinstance(m, nn.Conv2d) for path, m in layers.items()}, targets)
    if not chosen:
        raise SettingError(
            f"targets={targets!r} chose no layer of {type(module).__name__}, which has {len(layers)} Linear and Conv2d "
            f"layers such as {', '.join(list(layers)[:3]) or '(none)'}; choose {', '.join(_PRESETS)}, none or a "
            "regular expression that matches such paths"
        )
    return chosen


def matching(paths: Mapping[str, bool], targets: str) -> list[str]:
    """The same choice by paths alone, for weights without their modules: {path: whether it is a convolution}.

    Raises SettingError for what is no regular expression.
    """
    pattern = _pattern(targets)
    linear_only = targets in get_args(Preset) and targets != "all"
    return [path for path, conv in paths.items() if pattern.search(path) and not (linear_only and conv)]


def select_norms(module: nn.Module, targets: Targets, chosen: Iterable[str]) -> list[str]:
    """Dotted paths of the normalisation layers that go with the layers `chosen` by `targets`, in module order.

    "all": every LayerNorm and GroupNorm with a gain. Otherwise those of each chosen layer's block, which is the
    smallest module around it that holds norms itself: norm1 to norm3 of diffusers' BasicTransformerBlock, layer_norm1
    and layer_norm2 of CLIP, norm1 and norm2 of a resnet. Raises SettingError where layers are chosen but no norm is
    found.
    """
    norms = [path for path, m in modules_of(module).items() if has_gain(m)]
    blocks = {_parent(path) for path in norms}
    wanted = blocks if targets == "all" else {_block(path, blocks) for path in chosen}
    found = [path for path in norms if _parent(path) in wanted]
    if not found and targets != "none":
        raise SettingError(
            f"targets={targets!r} chose no LayerNorm or GroupNorm of {type(module).__name__}, which has {len(norms)}; "
            "train without norms, or choose layers that lie in one block with some"
        )
    return found


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _block(path: str, blocks: set[str]) -> str | None:
    """The innermost module around `path` that is one of `blocks`."""
    while path:
        path = _parent(path)
        if path in blocks:
            return path
    return None


def _pattern(targets: str) -> re.Pattern[str]:
    try:
        return re.compile(_PRESETS.get(targets, targets))
    except re.error as e:
        raise SettingError(f"targets={targets!r} is none of {list(_PRESETS)} and no regular expression: {e}") from e


def _listed(layers: dict[str, nn.Module], paths: list[str]) -> list[str]:
    missing = [p for p in paths if p not in layers]
    if missing or not paths:
        raise SettingError(
            f"targets lists {missing or 'nothing'}, not among the {len(layers)} Linear and ungrouped Conv2d layers; "
            f"paths look like {', '.join(list(layers)[:3]) or '(none)'}"
        )
    return paths
