"""The model folders that adapters are picked from."""

from __future__ import annotations

import os

import folder_paths

from ..trainer.places import LORA_SUFFIX

FOLDER = "spectral_adapters"
EXTENSIONS = {".safetensors"}
LORAS = "loras"  # ComfyUI's folder; its files are named loras/NAME beside the adapters


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
    """The adapters to choose from, as shown in the combo; the LoRAs that were exported beside them are none."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if not name.endswith(LORA_SUFFIX)]


def lora_names() -> list[str]:
    """The LoRA files of ComfyUI's own folders, as loras/NAME."""
    found = folder_paths.get_filename_list(LORAS)
    return [f"{LORAS}/{name}" for name in found if os.path.splitext(name)[1].lower() in EXTENSIONS]


def path_of(name: str) -> str:
    """The file behind a name of `names` or `lora_names`. Raises FileNotFoundError with what to do."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None and name.startswith(f"{LORAS}/"):
        path = folder_paths.get_full_path(LORAS, name.removeprefix(f"{LORAS}/"))
        if path is None:
            folders = " or ".join(folder_paths.get_folder_paths(LORAS))
            raise FileNotFoundError(
                f"The LoRA {name!r} was not found; expected it in {folders}. "
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
