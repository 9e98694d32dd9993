"""The command `publish`: a folder to share, with a model card, and its upload where asked for."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("file", type=Path, help="an adapter or a LoRA (.safetensors)")
    add("folder", type=Path, help="new folder to write")
    add("--sample", nargs="+", action="append", default=[], metavar=("PICTURE", "PROMPT"), help="may be repeated")
    add("--licence", default=None, help="such as cc-by-4.0; default: the one in the file")
    add("--base-model", default=None, metavar="USER/NAME", help="the base's id on the Hugging Face Hub")
    add("--no-lora", action="store_true", help="no LoRA beside the adapter")
    add("--upload", action="store_true", help="upload the folder with huggingface_hub's own login (hf auth login)")
    add("--repo", default=None, metavar="USER/NAME", help="where to upload it")
    add("--public", action="store_true", help="the repository, where it is new, is seen by everybody")


def run(args: argparse.Namespace) -> int:
    """Write the folder, upload it where asked for. Raises SpectralError as `publish` does."""
    from ..spectral.errors import SettingError
    from .publish import Sample, publish

    if any(len(given) > 2 for given in args.sample):
        raise SettingError("--sample takes a picture and a prompt; put the prompt in quotes")
    made = publish(
        args.file,
        args.folder,
        samples=[Sample(Path(given[0]), given[1] if len(given) > 1 else "") for given in args.sample],
        licence=args.licence,
        base_model=args.base_model,
        lora=not args.no_lora,
        repo=args.repo,
        upload=args.upload,
        private=not args.public,
    )
    print(f"Wrote {made.folder}: {', '.join(made.files)}.")
    for note in made.notes:
        print(f"Note: {note}")
    print(f"Uploaded to {made.url}." if made.url else "Nothing was uploaded.")
    return 0
