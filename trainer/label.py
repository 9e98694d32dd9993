"""What an adapter file says of its training, beside the adapter itself."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ..spectral.adapter import Adapter
from ..spectral.file import save
from .base import Base
from .folder import Folder
from .spec import TrainSpec


class Arguments(TypedDict):
    """Of `save` and of `file_size` alike."""

    base_name: str
    trigger_words: tuple[str, ...]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Label:
    """The facts of a run that its file carries: base, trigger word, and what other tools show (`ss_*`, ModelSpec)."""

    spec: TrainSpec
    base: Base
    folder: Folder
    resolution: int

    def write(self, adapter: Adapter, path: Path, steps: int) -> Path:
        """Write the adapter file, whole or not at all. Raises AdapterFileError."""
        return save(adapter, path, base_hash=self.base.file_hash, **self.arguments(adapter, steps))

    def arguments(self, adapter: Adapter, steps: int) -> Arguments:
        """What `save` is told beside the base's hash."""
        return {
            "base_name": self.base.name,
            "trigger_words": (self.folder.trigger,) if self.folder.trigger else (),
            "metadata": {k: str(v) for k, v in self._facts(adapter, steps).items() if v not in (None, "")},
        }

    def _facts(self, adapter: Adapter, steps: int) -> dict[str, object]:
        spec = self.spec
        unet_rate, text_rate = spec.rates(adapter.method)
        return {
            "ss_steps": steps,
            "ss_seed": spec.seed,
            "ss_learning_rate": unet_rate,
            "ss_unet_lr": unet_rate,
            "ss_text_encoder_lr": text_rate if spec.trains_text else None,
            "ss_optimizer": spec.optimizer,
            "ss_lr_scheduler": spec.schedule,
            "ss_total_batch_size": spec.batch_size * spec.accumulation,
            "ss_resolution": f"({self.resolution}, {self.resolution})",
            "ss_num_train_images": sum(picture.repeats for picture in self.folder.pictures),
            "ss_mixed_precision": "no" if spec.precision == "fp32" else spec.precision,
            "ss_min_snr_gamma": spec.min_snr_gamma or None,
            "ss_noise_offset": spec.noise_offset or None,
            "ss_tag_frequency": json.dumps({self.folder.path.name: self._tags()}, ensure_ascii=False),
            "modelspec.title": spec.title or spec.out.stem,
            "modelspec.description": spec.description,
            "modelspec.license": spec.licence,
            "modelspec.resolution": f"{self.resolution}x{self.resolution}",
            "modelspec.prediction_type": "v" if self.base.v_prediction else "epsilon",
        }

    def _tags(self) -> dict[str, int]:
        """How often each comma-separated tag occurs, the most frequent hundred: what UIs suggest as prompts."""
        tags = Counter(
            tag.strip() for picture in self.folder.pictures for tag in picture.caption.split(",") if tag.strip()
        )
        return dict(tags.most_common(100))
