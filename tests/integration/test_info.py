"""The info node in a running ComfyUI: facts out, texts in, parameters untouched."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from comfy_driver import PACK, Comfy, Run
from PIL import Image
from safetensors.numpy import load_file

from spectral_adapters.spectral.info import read_info

NODE = "SpectralAdapterInfo"
TEXTS = {"title": "Der Hund", "description": "Says <b>wuff</b>.", "licence": "cc-by-4.0", "author": "A. B."}


@pytest.fixture(scope="module")
def comfy(
    comfy_root: Path, comfy_python: str, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("comfy")
    models = base / "models"
    (models / "loras").mkdir(parents=True)
    (models / "spectral_adapters").mkdir()
    (base / "input").mkdir()
    for name in ("rotation", "svdiff", "cut-off"):
        shutil.copy(library / "adapters" / f"{name}.safetensors", models / "spectral_adapters")
    shutil.copy(library / "adapters" / "additive-lora.safetensors", models / "loras")
    Image.fromarray(np.full((900, 700, 3), (200, 40, 40), np.uint8)).save(base / "input" / "red.png")
    with Comfy(comfy_root, comfy_python, base, [PACK]) as server:
        yield server


def graph(adapter: str, edit: str = "no", **fields: str) -> dict:
    """The node, what comes out of it as text, its pictures saved; a picture to keep as preview."""
    given = {f"edit.{name}": text for name, text in fields.items()}
    nodes = {"10": {"class_type": NODE, "inputs": {"adapter": adapter, "edit": edit, **given}}}
    for node, output in (("11", 0), ("12", 3)):
        nodes[node] = {"class_type": "PreviewAny", "inputs": {"source": ["10", output]}}
    for node, output in (("13", 1), ("14", 2)):
        nodes[node] = {"class_type": "SaveImage", "inputs": {"images": ["10", output], "filename_prefix": "seen"}}
    return nodes


def shown(comfy: Comfy, *arguments: str, **fields: str) -> Run:
    run = comfy.run(graph(*arguments, **fields))
    assert run.ok, run.error
    return run


def file_of(comfy: Comfy, name: str) -> Path:
    return comfy.base / "models" / "spectral_adapters" / f"{name}.safetensors"


def test_the_facts_of_an_adapter_come_out_with_its_picture(comfy: Comfy) -> None:
    run = shown(comfy, "rotation.safetensors")
    facts = read_info(file_of(comfy, "rotation"))
    for word in ("rotation, columns top:8", "sks, dog", "small", facts.sha256, facts.content_hash):
        assert word in run.text["11"]
        assert word in run.text["10"]
    assert run.text["12"] == "sks, dog"
    spectrum = next(picture for picture in run.pictures if picture.shape[1] == 900)
    assert spectrum.std() > 10


def test_a_lora_file_says_what_it_is(comfy: Comfy) -> None:
    run = shown(comfy, "loras/additive-lora.safetensors")
    assert "LoCon" in run.text["11"] or "LoRA" in run.text["11"]
    assert run.text["12"] == ""


def test_adapters_of_another_node_are_shown_in_place_of_the_file(comfy: Comfy) -> None:
    nodes = graph("svdiff.safetensors")
    rows = '[{"adapter": "rotation.safetensors"}, {"adapter": "loras/additive-lora.safetensors"}]'
    nodes["9"] = {"class_type": "SpectralAdapterStack", "inputs": {"rows": rows, "on_mismatch": "refuse"}}
    nodes["10"]["inputs"]["adapters"] = ["9", 3]
    run = comfy.run(nodes)
    assert run.ok, run.error
    assert "rotation\n" in run.text["11"] and "loras/additive-lora\n" in run.text["11"]
    assert "svdiff" not in run.text["11"]
    refused = comfy.run(nodes | {"10": {**nodes["10"], "inputs": nodes["10"]["inputs"] | {"edit": "yes"}}})
    assert "found 2 adapters to edit" in refused.error


def test_texts_and_preview_are_written_and_parameters_stay_bit_for_bit(comfy: Comfy) -> None:
    file = file_of(comfy, "svdiff")
    before, tensors = read_info(file), load_file(file)
    nodes = graph("svdiff.safetensors", "yes", trigger_words="wuff, big dog", **TEXTS)
    nodes["8"] = {"class_type": "LoadImage", "inputs": {"image": "red.png"}}
    nodes["10"]["inputs"]["preview"] = ["8", 0]
    run = comfy.run(nodes)
    assert run.ok, run.error
    assert run.text["10"].startswith("Changed.")
    assert run.text["12"] == "wuff, big dog"
    after = read_info(file)
    assert {name: getattr(after, name) for name in TEXTS} == TEXTS
    assert after.trigger_words == ["wuff", "big dog"]
    assert after.preview is not None
    assert after.content_hash == before.content_hash and after.sha256 != before.sha256
    now = load_file(file)
    assert now.keys() == tensors.keys()
    assert all((now[key].tobytes(), now[key].dtype) == (tensors[key].tobytes(), tensors[key].dtype) for key in now)
    kept = next(picture for picture in run.pictures if picture.shape[1] != 900)
    assert kept[..., 0].mean() > 150 > 80 > kept[..., 1].mean()
    stamp = file.stat().st_mtime_ns
    nodes["10"]["inputs"]["edit.author"] = " A. B. "
    again = comfy.run(nodes)
    assert again.text["10"].startswith("Nothing to change.")
    assert file.stat().st_mtime_ns == stamp


def test_empty_fields_leave_entries_as_they_are(comfy: Comfy) -> None:
    file = file_of(comfy, "rotation")
    before = read_info(file)
    assert shown(comfy, "rotation.safetensors", "yes", title="Only this").ok
    after = read_info(file)
    assert after.title == "Only this"
    assert (after.description, after.trigger_words) == (before.description, before.trigger_words)


def test_a_file_outside_the_adapter_folders_is_not_edited(comfy: Comfy, tmp_path: Path) -> None:
    lora = comfy.base / "models" / "loras" / "additive-lora.safetensors"
    elsewhere = tmp_path / "private.safetensors"
    shutil.copy(file_of(comfy, "rotation"), elsewhere)
    file_of(comfy, "link").symlink_to(elsewhere)
    before = [path.read_bytes() for path in (lora, elsewhere)]
    for name in ("loras/additive-lora.safetensors", "link.safetensors"):
        refused = comfy.run(graph(name, "yes", title="mine"))
        assert not refused.ok
        assert "outside the folders of adapters" in refused.error
    assert [path.read_bytes() for path in (lora, elsewhere)] == before


def test_an_adapter_among_the_loras_is_edited_too(comfy: Comfy) -> None:
    path = comfy.base / "models" / "loras" / "shared.safetensors"
    shutil.copy(file_of(comfy, "rotation"), path)
    assert "Changed." in shown(comfy, "loras/shared.safetensors", "yes", title="Shared").text["10"]
    assert read_info(path).title == "Shared"


def test_a_broken_file_is_named(comfy: Comfy) -> None:
    refused = comfy.run(graph("cut-off.safetensors"))
    assert not refused.ok
    assert "cut-off.safetensors" in refused.error and "cut off" in refused.error
