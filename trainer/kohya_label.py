"""What sd-scripts says of a training, as this package's adapter files have it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from ..spectral.container import LONG_VALUES, fitting
from .kohya_say import notice

_NONE = "None"  # how sd-scripts writes what is not set
_TAGS = "ss_tag_frequency"
_MOST_TAGS = 500  # of a folder, where there are too many for a file
_LEFT_TO_US = ("ss_network_dim", "ss_network_alpha")


def metadata_of(given: Mapping[str, str] | None) -> dict[str, str]:
    """sd-scripts' metadata, without what is not set there although the adapter itself knows it.

    Also without what a file cannot hold, such as texts beyond its limits: a training must not be lost for its label.
    Of tag counts too long for it the most frequent are kept.
    """
    said = {key: str(value) for key, value in (given or {}).items() if key not in _LEFT_TO_US or value != _NONE}
    if len(said.get(_TAGS, "")) > LONG_VALUES[_TAGS]:
        said[_TAGS] = json.dumps({folder: _frequent(tags) for folder, tags in _json(said[_TAGS]).items()})
    kept = fitting(said)
    if left := sorted(said.keys() - kept.keys()):
        notice(f"left out of the file's metadata, because it is too long or no plain text: {', '.join(left)}.")
    return kept


def base_name(metadata: Mapping[str, str], checkpoint: str | None) -> str:
    """The base's name as our own training has it: the file's without its ending."""
    name = checkpoint or metadata.get("ss_sd_model_name", "")
    path = PurePath(name.replace("\\", "/"))
    return path.stem if path.suffix in (".safetensors", ".ckpt") else path.name


def base_hash(metadata: Mapping[str, str]) -> str:
    """SHA-256 of the base's file, or "" where sd-scripts did not say it."""
    found = metadata.get("ss_new_sd_model_hash", "")
    return found if re.fullmatch("[0-9a-f]{64}", found) else ""


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that call the concept: `--metadata_trigger_phrase`, else class tokens that every caption holds.

    A folder's class tokens alone prove nothing: beside captions sd-scripts does not use them.
    """
    if phrase := metadata.get("modelspec.trigger_phrase", ""):
        return tuple(word.strip() for word in phrase.split(",") if word.strip())
    tags = _json(metadata.get(_TAGS))
    found = (tokens for folder, tokens, images in _folders(metadata) if _everywhere(tokens, tags.get(folder), images))
    return tuple(dict.fromkeys(found))


def _folders(metadata: Mapping[str, str]) -> Iterator[tuple[str, str, int]]:
    """(folder, class tokens, images) of every folder of training pictures."""
    for dataset in _list(metadata.get("ss_datasets")):
        for subset in dataset.get("subsets", []):
            if subset.get("class_tokens") and not subset.get("is_reg"):
                yield subset.get("image_dir") or "", subset["class_tokens"], subset.get("img_count", 0)
    for folder, facts in _json(metadata.get("ss_dataset_dirs")).items():
        repeats, _, tokens = folder.partition("_")
        if repeats.isdigit() and tokens:
            yield folder, tokens, facts.get("img_count", 0)


def _everywhere(tokens: str, tags: Mapping[str, int] | None, images: int) -> bool:
    """Whether as many captions have the tokens as there are pictures."""
    whole = re.compile(rf"(?<!\w){re.escape(tokens.lower())}(?!\w)")
    return images > 0 and sum(n for tag, n in (tags or {}).items() if whole.search(tag.lower())) >= images


def _frequent(tags: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(tags).most_common(_MOST_TAGS))


def _json(text: str | None) -> dict[str, Any]:
    found = _read(text)
    return found if isinstance(found, dict) else {}


def _list(text: str | None) -> list[dict[str, Any]]:
    found = _read(text)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _read(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None
