"""Seconds until the adapters among 2,000 LoRA files of SDXL are known, by their headers.

    python benchmarks/lora_folder.py [--files 2000] [--repeats 5]

The files have the headers of kohya's LoRAs with every layer (2,166 tensors, some 40 KB of tag counts) and a hole for
data. first: nothing is known, the headers are not in memory (where the system can be asked to forget them). in_memory:
the same with the headers in the system's memory. next_start: from the store. again: in the same process. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import write

from spectral_adapters.spectral.known_files import KnownFiles

_TAGS = 2_500
_MODULES = 722
_PARTS = (("lora_down.weight", 40_960), ("lora_up.weight", 40_960), ("alpha", 2))


def fill(folder: Path, count: int) -> list[str]:
    """LoRA files without data, which file systems keep as holes; their paths."""
    table, end = {}, 0
    for module in range(_MODULES):
        for part, size in _PARTS:
            name = f"lora_unet_input_blocks_{module % 9}_1_transformer_blocks_{module % 10}_attn_{module}.{part}"
            table[name] = {"dtype": "F16", "shape": [size // 2], "data_offsets": [end, end + size]}
            end += size
    paths = [folder / f"{number:05}.safetensors" for number in range(count)]
    for number, path in enumerate(paths):
        tags = json.dumps({f"tag {each} of {number}": each for each in range(_TAGS)})
        header = json.dumps({"__metadata__": {"ss_tag_frequency": tags}, **table}).encode()
        with open(path, "wb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            f.truncate(8 + len(header) + end)
    return [str(path) for path in paths]


def forget(paths: Sequence[str]) -> None:
    """Ask the system to drop the files from memory; not every one can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    os.sync()
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def seconds(known: KnownFiles, paths: Sequence[str]) -> float:
    started = time.perf_counter()
    known.adapters(paths)
    return time.perf_counter() - started


def measure(paths: Sequence[str], store: Path) -> dict[str, float]:
    """One round."""
    forget(paths)
    first, known = seconds(KnownFiles(), paths), KnownFiles(store)
    in_memory = seconds(known, paths)
    again, next_start = seconds(known, paths), seconds(KnownFiles(store), paths)
    store.unlink()
    return {"first": first, "in_memory": in_memory, "next_start": next_start, "again": again}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=2000)
    options.add_argument("--repeats", type=int, default=5)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = fill(Path(folder), args.files)
        header = int.from_bytes(Path(paths[0]).read_bytes()[:8], "little")
        rounds = [measure(paths, Path(folder) / "store.json") for _ in range(args.repeats)]
    found = {name: round(statistics.median(each[name] for each in rounds), 4) for name in rounds[0]}
    write("lora_folder", {"files": args.files, "header_bytes": header, "seconds": found})


if __name__ == "__main__":
    main()
