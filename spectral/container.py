"""The safetensors container: reading a header that nobody vouches for, and writing a file whole or not at all.

Knows nothing of adapters. A file is 8 bytes of header length (little endian), a JSON object, then the tensors' bytes.
Every refusal names the file, what was found, what was expected and what to do.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import load as load_bytes
from torch import Tensor

from .disk import sync_folder
from .errors import AdapterFileError

MAX_FILE = 4 << 30  # bytes; SDXL with every layer at rank 256 needs about 2 GiB
MAX_HEADER = 8 << 20  # bytes; SDXL with every layer needs about 1 MiB, a preview picture another
MAX_TENSORS = 32_768
MAX_DIMENSIONS = 8
MAX_LENGTH = 1 << 30  # of one dimension
MAX_METADATA = 1_024  # keys
MAX_KEY = 512  # characters of a tensor's or a metadata key's name
MAX_VALUE = 65_536  # characters of a metadata value, unless LONG_VALUES says otherwise
# A preview as a data URL, kohya's tag counts and folder lists, and our own table of layers are long for good reasons.
LONG_VALUES = {
    "spectral.layers": 2 << 20,
    "modelspec.thumbnail": 1 << 20,
    "ss_tag_frequency": 1 << 20,
    "ss_bucket_info": 1 << 20,
    "ss_dataset_dirs": 1 << 20,
    "ss_datasets": 1 << 20,
    "ssmd_cover_images": 1 << 20,
}
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
# The library's own order, which a file must follow for other tools to compute the same hash of the data block.
_ORDER = ("F32", "BF16", "F16")
_SIZE = {"F16": 2, "BF16": 2, "F32": 4}
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
AGAIN = "Download or copy the file again"


@dataclass(frozen=True)
class Entry:
    """What the header says of one tensor; `begin` and `end` count bytes from the start of the data block."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A parsed header. `entries` is unchecked JSON until `layout` has read it."""

    raw: bytes
    metadata: dict[str, str]
    entries: dict[str, object]
    data_bytes: int


def refusal(path: Path, what: str, found: object, expected: object, advice: str) -> AdapterFileError:
    """The one shape of every message about a file."""
    return AdapterFileError(f"{path}: {what}: found {found}, expected {expected}. {advice}.")


def shown(value: object, limit: int = 80) -> str:
    """Untrusted text made short and printable for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises AdapterFileError."""
    try:
        if path.is_dir():
            raise refusal(path, "the path", "a folder", "a .safetensors file", "Choose the file inside it")
        if path.exists() and not path.is_file():
            raise refusal(path, "the path", "a device or pipe", "a .safetensors file", "Choose another file")
        return open(path, "rb")
    except FileNotFoundError:
        raise refusal(path, "the path", "nothing", "a .safetensors file", "Check the name and the folder") from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise refusal(path, "opening it", e, "a readable file", "Check the name and your permissions") from e


def read_header(f: BinaryIO, path: Path, sniff: Callable[[bytes], str | None], *, strict: bool = True) -> Header:
    """Read and parse the header of an open file; no tensor is touched.

    `sniff` names a file of another kind by its first bytes. strict: refuse metadata beyond the limits; else it is left
    out, as with files of other tools, whose tag counts may be long. Raises AdapterFileError.
    """
    size = os.fstat(f.fileno()).st_size
    head = f.read(64)
    kind = sniff(head)
    if kind:
        raise refusal(path, "the file's kind", kind, "a spectral adapter (.safetensors)", "Choose an adapter file")
    if size < 8:
        raise refusal(path, "its size", f"{size} bytes", "at least 8 bytes of header length", f"It is cut off. {AGAIN}")
    if size > MAX_FILE:
        raise refusal(path, "its size", f"{size} bytes", f"at most {MAX_FILE}", "Choose an adapter, not a whole model")
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= MAX_HEADER:
        raise refusal(
            path, "its header length", length, f"2 to {MAX_HEADER} bytes", "It is no safetensors adapter, or damaged"
        )
    if 8 + length > size:
        raise refusal(path, "its size", f"{size} bytes", f"a header of {length} bytes", f"It is cut off. {AGAIN}")
    f.seek(0)
    raw = f.read(8 + length)
    table = _parse_json(raw[8:], path)
    return Header(raw, _metadata(table.pop("__metadata__", {}), path, strict), table, size - 8 - length)


def _parse_json(raw: bytes, path: Path) -> dict[str, object]:
    advice = f"It is no safetensors file, or damaged. {AGAIN}"
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise refusal(path, "its header", shown(str(e), 120), "one JSON object in UTF-8, no key twice", advice) from e
    if not isinstance(table, dict) or not raw.startswith(b"{"):
        raise refusal(path, "its header", type(table).__name__, "a JSON object", advice)
    return table


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"the key {shown(twice)} twice")
    return table


def _no_constant(name: str) -> float:
    raise ValueError(f"the number {name}")


def parse_object(text: str, what: str, path: Path) -> dict[str, object]:
    """A JSON object kept in a metadata value, with the strictness of the header. Raises AdapterFileError."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise refusal(path, what, shown(str(e), 120), "a JSON object, no key twice", AGAIN) from e
    if not isinstance(value, dict):
        raise refusal(path, what, shown(text), "a JSON object", AGAIN)
    return value


def _metadata(table: object, path: Path, strict: bool) -> dict[str, str]:
    if not isinstance(table, dict):
        raise refusal(path, "__metadata__", type(table).__name__, "an object of strings", AGAIN)
    if not strict:
        return fitting(table)
    check_metadata(table, path)
    return table


def fitting(table: Mapping[str, object]) -> dict[str, str]:
    """The entries of a metadata table that `check_metadata` has nothing against."""
    kept = ((key, value) for key, value in table.items() if _wrong_with(key, value) is None)
    return dict(itertools.islice(kept, MAX_METADATA))


def check_metadata(table: Mapping[str, object], path: Path) -> None:
    """Metadata is text to be shown: strings, not too many, not too long, nothing a terminal would obey."""
    if len(table) > MAX_METADATA:
        raise refusal(path, "__metadata__", f"{len(table)} keys", f"at most {MAX_METADATA}", "Remove some of them")
    for key, value in table.items():
        if (wrong := _wrong_with(key, value)) is not None:
            raise refusal(path, *wrong)


def _wrong_with(key: object, value: object) -> tuple[str, str, str, str] | None:
    """What, found, expected and advice where a metadata entry breaks the rules."""
    if not isinstance(key, str) or len(key) > MAX_KEY or not printable(key):
        return "a metadata key", shown(key), f"up to {MAX_KEY} printable characters", "Rename it"
    if not isinstance(value, str):
        return f"metadata {key!r}", type(value).__name__, "a string", "Write it as text"
    limit = LONG_VALUES.get(key, MAX_VALUE)
    if len(value) > limit:
        return f"metadata {key!r}", f"{len(value)} characters", f"at most {limit}", "Shorten it"
    if not printable(value):
        return f"metadata {key!r}", "control characters", "plain text", "Remove them"
    return None


def printable(text: str) -> bool:
    """Whether text holds no control characters but tab and line ends, and no lone surrogates."""
    # Escape codes would reach a terminal through `info`; lone surrogates cannot be written back.
    return _UNPRINTABLE.search(text) is None


def layout(header: Header, path: Path, sizes: Mapping[str, int] = _SIZE) -> dict[str, Entry]:
    """Check every tensor's entry: dtype known, shape x dtype = bytes, offsets contiguous to the file's end.

    sizes: the dtypes that may occur, and their bytes; those of format 1 unless given. Raises AdapterFileError.
    """
    if len(header.entries) > MAX_TENSORS:
        raise refusal(path, "its tensors", len(header.entries), f"at most {MAX_TENSORS}", "It is no adapter")
    entries = {key: _entry(key, value, path, sizes) for key, value in header.entries.items()}
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            what = "overlapping" if entry.begin < end else "unused"
            raise refusal(path, f"tensor {key!r}", f"{what} bytes before it", f"it to begin at byte {end}", AGAIN)
        end = entry.end
    if end != header.data_bytes:
        what = "It is cut off" if end > header.data_bytes else "Something was appended to it"
        raise refusal(path, "its data", f"{header.data_bytes} bytes", f"{end} bytes", f"{what}. {AGAIN}")
    return entries


def _entry(key: str, value: object, path: Path, sizes: Mapping[str, int]) -> Entry:
    what = f"tensor {shown(key)}"
    if len(key) > MAX_KEY or not printable(key):
        raise refusal(path, "a tensor's name", shown(key), f"up to {MAX_KEY} printable characters", AGAIN)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise refusal(path, what, shown(value), "dtype, shape and data_offsets", AGAIN)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in sizes:
        raise refusal(path, f"{what} dtype", shown(dtype), " or ".join(sizes), "Save the adapter again")
    if not _naturals(shape, MAX_LENGTH) or len(shape) > MAX_DIMENSIONS:
        raise refusal(path, f"{what} shape", shown(shape), f"at most {MAX_DIMENSIONS} whole numbers", AGAIN)
    if not _naturals(offsets, MAX_FILE) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refusal(path, f"{what} data_offsets", shown(offsets), "two ascending byte positions", AGAIN)
    size = math.prod(shape) * sizes[dtype]
    if offsets[1] - offsets[0] != size:
        raise refusal(path, what, f"{offsets[1] - offsets[0]} bytes", f"{size} for {dtype} {tuple(shape)}", AGAIN)
    return Entry(dtype, tuple(shape), *offsets)


def _naturals(value: object, limit: int) -> bool:
    # bool is an int to Python, so `type` and not isinstance.
    return isinstance(value, list) and all(type(i) is int and 0 <= i <= limit for i in value)


def read_tensors(f: BinaryIO, header: Header, path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of an open file whose layout has been checked, and the SHA-256 of the data block."""
    data = f.read(header.data_bytes + 1)
    if len(data) != header.data_bytes:
        expected = f"{header.data_bytes} bytes"
        raise refusal(path, "its data", f"{len(data)} bytes", expected, "It changed while being read; try again")
    return load_bytes(header.raw + data), hashlib.sha256(data).hexdigest()


def name_of(dtype: torch.dtype) -> str:
    """ "F16" for torch.float16; raises KeyError for a dtype that adapter files do not hold."""
    return {v: k for k, v in DTYPES.items()}[dtype]


def data_block(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Entry], bytes]:
    """Lay tensors out as the safetensors library does: widest dtype first, then by name."""
    order = sorted(tensors, key=lambda key: (_ORDER.index(name_of(tensors[key].dtype)), key))
    entries, parts, end = {}, [], 0
    for key in order:
        t = tensors[key].detach().cpu().contiguous()
        integers, little = (torch.int32, "<i4") if t.element_size() == 4 else (torch.int16, "<i2")
        raw = t.view(integers).numpy().astype(little).tobytes()  # as integers: numpy has no bfloat16
        entries[key] = Entry(name_of(t.dtype), tuple(t.shape), end, end + len(raw))
        parts.append(raw)
        end += len(raw)
    return entries, b"".join(parts)


def header_bytes(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> bytes:
    """Length and JSON, metadata in the order of its keys, so that equal contents give equal files."""
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for key, e in entries.items():
        table[key] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.begin, e.end]}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def write(path: Path, parts: Iterable[bytes], *, overwrite: bool) -> None:
    """Write a file whole or not at all: a temporary file beside it, fsync, rename.

    Refuses to replace an existing file unless `overwrite`. On any failure nothing is left behind.
    Raises AdapterFileError.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with open(temporary, "xb") as f:
                for part in parts:
                    f.write(part)
                f.flush()
                os.fsync(f.fileno())
            refuse_existing(path, overwrite)  # again: it may have appeared meanwhile
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        advice = "Check the folder, its permissions and the free space; nothing was changed"
        raise refusal(path, "writing it", e, "a writable place", advice) from e
    sync_folder(path.parent)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises AdapterFileError where `path` is taken, is a folder, or its folder does not exist."""
    if not path.parent.is_dir():
        raise refusal(path, "its folder", "nothing", "an existing folder", "Create the folder first")
    if path.is_dir():
        raise refusal(path, "the path", "a folder", "a file name", "Add a file name")
    if path.exists() and not overwrite:
        raise refusal(path, "the path", "an existing file", "a new name", "Choose another name or pass overwrite=True")
