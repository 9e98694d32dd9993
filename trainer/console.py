"""The terminal's side of a run: listeners that print events as text or JSON lines, and Ctrl-C as a polite request."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from ..spectral.errors import Cancelled, SpectralError
from .event_log import as_json
from .events import (
    Checkpointed,
    Ended,
    Event,
    Listener,
    Notice,
    Phase,
    Plan,
    Progress,
    Resumed,
    Sampled,
    Saved,
    Skipped,
    Step,
    Validated,
)
from .overview import LOSS, SHEET
from .running_mean import RunningMean
from .words import duration_text, size_text

# Set where it is us who keep the libraries off the network; other programs that we start need not stay off it.
OFFLINE = "SPECTRAL_ADAPTERS_OFFLINE"
_BAR = "{desc} |{bar:24}| {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}]"
_STEPS_BAR = "{desc} |{bar:24}| {n_fmt}/{total_fmt}{postfix}"
# Where no terminal shows a bar, a line every so often.
_LINE_EVERY_S = 10.0
_PART_NAMES = {
    "unet": "UNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}


def quiet_libraries() -> None:
    """Stop diffusers and transformers from printing notices that are none of the user's business."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "HF_HUB_OFFLINE" not in os.environ:
        os.environ |= {"HF_HUB_OFFLINE": "1", OFFLINE: "1"}
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def print_json(event: Event) -> None:
    """A listener for programs: each event as one JSON line on stdout, as in a run's events.jsonl."""
    print(json.dumps(as_json(event), ensure_ascii=False), flush=True)


class Console:
    """Prints events; usable as a listener and as a context manager that closes an open bar.

    resume: the command that goes on with the run, said at an early end. run: the run's folder; the pictures that a run
    ends with are named when they are there.
    """

    def __init__(self, resume: str = "", run: Path | None = None) -> None:
        self._resume, self._run = resume, run
        self._bar: tqdm | None = None
        self._phase, self._since = "", time.perf_counter()
        self._mean, self._said_step = RunningMean(), 0.0
        self._has_bars = sys.stderr.isatty()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        match event:
            case Phase(name):
                self._close()
                self._phase, self._since = name, time.perf_counter()
                self._say(f"{name[:1].upper()}{name[1:]} …")
            case Progress(done, total, _):
                self._progress(done, total)
            case Plan():
                self._close()
                self._say(plan_text(event, _width()))
            case Step():
                self._step(event)
            case Ended():
                self._close()
                self._end(event)
            case _:
                self._say(event_text(event))

    def _progress(self, done: int, total: int) -> None:
        # Short phases stay one line; a bar appears where there is something to wait for.
        if not self._has_bars or (self._bar is None and time.perf_counter() - self._since < 1.0):
            return
        if self._bar is None or self._bar.total != total:
            self._close()
            self._bar = tqdm(total=total, desc=f"  {self._phase}", bar_format=_BAR, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def _step(self, event: Step) -> None:
        text = step_text(event, self._mean.add(event.loss))
        if self._has_bars:
            if self._bar is None or self._bar.total != event.steps or self._bar.n > event.step:
                self._close()
                self._bar = tqdm(
                    total=event.steps,
                    initial=event.step - 1,
                    desc="  training",
                    bar_format=_STEPS_BAR,
                    dynamic_ncols=True,
                )
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(event.step - self._bar.n)
        elif event.step == event.steps or time.perf_counter() - self._said_step >= _LINE_EVERY_S:
            self._said_step = time.perf_counter()
            self._say(f"  step {event.step:,} of {event.steps:,}: {text}")

    def _end(self, event: Ended) -> None:
        # `Follower.end` says on stderr what failed, for errors before the first step too.
        if event.reason != "failed":
            self._say(event.text)
        pictures = [] if self._run is None else [self._run / name for name in (LOSS, SHEET)]
        if shown := [str(path) for path in pictures if path.is_file()]:
            self._say(f"To look at: {', '.join(shown)}")
        if event.resumable and event.reason != "finished" and self._resume:
            self._say(f"To go on with it:  {self._resume}")

    def _say(self, text: str) -> None:
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)
            sys.stdout.flush()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def resume_command(typed: list[str]) -> str:
    """What to type to go on with a run: the same again, with --resume."""
    name = __name__.partition(".")[0]
    how = getattr(sys.modules["__main__"], "__spec__", None)
    if how is not None and how.name.startswith(name):
        start = ["python", "-m", name]
    elif Path(sys.argv[0]).name == name.replace("_", "-"):
        start = [name.replace("_", "-")]
    else:
        start = ["python", sys.argv[0]]
    return shlex.join([*start, *(part for part in typed if part not in ("--resume", "--json")), "--resume"])


class Follower:
    """A listener that passes events on and knows from them how the run ended.

    status: what the command exits with; 0 for a run that finished, converged or was stopped, 1 for one that went wrong
    after its plan, 2 for one that could not begin.
    """

    def __init__(self, listen: Listener) -> None:
        self._listen = listen
        self._planned, self._ended = False, None

    def __call__(self, event: Event) -> None:
        self._planned |= isinstance(event, Plan)
        if isinstance(event, Ended):
            self._ended = event.reason
        self._listen(event)

    def end(self, error: SpectralError) -> None:
        """The run raised `error`: say so, to listeners too where no event has said it yet."""
        if self._ended is None:
            self(Ended("stopped" if isinstance(error, Cancelled) else "failed", 0, str(error)))
        if self._ended == "failed":
            print(f"error: {error}", file=sys.stderr)

    @property
    def status(self) -> int:
        if self._ended in (None, "finished", "converged", "stopped"):
            return 0
        return 1 if self._planned else 2


def event_text(event: Event) -> str:
    """A line for what happens now and then during a run."""
    match event:
        case Notice(text):
            return f"Note: {text}"
        case Resumed(step, path):
            return f"Going on after step {step:,}, from {path}"
        case Skipped(step, reason, streak):
            row = f"; {streak} in a row" if streak > 1 else ""
            return f"Warning: step {step:,} changed nothing: {reason}{row}."
        case Validated(step, loss, best):
            return f"Held-out loss {_when(step)}: {loss:.4f}{' (the best so far)' if best else ''}"
        case Sampled(step, paths, _):
            return f"Samples {_when(step)}: {_files_text(paths)}"
        case Checkpointed(step, path, best):
            return f"Checkpoint after step {step:,}{' (the best so far)' if best else ''}: {path}"
        case Saved(path, file_bytes):
            return f"Saved {path} ({size_text(file_bytes)})"
        case _:
            return f"{type(event).__name__}: {event}"


def _when(step: int) -> str:
    return f"after step {step:,}" if step else "before training"


def step_text(event: Step, mean: float) -> str:
    """Loss (smoothed), learning rate, speed and the time left."""
    text = f"loss {mean:.4f}  lr {event.lr:.1e}"
    if event.rate <= 0:
        return text
    speed = f"{event.rate:.2f} steps/s" if event.rate >= 1 else f"{1 / event.rate:.1f} s/step"
    return f"{text}  {speed}  {duration_text((event.steps - event.step) / event.rate)} left"


def plan_text(plan: Plan, width: int = 100) -> str:
    """What the run is going to do and to take, a short block."""
    lines = {
        "adapter": f"{plan.method}; {plan.parameters:,} trainable parameters, file about {size_text(plan.file_bytes)}",
        "layers": ", ".join(f"{count} in the {_PART_NAMES.get(part, part)}" for part, count in plan.layers.items()),
        "pictures": f"{plan.pictures}: {_buckets_text(plan.buckets)}",
        "steps": f"{plan.steps:,} of {plan.batch:g} {_plural('picture', plan.batch)}, {plan.epochs:.1f} epochs",
        **({"memory": _memory_text(plan)} if plan.memory_bytes else {}),
        "time": _time_text(plan),
    }
    wrap = textwrap.TextWrapper(width=max(60, width), subsequent_indent=" " * 12, break_on_hyphens=False)
    return "\n".join(["Plan", *(wrap.fill(f"  {name:8}  {text}") for name, text in lines.items())])


def _time_text(plan: Plan) -> str:
    if not plan.step_seconds:  # no step was rehearsed
        return f"told from the first steps on, on {plan.device}"
    return f"about {duration_text(plan.seconds)} ({plan.step_seconds:.2f} s per step) on {plan.device}"


def _memory_text(plan: Plan) -> str:
    """The estimate with its three largest parts, against what there is."""
    largest = sorted(plan.memory.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{name.replace('_', ' ')} {size_text(count)}" for name, count in largest if count)
    text = f"about {size_text(plan.memory_bytes)}" + (f" ({parts})" if parts else "")
    if plan.free_bytes is None:
        return text
    if plan.memory_bytes <= plan.free_bytes:
        return f"{text}; {size_text(plan.free_bytes)} free"
    return (
        f"{text}, MORE than the {size_text(plan.free_bytes)} that are free. gradient_checkpointing, a precision of "
        "bf16, a smaller resolution or batch_size take less"
    )


def _buckets_text(buckets: Mapping[str, int]) -> str:
    """The four commonest sizes."""
    common = sorted(buckets.items(), key=lambda item: -item[1])
    text = ", ".join(f"{count} of {size}" for size, count in common[:4])
    return f"{text} and {len(common) - 4} more sizes" if len(common) > 4 else text


def _files_text(paths: tuple[Path, ...]) -> str:
    if len(paths) <= 1:
        return str(paths[0]) if paths else "none"
    return f"{paths[0]} … {paths[-1].name}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _width() -> int:
    return min(110, shutil.get_terminal_size().columns)


class StopOnSignal:
    """Within it the first Ctrl-C or SIGTERM only asks to stop; a second Ctrl-C interrupts at once.

    Call it to learn whether a stop was asked for. Outside the main thread it changes nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, signal.Handlers] = {}

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        # Not through sys.stderr: the signal may have come in the middle of a write to it.
        os.write(2, b"\nStopping after this step; press Ctrl-C again to give up at once.\n")
