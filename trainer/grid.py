"""A grid of pictures that differ in the checkpoint and the strength alone: which one to take is seen, not guessed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..spectral.adapter import Adapter
from ..spectral.cache import BasisCache
from ..spectral.errors import Cancelled, SettingError
from ..spectral.file import load
from . import files
from .dial import Dial
from .ending import is_out_of_memory
from .events import Listener, Phase, Progress, Sampled, silent
from .grid_request import GridAdapter, GridRequest
from .models import Base, load_base
from .sample_files import save_png
from .samples import Look, facts, sample, shots
from .setup import DTYPES
from .sheet import Row, opened, sheet
from .task import Done, Task

PICTURES, TABLE, SHEET = "grid", "grid.json", "sheet.png"


def make_grid(
    request: Mapping[str, Any],
    folder: Path,
    listen: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
    *,
    base: Base | None = None,
    cache: BasisCache | None = None,
) -> Done:
    """Make the grid that `request` asks for (`GridRequest.from_json`; `grid_request` makes one) in `folder`.

    grid/*.png are its pictures, made as `samples.sample` makes them. grid.json, written anew after each, says what is
    there: {"axes": GridRequest.axes, "cells": [{"checkpoint", "strength", "prompt": places on the axes, "name": file}],
    "made", "total", "made_of": hash of the request}; at strength 0 all checkpoints share a picture. sheet.png shows all
    at the end, events.jsonl says how it went. A stop is heard between pictures; begun again with the same request, only
    what is missing is made. `base` spares loading it; it is used in its own precision, and its weights are given back
    bit for bit. Raises SpectralError for what cannot be used.
    """
    with Task(folder, listen, stop) as task:
        table = _Table(folder, GridRequest.from_json(request))
        try:
            return task.end(_make(table, task, base, cache))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            text = f"Out of memory after {table.count}. Ask for smaller pictures, or free memory and begin it again."
            return task.end(Done("out_of_memory", text, resumable=True))


def grid_sheet(folder: Path, cell: int = 224) -> Image.Image:
    """All pictures of a grid that are there: a block per prompt, a row per checkpoint, a column per strength."""
    table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    axes = table["axes"]
    names = {(c["checkpoint"], c["strength"], c["prompt"]): c["name"] for c in table["cells"]}
    labels = [f"strength {s:g}" if s else "strength 0: the base alone" for s in axes["strengths"]]
    rows = []
    for p, prompt in enumerate(axes["prompts"]):
        for c, checkpoint in enumerate(axes["checkpoints"]):
            found = [names.get((c, s, p)) for s in range(len(labels))]
            pictures = [None if name is None else opened(folder / PICTURES / name, cell) for name in found]
            rows.append(Row(_title(checkpoint), pictures, labels, "" if c else f"{prompt}   (seed {axes['seed']})"))
    return sheet(rows, cell)


@dataclass
class _Table:
    """grid.json: which pictures are made already."""

    folder: Path
    wanted: GridRequest
    made: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        path = self.folder / TABLE
        if path.is_file():
            stored = _read(path)
            if stored.get("made_of") != self.wanted.digest:
                raise SettingError(
                    f"{self.folder}: found another grid, expected an empty folder or this one begun. Choose another "
                    "folder."
                )
            names = {cell["name"] for cell in stored["cells"]}
            self.made = {name for name in names if (self.folder / PICTURES / name).is_file()}
        self.write()

    @property
    def count(self) -> str:
        return f"{len(self.made)} of {self.wanted.pictures} pictures"

    def name(self, checkpoint: int, strength: int, prompt: int) -> str:
        """The file of a cell."""
        if self.wanted.strengths[strength] == 0:
            return f"base-p{prompt}.png"
        return f"c{checkpoint}-s{strength}-p{prompt}.png"

    def missing(self) -> Iterator[tuple[int, int, list[int]]]:
        """(checkpoint, strength, prompts) still to be made, each picture once, the base's first."""
        w = self.wanted
        zero = [s for s, strength in enumerate(w.strengths) if strength == 0]
        rest = [(c, s) for c in range(len(w.adapters)) for s in range(len(w.strengths)) if s not in zero]
        for c, s in [(0, s) for s in zero] + rest:
            prompts = [p for p in range(len(w.prompts)) if self.name(c, s, p) not in self.made]
            if prompts:
                yield c, s, prompts

    def write(self) -> None:
        """Raises SpectralError where the disk does not take it."""
        w = self.wanted
        places = [
            {"checkpoint": c, "strength": s, "prompt": p, "name": name}
            for c in range(len(w.adapters))
            for s in range(len(w.strengths))
            for p in range(len(w.prompts))
            if (name := self.name(c, s, p)) in self.made
        ]
        counts = {"made": len(self.made), "total": w.pictures}
        table = {"axes": w.axes, "cells": places, **counts, "made_of": w.digest}
        path = self.folder / TABLE
        try:
            files.make_folder(self.folder / PICTURES)
            files.write_bytes(path, json.dumps(table, indent=1).encode())
        except OSError as error:
            raise files.refusal("writing the grid", path, error, "Free some space and begin it again") from error


def _make(table: _Table, task: Task, base: Base | None, cache: BasisCache | None) -> Done:
    wanted = table.wanted
    task.tell(Phase("loading"))
    layers = set().union(*(_layers(row) for row in wanted.adapters))  # every file is read before the first picture
    device = _device(wanted)
    given, base = base, base or _load(wanted)
    dial = Dial(base, layers, cache=cache or BasisCache(), stop=task.stop)
    if given is None:
        base.cast(DTYPES[wanted.precision]).to(device)
    task.tell(Phase("sampling"))
    try:
        stopped = not _fill(table, dial, base, task)
    except Cancelled:
        stopped = True
    finally:
        dial.restore()
    if stopped:
        return Done("stopped", f"Stopped after {table.count}; begun again, only the others are made.", resumable=True)
    task.tell(Phase("saving"))
    save_png(task.folder / SHEET, grid_sheet(task.folder))
    return Done("finished", f"Made {wanted.pictures} pictures.", task.folder / SHEET)


def _fill(table: _Table, dial: Dial, base: Base, task: Task) -> bool:
    """Make every picture that is missing; False where a stop was asked for. Raises Cancelled for one in between."""
    wanted, mounted = table.wanted, None
    look = Look(_size(wanted, base), wanted.sampling_steps, wanted.guidance, wanted.negative)
    seen = shots(wanted.prompts, wanted.seed)
    for c, s, prompts in table.missing():
        if task.stop():
            return False
        row, strength = wanted.adapters[c], wanted.strengths[s]
        if strength and mounted != c:
            _mount(dial, load(row.path), table, task)
            mounted = c
        dial.turn(strength)
        for p in prompts:
            if task.stop():
                return False
            name, made_of = table.name(c, s, p), row.label if strength else "the base alone"
            picture = sample(base, [seen[p]], look)[0]
            path = task.folder / PICTURES / name
            save_png(path, picture, {"adapter": made_of, "strength": f"{strength:g}", **facts(seen[p], look)})
            table.made.add(name)
            table.write()
            task.tell(Progress(len(table.made), wanted.pictures, f"{made_of}, strength {strength:g}"))
            task.tell(Sampled(row.step if strength else 0, (path,), (seen[p].prompt,)))
    return True


def _mount(dial: Dial, adapter: Adapter, table: _Table, task: Task) -> None:
    if adapter.profile == "portable":
        dial.mount(adapter)
        return
    task.tell(Phase("decomposing"))
    dial.mount(adapter, lambda done, total, layer: task.tell(Progress(done, total, layer)))
    task.tell(Phase("sampling"))
    if table.made:
        task.tell(Progress(len(table.made), table.wanted.pictures, ""))


def _size(wanted: GridRequest, base: Base) -> tuple[int, int]:
    size = wanted.size or (base.resolution, base.resolution)
    if any(side % base.multiple for side in size):
        raise SettingError(
            f"grid: found pictures of {size[0]} x {size[1]} pixels, expected sides divisible by {base.multiple} for "
            f"{base.name}"
        )
    return size


def _layers(row: GridAdapter) -> set[str]:
    adapter = load(row.path)
    return {*adapter.layers, *adapter.gains}


def _load(wanted: GridRequest) -> Base:
    # In half precision the file's own numbers are kept until every change is made of them.
    kept = torch.float32 if wanted.precision == "fp32" else None
    return load_base(wanted.base, wanted.tokenizer, prediction=wanted.prediction, dtype=kept)


def _device(wanted: GridRequest) -> torch.device:
    name = wanted.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch built without CUDA
        raise SettingError(f"grid: found device={name!r}, expected one that this machine has ({error})") from error
    if wanted.precision == "fp16" and device.type == "cpu":
        raise SettingError("precision=fp16 needs a GPU, and this grid is made on the CPU; use bf16 or fp32")
    return device


def _title(checkpoint: Mapping[str, Any]) -> str:
    loss = checkpoint["loss"]
    return checkpoint["label"] + (f" (held-out loss {loss:.4f})" if loss is not None else "")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: found {error}; expected a grid's table as JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("cells"), list):
        raise SettingError(f"{path}: found another kind of file; expected a grid's table as JSON")
    return found
