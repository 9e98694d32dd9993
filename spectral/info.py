"""What an adapter's file, or one of the LoRA family, says of itself, as plain facts and as text for people."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path

from .adapter import Adapter
from .another_model import FAMILY_NAMES
from .container import open_file
from .foreign_lora import LoraFile
from .open import open_source
from .preview import COVERS, THUMBNAIL, preview_of
from .source import AdapterSource

# What trainings write into their files, by the words that people know.
_TRAINING = {
    "steps": ("ss_steps", "ss_max_train_steps"),
    "epochs": ("ss_num_epochs", "ss_epoch"),
    "pictures": ("ss_num_train_images",),
    "batch size": ("ss_total_batch_size", "ss_batch_size_per_device"),
    "resolution": ("modelspec.resolution", "ss_resolution"),
    "learning rate": ("ss_unet_lr", "ss_learning_rate"),
    "learning rate of text": ("ss_text_encoder_lr",),
    "optimizer": ("ss_optimizer",),
    "schedule": ("ss_lr_scheduler",),
    "precision": ("ss_mixed_precision",),
    "prediction": ("modelspec.prediction_type",),
    "seed": ("ss_seed",),
    "date": ("modelspec.date",),
}
_SILENT = ("", "None")


@dataclass(frozen=True)
class Info:
    """Facts of one file.

    method: one of this package's, or the kind of another file ("LoRA", "LoHa", ...), which has no columns, settings,
    profile, fingerprints and probes. layers, norms and parameters are counts. moved: how many layers use which columns,
    where these are not what `columns` says, as with layers that stay off other adapters'. fingerprints: how many layers
    name their base. sha256: of the whole file. content_hash: SHA-256 of the tensors' bytes, which hosts show and
    editing does not change. training: what the file says of its training. left_out: tensors that change no weight.
    preview: a PNG, JPEG, WebP or GIF as it is in the file.
    """

    file: str
    file_bytes: int
    title: str
    method: str
    columns: str
    settings: dict[str, str | int | float | bool]
    profile: str
    family: str | None
    layers: int
    moved: dict[str, int]
    norms: int
    parameters: int
    base_name: str
    base_hash: str
    trigger_words: list[str]
    fingerprints: int
    probes: int
    metadata: dict[str, str]
    sha256: str = ""
    content_hash: str = ""
    description: str = ""
    licence: str = ""
    author: str = ""
    training: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    preview: bytes | None = None

    def as_json(self) -> dict[str, object]:
        """All facts as JSON has them; `preview` only says whether there is a picture."""
        return {**asdict(self), "left_out": list(self.left_out), "preview": self.preview is not None}

    def __str__(self) -> str:
        """A few lines for a terminal."""
        base = self.base_name or "not recorded"
        if self.base_hash:
            base += f" (SHA-256 {self.base_hash[:12]}…)"
        rows = {
            "method": f"{self.method}, columns {self.columns}{self._exceptions}" if self.columns else self.method,
            "title": self.title,
            "description": self.description,
            "author": self.author,
            "licence": self.licence,
            "made for": FAMILY_NAMES.get(self.family or "", "another model"),
            "layers": f"{self.layers:,}" + (f", and the gains of {self.norms:,} norms" if self.norms else ""),
            "parameters": f"{self.parameters:,}",
            "file": f"{self.file_bytes:,} bytes" + (f", {self.profile}" if self.profile else ""),
            "SHA-256": self.sha256,
            "content hash": self.content_hash,
            "base": base,
            "trigger words": ", ".join(self.trigger_words) or "none recorded",
            "training": ", ".join(f"{name} {value}" for name, value in self.training.items()),
            "preview": f"a picture of {len(self.preview):,} bytes" if self.preview else "",
            "left out": f"{len(self.left_out):,} tensors that change no weight" if self.left_out else "",
            "matching": _matching(self),
        }
        return "\n".join(f"{name:<14} {value}" for name, value in rows.items() if value)

    @property
    def _exceptions(self) -> str:
        if not self.moved:
            return ""
        shown = [f"{columns} in {count:,} layer{'s' * (count > 1)}" for columns, count in list(self.moved.items())[:3]]
        return f" ({', '.join(shown)}{', ...' if len(self.moved) > 3 else ''})"


def read_info(path: str | os.PathLike[str]) -> Info:
    """The facts of an adapter or a file of the LoRA family, which is read and validated. Raises AdapterFileError."""
    path = Path(path)
    source = open_source(path)
    metadata, found = source.metadata, _of_adapter(source) if isinstance(source, AdapterSource) else _of_lora(source)
    whole, content = _hashes(path)
    return Info(
        **found,
        file=path.name,
        file_bytes=path.stat().st_size,
        title=metadata.get("modelspec.title", "") or metadata.get("ss_output_name", ""),
        family=source.family,
        layers=len(source.shapes),
        norms=len(source.gains),
        metadata={key: value for key, value in metadata.items() if key not in ("spectral.layers", THUMBNAIL, COVERS)},
        sha256=whole,
        content_hash=metadata.get("sshs_model_hash", "") or content,
        description=metadata.get("modelspec.description", ""),
        licence=metadata.get("modelspec.license", ""),
        author=metadata.get("modelspec.author", ""),
        training=_training(metadata),
        left_out=source.left_out,
        preview=preview_of(metadata),
    )


def _of_adapter(source: AdapterSource) -> dict[str, object]:
    adapter = source.adapter
    evidence = [layer.evidence for layer in adapter.layers.values() if layer.evidence is not None]
    return {
        "method": adapter.method.name,
        "columns": adapter.method.columns.text,
        "settings": adapter.method.settings,
        "profile": adapter.profile,
        "moved": _moved(adapter),
        "parameters": adapter.parameter_count,
        "base_name": adapter.base_name,
        "base_hash": adapter.metadata.get("spectral.base_hash", ""),
        "trigger_words": adapter.trigger_words,
        "fingerprints": sum(bool(found.fingerprint) for found in evidence),
        "probes": sum(found.probe is not None for found in evidence),
    }


def _of_lora(source: LoraFile) -> dict[str, object]:
    metadata = source.metadata
    phrase = metadata.get("modelspec.trigger_phrase", "")
    return {
        "method": source.kind,
        "columns": "",
        "settings": {},
        "profile": "",
        "moved": {},
        "parameters": sum(prod(shape) for shape in source.file.shapes.values() if prod(shape) > 1),
        "base_name": metadata.get("ss_sd_model_name", ""),
        "base_hash": metadata.get("ss_new_sd_model_hash", ""),
        "trigger_words": [word.strip() for word in phrase.split(",") if word.strip()],
        "fingerprints": 0,
        "probes": 0,
    }


def _training(metadata: Mapping[str, str]) -> dict[str, str]:
    said = {name: [metadata.get(key, "") for key in keys] for name, keys in _TRAINING.items()}
    first = {name: next((v for v in values if v not in _SILENT), "") for name, values in said.items()}
    return {name: value for name, value in first.items() if value}


def _hashes(path: Path) -> tuple[str, str]:
    """SHA-256 of the file and of its tensors' bytes."""
    whole, data = hashlib.sha256(), hashlib.sha256()
    with open_file(path) as f:
        head = f.read(8)
        header = f.read(int.from_bytes(head, "little"))
        whole.update(head + header)
        while chunk := f.read(1 << 20):
            whole.update(chunk)
            data.update(chunk)
    return whole.hexdigest(), data.hexdigest()


def _moved(adapter: Adapter) -> dict[str, int]:
    """How many layers use which columns, where these are not what the adapter's choice gives; the most used first."""
    counts: Counter[str] = Counter()
    for layer in adapter.layers.values():
        if layer.indices != adapter.method.columns.resolve(min(layer.matrix)):
            counts[_spelled(layer.indices)] += 1
    return dict(counts.most_common())


def _spelled(columns: tuple[int, ...]) -> str:
    first, last = columns[0], columns[-1]
    if last - first + 1 == len(columns):
        return f"{first}-{last}" if last > first else str(first)
    return ",".join(map(str, columns[:8])) + (",..." if len(columns) > 8 else "")


def _matching(info: Info) -> str:
    if not info.profile:
        return "changes the weights of every model that has its layers"
    if info.profile == "portable":
        return "carries its own directions; applies to any related base as trained"
    return f"needs the base it was trained on; {info.probes} layers carry a probe that tells how well a base fits"
