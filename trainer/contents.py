"""What lies in a folder below a root, by names that a page can ask for, and nothing that a link brings from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..spectral.errors import SettingError
from .places import NameFault, Places, is_inside, is_shown, quoted

MOST_ENTRIES = 20_000  # of one folder
_NAMED = 5


@dataclass
class Contents:
    """Names of files and sub-folders, in order. leaving: links that lead out of the root. strange: how many names
    cannot be shown. more: the folder holds more than was looked at. fault: why it could not be read at all."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)
    strange: int = 0
    more: bool = False
    fault: str = ""

    @property
    def notes(self) -> list[str]:
        """What was left out, in words."""
        texts = [self.fault] if self.fault else []
        if self.leaving:
            texts.append(
                f"{listed(self.leaving)}: left out, since links lead out of the root; roots.json can declare more roots"
            )
        if self.strange:
            texts.append(f"{self.strange} files with unprintable names are left out")
        if self.more:
            texts.append(f"only the first {MOST_ENTRIES} files of the folder are looked at")
        return texts


def contents(root: Path, folder: Path) -> Contents:
    """What a folder below `root` holds; hidden entries are passed over. Raises SettingError where it cannot be read."""
    found = Contents()
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number == MOST_ENTRIES:
                    found.more = True
                    break
                _sort_in(root, entry, found)
    except OSError as error:
        raise SettingError(f"{folder.name}: cannot be read ({error.strerror or error}); expected a folder.") from error
    for names in (found.files, found.folders, found.leaving):
        names.sort()
    return found


def _sort_in(root: Path, entry: os.DirEntry, found: Contents) -> None:
    if not is_shown(entry.name):
        found.strange += not entry.name.startswith(".")
        return
    try:
        is_folder = entry.is_dir()
    except OSError:  # a link in a circle
        is_folder = False
    # Folders are always asked: Windows' junctions lead away and are no symbolic links.
    if (is_folder or entry.is_symlink()) and not is_inside(root, Path(entry.path)):
        found.leaving.append(entry.name)
    else:
        (found.folders if is_folder else found.files).append(entry.name)


def contained(places: Places, id: str) -> Path:
    """The folder of a dataset to train on: nothing that a training reads of it comes from outside its root.

    Raises NameFault naming the links that lead out.
    """
    folder = places.dataset(id)
    root, _ = places.split(id)
    if leaving := list(_leaving(root, folder)):
        raise NameFault(
            f"dataset {quoted(id)}: found links that lead out of {root}: {listed(leaving)}; expected files inside. "
            "Replace them with copies, or make the folder they lead to a root of its own."
        )
    return folder


def _leaving(root: Path, folder: Path) -> Iterator[str]:
    top = contents(root, folder)
    yield from top.leaving
    for name in top.folders:
        yield from (f"{name}/{each}" for each in contents(root, folder / name).leaving)


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
