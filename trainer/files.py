"""The only place of the trainer that writes what must survive a power cut.

A file appears whole under its name or not at all: a temporary file in the same folder, fsync, rename, fsync of the
folder. A folder likewise: filled under a temporary name, synced, renamed. What a killed process leaves behind carries a
temporary name (`.NAME.HEX.tmp`) and is removed by `clean`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ..spectral.disk import sync_folder
from ..spectral.errors import SpectralError

CHUNK = 1 << 20  # bytes of one write call
MARGIN = 32 << 20  # bytes that stay free beside what is written: for events, samples and other programs
_BINARY = getattr(os, "O_BINARY", 0)
_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds; virus scanners and indexers hold a new file for moments on Windows


def write_bytes(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, or leave it as it was. Raises OSError."""
    temporary = beside(path)
    try:
        write_new(temporary, data)
        replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Write a file that does not exist yet, in chunks, and sync it. Raises OSError; then a part may be left."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        write_all(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write every byte to an open file."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left[:CHUNK]) :]


def open_append(path: Path) -> int:
    """A handle whose every write goes to the end of the file, also with several writers."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)


def replace(source: Path, target: Path) -> None:
    """os.replace that waits a little for other programs' hands on Windows."""
    for wait in _WAITS if os.name == "nt" else ():
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(wait)
    return os.replace(source, target)


def sync_file(path: Path) -> None:
    """Wait until a file written by someone else is on the disk."""
    handle = os.open(path, os.O_RDWR | _BINARY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where missing. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.mkdir(folder)
        sync_folder(folder.parent)


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `final` at the end of the block, or vanishes when the block fails.

    What lay at `final` is removed in the moment of the change. Raises OSError.
    """
    temporary = beside(final)
    os.mkdir(temporary)
    try:
        yield temporary
        commit_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def commit_folder(temporary: Path, final: Path) -> None:
    """Give a filled folder its name; its files must have been synced."""
    sync_folder(temporary)
    old = beside(final)
    if final.exists():
        replace(final, old)
    replace(temporary, final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def discard_folder(folder: Path) -> None:
    """Remove a folder that is complete until the moment it is gone."""
    doomed = beside(folder)
    replace(folder, doomed)
    shutil.rmtree(doomed)


def free_name(path: Path) -> Path:
    """`path`, or `name-2`, `name-3` … where a file has appeared while training ran: the work must not be lost."""
    return next(free for stem in numbered(path.stem) if not (free := path.with_stem(stem)).exists())


def numbered(name: str) -> Iterator[str]:
    """NAME, NAME-2, NAME-3, ...: what is tried in turn where a name may be taken."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def tail(path: Path, most: int) -> str:
    """The last `most` bytes of a file as text. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return file.read(most).decode("utf-8", "replace")


def clean(folder: Path) -> None:
    """Remove what killed processes left under temporary names. Only for the process that owns the folder."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)


def beside(path: Path) -> Path:
    """A fresh temporary name in the folder of `path`."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    found = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(CHUNK):
            found.update(block)
    return found.hexdigest()


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to the disk of a folder, which need not exist yet."""
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, need: int, what: str) -> None:
    """Raise SpectralError unless `need` bytes and a margin are free on the disk of `folder`."""
    free = free_bytes(folder)
    if free < need + MARGIN:
        raise SpectralError(
            f"{folder}: found {free / 1e6:.0f} MB free on its disk, expected {(need + MARGIN) / 1e6:.0f} MB for "
            f"{what}. Free some space, or choose a folder on another disk with run."
        )


def refusal(what: str, path: Path, error: OSError, advice: str) -> SpectralError:
    """The sentence for a write that the operating system declined."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    cause = "the disk is full" if full else f"{error.strerror or error}"
    return SpectralError(f"{path}: {what} failed: found that {cause}, expected a writable place. {advice}.")
