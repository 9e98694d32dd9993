"""What runs in sd-scripts' own Python: its trainer as it is, followed from one forward to the next.

Its class is derived from, as its own trainers for other models do, and one method is listened to: `process_batch`,
which makes the loss of a micro-batch. Whatever is to happen after a step (a checkpoint, samples, a validation) is asked
for through its own options, which it reads anew at every step. Random generators are seeded at each step and at each
pass over the pictures, so that a resumed run draws what an uninterrupted one would have drawn. Nothing of sd-scripts is
changed or replaced.
"""

from __future__ import annotations

import argparse
import inspect
import math
import random
import sys
import time
import traceback
from collections import Counter, deque
from importlib import import_module
from pathlib import Path
from typing import Any

from ...spectral.errors import Cancelled, SpectralError
from .. import kohya_say, seeds
from ..checkpoint import Checkpoints
from ..events import Checkpointed, Phase, Reason, Sampled, Step, Validated
from ..run_folder import Requests
from . import harvest
from .wire import Job, Over, Tally, plan_of, say

STREAK = 3  # steps in a row without a finite loss that end a run
_PARTS = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The job's file."""
    command.add_argument("job", type=Path, help="what `kohya` has prepared")


def run(arguments: argparse.Namespace) -> int:
    """Train, and say how it ended; 0 whatever that is."""
    job = Job.read(arguments.job)
    watch = Watch(job)
    try:
        _train(job, watch)
        reason, text = watch.ended(), ""
    except _Over as over:
        reason, text = over.reason, ""
    except SpectralError as error:
        reason, text = "stopped" if isinstance(error, Cancelled) else "failed", str(error)
    except ImportError as error:
        traceback.print_exc()
        # Not left to the command line, which would advise what our own Python needs.
        reason, text = "failed", f"{sys.executable} cannot import what sd-scripts needs: {error}"
    except (RuntimeError, MemoryError) as error:
        from ..ending import is_out_of_memory

        traceback.print_exc()
        reason = "out_of_memory" if is_out_of_memory(error) else "failed"
        text = f"{type(error).__name__}: {error}"
    say(Over(reason, watch.tally, text))
    return 0


def _train(job: Job, watch: Watch) -> None:
    """As the last lines of sd-scripts' own train_network.py."""
    kohya_say.heard_by(say)
    sys.path.insert(0, job.checkout)
    sys.argv = [str(Path(job.checkout) / f"{job.trainer[0]}.py"), "--config_file", job.config]
    module = import_module(job.trainer[0])
    options = import_module("library.train_util")
    parser = module.setup_parser()
    args = parser.parse_args()
    options.verify_command_line_training_args(args)
    args = options.read_config_from_file(args, parser)
    _followed(getattr(module, job.trainer[1]), watch)().train(args)


def _followed(trainer: type, watch: Watch) -> type:
    """The trainer's class, telling `watch` of every forward."""
    signature = inspect.signature(trainer.process_batch)

    class Followed(trainer):
        def get_tokenize_strategy(self, args: Any) -> Any:
            try:
                return super().get_tokenize_strategy(args)
            except (OSError, TypeError) as error:  # TypeError: the library is offline and has no file of it
                raise SpectralError(
                    "found no CLIP tokenizer, and none could be fetched. Name a folder with vocab.json and "
                    "merges.txt as tokenizer, or let it go to the network once (without HF_HUB_OFFLINE)"
                ) from error

        def post_process_network(self, args: Any, accelerator: Any, network: Any, *models: Any) -> None:
            super().post_process_network(args, accelerator, network, *models)
            watch.follow_passes(network)

        def process_batch(self, *given: Any, **named: Any) -> Any:
            known = signature.bind(self, *given, **named)
            known.apply_defaults()
            options, accelerator = known.arguments["args"], known.arguments["accelerator"]
            learns = known.arguments.get("is_train", True)
            watch.before(accelerator, known.arguments["network"], learns)
            loss = super().process_batch(*given, **named)
            watch.after(options, accelerator, float(loss.detach()), learns)
            return loss

    return Followed


class _Over(Exception):
    """Ends sd-scripts' loop from inside."""

    def __init__(self, reason: Reason):
        super().__init__(reason)
        self.reason = reason


class Watch:
    """The course of a training, put together from its forwards. `tally` is where it stands."""

    def __init__(self, job: Job):
        self.job, self.tally = job, Tally(**job.tally)
        self._run, self._out = Path(job.run), Path(job.out)
        self._requests = Requests(self._run / "requests")
        self._checkpoints = Checkpoints(self._run / "checkpoints", job.keep)
        self._planned = self._stopping = False
        self._losses: list[float] = []  # of the micro-batches of the step under way
        self._held_out: list[float] = []
        self._pending: dict[str, Any] | None = None  # a step whose forwards are done, with what it asked for
        self._validated_at: int | None = None
        self._goes_on = job.skips  # inside the pass over the pictures in which it was stopped
        self._streak = 0
        self._started, self._seconds = 0.0, deque(maxlen=20)

    # --- around a forward

    def follow_passes(self, network: Any) -> None:
        """Seed the order of the pictures at the beginning of each pass over them, which the network is told of."""
        begin = network.on_epoch_start

        def on_epoch_start(*models: Any) -> Any:
            if not self._goes_on:
                self.tally.pass_began = self.tally.step + (self._pending is not None)
            self._goes_on = False
            self._seed(seeds.ORDER, self.tally.pass_began)
            return begin(*models)

        network.on_epoch_start = on_epoch_start

    def before(self, accelerator: Any, network: Any, learns: bool) -> None:
        """Before a forward: what came before it is complete."""
        self._finish_step()
        if not learns:
            return
        self._finish_validation()
        self._end_if_due()
        if not self._planned:
            self._plan(accelerator, network)
        if not self._losses:
            self._seed(seeds.STEP, self.tally.step)
            self._started = time.perf_counter()

    def after(self, options: argparse.Namespace, accelerator: Any, loss: float, learns: bool) -> None:
        """After a forward; the last of a step says what is to happen when the step is done."""
        if not learns:
            self._held_out.append(loss)
            return
        self._losses.append(loss)
        if accelerator.sync_gradients:
            self._pending = self._ask(options, _rate(accelerator))

    def ended(self) -> Reason:
        """sd-scripts has come to its own end: why."""
        self._finish_step()
        self._finish_validation()
        try:
            self._end_if_due()
        except _Over as over:
            return over.reason
        return "finished" if self.tally.step >= self.job.steps else "failed"

    # --- what belongs to a step

    def _ask(self, options: argparse.Namespace, rate: float) -> dict[str, Any]:
        """Ask sd-scripts for what is due after this step: its options count steps, and 1 divides every number."""
        job, step = self.job, self.tally.step + 1
        loss, self._losses = sum(self._losses) / len(self._losses), []
        self._streak = 0 if math.isfinite(loss) else self._streak + 1
        last = step == job.steps
        self._stopping = self._requests.stop()
        sample, save = self._requests.sample(), self._requests.save()
        samples = bool(job.prompts) and (sample or last or step % job.sample_every == 0)
        validates = bool(job.validate_every) and (last or step % job.validate_every == 0)
        regular = bool(job.checkpoint_every) and step % job.checkpoint_every == 0
        saves = (save or self._stopping or last or validates or regular) and self._streak == 0
        options.save_state = True
        options.save_every_n_steps = 1 if saves else None
        options.sample_every_n_steps = 1 if samples else None
        options.validate_every_n_steps = 1 if validates else None
        return {"loss": loss, "rate": rate, "saves": saves, "samples": samples, "validates": validates}

    def _finish_step(self) -> None:
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        if not (done["saves"] or done["samples"]):  # those are not the step's own time
            self._seconds.append(time.perf_counter() - self._started)
        self.tally.step += 1
        self.tally.losses.append(done["loss"])
        step = self.tally.step
        speed = len(self._seconds) / max(sum(self._seconds), 1e-9) if self._seconds else 0.0
        say(Step(step, self.job.steps, done["loss"], done["rate"], speed, _memory()))
        if self._streak >= STREAK:
            raise _Over("diverged")
        if done["samples"]:
            self._take_samples()
        if done["saves"]:
            path = harvest.checkpoint(self._checkpoints, self._out, self.tally, self.job)
            say(Checkpointed(step, path, best=False))
        self._validated_at = step if done["validates"] else None
        if done["samples"] and step < self.job.steps:
            say(Phase("training"))

    def _finish_validation(self) -> None:
        if self._validated_at is None or not self._held_out:
            return
        loss, tally = sum(self._held_out) / len(self._held_out), self.tally
        self._held_out, self._validated_at = [], None
        best = tally.best is None or loss < tally.best
        tally.waited = 0 if best else tally.waited + 1
        if best:
            tally.best, tally.best_step = loss, tally.step
            if self._streak == 0:
                self._checkpoints.mark_best(tally.step, loss)
        say(Validated(tally.step, loss, best))

    def _end_if_due(self) -> None:
        if self._stopping and self.tally.step < self.job.steps:
            raise _Over("stopped")
        if self.tally.step >= self.job.steps:
            raise _Over("finished")
        if self.job.patience and self.tally.waited >= self.job.patience:
            raise _Over("converged")

    def _seed(self, *place: int) -> None:
        """Make what sd-scripts draws a function of the run's seed and a place in the run."""
        number = seeds.stream(self.job.spec["seed"], *place)
        random.seed(number)
        for name, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
            if (module := sys.modules.get(name)) is not None:
                getattr(module, seed)(number % 2**32)

    # --- what is told

    def _plan(self, accelerator: Any, network: Any) -> None:
        """Say what is trained, and take the samples that were made before the first step."""
        self._planned = True
        named = dict(accelerator.unwrap_model(network).named_parameters())
        layers = Counter(_part(layer) for layer in {name.partition(".")[0] for name in named})
        say(
            plan_of(
                self.job.plan,
                layers=dict(layers),
                parameters=sum(each.numel() for each in named.values()),
                file_bytes=sum(each.numel() * each.element_size() for each in named.values()),
                device=str(accelerator.device),
            )
        )
        if self.tally.step == 0 and self.job.prompts:
            self._take_samples()
        say(Phase("training"))

    def _take_samples(self) -> None:
        paths = harvest.samples(self._out, self._run / "samples", self.tally.step, self.job.prompts)
        if paths:
            say(Sampled(self.tally.step, paths, tuple(self.job.prompts[: len(paths)])))


def _part(layer: str) -> str:
    return next((part for prefix, part in _PARTS.items() if layer.startswith(prefix)), "unet")


def _rate(accelerator: Any) -> float:
    """The first group's learning rate. accelerate keeps what it has prepared, and hands it out nowhere else."""
    return float(accelerator._optimizers[0].param_groups[0]["lr"])


def _memory() -> int | None:
    """The most bytes of tensors on the GPU so far; None without one."""
    torch = sys.modules.get("torch")  # where it is not even loaded, nothing is on a GPU
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else None
