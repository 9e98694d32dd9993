"""Decompositions kept on disk, addressed by the content of the weight they belong to.

One safetensors file per (content hash, columns). Writers replace whole files, so two processes may share a folder;
readers check a digest of the data, so a damaged entry is rebuilt and never trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

FOLDER_VARIABLE = "SPECTRAL_ADAPTERS_CACHE"
SIZE_VARIABLE = "SPECTRAL_ADAPTERS_CACHE_GB"
DEFAULT_GB = 10.0
_VERSION = "1"  # part of every key: raise it when the decomposition or its sign convention changes
_DIGEST = "digest"


def default_folder() -> Path:
    """$SPECTRAL_ADAPTERS_CACHE, else the user's cache folder of the operating system."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(base) / "spectral_adapters"


def default_bytes() -> int:
    """$SPECTRAL_ADAPTERS_CACHE_GB (a number of 10^9 bytes), else 10 GB: the full bases of two SDXL models."""
    try:
        return int(float(os.environ.get(SIZE_VARIABLE, DEFAULT_GB)) * 1e9)
    except ValueError:
        return int(DEFAULT_GB * 1e9)


@dataclass
class CacheStats:
    hits: int = 0
    misses: int = 0
    damaged: int = 0
    evicted: int = 0


class BasisCache:
    """A folder of decompositions with a size cap; the least recently used go first.

    Never fails a caller: an unreadable folder or a full disk means a slower run, and shows in `stats` as misses.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, max_bytes: int | None = None):
        self.folder = Path(folder) if folder is not None else default_folder()
        self.max_bytes = default_bytes() if max_bytes is None else max_bytes
        self.stats = CacheStats()

    def path(self, content_hash: str, part: str) -> Path:
        """The file of one decomposition; `part` names the columns, such as "small" or "top8"."""
        key = hashlib.sha256(f"{_VERSION}/{content_hash}/{part}".encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, content_hash: str, part: str) -> dict[str, Tensor] | None:
        """The stored tensors, or None where there are none that can be trusted."""
        path = self.path(content_hash, part)
        try:
            blob = path.read_bytes()
        except OSError:
            self.stats.misses += 1
            return None
        tensors = _decode(blob)
        if tensors is None:
            self.stats.damaged += 1
            self.stats.misses += 1
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        self.stats.hits += 1
        with contextlib.suppress(OSError):
            os.utime(path)  # last use, for the eviction order
        return tensors

    def put(self, content_hash: str, part: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors; quietly does nothing where the folder cannot be written or the entry exceeds the cap."""
        blob = _encode(tensors)
        if len(blob) > self.max_bytes:
            return
        try:
            self._make_room(len(blob))
            _write_atomically(self.path(content_hash, part), blob)
        except OSError:
            return

    def clear(self) -> int:
        """Delete every entry; the number of bytes freed."""
        entries = self._entries()
        for _, _, path in entries:
            with contextlib.suppress(OSError):
                path.unlink()
        return sum(size for _, size, _ in entries)

    def _entries(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.folder.glob("??/*.safetensors"):
            with contextlib.suppress(OSError):  # another process may have evicted it
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def _make_room(self, need: int) -> None:
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total + need <= self.max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                self.stats.evicted += 1
            total -= size


def _encode(tensors: dict[str, Tensor]) -> bytes:
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return save_bytes({**ready, _DIGEST: _digest(ready)})


def _decode(blob: bytes) -> dict[str, Tensor] | None:
    try:
        tensors = load_bytes(blob)
    except SafetensorError:
        return None
    stored = tensors.pop(_DIGEST, None)
    return tensors if stored is not None and torch.equal(stored, _digest(tensors)) else None


def _digest(tensors: dict[str, Tensor]) -> Tensor:
    h = hashlib.sha256()
    for name in sorted(tensors):
        h.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        h.update(tensors[name].numpy())
    return torch.tensor(list(h.digest()), dtype=torch.uint8)


def _write_atomically(path: Path, blob: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(blob)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
