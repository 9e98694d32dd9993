"""From settings to everything a step needs: the base, the pictures, the held-out and class pictures, the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from ..spectral.adapter import Adapter, join
from ..spectral.beginning import check_covered
from ..spectral.cache import BasisCache
from ..spectral.errors import SettingError
from ..spectral.file import load
from ..spectral.layer import InjectedAdapter, Originals, inject, put_on_all
from ..spectral.methods import Method
from ..spectral.occupied import Occupied, occupied
from . import dataset, files
from .base import Base, Part
from .dataset import Dataset, sizes_for
from .events import Listener, Notice, Phase, Progress
from .folder import Folder, scan
from .label import Label
from .losses import Objective
from .models import load_base
from .prior import class_folder, make_class_pictures, missing_pictures
from .spec import TrainSpec
from .validation import Validation

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Material:
    """What a run is made of, before anything is decided about it."""

    base: Base
    folder: Folder
    held_out: Folder | None

    def content(self, spec: TrainSpec) -> dict[str, str]:
        """Hashes by setting: what a resumed run must find unchanged."""
        found = {"base": self.base.file_hash, "images": self.folder.hash}
        if self.held_out is not None:
            found["validation_images"] = self.held_out.hash
        if spec.start_from is not None and spec.start_from.is_file():
            found["start_from"] = files.digest(spec.start_from)
        if spec.column_plan is not None:
            found["column_plan"] = str(spec.chosen_columns)  # the rest of the plan is other trainings' business
        return found


@dataclass
class Setup:
    """What one run works with. The adapters stay on the base's parts until `remove`."""

    spec: TrainSpec
    base: Base
    data: Dataset
    held_out: Dataset | None
    classes: Dataset | None
    parts: list[tuple[Part, InjectedAdapter]]
    adapter: Adapter
    label: Label

    @property
    def adapters(self) -> list[InjectedAdapter]:
        return [adapter for _, adapter in self.parts]

    def objective(self) -> Objective:
        return Objective(self.spec, self.base, self.adapters)

    def validation(self) -> Validation | None:
        return None if self.held_out is None else Validation(self.held_out, self.base, self.spec)

    def remove(self) -> None:
        """Give the base its own forwards back."""
        for adapter in self.adapters:
            adapter.remove()
        self.base.unet.disable_gradient_checkpointing()


def gather(spec: TrainSpec, accelerator: Accelerator, tell: Listener, base: Base | None = None) -> Material:
    """Load the base and look at every picture. Raises SpectralError for what cannot be used."""
    tell(Phase("loading the base model"))
    # A half-precision run keeps the file's own numbers: the same bits for the decomposition, at half the memory.
    kept = torch.float32 if spec.precision == "fp32" else None
    base = base or load_base(spec.base, spec.tokenizer, prediction=spec.prediction, dtype=kept)
    base = base.to(accelerator.device)
    tell(Phase("checking the pictures"))
    sizes = sizes_for(spec, base)
    folder = scan(
        spec.images,
        trigger=spec.trigger,
        masks=spec.masks,
        alpha_masks=spec.alpha_masks,
        sizes=sizes,
        exclude=beside(spec),
        listen=tell,
    )
    held_out = scan(spec.validation_images, trigger=spec.trigger, sizes=sizes) if spec.validation_images else None
    for found in filter(None, (folder, held_out)):
        for notice in found.require(spec.skip_bad):
            tell(Notice(notice))
    return Material(base, folder, held_out)


def beside(spec: TrainSpec) -> list[Path]:
    """Folders that may lie among the pictures and hold something else."""
    return [spec.run_folder, *filter(None, (spec.class_images, spec.validation_images, spec.cache_dir))]


def set_up(
    spec: TrainSpec,
    material: Material,
    accelerator: Accelerator,
    tell: Listener,
    stop: Callable[[], bool],
    cache: BasisCache | None = None,
    *,
    dry: bool = False,
) -> Setup:
    """Encode the pictures and put the adapter on; on a SpectralError, or Cancelled by `stop`, the base is as it was."""
    base = material.base
    learnt, held = dataset.split_validation(material.folder.pictures, spec.validation, spec.seed)
    held = material.held_out.pictures if material.held_out else held
    data = dataset.training(learnt, spec, base)
    held_out = dataset.validation(held, spec, base) if held else None
    if dry and (missing := _missing_class_pictures(spec)):
        # In their place, pictures that cost a step as much.
        classes = dataset.prior(learnt, spec, base)
        tell(Notice(f"{missing} class pictures are made before the training; the plan does not count their time."))
    else:
        classes = _class_pictures(spec, base, accelerator, tell, stop)
    tell(Phase("encoding the pictures"))
    for pictures in filter(None, (data, held_out, classes)):
        pictures.prepare(tell, stop)
    tell(Phase("decomposing the base's weights"))
    # The first process fills the cache that the others then read.
    with accelerator.main_process_first():
        parts = put_on_all(_attach(spec, base, tell, stop, cache))
    if spec.precision != "fp32":
        base.cast(DTYPES[spec.precision])
    if spec.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    adapter = join(adapter for _, adapter in parts)
    label = Label(spec, base, material.folder, spec.pixels(base.resolution, base.multiple))
    return Setup(spec, base, data, held_out, classes, parts, adapter, label)


def _missing_class_pictures(spec: TrainSpec) -> int:
    return len(missing_pictures(class_folder(spec), spec)) if spec.class_prompt else 0


def _class_pictures(
    spec: TrainSpec, base: Base, accelerator: Accelerator, tell: Listener, stop: Callable[[], bool]
) -> Dataset | None:
    """The class pictures of prior preservation; what is missing of them is made by the first process."""
    if not spec.class_prompt:
        return None
    with accelerator.main_process_first():
        path = make_class_pictures(base, spec, tell, stop)
    found = scan(path, trigger=spec.class_prompt, sizes=sizes_for(spec, base), listen=tell)
    for notice in found.require(spec.skip_bad):
        tell(Notice(notice))
    return dataset.prior(found.pictures, spec, base)


@dataclass(frozen=True)
class Beginning:
    """What the adapters of a run are made of: the method, the parts with their layers, and other adapters."""

    method: Method
    parts: list[tuple[Part, str]]
    start: Adapter | None
    avoid: Occupied | None


def begin(spec: TrainSpec, base: Base) -> Beginning:
    """Raises SpectralError for parts, layers or adapter files that do not fit."""
    method, parts = spec.build_method(), chosen_parts(spec, base)
    start = None if spec.start_from is None else load(spec.start_from)
    avoid = occupied({path.name: load(path) for path in spec.avoid}) if spec.avoid else None
    if start is not None:
        check_covered(start, tuple(part.prefix for part, _ in parts))
    return Beginning(method, parts, start, avoid)


def _attach(
    spec: TrainSpec, base: Base, tell: Listener, stop: Callable[[], bool], cache: BasisCache | None
) -> Iterator[tuple[Part, InjectedAdapter]]:
    """Puts an adapter on every part that is trained, one after the other."""
    beginning, originals = begin(spec, base), _originals(spec)
    for part, targets in beginning.parts:
        _, adapter = inject(
            part.module,
            beginning.method,
            targets,
            prefix=part.prefix,
            start=beginning.start,
            avoid=beginning.avoid,
            originals=originals,
            cache=cache,
            progress=lambda *at: tell(Progress(*at)),
            cancelled=stop,
        )
        yield part, adapter


def _originals(spec: TrainSpec) -> Originals | None:
    """Where a run that casts the base finds the file's own weights again: mapped from the file, so not in memory."""
    if spec.precision == "fp32":
        return None
    return load_base(spec.base, weights_only=True, dtype=None).weights().__getitem__


def chosen_parts(spec: TrainSpec, base: Base) -> list[tuple[Part, str]]:
    """The parts of the base that are trained, with their layers. Raises SettingError for a part it has not."""
    wanted = {"unet": spec.targets, "text_encoder": spec.text_targets, "text_encoder_2": spec.text_targets_2}
    parts = {part.field: part for part in base.parts()}
    if spec.text_targets_2 != "none" and "text_encoder_2" not in parts:
        raise SettingError(
            f"text_targets_2={spec.text_targets_2!r}, but {base.name} has one text encoder; leave it out"
        )
    return [(parts[field], targets) for field, targets in wanted.items() if targets != "none" and field in parts]
