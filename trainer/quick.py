"""What a training will take, from its settings and from headers: the numbers of its plan, without loading a weight.

Base and adapter are made of tensors without data, and a step runs on them (`memory.estimate`): parameters, layers and
memory are those of the plan, the file's size is right but for a few bytes of its header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from ..spectral.adapter import join
from ..spectral.file_size import file_size
from ..spectral.layer import InjectedAdapter, inject_shapes
from . import dataset
from .base import Base, Part
from .dataset import Dataset
from .decode import header_size
from .folder import Finding, Picture, scan
from .label import Label
from .layering import base_kind
from .memory import Estimate
from .models import load_base
from .pictures import Size
from .plan import expected, heaviest
from .setup import DTYPES, begin, beside
from .spec import TrainSpec
from .speed import Work

_BASES = 2  # kept; SDXL's modules take some ten megabytes without their weights
_ANSWERS = 64
# What neither memory nor arithmetic of a step depends on.
_ASIDE = (
    "images", "out", "run", "preset", "tokenizer", "steps", "lr", "text_lr", "norm_lr", "weight_decay", "optimizer",
    "optimizer_args", "schedule", "warmup", "cycles", "clip", "seed", "device", "checkpoint_every", "keep",
    "validation", "validation_images", "validate_every", "patience", "sample_negative", "sample_every", "sample_steps",
    "sample_guidance", "sample_seed", "tensorboard", "title", "description", "licence", "trigger", "caption_prefix",
    "keep_tags", "caption_dropout", "masks", "alpha_masks", "mask_floor", "cache_dir", "class_images", "class_count",
    "prior_weight", "min_snr_gamma", "noise_offset", "skip_bad", "resolution", "buckets", "flip", "batch_size",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """memory: as in the plan. work: of one step. key: the same for all runs whose steps are alike."""

    memory: Estimate
    work: Work
    key: str


@dataclass(frozen=True)
class Outlook:
    """What a plan says, but for its seconds. layers: by part of the model; sizes: pictures of each; kind: of base."""

    parameters: int
    layers: dict[str, int]
    file_bytes: int
    sizes: dict[Size, int]
    cost: Cost
    kind: str
    resolution: int


class Quick:
    """Answers for one process. Bases and answers are kept, so that a further question is quicker than the first."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._bases: dict[str, Base] = {}
        self._costs: dict[str, Cost] = {}
        self._sizes: dict[Path, tuple[int, Size | None]] = {}

    def outlook(self, spec: TrainSpec) -> Outlook:
        """Raises SpectralError for what a training would refuse before its first step, as far as headers tell."""
        spec.check()
        base = self._base(spec)
        folder = scan(spec.images, trigger=spec.trigger, exclude=beside(spec), examine=self._by_header)
        learnt, _ = dataset.split_validation(folder.pictures, spec.validation, spec.seed)
        data = dataset.training(learnt, spec, base)
        label = Label(spec, base, folder, spec.pixels(base.resolution, base.multiple))
        with self._adapted(spec, base) as parts:
            adapter = join(adapter for _, adapter in parts)
            return Outlook(
                parameters=adapter.parameter_count,
                layers={part.field: len(adapter.layers) + len(adapter.gains) for part, adapter in parts},
                file_bytes=file_size(adapter, spec.out, **label.arguments(adapter, 0)),
                sizes=dict(data.sizes),
                cost=self._cost(spec, parts, data),
                kind=base_kind(spec.base),
                resolution=label.resolution,
            )

    def cost(self, spec: TrainSpec, sizes: Mapping[Size, int]) -> Cost:
        """Of a run on so many pictures of each size, wherever its pictures and its adapter file are now."""
        base = self._base(spec)
        pictures = [Picture(Path(), "", count, size, "", "") for size, count in sizes.items()]
        with self._adapted(spec, base) as parts:
            return self._cost(spec, parts, dataset.training(pictures, spec, base))

    def _base(self, spec: TrainSpec) -> Base:
        """The base in the precision that it is trained in."""
        path = Path(spec.base).expanduser()
        changed = path.stat().st_mtime_ns if path.exists() else 0
        key = json.dumps([spec.base, changed, spec.tokenizer, spec.prediction, spec.precision])
        if key not in self._bases:
            made = load_base(
                spec.base, spec.tokenizer, prediction=spec.prediction, dtype=DTYPES[spec.precision], fake=self._fake
            )
            _keep(self._bases, key, made, _BASES)
        return self._bases[key]

    @contextmanager
    def _adapted(self, spec: TrainSpec, base: Base) -> Iterator[list[tuple[Part, InjectedAdapter]]]:
        """Within it the base's parts have the run's adapters on."""
        beginning = begin(spec, base)
        parts: list[tuple[Part, InjectedAdapter]] = []
        try:
            for part, targets in beginning.parts:
                with self._fake:
                    adapter = inject_shapes(
                        part.module,
                        beginning.method,
                        targets,
                        prefix=part.prefix,
                        start=beginning.start,
                        avoid=beginning.avoid,
                        rereads=spec.precision != "fp32",
                    )
                parts.append((part, adapter))
            yield parts
        finally:
            for _, adapter in parts:
                adapter.remove()

    def _cost(self, spec: TrainSpec, parts: Sequence[tuple[Part, InjectedAdapter]], data: Dataset) -> Cost:
        key = cost_key(spec, data.sizes)
        if key not in self._costs:
            memory = expected(spec, data, [adapter for _, adapter in parts], self._fake)
            _keep(self._costs, key, Cost(memory, _of_step(memory.work, spec), key), _ANSWERS)
        return self._costs[key]

    def _by_header(self, path: Path, _alpha: bool) -> tuple[Picture | None, list[Finding]]:
        """A picture for `scan` whose content is not looked at: its name stands for it."""
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return None, []
        kept = self._sizes.get(path)
        if kept is None or kept[0] != changed:
            kept = self._sizes[path] = (changed, header_size(path))
        name = hashlib.sha256(str(path).encode("utf-8", "backslashreplace")).hexdigest()
        return (None if kept[1] is None else Picture(path, "", 1, kept[1], name, name)), []


def cost_key(spec: TrainSpec, sizes: Mapping[Size, int]) -> str:
    """The same for all runs whose steps are alike. sizes: how many pictures of each there are."""
    facts = {name: value for name, value in spec.as_json().items() if name not in _ASIDE}
    facts |= {name: bool(facts[name]) for name in ("sample_prompts", "class_prompt", "dco_beta", "ema")}
    text = json.dumps([facts, heaviest(sizes, spec.batch_size)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _of_step(batch: Work, spec: TrainSpec) -> Work:
    """The work of an optimiser step, from that of one batch."""
    # DCO asks the base too, forward only: of frozen weights that is half of both ways.
    times = spec.accumulation * (1 + bool(spec.class_prompt)) + spec.accumulation * bool(spec.dco_beta) / 2
    return Work(round(batch.flops * times), round(batch.calls * times))


def _keep(kept: dict[str, Any], key: str, value: object, most: int) -> None:
    kept[key] = value
    while len(kept) > most:
        del kept[next(iter(kept))]
