"""Where a studio's files lie, and the only way from a name that someone sent to a path.

Requests carry names, never paths. A name for something new is one strict path component (`check_name`); what exists is
found by membership. `inside` refuses whatever, followed through every link, lies outside the folder it was asked for:
a root may itself be a link, since people keep pictures on other disks, but nothing in it may lead out.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..spectral.errors import SettingError
from . import files

TINY = "tiny"
ROOTS_FILE = "roots.json"
SUFFIX = ".safetensors"
LORA_SUFFIX = ".lora.safetensors"  # of exports, which are no adapters of ours
LORAS = "loras"  # before the names of LoRA files
PLANS, PLAN_SUFFIX = "plans", ".json"
LONGEST_NAME = 100  # characters
_LONGEST_BYTES = 200  # file systems take 255; "-2" and a suffix come behind
_MOST_PARTS = 8  # of a dataset's id
_MOST_BASES = 2_000
_BASE_DEPTH = 6
_FORBIDDEN = '/\\:*?"<>|'
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
# Marks that turn the direction of what stands behind them: "gnp.exe" is shown as "exe.png".
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class NameFault(SettingError):
    """A name that is none, or that leads to a place it must not lead to."""


class NameTaken(NameFault):
    """A name for something new that is there already."""


def check_name(text: str, what: str) -> str:
    """The name, NFC, when it can be one path component on every system; `what` says of what, for the message.

    Raises NameFault for path separators, drive letters and streams, "." and "..", Windows device names, control and
    direction characters, dots or spaces at either end, and names that are empty or too long.
    """
    if not isinstance(text, str):
        raise NameFault(f"{what}: found a {type(text).__name__}, expected a text.")
    name = unicodedata.normalize("NFC", text)
    fault = next(_name_faults(name), None)
    if fault:
        raise NameFault(
            f"{what}: found {quoted(text)}, which {fault}; expected 1 to {LONGEST_NAME} letters, digits, spaces, "
            "'-', '_' or '.'. Choose another name."
        )
    return name


def _name_faults(name: str) -> Iterator[str]:
    if not name:
        yield "is empty"
    if len(name) > LONGEST_NAME or len(name.encode("utf-8", "surrogatepass")) > _LONGEST_BYTES:
        yield "is too long"
    if _unprintable(name):
        yield "has control characters"
    if strange := sorted(set(name) & set(_FORBIDDEN)):
        yield f"has {' '.join(strange)}, which names of files cannot have on every system"
    if name.strip(". ") != name or name.strip() != name:
        yield "begins or ends with a dot or a space"
    if _DEVICES.fullmatch(name.partition(".")[0].strip()):
        yield "Windows keeps for a device"


def _unprintable(name: str) -> bool:
    if name.isascii():
        return not name.isprintable()
    return any(c in _TURNING or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name)


def quoted(text: str, limit: int = 80) -> str:
    """Untrusted text made short and printable for a message."""
    shown = repr(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 4]}...'"


def is_shown(name: str) -> bool:
    """Whether a file of this name, found in a folder, can be asked for by it: hidden and unprintable ones cannot."""
    return bool(name) and not name.startswith(".") and "/" not in name and "\\" not in name and not _unprintable(name)


def inside(root: Path, *parts: str) -> Path:
    """root/parts, in the user's spelling, when its real place is in root's real place.

    A part is the name of something that is there, or a name that `check_name` takes. Raises NameFault.
    """
    path = Path(root)
    for part in parts:
        path = path / (part if _is_there(path, part) else check_name(part, "name"))
    if not is_inside(root, path):
        raise NameFault(
            f"{quoted('/'.join(parts))} is a link that leads out of {root}; expected a file or folder inside. Put the "
            "files there, or make the folder it leads to a root of its own."
        )
    return path


def is_inside(root: Path, path: Path) -> bool:
    """Whether the real place of `path` lies in that of `root`, or is it."""
    real, top = (os.path.normcase(os.path.realpath(p)) for p in (path, root))
    try:
        return os.path.commonpath([real, top]) == top
    except ValueError:  # another drive
        return False


def _is_there(folder: Path, name: str) -> bool:
    """Whether the folder holds something of a name that `check_name` may refuse, such as `Screenshot 12:30.png`.

    Windows finds files under names that they do not have (streams, devices, 8.3), so there strict names must do.
    """
    if os.name == "nt" or not isinstance(name, str) or not is_shown(name):
        return False
    return len(os.fsencode(name)) <= 255 and os.path.lexists(folder / name)


@dataclass(frozen=True)
class Places:
    """Where everything lies. The mappings are asked anew each time, since files come and go.

    home: jobs, queue, trash, thumbnails, plans. roots: folders that hold datasets, by name. uploads: the root that new
    datasets are made in. adapters: the folder finished adapters are written to. bases, adapter_files: by the names that
    pages show; in ComfyUI adapters among the LoRA files too, named loras/NAME. lora_files: files of the LoRA family,
    named loras/NAME, which can be looked at and mixed. loras: the folder they are written to, None for that of the
    adapters.
    """

    home: Path
    roots: Callable[[], Mapping[str, Path]]
    uploads: str
    adapters: Path
    bases: Callable[[], Mapping[str, Path]]
    adapter_files: Callable[[], Mapping[str, Path]]
    lora_files: Callable[[], Mapping[str, Path]] = dict
    loras: Path | None = None

    def dataset(self, id: str) -> Path:
        """The folder of a dataset: "root", "root/sub" or deeper. Raises NameFault where there is none."""
        root, parts = self.split(id)
        folder = inside(root, *parts)
        if not folder.is_dir():
            raise NameFault(f"found no dataset {quoted(id)}; expected one of those listed. It may have been moved.")
        return folder

    def split(self, id: str) -> tuple[Path, list[str]]:
        """A dataset's root folder and the path in it, unchecked. Raises NameFault for an unknown root."""
        if not isinstance(id, str):
            raise NameFault(f"dataset: found a {type(id).__name__}, expected a text.")
        name, *parts = id.split("/")
        roots = self.roots()
        if name not in roots or len(parts) > _MOST_PARTS:
            known = ", ".join(sorted(roots)) or "none"
            raise NameFault(f"dataset: found {quoted(id)}, expected ROOT/FOLDER with one of the roots: {known}.")
        return roots[name], parts

    def base(self, name: str) -> str:
        """What TrainSpec.base takes: "tiny", or the path of a known base model. Raises NameFault for any other name."""
        return TINY if name == TINY else str(_member(self.bases(), name, "base model"))

    def base_names(self) -> list[str]:
        """All that `base` takes, the bundled one last."""
        return [*(name for name in self.bases() if name != TINY), TINY]

    def adapter(self, name: str) -> Path:
        """The file of a known adapter. Raises NameFault for any other name."""
        return _member(self.adapter_files(), name, "adapter")

    def source(self, name: str) -> Path:
        """The file of a known adapter, or of a LoRA by loras/NAME. Raises NameFault for any other name."""
        known = self.adapter_files()
        return _member(known if name in known else {**known, **self.lora_files()}, name, "adapter")

    def plan(self, name: str) -> Path:
        """The file of a plan of columns, by its name without the ending. Raises NameFault for any other name."""
        return _member(self.plan_files(), name, "plan")

    def plan_files(self) -> dict[str, Path]:
        """The plans of columns, by name."""
        found = sorted((self.home / PLANS).glob(f"*{PLAN_SUFFIX}"))
        return {path.stem: path for path in found if is_shown(path.name)}

    def free_out(self, name: str, taken: Collection[Path] = ()) -> Path:
        """The first of adapters/NAME.safetensors, NAME-2, ... that neither exists nor is `taken` by a waiting job.

        Nor is it the name of a known adapter elsewhere, which a loader would take for it.
        """
        stem = check_name(name.removesuffix(SUFFIX) if isinstance(name, str) else name, "name")
        reserved = {_spelling(path) for path in (*taken, *(self.adapters / known for known in self.adapter_files()))}
        files.make_folder(self.adapters)
        paths = (self.adapters / f"{free}{SUFFIX}" for free in files.numbered(stem))
        return next(path for path in paths if not os.path.lexists(path) and _spelling(path) not in reserved)


def _spelling(path: Path) -> str:
    """Equal for two paths that may be one file on a system that folds case."""
    return os.path.abspath(path).casefold()


def _member(known: Mapping[str, Path], name: str, what: str) -> Path:
    if not isinstance(name, str) or name not in known:
        few = ", ".join(sorted(known)[:20]) or "none"
        found = quoted(name) if isinstance(name, str) else f"a {type(name).__name__}"
        raise NameFault(f"{what}: found {found}, expected one of: {few}. Files added later are seen after a reload.")
    return Path(known[name])


def standalone(home: Path, roots: Mapping[str, Path], models: Sequence[Path]) -> Places:
    """The places of a studio without ComfyUI; makes `home` with its `datasets` (for uploads) and `adapters`.

    roots: folders of datasets by name, besides those in home/roots.json. models: folders with base models, as
    .safetensors files or diffusers folders. Raises SettingError for a root of no use, OSError where home cannot be
    made.
    """
    home = Path(home).expanduser().absolute()
    own = {"datasets": home / "datasets"}
    for folder in (*own.values(), home / "adapters"):
        files.make_folder(folder)
    given = {check_name(name, "--root"): _root(path, "--root", name, home) for name, path in roots.items()}

    def all_roots() -> dict[str, Path]:
        return {**own, **given, **read_roots(home / ROOTS_FILE)}

    all_roots()
    folders = [Path(folder).expanduser().absolute() for folder in models]
    return Places(
        home=home,
        roots=all_roots,
        uploads="datasets",
        adapters=home / "adapters",
        bases=lambda: _bases(folders),
        adapter_files=lambda: _adapters(home / "adapters"),
        lora_files=lambda: _loras(home / "adapters"),
    )


def _loras(folder: Path) -> dict[str, Path]:
    """The LoRAs that were exported beside the adapters."""
    return {f"{LORAS}/{path.name}": path for path in sorted(folder.glob(f"*{LORA_SUFFIX}"))}


def _adapters(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.glob(f"*{SUFFIX}")) if not path.name.endswith(LORA_SUFFIX)}


def read_roots(path: Path) -> dict[str, Path]:
    """Roots that the user declared, {"name": "folder"}; none where there is no such file.

    A folder may be missing, as on a disk that is not plugged in. Raises SettingError with the file and the key.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingError(
            f'{path}: found {error}, expected JSON such as {{"pictures": "/home/me/pictures"}}. Correct or remove it.'
        ) from error
    if not isinstance(values, dict):
        raise SettingError(f'{path}: found a {type(values).__name__}, expected {{"name": "folder"}}. Correct it.')
    found = {}
    for name, folder in values.items():
        try:
            check_name(name, f"{path}: root")
            found[name] = _root(folder, str(path), name, path.parent)
        except NameFault as fault:
            raise SettingError(str(fault)) from fault
    return found


def _root(folder: object, source: str, name: str, home: Path) -> Path:
    if not isinstance(folder, (str, Path)):
        raise SettingError(f"{source}: {name}: found a {type(folder).__name__}, expected a folder's path as text.")
    try:
        path = Path(folder).expanduser()
    except RuntimeError as error:
        raise SettingError(f"{source}: {name}: found {folder}, expected a whole path ({error}).") from error
    if "\0" in str(path) or (not path.is_absolute() and source != "--root"):
        raise SettingError(f"{source}: {name}: found {quoted(str(folder))}, expected a whole path, not a relative one.")
    path = path.absolute()
    private = [home / part for part in ("jobs", "trash", "thumbs")]
    if is_inside(path, home) or any(is_inside(p, path) for p in private):
        raise SettingError(
            f"{source}: {name}: found {folder}, which holds the studio's own files; expected a folder of pictures."
        )
    return path


def _bases(folders: Sequence[Path]) -> dict[str, Path]:
    """Base models below the folders, by path within them; of equal names the first, as ComfyUI does."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for top in folders:
        for path in _models(top, seen, 0):
            if len(found) >= _MOST_BASES:
                return found
            name = path.relative_to(top).as_posix() if path != top else path.name
            if name != TINY:
                found.setdefault(name, path)
    return found


def _models(folder: Path, seen: set[str], depth: int) -> Iterator[Path]:
    """Model files and diffusers folders in name order. Links are followed, since people keep models on other disks."""
    real = os.path.realpath(folder)
    if real in seen or depth > _BASE_DEPTH:
        return
    seen.add(real)
    if (folder / "model_index.json").is_file():
        yield folder
        return
    try:
        entries = sorted(entry for entry in folder.iterdir() if is_shown(entry.name))
    except OSError:
        return  # a folder that was declared and is not there holds no model
    for entry in entries:
        if entry.is_dir():
            yield from _models(entry, seen, depth + 1)
        elif entry.suffix.lower() == SUFFIX and entry.is_file():
            yield entry
