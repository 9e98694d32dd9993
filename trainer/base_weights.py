"""A base model's weights by layer name, read one by one when asked for: for work that needs no module and no picture.

Beside what is asked for nothing is in memory, so two checkpoints of SDXL can be compared on a small machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..spectral import names
from .base import BaseModelError
from .configs import ASSETS
from .single_file import layers_of

TINY = "tiny"
_PARTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class _InFolder:
    """A weight in one of a diffusers folder's files. path: of its module."""

    file: safe_open
    key: str
    path: str
    shape: tuple[int, ...]

    def __call__(self) -> Tensor:
        try:
            return self.file.get_tensor(self.key)
        except (SafetensorError, OSError) as error:
            raise BaseModelError(f"{self.key} cannot be read ({error}). Download the model again.") from error


class BaseWeights(Mapping[str, Callable[[], Tensor]]):
    """{layer name: function that reads its weight} of every Linear, Conv2d and norm, with the bits of the files.

    name and family as `Base` has them; shapes {layer: shape}; paths {layer: path of its module}; file_hash: SHA-256 of
    the checkpoint, for a folder of the UNet's files (read when asked for).
    """

    def __init__(self, name: str, family: names.Family | None, layers: Mapping, files: tuple[Path, ...]):
        self.name, self.family, self._layers, self._files = name, family, layers, files
        self.shapes = {layer: found.shape for layer, found in layers.items()}
        self.paths = {layer: found.path for layer, found in layers.items()}

    def __getitem__(self, layer: str) -> Callable[[], Tensor]:
        return self._layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @cached_property
    def file_hash(self) -> str:
        digest = hashlib.sha256()
        for path in self._files:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()


def open_base(source: str) -> BaseWeights:
    """The weights at `source`: the word "tiny", a diffusers folder, or a single-file `.safetensors` checkpoint.

    Raises BaseModelError with what was found, what was expected and what to do.
    """
    path = ASSETS / "tiny_base" if source == TINY else Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        family, layers = layers_of(path)
        return BaseWeights(path.stem, family, layers, (path,))
    raise BaseModelError(
        f"no base model at {path}. Give the word {TINY!r}, a diffusers folder, or a .safetensors checkpoint."
    )


def is_base(source: str) -> bool:
    """Whether `source` is meant as a whole model: "tiny", a folder, or a file with a checkpoint's UNet inside."""
    path = Path(source).expanduser()
    if source == TINY or path.is_dir():
        return True
    try:
        with safe_open(path, framework="pt") as file:
            return any(key.startswith(names.UNET_ROOT) for key in file.keys())  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError):
        return False  # who opens it as an adapter says what it is


def _folder(folder: Path) -> BaseWeights:
    if not (folder / "model_index.json").is_file():
        raise BaseModelError(f"{folder} has no model_index.json, so it is not a model folder in diffusers' layout.")
    parts = [part for part in _PARTS if (folder / part).is_dir()]
    files = {part: _files(folder / part) for part in parts}
    if "unet" not in parts:
        raise BaseModelError(f"{folder} has no folder unet; expected a Stable Diffusion model in diffusers' layout.")
    family = _family(folder / "unet", {found.path for found in _stored(files["unet"])})
    texts = names.TEXT_PREFIXES["sdxl" if "text_encoder_2" in parts else "sd1"]
    layers = {}
    for part, prefix in zip(parts, (names.UNET_PREFIX, *texts)):
        rename = names.renamer(prefix, family if part == "unet" else None)
        layers |= {rename(found.path): found for found in _stored(files[part])}
    return BaseWeights(folder.resolve().name, family, layers, files["unet"])


def _files(folder: Path) -> tuple[Path, ...]:
    """The plain files where there are some, else those of the fp16 variant."""
    found = sorted(folder.glob("*.safetensors"))
    files = tuple(path for path in found if ".fp16." not in path.name) or tuple(found)
    if not files:
        raise BaseModelError(f"{folder} holds no weights in .safetensors; download the model in that form.")
    return files


def _stored(files: tuple[Path, ...]) -> Iterator[_InFolder]:
    """Every weight of a Linear, Conv2d or norm."""
    for path in files:
        try:
            file = safe_open(path, framework="pt")
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise BaseModelError(
                f"{path} cannot be read as a safetensors file ({error}). Download it again."
            ) from error
        for key, shape in shapes.items():
            owner, _, part = key.rpartition(".")
            if part == "weight" and ".embeddings." not in f".{owner}":
                yield _InFolder(file, key, owner, shape)


def _family(unet: Path, paths: set[str]) -> names.Family | None:
    """As `configs.unet_family`: by the text's width and by having exactly the family's layers."""
    config = unet / "config.json"
    try:
        width = json.loads(config.read_text(encoding="utf-8")).get("cross_attention_dim")
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{config} is no readable JSON ({error}). Download it again.") from error
    family = names.CROSS_WIDTH.get(width) if isinstance(width, int) else None
    return family if family and paths == {module.diffusers for module in names.unet_modules(family)} else None
