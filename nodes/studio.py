"""The process's one studio: training with ComfyUI's folders, beside ComfyUI's queue."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import comfy.cli_args
import folder_paths
from server import PromptServer

from ..trainer.jobs.host import Host
from ..trainer.jobs.job import Entry
from ..trainer.places import ROOTS_FILE, NameFault, Places, check_name, read_roots
from ..trainer.studio import Studio
from . import folder

EVENT = "spectral_adapters"
DATASETS = "datasets"
_DIFFUSERS = "diffusers"
_RELEASE_SECONDS = 5.0


@cache
def studio() -> Studio:
    """The studio of this process, made at first use and not yet started."""
    # Trainings take CLIP's tokenizer from there; they cannot import ComfyUI.
    os.environ.setdefault("COMFYUI_DIR", str(Path(comfy.cli_args.__file__).parent.parent))
    return Studio(_places(), host())


@cache
def host() -> ComfyHost:
    """ComfyUI, as the jobs see it."""
    return ComfyHost()


def listens_on_loopback() -> bool:
    """Whether only this machine can reach ComfyUI."""
    return all(
        address.strip() in ("127.0.0.1", "::1", "localhost") for address in comfy.cli_args.args.listen.split(",")
    )


class ComfyHost(Host):
    """ComfyUI's queue and models, and its open pages."""

    name = "ComfyUI"

    def __init__(self) -> None:
        # Opening a folder shows it on the server's screen, which only a user of this machine sees.
        self.can = frozenset({"graph", "open"} if listens_on_loopback() else {"graph"})
        self._waiting = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While a node waits for a job, ComfyUI computes nothing, and the node itself decides what to unload."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def idle(self) -> bool:
        """Whether ComfyUI computes nothing and has nothing queued that it could begin."""
        return self._waiting > 0 or PromptServer.instance.prompt_queue.get_tasks_remaining() == 0

    def release(self) -> None:
        """Ask ComfyUI to unload its models and give the memory back; it does so after the workflow that runs."""
        if self._waiting:
            return
        queue = PromptServer.instance.prompt_queue
        queue.set_flag("unload_models", True)
        queue.set_flag("free_memory", True)
        deadline = time.monotonic() + _RELEASE_SECONDS
        while queue.get_flags(reset=False) and self.idle() and time.monotonic() < deadline:
            time.sleep(0.1)

    def changed(self, entry: Entry) -> None:
        """Tell the open pages about a job."""
        server = PromptServer.instance
        if server.loop.is_closed():  # ComfyUI is ending
            return
        state = entry.state
        about = {"id": entry.job.id, "kind": entry.job.kind, "name": entry.job.name}
        server.send_sync(EVENT, {**about, "status": state.status, "text": state.text})


def _home() -> Path:
    return Path(folder_paths.get_user_directory()) / folder.FOLDER


def _datasets() -> str:
    return os.path.join(folder_paths.base_path, DATASETS)


def _places() -> Places:
    os.makedirs(_datasets(), exist_ok=True)
    # Newer ComfyUI has it already, and then this changes nothing.
    folder_paths.add_model_folder_path(DATASETS, _datasets())
    return Places(
        home=_home(),
        roots=_roots,
        uploads=DATASETS,
        adapters=Path(folder_paths.get_output_directory()) / folder.FOLDER,
        bases=_bases,
        adapter_files=_adapter_files,
        lora_files=_lora_files,
        loras=Path(folder_paths.get_output_directory()) / folder.LORAS,  # ComfyUI looks for LoRA files there too
    )


def _roots() -> Mapping[str, Path]:
    """Where pictures to train on lie: ComfyUI's input, every `datasets` folder, extra_model_paths.yaml's too, and what
    the user has put into roots.json."""
    roots = {"input": Path(folder_paths.get_input_directory()), DATASETS: Path(_datasets())}
    roots |= read_roots(_home() / ROOTS_FILE)
    for path in map(Path, folder_paths.get_folder_paths(DATASETS)):
        if path not in roots.values():
            roots[_free_name(path.name, roots)] = path
    return roots


def _free_name(wanted: str, taken: Mapping[str, Path]) -> str:
    try:
        name = check_name(wanted, "the folder's name")
    except NameFault:
        name = DATASETS
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(free for free in names if free not in taken)


def _adapter_files() -> Mapping[str, Path]:
    """Adapters under their names in the loader; links that lead nowhere are listed there too, and left out here."""
    return _there(folder.files()[0])


def _lora_files() -> Mapping[str, Path]:
    """ComfyUI's LoRA files, as loras/NAME, which can be looked into and mixed."""
    return _there(folder.files()[1])


def _there(files: Mapping[str, str | None]) -> dict[str, Path]:
    return {name: Path(path) for name, path in files.items() if path is not None}


def _bases() -> Mapping[str, Path]:
    """Checkpoints under their names in *Load Checkpoint*, and diffusers folders as diffusers/NAME."""
    found: dict[str, Path] = {}
    for name in folder_paths.get_filename_list("checkpoints"):
        path = folder_paths.get_full_path("checkpoints", name)
        if path is not None and name.lower().endswith(".safetensors"):
            found[name] = Path(path)
    for root in map(Path, folder_paths.get_folder_paths(_DIFFUSERS)):
        for index in sorted(root.glob("*/model_index.json")):
            found.setdefault(f"{_DIFFUSERS}/{index.parent.name}", index.parent)
    return found
