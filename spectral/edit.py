"""Edit what a file says of itself. Its tensors are copied byte for byte, so every hash of them stays as it was."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .container import MAX_HEADER, check_metadata, layout, open_file, read_header, refusal, write
from .errors import SettingError
from .file import read_metadata
from .foreign import kind_of_bytes
from .preview import COVERS, THUMBNAIL, data_url
from .tensors import SIZES

_CHUNK = 16 << 20
_WORDS = "spectral.trigger_words"


def edit(
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    description: str | None = None,
    trigger_words: Sequence[str] | None = None,
    licence: str | None = None,
    author: str | None = None,
    preview: bytes | None = None,
) -> Path:
    """Write new texts into an adapter file, or into a LoRA's, whole or not at all; its path.

    None leaves an entry as it is; "", () and b"" take it out. preview: a PNG, JPEG, WebP or GIF, kept as it is
    (`trainer.edit` makes a small one of any picture). The words are kept one by one and as ModelSpec's trigger phrase.
    A link stays a link: the file that it names is written.
    Raises AdapterFileError for a file that is none or cannot be written, and for texts of control characters or above
    65,536 characters; SettingError for a preview that is no picture or above 0.75 MiB. Nothing is changed then.
    """
    texts = {
        "modelspec.title": title,
        "modelspec.description": description,
        "modelspec.license": licence,
        "modelspec.author": author,
    }
    changes = {key: text.strip() for key, text in texts.items() if text is not None}
    if preview is not None:
        changes |= {THUMBNAIL: data_url(preview) if preview else "", COVERS: ""}
    path = Path(path)
    real = Path(os.path.realpath(path))
    if trigger_words is not None:
        changes |= _words(trigger_words, own=_is_own(real))
    if changes:
        _rewrite(real, changes)
    return path


def _words(words: Sequence[str], *, own: bool) -> dict[str, str]:
    if isinstance(words, str):
        raise SettingError(f"trigger words: found the text {words!r}, expected a list of texts, such as [{words!r}]")
    kept = [word.strip() for word in words if word.strip()]
    phrase = {"modelspec.trigger_phrase": ", ".join(kept)}
    return phrase | ({_WORDS: json.dumps(kept, ensure_ascii=False) if kept else ""} if own else {})


def _is_own(path: Path) -> bool:
    with open_file(path) as f:
        return "spectral.format_version" in read_header(f, path, kind_of_bytes, strict=False).metadata


def _rewrite(path: Path, changes: Mapping[str, str]) -> None:
    """The same file with these metadata entries; those of "" are taken out."""
    own = _is_own(path)
    if own:
        read_metadata(path)  # nothing is written over a file that would not be read
    with open_file(path) as f:
        before = os.fstat(f.fileno())
        header = read_header(f, path, kind_of_bytes, strict=False)
        layout(header, path, SIZES)
    table = json.loads(header.raw[8:])
    known = {key: text for key, text in table.pop("__metadata__", {}).items() if key not in changes}
    metadata = dict(sorted((known | {key: text for key, text in changes.items() if text}).items()))
    # Other tools' entries may be beyond our limits, and stay.
    check_metadata(metadata if own else changes, path)
    text = json.dumps({"__metadata__": metadata, **table}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    if len(text) > MAX_HEADER:
        advice = "Shorten the texts, or take a smaller preview"
        raise refusal(path, "its header with the changes", f"{len(text)} bytes", f"at most {MAX_HEADER}", advice)
    beginning = len(text).to_bytes(8, "little") + text
    write(path, _parts(path, beginning, len(header.raw), before), overwrite=True)
    with contextlib.suppress(OSError):  # some file systems have no such rights
        os.chmod(path, stat.S_IMODE(before.st_mode))


def _parts(path: Path, beginning: bytes, skipped: int, before: os.stat_result) -> Iterator[bytes]:
    """The new header and, bit for bit, the old data. The old file is closed when they have been read."""
    yield beginning
    with open_file(path) as f:
        now = os.fstat(f.fileno())
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise refusal(path, "the file", "that it was changed meanwhile", "the same file", "Edit it again")
        f.seek(skipped)
        while chunk := f.read(_CHUNK):
            yield chunk
