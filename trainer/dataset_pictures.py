"""The pictures of a dataset with their captions' files, in the order in which a training takes them; by name alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .contents import Contents, contents
from .folder import CAPTION_SUFFIXES, SUFFIXES, read_caption, repeats_of
from .places import NameFault, Places, inside, quoted

LONGEST_CAPTION = 4_096  # characters that are shown, and that can be written


@dataclass(frozen=True)
class Room:
    """A dataset's folder, or one of its sub-folders: `name` is "" or "10_dog"."""

    name: str
    path: Path
    found: Contents

    @cached_property
    def repeats(self) -> int:
        """How often each picture counts in an epoch; 0 leaves the folder out."""
        return (repeats_of(self.path.resolve().name) or (1, ""))[0]

    @cached_property
    def pictures(self) -> list[str]:
        """Files that are named as pictures; none where the folder is left out."""
        return [name for name in self.found.files if is_picture(name)] if self.repeats else []

    def captions(self, picture: str) -> list[Path]:
        """The caption files of a picture; the first counts."""
        stem = os.path.splitext(picture)[0]
        return [self.path / by_stem[stem] for by_stem in self._captions if stem in by_stem]

    @cached_property
    def _captions(self) -> list[dict[str, str]]:
        """By suffix, as `folder.scan` reads them: picture's name without suffix -> caption file."""
        split = [(name, *os.path.splitext(name)) for name in reversed(self.found.files)]
        return [{stem: name for name, stem, end in split if end.lower() == suffix} for suffix in CAPTION_SUFFIXES]

    def full(self, picture: str) -> str:
        """A picture's name in the dataset, such as 10_dog/1.png."""
        return f"{self.name}/{picture}" if self.name else picture


def shown_caption(path: Path) -> tuple[str, str]:
    """The beginning of a caption file's text, and why it is not the whole text ("" where it is)."""
    text, fault = read_caption(path)
    if len(text) > LONGEST_CAPTION:
        return text[:LONGEST_CAPTION], f"is longer than the {LONGEST_CAPTION} characters that are shown"
    return text, fault


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture which can be trained on."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def rooms(root: Path, folder: Path) -> Iterator[Room]:
    """The dataset's own folder, then its sub-folders, as `folder.scan` reads them. Raises SettingError."""
    own = contents(root, folder)
    yield Room("", folder, own)
    for name in own.folders:
        yield Room(name, folder / name, contents(root, folder / name))


def rooms_of(places: Places, id: str) -> list[Room]:
    """The rooms of a dataset. Raises NameFault where there is none."""
    root, _ = places.split(id)
    return list(rooms(root, places.dataset(id)))


def find(places: Places, id: str, name: str) -> tuple[Room, str]:
    """The room that a picture is in, and its name there. Raises NameFault for what is no picture of the dataset."""
    path = picture_path(places, id, name)
    room = next(room for room in rooms_of(places, id) if room.path == path.parent)
    return room, path.name


def picture_path(places: Places, id: str, name: str) -> Path:
    """The file of a dataset's picture, such as "1.png" or "10_dog/1.png"; contained in the dataset's root.

    Raises NameFault for what is no picture of the dataset.
    """
    if not isinstance(name, str):
        raise NameFault(f"picture: found a {type(name).__name__}, expected a text.")
    folder = places.dataset(id)
    root, parts = places.split(id)
    names = name.split("/")
    path = inside(root, *parts, *names)
    if len(names) > 2 or not is_picture(name) or not path.is_file() or folder not in (path.parent, path.parent.parent):
        raise NameFault(f"found no picture {quoted(name)} in dataset {quoted(id)}; expected one of those listed.")
    return path
