"""A training's settings in sd-scripts' words: its --config_file and --dataset_config.

`HOW` says of every setting what becomes of it; a setting that sd-scripts cannot honour is refused by name, and one that
it honours in its own way is said before the start. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...spectral.errors import SettingError
from ..kohya_args import ARGUMENTS
from ..layering import base_kind
from ..native import Kind
from ..spec import TrainSpec, settings

if TYPE_CHECKING:
    from .data import Layout

NETWORK = "spectral_adapters.trainer.kohya"
OPTIMIZER = "spectral_adapters.trainer.kohya_optimizer.SpectralOptimizer"
OUT = "out"  # where sd-scripts writes, in its folder
ADAMW = "torch.optim.AdamW"
# honoured: as by our own trainer. differs: in sd-scripts' own way. unused: it changes nothing there. refused: it would
# change the training, and sd-scripts does not have it.
Way = Literal["honoured", "differs", "unused", "refused"]


@dataclass(frozen=True)
class How:
    """What becomes of a setting. text: a sentence for all but "honoured"."""

    way: Way = "honoured"
    text: str = ""


_HONOURED = How()
_CLASSES = How(
    "differs",
    "class pictures are repeated until they are as many as the others and shuffled among them, instead of a second "
    "forward of each step.",
)
_MASK = How(
    "differs",
    "a masked picture's loss is not divided by the area of its mask, so that small subjects learn more slowly.",
)
HOW: dict[str, How] = {
    **{field.name: _HONOURED for field in settings()},
    "buckets": How("differs", "pictures go into sd-scripts' own sizes, which may be other ones than ours."),
    "masks": _MASK,
    "alpha_masks": _MASK,
    "cache_dir": How("unused", "sd-scripts keeps encoded pictures in the run's folder, beside their files."),
    "class_images": _CLASSES,
    "class_prompt": _CLASSES,
    "dco_beta": How("refused", "sd-scripts has no Direct Consistency Optimisation; set dco_beta = 0"),
    "ema": How("refused", "sd-scripts keeps no running mean of the parameters; set ema = 0"),
    "seed": How(
        "differs", "the random numbers are sd-scripts' own, so one seed gives another adapter than our trainer."
    ),
    "sample_prompts": How("differs", "samples are made by sd-scripts' own pipeline, with DDIM."),
    "accumulation": How(
        "differs", "a resumed run begins the pass over the pictures anew in which it was stopped, if it accumulates."
    ),
}
_ALWAYS = ("seed", "buckets")  # said whatever their value


def refusals(spec: TrainSpec) -> list[str]:
    """A sentence for everything that keeps sd-scripts from this training; empty where it can do it."""
    found = [
        f"{field.name}: {HOW[field.name].text}."
        for field in settings()
        if HOW[field.name].way == "refused" and _is_set(spec, field.name)
    ]
    if spec.base == "tiny":
        found.append(
            "base: sd-scripts knows Stable Diffusion 1.x, 2.x and XL alone, not the bundled base; name another."
        )
    if spec.optimizer != ADAMW and _steps_stiefel(spec):
        found.append(
            f"optimizer: sd-scripts has one optimiser for all, and only ours, which is AdamW, steps soda's orthogonal "
            f"factors; set optimizer = {ADAMW}, or rotation = cayley."
        )
    return found


def remarks(spec: TrainSpec) -> list[str]:
    """A sentence for each setting that sd-scripts honours in another way than our trainer, or not at all."""
    spoken = dict.fromkeys(
        f"{field.name}: {HOW[field.name].text}"
        for field in settings()
        if HOW[field.name].way in ("differs", "unused")
        and (field.name in _ALWAYS or (_is_set(spec, field.name) and field.name != "class_images"))
    )
    said = list(spoken)
    if Path(spec.base).is_file() and base_kind(spec.base) == "sdxl":
        said.append(_POOLED)
    return said


_POOLED = (
    "base: sd-scripts reads one matrix of SDXL checkpoints in one file transposed, so the UNet is trained beside "
    "another pooled text than it is used with."
)


def check(spec: TrainSpec) -> None:
    """Raise SettingError for the settings that sd-scripts cannot honour, all of them in one."""
    if found := refusals(spec):
        raise SettingError(f"sd-scripts cannot do this training. {' '.join(found)}")


@dataclass(frozen=True)
class Work:
    """Where a training by sd-scripts has its things, and what it is told of its base.

    folder: for what sd-scripts reads and writes. resolution: in pixels. tokenizers: a --tokenizer_cache_dir. resume:
    a state to go on from.
    """

    folder: Path
    kind: Kind
    resolution: int
    tokenizers: Path | None = None
    resume: Path | None = None

    def skips(self, spec: TrainSpec) -> bool:
        """Whether a resumed run goes on inside the pass over the pictures in which it was stopped."""
        # With accumulation sd-scripts mistakes micro-batches for steps when it looks for the place.
        return self.resume is not None and spec.accumulation == 1

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset.toml"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.json"

    @property
    def out(self) -> Path:
        return self.folder / OUT


def config(spec: TrainSpec, work: Work, layout: Layout) -> dict[str, Any]:
    """The options of --config_file. It alone starts the same training by hand, but for the number of checkpoints."""
    tables = {
        "model": _model(spec, work),
        "network": _network(spec),
        "rates": _rates(spec, work),
        "training": _training(spec, work, layout),
        "saving": _saving(spec, work),
        "samples": _samples(spec, work),
        "metadata": _metadata(spec),
    }
    return {name: given for name, values in tables.items() if (given := _given(values))}


def dataset(spec: TrainSpec, work: Work, layout: Layout) -> dict[str, Any]:
    """The --dataset_config: the pictures to learn and those of the class together, the held-out ones by themselves."""
    from .data import subsets

    prefix = spec.caption_prefix
    handling = {
        "flip_aug": spec.flip,
        "random_crop": spec.crop == "random",
        "shuffle_caption": spec.shuffle_tags,
        # The prefix is part of the caption here, and stays in front with the tag behind it.
        "keep_tokens": max(spec.keep_tags, 1) + prefix.count(",") if prefix else spec.keep_tags,
        "caption_dropout_rate": spec.caption_dropout,
    }
    by_role = list(subsets(layout, handling))
    learnt = [subset for role, subset in by_role if role != "validation"]
    held = [subset for role, subset in by_role if role == "validation"]
    found = [{**_sizes(spec, work), "validation_split": 0.0, "subsets": learnt}]
    if held:
        found.append({**_sizes(spec, work), "batch_size": 1, "validation_split": 1.0, "subsets": held})
    return {"datasets": found}


def prompts(spec: TrainSpec, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The samples to make, as --sample_prompts has them; a repeated prompt begins from the next seed, as in ours."""
    return [
        {
            "prompt": prompt,
            "negative_prompt": spec.sample_negative,
            "width": size[0],
            "height": size[1],
            "seed": spec.sample_seed + spec.sample_prompts[:place].count(prompt),
            "sample_steps": spec.sample_steps,
            "scale": spec.sample_guidance,
        }
        for place, prompt in enumerate(spec.sample_prompts)
    ]


def _model(spec: TrainSpec, work: Work) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": str(Path(spec.base).expanduser().absolute()),
        "v2": work.kind.family == "sd2",
        "v_parameterization": work.kind.v_prediction,
        "zero_terminal_snr": work.kind.zero_snr,
        "tokenizer_cache_dir": None if work.tokenizers is None else str(work.tokenizers),
    }


def _network(spec: TrainSpec) -> dict[str, Any]:
    return {
        "network_module": NETWORK,
        "network_dim": spec.rank,
        "network_args": _arguments(spec),
        "network_train_unet_only": not spec.trains_text,
        "network_train_text_encoder_only": spec.targets == "none",
    }


def _arguments(spec: TrainSpec) -> list[str]:
    """--network_args: what is not left to its default, under the same names. The columns are those of the plan."""
    values = {name: getattr(spec, name) for name in ARGUMENTS if name not in ("rank", "column_plan", "concept")}
    values["columns"] = None if spec.rank is not None else spec.chosen_columns
    # Said even where it is the default, since the network module by itself begins with another one.
    values["rotation"] = spec.build_method().settings.get("rotation")
    always = ("method", "targets")
    return [
        f"{name}={_argument(value)}"
        for name, value in values.items()
        if name in always or value not in (None, False, (), "none")
    ]


def _argument(value: Any) -> str:
    if isinstance(value, tuple):
        return json.dumps([str(Path(item).absolute()) for item in value], ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value.absolute() if isinstance(value, Path) else value)


def _rates(spec: TrainSpec, work: Work) -> dict[str, Any]:
    unet, text = spec.rates(spec.build_method())
    warms = spec.schedule == "constant" and spec.warmup
    return {
        "learning_rate": unet,
        "unet_lr": unet,
        "text_encoder_lr": [text] * (2 if work.kind.family == "sdxl" else 1) if spec.trains_text else None,
        "optimizer_type": OPTIMIZER if _steps_stiefel(spec) else spec.optimizer,
        "optimizer_args": [f"{name}={_literal(name, value)}" for name, value in spec.optimizer_args.items()],
        "lr_scheduler": "constant_with_warmup" if warms else spec.schedule,
        "lr_warmup_steps": spec.warmup,
        "lr_scheduler_num_cycles": spec.cycles,
        "max_grad_norm": spec.clip,
    }


def _training(spec: TrainSpec, work: Work, layout: Layout) -> dict[str, Any]:
    cached = spec.latent_cache != "none" and spec.crop != "random"
    texts_stay = not (spec.trains_text or spec.shuffle_tags or spec.caption_dropout)
    return {
        "dataset_config": str(work.dataset),
        "resolution": f"{work.resolution},{work.resolution}",  # for the file's metadata
        "max_train_steps": spec.steps,
        "train_batch_size": spec.batch_size,
        "gradient_accumulation_steps": spec.accumulation,
        "gradient_checkpointing": spec.gradient_checkpointing,
        "mixed_precision": "no" if spec.precision == "fp32" else spec.precision,
        "no_half_vae": True,
        "sdpa": True,
        "seed": spec.seed,
        "min_snr_gamma": spec.min_snr_gamma or None,
        "noise_offset": spec.noise_offset or None,
        "prior_loss_weight": spec.prior_weight,
        "cache_latents": cached,
        "cache_latents_to_disk": cached and spec.latent_cache == "disk",
        "cache_text_encoder_outputs": texts_stay and cached if work.kind.family == "sdxl" else None,
        "max_data_loader_n_workers": 0 if cached else 2,
        "persistent_data_loader_workers": not cached,
        "validate_every_n_steps": spec.validate_every if layout.count("validation") else None,
        "validate_every_n_epochs": _NEVER if layout.count("validation") else None,
    }


_NEVER = 1_000_000_000  # epochs; without a number, sd-scripts validates after each of them


def _saving(spec: TrainSpec, work: Work) -> dict[str, Any]:
    return {
        "output_dir": str(work.out),
        "output_name": spec.out.stem,
        "save_model_as": "safetensors",
        "save_every_n_steps": spec.checkpoint_every or None,
        "save_state": True,
        "resume": None if work.resume is None else str(work.resume),
        "skip_until_initial_step": work.skips(spec),
    }


def _samples(spec: TrainSpec, work: Work) -> dict[str, Any]:
    if not spec.sample_prompts:
        return {}
    return {
        "sample_prompts": str(work.prompts),
        "sample_every_n_steps": spec.sample_every,
        "sample_at_first": work.resume is None,
        "sample_sampler": "ddim",
    }


def _metadata(spec: TrainSpec) -> dict[str, Any]:
    return {
        "metadata_title": spec.title or spec.out.stem,
        "metadata_description": spec.description or None,
        "metadata_license": spec.licence or None,
        "metadata_trigger_phrase": spec.trigger or None,
    }


def _sizes(spec: TrainSpec, work: Work) -> dict[str, Any]:
    return {
        "resolution": work.resolution,
        "batch_size": spec.batch_size,
        "enable_bucket": spec.buckets,
        "min_bucket_reso": max(64, work.resolution // 2 // 64 * 64),
        "max_bucket_reso": work.resolution * 2,
        "bucket_reso_steps": 64,
    }


def _literal(name: str, value: Any) -> str:
    """A value as sd-scripts reads it: a Python literal without an equals sign."""
    text = repr(value)
    if "=" in text:
        raise SettingError(f"optimizer_args: found {name}={text}; sd-scripts takes no value that holds '='")
    return text


def _steps_stiefel(spec: TrainSpec) -> bool:
    """Whether a part of the adapter is an orthogonal matrix, which an ordinary optimiser would bend."""
    return any(group.kind == "stiefel" for group in spec.build_method().groups.values())


def _is_set(spec: TrainSpec, name: str) -> bool:
    field = next(each for each in settings() if each.name == name)
    return getattr(spec, name) not in (field.default, None, "", ())


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is left to sd-scripts: options that are not given, and switches that are off."""
    return {name: value for name, value in values.items() if value is not None and value is not False and value != []}
