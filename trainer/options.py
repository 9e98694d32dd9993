"""The options of `train`: a spec file, and a flag for every setting, made from the settings' own metadata.

Imports nothing heavy, so that --help and mistyped options answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from ..spectral.errors import SettingError
from .layering import DEFAULT_PRESET, over_preset
from .spec import TrainSpec, read_spec_file, settings

COMMON = (
    "base", "images", "out", "preset", "method", "rank", "targets", "trigger", "steps", "lr", "batch_size",
    "resolution", "precision", "sample_prompts", "seed",
)  # fmt: skip
TITLES = {
    "base": "base model",
    "data": "pictures and captions",
    "adapter": "adapter",
    "loss": "loss",
    "training": "training",
    "run": "checkpoints, validation, samples, the file",
}
# How list settings are also spelt, since each flag gives one item.
_SINGULAR = {"sample_prompts": "--sample-prompt", "optimizer_args": "--optimizer-arg"}


class Parser(argparse.ArgumentParser):
    """Its errors are one sentence, with the nearest option where one is not known. Abbreviations are not guessed."""

    def error(self, message: str) -> NoReturn:
        strange = message.partition("unrecognized arguments: ")[2].split()
        near = difflib.get_close_matches(strange[0].partition("=")[0], self.flags(), n=1) if strange else []
        hint = f"; did you mean {near[0]}?" if near else f". See {self.prog} --help."
        print(f"error: {message}{hint}", file=sys.stderr)
        sys.exit(2)

    def flags(self) -> list[str]:
        """Every option of this parser and of its commands."""
        found = [flag for action in self._actions for flag in action.option_strings]
        commands = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return found + [flag for c in commands for command in c.choices.values() for flag in command.flags()]


def add_train_arguments(command: argparse.ArgumentParser) -> None:
    """A positional spec file, what to do with the run, and every field of TrainSpec; common ones first."""
    command.description = (
        "Train an adapter on a folder of pictures. Settings come from the preset, then the spec file, then the flags; "
        "each wins over the ones before. docs/training_settings.md says more of each."
    )
    command.usage = "%(prog)s [SPEC] [--base … --images … --out …] [more options]"
    command.add_argument(
        "spec", nargs="?", type=Path, metavar="SPEC", help="settings as .toml or .json, with the names of the flags"
    )
    run = command.add_argument_group("what to do")
    run.add_argument("--dry-run", action="store_true", help="check everything, print the plan, and train nothing")
    run.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run's folder")
    run.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="SETTING",
        help="with --resume: take the new value of a setting that would otherwise be refused (repeatable)",
    )
    run.add_argument("--json", action="store_true", help="events as JSON lines on stdout instead of text and bars")
    by_name = {field.name: field for field in settings()}
    kinds = get_type_hints(TrainSpec)
    common = command.add_argument_group("common settings")
    for name in COMMON:
        _add(common, by_name[name], kinds[name])
    common.add_argument("--cpu", dest="device", action="store_const", const="cpu", default=argparse.SUPPRESS,
                        help="short for --device cpu")  # fmt: skip
    for group, title in TITLES.items():
        box = command.add_argument_group(title)
        for name, field in by_name.items():
            if field.metadata["group"] == group and name not in COMMON:
                _add(box, field, kinds[name])


def read_train_spec(args: argparse.Namespace) -> TrainSpec:
    """The run that the parsed options, their spec file and the preset below them ask for. Raises SettingError."""
    names = {field.name for field in settings()}
    flags = {name: value for name, value in vars(args).items() if name in names}
    if "optimizer_args" in flags:
        flags["optimizer_args"] = dict(flags["optimizer_args"])
    written = _read_file(args.spec) if args.spec is not None else {}
    return TrainSpec.from_mapping(over_preset(written, flags))


def _read_file(path: Path) -> dict[str, Any]:
    """A spec file's values, each checked; errors name the file."""
    written = read_spec_file(path)
    try:
        TrainSpec.from_mapping({"base": "tiny", "images": "", "out": "", **written})
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from error
    return written


def _add(group: argparse._ArgumentGroup, field: Field, kind: Any) -> None:
    """The field's flag. Nothing is set where the flag is not given, so that layers can be told apart."""
    flag = f"--{field.name.replace('_', '-')}"
    flags = [flag, _SINGULAR[field.name]] if field.name in _SINGULAR else [flag]
    given: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field)}
    options = [option for option in get_args(kind) if option is not type(None)] or [kind]
    plain = options[0] if get_origin(kind) in (Union, types.UnionType) else kind
    if plain is bool:
        given["action"] = argparse.BooleanOptionalAction
    elif get_origin(plain) is Literal:
        given |= {"choices": get_args(plain)}
    elif get_origin(plain) is tuple:
        given |= {"action": "append", "type": get_args(plain)[0], "metavar": _metavar(get_args(plain)[0])}
    elif get_origin(plain) is Mapping:
        given |= {"action": "append", "type": name_and_value, "metavar": "NAME=VALUE"}
    else:
        optional = plain is not kind and plain in (int, float)
        given |= {"type": _or_none(plain) if optional else plain, "metavar": _metavar(plain)}
    group.add_argument(*flags, **given)


def name_and_value(text: str) -> tuple[str, Any]:
    """ "betas=[0.9, 0.99]" -> ("betas", [0.9, 0.99]); what is no JSON is taken as text."""
    name, equals, value = text.partition("=")
    if not (equals and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, {"True": True, "False": False}.get(value, value)


def _or_none(kind: type) -> Any:
    """The flag's type, with the word none for "left to the default" where a file or preset says something else."""

    def read(text: str) -> Any:
        return None if text == "none" else kind(text)

    read.__name__ = kind.__name__
    return read


def _metavar(kind: type) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _help(field: Field) -> str:
    """The setting's help, with its default where that says something."""
    text = field.metadata["help"].replace("%", "%%")
    if field.name == "preset":
        return f"{text} (default: {DEFAULT_PRESET})"
    shown = field.default is not MISSING and field.default not in (None, (), "") and "efault:" not in text
    return f"{text} (default: {default_text(field)})" if shown else text


def is_required(field: Field) -> bool:
    """Whether a run cannot do without it."""
    return field.default is MISSING and field.default_factory is MISSING


def default_text(field: Field) -> str:
    """A default as it is written on the command line and in a spec file."""
    if field.default is True or field.default is False:
        return "on" if field.default else "off"
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
