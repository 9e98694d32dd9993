"""The card of a shared file: README.md with the metadata that the Hugging Face Hub reads, and how to use the file.

Every text of the file's metadata is somebody else's: in YAML it is written by a YAML library, in Markdown every
character that could mean something there is escaped, in code it is a Python literal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..spectral.another_model import FAMILY_NAMES
from ..spectral.info import Info

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# The licences that the Hub knows by these names; any other is "other", with its name beside it.
_LICENCES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd
    bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 wtfpl unlicense isc mpl-2.0 zlib gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1
    lgpl-3.0 gfdl unknown other
"""
LICENCES = frozenset(_LICENCES.split())
# Marks anywhere; what begins a list or underlines a heading; and what GitHub's dialect makes a link of.
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~&@$!^]|^[-+=]|:(?=//)|(?<=www)\.", re.IGNORECASE)
_NUMBERED = re.compile(r"^(\d+)([.)])")
_PIPELINES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
_SOURCES = {
    "svdiff": "SVDiff (arXiv 2303.11305)",
    "additive": "Spectral Adapter A (arXiv 2405.13952)",
    "rotation": "Spectral Adapter R (arXiv 2405.13952)",
    "soda": "SODA (arXiv 2405.21050)",
}


@dataclass(frozen=True)
class Card:
    """What the card is made of.

    adapter: name of the file; lora: that of its LoRA export, and how far it is from the adapter, or why there is none.
    samples: (name of the picture, its prompt). base_model: the base's id on the Hub, or "".
    """

    info: Info
    adapter: str
    lora: str
    lora_note: str
    samples: Sequence[tuple[str, str]]
    licence: str
    base_model: str


def plain(text: str) -> str:
    """One line of text that Markdown shows as it is."""
    marked = _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
    return _NUMBERED.sub(r"\1\\\2", marked)


def markdown(card: Card) -> str:
    """The whole README.md. Needs huggingface_hub."""
    parts = [
        f"---\n{_front(card).rstrip()}\n---",
        f"# {plain(_title(card))}",
        *(plain(paragraph) for paragraph in card.info.description.split("\n\n") if paragraph.strip()),
        _samples(card),
        _facts(card),
        _usage(card),
        _training(card),
        f"## Licence\n\n{plain(card.licence)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(card: Card) -> str:
    from huggingface_hub import ModelCardData

    known = card.licence.lower().replace(" ", "-")
    words = ", ".join(card.info.trigger_words)
    more = {
        "license_name": None if known in LICENCES else _slug(card.licence),
        "base_model": card.base_model or None,
        "base_model_relation": "adapter" if card.base_model else None,
        "instance_prompt": words or None,
        "widget": [{"text": text or words or " ", "output": {"url": name}} for name, text in card.samples] or None,
    }
    data = ModelCardData(
        license=known if known in LICENCES else "other",
        library_name="diffusers" if card.lora else "spectral-adapters",
        pipeline_tag="text-to-image",
        tags=_tags(card),
        **{key: value for key, value in more.items() if value is not None},
    )
    return data.to_yaml()


def _tags(card: Card) -> list[str]:
    family = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}
    own = card.info.method in _SOURCES
    kind = ["spectral-adapter", card.info.method] if own else [card.info.method.lower()]
    found = ["text-to-image", *kind, *(["lora", "template:sd-lora"] if card.lora else []), "comfyui"]
    model = family.get(card.info.family or "")
    return list(dict.fromkeys([*found, *([model] if model else [])]))


def _title(card: Card) -> str:
    return card.info.title or card.adapter.removesuffix(".safetensors")


def _samples(card: Card) -> str:
    shown = [f"![{plain(text) or 'sample'}](<{name}>)" for name, text in card.samples]
    return "\n\n".join(shown)


def _facts(card: Card) -> str:
    info = card.info
    rows = {
        "Trigger words": ", ".join(_code(word) for word in info.trigger_words) or "none",
        "Made for": FAMILY_NAMES.get(info.family or "", "another model"),
        "Base": plain(card.base_model or info.base_name) or "not recorded",
        "Base, SHA-256": _code(info.base_hash) if info.base_hash else "",
        "Method": plain(_SOURCES.get(info.method, info.method)),
        "Columns": plain(info.columns),
        "Layers": f"{info.layers:,}" + (f", and {info.norms:,} norms" if info.norms else ""),
        "Parameters": f"{info.parameters:,}",
        "File": f"{_code(card.adapter)}, {info.file_bytes:,} bytes",
        "Content hash": _code(info.content_hash),
        "Author": plain(info.author),
    }
    lines = [f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows.items() if value]
    return "\n".join(["## What it is", "", "| | |", "|---|---|", *lines])


def _usage(card: Card) -> str:
    own = card.info.method in _SOURCES
    lora = card.lora or ("" if own else card.adapter)
    parts = ["## How to use it"]
    if own:
        parts.append(
            f"**ComfyUI** with the node pack Spectral Adapters: put {_code(card.adapter)} into "
            "`models/spectral_adapters` and choose it in *Spectral Adapter Loader*, behind *Load Checkpoint*."
        )
    if lora:
        parts += [
            f"**ComfyUI without it, AUTOMATIC1111, Forge**: put {_code(lora)} into the folder of LoRAs"
            f" (`models/loras`, `models/Lora`) and use it as any LoRA, such as {_code(_tag(lora))} in a prompt.",
            "**diffusers**:\n\n" + _python(card, lora),
        ]
    if card.lora_note:
        parts.append(plain(card.lora_note))
    return "\n\n".join(parts)


def _tag(lora: str) -> str:
    return f"<lora:{lora.removesuffix('.safetensors')}:1>"


def _python(card: Card, lora: str) -> str:
    pipeline = _PIPELINES.get(card.info.family or "", "DiffusionPipeline")
    prompt = " ".join(("a photo of", *card.info.trigger_words[:1]))
    lines = [
        f"from diffusers import {pipeline}",
        "",
        f"pipe = {pipeline}.from_pretrained({card.base_model or 'the/base'!r})",
        f'pipe.load_lora_weights("path/to/this/folder", weight_name={lora!r})',
        f"picture = pipe({prompt!r}).images[0]",
    ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _training(card: Card) -> str:
    if not card.info.training:
        return ""
    rows = [f"| {plain(name)} | {plain(value)} |" for name, value in card.info.training.items()]
    return "\n".join(["## How it was trained", "", "| | |", "|---|---|", *rows])


def _code(text: str) -> str:
    """A code span of one line, with a fence that is longer than any inside."""
    line = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:64] or "other"
