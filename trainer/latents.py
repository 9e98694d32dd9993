"""Encoded pictures and captions, kept in memory or on disk.

Every entry is encoded alone, never as part of a batch: a kept entry is then bit for bit what encoding it anew gives,
whichever neighbours it has. On disk an entry is found by its content: the bytes of the picture and its mask, how it is
cut, and the weights that encode it. The disk cache is capped ($SPECTRAL_ADAPTERS_CACHE_GB, 10 GB without it; the least
recently used go first), and what one run needs beyond the cap it keeps in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..spectral.cache import BasisCache, default_folder
from ..spectral.errors import SettingError
from .base import Base, Text
from .decode import decode
from .folder import Picture
from .picture_tensors import mask_tensor, to_tensor
from .pictures import Crop, Size, as_mask, cut, on_white, opacity, scale
from .spec import CachePlace

_VERSION = 1  # part of every key: raise it when decoding, cutting or encoding changes
_HEADER = 400  # bytes of a file beside its tensors
_SHARE = 0.9  # of the cap that one run may fill, because room is made ahead
_AHEAD = 100  # entries for which room is made at a time: looking for it reads the whole folder
_CHUNK = 16  # pictures in memory at a time while encoding
_READERS = 4  # of them decoded at once
_PART = "sample"

Entry = dict[str, Tensor]
Pair = tuple[Image.Image, Image.Image | None]  # a picture and its mask


class Store(Protocol):
    """Where entries are kept."""

    def get(self, key: str) -> Entry | None: ...

    def put(self, key: str, entry: Entry) -> None: ...


class NoStore:
    """Keeps nothing."""

    def get(self, _key: str) -> Entry | None:
        return None

    def put(self, _key: str, _entry: Entry) -> None:
        return


class MemoryStore:
    """Keeps entries in the process."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        self._entries[key] = entry


class DiskStore:
    """Keeps entries in a folder that runs and processes share; a damaged one counts as absent and is told."""

    def __init__(self, folder: Path | None, notice: Callable[[str], None], max_bytes: int | None = None):
        self._files = _Files(folder or default_folder() / "samples", max_bytes)
        self._memory = MemoryStore()
        self._notice = notice
        self._told = False
        self._mine: set[str] = set()  # entries of this run, so that making room never costs one of them
        self._used = 0

    def get(self, key: str) -> Entry | None:
        if (kept := self._memory.get(key)) is not None:
            return kept
        damaged = self._files.stats.damaged
        entry = self._files.get(key, _PART)
        if self._files.stats.damaged > damaged:
            self._notice(f"the cached {self._files.path(key, _PART)} is damaged and is made again")
        if entry is not None:
            self._count(key, entry)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Never fails: what the folder cannot take stays in memory."""
        fits = self._used + _bytes(entry) <= self._files.max_bytes * _SHARE
        if fits:
            self._files.put(key, _PART, entry)
        if fits and self._files.path(key, _PART).exists():
            self._count(key, entry)
            return
        self._memory.put(key, entry)
        if not self._told:
            self._told = True
            why = "cannot be written" if fits else f"is full ({self._files.max_bytes / 1e9:g} GB)"
            self._notice(f"the cache folder {self._files.folder} {why}; encoded pictures are kept in memory instead")

    def _count(self, key: str, entry: Entry) -> None:
        if key not in self._mine:
            self._mine.add(key)
            self._used += _bytes(entry)


class _Files(BasisCache):
    """The basis cache's files, with room made for many small entries at a time."""

    _room = 0

    def _make_room(self, need: int) -> None:
        if self._room < need:
            self._room = max(need, min(need * _AHEAD, self.max_bytes // 20))
            super()._make_room(self._room)
        self._room -= need


def _bytes(entry: Entry) -> int:
    """About the size of its file."""
    return _HEADER + sum(t.numel() * t.element_size() for t in entry.values())


def store(place: CachePlace, folder: Path | None, notice: Callable[[str], None]) -> Store:
    """The place that the setting latent_cache names."""
    match place:
        case "memory":
            return MemoryStore()
        case "disk":
            return DiskStore(folder, notice)
        case "none":
            return NoStore()


class Sample(NamedTuple):
    """Latents (C, h, w) and the mask (1, h, w) in [0, 1], or None without one; float32 on the CPU."""

    latents: Tensor
    mask: Tensor | None


class Encoder:
    """Pictures to latents and captions to text states, by one base, through a store.

    `shelf` is the memory in bytes for decoded pictures, for samples that are not kept.
    """

    def __init__(self, base: Base, store: Store, shelf: int = 0):
        self.base, self.store = base, store
        self._shelf = Shelf(shelf)

    def samples(self, wanted: Sequence[tuple[Picture, Crop]], keep: bool = True) -> Iterator[Sample]:
        """Each picture's latents and mask, in order; without `keep` nothing is looked up or kept."""
        for at in range(0, len(wanted), _CHUNK):
            chunk = wanted[at : at + _CHUNK]
            keys = [self._picture_key(*each) if keep else "" for each in chunk]
            found = [self.store.get(key) if keep else None for key in keys]
            loaded = self._load([each for each, entry in zip(chunk, found) if entry is None])
            for key, entry in zip(keys, found):
                if entry is None:
                    entry = self._encode(*next(loaded))
                    if keep:
                        self.store.put(key, entry)
                yield Sample(entry["latents"], entry.get("mask"))

    def _load(self, wanted: list[tuple[Picture, Crop]]) -> Iterator[tuple[Tensor, Tensor | None]]:
        if wanted:
            with ThreadPoolExecutor(_READERS) as pool:
                yield from pool.map(lambda each: load(*each, self.base.scale, self._shelf), wanted)

    @torch.no_grad()
    def _encode(self, pixels: Tensor, mask: Tensor | None) -> Entry:
        latents = self.base.latents(pixels[None])[0].float().cpu()
        return {"latents": latents} if mask is None else {"latents": latents, "mask": mask}

    @torch.no_grad()
    def text(self, caption: str) -> Text:
        """The text states of one caption (1, L, D) and (1, P), float32 on the CPU."""
        key = self._text_key(caption)
        entry = self.store.get(key)
        if entry is None:
            text = self.base.encode([caption]).to("cpu", torch.float32)
            entry = {"states": text.states} | ({} if text.pooled is None else {"pooled": text.pooled})
            self.store.put(key, entry)
        return Text(entry["states"], entry.get("pooled"))

    def _picture_key(self, picture: Picture, crop: Crop) -> str:
        return _key("picture", self._vae, picture.digest, picture.mask_digest, picture.alpha, astuple(crop))

    def _text_key(self, caption: str) -> str:
        # Token ids and not words, because what is encoded depends on the tokenizer as well.
        return _key("text", self._text_encoders, [t(caption).input_ids for t in self.base.tokenizers])

    @cached_property
    def _vae(self) -> str:
        config = self.base.vae.config
        settings = [config.scaling_factor, config.get("shift_factor"), self.base.scale]
        return _identity(self.base.vae, settings) if isinstance(self.store, DiskStore) else ""

    @cached_property
    def _text_encoders(self) -> list[str]:
        if not isinstance(self.store, DiskStore):
            return []
        return [
            _identity(e, [e.config.hidden_act, e.config.num_attention_heads, e.config.max_position_embeddings])
            for e in self.base.text_encoders
        ]


class Shelf:
    """Pictures and masks, decoded and scaled but not cut: what can be kept where random crops follow."""

    def __init__(self, max_bytes: int = 0):
        self._left = max_bytes
        self._pairs: dict[tuple[str, str, Size], Pair] = {}
        # Several threads take at once, and a batch may hold one picture twice: it is decoded by the first of them.
        self._busy: dict[tuple[str, str, Size], Lock] = {}
        self._guard = Lock()

    def take(self, picture: Picture, size: Size) -> Pair:
        """The picture, RGB, and its mask in grey, each `size` large; kept while there is room."""
        key = (picture.digest, picture.mask_digest, size)
        with self._guard:
            busy = self._busy.setdefault(key, Lock())
        with busy:
            if (kept := self._pairs.get(key)) is not None:
                return kept
            pair = _open(picture, size)
            self._keep(key, pair, 4 * size[0] * size[1])
        return pair

    def _keep(self, key: tuple[str, str, Size], pair: Pair, need: int) -> None:
        with self._guard:
            if need <= self._left:
                self._left -= need
                self._pairs[key] = pair


def _open(picture: Picture, size: Size) -> Pair:
    image = decode(_unchanged(picture.path, picture.digest))
    mask = opacity(image) if picture.alpha else None
    if picture.mask is not None:
        mask = as_mask(decode(_unchanged(picture.mask, picture.mask_digest)))
    return scale(on_white(image), size), None if mask is None else scale(mask, size, Image.Resampling.BOX)


def load(picture: Picture, crop: Crop, pixels: int, shelf: Shelf | None = None) -> tuple[Tensor, Tensor | None]:
    """Colours (3, H, W) in [-1, 1] and the mask (1, H/pixels, W/pixels) of one sample.

    Raises SettingError where a file is no longer what was checked.
    """
    image, mask = (shelf or Shelf()).take(picture, crop.scaled)
    return to_tensor(cut(image, crop)), None if mask is None else mask_tensor(mask, crop, pixels)


def _unchanged(path: Path, digest: str) -> bytes:
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise SettingError(
            f"{path} can no longer be read ({error.strerror or error}); put it back and resume"
        ) from error
    if hashlib.sha256(blob).hexdigest() != digest:
        raise SettingError(f"{path} has changed since it was checked; start the training anew")
    return blob


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()


def _identity(module: nn.Module, settings: list[object]) -> str:
    """A hash of a module's weights as they are, bits and precision, and of the settings beside them."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
