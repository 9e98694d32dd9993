"""The training sets: pictures and captions rendered from a seed into a work folder."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch.multiprocessing as mp
from pictures import SIZE, caption, random_picture, random_reserved_picture, render

RESERVED_SHARE = 0.25


def make_picture(kind: str, seed: int, index: int) -> tuple[np.ndarray, str]:
    """Picture number `index` of the set `kind`: "base" (base patterns only) or "vae" (a quarter reserved patterns)."""
    rng = np.random.default_rng((seed, {"base": 0, "vae": 1, "judge": 2}[kind], index))
    reserved = kind != "base" and rng.random() < RESERVED_SHARE
    picture = random_reserved_picture(rng) if reserved else random_picture(rng)
    return render(picture, rng), "" if reserved else caption(picture, rng)


def _render_part(rank: int, world: int, path: Path, kind: str, count: int, seed: int) -> None:
    pictures = np.load(path, mmap_mode="r+")
    captions = {}
    for index in range(rank, count, world):
        pictures[index], captions[index] = make_picture(kind, seed, index)
    pictures.flush()
    path.with_suffix(f".{rank}.json").write_text(json.dumps(captions))


def render_set(work: Path, kind: str, count: int, seed: int, world: int) -> None:
    """Write `work`/<kind>_pictures.npy (count, SIZE, SIZE, 3) and `work`/<kind>_captions.json, unless they exist."""
    path, captions_path = work / f"{kind}_pictures.npy", work / f"{kind}_captions.json"
    if captions_path.exists():
        return
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, SIZE, SIZE, 3)).flush()
    mp.spawn(_render_part, args=(world, path, kind, count, seed), nprocs=world, join=True)
    captions: dict[str, str] = {}
    for rank in range(world):
        part = path.with_suffix(f".{rank}.json")
        captions.update(json.loads(part.read_text()))
        part.unlink()
    captions_path.write_text(json.dumps([captions[str(i)] for i in range(count)]))


def set_hash(work: Path, kind: str) -> str:
    """SHA-256 over the pictures and captions of a set."""
    digest = hashlib.sha256(np.load(work / f"{kind}_pictures.npy", mmap_mode="r").tobytes())
    digest.update((work / f"{kind}_captions.json").read_bytes())
    return digest.hexdigest()
