"""The second language is complete: every English text has a French one with the same places to fill in."""

import itertools
import json
import re
from pathlib import Path

import pytest

import spectral_adapters as sa
from spectral_adapters.trainer.engines import said
from spectral_adapters.trainer.form import form
from spectral_adapters.trainer.places import standalone
from spectral_adapters.trainer.presets import PRESETS, preset_sources
from spectral_adapters.trainer.sd_scripts.translate import HOW
from spectral_adapters.trainer.spec import TrainSpec

NAMES = {"SVDiff", "svdiff-pytorch", "Spectral Adapter", "SODA", "Stable Diffusion"}  # the same in every language
LOCALES = Path(sa.__file__).parent / "locales"


def flat(table: dict, before: str = "") -> dict[str, str]:
    """Nested texts by their path."""
    found = {}
    for key, value in table.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def _sources() -> set[str]:
    """Where presets have their values from, in the words that the form shows."""
    return {
        found.source
        for kind in ("tiny", "sd", "sdxl")
        for preset, method in itertools.product(PRESETS, sa.METHODS)
        for found in preset_sources(preset, method, kind).values()
    }


def _said_by_sd_scripts() -> set[str]:
    """The settings of which it says something: always, or where they are what it cannot honour."""
    odd = TrainSpec("tiny", Path(), Path(), method="soda", rotation="stiefel", optimizer="torch.optim.SGD")
    refused = {each["setting"] for each in said("sd-scripts", odd)["refusals"]}
    return refused | {name for name, how in HOW.items() if how.text}


def texts(language: str, name: str) -> dict[str, str]:
    return flat(json.loads((LOCALES / language / name).read_text(encoding="utf-8")))


def gaps(text: str) -> list[str]:
    """What is filled in."""
    return sorted(re.findall(r"\{(\w+)\}", text))


@pytest.mark.parametrize("name", sorted(path.name for path in (LOCALES / "en").glob("*.json")))
def test_every_english_text_has_a_french_one(name):
    english, french = texts("en", name), texts("fr", name)
    assert not english.keys() - french.keys()
    known = {key for key in french if not key.startswith("spectralAdapters.form.")}
    assert not known - english.keys(), "what nobody shows any more"
    for key, text in english.items():
        assert gaps(french[key]) == gaps(text), key
        assert bool(french[key]) == bool(text), key


@pytest.mark.parametrize("language", ["en", "fr"])
def test_comfyui_can_read_the_words_of_nodes(language):
    """Its page takes @ for a reference to another text, | for plural forms, {} for gaps, and fails where it is none."""
    assert not [key for key, text in texts(language, "nodeDefs.json").items() if set(text) & set("@|{}")]


def test_every_word_of_the_form_has_a_french_one(tmp_path):
    drawn, french = form(standalone(tmp_path, {}, [])), texts("fr", "main.json")
    wanted = {f"settings.{row['name']}.{part}" for row in drawn["settings"] for part in ("label", "help")}
    wanted |= {f"{kind}.{row['name']}.{part}" for kind in ("presets", "methods", "engines") for row in drawn[kind]
               for part in ("title", "help")}  # fmt: skip
    wanted |= {f"says.{name}" for name in _said_by_sd_scripts()}
    wanted |= {f"groups.{group['id']}" for group in drawn["groups"]}
    wanted |= {f"units.{row['unit']}" for row in drawn["settings"] if "unit" in row}
    wanted |= {f"sources.{source}" for source in _sources() if source not in NAMES}
    there = {key.removeprefix("spectralAdapters.form.") for key in french if key.startswith("spectralAdapters.form.")}
    assert there == wanted
    for name in {row["name"] for row in drawn["settings"]}:
        label, told = (french[f"spectralAdapters.form.settings.{name}.{part}"] for part in ("label", "help"))
        assert len(label) <= 22 and len(told) >= 25 and told.endswith((".", ").")), name


@pytest.mark.parametrize("page", sorted((LOCALES.parent / "web" / "docs").glob("*/en.md")), ids=lambda p: p.parent.name)
def test_every_help_page_is_there_in_french(page):
    """With the same sections and tables."""
    english, french = (path.read_text(encoding="utf-8") for path in (page, page.with_name("fr.md")))
    for start in ("# ", "## ", "| ", "- "):
        assert len(re.findall(f"^{re.escape(start)}", french, re.M)) == len(
            re.findall(f"^{re.escape(start)}", english, re.M)
        )
    assert set(re.findall(r"`([^`]+)`", french)) == set(re.findall(r"`([^`]+)`", english))
