"""What a run will take, told before its first step: parameters, file, memory and time, measured where they can be."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..spectral.errors import SpectralError
from ..spectral.layer import InjectedAdapter
from . import files
from .dataset import Batch, Dataset
from .ending import is_out_of_memory, out_of_memory_text, smaller
from .events import Notice, Phase, Plan
from .memory import Estimate, estimate
from .pictures import Size
from .setup import DTYPES
from .spec import TrainSpec
from .words import size_text

if TYPE_CHECKING:
    from .run import Run

_AGAIN = 5.0  # seconds: a first step that is quicker is repeated, for its warm-up would spoil the estimate


def make_plan(run: Run) -> Plan:
    """Rehearse a step and the saving, and say what the run needs. Raises SpectralError for what will not fit."""
    spec, setup, journal = run.spec, run.setup, run.journal
    journal.tell(Phase("estimating memory"))
    memory, room = expected(spec, setup.data, setup.adapters), available(run.accelerator.device)
    run.expected = memory.total
    if room is not None and memory.total > room:
        journal.tell(Notice(tight_text(run, memory.total, room)))
    journal.tell(Phase("rehearsing a step"))
    step_seconds = _rehearse_step(run)
    file_bytes = _rehearse_saving(run) if run.accelerator.is_main_process else 0
    forwards = spec.accumulation * run.accelerator.num_processes
    left = spec.steps - run.counts.step
    return Plan(
        method=f"{setup.adapter.method.name}, columns {setup.adapter.method.columns.text}",
        layers={part.field: len(adapter.layers) + len(adapter.gains) for part, adapter in setup.parts},
        parameters=setup.adapter.parameter_count,
        file_bytes=file_bytes,
        pictures=len(setup.data.pictures),
        buckets={f"{w}x{h}": count for (w, h), count in sorted(setup.data.sizes.items())},
        steps=spec.steps,
        epochs=spec.steps * forwards / setup.data.batches_per_epoch,
        batch=round(forwards * setup.data.sizes.total() / setup.data.batches_per_epoch, 1),
        memory=memory.parts,
        memory_bytes=memory.total,
        free_bytes=room,
        step_seconds=step_seconds,
        seconds=step_seconds * left,
        device=str(run.accelerator.device),
    )


def expected(
    spec: TrainSpec, data: Dataset, adapters: Sequence[InjectedAdapter], fake: FakeTensorMode | None = None
) -> Estimate:
    """What a run will hold at its peak, from its largest pictures. fake: see `memory.estimate`."""
    (width, height), count = heaviest(data.sizes, spec.batch_size)
    return estimate(
        data.base,
        adapters,
        batch_size=count,
        width=width,
        height=height,
        gradient_checkpointing=spec.gradient_checkpointing,
        autocast=None if spec.precision == "fp32" else DTYPES[spec.precision],
        ema=bool(spec.ema),
        trains_text=not data.keeps_text,
        makes_latents=not data.keeps_latents,
        sample_pictures=int(bool(spec.sample_prompts)),
        fake=fake,
    )


def available(device: torch.device) -> int | None:
    """Bytes that this process can have in all: what is free, and what it holds already. None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def tight_text(run: Run, need: int, room: int) -> str:
    return (
        f"The run will need about {size_text(need)}, and {run.accelerator.device} has {size_text(room)} for it. If it "
        f"does not fit, try {smaller(run)}."
    )


def _rehearse_step(run: Run) -> float:
    """Seconds of a step on the largest pictures; it changes nothing, and finds out what does not fit."""
    batch = largest_batch(run)
    try:
        seconds = run.rehearse(batch)
        return run.rehearse(batch) if seconds < _AGAIN else seconds
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SpectralError(out_of_memory_text(run)) from error


def heaviest(sizes: Mapping[Size, int], batch_size: int) -> tuple[Size, int]:
    """Size and number of the pictures in the micro-batch with most pixels; a batch has no more than there are.

    sizes: how many pictures there are of each.
    """
    batches = {size: min(batch_size, count) for size, count in sizes.items()}
    return max(batches.items(), key=lambda batch: (batch[0][0] * batch[0][1] * batch[1], batch))


@torch.no_grad()
def largest_batch(run: Run) -> Batch:
    """A micro-batch of grey pictures that needs as much as any of the run."""
    base, data = run.setup.base, run.setup.data
    (width, height), count = heaviest(data.sizes, run.spec.batch_size)
    channels = base.unet.config.in_channels
    device = base.unet.device
    latents = torch.zeros(count, channels, height // base.scale, width // base.scale, device=device)
    captions = [""] * count
    sizes = torch.tensor([[height, width, 0, 0, height, width]] * count, dtype=torch.float32, device=device)
    text = base.encode(captions) if data.keeps_text else None
    return Batch(latents, captions, text, sizes, None)


def _rehearse_saving(run: Run) -> int:
    """Write the adapter as it is where the result will go, and remove it: its size in bytes.

    A full disk or a forbidden folder is found before training instead of after it.
    """
    spec, journal = run.spec, run.journal
    trial = spec.out.with_name(f".{spec.out.stem[:60]}.{secrets.token_hex(4)}.safetensors")
    try:
        size = run.write(trial).stat().st_size
    finally:
        trial.unlink(missing_ok=True)
    files.require_space(spec.out.absolute().parent, size, "the adapter")
    state = 4 * _numbers(run)
    journal.checkpoints.need(state + size, spec.keep + 2)
    return size


def _numbers(run: Run) -> int:
    """Numbers in a checkpoint: parameters, their running mean, and two moments each."""
    return run.setup.adapter.parameter_count * (3 + bool(run.ema))
