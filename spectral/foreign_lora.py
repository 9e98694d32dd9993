"""LoRA files of other tools as a `Source`: LoRA, LoCon, LoHa, LoKr, DoRA and differences, in every spelling.

The file is checked as a whole when it is opened; a layer's change is computed when it is asked for.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from . import lora_forms as forms
from .cache import BasisCache
from .change import Change
from .container import refusal, shown
from .errors import UnknownLayerError, WrongBaseError
from .foreign import kind_of_names
from .lora_keys import Key, Part, Place, layer_names, read_key, text_width
from .matching import check_fits
from .names import Family, kernel_size
from .source import Source
from .tensors import TensorFile

FileKind = Literal["LoRA", "LoCon", "LoHa", "LoKr", "difference"]
MOST_NUMBERS = 1 << 28  # of one weight; SDXL's largest has 29 million, its token embedding 63 million
_LARGEST = 1e18  # of a change's norm, or of the product of its factors'; fp32 squares it without overflow
ADVICE = "Load it with the LoRA loader, if that can"
# A form, the parts that belong to it, and whether one of them shows it.
_FORMS: tuple[tuple[str, frozenset[Part]], ...] = (
    ("lokr", frozenset(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"))),
    ("loha", frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"))),
    ("lora", frozenset(("up", "down", "mid"))),
    ("difference", frozenset(("diff",))),
    ("norm", frozenset(("w_norm",))),
)
_COMPUTE = {"lora": forms.lora, "loha": forms.loha, "lokr": forms.lokr}
_BIASES: frozenset[Part] = frozenset(("diff_b", "b_norm"))
# Tensors that belong to no layer and that every loader passes over: embeddings that came with their LoRA.
_BESIDE = ("bundle_emb.", "emb_params")


class LoraFile(Source):
    """A file of the LoRA family. kind: a `FileKind`; left_out: its tensors that no weight's change is made of.

    Where a file gives no alpha, its factors are taken as they are, as all hosts do.
    """

    def __init__(self, file: TensorFile):
        self.file, self.name, self.metadata = file, file.path.stem, file.metadata
        keys, left_out = _read_keys(file)
        places = {(found.space, found.path) for found in keys.values()}
        names, self._family = layer_names(places, text_width(keys, file.shapes), file.metadata)
        if "spectral.export" in file.metadata:  # our own: its names are the base's, whatever other family has them too
            names = {(found.space, found.path): key.partition(".")[0] for key, found in keys.items()}
            self._family = None
        self._layers, biases = _layers(file, keys, names)
        self._alphas = _declared_alphas(file, keys, names)
        self.left_out = (*left_out, *biases)
        self._forms = {layer: _form(file.path, layer, parts) for layer, parts in self._layers.items()}
        shapes = {layer: self._shape(layer) for layer in self._layers}
        self.shapes = {layer: shape for layer, shape in shapes.items() if len(shape) > 1}
        self.gains = {layer: shape[0] for layer, shape in shapes.items() if len(shape) == 1}
        self.kind = self._kind()

    @property
    def family(self) -> Family | None:
        return super().family or self._family

    def needs_weight(self, layer: str) -> bool:
        """DoRA scales the sum of weight and change, so its change depends on the weight."""
        return not self._layers[self._known(layer)].keys().isdisjoint(("dora_scale", "magnitude"))

    def change(self, layer: str, weight: Tensor | None = None, cache: BasisCache | None = None) -> Change:
        shape = self.shapes[self._known(layer)]
        if weight is not None:
            check_fits(self.name, layer, shape, weight)
        elif self.needs_weight(layer):
            raise WrongBaseError(f"{self.name}: layer {layer} is DoRA, whose change depends on the base; give the base")
        parts = self._read(layer)
        change, rank = self._compute(layer, parts)
        change = forms.with_alpha(change, self._alpha(layer, parts), rank)
        self._check_size(layer, change)
        if weight is None:
            return change
        change = change.to(weight.device) if isinstance(change, Tensor) else tuple(t.to(weight.device) for t in change)
        return self._scaled_as_dora(layer, weight, change, parts)

    def gain(self, norm: str) -> Tensor:
        if norm not in self.gains:
            return super().gain(norm)
        parts = self._read(norm)
        return parts["w_norm"] if "w_norm" in parts else parts["diff"]

    def _known(self, layer: str) -> str:
        if layer not in self.shapes:
            raise UnknownLayerError(f"{self.name} has no layer {layer!r}; it has {len(self.shapes)}")
        return layer

    def _read(self, layer: str) -> dict[Part, Tensor]:
        keys = self._layers[layer]
        return dict(zip(keys, self.file.read(list(keys.values()))))

    def _check_size(self, layer: str, change: Change) -> None:
        size = prod(float(t.norm()) for t in ((change,) if isinstance(change, Tensor) else change))
        if not size <= _LARGEST:
            found, expected = f"a change of the size {size:.2g}", "numbers that a weight can hold"
            raise refusal(self.file.path, f"layer {layer}", found, expected, "The training diverged; take another file")

    def _compute(self, layer: str, parts: Mapping[Part, Tensor]) -> tuple[Change, int | None]:
        form = self._forms[layer]
        if form == "difference":
            return parts["diff"].flatten(1), None
        _, change, rank = _COMPUTE[form](parts)
        return change, rank

    def _alpha(self, layer: str, parts: Mapping[Part, Tensor]) -> float | None:
        return float(parts["alpha"]) if "alpha" in parts else self._alphas.get(layer)

    def _scaled_as_dora(self, layer: str, weight: Tensor, change: Change, parts: Mapping[Part, Tensor]) -> Change:
        # PEFT's magnitudes belong to the rows. LyCORIS' have the shape that tells rows from inputs.
        if "magnitude" in parts:
            return forms.dora(weight, change, parts["magnitude"], outputs=True)
        if (scale := parts.get("dora_scale")) is None:
            return change
        return forms.dora(weight, change, scale, outputs=scale.shape[0] == weight.shape[0])

    def _shape(self, layer: str) -> tuple[int, ...]:
        """The shape of the layer's weight, or of a norm's gain, after a check of all its parts, without computing."""
        path, parts = self.file.path, {part: self.file.shapes[key] for part, key in self._layers[layer].items()}
        if self._forms[layer] in ("difference", "norm"):
            shape = parts["diff" if "diff" in parts else "w_norm"]
        else:
            shape = self._form_shape(layer, parts)
        sides = (1,) if self._forms[layer] == "norm" else (1, 2, 4)
        if not shape or 0 in shape or len(shape) not in sides or prod(shape) > MOST_NUMBERS:
            expected = f"a matrix or a kernel of up to {MOST_NUMBERS:,} numbers"
            raise refusal(path, f"layer {layer}", f"a change of shape {shape}", expected, ADVICE)
        shape = self._with_kernel(layer, shape)
        _check_scales(path, layer, parts, shape)
        return shape

    def _form_shape(self, layer: str, parts: Mapping[Part, tuple[int, ...]]) -> tuple[int, ...]:
        empty = {part: torch.empty(shape, device="meta") for part, shape in parts.items()}
        try:
            shape, _, rank = _COMPUTE[self._forms[layer]](empty)
        except ValueError as e:
            raise refusal(self.file.path, f"layer {layer}", e, "parts that fit together", ADVICE) from e
        if rank == 0:
            raise refusal(self.file.path, f"layer {layer}", "a rank of 0", "at least 1", ADVICE)
        return shape

    def _with_kernel(self, layer: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """With the kernel that some forms leave out, where the family has it."""
        if len(shape) != 2 or self._family is None:
            return shape
        try:
            side = kernel_size(self._family, layer)
        except UnknownLayerError:
            return shape
        return (shape[0], shape[1] // 9, 3, 3) if side == 3 and shape[1] % 9 == 0 else shape

    def _kind(self) -> FileKind:
        found = set(self._forms.values())
        if "lokr" in found:
            return "LoKr"
        if "loha" in found:
            return "LoHa"
        if "lora" not in found:
            return "difference"
        spatial = any(self._forms[layer] == "lora" and shape[2:] > (1, 1) for layer, shape in self.shapes.items())
        return "LoCon" if spatial else "LoRA"


def is_lora(shapes: Mapping[str, object]) -> bool:
    """Whether a file with tensors of these names is of the LoRA family, or nearly."""
    return any((found := read_key(key)) is not None and found.part not in ("alpha", *_BIASES) for key in shapes)


def _read_keys(file: TensorFile) -> tuple[dict[str, Key], tuple[str, ...]]:
    """The place of every tensor, and the tensors that are passed over."""
    beside = tuple(key for key in file.shapes if key.startswith(_BESIDE))
    found = {key: read_key(key) for key in file.shapes if key not in beside}
    unknown = [key for key, place in found.items() if place is None]
    if unknown:
        kind, _ = kind_of_names(unknown) or ("", "")
        what = shown(unknown[0]) + (f", as of {kind}" if kind else "")
        expected = "the parts of LoRA, LoCon, LoHa, LoKr, DoRA or a difference"
        raise refusal(file.path, "a tensor's name", what, expected, ADVICE)
    return {key: place for key, place in found.items() if place is not None}, beside


def _layers(
    file: TensorFile, keys: Mapping[str, Key], names: Mapping[Place, str]
) -> tuple[dict[str, dict[Part, str]], tuple[str, ...]]:
    """{layer: {part: key}}, and the keys of biases."""
    layers: defaultdict[str, dict[Part, str]] = defaultdict(dict)
    biases = tuple(key for key, place in keys.items() if place.part in _BIASES)
    for key, (space, path, part) in keys.items():
        if part in _BIASES:
            continue
        found = layers[names[space, path]]
        if part in found:
            both = f"{shown(found[part])} and {shown(key)}"
            raise refusal(file.path, f"layer {names[space, path]}", f"{both} for one tensor", "one of them", ADVICE)
        found[part] = key
    if not layers:
        raise refusal(file.path, "its tensors", "changes of biases alone", "changes of weights", ADVICE)
    return dict(layers), biases


def _form(path: Path, layer: str, parts: Mapping[Part, str]) -> str:
    found = [form for form, own in _FORMS if not own.isdisjoint(parts)]
    if len(found) != 1:
        what = " and ".join(found) or " and ".join(parts)
        raise refusal(path, f"layer {layer}", what, "the parts of one kind of change", ADVICE)
    return found[0]


def _check_scales(path: Path, layer: str, parts: Mapping[Part, tuple[int, ...]], shape: tuple[int, ...]) -> None:
    if "alpha" in parts and prod(parts["alpha"]) != 1:
        raise refusal(path, f"layer {layer}: alpha", f"shape {parts['alpha']}", "a single number", ADVICE)
    for part in ("magnitude", "dora_scale"):
        if (found := parts.get(part)) is None:
            continue
        rows = part == "magnitude" or (found and found[0] == shape[0])
        expected = shape[0] if rows or len(shape) == 1 else shape[1]
        if prod(found) != expected or len(shape) == 1:
            raise refusal(path, f"layer {layer}: DoRA's scale", f"shape {found}", f"{expected} numbers", ADVICE)


def _declared_alphas(file: TensorFile, keys: Mapping[str, Key], names: Mapping[Place, str]) -> dict[str, float]:
    """Alphas that PEFT and diffusers keep beside the tensors: in the metadata, or in adapter_config.json."""
    config = _peft_config(file)
    alphas: dict[str, float] = {}
    for key, (space, path, part) in keys.items():
        own = config.get({"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}.get(space, "unet"), {})
        if part != "down" or not isinstance(own.get("lora_alpha"), int | float):
            continue
        rank = file.shapes[key][0] if file.shapes[key] else 1
        alpha = float(_pattern(own.get("alpha_pattern"), path, own["lora_alpha"]))
        alphas[names[space, path]] = alpha * rank**0.5 if own.get("use_rslora") is True else alpha
    return alphas


def _pattern(table: object, path: str, default: float) -> float:
    for name, alpha in table.items() if isinstance(table, dict) else ():
        end = name.replace(".", "_")
        if isinstance(alpha, int | float) and (path == end or path.endswith(f"_{end}")):
            return alpha
    return default


def _peft_config(file: TensorFile) -> dict[str, dict[str, object]]:
    """{"unet": settings, "text_encoder": ...}, as far as they are given."""
    text = file.metadata.get("lora_adapter_metadata", "")
    beside = file.path.with_name("adapter_config.json")
    if not text and file.path.name.startswith("adapter_model") and beside.is_file() and beside.stat().st_size < 1 << 20:
        text = beside.read_text(encoding="utf-8", errors="replace")
    try:
        table = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        advice = "Delete it to take the factors unscaled"
        raise refusal(file.path, "PEFT's settings beside its tensors", shown(text), "a JSON object", advice)
    config: defaultdict[str, dict[str, object]] = defaultdict(dict)
    for key, value in table.items():
        part, _, setting = key.partition(".")
        config[part if setting else "unet"][setting or part] = value
    if table and "lora_alpha" in table:
        config["text_encoder"] = config["text_encoder_2"] = config["unet"]
    return dict(config)
