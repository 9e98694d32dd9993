"""The model folders that adapters are picked from."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import folder_paths

from ..spectral.known_files import KnownFiles
from ..trainer.places import LORA_SUFFIX

FOLDER = "spectral_adapters"
EXTENSIONS = {".safetensors"}
LORAS = "loras"  # ComfyUI's folders; their files are named loras/NAME, whether they are LoRAs or adapters


def register() -> None:
    """Adds models/spectral_adapters and output/spectral_adapters behind what extra_model_paths.yaml has named."""
    models = os.path.join(folder_paths.models_dir, FOLDER)
    os.makedirs(models, exist_ok=True)
    folder_paths.add_model_folder_path(FOLDER, models)
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.get_output_directory(), FOLDER))
    # ComfyUI starts a new folder with an empty extension set, which lists every file.
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, EXTENSIONS)


def names() -> list[str]:
    """The adapters to choose from, as shown in the combo; those in ComfyUI's LoRA folders as loras/NAME.

    The LoRAs that were exported beside adapters are none.
    """
    return list(files()[0])


def lora_names() -> list[str]:
    """The other files of ComfyUI's LoRA folders, as loras/NAME."""
    return list(files()[1])


def all_names() -> list[str]:
    """`names` and `lora_names`."""
    own, others = files()
    return [*own, *others]


def files() -> tuple[dict[str, str | None], dict[str, str | None]]:
    """The paths behind `names` and behind `lora_names`, None where a link leads nowhere.

    What a file of the LoRA folders is, its header says, which is read once and again when the file has changed.
    """
    listed = folder_paths.get_filename_list(FOLDER)
    own = {name: folder_paths.get_full_path(FOLDER, name) for name in listed if not name.endswith(LORA_SUFFIX)}
    # A folder may be declared for both kinds; its files are listed once.
    taken = {path for path in own.values() if path is not None}
    loras = {name: path for name, path in _lora_paths().items() if name not in own and path not in taken}
    adapters = _known_files().adapters(path for path in loras.values() if path is not None)
    found = {name: path for name, path in loras.items() if path in adapters}
    return own | found, {name: path for name, path in loras.items() if name not in found}


def _lora_paths() -> dict[str, str | None]:
    """The files of ComfyUI's LoRA folders, as loras/NAME; of equal names the first folder's, as with `get_full_path`.

    That function takes too long for thousands.
    """
    roots = folder_paths.get_folder_paths(LORAS)
    found = folder_paths.get_filename_list(LORAS)
    names = [name for name in found if os.path.splitext(name)[1].lower() in EXTENSIONS]
    tried = {name: [os.path.join(root, name) for root in roots] for name in names}
    return {f"{LORAS}/{name}": next(filter(os.path.isfile, paths), None) for name, paths in tried.items()}


@cache
def _known_files() -> KnownFiles:
    return KnownFiles(Path(folder_paths.get_user_directory()) / FOLDER / "lora_files.json")


def path_of(name: str) -> str:
    """The file behind a name of `all_names`. Raises FileNotFoundError with what to do."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None and name.startswith(f"{LORAS}/"):
        path = folder_paths.get_full_path(LORAS, name.removeprefix(f"{LORAS}/"))
        if path is None:
            folders = " or ".join(folder_paths.get_folder_paths(LORAS))
            raise FileNotFoundError(
                f"The LoRA or adapter {name!r} was not found; expected it in {folders}. "
                "Put the file there, press R to refresh the list, and choose it again."
            )
    if path is None:
        folders = " or ".join(folder_paths.get_folder_paths(FOLDER))
        raise FileNotFoundError(
            f"The adapter {name!r} was not found; expected it in {folders}. "
            "Put the file there, press R to refresh the list, and choose it again. One that is still being trained is "
            "there at the end of its training; with wait on, the trainer hands it on only then."
        )
    return path
