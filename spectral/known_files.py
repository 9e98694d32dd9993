"""Which files of a folder are adapters of this package: told by their headers alone, and each header read only once.

LoRA folders hold thousands of files of many megabytes; a list of them is asked for at every look at a page.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .container import MAX_HEADER, write
from .errors import AdapterFileError

MARK = "spectral.format_version"  # the metadata that every version of the format has, and no other file
_OPENING = b'{"__metadata__":'
_HEAD = 64 << 10  # bytes that are read at first; most metadata ends there, and the table of tensors behind it is longer
_READERS = 8  # at once: most of the time is spent waiting for the disk
_LARGEST = 16 << 20  # bytes of the store; 50,000 files with long paths need about 8 MB

_Stamp = tuple[int, int]  # time of the last change in ns, bytes


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file's header says that it is an adapter of this package, whatever its version.

    False for everything else: other kinds of files, broken ones, what cannot be read.
    """
    try:
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > MAX_HEADER:
                return False
            head = f.read(min(length, _HEAD))
            metadata = _leading(head)
            if metadata is None and MARK.encode() in (raw := head + f.read(length - len(head))):
                metadata = json.loads(raw)["__metadata__"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
    return isinstance(metadata, dict) and MARK in metadata


def _leading(head: bytes) -> object:
    """The metadata, where it stands first, as writers of safetensors put it, and ends within `head`; else None."""
    if not head.startswith(_OPENING):
        return None
    try:
        return json.JSONDecoder().raw_decode(head.decode("utf-8", "replace"), len(_OPENING))[0]
    except (ValueError, RecursionError):
        return None


class KnownFiles:
    """What `is_adapter` found of files, by path, until they change. store: a file that keeps it between processes.

    A store that is missing, broken or cannot be written costs time, nothing else. Used by several threads at once.
    """

    def __init__(self, store: Path | None = None):
        self._store, self._lock = store, threading.Lock()
        self._found: dict[str, tuple[_Stamp, bool]] | None = None

    def adapters(self, paths: Iterable[str]) -> set[str]:
        """Those of the paths that are files of this package's format."""
        stamps = {path: stamp for path in paths if (stamp := _stamp(path)) is not None}
        with self._lock:
            known = _read(self._store) if self._found is None else self._found
            kept = {path: known[path] for path, stamp in stamps.items() if path in known and known[path][0] == stamp}
            new = [path for path in stamps if path not in kept]
            with ThreadPoolExecutor(_READERS) as pool:
                kept |= {path: (stamps[path], own) for path, own in zip(new, pool.map(is_adapter, new))}
            self._found = kept
            if self._store is not None and (new or kept.keys() != known.keys()):
                _write(self._store, kept)
        return {path for path, (_, own) in kept.items() if own}


def _stamp(path: str) -> _Stamp | None:
    """None for what is no regular file: reading a pipe would wait for ever."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return (found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None


def _read(store: Path | None) -> dict[str, tuple[_Stamp, bool]]:
    """{path: (stamp, whether it is ours)}; empty where the file is not as `_write` leaves it."""
    try:
        if store is None or store.stat().st_size > _LARGEST:
            return {}
        rows = json.loads(store.read_bytes())
        return {str(path): ((int(time), int(size)), own is True) for path, (time, size, own) in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _write(store: Path, found: dict[str, tuple[_Stamp, bool]]) -> None:
    rows = {path: [*stamp, own] for path, (stamp, own) in found.items()}
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write(store, [json.dumps(rows).encode()], overwrite=True)
    except (OSError, AdapterFileError):
        return  # as on a disk that is full: the headers are read again next time
