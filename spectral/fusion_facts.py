"""What a fused adapter says of itself: metadata made of that of its ingredients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from .source import Source

_WIDTHS = ("F16", "BF16", "F32")


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """The words that call the concept of an adapter or LoRA file, in order; none where it names none."""
    if stored := metadata.get("spectral.trigger_words"):
        return [str(word) for word in json.loads(stored)]
    phrase = metadata.get("modelspec.trigger_phrase", "")
    return [word.strip() for word in phrase.split(",") if word.strip()]


def fused_metadata(sources: Sequence[Source], mode: str, name: str) -> dict[str, str]:
    """Title, description, trigger words of all, what all share of base and licence, and from what it was merged."""
    every = [source.metadata for source in sources]
    words = list(dict.fromkeys(word for metadata in every for word in trigger_words(metadata)))
    found = {
        "modelspec.title": name,
        "modelspec.description": f"{mode} of {', '.join(source.name for source in sources)}",
        "modelspec.merged_from": ", ".join(source.name for source in sources),
        "modelspec.license": _licences(sources),
        "modelspec.prediction_type": _shared(every, "modelspec.prediction_type"),
        "spectral.base_name": _shared(every, "spectral.base_name"),
        "spectral.base_hash": _shared(every, "spectral.base_hash"),
        "spectral.trigger_words": json.dumps(words, ensure_ascii=False) if words else "",
        "modelspec.trigger_phrase": ", ".join(words),
        "spectral.dtype": _dtype(every),
    }
    return {key: value for key, value in found.items() if value}


def _shared(every: Sequence[Mapping[str, str]], key: str) -> str:
    """The value that all have in common, or nothing."""
    values = {metadata.get(key, "") for metadata in every}
    return values.pop() if len(values) == 1 else ""


def _licences(sources: Sequence[Source]) -> str:
    """The licence, or each ingredient's where they differ: a mixture is bound by all of them."""
    found = {source.name: source.metadata.get("modelspec.license", "") for source in sources}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{name}: {licence or 'not stated'}" for name, licence in found.items())


def _dtype(every: Sequence[Mapping[str, str]]) -> str:
    """A dtype that holds the parameters of all: F32 where F16 meets BF16."""
    found = {metadata.get("spectral.dtype", "F16") for metadata in every}
    return found.pop() if len(found) == 1 else "F32"
