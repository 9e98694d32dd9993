"""What a file of format 1 may hold: the closed lists, and the one check of a file against them.

A reader of version 1 refuses whatever it cannot honour, and says what it found, what it expected and what to do.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor

from .adapter import Profile
from .columns import Columns
from .container import AGAIN, DTYPES, parse_object, printable, refusal, shown
from .errors import AdapterFileError, SettingError
from .evidence import FINGERPRINT_DIGITS, PROBE_IN, PROBE_OUT, SKETCH_ROWS
from .methods import GAIN, Method
from .methods import method as make_method
from .methods.base import Mode, matrix_shape

FORMAT_VERSION = "1"
STRENGTH = json.dumps({"default": "linear", "modes": list(get_args(Mode))})
MAX_SMALL_SIDE = 32_768  # singular values of one layer; the largest in use (language models) have 16,384
_REQUIRED = ("format_version", "method", "settings", "columns", "profile", "dtype", "strength", "layers")
_OPTIONAL = ("base_name", "base_hash", "trigger_words")
_LAYER_NAME = re.compile(r"[A-Za-z0-9_\-]{1,255}")
_HEX = re.compile(r"[0-9a-f]*")
_LAYER_FACTS = {"shape", "columns", "base", "sigma_max"}
_ORTHOGONAL = 5e-3  # stored frames are rounded to fp16, which leaves 5e-4


@dataclass(frozen=True)
class LayerPlan:
    """What `spectral.layers` says of one layer. base: fingerprint, or "". sigma_max: of the weight, where stated."""

    shape: tuple[int, ...]
    columns: tuple[int, ...]
    base: str
    sigma_max: float | None

    @property
    def matrix(self) -> tuple[int, int]:
        """(m, n) of the flattened weight."""
        return matrix_shape(self.shape)


@dataclass(frozen=True)
class GainPlan:
    """What `spectral.layers` says of one norm: how many channels, and the fingerprint of its gain, or ""."""

    channels: int
    base: str


@dataclass(frozen=True)
class Plan:
    """A validated table of contents."""

    method: Method
    profile: Profile
    layers: dict[str, LayerPlan]
    gains: dict[str, GainPlan]


def validate(path: Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Metadata and tensor shapes of a file against format 1. Values are the business of `check_values`.

    Raises AdapterFileError: another format version, unknown or missing `spectral.*` keys, method, setting, profile,
    dtype, strength mode, layer fact or tensor; shapes that disagree with the method, with each other or the columns.
    """
    own = {key.removeprefix("spectral."): value for key, value in metadata.items() if key.startswith("spectral.")}
    version = own.get("format_version", "none")
    if version != FORMAT_VERSION:
        raise refusal(path, "spectral.format_version", shown(version), FORMAT_VERSION, "Update Spectral Adapters")
    for key in _REQUIRED:
        if key not in own:
            raise refusal(path, f"metadata 'spectral.{key}'", "nothing", "a value", AGAIN)
    for key in own:
        if key not in (*_REQUIRED, *_OPTIONAL):
            raise refusal(path, f"metadata 'spectral.{key}'", "an unknown key", "a key of format 1", "Update the pack")
    method = _method(path, own)
    profile = _one_of(path, "spectral.profile", own["profile"], get_args(Profile))
    _one_of(path, "spectral.dtype", own["dtype"], tuple(DTYPES))
    _check_strength(path, own["strength"])
    _check_words(path, own.get("trigger_words", "[]"))
    if profile == "portable" and not method.portable:
        advice = "Save it as compact"
        raise refusal(path, "spectral.profile", "portable", f"compact, the only one of this {method.name}", advice)
    plan = Plan(method, cast(Profile, profile), *_layers(path, own["layers"], method))
    _check_parts(path, plan, shapes)
    return plan


def _one_of(path: Path, key: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise refusal(path, f"metadata {key!r}", shown(value), " or ".join(allowed), "Update the pack or save it again")
    return value


def _method(path: Path, own: Mapping[str, str]) -> Method:
    settings = parse_object(own["settings"], "metadata 'spectral.settings'", path)
    for key, value in settings.items():
        if not isinstance(value, str | int | float | bool):
            raise refusal(path, f"setting {shown(key)}", shown(value), "text, a number or true/false", AGAIN)
    what, advice = "metadata 'spectral.settings'", "Update the pack, or save the adapter again"
    if settings.get("columns") != own["columns"]:
        raise refusal(path, what, f"columns {shown(settings.get('columns'))}", shown(own["columns"]), advice)
    if {"name", "rank"} & set(settings):
        raise refusal(path, what, shown(sorted(settings)), "settings of the method", advice)
    try:
        found = make_method(own["method"], **settings)
    except SettingError as e:
        raise AdapterFileError(f"{path}: metadata 'spectral.method' and 'spectral.settings': {e}. {advice}.") from e
    if found.settings != settings:
        raise refusal(path, what, shown(settings), shown(found.settings), advice)
    return found


def _check_strength(path: Path, text: str) -> None:
    value = parse_object(text, "metadata 'spectral.strength'", path)
    known = get_args(Mode)
    modes = value.get("modes")
    if set(value) != {"default", "modes"} or not isinstance(modes, list) or not all(m in known for m in modes):
        raise refusal(path, "metadata 'spectral.strength'", shown(text), STRENGTH, "Update the pack")
    if value["default"] not in modes:
        raise refusal(path, "metadata 'spectral.strength'", shown(value["default"]), "one of its modes", AGAIN)


def _check_words(path: Path, text: str) -> None:
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(w, str) and printable(w) for w in words):
        raise refusal(path, "metadata 'spectral.trigger_words'", shown(text), "a JSON list of texts", AGAIN)


def _layers(path: Path, text: str, method: Method) -> tuple[dict[str, LayerPlan], dict[str, GainPlan]]:
    """The layers and, told apart by shapes of one number, the norms."""
    table = parse_object(text, "metadata 'spectral.layers'", path)
    plans = {name: _one_layer(path, name, facts, method) for name, facts in table.items()}
    layers = {name: plan for name, plan in plans.items() if isinstance(plan, LayerPlan)}
    if not layers:
        raise refusal(path, "metadata 'spectral.layers'", "no layer", "at least one", AGAIN)
    return layers, {name: plan for name, plan in plans.items() if isinstance(plan, GainPlan)}


def _one_layer(path: Path, name: str, facts: object, method: Method) -> LayerPlan | GainPlan:
    what = f"spectral.layers, layer {shown(name)}"
    if not _LAYER_NAME.fullmatch(name):
        raise refusal(path, what, "such a name", "letters, digits, _ and -, up to 255", "Rename the layer")
    if not isinstance(facts, dict) or not {"shape", "base"} <= set(facts) <= _LAYER_FACTS:
        raise refusal(path, what, shown(facts), "shape, base, and perhaps columns and sigma_max", "Update the pack")
    shape, base = facts["shape"], facts["base"]
    if not isinstance(base, str) or len(base) not in (0, FINGERPRINT_DIGITS) or not _HEX.fullmatch(base):
        raise refusal(path, f"{what}: base", shown(base), f"{FINGERPRINT_DIGITS} hex digits or nothing", AGAIN)
    if method.shifts_gains and _whole(shape, 1, 1 << 24) and len(shape) == 1:
        if len(facts) > 2:
            raise refusal(path, what, shown(facts), "shape and base alone, for a norm", AGAIN)
        return GainPlan(shape[0], base)
    if not _whole(shape, 1, 1 << 24) or len(shape) not in (2, 4):
        raise refusal(path, f"{what}: shape", shown(shape), "(outputs, inputs) or (c_out, c_in, kh, kw)", AGAIN)
    k = min(matrix_shape(shape))
    if k > MAX_SMALL_SIDE:
        raise refusal(path, f"{what}: shape", shown(shape), f"at most {MAX_SMALL_SIDE} singular values", AGAIN)
    top = facts.get("sigma_max")
    if top is not None and not (type(top) in (int, float) and 0 <= top <= 1e30):
        raise refusal(path, f"{what}: sigma_max", shown(top), "a number", AGAIN)
    columns = facts.get("columns")
    if columns is None:
        columns = _resolved(path, what, method.columns, k)
    elif not _whole(columns, 0, k - 1) or not columns or any(a >= b for a, b in itertools.pairwise(columns)):
        raise refusal(path, f"{what}: columns", shown(columns), f"ascending indices from 0 to {k - 1}", AGAIN)
    return LayerPlan(tuple(shape), tuple(columns), base, None if top is None else float(top))


def _resolved(path: Path, what: str, columns: Columns, k: int) -> tuple[int, ...]:
    try:
        return resolve_columns(columns, k)
    except SettingError as e:
        raise AdapterFileError(f"{path}: {what}: {e}. {AGAIN}.") from e


@lru_cache(maxsize=1024)
def resolve_columns(columns: Columns, k: int) -> tuple[int, ...]:
    """`columns.resolve(k)`, kept: a file has hundreds of layers of a few sizes."""
    return columns.resolve(k)


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, list) and all(type(i) is int and low <= i <= high for i in value)


def layer_parts(method: Method, profile: Profile, layer: LayerPlan) -> dict[str, tuple[int, ...]]:
    """Every tensor of a layer and its shape."""
    (m, n), r = layer.matrix, len(layer.columns)
    parts = {**method.param_shapes(layer.shape, r), "sigma": (r,)}
    if profile == "portable":
        return {**parts, "frame_u": (m, r), "frame_v": (n, r)}
    if method.sign_sensitive:
        parts |= {"sketch_u": (SKETCH_ROWS, r), "sketch_v": (SKETCH_ROWS, r)}
    return {**parts, "probe": (PROBE_OUT, PROBE_IN)}


def _check_parts(path: Path, plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    expected = {f"{name}.{GAIN}": (gain.channels,) for name, gain in plan.gains.items()}
    for name, layer in plan.layers.items():
        expected |= {f"{name}.{part}": shape for part, shape in layer_parts(plan.method, plan.profile, layer).items()}
    for key in shapes:
        if key not in expected:
            what = f"one of the tensors of a {plan.profile} {plan.method.name} file"
            raise refusal(path, f"tensor {shown(key)}", "an unknown tensor", what, "Update the pack")
    for key, shape in expected.items():
        if key not in shapes:
            raise refusal(path, f"tensor {key!r}", "nothing", f"shape {shape}", f"The file is incomplete. {AGAIN}")
        if shapes[key] != shape:
            raise refusal(path, f"tensor {key!r}", f"shape {shapes[key]}", f"{shape}", AGAIN)


def check_values(path: Path, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """The tensors' numbers: finite, sigma descending, frames and rotations orthogonal. Raises AdapterFileError."""
    for key, t in tensors.items():
        if not bool(torch.isfinite(t).all()):
            raise refusal(path, f"tensor {key!r}", "NaN or infinity", "finite numbers", "Take another file")
    for name, layer in plan.layers.items():
        sigma = tensors[f"{name}.sigma"].float()
        if bool((sigma < 0).any()) or bool((sigma.diff() > 0).any()):
            expected = "singular values, none negative, descending"
            raise refusal(path, f"tensor '{name}.sigma'", "other numbers", expected, AGAIN)
        for part in ("frame_u", "frame_v") if plan.profile == "portable" else ():
            defect = _defect(tensors[f"{name}.{part}"].float())
            if not defect <= _ORTHOGONAL:
                expected = f"orthonormal columns (to {_ORTHOGONAL})"
                raise refusal(path, f"tensor '{name}.{part}'", f"a defect of {defect:.2g}", expected, AGAIN)
        params = {p: tensors[f"{name}.{p}"].float() for p in plan.method.param_shapes(layer.shape, len(layer.columns))}
        wrong = plan.method.check(params, layer.shape, len(layer.columns))
        if wrong:
            raise AdapterFileError(f"{path}: layer {name}: {wrong}. {AGAIN}.")


def _defect(frame: Tensor) -> float:
    return float((frame.T @ frame - torch.eye(frame.shape[1])).abs().max())
