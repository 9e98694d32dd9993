"""Reading and writing adapter files of format 1, specified in docs/format.md.

Everything is checked before anything is used: the container (`container`), then the contents (`format1`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .adapter import Adapter, AdapterLayer, Profile
from .basis import Basis
from .container import (
    AGAIN,
    DTYPES,
    Header,
    check_metadata,
    data_block,
    header_bytes,
    layout,
    name_of,
    open_file,
    read_header,
    read_tensors,
    refusal,
    refuse_existing,
    shown,
    write,
)
from .evidence import FINGERPRINT_DIGITS, Evidence, make_evidence
from .foreign import kind_of_bytes, kind_of_names
from .format1 import FORMAT_VERSION, STRENGTH, Plan, check_values, resolve_columns, validate
from .gains import Gain
from .hostmeta import Facts, host_metadata, kohya_hashes
from .matching import change_of, on_device
from .methods import GAIN, Method
from .names import guess_family
from .threads import single_threaded

SUFFIX = ".safetensors"


def load(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter file. Parameters and frames come as fp32 on the CPU.

    Raises AdapterFileError, naming the file, the key, what was found, what was expected and what to do, for anything
    that is not a complete and consistent file of format 1.
    """
    path = Path(path)
    with open_file(path) as f:
        header = _header(f, path)
        entries = layout(header, path)
        plan = validate(path, header.metadata, {key: e.shape for key, e in entries.items()})
        tensors, digest = read_tensors(f, header, path)
    stored = header.metadata.get("sshs_model_hash", digest)
    if stored != digest:
        raise refusal(path, "the SHA-256 of its data", digest[:16], shown(stored[:16]), f"It is damaged. {AGAIN}")
    with single_threaded():
        check_values(path, plan, tensors)
        layers = {name: _layer(name, plan, tensors) for name in plan.layers}
    gains = {name: Gain(name, tensors[f"{name}.{GAIN}"].float(), found.base) for name, found in plan.gains.items()}
    return Adapter(plan.method, layers, dict(header.metadata), plan.profile, gains)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of an adapter file, without reading its tensors. Raises AdapterFileError as `load` does."""
    path = Path(path)
    with open_file(path) as f:
        header = _header(f, path)
    validate(path, header.metadata, {key: e.shape for key, e in layout(header, path).items()})
    return dict(header.metadata)


def save(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    profile: Profile | None = None,
    base_name: str = "",
    base_hash: str = "",
    trigger_words: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write an adapter file, whole or not at all; its path.

    profile: "portable" (with frames) or "compact" (needs its base again); the adapter's own where None. base_name and
    base_hash (SHA-256 of the base's file) and trigger_words: those the adapter came with where empty. dtype of the
    parameters: torch.float16, bfloat16 or float32; the one it was read with, else fp16, where None. metadata: more
    strings, such as `modelspec.author`, `modelspec.thumbnail` (a data URL of up to 1 MiB) or `ss_tag_frequency`; they
    go over the adapter's own. Raises AdapterFileError, with nothing written, for an existing file unless `overwrite`,
    non-finite parameters, a profile the adapter has not the data for, and metadata of format 1's own names.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise refusal(path, "the name", shown(path.name), f"a name ending in {SUFFIX}", "Rename it")
    refuse_existing(path, overwrite)
    given = _given(path, adapter, metadata)
    own = adapter.metadata
    profile = profile or adapter.profile or "portable"
    code = name_of(dtype) if dtype in DTYPES.values() else own.get("spectral.dtype", "F16") if dtype is None else ""
    if code not in DTYPES:
        raise refusal(path, "dtype", dtype, "torch.float16, bfloat16 or float32", "Choose one of these")
    _check_adapter(path, adapter, profile)
    base_name, base_hash = base_name or adapter.base_name, base_hash or own.get("spectral.base_hash", "")
    words = tuple(trigger_words) or tuple(adapter.trigger_words)

    with single_threaded():
        tensors, facts = _pack_all(path, adapter, profile, DTYPES[code])
        table = own_metadata(adapter.method, profile, code, facts, base_name, base_hash, words)
        table |= host_metadata(facts_of(path, adapter, base_name, base_hash, words), given)
        table |= kohya_hashes(tensors, table)
        check_metadata(table, path)
        check_values(path, validate(path, table, {key: tuple(t.shape) for key, t in tensors.items()}), tensors)
    entries, data = data_block(tensors)
    write(path, [header_bytes(table, entries), data], overwrite=overwrite)
    return path


def _header(f: BinaryIO, path: Path) -> Header:
    header = read_header(f, path, kind_of_bytes)
    if "spectral.format_version" in header.metadata:
        return header
    kind, advice = kind_of_names(header.entries) or ("a safetensors file of unknown kind", "Choose an adapter file")
    module = header.metadata.get("ss_network_module", "")
    written = f" (written by {shown(module, 40)})" if module else ""
    raise refusal(path, "the file's kind", kind + written, "a spectral adapter, format 1", advice)


def _layer(name: str, plan: Plan, tensors: Mapping[str, Tensor]) -> AdapterLayer:
    facts = plan.layers[name]
    m, n = facts.matrix

    def read(part: str) -> Tensor:
        return tensors[f"{name}.{part}"].float()

    params = {part: read(part) for part in plan.method.param_shapes(facts.shape, len(facts.columns))}
    columns = None if len(facts.columns) == min(m, n) else facts.columns
    sketched = plan.profile == "compact" and plan.method.sign_sensitive
    evidence = Evidence(
        facts.base,
        read("sigma"),
        read("sketch_u") if sketched else None,
        read("sketch_v") if sketched else None,
        read("probe") if plan.profile == "compact" else None,
    )
    frames = None
    if plan.profile == "portable":
        frames = Basis(
            evidence.sigma,
            facts.columns,
            (m, n),
            u=read("frame_u"),
            v=read("frame_v"),
            sigma_max=facts.sigma_max,
            fingerprint=facts.base,
        )
    return AdapterLayer(name, facts.shape, params, columns, frames, evidence)


def _given(path: Path, adapter: Adapter, metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The caller's metadata over the adapter's, without what is written anew."""
    for key in metadata or {}:
        if key.startswith(("spectral.", "sshs_")):
            advice = "Leave it out; save writes it"
            raise refusal(path, f"metadata {shown(key)}", "a key of the format itself", "another key", advice)
    both = {**adapter.metadata, **(metadata or {})}
    return {key: value for key, value in both.items() if not key.startswith(("spectral.", "sshs_"))}


def _check_adapter(path: Path, adapter: Adapter, profile: Profile) -> None:
    if not adapter.layers:
        raise refusal(path, "the adapter", "no layers", "at least one", "Train it on some layers first")
    if adapter.gains and not adapter.method.shifts_gains:
        found, advice = f"{len(adapter.gains)} norm gains", "Make the method with norms"
        raise refusal(path, "the adapter", found, f"none, for {adapter.method.name} without norms", advice)
    for name, layer in (*adapter.layers.items(), *adapter.gains.items()):
        if layer.name != name:
            raise refusal(path, f"layer {name}", f"the name {layer.name!r} inside", "the same name", "Rename the layer")
    if profile == "portable" and not adapter.method.portable:
        found, advice = f"portable for {adapter.method.name}", "Save it as compact"
        raise refusal(path, "profile", found, "compact: this change needs its base's whole weight", advice)


def _pack_all(
    path: Path, adapter: Adapter, profile: Profile, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, dict[str, object]]]:
    tensors: dict[str, Tensor] = {}
    facts: dict[str, dict[str, object]] = {}
    for name, layer in adapter.layers.items():
        parts, facts[name] = _pack(path, adapter.method, layer, profile, dtype)
        tensors |= {f"{name}.{part}": t for part, t in parts.items()}
    for name, gain in adapter.gains.items():
        key, plain = f"{name}.{GAIN}", gain.shift.detach().to("cpu", torch.float32)
        tensors[key], facts[name] = plain.to(dtype), {"shape": list(gain.shape), "base": gain.base}
        _check_finite(path, key, plain, tensors[key])
    return tensors, facts


def _pack(
    path: Path, method: Method, layer: AdapterLayer, profile: Profile, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of one layer as stored, and its line in `spectral.layers`."""
    params = {}
    for part, p in layer.params.items():
        plain = p.detach().to("cpu", torch.float32)
        params[part] = plain if method.groups[part].exact else plain.to(dtype)
        _check_finite(path, f"{layer.name}.{part}", plain, params[part])
    evidence = _evidence(path, method, layer, profile, params)
    parts = dict(params)
    if profile == "portable":
        frames = layer.frames
        if frames is None:
            advice = "Save it as compact, or make it from its base again"
            raise refusal(path, f"layer {layer.name}", "no frames", "frames, for a portable file", advice)
        u, v = (t.detach().cpu().half() for t in (frames.u, frames.v))
        parts |= {"sigma": evidence.sigma, "frame_u": u, "frame_v": v}
    else:
        parts |= _compact_parts(method, evidence)
    facts = layer_facts(method, layer, evidence.fingerprint)
    if profile == "portable" and layer.frames is not None and layer.indices[0] != 0:
        # Which directions carry no signal is judged against the largest sigma, which these columns do not hold.
        facts["sigma_max"] = layer.frames.sigma_max
    return parts, facts


def _check_finite(path: Path, key: str, plain: Tensor, rounded: Tensor) -> None:
    if not bool(torch.isfinite(plain).all()):
        advice = "The training diverged; save an earlier state"
        raise refusal(path, f"parameter {key!r}", "NaN or infinity", "finite numbers", advice)
    if not bool(torch.isfinite(rounded).all()):
        found = f"values up to {float(plain.abs().max()):.3g}, beyond {name_of(rounded.dtype)}"
        raise refusal(path, f"parameter {key!r}", found, "values that fit", "Save with dtype=torch.float32")


def _evidence(
    path: Path, method: Method, layer: AdapterLayer, profile: Profile, params: Mapping[str, Tensor]
) -> Evidence:
    """Made from the frames where the layer has them, so that it describes the parameters as rounded; else as read."""
    frames = layer.frames
    if frames is None:
        if layer.evidence is None:
            advice = "Train it or load it from a file"
            raise refusal(path, f"layer {layer.name}", "neither frames nor evidence", "one of them", advice)
        return layer.evidence
    if profile == "portable":
        return Evidence(frames.fingerprint[:FINGERPRINT_DIGITS], frames.s.detach().to("cpu", torch.float32))
    rounded = replace(layer, params=dict(params))
    change = change_of(method, rounded, frames, on_device(frames, rounded))
    return make_evidence(layer.name, frames, change, sketch=method.sign_sensitive)


def _compact_parts(method: Method, evidence: Evidence) -> dict[str, Tensor]:
    """What the evidence lacks is missing here too, and `validate` names it."""
    if not method.sign_sensitive:
        found = {"sigma": _short(evidence.sigma), "probe": evidence.probe}
    else:
        sketches = (evidence.sketch_u, evidence.sketch_v)
        su, sv = (None if sketch is None else sketch.half() for sketch in sketches)
        found = {"sigma": evidence.sigma, "probe": evidence.probe, "sketch_u": su, "sketch_v": sv}
    return {part: t for part, t in found.items() if t is not None}


def _short(sigma: Tensor) -> Tensor:
    """As fp16 where it fits: for these methods sigma is information, and as long as the parameters themselves."""
    half = sigma.half()
    return half if bool(torch.isfinite(half).all()) else sigma


def layer_facts(method: Method, layer: AdapterLayer, fingerprint: str) -> dict[str, object]:
    """The layer's line in `spectral.layers`, but for sigma_max."""
    facts: dict[str, object] = {"shape": list(layer.shape), "base": fingerprint}
    if layer.indices != resolve_columns(method.columns, min(layer.matrix)):
        facts["columns"] = list(layer.indices)
    return facts


def own_metadata(
    method: Method,
    profile: Profile,
    code: str,
    facts: Mapping[str, object],
    base_name: str,
    base_hash: str,
    words: Sequence[str],
) -> dict[str, str]:
    """The `spectral.*` metadata; `facts` are the lines of all layers and norms."""
    table = {
        "format_version": FORMAT_VERSION,
        "method": method.name,
        "settings": json.dumps(method.settings, sort_keys=True),
        "columns": method.columns.text,
        "profile": profile,
        "dtype": code,
        "strength": STRENGTH,
        "layers": json.dumps(facts, separators=(",", ":")),
        "base_name": base_name,
        "base_hash": base_hash,
        "trigger_words": json.dumps(list(words), ensure_ascii=False) if words else "",
    }
    return {f"spectral.{key}": value for key, value in table.items() if value}


def facts_of(path: Path, adapter: Adapter, base_name: str, base_hash: str, words: tuple[str, ...]) -> Facts:
    """What an adapter's file tells other programs of it."""
    counts = {len(layer.indices) for layer in adapter.layers.values()}
    family = guess_family({name: layer.shape for name, layer in adapter.layers.items()})
    rank = counts.pop() if len(counts) == 1 and adapter.method.columns.kind != "all" else None
    return Facts(path.stem, adapter.method.name, family, rank, base_name, base_hash, words)
