"""A training by sd-scripts, from our settings to our adapter file: same run folder, events and outcome as our own loop.

The pictures are laid out and the settings written here; sd-scripts trains in a process of its own (`door`), whose
events are told on; what it leaves is made the run's result here.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from ...spectral.errors import Cancelled, SettingError, SpectralError
from .. import files
from .. import resume as resuming
from ..ending import Outcome, draw_all, nothing_learnt, put_in_place, sentence
from ..events import Ended, Event, Listener, Notice, Phase, Plan, Reason, Resumed, Saved, silent
from ..journal import Journal
from ..run_folder import RunFolder, ask
from ..spec import TrainSpec
from . import launch, translate
from .checkout import Checkout, check_python
from .data import lay_out
from .prepare import FOLDER, Prepared, plan, prepare, work_of, write, written
from .progress import Reader, lines
from .translate import OUT
from .wire import JOB, STATE, TALLY, Job, Tally

LOG = "output.log"
_SMALLER = "Try gradient_checkpointing = true, a smaller batch_size or a lower resolution."
_LOOK = 0.3  # seconds between two looks at whether to stop


def run(
    spec: TrainSpec,
    checkout: Checkout,
    listen: Listener = silent,
    *,
    stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
    allow: Collection[str] = (),
) -> Outcome:
    """Train an adapter with sd-scripts and write it to `spec.out`; as `trainer.loop.train`, with the same arguments.

    Raises SettingError for settings that sd-scripts cannot honour (`translate.refusals`), SpectralError for what cannot
    be used or went wrong; the event stream then ends with the reason.
    """
    spec.check()
    translate.check(spec)
    check_python(checkout)
    with Journal(spec, listen, stop, resume=resume, main=True) as journal:
        prepared = prepare(spec, journal.tell, journal.stop)
        journal.tell(Phase("laying out the pictures"))
        lay_out(prepared.layout, journal.tell, journal.stop)
        begun = _latest(journal) if resume else None
        tally = Tally()
        if begun is not None:
            spec, tally = _decided(spec, begun, prepared, journal, allow)
        state = None if begun is None else begun / STATE
        session = _Session(spec, checkout, journal, prepared, tally, stop)
        return session.outcome(state)


@dataclass(frozen=True)
class DryRun:
    """What would be started, and the files that it would read."""

    command: list[str]
    files: dict[Path, str]


def dry_run(spec: TrainSpec, checkout: Checkout, tell: Listener = silent) -> DryRun:
    """Check everything that can be checked without starting sd-scripts; nothing is written. Raises SpectralError."""
    spec.check()
    translate.check(spec)
    RunFolder.check(spec.run_folder.absolute(), resume=False)
    check_python(checkout)
    prepared = prepare(spec, tell, lambda: False, dry=True)
    work = work_of(spec, spec.run_folder.absolute() / FOLDER, prepared, None)
    for remark in translate.remarks(spec):
        tell(Notice(remark))
    return DryRun(launch.command(checkout, work.folder / JOB), written(spec, work, prepared))


def _latest(journal: Journal) -> Path | None:
    """The newest checkpoint that sd-scripts can go on from. Raises SettingError for one of our own trainer."""
    path, skipped = journal.checkpoints.latest()
    for folder, reason in skipped:
        journal.tell(Notice(f"{folder.name} was skipped: {reason}."))
    if path is None:
        journal.tell(Resumed(0, journal.path))
        journal.tell(Notice(f"{journal.path} holds no complete checkpoint, so the run begins again."))
        return None
    if not (path / TALLY).is_file():
        raise SettingError(
            f"{path}: found a checkpoint of this package's own trainer, expected one that sd-scripts made. Go on with "
            "it by the command train, or train anew with another run folder."
        )
    return path


def _decided(
    spec: TrainSpec, begun: Path, prepared: Prepared, journal: Journal, allow: Collection[str]
) -> tuple[TrainSpec, Tally]:
    """The settings to go on with and where the run stood; every difference is refused or said."""
    stood = json.loads((begun / TALLY).read_text(encoding="utf-8"))
    tally = Tally(**stood["tally"])
    spec, notices = resuming.decide(stood["spec"], spec, stood["facts"], _facts(spec, prepared), allow)
    resuming.refuse_finished(tally.step, spec)
    for notice in notices:
        journal.tell(Notice(notice))
    journal.resumed(tally.step, spec, notices)
    journal.step = tally.step
    journal.tell(Resumed(tally.step, begun))
    return spec, tally


def _facts(spec: TrainSpec, prepared: Prepared) -> dict[str, Any]:
    return resuming.facts(prepared.content, 1, spec.device or "")


class _Session:
    """One start of sd-scripts for a run."""

    def __init__(
        self,
        spec: TrainSpec,
        checkout: Checkout,
        journal: Journal,
        prepared: Prepared,
        tally: Tally,
        stop: Callable[[], bool],
    ):
        self.spec, self.checkout, self.journal, self.prepared = spec, checkout, journal, prepared
        self.tally, self._stop, self._asked = tally, stop, False
        self.parameters = 0
        self.folder = journal.path / FOLDER

    def outcome(self, state: Path | None) -> Outcome:
        """Train what is left, and end the run. Raises SpectralError."""
        started = time.perf_counter()
        reason, text = "finished", ""
        if self.tally.step < self.spec.steps:
            for remark in translate.remarks(self.spec):
                self.journal.tell(Notice(remark))
            reason, text = self._train(self._write(state))
        return self._end(reason, text, time.perf_counter() - started)

    def _write(self, state: Path | None) -> Path:
        """What sd-scripts and our part of its process read; the job's file."""
        spec, prepared = self.spec, self.prepared
        work = work_of(spec, self.folder, prepared, state)
        path = self.folder / JOB
        shutil.rmtree(work.out, ignore_errors=True)
        try:
            write(spec, work, prepared)
            _job(spec, self.checkout, work, prepared, self.tally, self.journal.path).write(path)
        except OSError as error:
            raise files.refusal("writing its settings", self.folder, error, "Choose another folder with run") from error
        return path

    def _train(self, job: Path) -> tuple[Reason, str]:
        """Run sd-scripts to its end: why it ended, with the sentence of an error."""
        reader = Reader(self._tell, self._log)
        process = launch.start(self.checkout, job, self.spec.device)
        try:
            for line in self._output(process, reader):
                reader.line(line)
            status = process.wait()
        finally:
            launch.end(process)
        if reader.over is None:
            raise self._failure(f"ended with status {status}: {reader.why()}")
        self.tally = reader.over.tally
        if reader.over.reason == "failed":
            raise self._failure(f"failed: {reader.over.text or reader.why()}")
        return reader.over.reason, reader.over.text

    def _log(self, line: str) -> None:
        # A full disk must not end a training whose checkpoints may still find room.
        with contextlib.suppress(OSError), open(self.folder / LOG, "a", encoding="utf-8") as log:
            log.write(f"{line}\n")

    def _failure(self, what: str) -> SpectralError:
        return SpectralError(f"sd-scripts {what.rstrip('.')}. All that it said is in {self.folder / LOG}.")

    def _output(self, process: subprocess.Popen[bytes], reader: Reader) -> Iterator[str]:
        """The process's lines; between them, whether to stop."""
        queue: SimpleQueue[str | None] = SimpleQueue()
        Thread(target=_pump, args=(process, queue), daemon=True).start()
        looked = 0.0
        while True:
            try:
                line = queue.get(timeout=_LOOK)
            except Empty:
                line = ""
            if line is None:
                return
            if line:
                yield line
            if time.monotonic() - looked >= _LOOK:
                looked = time.monotonic()
                self._look(reader.begun)

    def _look(self, begun: bool) -> None:
        """Pass a wish to stop on. Before the first step sd-scripts listens to nobody, and has nothing to save."""
        # Once the steps have begun, our part of its process looks at the run's requests itself.
        asked = self._stop() if begun else self.journal.stop()
        if not (asked or self._asked):
            return
        if not begun:
            raise Cancelled("stopped before the training began; nothing was saved")
        if not self._asked:
            ask(self.journal.path, "stop")
        self._asked = True

    def _tell(self, event: Event) -> None:
        if isinstance(event, Plan):
            self.parameters = event.parameters
        self.journal.step = getattr(event, "step", self.journal.step)
        self.journal.tell(event)

    def _end(self, reason: Reason, text: str, seconds: float) -> Outcome:
        journal, step = self.journal, self.tally.step
        saved = journal.checkpoints.latest()[0]
        if saved is None and reason in ("finished", "converged", "diverged"):
            raise nothing_learnt()
        journal.tell(Phase("saving"))
        path = put_in_place(self.spec, journal, self.tally, reason, saved)
        if path is not None:
            journal.tell(Saved(path, path.stat().st_size))
        draw_all(journal)
        shutil.rmtree(self.folder / OUT, ignore_errors=True)
        memory = f"sd-scripts ran out of memory ({text}). {_SMALLER}"
        said = sentence(self.spec.steps, self.tally, reason, path, seconds, saved is not None, memory)
        journal.tell(Ended(reason, step, said, saved is not None))
        size = path.stat().st_size if path is not None else 0
        return Outcome(reason, path, step, self.tally.losses, seconds, self.parameters, size)


def _job(spec: TrainSpec, checkout: Checkout, work: translate.Work, prepared: Prepared, tally: Tally, run: Path) -> Job:
    validates = bool(prepared.layout.count("validation"))
    return Job(
        checkout=str(checkout.folder),
        trainer=checkout.trainer(prepared.kind.family),
        skips=work.skips(spec),
        config=str(work.config),
        run=str(run),
        out=str(work.out),
        steps=spec.steps,
        checkpoint_every=spec.checkpoint_every,
        keep=spec.keep,
        sample_every=spec.sample_every,
        prompts=list(spec.sample_prompts),
        validate_every=spec.validate_every if validates else 0,
        patience=spec.patience,
        tally=vars(tally),
        spec=resuming.absolute(spec).as_json(),
        facts=_facts(spec, prepared),
        plan=plan(spec, prepared),
    )


def _pump(process: subprocess.Popen[bytes], queue: SimpleQueue[str | None]) -> None:
    """Read the process's output until its end, so that it never waits for us."""
    stream = process.stdout
    try:
        for line in lines(iter(lambda: stream.read(1 << 16), b"")):
            queue.put(line)
    finally:
        queue.put(None)
