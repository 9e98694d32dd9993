"""Adapters on their way between nodes: which ones, how strongly, on which parts of the model."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from comfy_api.latest import io

if TYPE_CHECKING:
    from ..spectral.parts import Parts
    from ..spectral.source import Source

#: A tuple of `Use`, in the order in which they are applied.
ADAPTERS = io.Custom("SPECTRAL_ADAPTERS")
#: A `Parts`: how strongly each part of the model is changed.
PARTS = io.Custom("SPECTRAL_PARTS")

StrengthMode = Literal["linear", "spectral"]
Key = tuple[str, int, int]  # of a file: path, time of its last change in ns, bytes
UNET_PREFIX = "lora_unet_"
_KEPT = 512 << 20  # bytes of files whose contents stay in memory


class Made:
    """Stands for a source that lives in memory, as long as somebody holds that."""


@dataclass(frozen=True)
class Held:
    """A source of weight changes that can be had again: a file, or what a node has made. Make it with `file` or `made`.

    Two of the same file, unchanged since, are equal; what nodes have made is equal to itself only.
    """

    key: Key | Made
    source: Source | None = field(default=None, repr=False, compare=False)

    @classmethod
    def file(cls, path: str) -> Held:
        """The file as it is now. Raises OSError where there is none."""
        stat = os.stat(path)
        return cls((path, stat.st_mtime_ns, stat.st_size))

    @classmethod
    def made(cls, source: Source) -> Held:
        """A source that lives in memory."""
        return cls(Made(), source)

    @property
    def path(self) -> str | None:
        """The file, or None for what a node has made."""
        return None if isinstance(self.key, Made) else self.key[0]

    def open(self) -> Source:
        """The source; a file is read once and kept for a while. Raises AdapterFileError."""
        return _files.get(self.key) if self.source is None else self.source


@dataclass(frozen=True)
class Use:
    """One adapter as it is to be applied.

    name: what messages call it. model, clip: strengths of the diffusion model and of the text encoder, 0 leaves that
    side alone. parts: None changes all parts alike. mode: "linear" multiplies the change of the weights, "spectral"
    scales the adapter's own parameters, which only this package's methods have.
    """

    source: Held
    name: str
    model: float = 1.0
    clip: float = 1.0
    parts: Parts | None = None
    mode: StrengthMode = "linear"

    def strength(self, layer: str) -> float:
        """Of the side that a layer (kohya's spelling) belongs to; `parts` are not in it."""
        return self.model if layer.startswith(UNET_PREFIX) else self.clip


class _Files:
    """The sources that were read last, up to _KEPT bytes of files."""

    def __init__(self, read: Callable[[str], Source]):
        self._read = read
        self._kept: OrderedDict[Key, Source] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Source:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        found = self._read(key[0])
        with self._lock:
            self._kept[key] = found
            while sum(size for _, _, size in self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found


def _read(path: str) -> Source:
    # Imported at first use: the engine would slow down every start of ComfyUI.
    from ..spectral.open import open_source

    return open_source(path)


_files = _Files(_read)


def short_name(name: str) -> str:
    """A name of the adapter list without its ending."""
    return os.path.splitext(name)[0]
