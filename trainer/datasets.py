"""Datasets by name: which there are, and what is in them. Nothing is decoded here.

A dataset is a folder below a root, with the pictures that `folder.scan` finds in it: its own, and those of its
sub-folders, one level deep. Sub-folders named as for kohya's trainers, such as 10_dog, belong to it alone; others can
be datasets too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..spectral.errors import SettingError
from .contents import Contents, contained, contents
from .dataset_check import check
from .dataset_edit import create, remove, set_caption, upload
from .dataset_pictures import Room, picture_path, rooms_of, shown_caption
from .folder import repeats_of
from .places import Places

__all__ = [
    "check", "contained", "create", "list_datasets", "picture_path", "pictures", "remove", "set_caption", "upload",
]  # fmt: skip

MOST_FOLDERS = 2_000  # of one root
MOST_SHOWN = 500  # pictures of one answer
_DEPTH = 3  # folders below a root


@dataclass(frozen=True)
class Listed:
    """A dataset in the list. pictures, captions: how many, as a training finds them. cover: the name of one picture.
    note: what was left out, in words."""

    id: str
    root: str
    name: str
    pictures: int
    captions: int
    cover: str | None
    writable: bool
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture in a dataset's list. name: such as "10_dog/1.png". caption: of the file, "" where there is none or it
    cannot be read, which `note` then says. caption_file: whether there is one. repeats: times in an epoch."""

    name: str
    caption: str
    caption_file: bool
    repeats: int
    bytes: int
    note: str = ""


def list_datasets(places: Places) -> list[dict[str, Any]]:
    """Every dataset, as `Listed`'s fields: those with pictures, empty ones in the root where new ones are made, and
    folders in which something was left out.

    Raises SettingError where the declared roots cannot be read.
    """
    return [asdict(each) for name, root in places.roots().items() for each in _below(places, name, Path(root))]


def _below(places: Places, name: str, root: Path) -> list[Listed]:
    """The datasets of one root; the root itself is among them where something is to be said of it."""
    uploads = name == places.uploads
    if not root.is_dir():
        gone = Listed(name, name, name, 0, 0, None, False, f"{root} is not there")
        return [] if uploads else [gone]
    left = iter(range(MOST_FOLDERS))
    own, *others = (_listed(name, room, below) for room, below in _walk(root, _room(root, root), left, 0))
    if next(left, None) is None:
        own = replace(own, note="; ".join(filter(None, (own.note, f"only {MOST_FOLDERS} folders are looked at"))))
    kept = [one for one in others if one.pictures or one.note or (uploads and "/" not in one.name)]
    return [own, *kept] if own.pictures or own.note else kept


def _walk(root: Path, room: Room, left: Iterator[int], depth: int) -> Iterator[tuple[Room, list[Room]]]:
    """Folders that can be datasets, each with its sub-folders; a room's name is its path below the root."""
    inner = [_room(root, room.path / name) for name, _ in zip(room.found.folders, left)]
    yield room, inner
    for below in inner:
        if depth < _DEPTH and repeats_of(below.path.name) is None:
            yield from _walk(root, below, left, depth + 1)


def _room(root: Path, folder: Path) -> Room:
    try:
        found = contents(root, folder)
    except SettingError as error:
        found = Contents(fault=str(error))
    name = folder.relative_to(root).as_posix()
    return Room("" if name == "." else name, folder, found)


def _listed(root: str, room: Room, below: list[Room]) -> Listed:
    """A dataset where the folder has pictures of its own or in folders that belong to it; else one without pictures."""
    every = [room, *below]
    is_one = bool(room.pictures) or any(each.pictures and repeats_of(each.path.name) for each in below)
    pictures = sum(len(each.pictures) for each in every) if is_one else 0
    captions = sum(bool(each.captions(picture)) for each in every for picture in each.pictures) if is_one else 0
    prefix = f"{room.name}/" if room.name else ""
    names = (each.full(each.pictures[0]).removeprefix(prefix) for each in every if each.pictures)
    return Listed(
        id="/".join(filter(None, (root, room.name))),
        root=root,
        name=room.name or root,
        pictures=pictures,
        captions=captions,
        cover=next(names, None) if is_one else None,
        writable=is_writable(room.path),
        note="; ".join(room.found.notes),
    )


def is_writable(folder: Path) -> bool:
    """Whether files can be added to a folder, as far as can be told without trying."""
    return os.access(folder, os.W_OK | os.X_OK)


def pictures(places: Places, id: str, offset: int = 0, limit: int = 200) -> dict[str, Any]:
    """{"id", "total", "pictures": [Shown's fields], "note"}: `limit` pictures from `offset` on, in training order.

    Raises NameFault where there is no such dataset.
    """
    rooms = rooms_of(places, id)
    every = sorted(((room.full(name), room, name) for room in rooms for name in room.pictures), key=lambda e: e[0])
    offset, limit = max(0, offset), max(1, min(limit, MOST_SHOWN))
    notes = [f"{room.name}: {note}" if room.name else note for room in rooms for note in room.found.notes]
    return {
        "id": id,
        "total": len(every),
        "pictures": [asdict(_shown(room, name)) for _, room, name in islice(every, offset, offset + limit)],
        "note": "; ".join(notes),
    }


def _shown(room: Room, picture: str) -> Shown:
    captions = room.captions(picture)
    text, fault = shown_caption(captions[0]) if captions else ("", "")
    try:
        size = (room.path / picture).stat().st_size
    except OSError:
        size = 0  # gone since the folder was read, or a link to nothing: its check says so
    note = f"its caption {captions[0].name} {fault}" if fault else ""
    return Shown(room.full(picture), text, bool(captions), room.repeats, size, note)
