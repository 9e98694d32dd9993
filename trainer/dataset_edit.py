"""Changes to datasets: new ones, pictures and captions put in, and everything taken out moved to the trash.

One change at a time, also between processes. Pictures keep the bytes that were sent; their suffix says what these are.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..spectral.errors import SettingError, SpectralError
from . import files
from .dataset_pictures import LONGEST_CAPTION, Room, find, rooms_of, shown_caption
from .decode import PictureFault, decode, picture_format, turn
from .folder import repeats_of
from .places import LONGEST_NAME, NameFault, NameTaken, Places, check_name, inside, is_inside, quoted

LARGEST = 64 << 20  # bytes of a picture
MOST_PIXELS = 100_000_000
MOST_PICTURES = 5_000  # of a dataset, for uploads
_PATIENCE = 30.0  # seconds for another change to end
_SUFFIX = {
    "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "AVIF": ".avif",
}  # fmt: skip
_TAKEN = "a still picture as JPEG, PNG, WebP, BMP, TIFF or AVIF"
_ROOM = 20  # characters kept for a number and the suffix


def create(places: Places, name: str) -> str:
    """Make an empty dataset among the uploads; its id. Raises NameTaken, or NameFault where the name is of no use."""
    name = check_name(name, "dataset")
    if repeats_of(name):
        raise NameFault(
            f"dataset: found {quoted(name)}; a number before an underscore says how often each picture counts, which "
            f"is for folders inside a dataset. Choose a name such as {quoted(name.partition('_')[2])}."
        )
    root = places.roots()[places.uploads]
    with _change(places), _refusing("making the dataset", root):
        files.make_folder(root)
        if name.casefold() in {each.casefold() for each in os.listdir(root)}:
            raise NameTaken(f"dataset: found that {quoted(name)} exists already; expected a new name.")
        os.mkdir(inside(root, name))
    return f"{places.uploads}/{name}"


def upload(places: Places, id: str, name: str, data: bytes) -> str:
    """Add a picture, after decoding it; the name it has got, which is new in the dataset.

    name: as the file was called; what cannot be in a file's name is replaced, and the suffix is that of its content.
    Raises PictureFault for what is no still picture that is decoded here, in words that go on from the file's name;
    SpectralError where it cannot be written.
    """
    _check_picture(name, data)
    folder = places.dataset(id)
    stem, suffix = _safe_stem(name), _SUFFIX[picture_format(data)]
    with _change(places), _refusing("adding the picture", folder):
        rooms = rooms_of(places, id)
        if sum(len(room.pictures) for room in rooms) >= MOST_PICTURES:
            raise SettingError(f"dataset {quoted(id)}: found {MOST_PICTURES} pictures, and no more can be sent.")
        _require_space(folder, len(data))
        path = inside(folder, _free_name(rooms[0], stem, suffix))
        files.write_bytes(path, data)
    return path.name


def _check_picture(name: str, data: bytes) -> None:
    """Raise for what is too large, or is no picture that can be trained on."""
    if not isinstance(name, str):
        raise NameFault(f"picture: found a {type(name).__name__} as its name, expected a text.")
    if len(data) > LARGEST:
        raise SettingError(f"found {len(data):,} bytes, expected a picture of at most {LARGEST:,}. Scale it down.")
    try:
        with turn(data):
            decode(data, most=MOST_PIXELS)
    except PictureFault as fault:
        wanted = f"; expected {_TAKEN}" if fault.kind in ("not a picture", "animated") else ""
        raise PictureFault(fault.kind, f"{fault}{wanted}") from fault


def _safe_stem(name: str) -> str:
    """A file's name without folders and suffix, as `check_name` takes it."""
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    stem = last.rpartition(".")[0] or last
    stem = re.sub(r"[^\w .()+,=@&'~!#$%{}\[\]-]", "-", stem, flags=re.UNICODE)[: LONGEST_NAME - _ROOM].strip(". ")
    while len(stem.encode()) > 2 * (LONGEST_NAME - _ROOM):
        stem = stem[:-1]
    try:
        return check_name(stem.strip(". "), "picture")
    except NameFault:
        return f"picture-{stem.strip('. ')}"[:LONGEST_NAME] if stem.strip(". -") else "picture"


def _free_name(room: Room, stem: str, suffix: str) -> str:
    """The name, or NAME-2, ...; no other picture shares it without suffix, since it would share the caption too."""
    taken = {Path(name).stem.casefold() for name in room.pictures}
    held = {name.casefold() for name in os.listdir(room.path)}
    names = (free for free in files.numbered(stem) if free.casefold() not in taken)
    return next(name for free in names if (name := f"{free}{suffix}").casefold() not in held)


def set_caption(places: Places, id: str, name: str, text: str) -> None:
    """Write a picture's caption as one line of text, over the file it has or into a new .txt; "" moves it to the trash.

    Raises SettingError for text that is too long or holds control characters, and where the present caption is no text
    that could have been shown.
    """
    line = _caption_line(text)
    root, _ = places.split(id)
    with _change(places):
        room, picture = find(places, id, name)
        present = room.captions(picture)
        if not line:
            _to_trash(places, root, id, present)
            return
        if present and (fault := shown_caption(present[0])[1]):
            raise SettingError(f"its caption {present[0].name} {fault}. Correct or remove that file first.")
        path = present[0] if present else room.path / f"{Path(picture).stem}.txt"
        # A link is written through, not replaced; its place was found to be inside.
        path = path.resolve() if path.is_symlink() else path
        if not is_inside(root, path):
            raise NameFault(f"{quoted(path.name)} is a link that leads out of {root}. Remove it first.")
        with _refusing("writing the caption", path):
            files.write_bytes(path, f"{line}\n".encode())


def _caption_line(text: str) -> str:
    if not isinstance(text, str):
        raise SettingError(f"caption: found a {type(text).__name__}, expected a text.")
    line = " ".join(text.split())
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in line):
        raise SettingError("caption: found control characters, expected a line of plain text.")
    if len(line) > LONGEST_CAPTION:
        raise SettingError(f"caption: found {len(line)} characters, expected at most {LONGEST_CAPTION}. Shorten it.")
    return line


def remove(places: Places, id: str, name: str) -> None:
    """Move a picture to the trash, with its captions unless another picture has them too. Raises NameFault."""
    root, _ = places.split(id)
    with _change(places):
        room, picture = find(places, id, name)
        shared = [other for other in room.pictures if other != picture and Path(other).stem == Path(picture).stem]
        captions = [] if shared else room.captions(picture)
        _to_trash(places, root, id, [room.path / picture, *captions])


def _to_trash(places: Places, root: Path, id: str, paths: list[Path]) -> None:
    """Move files to home/trash/datasets/TIME/, where they keep their place under the root's name."""
    if not paths:
        return
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    place = places.home / "trash" / "datasets" / stamp / id.partition("/")[0]
    for path in paths:
        target = place / path.relative_to(root)
        with _refusing("moving it to the trash", path):
            files.make_folder(target.parent)
            _move(path, target)


def _move(path: Path, target: Path) -> None:
    """Rename, or copy whole and then remove where the trash is on another disk. Raises OSError."""
    try:
        os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        passing = files.beside(target)
        try:
            shutil.copy2(path, passing, follow_symlinks=False)
            os.replace(passing, target)
        except OSError:
            passing.unlink(missing_ok=True)
            raise
        os.unlink(path)


@contextmanager
def _change(places: Places) -> Iterator[None]:
    """Inside, nobody else changes datasets."""
    try:
        files.make_folder(places.home)
        with FileLock(places.home / "datasets.lock", timeout=_PATIENCE):
            yield
    except Timeout as error:
        raise SettingError("datasets: another change has not ended yet. Try again in a moment.") from error


@contextmanager
def _refusing(what: str, path: Path) -> Iterator[None]:
    """An OSError inside becomes a sentence."""
    try:
        yield
    except OSError as error:
        raise files.refusal(what, path, error, "Choose a folder that can be written to, or allow it") from error


def _require_space(folder: Path, need: int) -> None:
    free = files.free_bytes(folder)
    if free < need + files.MARGIN:
        raise SpectralError(
            f"{folder}: found {free >> 20} MB free on its disk, expected {(need + files.MARGIN) >> 20} MB for the "
            "picture. Free some space."
        )
