"""How a run ends: what counts as a fault, the files of the result, and a sentence for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..spectral.errors import SpectralError
from . import files
from .checkpoint import ADAPTER
from .events import Ended, Notice, Phase, Reason, Saved
from .overview import draw
from .words import size_text

if TYPE_CHECKING:
    from .journal import Journal
    from .run import Run
    from .spec import TrainSpec

_FULL = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Outcome:
    """How a run ended. path: the adapter file asked for, or where the run was cut short the one in its checkpoint.

    steps and losses (one for every step) are those of the whole run; seconds are this session's.
    """

    reason: Reason
    path: Path | None
    steps: int
    losses: list[float]
    seconds: float
    parameters: int
    file_bytes: int


class Standing(Protocol):
    """What a run has come to. best_step: with the lowest validation loss; waited: validations since then."""

    step: int
    best_step: int
    waited: int


def fault_of(loss: float, norm: float) -> str | None:
    """Why a step must not be taken, or None."""
    if not math.isfinite(loss):
        return "the loss is not a finite number"
    return None if math.isfinite(norm) else "the gradient is not finite"


def finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no entry is infinite or NaN, with one look at the device."""
    return bool(torch.stack(torch._foreach_norm([t.detach() for t in tensors])).isfinite().all())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(part in str(error) for part in _FULL)


def end(run: Run, reason: Reason, seconds: float) -> Outcome:
    """Save what there is, say how the run ended, and return it. Raises SpectralError where nothing is worth saving."""
    counts, journal = run.counts, run.journal
    if reason == "diverged" and counts.updates == 0:
        raise nothing_learnt()
    journal.tell(Phase("saving"))
    run.rescue()
    saved = run.checkpoint() if counts.step else None
    path = None
    if run.accelerator.is_main_process:
        path = put_in_place(run.spec, journal, counts, reason, saved, run.write)
        if path is not None:
            journal.tell(Saved(path, path.stat().st_size))
        draw_all(journal)
        resumable = journal.checkpoints.latest()[0] is not None
        memory = out_of_memory_text(run) if reason == "out_of_memory" else ""
        text = sentence(run.spec.steps, counts, reason, path, seconds, resumable, memory)
        journal.tell(Ended(reason, counts.step, text, resumable))
    size = path.stat().st_size if path is not None else 0
    return Outcome(reason, path, counts.step, counts.losses, seconds, run.setup.adapter.parameter_count, size)


def nothing_learnt() -> SpectralError:
    """For a run that diverged before it had changed anything."""
    return SpectralError(
        "the loss is not a finite number within the first steps, so there is nothing worth saving. Lower the learning "
        "rate (lr); if that does not help, the base model or a picture is damaged."
    )


def draw_all(journal: Journal) -> None:
    """The run's pictures; a run does not fail for want of them."""
    try:
        draw(journal.path)
    except SpectralError as error:
        journal.tell(Notice(str(error)))


def end_dry(run: Run) -> Outcome:
    """After the plan of a run that is not to be trained."""
    run.journal.tell(Ended("finished", run.counts.step, "A dry run: nothing was trained, and no file was written."))
    return Outcome("finished", None, run.counts.step, run.counts.losses, 0.0, run.setup.adapter.parameter_count, 0)


def put_in_place(
    spec: TrainSpec,
    journal: Journal,
    standing: Standing,
    reason: Reason,
    saved: Path | None,
    write: Callable[[Path], Path] | None = None,
) -> Path | None:
    """The adapter file of a run: put where it is wanted if the run came to its end, else the last checkpoint's.

    saved: the last checkpoint. write: writes the adapter as it stands to a new file; without it the checkpoint's is
    copied. Raises SpectralError where it cannot be written.
    """
    if reason not in ("finished", "converged"):
        return None if saved is None else saved / ADAPTER
    out = files.free_name(spec.out)
    if out != spec.out:
        journal.tell(Notice(f"{spec.out} has appeared meanwhile; the adapter is written to {out.name}."))
    best = journal.checkpoints.best() if spec.patience else None
    if write is not None and best in (None, saved):
        return write(out)
    source = (best or saved) / ADAPTER
    try:
        files.write_bytes(out, source.read_bytes())
    except OSError as error:
        raise files.refusal("writing the adapter", out, error, f"The adapter is in {source}; copy it") from error
    if best not in (None, saved):
        journal.tell(Notice(f"the adapter of step {standing.best_step} is kept: its validation loss is the lowest."))
    return out


def sentence(
    steps: int, standing: Standing, reason: Reason, path: Path | None, seconds: float, resumable: bool, memory: str
) -> str:
    """How a run ended and what can be done next. memory: what to say where it was full."""
    step = standing.step
    lost = "and no checkpoint could be saved" if step else "nothing was trained yet"
    where = f" The adapter of the last checkpoint is {path}." if path is not None else ""
    go_on = f"{'resumable' if resumable else lost}.{where}"
    match reason:
        case "finished":
            return f"Finished {step} steps in {seconds:.0f} s."
        case "converged":
            return (
                f"Stopped at step {step} of {steps}: the validation loss has not fallen for {standing.waited} "
                f"validations. Step {standing.best_step} was best."
            )
        case "stopped":
            return f"Stopped at step {step} of {steps}, {go_on}"
        case "out_of_memory":
            return f"{memory} Stopped at step {step} of {steps}, {go_on}"
        case _:
            return (
                f"The loss was not a finite number three times in a row, so training stopped at step {step}. A lower "
                f"learning rate (lr) may help. The last good parameters are kept, {go_on}"
            )


def out_of_memory_text(run: Run) -> str:
    """What was expected to fit, what was used, and which settings to change."""
    expected, peak = run.expected, run.peak.bytes()
    about = f" (about {size_text(expected)} were expected" if expected else ""
    used = f", {size_text(peak)} were in use at most)" if peak and about else ")" if about else ""
    return f"{run.accelerator.device} is out of memory{about}{used}. Try {smaller(run)}."


def smaller(run: Run) -> str:
    """The settings that make a run need less memory, the one that costs least first."""
    spec = run.spec
    half = f"batch_size = {max(1, spec.batch_size // 2)} with accumulation = {spec.accumulation * 2}"
    found = {
        "gradient_checkpointing = true": not spec.gradient_checkpointing,
        half: spec.batch_size > 1,
        "precision = bf16": spec.precision == "fp32" and run.accelerator.device.type != "cpu",
        "a lower resolution": True,
        "fewer layers (targets)": True,
    }
    return ", or ".join(text for text, helps in found.items() if helps)
