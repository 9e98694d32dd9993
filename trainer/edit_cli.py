"""The command `edit`: title, description, trigger words, licence, author and preview of a file."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("file", type=Path, help="an adapter or a LoRA (.safetensors); its tensors stay bit for bit")
    add("--title", default=None)
    add("--description", default=None)
    add("--trigger-words", default=None, metavar="WORD,WORD", help="words that call the concept, with commas between")
    add("--licence", default=None)
    add("--author", default=None)
    add("--preview", default=None, metavar="PICTURE", help='a picture; it is made small. "" takes the preview out')


def run(args: argparse.Namespace) -> int:
    """Write what was given; an empty text takes an entry out. Raises SpectralError, with nothing changed."""
    from ..spectral.errors import SettingError
    from .edit import edit

    given = (args.title, args.description, args.trigger_words, args.licence, args.author, args.preview)
    if all(text is None for text in given):
        raise SettingError("found nothing to change; expected one of --title, --description, --trigger-words, ...")
    words = None if args.trigger_words is None else args.trigger_words.split(",")
    preview = None if args.preview is None else Path(args.preview) if args.preview else b""
    edit(
        args.file,
        title=args.title,
        description=args.description,
        trigger_words=words,
        licence=args.licence,
        author=args.author,
        preview=preview,
    )
    print(f"Changed {args.file} ({args.file.stat().st_size:,} bytes); its tensors are untouched.")
    return 0
