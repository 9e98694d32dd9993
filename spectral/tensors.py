"""The tensors of a safetensors file of another tool: checked as a whole when it is opened, then read one by one.

Nothing stays open or in memory between two reads, so a file of gigabytes costs no more than its largest layer, and
can be replaced or deleted while it is in use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .container import AGAIN, Entry, layout, open_file, read_header, refusal
from .foreign import kind_of_bytes

# What other tools store besides the dtypes of format 1: ranks and alphas as integers, weights in fp8.
_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
}
SIZES = {code: torch.empty(0, dtype=dtype).element_size() for code, dtype in _DTYPES.items()}


class TensorFile:
    """A validated safetensors file. shapes: {key: shape}; metadata: the entries that can be shown.

    Raises AdapterFileError for a file that is none, is damaged, or holds NaN or infinity.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with open_file(self.path) as f:
            header = read_header(f, self.path, kind_of_bytes, strict=False)
            self._entries = layout(header, self.path, SIZES)
            self._begin = len(header.raw)
            self._stamp = _stamp(f)
            self._check_numbers(f)
        self.metadata = header.metadata
        self.shapes = {key: entry.shape for key, entry in self._entries.items()}

    def read(self, keys: Sequence[str]) -> list[Tensor]:
        """Tensors as fp32 on the CPU. Raises AdapterFileError where the file was changed since it was opened."""
        with open_file(self.path) as f:
            if _stamp(f) != self._stamp:
                found, advice = "another file than the one that was checked", "Open it again"
                raise refusal(self.path, "the file", found, "the same", advice)
            return [self._one(f, self._entries[key]) for key in keys]

    def _one(self, f: BinaryIO, entry: Entry) -> Tensor:
        f.seek(self._begin + entry.begin)
        raw = bytearray(f.read(entry.end - entry.begin))
        if len(raw) != entry.end - entry.begin:
            raise refusal(self.path, "its data", "an early end", "every tensor", f"It is cut off. {AGAIN}")
        if not raw:
            return torch.empty(entry.shape)
        return torch.frombuffer(raw, dtype=_DTYPES[entry.dtype]).reshape(entry.shape).float()

    def _check_numbers(self, f: BinaryIO) -> None:
        for key, t in self._all(f):
            # A finite sum has finite parts; one that overflowed is looked at number by number.
            if not bool(torch.isfinite(t.sum())) and not bool(torch.isfinite(t).all()):
                advice = "Take another file"
                raise refusal(self.path, f"tensor {key!r}", "NaN or infinity", "finite numbers", advice)

    def _all(self, f: BinaryIO) -> Iterator[tuple[str, Tensor]]:
        for key, entry in sorted(self._entries.items(), key=lambda item: item[1].begin):
            yield key, self._one(f, entry)


def _stamp(f: BinaryIO) -> tuple[int, int]:
    found = os.fstat(f.fileno())
    return found.st_size, found.st_mtime_ns
