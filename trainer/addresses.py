"""The addresses under which pages find a job's files. They carry the file's time, so that a browser may keep them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

PREFIX = "/spectral_adapters"
THUMB = 256  # pixels of a small picture's longer side


def file_address(job: str, file: Path, *parts: str, size: int | None = None) -> str | None:
    """The address of a job's file, `parts` being its place for the routes; None where there is no such file."""
    try:
        stamp = file.stat().st_mtime_ns // 1_000_000
    except OSError:
        return None
    path = "/".join(quote(part, safe="") for part in ("jobs", job, "files", *parts))
    return f"{PREFIX}/{path}?v={stamp}{'' if size is None else f'&size={size}'}"


def both(job: str, file: Path, *parts: str) -> dict[str, str | None]:
    """The addresses of the whole picture and of a small one."""
    return {"url": file_address(job, file, *parts), "thumb": file_address(job, file, *parts, size=THUMB)}
