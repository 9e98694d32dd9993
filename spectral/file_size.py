"""How large an adapter's file will be, from shapes alone: the header as `save` writes it, and the tensors' bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from .adapter import Adapter, AdapterLayer
from .container import Entry, header_bytes
from .evidence import FINGERPRINT_DIGITS
from .file import facts_of, layer_facts, own_metadata
from .format1 import LayerPlan, layer_parts
from .hostmeta import host_metadata
from .methods import GAIN

_BYTES = {"F32": 4, "F16": 2}
_PRINT = "0" * FINGERPRINT_DIGITS
_HASHES = {"modelspec.hash_sha256": "0x" + "0" * 64, "sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}


def file_size(
    adapter: Adapter,
    path: Path,
    *,
    base_name: str,
    trigger_words: tuple[str, ...],
    metadata: Mapping[str, str],
) -> int:
    """Bytes of the file that `save` would write, for an adapter whose tensors may be without data.

    In the adapter's own profile, with fp16 parameters. base_name, trigger_words, metadata: as for `save`; the base's
    hash counts as known. A few bytes off where numbers in the header have other lengths.
    """
    kinds = {
        f"{name}.{part}": (shape, kind)
        for name, layer in adapter.layers.items()
        for part, (shape, kind) in _parts(adapter, layer).items()
    }
    kinds |= {f"{name}.{GAIN}": (gain.shape, "F16") for name, gain in adapter.gains.items()}
    entries, end = {}, 0
    for key, (shape, kind) in sorted(kinds.items(), key=lambda item: (item[1][1] != "F32", item[0])):
        size = _BYTES[kind] * math.prod(shape)
        entries[key], end = Entry(kind, shape, end, end + size), end + size
    digits = "0" * 64
    table = own_metadata(
        adapter.method, adapter.profile, "F16", _facts(adapter), base_name, digits, trigger_words
    ) | host_metadata(facts_of(path, adapter, base_name, digits, trigger_words), metadata)
    return len(header_bytes(table | _HASHES, entries)) + end


def _parts(adapter: Adapter, layer: AdapterLayer) -> dict[str, tuple[tuple[int, ...], str]]:
    """Every tensor of a layer: shape, and dtype in the file."""
    method, profile = adapter.method, adapter.profile
    exact = {part for part in layer.params if method.groups[part].exact} | {"probe"}
    if profile == "portable" or method.sign_sensitive:
        exact.add("sigma")
    shapes = layer_parts(method, profile, LayerPlan(layer.shape, layer.indices, _PRINT, None))
    return {part: (shape, "F32" if part in exact else "F16") for part, shape in shapes.items()}


def _facts(adapter: Adapter) -> dict[str, dict[str, object]]:
    facts = {}
    for name, layer in adapter.layers.items():
        facts[name] = layer_facts(adapter.method, layer, _PRINT)
        if adapter.profile == "portable" and layer.indices[0] != 0:
            facts[name]["sigma_max"] = 1 / 3  # as many digits as most numbers
    return facts | {name: {"shape": list(gain.shape), "base": _PRINT} for name, gain in adapter.gains.items()}
