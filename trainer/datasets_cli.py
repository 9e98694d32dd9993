"""The command `datasets`: everything that the panel does with folders of training pictures, from a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .events import Event
    from .places import Places

DEFAULT_HOME = "spectral_adapters"
_PAGE = 500


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The actions of `datasets`, each with its options."""
    command.description = (
        "List, check and fill folders of training pictures. A dataset is called ROOT/FOLDER, as `datasets list` shows "
        "it; new ones are made in the root `datasets` of the home folder. More roots are declared in its roots.json: "
        '{"NAME": "FOLDER"}.'
    )
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--home", type=Path, default=None, help=f"folder of the jobs (default: {DEFAULT_HOME} in the home folder)")
    add(
        "--root",
        type=named_folder,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a folder whose sub-folders are datasets (repeatable)",
    )
    add("--json", action="store_true", help="print JSON")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str, id: bool = True) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=help, parents=[common], allow_abbrev=False)
        if id:
            made.add_argument("id", metavar="DATASET", help="such as datasets/dog")
        return made

    action("list", "all datasets", id=False)
    action("show", "the pictures of a dataset with their captions")
    _check_options(action("check", "say what a training would find in a dataset"))
    action("create", "make an empty dataset", id=False).add_argument("name")
    action("add", "copy pictures into a dataset, with the captions beside them").add_argument(
        "files", type=Path, nargs="+", metavar="FILE"
    )
    caption = action("caption", "write a picture's caption")
    caption.add_argument("picture", help="such as 1.png, or 10_dog/1.png")
    caption.add_argument("text", help='"" removes the caption')
    action("remove", "move a picture with its caption to the trash").add_argument("picture")


def _check_options(check: argparse.ArgumentParser) -> None:
    add = check.add_argument
    add("--base", default="", help="a base model's file or folder, or tiny: what pictures are cut for")
    add("--resolution", type=int, default=None, metavar="N", help="pixels (default: the base's own)")
    add("--masks", default=None, metavar="DATASET", help="the dataset that holds the masks")
    add("--trigger", default="", metavar="TEXT", help="the word that calls the concept up")


def named_folder(text: str) -> tuple[str, Path]:
    """ "pictures=/home/me/pictures" -> its two parts."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def run(args: argparse.Namespace) -> int:
    """Do what was asked. Raises SpectralError."""
    from .places import standalone

    home = Path.home() / DEFAULT_HOME if args.home is None else args.home
    return _ACTIONS[args.action](standalone(home, dict(args.root), ()), args)


def _list(places: Places, args: argparse.Namespace) -> int:
    from .datasets import list_datasets

    found = list_datasets(places)
    if not found:
        print(
            f"There is no dataset yet. Make one with `datasets create`; it will lie in {places.home}.", file=sys.stderr
        )
    lines = (_dataset_line(each) for each in found)
    return _print(args, found, lines)


def _dataset_line(one: dict[str, Any]) -> str:
    note = f"  ({one['note']})" if one["note"] else ""
    return f"{one['id']}  {one['pictures']} pictures, {one['captions']} captions{note}"


def _show(places: Places, args: argparse.Namespace) -> int:
    from .datasets import pictures

    page = pictures(places, args.id, 0, _PAGE)
    every = page["pictures"]
    while len(every) < page["total"] and page["pictures"]:
        page = pictures(places, args.id, len(every), _PAGE)
        every += page["pictures"]
    lines = (f"{each['name']}  x{each['repeats']}  {each['caption']}  {each['note']}".rstrip() for each in every)
    return _print(args, every, lines)


def _check(places: Places, args: argparse.Namespace) -> int:
    """1 where pictures cannot be used."""
    from dataclasses import replace

    from .datasets import check

    if args.base:
        places = replace(places, bases=lambda: {args.base: Path(args.base)})
    settings = {"resolution": args.resolution, "masks": args.masks, "trigger": args.trigger}
    found = check(places, args.id, settings, args.base, listen=_progress, seconds=float("inf"))
    _print(args, found, _report(found))
    return 1 if any(finding["fatal"] for finding in found["findings"]) else 0


def _progress(event: Event) -> None:
    """Told from the second second on."""
    end = "\n" if event.done == event.total else "\r"
    print(f"{event.done} of {event.total} pictures", file=sys.stderr, end=end)


def _report(found: dict[str, Any]) -> Iterator[str]:
    sizes = ", ".join(f"{size}: {count}" for size, count in found["sizes"].items())
    yield f"{found['usable']} pictures can be used{f' ({sizes})' if sizes else ''}."
    for finding in sorted(found["findings"], key=lambda each: not each["fatal"]):
        mark = "cannot be used" if finding["fatal"] else "note"
        yield f"{mark}: {finding['file']}: {finding['text']}".replace(": : ", ": ")


def _create(places: Places, args: argparse.Namespace) -> int:
    from .datasets import create

    id = create(places, args.name)
    return _print(args, {"id": id}, [f"Made {id}. Put pictures in with: datasets add {id} FILE..."])


def _add(places: Places, args: argparse.Namespace) -> int:
    """Every file is tried, captions with their pictures; 1 where some could not be added."""
    from ..spectral.errors import SpectralError
    from .folder import CAPTION_SUFFIXES

    added, refused = {}, {}
    for path in (path for path in args.files if path.suffix.lower() not in CAPTION_SUFFIXES):
        try:
            added[str(path)] = _add_one(places, args.id, path)
        except SpectralError as error:
            refused[str(path)] = str(error)
        except OSError as error:
            refused[str(path)] = f"cannot be read ({error.strerror or error})"
    for path, text in refused.items():
        print(f"not added: {path}: {text}", file=sys.stderr)
    _print(args, {"added": added, "refused": refused}, [f"{path} -> {name}" for path, name in added.items()])
    return 1 if refused else 0


def _add_one(places: Places, id: str, path: Path) -> str:
    """Add a picture with the caption that lies beside it. Raises SpectralError, OSError."""
    from .dataset_edit import LARGEST
    from .datasets import set_caption, upload
    from .folder import CAPTION_SUFFIXES, read_caption

    with path.open("rb") as file:
        name = upload(places, id, path.name, file.read(LARGEST + 1))
    beside = next((p for p in map(path.with_suffix, CAPTION_SUFFIXES) if p.is_file()), None)
    text = read_caption(beside)[0] if beside else ""
    if text:
        set_caption(places, id, name, text)
    return name


def _caption(places: Places, args: argparse.Namespace) -> int:
    from .datasets import set_caption

    set_caption(places, args.id, args.picture, args.text)
    return _print(args, {}, [f"Wrote the caption of {args.picture}." if args.text else "Moved it to the trash."])


def _remove(places: Places, args: argparse.Namespace) -> int:
    from .datasets import remove

    remove(places, args.id, args.picture)
    return _print(args, {}, [f"Moved {args.picture} to {places.home / 'trash'}."])


def _print(args: argparse.Namespace, values: Any, lines: Iterator[str] | list[str]) -> int:
    text = json.dumps(values, indent=2, ensure_ascii=False) if args.json else "\n".join(lines)
    if text:
        print(text)
    return 0


_ACTIONS: dict[str, Callable[[Places, argparse.Namespace], int]] = {
    "list": _list,
    "show": _show,
    "check": _check,
    "create": _create,
    "add": _add,
    "caption": _caption,
    "remove": _remove,
}
