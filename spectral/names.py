"""Layer names: kohya's spelling, diffusers' module paths, the original LDM checkpoint's paths, and the ways between.

Every table is generated from the block structure of the architecture (`Structure`), so that one description of SD1.x,
SD2.x and SDXL serves adapters, the reading of single-file checkpoints and hosts that know only one of the spellings.

    kohya      lora_unet_down_blocks_0_attentions_0_proj_in     SD1/2: the diffusers path, dots as underscores
               lora_unet_input_blocks_4_1_proj_in               SDXL: the LDM path, dots as underscores
    diffusers  down_blocks.0.attentions.0.proj_in
    LDM        input_blocks.1.1.proj_in                         below `model.diffusion_model.` in a checkpoint

Text encoders carry Hugging Face's paths in all three families: `lora_te_`, and for SDXL `lora_te1_` (CLIP-L) and
`lora_te2_` (OpenCLIP bigG). In a checkpoint, OpenCLIP keeps q, k and v in one matrix; `fused_part` says which third a
layer is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from torch import nn

from .errors import UnknownLayerError

Family = Literal["sd1", "sd2", "sdxl"]
FAMILIES: tuple[Family, ...] = ("sd1", "sd2", "sdxl")
Kind = Literal["linear", "conv", "norm", "embedding"]

UNET_PREFIX = "lora_unet_"
TEXT_PREFIXES: dict[Family, tuple[str, ...]] = {
    "sd1": ("lora_te_",),
    "sd2": ("lora_te_",),
    "sdxl": ("lora_te1_", "lora_te2_"),
}
UNET_ROOT = "model.diffusion_model."
VAE_ROOT = "first_stage_model."
# Where each text encoder lives in a checkpoint, and whether it has OpenCLIP's layout.
TEXT_ROOTS: dict[tuple[Family, str], tuple[str, bool]] = {
    ("sd1", "lora_te_"): ("cond_stage_model.transformer.", False),
    ("sd2", "lora_te_"): ("cond_stage_model.model.", True),
    ("sdxl", "lora_te1_"): ("conditioner.embedders.0.transformer.", False),
    ("sdxl", "lora_te2_"): ("conditioner.embedders.1.model.", True),
}
TEXT_DEPTH: dict[tuple[Family, str], int] = {
    ("sd1", "lora_te_"): 12,
    ("sd2", "lora_te_"): 23,
    ("sdxl", "lora_te1_"): 12,
    ("sdxl", "lora_te2_"): 32,
}
CROSS_WIDTH: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
# SDXL's pooled text passes it. A layer in transformers' module, a bare matrix in checkpoints, so in no table below.
TEXT_PROJECTION = "lora_te2_text_projection"
_FUSED = ("q_proj", "k_proj", "v_proj")
_POINTWISE = re.compile(r"(proj_in|proj_out|conv_shortcut)$")


@dataclass(frozen=True)
class Structure:
    """The part of a UNet's configuration that decides which layers it has.

    `depths[i]` is the number of transformer blocks in each attention of down block i (0: no attention); the up blocks
    mirror it with one more resnet. `widths` are the channels per resolution.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    mid_depth: int
    per_block: int = 2
    added_embedding: bool = False


_SD = Structure(widths=(320, 640, 1280, 1280), depths=(1, 1, 1, 0), mid_depth=1)
STRUCTURES: dict[Family, Structure] = {
    "sd1": _SD,
    "sd2": _SD,
    "sdxl": Structure(widths=(320, 640, 1280), depths=(0, 2, 10), mid_depth=10, added_embedding=True),
}


class Module(NamedTuple):
    """One parameter-bearing module under both of its paths."""

    diffusers: str
    ldm: str
    kind: Kind


def _resnet(here: str, there: str, shortcut: bool) -> Iterator[Module]:
    yield Module(f"{here}.norm1", f"{there}.in_layers.0", "norm")
    yield Module(f"{here}.conv1", f"{there}.in_layers.2", "conv")
    yield Module(f"{here}.time_emb_proj", f"{there}.emb_layers.1", "linear")
    yield Module(f"{here}.norm2", f"{there}.out_layers.0", "norm")
    yield Module(f"{here}.conv2", f"{there}.out_layers.3", "conv")
    if shortcut:
        yield Module(f"{here}.conv_shortcut", f"{there}.skip_connection", "conv")


def _transformer(here: str, there: str, depth: int, projection: Kind) -> Iterator[Module]:
    names: list[tuple[str, Kind]] = [("norm", "norm"), ("proj_in", projection)]
    for block in (f"transformer_blocks.{i}" for i in range(depth)):
        for attention in ("attn1", "attn2"):
            names += [(f"{block}.{attention}.{part}", "linear") for part in ("to_q", "to_k", "to_v", "to_out.0")]
        names += [(f"{block}.ff.net.0.proj", "linear"), (f"{block}.ff.net.2", "linear")]
        names += [(f"{block}.norm{i}", "norm") for i in (1, 2, 3)]
    names.append(("proj_out", projection))
    yield from (Module(f"{here}.{name}", f"{there}.{name}", kind) for name, kind in names)


def unet_modules(family: Family) -> Iterator[Module]:
    """Every module of the family's UNet that has a weight, norms included, in the order of the forward pass."""
    shape = STRUCTURES[family]
    projection: Kind = "conv" if family == "sd1" else "linear"
    last, step = len(shape.widths) - 1, shape.per_block + 1
    yield Module("time_embedding.linear_1", "time_embed.0", "linear")
    yield Module("time_embedding.linear_2", "time_embed.2", "linear")
    if shape.added_embedding:
        yield Module("add_embedding.linear_1", "label_emb.0.0", "linear")
        yield Module("add_embedding.linear_2", "label_emb.0.2", "linear")
    yield Module("conv_in", "input_blocks.0.0", "conv")
    for i, (width, depth) in enumerate(zip(shape.widths, shape.depths)):
        narrower = shape.widths[max(i - 1, 0)]
        for j in range(shape.per_block):
            there = f"input_blocks.{i * step + j + 1}"
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", f"{there}.0", shortcut=j == 0 and width != narrower)
            if depth:
                yield from _transformer(f"down_blocks.{i}.attentions.{j}", f"{there}.1", depth, projection)
        if i < last:
            yield Module(f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{(i + 1) * step}.0.op", "conv")
    yield from _resnet("mid_block.resnets.0", "middle_block.0", shortcut=False)
    yield from _transformer("mid_block.attentions.0", "middle_block.1", shape.mid_depth, projection)
    yield from _resnet("mid_block.resnets.1", "middle_block.2", shortcut=False)
    for i, depth in enumerate(reversed(shape.depths)):
        for j in range(step):
            there = f"output_blocks.{i * step + j}"
            # An up block's resnet also reads the skip connection, so its input is always wider than its output.
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", f"{there}.0", shortcut=True)
            if depth:
                yield from _transformer(f"up_blocks.{i}.attentions.{j}", f"{there}.1", depth, projection)
        if i < last:
            there = f"output_blocks.{i * step + step - 1}.{2 if depth else 1}.conv"
            yield Module(f"up_blocks.{i}.upsamplers.0.conv", there, "conv")
    yield Module("conv_norm_out", "out.0", "norm")
    yield Module("conv_out", "out.2", "conv")


def text_modules(family: Family, prefix: str) -> Iterator[Module]:
    """Every weighted module of a text encoder; LDM paths are below `TEXT_ROOTS`, fused q, k, v as `attn.in_proj`."""
    _, openclip = TEXT_ROOTS[family, prefix]
    # Hugging Face's name, OpenCLIP's name.
    layer: list[tuple[str, str, Kind]] = [
        *((f"self_attn.{part}", "attn.in_proj", "linear") for part in _FUSED),
        ("self_attn.out_proj", "attn.out_proj", "linear"),
        ("mlp.fc1", "mlp.c_fc", "linear"),
        ("mlp.fc2", "mlp.c_proj", "linear"),
        ("layer_norm1", "ln_1", "norm"),
        ("layer_norm2", "ln_2", "norm"),
    ]
    ends: list[tuple[str, str, Kind]] = [
        ("embeddings.token_embedding", "token_embedding", "embedding"),
        # OpenCLIP's position embedding is a bare parameter, so in a checkpoint it has no `.weight` behind it.
        ("embeddings.position_embedding", "positional_embedding", "embedding"),
        ("final_layer_norm", "ln_final", "norm"),
    ]
    for here, there, kind in ends:
        path = f"text_model.{here}"
        yield Module(path, there if openclip else path, kind)
    for i in range(TEXT_DEPTH[family, prefix]):
        for here, there, kind in layer:
            path = f"text_model.encoder.layers.{i}.{here}"
            yield Module(path, f"transformer.resblocks.{i}.{there}" if openclip else path, kind)


def vae_modules(levels: int = 4, per_block: int = 2) -> Iterator[Module]:
    """Every weighted module of the AutoencoderKL of SD1, SD2 and SDXL (LDM paths are below `VAE_ROOT`).

    The four attention matrices are `linear`; LDM stores them as 1x1 convolutions.
    """

    def resnet(here: str, there: str, shortcut: bool) -> Iterator[Module]:
        parts: list[tuple[str, Kind]] = [("norm1", "norm"), ("conv1", "conv"), ("norm2", "norm"), ("conv2", "conv")]
        yield from (Module(f"{here}.{part}", f"{there}.{part}", kind) for part, kind in parts)
        if shortcut:
            yield Module(f"{here}.conv_shortcut", f"{there}.nin_shortcut", "conv")

    def middle(side: str) -> Iterator[Module]:
        here, there = f"{side}.mid_block", f"{side}.mid"
        yield from resnet(f"{here}.resnets.0", f"{there}.block_1", shortcut=False)
        parts: list[tuple[str, str, Kind]] = [
            ("group_norm", "norm", "norm"),
            ("to_q", "q", "linear"),
            ("to_k", "k", "linear"),
            ("to_v", "v", "linear"),
            ("to_out.0", "proj_out", "linear"),
        ]
        yield from (Module(f"{here}.attentions.0.{a}", f"{there}.attn_1.{b}", kind) for a, b, kind in parts)
        yield from resnet(f"{here}.resnets.1", f"{there}.block_2", shortcut=False)

    # Widths (128, 256, 512, 512): the input of a level differs from its output at levels 1 and 2 (encoder) and,
    # counted from the deepest, 2 and 3 (decoder).
    for side in ("encoder", "decoder"):
        yield Module(f"{side}.conv_in", f"{side}.conv_in", "conv")
        yield from middle(side)
        yield Module(f"{side}.conv_norm_out", f"{side}.norm_out", "norm")
        yield Module(f"{side}.conv_out", f"{side}.conv_out", "conv")
    for i in range(levels):
        for j in range(per_block):
            yield from resnet(
                f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}", shortcut=j == 0 and i in (1, 2)
            )
        if i < levels - 1:
            yield Module(f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv", "conv")
        there = f"decoder.up.{levels - 1 - i}"
        for j in range(per_block + 1):
            yield from resnet(f"decoder.up_blocks.{i}.resnets.{j}", f"{there}.block.{j}", j == 0 and i in (2, 3))
        if i < levels - 1:
            yield Module(f"decoder.up_blocks.{i}.upsamplers.0.conv", f"{there}.upsample.conv", "conv")
    yield Module("quant_conv", "quant_conv", "conv")
    yield Module("post_quant_conv", "post_quant_conv", "conv")


def _spell(prefix: str, path: str) -> str:
    return prefix + path.replace(".", "_")


@cache
def _named(family: Family, kinds: tuple[Kind, ...]) -> dict[str, Module]:
    """Layer name -> module, for every module of these kinds: UNet first, then the text encoders."""
    if family not in FAMILIES:
        raise UnknownLayerError(f"unknown model family {family!r}; expected one of {', '.join(FAMILIES)}")
    table = {}
    for module in unet_modules(family):
        if module.kind in kinds:
            table[_spell(UNET_PREFIX, module.ldm if family == "sdxl" else module.diffusers)] = module
    for prefix in TEXT_PREFIXES[family]:
        for module in text_modules(family, prefix):
            if module.kind in kinds:
                table[_spell(prefix, module.diffusers)] = module
    return table


def _layers(family: Family) -> dict[str, Module]:
    """Every Linear and Conv2d an adapter of this family may name."""
    return _named(family, ("linear", "conv"))


def _norms(family: Family) -> dict[str, Module]:
    """Every normalisation layer."""
    return _named(family, ("norm",))


def unet_paths(family: Family) -> dict[str, str]:
    """kohya layer name -> diffusers module path of every Linear and Conv2d of the UNet (SD1/2: 282, SDXL: 794)."""
    return {name: m.diffusers for name, m in _layers(family).items() if name.startswith(UNET_PREFIX)}


def unet_spellings(family: Family) -> Iterator[tuple[str, str]]:
    """(path, kohya layer name) of every Linear, Conv2d and norm of the UNet, by LDM's and by diffusers' path."""
    for name, module in (*_layers(family).items(), *_norms(family).items()):
        if name.startswith(UNET_PREFIX):
            yield from ((module.ldm, name), (module.diffusers, name))


def kernel_size(family: Family, layer: str) -> int:
    """The kernel's side of a UNet's convolution: 1 or 3 (of everything else: 1). Raises UnknownLayerError."""
    module = _find(family, layer)
    return 3 if module.kind == "conv" and not _POINTWISE.search(module.diffusers) else 1


def text_paths(family: Family, prefix: str = "lora_te_") -> dict[str, str]:
    """kohya layer name -> Hugging Face module path (`text_model.…`) of every Linear of one text encoder."""
    if prefix not in TEXT_PREFIXES[family]:
        allowed = ", ".join(TEXT_PREFIXES[family])
        raise UnknownLayerError(f"{family} has no text encoder with prefix {prefix!r}; expected {allowed}")
    return {name: m.diffusers for name, m in _layers(family).items() if name.startswith(prefix)}


def norm_paths(family: Family) -> dict[str, str]:
    """kohya layer name -> diffusers (text encoders: Hugging Face) module path of every normalisation layer."""
    return {name: m.diffusers for name, m in _norms(family).items()}


def _find(family: Family, layer: str) -> Module:
    module = _layers(family).get(layer) or _norms(family).get(layer)
    if module is None:
        other = next((f for f in FAMILIES if layer in _layers(f)), None)
        example = next(iter(_layers(family)))
        hint = f"it is a layer of {other}" if other else f"expected kohya's spelling, such as {example}"
        raise UnknownLayerError(f"{family} has no layer named {layer!r}; {hint}")
    return module


def to_diffusers(family: Family, layer: str) -> str:
    """The diffusers (text encoders: Hugging Face) module path of a kohya layer name.

    Raises UnknownLayerError when the family has no such layer.
    """
    return _find(family, layer).diffusers


def to_ldm(family: Family, layer: str) -> str:
    """The module path in the original checkpoint, below `UNET_ROOT` or `TEXT_ROOTS`. Raises UnknownLayerError."""
    return _find(family, layer).ldm


def fused_part(family: Family, layer: str) -> int | None:
    """Which third of the checkpoint's fused q, k, v matrix a layer is (0, 1, 2); None where it has its own matrix."""
    module = _find(family, layer)
    return _FUSED.index(module.diffusers.rsplit(".", 1)[1]) if module.ldm.endswith("attn.in_proj") else None


def checkpoint_key(family: Family, layer: str) -> str:
    """The full key of a layer's weight in a single-file checkpoint, e.g. `model.diffusion_model.out.2.weight`."""
    root = UNET_ROOT
    if not layer.startswith(UNET_PREFIX):
        root = next(TEXT_ROOTS[family, p][0] for p in TEXT_PREFIXES[family] if layer.startswith(p))
    return root + to_ldm(family, layer) + ("_weight" if fused_part(family, layer) is not None else ".weight")


def from_ldm(family: Family, path: str) -> str:
    """The kohya name of a UNet layer given its LDM module path (below `UNET_ROOT`). Raises UnknownLayerError."""
    return _reverse(family, "ldm", path)


def from_diffusers(family: Family, path: str) -> str:
    """The kohya name of a UNet layer given its diffusers module path. Raises UnknownLayerError."""
    return _reverse(family, "diffusers", path)


@cache
def _unet_index(family: Family, spelling: Literal["ldm", "diffusers"], norms: bool = False) -> dict[str, str]:
    table = _norms(family) if norms else _layers(family)
    return {getattr(m, spelling): name for name, m in table.items() if name.startswith(UNET_PREFIX)}


def _reverse(family: Family, spelling: Literal["ldm", "diffusers"], path: str) -> str:
    name = _unet_index(family, spelling).get(path) or _unet_index(family, spelling, norms=True).get(path)
    if name is None:
        raise UnknownLayerError(f"the {family} UNet has no Linear, Conv2d or norm at the {spelling} path {path!r}")
    return name


def renamer(prefix: str, family: Family | None = None) -> Callable[[str], str]:
    """A function from a live module's dotted path to the layer name that files carry.

    SDXL's UNet is translated to its LDM spelling. transformers 5 dropped the `text_model` level of CLIPTextModel's
    paths; files keep it, so it is put back for text encoders.
    """
    if prefix == UNET_PREFIX and family == "sdxl":
        return lambda path: from_diffusers("sdxl", path)
    if prefix.startswith("lora_te"):
        return lambda path: _spell(prefix, with_text_model(path))
    return lambda path: _spell(prefix, path)


def with_text_model(path: str) -> str:
    """A CLIPTextModel path as files spell it: below `text_model`, whatever the installed transformers calls it."""
    inner = path.split(".", 1)[0] in ("embeddings", "encoder", "final_layer_norm")
    return f"text_model.{path}" if inner else path


def module_family(module: nn.Module) -> Family | None:
    """The family of a live UNet in diffusers' or LDM's layout, from its layers; None when it is none of the three."""
    family, found = _guess(module)
    known = family and any(found == _unet_index(family, spelling).keys() for spelling in ("diffusers", "ldm"))
    return family if known else None


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by its dotted path; what a UNet in LDM's layout shares with diffusers', by diffusers' path."""
    spelling = _from_ldm_layout(module)
    return {spelling.get(path, path): m for path, m in module.named_modules()}


def _guess(module: nn.Module) -> tuple[Family, set[str]] | tuple[None, set[str]]:
    """The only family that a UNet can be of, by the width of its text, and the paths of its layers."""
    weights = {path: m for path, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    cross = next((m for path, m in weights.items() if path.endswith("attn2.to_k")), None)
    # No other model has SDXL's layers, so one with narrower text is spelled like it too.
    return (None if cross is None else CROSS_WIDTH.get(cross.weight.shape[1], "sdxl")), set(weights)


def _from_ldm_layout(module: nn.Module) -> dict[str, str]:
    """{LDM's path: diffusers' path} for a UNet in LDM's layout, as kohya's trainer has SDXL's; empty for any other."""
    family, found = _guess(module) if hasattr(module, "input_blocks") else (None, set())
    if family is None or found != _unet_index(family, "ldm").keys():
        return {}
    return {m.ldm: m.diffusers for m in unet_modules(family)}


def layer_names(module: nn.Module, prefix: str, family: Family | None = None) -> dict[str, str]:
    """Layer name -> dotted path of every Linear and Conv2d of a live module.

    `prefix` is one of kohya's (`lora_unet_`, `lora_te_`, `lora_te1_`, `lora_te2_`) or "" for any module. For a UNet the
    family is found from the module when it is not given. Raises UnknownLayerError for a path SDXL does not have.
    """
    return _live_names(module, prefix, family, (nn.Linear, nn.Conv2d))


def norm_names(module: nn.Module, prefix: str, family: Family | None = None) -> dict[str, str]:
    """The same for every LayerNorm and GroupNorm that has a gain. Raises UnknownLayerError as `layer_names` does."""
    names = _live_names(module, prefix, family, (nn.LayerNorm, nn.GroupNorm))
    return {name: path for name, path in names.items() if module.get_submodule(path).weight is not None}


def _live_names(
    module: nn.Module, prefix: str, family: Family | None, kinds: tuple[type[nn.Module], ...]
) -> dict[str, str]:
    if family is None and prefix == UNET_PREFIX:
        family = module_family(module)
    rename, spelling = renamer(prefix, family), _from_ldm_layout(module)
    return {rename(spelling.get(path, path)): path for path, m in module.named_modules() if isinstance(m, kinds)}


def guess_family(layers: Iterable[str] | Mapping[str, tuple[int, ...]]) -> Family | None:
    """The family that layer names belong to; with a mapping to weight shapes the cross-attention width decides first.

    The UNets of SD1 and SD2 share every name. Names alone then give "sd2" only where the text encoder is deeper than
    CLIP-L, else "sd1". None when some name belongs to no family (another architecture, or no Stable Diffusion).
    """
    names = [name for name in layers if name != TEXT_PROJECTION]
    fitting = [f for f in FAMILIES if names and _layers(f).keys() | _norms(f).keys() >= set(names)]
    if isinstance(layers, Mapping):
        widths = {shape[1] for name, shape in layers.items() if name.endswith(("attn2_to_k", "attn2_to_v"))}
        if widths:
            family = CROSS_WIDTH.get(widths.pop()) if len(widths) == 1 else None
            return family if family in fitting else None
    return fitting[0] if fitting else None
