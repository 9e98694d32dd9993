"""Open any file of weight changes as a `Source`: an adapter of this package, or a file of the LoRA family."""

from __future__ import annotations

import os
from pathlib import Path

from .container import open_file, read_header, refusal, shown
from .file import load
from .foreign import kind_of_bytes, kind_of_names
from .foreign_lora import LoraFile, is_lora
from .source import AdapterSource, Source
from .tensors import TensorFile


def open_source(path: str | os.PathLike[str]) -> Source:
    """The changes that a file holds: our own format as `load` reads it, or LoRA, LoCon, LoHa, LoKr, DoRA, `.diff`.

    Everything is checked before it returns: limits of size, names, shapes, finite numbers. Pickles are refused.
    Raises AdapterFileError, which says what the file is and what to do with it.
    """
    path = Path(path)
    with open_file(path) as f:
        header = read_header(f, path, kind_of_bytes, strict=False)
    if "spectral.format_version" in header.metadata:
        return AdapterSource(load(path), path.stem)
    if is_lora(header.entries):
        return LoraFile(TensorFile(path))
    unknown = ("a safetensors file of unknown kind", "Choose an adapter or a LoRA")
    kind, advice = kind_of_names(header.entries) or unknown
    module = header.metadata.get("ss_network_module", "")
    written = f" (written by {shown(module, 40)})" if module else ""
    raise refusal(path, "the file's kind", kind + written, "a spectral adapter or a file of the LoRA family", advice)
