"""The node that shows a training: how it stands, its loss, its latest samples."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io
from PIL import Image

from ..spectral.errors import SettingError
from ..trainer.jobs.course import EVENTS
from ..trainer.jobs.job import STATE, Entry
from . import glance, report
from .pictures import images
from .studio import studio

_BLANK = (64, 64)


class SpectralAdapterJob(io.ComfyNode):
    """Reads a training's folder; changes nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralAdapterJob",
            display_name="Spectral Adapter Job",
            category="training",
            description="Shows a training: how it stands, its loss curve and its latest samples.",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "job",
                    default="",
                    tooltip="A training's id, as the trainer gives it and the panel shows it. Empty: the newest one.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="status", tooltip="How it stands, in a sentence."),
                io.Int.Output(display_name="step", tooltip="The last step that was done."),
                io.Combo.Output(
                    display_name="adapter", tooltip="The adapter's name, for the loader; there once it is finished."
                ),
                io.Image.Output(display_name="loss", tooltip="The loss plot up to now."),
                io.Image.Output(
                    display_name="samples",
                    tooltip="The pictures sampled last, one per prompt. A small blank one while there is none.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, job: str | None) -> tuple[object, ...]:
        """Changes when the training has written something."""
        if job is None:
            return (float("nan"),)  # linked: equals nothing, so that it is read again
        entry = _training(job)
        files = (entry.folder / STATE, entry.run / EVENTS)
        return entry.id, *(file.stat().st_mtime_ns if file.exists() else 0 for file in files)

    @classmethod
    def execute(cls, job: str) -> io.NodeOutput:
        made, entry = studio(), _training(job)
        course, summary = made.course(entry.id), made.summary(entry)
        text = glance.line(summary)
        samples = glance.latest_samples(entry, course) or [Image.new("RGB", _BLANK, glance.PAPER)]
        return io.NodeOutput(
            text,
            summary["step"],
            Path(entry.state.adapter or entry.job.spec["out"]).name,
            images([glance.loss_picture(course, entry.job.name)]),
            images(samples),
            ui=report.show(text),
        )


def _training(job: str) -> Entry:
    """The training of that id, or the newest. Raises SettingError."""
    store, id = studio().store, job.strip()
    if not id:
        trainings = (entry for entry in store.entries() if entry.job.kind == "train")
        newest = next(trainings, None)
        if newest is None:
            raise SettingError("found no training yet; start one with Spectral Adapter Trainer or in the panel.")
        return newest
    entry = store.entry(id)
    if entry.job.kind != "train":
        raise SettingError(f"{id} makes a {entry.job.kind} of a training; expected the id of the training itself.")
    return entry
