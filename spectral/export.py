"""Write an export (`convert.to_lora`, `convert.to_diff`) as a safetensors file that other programs read."""

from __future__ import annotations

import os
from pathlib import Path

from .adapter import Adapter
from .container import data_block, header_bytes, refusal, refuse_existing, write
from .convert import Export
from .hostmeta import kohya_hashes
from .source import Source, as_source

SUFFIX = ".safetensors"


def write_export(export: Export, source: Source | Adapter, path: str | os.PathLike[str]) -> Path:
    """Write `export`, whole or not at all, with the source's metadata for hosts; its path.

    `spectral.export` records the kind of source it came from and what the export lost. Raises AdapterFileError for an
    existing file, a missing folder or another suffix.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise refusal(path, "the name", path.name, f"a name ending in {SUFFIX}", "Rename it")
    refuse_existing(path, overwrite=False)
    source, tensors = as_source(source), dict(export)
    metadata = {k: v for k, v in source.metadata.items() if not k.startswith(("spectral.", "sshs_"))}
    metadata |= {
        "ss_network_module": "networks.lora",
        "ss_output_name": path.stem,
        "spectral.export": f"from {source.kind}: {export.residual}",
    }
    if export.residual.ranks:
        rank = str(max(export.residual.ranks.values()))
        metadata |= {"ss_network_dim": rank, "ss_network_alpha": rank}
    for stale in ("ss_network_args", "lora_adapter_metadata"):  # of what was read: ranks and scales, in PEFT's case
        metadata.pop(stale, None)
    metadata |= kohya_hashes(tensors, metadata)
    entries, data = data_block(tensors)
    write(path, [header_bytes(metadata, entries), data], overwrite=False)
    return path
