"""The base models there are to train on, with what their headers say of them."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .layering import base_kind

if TYPE_CHECKING:
    from .places import Places

TINY = "tiny"


def describe(places: Places) -> list[dict[str, Any]]:
    """[{"name", "kind", "bytes"}] with the bundled base first; bytes is None for a folder."""
    found = sorted(places.bases().items())
    return [{"name": TINY, "kind": TINY, "bytes": None}, *(_one(name, path) for name, path in found if name != TINY)]


def _one(name: str, path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
    except OSError:
        return {"name": name, "kind": None, "bytes": None}
    return {"name": name, "kind": _kind(path, stat.st_mtime_ns), "bytes": None if path.is_dir() else stat.st_size}


@lru_cache(maxsize=4096)
def _kind(path: Path, _changed: int) -> str:
    """Kept by the file's time: a folder of checkpoints has thousands of headers' worth of disk reads."""
    return base_kind(os.fspath(path))
