"""A run's pictures laid out as sd-scripts reads them: one folder for each of ours, with its repeats, captions beside.

What our trainer would learn is what is laid out: the same pictures, with the same captions, masks and held-out ones.
Files that sd-scripts reads as we do are linked; the others (turned by their EXIF data, transparent, in a format it does
not know, or with a mask, which it takes from the transparency) are written anew as PNG.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import ExifTags, Image

from ...spectral.errors import Cancelled, SpectralError
from .. import files, pictures
from ..captions import CaptionRules
from ..dataset import split_validation
from ..decode import decode
from ..events import Listener, Progress, silent
from ..folder import Folder, Picture, content_hash
from ..pictures import Size
from ..spec import TrainSpec

Role = Literal["train", "validation", "class"]
ROLES: tuple[Role, ...] = ("train", "validation", "class")
_READ_ALIKE = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "BMP": (".bmp",)}
_WHOLE = "whole"  # the file that says that a layout is complete


@dataclass(frozen=True)
class Shown:
    """A picture under a role, with its caption as it is to be read. masked: its transparency is to hold its mask."""

    picture: Picture
    role: Role
    caption: str
    masked: bool


@dataclass(frozen=True)
class Layout:
    """A folder laid out for sd-scripts. rooms: (role, folder, repeats) of each of its sub-folders that has pictures.
    floor: loss weight where a mask is black."""

    folder: Path
    rooms: tuple[tuple[Role, Path, int], ...]
    shown: tuple[Shown, ...]
    floor: float = 0.0

    def count(self, role: Role) -> int:
        """Pictures of that role, without repeats."""
        return sum(each.role == role for each in self.shown)

    def sizes(self, sizes: tuple[Size, ...]) -> Counter[Size]:
        """How often each training size comes up in an epoch of the pictures to learn."""
        found: Counter[Size] = Counter()
        for each in self.shown:
            if each.role == "train":
                found[pictures.nearest(sizes, each.picture.size)] += each.picture.repeats
        return found


def shown(spec: TrainSpec, folder: Folder, held_out: Folder | None, classes: Folder | None) -> tuple[Shown, ...]:
    """What is laid out of the scanned folders. Raises SettingError where too few pictures would be left to learn."""
    rules = CaptionRules(spec.trigger, spec.caption_prefix)
    learnt, held = split_validation(folder.pictures, spec.validation, spec.seed)
    held = held_out.pictures if held_out else held
    masks = spec.masks is not None or spec.alpha_masks
    found = [Shown(each, "train", rules.fixed(each.caption), masks) for each in learnt]
    found += [
        Shown(replace(each, repeats=1), "validation", rules.fixed(each.caption), masks and held_out is None)
        for each in held
    ]
    found += [Shown(each, "class", each.caption, False) for each in (classes.pictures if classes else ())]
    return tuple(found)


def planned(home: Path, what: tuple[Shown, ...], floor: float = 0.0) -> Layout:
    """Where in `home` pictures will lie; nothing is written. floor: loss weight where a mask is black."""
    folder = home / f"pictures-{_digest(what, floor)}"
    return Layout(folder, tuple(_rooms(folder, what)), what, floor)


def lay_out(layout: Layout, listen: Listener = silent, stop: Callable[[], bool] = lambda: False) -> None:
    """Fill the layout's folder, unless it is there already; other layouts beside it are removed.

    Raises SpectralError where a picture cannot be read or written, Cancelled when `stop` says so.
    """
    home = layout.folder.parent
    try:
        files.make_folder(home)
        files.clean(home)
        for other in home.glob("pictures-*"):
            if other != layout.folder:
                shutil.rmtree(other)
        if not (layout.folder / _WHOLE).is_file():
            with files.new_folder(layout.folder) as folder:
                _fill(folder, layout, listen, stop)
    except OSError as error:
        raise files.refusal("laying out the pictures", home, error, "Choose another folder with run") from error


def _digest(what: tuple[Shown, ...], floor: float) -> str:
    """Tells layouts apart by what they hold, so that a resumed run finds its latents again."""
    found = hashlib.sha256(repr(floor).encode())
    for each in what:
        place = each.picture.path.parent.name, each.picture.path.name
        found.update(repr((each.role, each.caption, each.masked, *place)).encode())
    found.update(content_hash(each.picture for each in what).encode())
    return found.hexdigest()[:16]


def _room_names(what: Iterable[Shown]) -> dict[tuple[Role, Path], str]:
    """A sub-folder's name for each folder of the user's: its own, since it is what the file's metadata will show."""
    names: dict[tuple[Role, Path], str] = {}
    for each in what:
        key = (each.role, each.picture.path.parent)
        taken = {name.casefold() for (role, _), name in names.items() if role == each.role}
        free = (name for name in files.numbered(key[1].resolve().name or "pictures") if name.casefold() not in taken)
        names[key] = names.get(key) or next(free)
    return names


def _rooms(folder: Path, what: tuple[Shown, ...]) -> Iterator[tuple[Role, Path, int]]:
    repeats = {(each.role, each.picture.path.parent): each.picture.repeats for each in what}
    for (role, path), name in _room_names(what).items():
        yield role, folder / role / name, repeats[role, path]


def _fill(folder: Path, layout: Layout, listen: Listener, stop: Callable[[], bool]) -> None:
    what, names, taken = layout.shown, _room_names(layout.shown), set()
    for done, each in enumerate(what, start=1):
        if stop():
            raise Cancelled("stopped while the pictures were being laid out; nothing was trained")
        room = folder / each.role / names[each.role, each.picture.path.parent]
        files.make_folder(room)
        # Two pictures of one name and different suffixes share a caption, but not the caption's file here.
        stem = next(name for name in files.numbered(each.picture.path.stem) if room / name not in taken)
        taken.add(room / stem)
        _picture(each, room / stem, layout.floor)
        (room / f"{stem}.txt").write_text(f"{each.caption}\n", encoding="utf-8")
        listen(Progress(done, len(what), each.picture.path.name))
    (folder / _WHOLE).touch()


def _picture(shown: Shown, target: Path, floor: float) -> None:
    source = shown.picture.path
    if not shown.masked and (suffix := _suffix_read_alike(source)):
        _link(source, target.with_name(target.name + suffix))
        return
    image = _decoded(source)
    colours = pictures.on_white(image)
    if shown.masked and (mask := _mask(shown.picture, image)) is not None:
        colours.putalpha(mask.point([round(255 * (floor + (1 - floor) * grey / 255)) for grey in range(256)]))
    colours.save(target.with_name(target.name + ".png"), "PNG", compress_level=1)


def _mask(picture: Picture, image: Image.Image) -> Image.Image | None:
    """The mask of a picture in its size, white where it is learnt; None where all of it is."""
    if picture.alpha:
        return pictures.opacity(image)
    if picture.mask is None:
        return None
    mask = pictures.as_mask(_decoded(picture.mask))
    return mask if mask.size == image.size else mask.resize(image.size, Image.Resampling.BILINEAR)


def _suffix_read_alike(path: Path) -> str:
    """The suffix under which sd-scripts sees in the file what we see, "" where it would not.

    It reads a file as it is stored: not turned, colours not translated, transparency cut off.
    """
    with Image.open(path) as image:
        suffixes = _READ_ALIKE.get(image.format or "", ())
        plain = image.mode in ("RGB", "L") and "transparency" not in image.info and "icc_profile" not in image.info
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    if not (suffixes and plain and upright):
        return ""
    own = path.suffix.lower()
    return own if own in suffixes else suffixes[0]


def _decoded(path: Path) -> Image.Image:
    try:
        return decode(path.read_bytes())
    except SpectralError as fault:
        raise SpectralError(f"{path}: {fault}") from fault


def _link(source: Path, target: Path) -> None:
    """A second name for the file where the disk can give it one, else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def subsets(layout: Layout, handling: dict[str, Any]) -> Iterable[tuple[Role, dict[str, Any]]]:
    """Each room as sd-scripts' dataset config has it; `handling` is for pictures to learn alone."""
    for role, room, repeats in layout.rooms:
        masked = any(each.masked for each in layout.shown if each.role == role)
        common = {"image_dir": str(room), "num_repeats": repeats, "caption_extension": ".txt", "alpha_mask": masked}
        match role:
            case "train":
                yield role, common | handling
            case "class":
                yield role, common | {"is_reg": True}
            case "validation":
                yield role, common
