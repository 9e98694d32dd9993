"""The metadata that other programs read: ModelSpec for hubs and viewers, kohya's `ss_*` for the Stable Diffusion UIs.

Values given by the caller always win; here are the ones that can be known from the adapter itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from torch import Tensor

from .container import data_block, header_bytes
from .names import Family

MODELSPEC_VERSION = "1.0.1"
IMPLEMENTATION = "spectral_adapters"
WRITTEN = "Spectral adapter, method"  # how the description begins that nobody gave
# kohya writes ".../lora" for every network module and UIs filter by exactly these strings.
_ARCHITECTURE: dict[Family, str] = {
    "sd1": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-512/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
}
_BASE_VERSION: dict[Family, str] = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_V_PREDICTION = {"v", "v-prediction", "v_prediction"}


@dataclass(frozen=True)
class Facts:
    """What an adapter knows of itself. rank: columns per layer where it is one number, else None."""

    name: str
    method: str
    family: Family | None
    rank: int | None
    base_name: str
    base_hash: str
    trigger_words: tuple[str, ...]


def host_metadata(facts: Facts, given: Mapping[str, str]) -> dict[str, str]:
    """`given` completed with `modelspec.*` and `ss_*`; a value that cannot be known is left out, never made up."""
    known = {
        "modelspec.sai_model_spec": MODELSPEC_VERSION,
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": facts.name,
        "modelspec.date": datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None).isoformat() + "Z",
        "modelspec.description": f"{WRITTEN} {facts.method}",
        "ss_output_name": facts.name,
        "ss_network_module": IMPLEMENTATION,
        "ss_network_args": f'{{"method": "{facts.method}"}}',
        **_family_metadata(facts.family, given),
    }
    if facts.rank is not None:
        known |= {"ss_network_dim": str(facts.rank), "ss_network_alpha": str(facts.rank)}
    if facts.base_name:
        known["ss_sd_model_name"] = facts.base_name
    if len(facts.base_hash) == 64:
        known["ss_new_sd_model_hash"] = facts.base_hash
    merged = known | dict(given)
    if facts.trigger_words:
        merged["modelspec.trigger_phrase"] = ", ".join(facts.trigger_words)
    return merged


def _family_metadata(family: Family | None, given: Mapping[str, str]) -> dict[str, str]:
    if family is None:
        return {"modelspec.architecture": "unknown/lora"}
    architecture, version = _ARCHITECTURE[family], _BASE_VERSION[family]
    if family == "sd2" and given.get("modelspec.prediction_type", "").lower() in _V_PREDICTION:
        architecture, version = "stable-diffusion-v2-768-v/lora", "sd_v2_v"
    return {
        "modelspec.architecture": architecture,
        "ss_base_model_version": version,
        "ss_v2": str(family == "sd2"),
    }


def kohya_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`sshs_model_hash` and `sshs_legacy_hash` as kohya's tools define them, and ModelSpec's hash.

    The first is the SHA-256 of the data block; the second the first 8 digits of the SHA-256 of the 64 KiB at offset
    1 MiB of the file that would hold only the `ss_*` metadata. Without them hosts show different hashes for one file.
    """
    entries, data = data_block(tensors)
    head = header_bytes({k: v for k, v in metadata.items() if k.startswith("ss_")}, entries)
    window = (head + data)[0x100000:0x110000]
    digest = hashlib.sha256(data).hexdigest()
    return {
        "modelspec.hash_sha256": f"0x{digest}",
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(window).hexdigest()[:8],
    }
