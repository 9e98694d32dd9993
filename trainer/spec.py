"""What to train: one flat dataclass, the same names in a spec file, on the command line and in Python.

Every field carries what people need to choose it (`label`, `help`), the part of the form it belongs to (`group`), the
methods that alone have it (`methods`) and who decides when a resumed run and its checkpoint disagree (`resume`); docs,
command line and pages are made from that.
"""

# ruff: noqa: RUF009 (every field is made by _of, a thin dataclasses.field)
from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..spectral.columns import Columns
from ..spectral.errors import SettingError
from .plan_file import read_plan

if TYPE_CHECKING:
    from ..spectral.methods import Method

Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]
Precision = Literal["fp32", "bf16", "fp16"]
Prediction = Literal["auto", "epsilon", "v_prediction"]
Crop = Literal["center", "random"]
CachePlace = Literal["memory", "disk", "none"]
Rotation = Literal["stiefel", "cayley", "exp"]
# Who decides when a resumed run and its checkpoint disagree on a field: the run is refused, the checkpoint's value
# is kept, or the new value is taken.
OnResume = Literal["refuse", "checkpoint", "spec"]


Group = Literal["base", "data", "adapter", "loss", "training", "run"]


def _of(
    group: Group,
    resume: OnResume,
    label: str,
    help: str,
    default: Any = MISSING,
    factory: Callable[[], Any] | Any = MISSING,
    methods: tuple[str, ...] = (),
) -> Any:
    """A field with what forms, docs and resumes need of it. methods: the only ones that have it; () for all."""
    facts = {"group": group, "resume": resume, "label": label, "help": help, "methods": methods}
    return field(default=default, default_factory=factory, metadata=facts)


@dataclass(frozen=True)
class TrainSpec:
    """A training run. See each field's help, or docs/training_settings.md, which is made from it."""

    base: str = _of(
        "base",
        "refuse",
        "Base model",
        'The model to train on: a single-file .safetensors of SD1.x, SD2.x or SDXL, a diffusers folder, or "tiny" '
        "(the bundled 64-pixel model). Take the checkpoint you will use the adapter with, or the one it descends from.",
    )
    images: Path = _of(
        "data",
        "refuse",
        "Pictures",
        "Folder of pictures, captions beside them as .txt or .caption files; a sub-folder 10_dog counts its "
        "pictures ten times. 3 to 20 sharp, varied pictures do for a subject; a style wants more.",
    )
    out: Path = _of(
        "run", "spec", "Adapter file", "Adapter file to write (.safetensors). An existing file is never overwritten."
    )
    preset: str = _of(
        "run",
        "spec",
        "Preset",
        "Values to start from, by method and base (docs/presets.md): subject, style, single, tiny-file, or none. "
        "What is set besides wins. In Python it is only a record of where values came from.",
        "none",
    )
    tokenizer: str | None = _of(
        "base",
        "spec",
        "Tokenizer folder",
        "Folder with CLIP's vocab.json and merges.txt; only needed where no ComfyUI and no Hugging Face cache has it.",
        None,
    )
    prediction: Prediction = _of(
        "base",
        "refuse",
        "Prediction",
        "What the UNet predicts. auto reads it from the model; set it where that is wrong.",
        "auto",
    )

    method: str = _of(
        "adapter",
        "refuse",
        "Method",
        "svdiff, additive, rotation or soda. additive learns most and is the safest start; svdiff and soda give files "
        "of some hundred kilobytes that need exactly their base; rotation is smaller still and gentler.",
        "additive",
    )
    rank: int | None = _of(
        "adapter",
        "refuse",
        "Rank",
        "How many singular directions per layer, from the largest. More learn more and make a larger file. Default: 8 "
        "for additive, rotation; all for svdiff, soda.",
        None,
    )
    columns: str | None = _of(
        "adapter",
        "refuse",
        "Columns",
        'Which directions, instead of rank: "top:8", "top:8@16" (8 from the 16th on), "bottom:8", "sample:8:SEED", '
        '"sample:8:SEED:POOL", "all". Concepts on different columns can be fused without mixing.',
        None,
    )
    column_plan: Path | None = _of(
        "adapter",
        "refuse",
        "Plan of columns",
        "A plan of several concepts (.json, made by the command plan or the panel), from which this training takes the "
        "columns of its concept, instead of rank, columns or avoid.",
        None,
    )
    concept: str = _of(
        "adapter",
        "refuse",
        "Concept in the plan",
        "With a plan of columns: the name that the plan gives this training's concept.",
        "",
    )
    avoid: tuple[Path, ...] = _of(
        "adapter",
        "refuse",
        "Adapters to avoid",
        "Adapter files whose columns stay free: every layer takes its first free block of the wanted width. For "
        "concepts that are to be fused.",
        (),
    )
    rotation: Rotation | None = _of(
        "adapter",
        "refuse",
        "Kind of rotation",
        "soda only: stiefel (default), cayley or exp; how its rotations are kept orthogonal.",
        None,
        methods=("soda",),
    )
    targets: str = _of(
        "adapter",
        "refuse",
        "UNet layers",
        "Layers of the UNet: attention, cross-attention, attention+ff, all (convolutions too), none, or a regular "
        "expression searched in module paths. More layers learn more, cost memory and time, and change more.",
        "attention",
    )
    text_targets: str = _of(
        "adapter",
        "refuse",
        "Text encoder layers",
        "Layers of the text encoder (SDXL: of the first), named as those of the UNet; none leaves it as it is. "
        "Training it ties the concept to its word more firmly and makes other prompts drift sooner.",
        "none",
    )
    text_targets_2: str = _of(
        "adapter",
        "refuse",
        "Text encoder 2 layers",
        "Layers of SDXL's second text encoder, named as those of the UNet.",
        "none",
    )
    norms: bool = _of(
        "adapter",
        "refuse",
        "Train norms too",
        "svdiff only: also shift the gains of normalisation layers, as in the paper: a little more is learnt for "
        "100,000 numbers more on SD1.",
        False,
        methods=("svdiff",),
    )
    start_from: Path | None = _of(
        "adapter",
        "refuse",
        "Start from an adapter",
        "An adapter of the same base, method and columns to go on from.",
        None,
    )

    resolution: int | None = _of(
        "data",
        "refuse",
        "Resolution",
        "Pixels of the training pictures' area, as the side of a square, a multiple of 64 (tiny base: 16). Default: "
        "the base's own. Lower saves memory with its square and loses detail.",
        None,
    )
    buckets: bool = _of(
        "data",
        "refuse",
        "Keep shapes",
        "Keep the pictures' shapes: each goes to the nearest of a set of sizes with about the same area. Off: all are "
        "cropped to squares.",
        True,
    )
    crop: Crop = _of(
        "data",
        "refuse",
        "Crop",
        "center or random: where pictures are cut to size. Random sees more of a picture and forbids caching latents.",
        "center",
    )
    flip: bool = _of(
        "data",
        "refuse",
        "Mirror at random",
        "Mirror half of the pictures, drawn anew each time. Not for faces with a parting, text or anything one-sided.",
        False,
    )
    skip_bad: bool = _of(
        "data",
        "spec",
        "Skip unusable pictures",
        "Train on the good pictures when some cannot be used, instead of stopping to say which.",
        False,
    )
    trigger: str = _of(
        "data",
        "refuse",
        "Trigger word",
        'The word that calls the concept up, for instance "sks dog": put before captions that lack it, and the caption '
        "of pictures that have none.",
        "",
    )
    caption_prefix: str = _of(
        "data",
        "refuse",
        "Caption prefix",
        'Text put before every caption, for instance "a photo of".',
        "",
    )
    shuffle_tags: bool = _of(
        "data",
        "refuse",
        "Shuffle tags",
        "Shuffle the comma-separated tags of a caption anew each time. For captions made of tags, not for "
        "sentences; forbids caching captions.",
        False,
    )
    keep_tags: int = _of(
        "data",
        "refuse",
        "Tags kept in front",
        "How many tags at the beginning stay where they are when shuffling.",
        1,
    )
    caption_dropout: float = _of(
        "data",
        "refuse",
        "Caption dropout",
        "Share of captions replaced by the empty one (0 to 1). 0.05 to 0.1 helps styles.",
        0.0,
    )
    masks: Path | None = _of(
        "data",
        "refuse",
        "Masks",
        "Folder of masks named like the pictures: white is learnt, black is not. Keeps backgrounds out of the adapter.",
        None,
    )
    alpha_masks: bool = _of(
        "data", "refuse", "Transparency as mask", "Take the pictures' own transparency as masks.", False
    )
    mask_floor: float = _of(
        "data",
        "refuse",
        "Weight outside masks",
        "Loss weight where a mask is black (0 to 1); 0.1 or so keeps the surroundings sane.",
        0.0,
    )
    latent_cache: CachePlace = _of(
        "data",
        "spec",
        "Cache of encodings",
        "Where encoded pictures and captions are kept: memory, disk (found again by content next time), or none. "
        "Nothing is kept that a random crop, flip or shuffle precedes.",
        "memory",
    )
    cache_dir: Path | None = _of(
        "data", "spec", "Folder of the disk cache", "Folder of the disk cache. Default: beside the basis cache.", None
    )

    class_images: Path | None = _of(
        "loss",
        "refuse",
        "Class pictures",
        "Folder of pictures of the concept's class, for prior preservation. Missing ones are generated into it.",
        None,
    )
    class_prompt: str = _of(
        "loss",
        "refuse",
        "Class in words",
        'Turns prior preservation on: the class in words, for instance "a photo of a dog".',
        "",
    )
    class_count: int = _of(
        "loss",
        "refuse",
        "Class picture count",
        "How many class pictures there should be, 100 to 200 as a rule. Each missing one costs a sample, once.",
        100,
    )
    prior_weight: float = _of(
        "loss",
        "refuse",
        "Class picture weight",
        "Weight of the loss on class pictures. 1 is usual; lower lets the concept win over its class.",
        1.0,
    )
    min_snr_gamma: float = _of(
        "loss",
        "refuse",
        "Min-SNR gamma",
        "Cap of the signal-to-noise weight (arXiv 2303.09556); 0 weights all noise levels alike. 5 is the paper's.",
        5.0,
    )
    noise_offset: float = _of(
        "loss",
        "refuse",
        "Noise offset",
        "Noise that is constant over a picture, so that darks and lights are learnt; 0.01-0.1.",
        0.0,
    )
    dco_beta: float = _of(
        "loss",
        "refuse",
        "DCO beta",
        "Direct Consistency Optimisation (arXiv 2402.12004) with this beta; 0 is off, 1000 is usual. Learns the "
        "concept relative to the base itself, which keeps other abilities better and costs a second forward per step.",
        0.0,
    )

    steps: int = _of(
        "training", "spec", "Steps", "Optimiser steps. 100 to 250 per picture is usual for a subject.", 1000
    )
    batch_size: int = _of(
        "training",
        "refuse",
        "Batch size",
        "Pictures per forward. 1 to 4 is usual: larger is steadier, and takes memory and time in proportion. A batch "
        "holds pictures of one size, so never more than there are of it; accumulation has no such limit.",
        1,
    )
    accumulation: int = _of(
        "training",
        "refuse",
        "Gradient accumulation",
        "Forwards per optimiser step: a batch of batch_size x accumulation (x processes) at the memory of batch_size.",
        1,
    )
    lr: float | None = _of(
        "training",
        "spec",
        "Learning rate",
        "Learning rate of the UNet's parameters. Default: the method's own, or the preset's. Too high burns colours "
        "and spoils other prompts, too low learns nothing; change it by factors of 2 to 3.",
        None,
    )
    text_lr: float | None = _of(
        "training",
        "spec",
        "Text learning rate",
        "Learning rate of the text encoders' parameters. Default: a tenth of lr.",
        None,
    )
    norm_lr: float | None = _of(
        "training",
        "spec",
        "Norm learning rate",
        "Learning rate of norm gains. Default: a thousandth of lr, as in SVDiff's code.",
        None,
        methods=("svdiff",),
    )
    optimizer: str = _of(
        "training",
        "refuse",
        "Optimiser",
        'Import path of a torch-compatible optimiser, for instance "torch.optim.RMSprop" or "prodigyopt.Prodigy". '
        "Orthogonal factors of soda always step by StiefelAdam.",
        "torch.optim.AdamW",
    )
    optimizer_args: Mapping[str, Any] = _of(
        "training",
        "refuse",
        "Optimiser arguments",
        "Further arguments of the optimiser, as a table.",
        factory=dict,
    )
    weight_decay: float | None = _of(
        "training", "spec", "Weight decay", "Pull towards the untrained adapter. Default: the method's own.", None
    )
    schedule: Schedule = _of(
        "training",
        "spec",
        "Rate schedule",
        "How the rate goes after the warm-up: constant, linear, cosine, cosine_with_restarts or polynomial. Falling "
        "rates end more calmly; constant suits runs that may be prolonged.",
        "constant",
    )
    warmup: int = _of(
        "training",
        "spec",
        "Warm-up",
        "Steps over which the rate rises to lr. A tenth of the steps helps against spikes at high rates.",
        0,
    )
    cycles: int = _of(
        "training",
        "spec",
        "Cosine restarts",
        "cosine_with_restarts: how many times the rate falls.",
        1,
    )
    clip: float = _of(
        "training",
        "spec",
        "Gradient clipping",
        "Largest norm of the whole gradient; what is longer is shortened. 1 is usual, lower tames spikes.",
        1.0,
    )
    ema: float = _of(
        "training",
        "refuse",
        "Running mean (EMA)",
        "Decay of a running mean of the parameters, which is then what is saved and sampled; 0 is off, 0.99-0.999.",
        0.0,
    )
    precision: Precision = _of(
        "training",
        "refuse",
        "Precision",
        "fp32, bf16 or fp16 for the base and the forward; the adapter itself is always fp32. bf16 halves the memory "
        "on a GPU that has it; fp16 needs a GPU.",
        "fp32",
    )
    gradient_checkpointing: bool = _of(
        "training",
        "spec",
        "Gradient checkpointing",
        "Compute activations twice instead of keeping them: much less memory, about a third more time per step.",
        False,
    )
    seed: int = _of(
        "training",
        "checkpoint",
        "Seed",
        "Fixes picture order, crops, captions, noise and timesteps. Another seed gives another, equally good adapter.",
        0,
    )
    device: Literal["cpu"] | None = _of(
        "training", "spec", "Device", "cpu stays off the GPU. Default: what is there.", None
    )

    run: Path | None = _of(
        "run",
        "spec",
        "Folder of the run",
        "Folder of checkpoints, events and samples. Default: NAME.training beside out.",
        None,
    )
    checkpoint_every: int = _of(
        "run",
        "spec",
        "Checkpoint every",
        "Steps between checkpoints: what a power cut can cost. 0: at the end.",
        250,
    )
    keep: int = _of(
        "run",
        "spec",
        "Checkpoints kept",
        "How many of the newest checkpoints stay; the best is kept besides. More let you go back further and take "
        "disk: several times the adapter file each.",
        3,
    )
    validation: int = _of(
        "run",
        "refuse",
        "Held-out pictures",
        "Pictures held out of training, on which the loss is measured with fixed noise. 0: none. One in five shows "
        "when learning turns into remembering; held-out pictures are not learnt.",
        0,
    )
    validation_images: Path | None = _of(
        "run",
        "refuse",
        "Held-out dataset",
        "A folder of held-out pictures instead, where all pictures are needed for training.",
        None,
    )
    validate_every: int = _of(
        "run",
        "spec",
        "Validate every",
        "Steps between validations. Each costs four forwards per held-out picture.",
        100,
    )
    patience: int = _of(
        "run",
        "spec",
        "Patience",
        "Stop after so many validations without a better loss, and keep the best; 0: never. 5 is a start.",
        0,
    )
    sample_prompts: tuple[str, ...] = _of(
        "run",
        "spec",
        "Sample prompts",
        "Prompts of sample pictures. None: no samples. Two with the trigger word and one without show what is "
        "learnt and what is spoilt.",
        (),
    )
    sample_negative: str = _of(
        "run",
        "spec",
        "Negative prompt",
        "Negative prompt of the samples: what they should not show.",
        "",
    )
    sample_every: int = _of(
        "run",
        "spec",
        "Samples every",
        "Steps between samples, besides step 0 and the end. Each prompt costs as much as a picture does in use.",
        250,
    )
    sample_steps: int = _of(
        "run",
        "spec",
        "Steps per sample",
        "Denoising steps of a sample. 25 is usual; more take longer and change little.",
        25,
    )
    sample_guidance: float = _of(
        "run",
        "spec",
        "Sample guidance",
        "Guidance scale of the samples: how strictly they follow the prompt. 7.5 is usual for Stable Diffusion.",
        7.5,
    )
    sample_seed: int = _of("run", "spec", "Sample seed", "Seed of the samples, the same at every step.", 1)
    tensorboard: bool = _of(
        "run", "spec", "TensorBoard curves", "Also write curves for TensorBoard (needs its package).", False
    )
    title: str = _of("run", "spec", "Title", "Title in the file's metadata. Default: the file's name.", "")
    description: str = _of("run", "spec", "Description", "Description in the file's metadata.", "")
    licence: str = _of("run", "spec", "Licence", "Licence in the file's metadata.", "")

    def build_method(self) -> Method:
        """The method with this run's settings. Raises SettingError."""
        from ..spectral.methods import method  # imports torch; naming the settings needs none

        settings: dict[str, str | bool] = {}
        if self.rotation is not None:
            settings["rotation"] = self.rotation
        if self.norms:
            settings["norms"] = True
        return method(self.method, rank=self.rank, columns=self.chosen_columns, **settings)

    @property
    def chosen_columns(self) -> str | None:
        """What `columns` says, or the plan for this concept. Raises SettingError for a plan that cannot be read or has
        no such concept.
        """
        return self.columns if self.column_plan is None else read_plan(self.column_plan).columns(self.concept)

    def rates(self, chosen: Method) -> tuple[float, float]:
        """Learning rates of the UNet and of the text encoders."""
        unet = chosen.lr if self.lr is None else self.lr
        return unet, unet * 0.1 if self.text_lr is None else self.text_lr

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder is trained."""
        return self.text_targets != "none" or self.text_targets_2 != "none"

    @property
    def run_folder(self) -> Path:
        """Where checkpoints, events and samples go."""
        return self.out.with_name(f"{self.out.stem}.training") if self.run is None else self.run

    def pixels(self, own: int, multiple: int) -> int:
        """The training resolution on a base of `own` size whose pictures' sides are multiples of `multiple`."""
        chosen = own if self.resolution is None else self.resolution
        if chosen < multiple or chosen % multiple:
            raise SettingError(f"resolution={chosen}; this base takes multiples of {multiple} pixels")
        return chosen

    def check(self) -> None:
        """Raise SettingError for the first setting that cannot be honoured, whatever the base."""
        self.check_values()
        self.build_method()

    def check_values(self) -> None:
        """`check` without what only the method itself can say, so that it needs no torch."""
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise SettingError(f"{name}={getattr(self, name)}; expected at least {least}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingError(f"{name}={value}; expected a positive number")
        for name, (low, high) in _WITHIN.items():
            if not low <= getattr(self, name) <= high:
                raise SettingError(f"{name}={getattr(self, name)}; expected {low} to {high:g}")
        self._check_choices()
        self._check_together()
        self._check_places()
        self._check_out()
        self._check_method()

    def check_adapter(self) -> None:
        """`check` of the adapter's own settings alone, for a trainer that has its own of the rest. Needs torch."""
        self._check_choices()
        self._check_files()
        self._check_method()
        self.build_method()

    def _check_choices(self) -> None:
        for name, allowed in choices().items():
            if getattr(self, name) not in allowed:
                raise SettingError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(map(str, allowed))}")

    def _check_method(self) -> None:
        for each in fields(self):
            own = each.metadata["methods"]
            if own and self.method not in own and getattr(self, each.name) != each.default:
                raise SettingError(f"{self.method} does not have {each.name}; it is a setting of {', '.join(own)}")
        self._check_columns()

    def _check_columns(self) -> None:
        """One of the ways to choose columns, and what belongs to it."""
        ways = {"rank": self.rank, "columns": self.columns, "column_plan": self.column_plan}
        given = [f"{name}={value!r}" if name == "columns" else f"{name}={value}" for name, value in ways.items()
                 if value is not None]  # fmt: skip
        if len(given) > 1:
            raise SettingError(f"{' and '.join(given[:2])} both choose columns; give one")
        if self.column_plan is None:
            if self.concept:
                raise SettingError(f"concept={self.concept!r} is given without column_plan; name the plan that has it")
            Columns.parse(self.columns if self.rank is None else self.rank)
            return
        if self.avoid:
            raise SettingError("column_plan and avoid both keep columns free for other concepts; give one")
        if not self.concept:
            names = ", ".join(each.name for each in read_plan(self.column_plan).concepts)
            raise SettingError(f"column_plan is given without concept; say which one of it this is: {names}")
        Columns.parse(self.chosen_columns)

    def _check_together(self) -> None:
        if self.text_lr is not None and not self.trains_text:
            raise SettingError("text_lr is given but no text encoder is trained; set text_targets")
        if self.norm_lr is not None and not self.norms:
            raise SettingError("norm_lr is given but norm gains are not trained; set norms")
        if self.targets == "none" and not self.trains_text:
            raise SettingError('targets and text_targets are both "none", so there is nothing to train')
        if self.masks is not None and self.alpha_masks:
            raise SettingError("masks and alpha_masks are both given; choose one source of masks")
        if self.class_images is not None and not self.class_prompt:
            raise SettingError("class_images is given without class_prompt; say what the class is called")
        if self.validation and self.validation_images is not None:
            raise SettingError("validation and validation_images are both given; hold pictures out in one way")
        if self.patience and not (self.validation or self.validation_images):
            raise SettingError("patience stops on the validation loss; set validation or validation_images")

    def _check_places(self) -> None:
        """What is read must be there: found now, and not after the base has been loaded."""
        for name in ("images", "masks", "validation_images"):
            path = getattr(self, name)
            if path is not None and not path.is_dir():
                raise SettingError(f"{name}: {path} is not a folder; give the folder that holds the pictures")
        self._check_files()

    def _check_files(self) -> None:
        files = {"start_from": [self.start_from] if self.start_from else [], "avoid": self.avoid}
        if self.column_plan is not None and not self.column_plan.is_file():
            raise SettingError(f"column_plan: there is no file {self.column_plan}; make one with the command plan")
        for name, paths in files.items():
            for path in paths:
                if not path.is_file():
                    raise SettingError(f"{name}: there is no file {path}; give an adapter file")

    def _check_out(self) -> None:
        if self.out.suffix != ".safetensors":
            raise SettingError(f"the adapter file {self.out} must end in .safetensors")
        if self.out.exists():
            raise SettingError(f"{self.out} exists already and is never overwritten; choose another name with out")
        if not self.out.absolute().parent.is_dir():
            raise SettingError(f"the folder {self.out.absolute().parent} does not exist; make it first")

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `from_mapping` reads them."""
        return {name: plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainSpec:
        """A spec from names and plain values. Raises SettingError for an unknown name (with the nearest), a value of
        the wrong type, or a missing one of base, images, out."""
        known = {f.name: f for f in fields(cls)}
        if strange := [name for name in values if name not in known]:
            near = difflib.get_close_matches(strange[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise SettingError(f"{strange[0]!r} is no setting of a training run; {hint}")
        read = {name: read_value(name, value) for name, value in values.items() if value is not None}
        if missing := [n for n in ("base", "images", "out") if n not in read]:
            raise SettingError(f"{missing[0]} is missing; a training run needs base, images and out")
        return cls(**read)


def settings() -> tuple[Field, ...]:
    """Every field of a training run, in order; `metadata` is what `_of` gives it."""
    return fields(TrainSpec)


def read_spec_file(path: Path) -> dict[str, Any]:
    """Names and values of a .toml or .json spec file; relative paths in it count from the file's own folder.

    Raises SettingError where it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else _toml().loads(text)
    except (OSError, ValueError) as error:
        raise SettingError(f"the settings {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise SettingError(f"the settings {path} hold a {type(values).__name__}; expected names and values")
    return {name: _beside(path, name, value) for name, value in values.items()}


def _toml() -> types.ModuleType:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    return tomllib


def _beside(path: Path, name: str, value: Any) -> Any:
    """A relative path in a spec file, seen from the file's folder."""
    kinds = _kinds(_hints().get(name, str))
    if isinstance(value, list) and tuple[Path, ...] in kinds:
        return [str(path.parent / Path(item).expanduser()) for item in map(str, value)]
    if isinstance(value, str) and (Path in kinds or (name == "base" and value != "tiny")):
        return str(path.parent / Path(value).expanduser())
    return value


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The types that a field takes, without None."""
    union = get_origin(kind) in (Union, types.UnionType)
    return tuple(option for option in get_args(kind) if option is not type(None)) if union else (kind,)


def read_value(name: str, value: Any) -> Any:
    """A plain value as the type of the field of that name. Raises SettingError."""
    kind = _hints()[name]
    for option in _kinds(kind):
        try:
            return _convert(value, option)
        except TypeError:
            continue
    wanted = " or ".join(_spoken(option) for option in _kinds(kind))
    raise SettingError(f"{name}={value!r} is a {type(value).__name__}; expected {wanted}")


def _convert(value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(item, get_args(kind)[0]) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return dict(value)
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value).expanduser()
    if kind is float and type(value) in (int, float):
        return float(value)
    if (origin is Literal and isinstance(value, str)) or (kind in (int, bool, str) and type(value) is kind):
        return value
    raise TypeError(kind)


def _spoken(kind: Any) -> str:
    """A type in words for an error."""
    if get_origin(kind) is tuple:
        return f"a list of {_spoken(get_args(kind)[0])}s"
    words = {Path: "a path", str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(
        kind, "a table" if get_origin(kind) is Mapping else "one of " + ", ".join(map(str, get_args(kind)))
    )


def plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


@cache
def _hints() -> Mapping[str, Any]:
    """The type of every field; working them out takes longer than all that is done with them."""
    return get_type_hints(TrainSpec)


@cache
def kinds() -> Mapping[str, Any]:
    """The type of every field, without None."""
    return {name: _kinds(kind)[0] for name, kind in _hints().items()}


def limits(name: str) -> tuple[float | None, float | None]:
    """The least and the largest value that `check` lets a number have; None where there is no such bound.

    A rate and the clip must be more than their least value, 0.
    """
    if name in _WITHIN:
        return _WITHIN[name]
    return (0 if name in _POSITIVE else _AT_LEAST.get(name)), None


@cache
def choices() -> Mapping[str, tuple[Any, ...]]:
    """The fields that take one of a few values, with these."""
    found = {}
    for name, kind in _hints().items():
        if literals := [option for option in _kinds(kind) if get_origin(option) is Literal]:
            none = (None,) if type(None) in get_args(kind) else ()
            found[name] = get_args(literals[0]) + none
    return found


_AT_LEAST = {
    **dict.fromkeys(("steps", "batch_size", "accumulation", "cycles", "keep", "sample_steps"), 1),
    **dict.fromkeys(("validate_every", "sample_every", "class_count"), 1),
    **dict.fromkeys(("warmup", "checkpoint_every", "validation", "patience", "keep_tags"), 0),
    **dict.fromkeys(("min_snr_gamma", "noise_offset", "dco_beta", "prior_weight", "sample_guidance"), 0),
}
_POSITIVE = ("lr", "text_lr", "norm_lr", "clip")
_WITHIN = {"caption_dropout": (0, 1), "mask_floor": (0, 1), "ema": (0, 0.99999)}
