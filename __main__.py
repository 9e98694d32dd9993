"""The command line: ``python -m spectral_adapters COMMAND``, or ``python THIS_FOLDER COMMAND`` without installing.

Only the standard library is imported here; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

PACKAGE = "spectral_adapters"
# Commands that live with what they do, in modules with `add_arguments(parser)` and `run(arguments)`; with what --help
# says of each. Those without are started by this package's own processes.
_ELSEWHERE = {
    "kohya": (".trainer.sd_scripts.cli", "train with kohya's sd-scripts instead of this package's own trainer"),
    "jobs": (".trainer.jobs.cli", "queue, follow, stop and resume trainings that run by themselves"),
    "datasets": (".trainer.datasets_cli", "list, check and fill folders of training pictures"),
    "ui": (".trainer.http.cli", "show the training panel in the browser"),
    "spectrum": (".trainer.spectrum_cli", "show which layers and singular directions a training moved"),
    "convert": (".trainer.convert_cli", "write a LoRA or a difference, or an adapter of another tool's file"),
    "edit": (".trainer.edit_cli", "change what a file says of itself"),
    "publish": (".trainer.publish_cli", "write a folder to share, with a model card"),
    "extract": (".trainer.extract_cli", "make an adapter of a LoRA, a fine-tuned model or another adapter"),
    "transfer": (".trainer.transfer_cli", "carry an adapter or a LoRA to a related base"),
    "fuse": (".trainer.fuse_cli", "fuse adapters, LoRA files too, into one file"),
    "correlate": (".trainer.correlate_cli", "say how alike the shifts of svdiff adapters are"),
    "limit": (".trainer.limit_cli", "keep some columns of an svdiff adapter"),
    "compare": (".trainer.compare_cli", "say where adapters collide before they are fused"),
    "plan": (".trainer.plan_cli", "give each concept of a set columns of its own"),
    "job-child": (".trainer.jobs.child", None),
    "estimate-server": (".trainer.estimate_server", None),
    "sd-scripts-child": (".trainer.sd_scripts.door", None),
}


def _register() -> None:
    """Make the folder this file lies in importable as `spectral_adapters`, without putting it on sys.path.

    ``python <folder>`` puts the folder itself on sys.path, where its `nodes` or `trainer` could shadow a host's; it is
    taken off again.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    folder = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    spec = spec_from_file_location(PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """All commands; of those with many options only the name, unless it is the `command` to be read."""
    from .trainer.options import Parser, add_train_arguments

    top = Parser(
        prog=PACKAGE.replace("_", "-"), description="Train, inspect and convert spectral adapters for Stable Diffusion."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train an adapter on a folder of pictures", allow_abbrev=False)
    if command in (None, "train"):
        add_train_arguments(train)
    train.set_defaults(handler=_train)
    _plot_arguments(commands.add_parser("plot", help="draw a training run's loss.png and sheet.png again"))
    _ask_arguments(commands.add_parser("ask", help="ask a running training for a stop, samples or a checkpoint"))
    page = commands.add_parser("settings", help="print every training setting, with advice, as Markdown")
    page.set_defaults(handler=_settings)
    _info_arguments(commands.add_parser("info", help="say what an adapter file holds"))
    _demo_arguments(commands.add_parser("demo", help="train on the bundled pictures and show before and after"))
    for name in _ELSEWHERE:
        _add_elsewhere(commands, name, wanted=name == command)
    return top


def _add_elsewhere(commands: argparse._SubParsersAction, name: str, *, wanted: bool) -> None:
    """The name of a command that lives elsewhere; its options too where it is the one wanted."""
    home, said = _ELSEWHERE[name]
    known = commands.add_parser(name, allow_abbrev=False, **({} if said is None else {"help": said}))
    if wanted:
        module = import_module(home, __package__)
        module.add_arguments(known)
        known.set_defaults(handler=module.run)


def _plot_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="the run's folder (NAME.training)")
    command.set_defaults(handler=_plot)


def _ask_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="the run's folder (NAME.training)")
    command.add_argument("request", choices=("stop", "sample", "save"), help="save: a checkpoint now")
    command.set_defaults(handler=_ask)


def _info_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(handler=_info)


def _demo_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--method", default=None, help="svdiff, additive, rotation or soda (default: additive)")
    add("--steps", type=int, default=None, help="optimiser steps")
    add("--lr", type=float, default=None, help="learning rate (default: the method's own)")
    add("--seed", type=int, default=0, help="fixes picture order, noise and timesteps (default: 0)")
    add("--out", type=Path, default=Path("output/demo"), help="folder (default: output/demo)")
    command.set_defaults(handler=_demo)


def _train(args: argparse.Namespace) -> int:
    from .spectral.errors import SpectralError
    from .trainer.options import read_train_spec

    spec = read_train_spec(args)
    from .trainer.console import Console, Follower, StopOnSignal, print_json, quiet_libraries, resume_command

    quiet_libraries()
    from .spectral.cache import BasisCache
    from .trainer.loop import train

    with Console(resume_command(args.typed), spec.run_folder) as console, StopOnSignal() as stop:
        follower = Follower(print_json if args.json else console)
        try:
            train(
                spec,
                follower,
                cache=BasisCache(),
                stop=stop,
                resume=args.resume,
                allow=args.allow,
                dry_run=args.dry_run,
            )
        except SpectralError as error:
            follower.end(error)
        return follower.status


def _plot(args: argparse.Namespace) -> int:
    from .trainer.overview import draw

    for path in draw(args.folder):
        print(f"Wrote {path}.")
    return 0


def _ask(args: argparse.Namespace) -> int:
    from .trainer.run_folder import ask

    ask(args.folder, args.request)
    print(f"Asked the training in {args.folder}; it answers after the step that it is in.")
    return 0


def _settings(_args: argparse.Namespace) -> int:
    from .trainer.settings_page import page

    print(page(), end="")
    return 0


def _info(args: argparse.Namespace) -> int:
    from .spectral.info import read_info

    info = read_info(args.file)
    if args.json:
        import json

        print(json.dumps(info.as_json(), indent=2, ensure_ascii=False))
    else:
        print(info)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from .trainer.console import Console, StopOnSignal, quiet_libraries

    quiet_libraries()
    from .trainer.demo import run_demo

    with Console() as console, StopOnSignal() as stop:
        result = run_demo(
            args.out, method=args.method, steps=args.steps, lr=args.lr, seed=args.seed, listen=console, stop=stop
        )
    print(result)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Errors made on purpose are printed as a sentence; see docs/cli.md for the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parser(given[0] if given else "").parse_args(given)
    args.typed = given
    from .spectral.errors import SpectralError

    try:
        return args.handler(args)
    except SpectralError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or PACKAGE).split(".")[0] == PACKAGE:
            raise
        requirements = Path(__file__).resolve().parent / "requirements.txt"
        print(
            f"error: this command needs the Python package {error.name}, which {sys.executable} does not have. Install "
            f"what is missing with: {sys.executable} -m pip install -r {requirements}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("Interrupted; nothing more was saved.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if not __package__:
        _register()
        main = import_module(f"{PACKAGE}.__main__").main
    sys.exit(main())
