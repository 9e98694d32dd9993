"""What a folder of pictures holds: pictures, captions, repeats, masks, and every fault, before anything is trained.

Conventions: a plain folder of pictures works. So do sub-folders, one level deep; one named `10_dog` counts each of its
pictures ten times per epoch and calls them "dog" where nothing else does (kohya's convention, which also holds for the
given folder's own name). Captions lie beside the pictures as .txt, else .caption. Masks have the pictures' names, in a
folder of their own (with the same sub-folders, or flat).
"""

from __future__ import annotations

import hashlib
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from ..spectral.errors import SettingError
from . import pictures as pixels
from .decode import PictureFault, decode, turn
from .events import Listener, Progress, silent
from .pictures import Size

Kind = Literal[
    "unreadable", "broken", "animated", "not a picture", "too large", "too small", "enlarged", "cropped", "duplicate",
    "caption", "mask", "ignored",
]  # fmt: skip

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
CAPTION_SUFFIXES = (".txt", ".caption")
# Pictures in formats that are not read here: said, so that nobody wonders where they are.
_FOREIGN = (".gif", ".heic", ".heif", ".jxl", ".psd", ".svg", ".tga", ".jp2", ".dng", ".cr2", ".nef", ".arw", ".mp4")
MOST_REPEATS = 10_000  # a larger number before an underscore is a date
_REPEATED = r"(\d{1,9})_(.+)"
_CAPTION_BYTES = 1 << 16
_PICTURE_BYTES = 1 << 30
_MOST_ENLARGED = 2.0
_LONGEST = 4.0  # aspect ratio from which the share that is cut away is said
_NAMED = 20  # files of one kind that a notice names
_READERS = 4  # pictures decoded at a time; each can take half a gigabyte
_PATIENCE = 1.0  # seconds before progress is told


@dataclass(frozen=True)
class Picture:
    """A usable picture. `size` is (width, height) as a viewer shows it.

    digest: sha256 of the file; pixels: sha256 of what it shows, the same for copies in another format; mask: its mask's
    file, with mask_digest; alpha: its own transparency is the mask.
    """

    path: Path
    caption: str
    repeats: int
    size: Size
    digest: str
    pixels: str
    mask: Path | None = None
    mask_digest: str = ""
    alpha: bool = False


@dataclass(frozen=True)
class Finding:
    """Something to say about one file. A fatal one keeps the picture from being trained on."""

    path: Path
    kind: Kind
    text: str
    fatal: bool


@dataclass(frozen=True)
class Folder:
    """The usable pictures of a folder in name order, what was found wrong, and the word that calls the concept up."""

    path: Path
    pictures: list[Picture]
    findings: list[Finding]
    trigger: str

    @property
    def hash(self) -> str:
        """See `content_hash`: what a resumed run compares."""
        return content_hash(self.pictures)

    def require(self, skip_bad: bool = False) -> list[str]:
        """Notices for the user: one per skipped file, one per kind of remark.

        Raises SettingError naming every file that cannot be used unless `skip_bad`, or when none is left.
        """
        return require(self.path, self.pictures, self.findings, skip_bad)


def content_hash(pictures: Iterable[Picture]) -> str:
    """A digest of the pictures' and masks' bytes, captions, repeats and order; not of their names."""
    digest = hashlib.sha256()
    for p in pictures:
        digest.update(repr((p.digest, p.mask_digest, p.alpha, p.caption, p.repeats)).encode())
    return digest.hexdigest()


def require(folder: Path, pictures: list[Picture], findings: list[Finding], skip_bad: bool) -> list[str]:
    """See Folder.require."""
    fatal = [f for f in findings if f.fatal]
    lines = [f"{shown(f.path, folder)}: {f.text}" for f in fatal]
    bad = len({f.path for f in fatal})
    listing = "".join(f"\n  {line}" for line in lines)
    if fatal and not pictures:
        raise SettingError(f"none of the {bad} pictures in {folder} can be used. Replace them:{listing}")
    if fatal and not skip_bad:
        raise SettingError(
            f"{bad} of {bad + len(pictures)} pictures in {folder} cannot be used. Replace or remove them, or set "
            f"skip_bad = true to train on the others:{listing}"
        )
    return [f"skipped {line}" for line in lines] + list(_remarks(folder, findings))


def _remarks(folder: Path, findings: list[Finding]) -> Iterator[str]:
    by_kind: dict[Kind, list[str]] = defaultdict(list)
    for finding in findings:
        if not finding.fatal:
            by_kind[finding.kind].append(f"{shown(finding.path, folder)}: {finding.text}")
    for lines in by_kind.values():
        more = f"; and {len(lines) - _NAMED} more such files" if len(lines) > _NAMED else ""
        yield "; ".join(lines[:_NAMED]) + more


def shown(path: Path, folder: Path) -> str:
    """A path for people: seen from the folder, and printable even where its name is not UTF-8."""
    name = path.relative_to(folder) if path.is_relative_to(folder) and path != folder else Path(path.name or path)
    return name.as_posix().encode("utf-8", "backslashreplace").decode()


# What a file holds, from its path and whether its transparency is the mask: the picture, or findings that say why not.
Examine = Callable[[Path, bool], tuple[Picture | None, list[Finding]]]


@dataclass(frozen=True)
class _Room:
    """The given folder or one of its sub-folders."""

    path: Path
    repeats: int
    name: str
    files: list[Path]


def scan(
    images: Path,
    *,
    trigger: str = "",
    masks: Path | None = None,
    alpha_masks: bool = False,
    sizes: tuple[Size, ...] = (),
    exclude: Iterable[Path] = (),
    listen: Listener = silent,
    examine: Examine | None = None,
) -> Folder:
    """The pictures of `images`, each decoded once wholly, with captions, repeats and masks.

    A picture without a caption gets the trigger, else the class token of its folder, else its folder's name. `sizes`
    are the training sizes (`pictures.bucket_sizes`); without them nothing is said about small and long pictures.
    `exclude` are sub-folders that hold something else. `examine` looks at one file; None is `examine_file`, which
    decodes it every time. Faults are returned as findings; raises SettingError only where there is no folder, or no
    picture file in it.
    """
    if not images.is_dir():
        raise SettingError(f"{images} is not a folder. Give the folder that holds the pictures.")
    if masks is not None and not masks.is_dir():
        raise SettingError(f"{masks} is not a folder. Give the folder that holds the masks.")
    others = {path.resolve() for path in (*exclude, *([masks] if masks else []))}
    findings: list[Finding] = []
    rooms = list(_rooms(images, others, findings))
    found = [(room, path) for room in rooms for path in room.files if path.suffix.lower() in SUFFIXES]
    found.sort(key=lambda pair: pair[1].relative_to(images).as_posix())
    if not found:
        unreadable = "".join(f" {shown(f.path, images)} {f.text}." for f in findings if f.fatal)
        raise SettingError(f"{images} holds no picture. Expected files ending in {', '.join(SUFFIXES)}.{unreadable}")
    decoded = _decode_all([path for _, path in found], alpha_masks, listen, examine or examine_file)
    captions = {room.path: _Captions(room, trigger) for room in rooms}
    lookup = _mask_files(masks) if masks else None
    good: list[Picture] = []
    for (room, _), (picture, faults) in zip(found, decoded):
        if picture is not None:
            picture, caption_faults = captions[room.path].give(picture)
            picture, mask_faults = _give_mask(picture, images, lookup)
            faults = [*faults, *_about_size(picture, sizes), *caption_faults, *mask_faults]
        findings += faults
        if picture is not None and not any(f.fatal for f in faults):
            good.append(picture)
    for book in captions.values():
        findings += book.remarks({path.stem for room, path in found if room.path == book.room.path})
    findings += _duplicates(good, images)
    words = {book.fallback for book in captions.values() if book.without}
    return Folder(images, good, findings, trigger or (words.pop() if len(words) == 1 else ""))


def _rooms(images: Path, others: set[Path], findings: list[Finding]) -> Iterator[_Room]:
    subfolders = sorted(p for p in _entries(images, findings) if p.is_dir())
    for folder in (images, *(p for p in subfolders if p.resolve() not in others)):
        repeats, name = _repeats(folder, findings)
        if repeats == 0:
            text = "its name asks for 0 repeats, so its pictures are left out"
            findings.append(Finding(folder, "ignored", text, False))
            continue
        files = [path for path in _entries(folder, findings if folder != images else []) if not path.is_dir()]
        for path in files:
            if path.suffix.lower() in _FOREIGN:
                text = f"{path.suffix.lower()} files are not read; save it as PNG or JPEG to train on it"
                findings.append(Finding(path, "ignored", text, False))
        yield _Room(folder, repeats, name, files)


def _entries(folder: Path, findings: list[Finding]) -> list[Path]:
    """What a folder holds, in name order, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        findings.append(Finding(folder, "unreadable", f"cannot be read ({error.strerror or error})", True))
        return []


def _repeats(folder: Path, findings: list[Finding]) -> tuple[int, str]:
    """See `repeats_of`; a number that is too large is said."""
    name = folder.resolve().name
    match = re.fullmatch(_REPEATED, name)
    if match and int(match[1]) > MOST_REPEATS:
        text = f"the number in its name is above {MOST_REPEATS} and not taken as repeats"
        findings.append(Finding(folder, "ignored", text, False))
    return repeats_of(name) or (1, name.replace("_", " "))


def repeats_of(name: str) -> tuple[int, str] | None:
    """Repeats and class token from a folder's name like `10_dog`; None for any other."""
    match = re.fullmatch(_REPEATED, name)
    return (int(match[1]), match[2].replace("_", " ")) if match and int(match[1]) <= MOST_REPEATS else None


def _decode_all(
    paths: list[Path], alpha_masks: bool, listen: Listener, examine: Examine
) -> list[tuple[Picture | None, list[Finding]]]:
    started, decoded = time.monotonic(), []
    with warnings.catch_warnings(), ThreadPoolExecutor(_READERS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photographs are welcome
        for path, result in zip(paths, pool.map(lambda p: examine(p, alpha_masks), paths)):
            decoded.append(result)
            if time.monotonic() - started > _PATIENCE:
                listen(Progress(len(decoded), len(paths), path.name))
    return decoded


def examine_file(path: Path, alpha_masks: bool) -> tuple[Picture | None, list[Finding]]:
    """The picture that a file holds, without caption, repeats and mask file; or why there is none."""
    if path.exists() and not path.is_file():
        return None, [Finding(path, "unreadable", "is no ordinary file", True)]
    try:
        if (size := path.stat().st_size) > _PICTURE_BYTES:
            return None, [Finding(path, "too large", f"{size >> 20} MB; no picture that can be used is so large", True)]
        blob = path.read_bytes()
    except OSError as error:
        return None, [Finding(path, "unreadable", f"cannot be read ({error.strerror or error})", True)]
    try:
        with turn(blob):
            return _looked_at(path, blob, alpha_masks)
    except PictureFault as fault:
        return None, [Finding(path, fault.kind, str(fault), True)]


def _looked_at(path: Path, blob: bytes, alpha_masks: bool) -> tuple[Picture, list[Finding]]:
    """The decoded picture. Raises PictureFault."""
    image = decode(blob)
    shown_pixels = pixels.on_white(image)
    alpha = pixels.opacity(image) if alpha_masks else None
    look = hashlib.sha256(f"{image.size}".encode())
    look.update(shown_pixels.tobytes())
    findings = []
    if alpha is not None:
        look.update(alpha.tobytes())
        findings += _black(path, alpha)
    elif alpha_masks:
        findings.append(Finding(path, "mask", "has no transparency, so all of it is learnt", False))
    digest = hashlib.sha256(blob).hexdigest()
    return Picture(path, "", 1, image.size, digest, look.hexdigest(), alpha=alpha is not None), findings


def _about_size(picture: Picture, sizes: tuple[Size, ...]) -> Iterator[Finding]:
    if not sizes:
        return
    crop = pixels.place(picture.size, pixels.nearest(sizes, picture.size))
    width, height = picture.size
    at = f"{width} x {height} pixels, trained at {crop.size[0]} x {crop.size[1]}"
    if crop.enlargement > _MOST_ENLARGED:
        text = f"{at}: too small, it would be enlarged x{crop.enlargement:.1f} and teach blur; lower the resolution"
        yield Finding(picture.path, "too small", text, True)
    elif crop.enlargement > 1:
        yield Finding(picture.path, "enlarged", f"{at}: will be enlarged x{crop.enlargement:.2g}", False)
    if max(width, height) > _LONGEST * min(width, height):
        yield Finding(picture.path, "cropped", f"{at}: {crop.lost:.0%} of it is cut away", False)


class _Captions:
    """The captions of one room and how they are found."""

    def __init__(self, room: _Room, trigger: str):
        self.room, self.trigger = room, trigger
        self.fallback = trigger or room.name
        self.files = {
            suffix: {p.stem: p for p in reversed(room.files) if p.suffix.lower() == suffix}
            for suffix in CAPTION_SUFFIXES
        }
        self.without: list[Path] = []

    def give(self, picture: Picture) -> tuple[Picture, list[Finding]]:
        picture = replace(picture, repeats=self.room.repeats)
        beside = [paths[picture.path.stem] for paths in self.files.values() if picture.path.stem in paths]
        findings, caption = [], ""
        if beside:
            caption, fault = read_caption(beside[0])
            if fault:
                return picture, [Finding(picture.path, "caption", f"its caption {beside[0].name} {fault}", True)]
            if not caption:
                text = f"its caption {beside[0].name} is empty; {self.fallback!r} is used"
                findings.append(Finding(picture.path, "caption", text, False))
        if len(beside) > 1:
            names = " and ".join(path.name for path in beside)
            findings.append(Finding(picture.path, "caption", f"has {names}; the first is used", False))
        if not caption:
            self.without.append(picture.path)
        return replace(picture, caption=caption or self.fallback), findings

    def remarks(self, stems: set[str]) -> Iterator[Finding]:
        if self.without and not self.trigger:
            count = len(self.without)
            lacking = f"{count} pictures have" if count > 1 else "1 picture has"
            text = f"{lacking} no caption and there is no trigger word; using {self.fallback!r}"
            yield Finding(self.room.path, "caption", text, False)
        for path in sorted(p for paths in self.files.values() for p in paths.values()):
            if path.stem not in stems:
                yield Finding(path, "ignored", "a caption without a picture of its name", False)


def read_caption(path: Path) -> tuple[str, str]:
    """The text of a caption file in one line, and why it cannot be read ("" where it can)."""
    try:
        with path.open("rb") as file:
            blob = file.read(_CAPTION_BYTES + 1)
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error})"
    if len(blob) > _CAPTION_BYTES:
        return "", f"is larger than {_CAPTION_BYTES} bytes; expected a line of text"
    try:
        return " ".join(blob.decode("utf-8-sig").split()), ""
    except UnicodeDecodeError as error:
        return "", f"is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"


def _mask_files(masks: Path) -> dict[tuple[str, str], Path]:
    """(sub-folder or "", name without suffix) -> mask."""
    folders = (masks, *sorted(p for p in masks.iterdir() if p.is_dir()))
    return {
        ("" if folder == masks else folder.name, path.stem): path
        for folder in folders
        for path in sorted(folder.iterdir(), reverse=True)
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    }


def _give_mask(
    picture: Picture, images: Path, lookup: dict[tuple[str, str], Path] | None
) -> tuple[Picture, list[Finding]]:
    if lookup is None:
        return picture, []
    room = "" if picture.path.parent == images else picture.path.parent.name
    path = lookup.get((room, picture.path.stem)) or lookup.get(("", picture.path.stem))

    def fault(text: str) -> tuple[Picture, list[Finding]]:
        return picture, [Finding(picture.path, "mask", text, True)]

    if path is None:
        return fault("has no mask of its name; add one (white all over learns the whole picture)")
    try:
        blob = path.read_bytes()
        mask = pixels.as_mask(decode(blob))
    except (OSError, PictureFault) as error:
        return fault(f"its mask {path.name} is of no use: {error}")
    if not _same_shape(mask.size, picture.size):
        return fault(
            f"its mask {path.name} is {mask.size[0]} x {mask.size[1]} pixels, the picture {picture.size[0]} x "
            f"{picture.size[1]}; expected the same shape"
        )
    return replace(picture, mask=path, mask_digest=hashlib.sha256(blob).hexdigest()), _black(picture.path, mask)


def _same_shape(mask: Size, picture: Size) -> bool:
    """Whether one is the other scaled, to a pixel of rounding."""
    return abs(mask[0] * picture[1] - mask[1] * picture[0]) <= max(*mask, *picture)


def _black(path: Path, mask: Image.Image) -> list[Finding]:
    black = mask.getextrema()[1] == 0
    return [Finding(path, "mask", "its mask is black all over, so nothing of it is learnt", False)] if black else []


def _duplicates(pictures: list[Picture], images: Path) -> Iterator[Finding]:
    first: dict[str, Path] = {}
    for picture in pictures:
        twin = first.setdefault(picture.pixels, picture.path)
        if twin != picture.path:
            text = f"shows the same pixels as {shown(twin, images)}, which thereby counts twice"
            yield Finding(picture.path, "duplicate", text, False)
