"""Share an adapter: a folder with the file, a card, samples and, where it is exact, a LoRA; uploaded where asked for.

Pictures are encoded anew, because files of image programs carry whole graphs and paths. Uploading goes through
huggingface_hub with its own login: no token is read, taken or written here.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..spectral.container import open_file
from ..spectral.convert import to_lora
from ..spectral.errors import SettingError, SpectralError
from ..spectral.export import write_export
from ..spectral.info import Info, read_info
from ..spectral.open import open_source
from ..spectral.source import AdapterSource
from . import files
from .decode import decode, turn
from .model_card import HUB_ID, Card, markdown
from .thumbs import encoded

LARGEST = 1024  # pixels of a sample's side
MOST_SAMPLES = 16
_PRIVATE = "ss_tag_frequency"


class PublishError(SpectralError):
    """What the Hub said no to."""


@dataclass(frozen=True)
class Sample:
    """A picture for the card, and the prompt it was made with, or ""."""

    path: Path
    prompt: str = ""


@dataclass(frozen=True)
class Published:
    """The folder, its files, what a person should know of it, and the page on the Hub where it was uploaded."""

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]
    url: str = ""


def publish(
    path: Path,
    folder: Path,
    *,
    samples: Sequence[Sample] = (),
    licence: str | None = None,
    base_model: str | None = None,
    lora: bool = True,
    repo: str | None = None,
    upload: bool = False,
    private: bool = True,
) -> Published:
    """Write `folder`, whole or not at all, and upload it where `upload` says so.

    path: an adapter or a file of the LoRA family. licence: the file's own where None. base_model: the base's id on the
    Hub, such as "stable-diffusion-v1-5/stable-diffusion-v1-5". lora: add a LoRA where it is exact. repo: "user/name".
    Raises SettingError for what is missing or cannot be honoured, AdapterFileError and PictureFault for files,
    PublishError for what the Hub refuses; the folder stays then.
    """
    info = read_info(path)
    licence = (licence if licence is not None else info.licence).strip()
    _check(folder, licence, base_model, repo, upload, samples)
    base_model = base_model or (info.base_name if HUB_ID.fullmatch(info.base_name) else "")
    try:
        files.make_folder(folder.parent)
        if folder.is_dir():
            folder.rmdir()  # empty, so nothing is lost; taken again at the end
        with files.new_folder(folder) as made:
            card, notes = _fill(made, path, info, samples, licence, base_model, lora)
            files.write_bytes(made / "README.md", markdown(card).encode("utf-8"))
            names = sorted(str(p.relative_to(made)) for p in made.rglob("*") if p.is_file())
    except OSError as error:
        raise files.refusal("writing", folder, error, "Choose another folder, or free some space") from error
    url = _upload(folder, repo or "", private) if upload else ""
    return Published(folder, tuple(names), tuple(notes), url)


def _check(
    folder: Path, licence: str, base_model: str | None, repo: str | None, upload: bool, samples: Sequence[Sample]
) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder}: found a folder that is not empty, or a file; expected a new folder's name")
    if not licence:
        raise SettingError("found no licence; expected one, such as cc-by-4.0 or openrail (unknown is one too)")
    for what, name in (("base model", base_model), ("repository", repo)):
        if name and not HUB_ID.fullmatch(name):
            raise SettingError(f"{what}: found {name!r}, expected an id of the Hugging Face Hub, such as user/name")
    if upload and not repo:
        raise SettingError("found an upload without a repository; expected its id, such as user/name")
    if len(samples) > MOST_SAMPLES:
        raise SettingError(f"found {len(samples)} samples, expected at most {MOST_SAMPLES}")


def _fill(
    made: Path, path: Path, info: Info, samples: Sequence[Sample], licence: str, base_model: str, lora: bool
) -> tuple[Card, list[str]]:
    """Everything but the card."""
    open_file(path).close()
    shutil.copyfile(path, made / path.name)
    files.sync_file(made / path.name)
    shown = [(_sample(sample, made, i), sample.prompt) for i, sample in enumerate(samples, 1)]
    name, note = _lora(path, made) if lora else ("", "")
    notes = [note] if note and not name else []
    if _PRIVATE in info.metadata:
        notes.append(f"{path.name} carries the tags of its training captions ({_PRIVATE}), as kohya's files do.")
    return Card(info, path.name, name, note, shown, licence, base_model), notes


def _lora(path: Path, made: Path) -> tuple[str, str]:
    """The name of the LoRA beside an adapter, or "", and what there is to say of it."""
    source = open_source(path)
    if not isinstance(source, AdapterSource):
        return "", ""
    if any(source.needs_weight(layer) for layer in source.shapes):
        return "", (
            f"There is no LoRA beside it: {source.kind} without frames changes every direction of a weight, which only "
            "the node pack applies exactly."
        )
    export = to_lora(source)
    name = f"{path.stem}_lora.safetensors"
    write_export(export, source, made / name)
    return name, f"The LoRA is the same change, up to rounding: {export.residual.total:.2%} off in all."


def _sample(sample: Sample, made: Path, number: int) -> str:
    try:
        blob = sample.path.read_bytes()
    except OSError as error:
        raise SettingError(f"sample {sample.path}: cannot be read ({error.strerror or error})") from error
    with turn(blob):
        data = encoded(decode(blob, least=LARGEST), LARGEST)
    name = f"images/sample-{number}.{'webp' if data.startswith(b'RIFF') else 'jpg'}"
    (made / "images").mkdir(exist_ok=True)
    files.write_new(made / name, data)
    return name


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

    hub = HfApi()
    kept = f"the folder {folder} is complete and stays"
    try:
        hub.whoami()
        hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Upload {folder.name}")
    except LocalTokenNotFoundError as error:
        raise PublishError(f"the Hub knows no login here; log in with `hf auth login`. {kept}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise PublishError(f"the Hub refused {repo}: {_first_line(error)}; {kept}") from error
    return f"https://huggingface.co/{repo}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
