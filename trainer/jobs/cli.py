"""The command `jobs`: everything that the panel does with trainings, from a terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job import Entry
    from .store import JobStore

DEFAULT_HOME = "spectral_adapters"
_PAUSE = 0.5  # seconds between two looks
_LINE = 2.0  # seconds between two lines of `follow`


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The actions of `jobs`, each with its options."""
    command.description = (
        "Queue, follow, stop and resume trainings that run as processes of their own. They are worked on while a host "
        "with the panel is open (ComfyUI, `ui`), or by `jobs run`. What runs goes on when that is closed."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--home", type=Path, default=None, help=f"folder of the jobs (default: {DEFAULT_HOME} in the home folder)"
    )
    common.add_argument("--json", action="store_true", help="print JSON")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str, *, id: bool = False) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=help, parents=[common], allow_abbrev=False)
        if id:
            made.add_argument("id", help="the job's id, as `jobs list` shows it")
        return made

    action("list", "all jobs, the newest first")
    action("show", "how a job stands", id=True)
    action("follow", "print how a job goes on until it ends", id=True)
    _add_options(action("add", "queue a training"))
    order = action("order", "bring waiting jobs to the front of the queue, in this order")
    order.add_argument("ids", nargs="+", metavar="ID")
    stop = action("stop", "take a job out of the queue, or let it save and stop", id=True)
    stop.add_argument("--now", action="store_true", help="end its process at once; the last checkpoint stays")
    resume = action("resume", "queue a stopped, interrupted or failed job again", id=True)
    resume.add_argument("--allow", action="append", default=[], metavar="SETTING", help="take other content as it is")
    action("sample", "make sample pictures now", id=True)
    action("save", "save a checkpoint now", id=True)
    action("delete", "move a job to the trash; its adapter file stays", id=True)
    _run_options(action("run", "work on the queue until it is empty"))
    _grid_options(action("grid", "queue a grid of pictures by checkpoint and strength of a training", id=True))
    export = action("export", "queue the export of a training as a LoRA", id=True)
    export.add_argument("--rank", type=int, default=None, help="rank of the LoRA; needed for svdiff and soda")
    export.add_argument("--checkpoint", default=None, help="such as step-000250 (default: the finished adapter)")
    keep = action("keep", "put the adapter of a checkpoint among the finished ones", id=True)
    keep.add_argument("checkpoint", help="such as step-000250")


def _add_options(add: argparse.ArgumentParser) -> None:
    from ..engines import BUILT_IN, ENGINES
    from ..options import name_and_value

    add.add_argument("spec", type=Path, nargs="?", metavar="SPEC", help="settings as .toml or .json, as for train")
    add.add_argument(
        "--set", type=name_and_value, action="append", default=[], metavar="NAME=VALUE",
        help="a setting over those of SPEC and its preset (repeatable)",
    )  # fmt: skip
    add.add_argument("--name", default=None, help="what to call it (default: the adapter file's name)")
    add.add_argument("--on", default="auto", metavar="DEVICE", help="auto, cpu, cuda:0, ... (default: auto)")
    add.add_argument(
        "--engine", choices=ENGINES, default=BUILT_IN,
        help=f"what trains; sd-scripts is the one that `kohya` would start (default: {BUILT_IN})",
    )  # fmt: skip
    add.add_argument("--wait-idle", action="store_true", help="begin only while the host has nothing to do")
    add.add_argument("--keep-loaded", action="store_true", help="do not let the host free the GPU before")


def _run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("--on", action="append", default=[], metavar="DEVICE", help="cpu, cuda:0, ... (default: all)")


def _grid_options(grid: argparse.ArgumentParser) -> None:
    add = grid.add_argument
    add("--checkpoint", dest="checkpoints", action="append", help="such as step-000250, or final (repeatable)")
    add("--strength", dest="strengths", type=float, action="append", help="(repeatable)")
    add("--prompt", dest="prompts", action="append", help="(repeatable; default: those of the samples)")
    add("--seed", type=int, default=None)


def run(args: argparse.Namespace) -> int:
    """Do what was asked. Raises SpectralError."""
    from .store import JobStore

    return _ACTIONS[args.action](JobStore(_home(args)), args)


def _home(args: argparse.Namespace) -> Path:
    return Path.home() / DEFAULT_HOME if args.home is None else args.home


def _list(store: JobStore, args: argparse.Namespace) -> int:
    from .course import Course

    found = [_summary(entry, Course(entry.run)) for entry in store.entries()]
    if args.json:
        _print_json({"jobs": found, "queue": store.queue()})
    elif not found:
        print(f"No jobs in {store.home}. Queue one with `jobs add`.")
    for job in [] if args.json else found:
        print(f"{job['id']}  {job['status']:11}  {job['kind']:8}  {_steps(job):>13}  {job['name']}")
    return 0


def _show(store: JobStore, args: argparse.Namespace) -> int:
    from .course import Course

    entry = store.entry(args.id)
    job = _summary(entry, Course(entry.run))
    if args.json:
        _print_json({**job, "spec": entry.job.spec, "request": entry.job.request})
        return 0
    print(_line(job))
    for text in (job["text"], job["best"] and job["best"]["text"], job["adapter"], entry.folder):
        if text:
            print(f"  {text}")
    return 0


def _follow(store: JobStore, args: argparse.Namespace) -> int:
    """Lines while the job goes on; 0 for one that finished or was stopped, else 1."""
    from .course import Course

    course, said = Course(store.entry(args.id).run), ""
    while True:
        entry = store.entry(args.id)
        job = _summary(entry, course)
        line = json.dumps(job) if args.json else _line(job)
        if line != said:
            print(line, flush=True)
        said = line
        if not (entry.state.active or entry.state.status == "queued"):
            if entry.state.text and not args.json:
                print(f"  {entry.state.text}")
            return 0 if entry.state.status in ("finished", "stopped") else 1
        time.sleep(_LINE)


def _add(store: JobStore, args: argparse.Namespace) -> int:
    from .. import engines
    from ..layering import over_preset
    from ..resume import absolute
    from ..spec import TrainSpec, read_spec_file
    from .job import Options

    written = read_spec_file(args.spec) if args.spec is not None else {}
    spec = absolute(TrainSpec.from_mapping(over_preset(written, dict(args.set))))
    spec.check()
    engines.check(args.engine, spec)
    device = "cpu" if spec.device == "cpu" else args.on
    options = Options(wait_idle=args.wait_idle, unload=not args.keep_loaded)
    name, engine = args.name or spec.out.stem, args.engine
    entry = store.add("train", name, spec.as_json(), device=device, options=options, engine=engine)
    remarks = [f"{each['setting']}: {each['text']}" for each in engines.said(engine, spec)["remarks"]]
    return _queued(entry, args, remarks)


def _order(store: JobStore, args: argparse.Namespace) -> int:
    order = store.reorder(args.ids)
    _print_json(order) if args.json else print("\n".join(order))
    return 0


def _stop(store: JobStore, args: argparse.Namespace) -> int:
    return _said(store.stop(args.id, now=args.now), args)


def _resume(store: JobStore, args: argparse.Namespace) -> int:
    return _said(store.resume(args.id, args.allow), args)


def _sample(store: JobStore, args: argparse.Namespace) -> int:
    store.sample(args.id)
    return _done(f"Asked {args.id} for samples; it answers after the step that it is in.", args)


def _save(store: JobStore, args: argparse.Namespace) -> int:
    store.save(args.id)
    return _done(f"Asked {args.id} for a checkpoint; it answers after the step that it is in.", args)


def _delete(store: JobStore, args: argparse.Namespace) -> int:
    return _done(f"Moved {args.id} to {store.delete(args.id)}.", args)


def _grid(store: JobStore, args: argparse.Namespace) -> int:
    asked = {name: getattr(args, name) for name in ("checkpoints", "strengths", "prompts", "seed")}
    chosen = {name: value for name, value in asked.items() if value is not None}
    return _queued(_studio(args).create_grid(args.id, chosen), args)


def _export(store: JobStore, args: argparse.Namespace) -> int:
    return _queued(_studio(args).create_export(args.id, {"rank": args.rank, "checkpoint": args.checkpoint}), args)


def _keep(store: JobStore, args: argparse.Namespace) -> int:
    beside = store.entry(args.id).job.spec.get("out")
    studio = _studio(args, None if beside is None else Path(beside).parent)
    return _done(f"It is there as {studio.keep(args.id, args.checkpoint)}.", args)


def _studio(args: argparse.Namespace, adapters: Path | None = None) -> Any:
    """What pages ask; it runs nothing here. adapters: where finished ones lie, which for ComfyUI is not the home."""
    from ..places import standalone
    from ..studio import Studio
    from .host import Standalone

    places = standalone(_home(args), {}, [])
    return Studio(places if adapters is None else replace(places, adapters=adapters), Standalone(), ())


def _run(store: JobStore, args: argparse.Namespace) -> int:
    """Work on the queue in the foreground; 0 where nothing failed meanwhile."""
    from .host import Device
    from .supervisor import Supervisor

    host = _Printing(args.json)
    supervisor = Supervisor(store, host, [Device(id, id) for id in args.on] or None)
    supervisor.start()
    said = ""
    try:
        while store.queue() or store.active():
            state = supervisor.status()
            if not supervisor.leads and state["text"] not in ("", said):
                print(state["text"], file=sys.stderr)
                said = state["text"]
            if not state["alive"]:
                return 1
            time.sleep(_PAUSE)
    finally:
        left = store.active()
        supervisor.close()
        if left and sys.exc_info()[0] is KeyboardInterrupt:
            names = ", ".join(f"{entry.job.name} ({entry.id})" for entry in left)
            print(f"Still training by itself: {names}. Stop it with `jobs stop ID`.", file=sys.stderr)
    return 1 if host.failed else 0


class _Printing:
    """A host that prints every change."""

    name = "the command line"
    can: frozenset[str] = frozenset()

    def __init__(self, as_json: bool) -> None:
        self._as_json, self._said, self.failed = as_json, "", False

    def idle(self) -> bool:
        return True

    def release(self) -> None:
        return None

    def changed(self, entry: Entry) -> None:
        self.failed |= entry.state.status in ("failed", "interrupted")
        said = f"{entry.id}  {entry.state.status}: {entry.job.name}. {entry.state.text}"
        if said != self._said:
            print(json.dumps(_state(entry)) if self._as_json else said, flush=True)
        self._said = said


def _summary(entry: Entry, course: Any) -> dict[str, Any]:
    """What is shown of a job."""
    seen = course.summary()
    names = ("step", "steps", "loss", "lr", "rate", "eta", "memory", "phase", "progress", "best")
    return {
        **_state(entry),
        **{name: seen[name] for name in names},
        "steps": seen["steps"] or entry.job.spec.get("steps"),
        "adapter": entry.state.adapter,
        "resumable": entry.state.resumable,
        "device": entry.state.device or entry.job.device,
        "engine": entry.job.engine,
        "folder": str(entry.folder),
    }


def _state(entry: Entry) -> dict[str, Any]:
    job, state = entry.job, entry.state
    return {"id": job.id, "kind": job.kind, "name": job.name, "status": state.status, "text": state.text}


def _line(job: dict[str, Any]) -> str:
    from ..engines import BUILT_IN
    from ..words import duration_text

    parts = [job["status"], "" if job["engine"] == BUILT_IN else f"by {job['engine']}", _steps(job)]
    if job["loss"] is not None:
        parts.append(f"loss {job['loss']:.4f}")
    if job["status"] == "running":
        parts.append(job["phase"] or "starting")
        if job["eta"] is not None:
            parts.append(f"{duration_text(job['eta'])} left")
    return f"{job['id']}  {job['name']}: {', '.join(part for part in parts if part)}"


def _steps(job: dict[str, Any]) -> str:
    return f"{job['step']:,} of {job['steps']:,}" if job["steps"] else ""


def _queued(entry: Entry, args: argparse.Namespace, remarks: Sequence[str] = ()) -> int:
    if args.json:
        _print_json({**_state(entry), **({"remarks": list(remarks)} if remarks else {})})
    else:
        print("\n".join([f"Queued {entry.job.name} as {entry.id}.", *(f"  {remark}" for remark in remarks)]))
    return 0


def _said(entry: Entry, args: argparse.Namespace) -> int:
    if args.json:
        _print_json(_state(entry))
    else:
        print(f"{entry.id} is {entry.state.status}. {entry.state.text}")
    return 0


def _done(text: str, args: argparse.Namespace) -> int:
    _print_json({"text": text}) if args.json else print(text)
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


_ACTIONS = {
    "list": _list, "show": _show, "follow": _follow, "add": _add, "order": _order, "stop": _stop, "resume": _resume,
    "sample": _sample, "save": _save, "delete": _delete, "run": _run, "grid": _grid, "export": _export,
    "keep": _keep,
}  # fmt: skip
