"""A training run from its settings to the adapter file: open the journal, set up, plan, train, end.

The steps themselves are in `run`, which reads from top to bottom as the recipe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import torch
from accelerate import Accelerator

from ..spectral.cache import BasisCache
from ..spectral.errors import SettingError
from . import resume as resuming
from .base import Base
from .checkpoint import State
from .ending import Outcome, end, end_dry
from .events import Listener, Notice, silent
from .journal import Journal
from .plan import make_plan
from .run import Run
from .setup import Material, gather, set_up
from .spec import TrainSpec


def train(
    spec: TrainSpec,
    listen: Listener = silent,
    *,
    base: Base | None = None,
    cache: BasisCache | None = None,
    stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
    allow: Collection[str] = (),
    dry_run: bool = False,
) -> Outcome:
    """Train an adapter and write it to `spec.out`; checkpoints, events and samples go to `spec.run_folder`.

    `base` spares loading it again; it is given back with its own forwards, in `spec.precision`. `stop` is asked after
    every step, as are the run folder's requests. `resume` goes on from the newest complete checkpoint; `allow`
    names settings whose new value is then taken although it would be refused. `dry_run` ends after the plan: nothing is
    trained, and no file stays but kept decompositions and latents. A run that is stopped, converges, diverges or runs
    out of memory says so in its outcome; what cannot be used raises SpectralError, and the event stream ends with the
    reason.
    """
    spec.check()
    accelerator = make_accelerator(spec)
    main = accelerator.is_main_process
    with Journal(spec, listen if main else silent, stop, resume=resume, main=main, dry=dry_run) as journal:
        material = gather(spec, accelerator, journal.tell, base)
        state = journal.latest() if resume else None
        if state is not None:
            spec = _decided(spec, state, material, accelerator, journal, allow)
        setup = set_up(spec, material, accelerator, journal.tell, journal.stop, cache, dry=dry_run)
        try:
            run = Run(setup, resume_facts(spec, material, accelerator), accelerator, journal)
            if state is not None:
                run.go_on(state)
            journal.tell(make_plan(run))
            if dry_run:
                return end_dry(run)
            started = time.perf_counter()
            with torch.random.fork_rng():
                reason = run.train()
                return end(run, reason, time.perf_counter() - started)
        finally:
            setup.remove()


def make_accelerator(spec: TrainSpec) -> Accelerator:
    """accelerate's view of the processes and the device. Raises SettingError for fp16 without a GPU."""
    accelerator = Accelerator(cpu=spec.device == "cpu", mixed_precision="no")
    check_precision(spec, accelerator.device.type)
    return accelerator


def check_precision(spec: TrainSpec, device: str) -> None:
    """Raise SettingError for fp16 on a device of the type "cpu"."""
    if spec.precision == "fp16" and device == "cpu":
        raise SettingError("precision=fp16 needs a GPU, and this run is on the CPU; use bf16 or fp32")


def resume_facts(spec: TrainSpec, material: Material, accelerator: Accelerator) -> dict[str, object]:
    """What a checkpoint remembers of this run beside its settings."""
    return resuming.facts(material.content(spec), accelerator.num_processes, str(accelerator.device))


def _decided(
    spec: TrainSpec,
    state: State,
    material: Material,
    accelerator: Accelerator,
    journal: Journal,
    allow: Collection[str],
) -> TrainSpec:
    """The settings to go on with; every difference to the checkpoint's is refused or said."""
    spec, notices = resuming.decide(state.spec, spec, state.facts, resume_facts(spec, material, accelerator), allow)
    resuming.refuse_finished(state.step, spec)
    for notice in notices:
        journal.tell(Notice(notice))
    journal.resumed(state.step, spec, notices)
    return spec
