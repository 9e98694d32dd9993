"""The node that trains an adapter: queues a job, or waits for it and hands the adapter on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..spectral.errors import SettingError, SpectralError
from ..trainer.datasets import list_datasets
from ..trainer.engines import BUILT_IN, ENGINES
from ..trainer.form import form
from ..trainer.jobs.host import CPU, find_devices
from ..trainer.jobs.job import RESUMABLE, Entry, JobConflict
from ..trainer.places import Places
from ..trainer.request import Request, digest
from . import glance, report
from .inputs import ADVANCED
from .studio import host, studio
from .widgets import chosen, method_widget, widget

TINY = "tiny (bundled)"
NO_DATASET = "(no folder with pictures yet)"
_SEED = "training_seed"  # a widget named `seed` would be drawn anew after each run, and train each time
_PLAIN = ("steps", "trigger")
_ADVANCED = ("resolution", "targets", "lr", "sample_prompts")
_LOOK = 0.25  # seconds between looks at the job, and so the most that Cancel waits
_PLOT = (640, 360)  # pixels; a node is about half as wide, and the plot's words must be read there
_DRAW_SHARE = 0.1  # of the time may go into drawing the plot


class TrainingEnded(SpectralError):
    """The training that a node waited for ended without an adapter; the message is what it said."""


@dataclass(frozen=True)
class Asked:
    """The node's widgets."""

    checkpoint: str
    dataset: str
    preset: str
    method: Mapping[str, Any]
    steps: int
    name: str
    trigger: str
    wait: bool
    training_seed: int
    resolution: int
    targets: str
    lr: float
    sample_prompts: str
    device: str
    unload_models: bool
    engine: str = BUILT_IN

    def request(self) -> Request:
        """What to train. Raises SettingError."""
        if self.dataset == NO_DATASET:
            raise SettingError(
                "found no folder with pictures to train on. Put pictures into a folder below ComfyUI's input or "
                "datasets folder, or drop them into the Spectral Adapters panel; then press R and choose it."
            )
        rows = _by_name(form(studio().places))
        own = {name: value for name, value in self.method.items() if name != "method"}
        unknown = sorted(own.keys() - rows.keys())
        if unknown:
            raise SettingError(f"method: found the setting {unknown[0]!r}, which no method has")
        plain = {name: getattr(self, name) for name in (*_PLAIN, *_ADVANCED)}
        plain |= {"seed": self.training_seed, "method": self.method.get("method")}
        settings = {name: chosen(rows[name], value) for name, value in {**plain, **own}.items()}
        return Request.from_json(
            {
                "name": self.name,
                "base": "tiny" if self.checkpoint == TINY else self.checkpoint,
                "dataset": self.dataset,
                "preset": self.preset,
                "settings": {name: value for name, value in settings.items() if value is not None},
                "device": self.device,
                "options": {"wait_idle": False, "unload": self.unload_models},
                "engine": self.engine,
            }
        )


class SpectralAdapterTrainer(io.ComfyNode):
    """Trains a spectral adapter in a process of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        places = studio().places
        shown = form(places)
        rows = _by_name(shown)
        return io.Schema(
            node_id="SpectralAdapterTrainer",
            display_name="Spectral Adapter Trainer",
            category="training",
            description="Trains a spectral adapter on a folder of pictures, in a process of its own. Queues the "
            "training and is done at once, or waits for it and hands the adapter to the loader.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[TINY, *sorted(places.bases())],
                    tooltip="The model to train on: the one you will use the adapter with, or the one it descends "
                    "from. The bundled tiny model is for trying things out; ComfyUI cannot generate with it.",
                ),
                io.Combo.Input(
                    "dataset",
                    options=_datasets(places),
                    tooltip="A folder of pictures below ComfyUI's input or datasets folder, captions beside them as "
                    ".txt files. The Spectral Adapters panel makes new ones from pictures you drop on it.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[each["name"] for each in shown["presets"]],
                    tooltip="Values to start from. " + " ".join(f"{p['name']}: {p['help']}" for p in shown["presets"]),
                ),
                method_widget(rows),
                widget(rows["steps"]),
                io.String.Input(
                    "name",
                    default="my_adapter",
                    tooltip="Name of the adapter file in output/spectral_adapters. A taken name gets a number.",
                ),
                widget(rows["trigger"]),
                io.Boolean.Input(
                    "wait",
                    default=False,
                    tooltip="Off: queue the training and go on; watch it in the Spectral Adapters panel. On: show it "
                    "here, and go on with the finished adapter. Cancel then stops and saves it, and running this "
                    "workflow again goes on from there.",
                ),
                widget(rows["seed"], id=_SEED, advanced=True),
                *(widget(rows[name], advanced=True, multiline=name == "sample_prompts") for name in _ADVANCED),
                io.Combo.Input(
                    "device",
                    options=["auto", *(device.id for device in find_devices())],
                    tooltip="Where to train. auto takes the first one that is free.",
                    extra_dict=ADVANCED,
                ),
                io.Boolean.Input(
                    "unload_models",
                    default=True,
                    tooltip="Unload ComfyUI's models before a training on the GPU begins. They are loaded again when "
                    "a workflow needs them.",
                    extra_dict=ADVANCED,
                ),
                io.Combo.Input(
                    "engine",
                    options=list(ENGINES),
                    optional=True,  # workflows from before there was a choice have none
                    tooltip="What trains: the trainer of this pack, or kohya's sd-scripts where it is set up on this "
                    "machine. Both make the same kind of file.",
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                io.Combo.Output(
                    display_name="adapter",
                    tooltip="The adapter's name, for the loader. Without wait it is the name that it will have.",
                ),
                io.String.Output(display_name="job", tooltip="The training's id, for Spectral Adapter Job."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> tuple[str | float, ...]:
        """The finished adapter of this very training; without one, something new each time."""
        new = (float("nan"),)  # equals nothing, itself in another call neither
        if None in (*widgets.values(), *(widgets.get("method") or {}).values()):
            return new  # linked: what comes is not known here
        try:
            entry = studio().store.find(digest(Asked(**widgets).request(), studio().places))
        except SettingError:
            return new  # said when the node runs
        if entry is None or entry.state.adapter is None:
            return new
        return entry.id, Path(entry.state.adapter).stat().st_mtime

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        asked = Asked(**widgets)
        entry = begin(asked.request())
        if asked.wait:
            if asked.unload_models and entry.state.adapter is None and _may_use_gpu(asked.device):
                comfy.model_management.unload_all_models()
                comfy.model_management.soft_empty_cache()
            entry = wait_for(entry.id)
        adapter = entry.state.adapter or entry.job.spec["out"]
        return io.NodeOutput(Path(adapter).name, entry.id, ui=report.show(glance.line(studio().summary(entry))))


def _datasets(places: Places) -> list[str]:
    """What can be chosen to train on; in place of it what is wrong, since a node without choices says nothing."""
    try:
        found = [each["id"] for each in list_datasets(places) if each["pictures"]]
    except SettingError as error:
        return [f"({error})"]
    return found or [NO_DATASET]


def _by_name(shown: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {row["name"]: row for row in shown["settings"]}


def _may_use_gpu(device: str) -> bool:
    return device != CPU.id and find_devices() != (CPU,)


def begin(request: Request) -> Entry:
    """The job of this training: the one that is there already, gone on with where it had stopped, or a new one."""
    made = studio()
    earlier = made.store.find(digest(request, made.places))
    while earlier is not None and earlier.state.status == "stopping":
        _pause()
        earlier = made.store.entry(earlier.id)
    if earlier is not None and earlier.state.status in RESUMABLE and earlier.state.resumable:
        made.resume(earlier.id)
        return made.store.entry(earlier.id)
    return made.create(request, reuse=True)[0]


def wait_for(id: str) -> Entry:
    """Wait until a job has its adapter, showing it on the running node. Cancel stops and saves it.

    Raises TrainingEnded where it ends without one, and ComfyUI's interrupt.
    """
    done = False
    with host().waiting():
        try:
            entry = _watch(id)
            done = True
        finally:
            # An interrupt, as a rule: what was learnt is kept, and running the workflow again goes on with it.
            if not done and studio().store.entry(id).state.status in ("queued", "running"):
                with contextlib.suppress(JobConflict):  # it has ended in this moment
                    studio().stop(id)
    if entry.state.status != "finished":
        again = " Run this workflow again to go on." if entry.state.resumable else ""
        raise TrainingEnded(f"{entry.job.name} ({id}) is {entry.state.status}. {entry.state.text}{again}")
    return entry


def _watch(id: str) -> Entry:
    made, bar = studio(), ProgressBar(1)
    shown, next_plot, text = -1, 0.0, ""
    while True:
        entry = made.store.entry(id)
        if entry.state.status not in ("queued", "running", "stopping"):
            return entry
        summary = made.summary(entry)
        if (now := glance.line(summary)) != text:
            text = now
            report.show(text)
        if summary["step"] != shown and time.monotonic() >= next_plot and summary["loss"] is not None:
            began = time.monotonic()
            picture = glance.loss_picture(made.course(id), entry.job.name, _PLOT)
            bar.update_absolute(summary["step"], summary["steps"], ("JPEG", picture, _PLOT[0]))
            shown = summary["step"]
            next_plot = time.monotonic() + (time.monotonic() - began) / _DRAW_SHARE
        _pause()


def _pause() -> None:
    """A moment, or ComfyUI's interrupt where the user has pressed Cancel."""
    time.sleep(_LOOK)
    comfy.model_management.throw_exception_if_processing_interrupted()
