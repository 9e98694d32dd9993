"""What a training by sd-scripts needs before it is started: the base and the pictures looked at, its files written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...spectral.errors import SettingError
from .. import files
from ..events import Listener, Notice, Phase
from ..folder import Folder, scan
from ..native import Kind, kind, native
from ..pictures import FULL_STEP, Size, bucket_sizes
from ..spec import TrainSpec
from ..tokenizers import VOCABULARY, vocabulary
from . import toml, translate
from .data import Layout, planned, shown

FOLDER = "sd-scripts"  # in the run's folder
# As sd-scripts names the folders: CLIP's, which all its models share but for what follows the end of a text.
_OF_SD2 = "stabilityai_stable-diffusion-2"
_TOKENIZERS = ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k", _OF_SD2)


@dataclass(frozen=True)
class Prepared:
    """What is known before sd-scripts is started. content: hashes by setting, for resumes."""

    kind: Kind
    resolution: int
    folder: Folder
    layout: Layout
    content: dict[str, str]

    def sizes(self, spec: TrainSpec) -> dict[Size, int]:
        """How often each training size comes up in a pass, the commonest first."""
        return dict(self.layout.sizes(bucket_sizes(self.resolution, FULL_STEP, spec.buckets)).most_common())


def prepare(spec: TrainSpec, tell: Listener, stop: Callable[[], bool], *, dry: bool = False) -> Prepared:
    """Look at the base and every picture. Raises SpectralError for what cannot be used.

    dry: class pictures that are missing are not made, and no hashes are taken.
    """
    tell(Phase("looking at the base model"))
    model, size = kind(spec.base, spec.prediction), native(spec.base, spec.prediction)
    if model is None or size is None:
        raise SettingError(
            f"base={spec.base}: found no model that sd-scripts trains; expected a .safetensors checkpoint or a "
            "diffusers folder of Stable Diffusion 1.x, 2.x or XL"
        )
    resolution = spec.pixels(size.resolution, size.multiple)
    sizes = bucket_sizes(resolution, max(size.multiple, FULL_STEP), spec.buckets)
    tell(Phase("checking the pictures"))
    beside = [spec.run_folder, *filter(None, (spec.class_images, spec.validation_images, spec.cache_dir))]
    folder = scan(
        spec.images, trigger=spec.trigger, masks=spec.masks, alpha_masks=spec.alpha_masks, sizes=sizes,
        exclude=beside, listen=tell,
    )  # fmt: skip
    held = scan(spec.validation_images, trigger=spec.trigger, sizes=sizes) if spec.validation_images else None
    classes = _classes(spec, tell, stop, dry)
    for found in filter(None, (folder, held, classes)):
        for notice in found.require(spec.skip_bad):
            tell(Notice(notice))
    layout = planned(spec.run_folder.absolute() / FOLDER, shown(spec, folder, held, classes), spec.mask_floor)
    return Prepared(model, resolution, folder, layout, {} if dry else _content(spec, folder, held))


def _classes(spec: TrainSpec, tell: Listener, stop: Callable[[], bool], dry: bool) -> Folder | None:
    """The class pictures of prior preservation, of which our own sampler makes what is missing."""
    if not spec.class_prompt:
        return None
    from ..prior import class_folder, missing_pictures

    path = class_folder(spec)
    missing = missing_pictures(path, spec)
    if missing and dry:
        tell(Notice(f"{len(missing)} class pictures are made before the training; the files below do not show them."))
        return scan(path, trigger=spec.class_prompt) if len(missing) < spec.class_count else None
    if missing:
        _make_class_pictures(spec, tell, stop)
    return scan(path, trigger=spec.class_prompt, listen=tell)


def _make_class_pictures(spec: TrainSpec, tell: Listener, stop: Callable[[], bool]) -> None:
    """Make what is missing with our own sampler, and leave the device to sd-scripts."""
    import torch

    from ..loop import make_accelerator
    from ..models import load_base
    from ..prior import make_class_pictures

    tell(Phase("loading the base model"))
    base = load_base(spec.base, spec.tokenizer, prediction=spec.prediction).to(make_accelerator(spec).device)
    make_class_pictures(base, spec, tell, stop)
    del base
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _content(spec: TrainSpec, folder: Folder, held: Folder | None) -> dict[str, str]:
    """As `setup.Material.content`, without loading the base."""
    base = Path(spec.base).expanduser()
    weights = sorted((base / "unet").glob("*.safetensors")) if base.is_dir() else [base]
    found = {"base": ",".join(map(files.digest, weights)), "images": folder.hash}
    if held is not None:
        found["validation_images"] = held.hash
    if spec.start_from is not None:
        found["start_from"] = files.digest(spec.start_from)
    if spec.column_plan is not None:
        found["column_plan"] = str(spec.chosen_columns)
    return found


def work_of(spec: TrainSpec, folder: Path, prepared: Prepared, state: Path | None) -> translate.Work:
    # Where none is found here, finding one is left to sd-scripts, which may fetch it.
    tokenizers = None if vocabulary(spec.tokenizer) is None else folder / "tokenizers"
    return translate.Work(folder, prepared.kind, prepared.resolution, tokenizers, state)


def _copy_tokenizers(source: Path, target: Path) -> None:
    """CLIP's vocabulary where sd-scripts looks for its tokenizers."""
    for name in _TOKENIZERS:
        home = target / name
        files.make_folder(home)
        for each in (*VOCABULARY, "special_tokens_map.json", "tokenizer_config.json"):
            if (source / each).is_file():
                shutil.copyfile(source / each, home / each)
        # sd-scripts asks the tokenizer how long a text may be.
        settings = home / "tokenizer_config.json"
        kept = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        ending = {"pad_token": "!"} if name == _OF_SD2 else {}
        settings.write_text(json.dumps({**kept, "model_max_length": 77, **ending}), encoding="utf-8")


def write(spec: TrainSpec, work: translate.Work, prepared: Prepared) -> None:
    """Write what sd-scripts reads, and the vocabulary of its tokenizers. Raises OSError."""
    if work.tokenizers is not None:
        _copy_tokenizers(vocabulary(spec.tokenizer), work.tokenizers)
    for path, text in written(spec, work, prepared).items():
        path.write_text(text, encoding="utf-8")


def written(spec: TrainSpec, work: translate.Work, prepared: Prepared) -> dict[Path, str]:
    """The files that sd-scripts reads, as texts."""
    found = {
        work.config: toml.dumps(translate.config(spec, work, prepared.layout)),
        work.dataset: toml.dumps(translate.dataset(spec, work, prepared.layout)),
    }
    if spec.sample_prompts:
        size = next(iter(prepared.sizes(spec)))
        found[work.prompts] = json.dumps(translate.prompts(spec, size), indent=1, ensure_ascii=False) + "\n"
    return found


def plan(spec: TrainSpec, prepared: Prepared) -> dict[str, Any]:
    """What a Plan says, without what only the network knows; memory and time are not estimated."""
    method = spec.build_method()
    sizes = prepared.sizes(spec)
    batches = sum(-(-count // spec.batch_size) for count in sizes.values())
    passes = 2 if prepared.layout.count("class") else 1  # sd-scripts brings class pictures to the same number
    return {
        "method": f"{method.name}, columns {method.columns.text}",
        "pictures": prepared.layout.count("train"),
        "buckets": {f"{w}x{h}": count for (w, h), count in sorted(sizes.items())},
        "steps": spec.steps,
        "epochs": spec.steps * spec.accumulation / (batches * passes),
        "batch": round(spec.accumulation * sum(sizes.values()) / batches, 1),
        "memory": {},
        "memory_bytes": 0,
        "free_bytes": None,
        "step_seconds": 0.0,
        "seconds": 0.0,
    }
