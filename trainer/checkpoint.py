"""Checkpoints that a power cut cannot spoil: `step-000100/` with state.pt, adapter.safetensors and manifest.json.

The manifest holds sizes and SHA-256 of the other files and is written last, in a folder that gets its name by one
rename. So a folder is complete or is no checkpoint; readers take the newest complete one and say what they skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import pickle
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..spectral.errors import AdapterFileError, SpectralError
from . import files

if TYPE_CHECKING:  # pages that only look for checkpoints do without torch
    from torch import Tensor

FORMAT = 1
STATE, ADAPTER, MANIFEST, BEST = "state.pt", "adapter.safetensors", "manifest.json", "best.json"
_NAME = re.compile(r"step-(\d{6,})")
_PLAIN = (type(None), bool, int, float, str, bytes)


@dataclass
class State:
    """All that a run needs to go on as if it had never stopped.

    step: optimiser steps done. tensors: the adapter's parameters by name, as they are stepped. optimizers, scaler,
    ema: state_dicts (of schedules too, where they have one). progress: the loop's own counts and losses. spec:
    TrainSpec.as_json(). facts: see resume.facts. Tensors come back on the CPU, bit for bit.
    """

    step: int
    tensors: dict[str, Tensor]
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] | None = None
    ema: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: the newest `keep` and the best stay. Only one process may save at a time."""

    folder: Path
    keep: int = 3

    def save(
        self, state: State, write_adapter: Callable[[Path], object] | None = None, *, best: float | None = None
    ) -> Path:
        """Write the checkpoint of `state.step`, then remove those that are not kept. Its folder.

        `write_adapter(path)` writes the adapter file to a path that does not exist yet. `best` is the validation loss
        of a step that has the lowest so far. A complete checkpoint of the same step stays as it is, since one run comes
        to a step in one way only. Raises SpectralError when the disk is full or closed; nothing is lost then.
        """
        final = self.path(state.step)
        if not (final.exists() and fault(final) is None):
            data = serialise(state)
            try:
                files.make_folder(self.folder)
                files.clean(self.folder)
                self.need(len(data) + _bytes(state.tensors))
                _write(final, state.step, data, write_adapter, best)
            except (OSError, AdapterFileError) as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                if not isinstance(cause, OSError):
                    raise
                raise files.refusal(f"saving step {state.step}", self.folder, cause, self._advice()) from error
        if best is not None:
            self.mark_best(state.step, best)
        self._retire(final)
        return final

    def adopt(self, step: int, fill: Callable[[Path], None]) -> Path:
        """Make the checkpoint of `step` from files that another trainer wrote, then remove those that are not kept.

        `fill` puts them, an adapter file among them, into an empty folder. Raises SpectralError as `save` does.
        """
        final = self.path(step)
        try:
            files.make_folder(self.folder)
            files.clean(self.folder)
            with files.new_folder(final) as folder:
                fill(folder)
                _write_manifest(folder, step)
        except OSError as error:
            raise files.refusal(f"saving step {step}", self.folder, error, self._advice()) from error
        self._retire(final)
        return final

    def latest(self) -> tuple[Path | None, list[tuple[Path, str]]]:
        """The newest complete checkpoint, and the newer ones that had to be skipped with the reason.

        Raises SpectralError where a newer version of this package wrote the newest one.
        """
        skipped = []
        for path in reversed(self.steps()):
            reason = fault(path)
            if reason is None:
                return path, skipped
            skipped.append((path, reason))
        return None, skipped

    def best(self) -> Path | None:
        """The complete checkpoint with the lowest validation loss among those marked best."""
        return next((path for _, path in sorted(self._marked()) if fault(path) is None), None)

    def mark_best(self, step: int, loss: float) -> None:
        """Remember that the checkpoint of `step` has the lowest validation loss so far.

        Raises SpectralError where there is no such checkpoint or the pointer cannot be written.
        """
        path = self.path(step)
        if not math.isfinite(loss) or fault(path, contents=False) is not None:
            raise SpectralError(
                f"{path}: found a loss of {loss} and {'a' if path.exists() else 'no'} checkpoint; expected a finite "
                "loss and a complete checkpoint. Save the step before marking it."
            )
        try:
            files.write_bytes(self.folder / BEST, _json({"step": step, "loss": float(loss)}))
        except OSError as error:
            raise files.refusal("marking the best checkpoint", self.folder, error, self._advice()) from error

    def load(self, path: Path) -> State:
        """Read a checkpoint after checking its hashes; no code in it is run. Raises SpectralError."""
        if (reason := fault(path)) is not None:
            raise SpectralError(f"{path}: found that {reason}; expected a complete checkpoint. Choose another one.")
        if not (path / STATE).is_file():
            raise SpectralError(
                f"{path}: found no {STATE}; expected a checkpoint of this trainer. sd-scripts made this one: go on "
                "with it by the command kohya, or train anew with another run folder."
            )
        import torch

        try:
            values = torch.load(path / STATE, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
            raise SpectralError(f"{path / STATE} cannot be read with torch {torch.__version__}: {error}") from error
        names = {f.name for f in fields(State)}
        if not isinstance(values, dict) or set(values) != names:
            found = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise SpectralError(f"{path / STATE}: found {found}; expected {sorted(names)}. It is no training state.")
        return State(**values)

    def need(self, size: int, count: int = 1) -> None:
        """Raise SpectralError unless the disk has room for `count` checkpoints of `size` bytes."""
        files.require_space(self.folder, size * count, "a checkpoint" if count == 1 else f"{count} checkpoints")

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step, whether it exists or not."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[Path]:
        """Every folder named like a checkpoint, complete or not, by ascending step."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((p for p in found if p.is_dir() and _NAME.fullmatch(p.name)), key=step_of)

    def clean(self) -> None:
        """Remove what killed saves left behind; never a folder named like a checkpoint."""
        files.clean(self.folder)

    def _marked(self) -> list[tuple[float, Path]]:
        """(loss, folder) of every checkpoint that was the best when it was saved, or marked so later."""
        marked = []
        # A kill between a save and its mark would leave the pointer behind, so the manifests count as well.
        for path in self.steps():
            manifest = _read(path / MANIFEST)
            if isinstance(manifest, dict) and isinstance(manifest.get("best"), float):
                marked.append((manifest["best"], path))
        pointer = _read(self.folder / BEST)
        if isinstance(pointer, dict) and isinstance(pointer.get("loss"), float) and type(pointer.get("step")) is int:
            marked.append((pointer["loss"], self.path(pointer["step"])))
        return [(loss, path) for loss, path in marked if not _is_newer(path)]

    def _retire(self, newest: Path) -> None:
        """Remove all but the newest checkpoints and the best; `newest` has just been completed."""
        older = [p for p in self.steps() if step_of(p) < step_of(newest) and not _is_newer(p)]
        whole = [p for p in older if fault(p, contents=False) is None]
        kept = {self.best(), *whole[max(0, len(whole) - self.keep + 1) :]}
        for path in older:
            if path not in kept:
                # An old checkpoint that stays costs space only, and the next save tries again.
                with contextlib.suppress(OSError):
                    files.discard_folder(path)

    def _advice(self) -> str:
        whole = (p for p in reversed(self.steps()) if not _is_newer(p) and fault(p, contents=False) is None)
        last = next(map(step_of, whole), None)
        kept = "No checkpoint had been saved before" if last is None else f"The checkpoint of step {last} is intact"
        return f"{kept}; free some space or choose another folder with run, then resume"


def fault(path: Path, *, contents: bool = True) -> str | None:
    """Why a checkpoint folder cannot be trusted, or None; `contents` False compares sizes but no hashes.

    Raises SpectralError for one written by a newer version of this package, which only that version can judge.
    """
    manifest = _read(path / MANIFEST)
    if manifest is None:
        return f"{MANIFEST} is {'damaged' if (path / MANIFEST).exists() else 'missing'}"
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != _digest(manifest):
        return f"{MANIFEST} is damaged"
    if manifest["format"] != FORMAT:
        raise SpectralError(
            f"{path}: found checkpoint format {manifest['format']}, expected {FORMAT}. A newer version of this package "
            "wrote it: update the package, or move this folder away to go on from an older checkpoint."
        )
    if path.name != f"step-{manifest['step']:06d}":
        return f"it is the checkpoint of step {manifest['step']} under another name"
    for name, entry in manifest["files"].items():
        if (reason := _damage(path / name, entry["bytes"], entry["sha256"] if contents else None)) is not None:
            return reason
    return None


def step_of(path: Path) -> int:
    """100 for step-000100."""
    return int(path.name.removeprefix("step-"))


def serialise(state: State) -> memoryview:
    """state.pt as bytes. Raises SpectralError for a value that could not be read back without running code."""
    import torch

    values = {f.name: _plain(getattr(state, f.name), f.name) for f in fields(state)}
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getbuffer()


def _write(
    final: Path, step: int, data: memoryview, write_adapter: Callable[[Path], object] | None, best: float | None
) -> None:
    with files.new_folder(final) as folder:
        table = {STATE: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
        files.write_new(folder / STATE, data)
        if write_adapter is not None:
            adapter = folder / ADAPTER
            write_adapter(adapter)
            files.sync_file(adapter)
            table[ADAPTER] = {"bytes": adapter.stat().st_size, "sha256": files.digest(adapter)}
        manifest: dict[str, Any] = {"format": FORMAT, "step": step, "saved": time.time(), "files": table}
        if best is not None:
            manifest["best"] = float(best)
        files.write_new(folder / MANIFEST, _json({**manifest, "digest": _digest(manifest)}))


def _write_manifest(folder: Path, step: int) -> None:
    """Sync every file of the folder and its sub-folders, then list them."""
    table = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        files.sync_file(path)
        table[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": files.digest(path)}
    manifest = {"format": FORMAT, "step": step, "saved": time.time(), "files": table}
    files.write_new(folder / MANIFEST, _json({**manifest, "digest": _digest(manifest)}))


def _damage(path: Path, size: int, digest: str | None) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{path.name} has {found} bytes instead of {size}"
        if digest is not None and files.digest(path) != digest:
            return f"{path.name} is damaged: its SHA-256 differs from the manifest's"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return None


def _is_newer(path: Path) -> bool:
    """Whether a newer version of this package wrote the checkpoint, which is then not ours to judge or remove."""
    try:
        fault(path, contents=False)
    except SpectralError:
        return True
    return False


def _read(path: Path) -> Any:
    """The JSON value of a file, or None."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    """Tells a manifest with a flipped bit from one that a newer version wrote."""
    return hashlib.sha256(_json(manifest)).hexdigest()


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _plain(value: Any, where: str) -> Any:
    """The value with its tensors on the CPU, in types that torch.load takes without running code."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # A view would bring the whole storage it looks into.
        return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
    if type(value) in (*_PLAIN, torch.dtype):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    raise SpectralError(
        f"{where}: found a {type(value).__name__}, expected tensors, numbers, texts, lists and tables. A checkpoint "
        "cannot hold it; choose another optimizer."
    )
