"""The loader node in a running ComfyUI: prompts in, pictures and messages out."""

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from comfy_driver import PACK, Comfy, Run, difference, picture_graph
from sample_adapters import PROFILES, layer_keys, norm_keys

NODE = "SpectralAdapterLoader"
BASE = "small.safetensors"
VISIBLE = 1.0  # grey levels: every sample adapter changes the picture by more


@pytest.fixture(scope="module")
def comfy(comfy_root: Path, comfy_python: str, library: Path, stocked: Path) -> Iterator[Comfy]:
    (library / "elsewhere").mkdir()
    shutil.copy(library / "adapters" / "rotation.safetensors", library / "elsewhere" / "shared.safetensors")
    paths = library / "extra_model_paths.yaml"
    paths.write_text(f"shared:\n    base_path: {library}\n    spectral_adapters: elsewhere\n")
    with Comfy(comfy_root, comfy_python, stocked, [PACK], ("--extra-model-paths-config", str(paths))) as server:
        yield server


@pytest.fixture(scope="module")
def base_picture(comfy: Comfy) -> np.ndarray:
    return comfy.run(picture_graph(BASE)).picture


def spectral(name: str, model: float = 1.0, clip: float = 0.0, mode: str = "linear", mismatch: str = "refuse") -> tuple:
    """The loader node; mostly without the text encoder, which is slow at its full size."""
    inputs = {"adapter": f"{name}.safetensors", "strength_model": model, "strength_clip": clip}
    return NODE, inputs | {"strength_mode": mode, "on_mismatch": mismatch}


def lora(name: str, strength: float = 1.0, clip: float = 0.0) -> tuple:
    return "LoraLoader", {"lora_name": f"{name}.safetensors", "strength_model": strength, "strength_clip": clip}


def adapted(comfy: Comfy, *loaders: tuple, checkpoint: str = BASE) -> Run:
    return comfy.run(picture_graph(checkpoint, *loaders))


def test_the_base_picture_is_worth_comparing(base_picture: np.ndarray) -> None:
    assert base_picture.std() > 10
    assert ((base_picture == 0) | (base_picture == 255)).mean() < 0.01


@pytest.mark.parametrize("name", PROFILES)
def test_every_method_changes_the_picture_and_reports(name: str, comfy: Comfy, base_picture: np.ndarray) -> None:
    run = adapted(comfy, spectral(name, clip=1.0))
    assert difference(run.picture, base_picture) > VISIBLE
    count = len(layer_keys())
    assert f"{count} of {count} layers applied, 0 unused" in run.text["20"]
    assert "Match " in run.text["20"]
    if PROFILES[name][1] == "compact":
        # The base is the very one: the estimate of the error is rounding alone.
        match = float(run.text["20"].split("Match ")[1].split(" %")[0])
        assert match >= 99
        assert f"0 of {count} from cache" in run.text["20"]


def test_shifted_norms_are_counted_and_change_the_picture(comfy: Comfy, base_picture: np.ndarray) -> None:
    run = adapted(comfy, spectral("norms", clip=1.0))
    count = len(norm_keys())
    assert (
        f"{len(layer_keys())} of {len(layer_keys())} layers applied, 0 unused, {count} of {count} norms."
        in run.text["20"]
    )
    assert difference(run.picture, base_picture) > VISIBLE
    assert difference(run.picture, adapted(comfy, spectral("svdiff", clip=1.0)).picture) > VISIBLE
    again = adapted(comfy, spectral("norms", 0.9, clip=0.9))
    assert "kept from the last run" in again.text["20"]


def test_the_second_time_comes_from_the_cache(comfy: Comfy) -> None:
    adapted(comfy, spectral("svdiff", clip=1.0))
    count = len([layer for layer in layer_keys() if layer.startswith("lora_unet_")])
    run = adapted(comfy, spectral("svdiff"))
    assert f"{count} of {count} from cache" in run.text["20"]


def test_strength_zero_is_the_base_bit_for_bit(comfy: Comfy, base_picture: np.ndarray) -> None:
    for name in PROFILES:
        assert np.array_equal(adapted(comfy, spectral(name, 0.0, 0.0)).picture, base_picture)


def test_removing_the_node_restores_the_base(comfy: Comfy, base_picture: np.ndarray) -> None:
    changed = adapted(comfy, spectral("rotation")).picture
    assert difference(changed, base_picture) > VISIBLE
    assert difference(comfy.run(picture_graph(BASE)).picture, base_picture) == 0
    assert difference(adapted(comfy, spectral("rotation")).picture, changed) == 0


def test_a_moved_strength_needs_no_new_preparation(comfy: Comfy) -> None:
    adapted(comfy, spectral("soda", 0.7))
    moved = adapted(comfy, spectral("soda", 0.6))
    assert "kept from the last run" in moved.text["20"]
    spectrally = adapted(comfy, spectral("soda", 0.6, mode="spectral"))
    assert "from cache" in spectrally.text["20"]
    assert difference(moved.picture, spectrally.picture) > 0


def test_a_larger_strength_acts_more(comfy: Comfy, base_picture: np.ndarray) -> None:
    effects = [difference(adapted(comfy, spectral("additive", s)).picture, base_picture) for s in (0.25, 0.5, 1.0)]
    assert 0 < effects[0] < effects[1] < effects[2]


def test_only_the_wanted_side_is_changed(comfy: Comfy, base_picture: np.ndarray) -> None:
    model_only = adapted(comfy, spectral("additive", 0.9))
    clip_only = adapted(comfy, spectral("additive", 0.0, 0.9))
    both = adapted(comfy, spectral("additive", 0.9, 0.9))
    assert difference(model_only.picture, both.picture) > 0
    assert 0 < difference(clip_only.picture, base_picture) < difference(both.picture, base_picture)
    text_layers = len([layer for layer in layer_keys() if layer.startswith("lora_te_")])
    assert f"{text_layers} of {len(layer_keys())} layers left out: their strength is 0" in model_only.text["20"]


def test_clip_may_stay_unconnected(comfy: Comfy) -> None:
    graph = picture_graph(BASE, spectral("rotation", clip=1.0))
    del graph["20"]["inputs"]["clip"]
    for node in ("2", "3"):
        graph[node]["inputs"]["clip"] = ["1", 1]
    run = comfy.run(graph)
    assert run.ok, run.error
    assert "layers left out: no CLIP is connected" in run.text["20"]
    assert difference(run.picture, adapted(comfy, spectral("rotation")).picture) == 0


@pytest.mark.parametrize("name", ["additive", "rotation"])
def test_the_exported_lora_in_core_gives_the_same_picture(name: str, comfy: Comfy, base_picture: np.ndarray) -> None:
    """The same sampler and seed; the model alone, and with the text encoder at another strength."""
    for model, clip in ((1.0, 0.0), (0.8, 0.9)):
        ours = adapted(comfy, spectral(name, model, clip)).picture
        core = adapted(comfy, lora(f"{name}-lora", model, clip)).picture
        assert difference(ours, base_picture) > VISIBLE
        assert difference(ours, core) < 0.1
        assert np.abs(ours - core).max() <= 2


def test_a_lora_before_or_after_makes_no_difference(comfy: Comfy) -> None:
    with_lora = lora("rotation-lora", 0.6)
    before = adapted(comfy, with_lora, spectral("svdiff")).picture
    after = adapted(comfy, spectral("svdiff"), with_lora).picture
    assert difference(before, after) < 0.05
    assert difference(before, adapted(comfy, spectral("svdiff")).picture) > 0.2


def test_two_adapters_compose_in_any_order(comfy: Comfy) -> None:
    one, two = spectral("additive", 0.5), spectral("unet-only")
    assert difference(adapted(comfy, one, two).picture, adapted(comfy, two, one).picture) < 0.05


def test_merge_with_the_base_is_half_strength(comfy: Comfy, base_picture: np.ndarray) -> None:
    half = adapted(comfy, spectral("additive", 0.5)).picture
    graph = picture_graph(BASE, spectral("additive"))
    graph["30"] = {"class_type": "ModelMergeSimple", "inputs": {"model1": ["20", 0], "model2": ["1", 0], "ratio": 0.5}}
    graph["5"]["inputs"]["model"] = ["30", 0]
    merged = comfy.run(graph).picture
    assert difference(merged, half) < 0.1
    assert difference(merged, base_picture) > 0.2


def test_a_saved_checkpoint_holds_the_change(comfy: Comfy) -> None:
    graph = picture_graph(BASE, spectral("svdiff", clip=1.0))
    inputs = {"model": ["20", 0], "clip": ["20", 1], "vae": ["1", 2], "filename_prefix": "baked"}
    graph["30"] = {"class_type": "CheckpointSave", "inputs": inputs}
    wanted = comfy.run(graph).picture
    saved = next((comfy.base / "output").glob("baked*.safetensors"))
    os.replace(saved, comfy.base / "models" / "checkpoints" / "baked.safetensors")
    assert difference(comfy.run(picture_graph("baked.safetensors")).picture, wanted) < 0.1


def test_trigger_words_come_out(comfy: Comfy) -> None:
    graph = picture_graph(BASE, spectral("rotation"))
    graph["30"] = {"class_type": "PreviewAny", "inputs": {"source": ["20", 2]}}
    assert comfy.run(graph).text["30"] == "sks, dog"


def test_another_fine_tune_is_refused_with_the_reason_and_can_be_forced(comfy: Comfy) -> None:
    plain = comfy.run(picture_graph("changed.safetensors")).picture
    refused = adapted(comfy, spectral("svdiff"), checkpoint="changed.safetensors")
    assert not refused.ok
    for word in ("'small'", "off by", "expected at most 10 %", "force"):
        assert word in refused.error
    assert difference(comfy.run(picture_graph("changed.safetensors")).picture, plain) == 0
    forced = adapted(comfy, spectral("svdiff", mismatch="force"), checkpoint="changed.safetensors")
    assert difference(forced.picture, plain) > VISIBLE


def test_a_portable_file_fits_a_related_base(comfy: Comfy) -> None:
    run = adapted(comfy, spectral("rotation"), checkpoint="changed.safetensors")
    assert run.ok, run.error
    assert 80 < float(run.text["20"].split("Match ")[1].split(" %")[0]) < 100


def test_an_sdxl_file_is_refused_with_the_reason(comfy: Comfy, base_picture: np.ndarray) -> None:
    refused = adapted(comfy, spectral("sdxl"))
    assert not refused.ok
    assert "trained on SDXL" in refused.error
    assert "the model here is Stable Diffusion 1.x" in refused.error
    forced = adapted(comfy, spectral("sdxl", mismatch="force"))
    assert not forced.ok, "not one of its layers fits"
    assert difference(comfy.run(picture_graph(BASE)).picture, base_picture) == 0


def test_a_damaged_file_is_refused_by_name(comfy: Comfy) -> None:
    refused = adapted(comfy, spectral("cut-off"))
    assert not refused.ok
    assert "cut off" in refused.error
    assert "cut-off.safetensors" in refused.error


def test_a_lora_file_among_the_adapters_paints_as_in_core(comfy: Comfy) -> None:
    ours = adapted(comfy, spectral("rotation-lora", 0.7))
    assert difference(ours.picture, adapted(comfy, lora("rotation-lora", 0.7)).picture) < 0.1
    refused = adapted(comfy, spectral("rotation-lora", 0.7, mode="spectral"))
    assert not refused.ok
    assert "choose linear" in refused.error


def test_a_missing_file_is_refused_before_the_run(comfy: Comfy) -> None:
    refused = adapted(comfy, spectral("nowhere"))
    assert not refused.ok
    assert "nowhere.safetensors" in refused.error


def test_a_replaced_file_is_loaded_again(comfy: Comfy, library: Path) -> None:
    file = comfy.base / "models" / "spectral_adapters" / "swapped.safetensors"
    shutil.copy(library / "adapters" / "additive.safetensors", file)
    first = adapted(comfy, spectral("swapped"))
    again = adapted(comfy, spectral("swapped"))
    assert "20" in again.cached
    shutil.copy(library / "adapters" / "rotation.safetensors", file)
    second = adapted(comfy, spectral("swapped"))
    assert "20" not in second.cached
    assert difference(first.picture, second.picture) > VISIBLE
    assert difference(second.picture, adapted(comfy, spectral("rotation")).picture) == 0


def test_files_of_all_model_folders_are_listed_and_other_kinds_are_not(comfy: Comfy, library: Path) -> None:
    fresh = comfy.base / "output" / "spectral_adapters"
    fresh.mkdir(exist_ok=True)
    shutil.copy(library / "adapters" / "rotation.safetensors", fresh / "fresh.safetensors")
    (fresh / "notes.txt").write_text("not an adapter")
    inputs = comfy.get(f"/object_info/{NODE}")[NODE]["input"]
    listed = inputs["required"]["adapter"][1]["options"]
    assert {"fresh.safetensors", "shared.safetensors", "rotation.safetensors"} <= set(listed)
    assert "notes.txt" not in listed
    assert adapted(comfy, spectral("fresh")).ok
    assert adapted(comfy, spectral("shared")).ok


@pytest.fixture(scope="module")
def shelf(comfy: Comfy, library: Path) -> Path:
    """A folder among ComfyUI's LoRAs with an adapter, and files that are none."""
    folder = comfy.base / "models" / "loras" / "shelf"
    folder.mkdir()
    shutil.copy(library / "adapters" / "rotation.safetensors", folder / "turned.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no header")
    (folder / "empty.safetensors").touch()
    return folder


def options(comfy: Comfy, node: str, field: str, key: str) -> list[str]:
    return comfy.get(f"/object_info/{node}")[node]["input"]["required"][field][1][key]


def test_an_adapter_among_the_loras_is_listed_and_paints_the_same(comfy: Comfy, shelf: Path) -> None:
    name = "loras/shelf/turned"
    listed = options(comfy, NODE, "adapter", "options")
    assert f"{name}.safetensors" in listed
    assert not {"loras/shelf/broken.safetensors", "loras/rotation-lora.safetensors"} & set(listed)
    for everything in (
        options(comfy, "SpectralAdapterStack", "rows", "adapters"),
        options(comfy, "SpectralAdapterInfo", "adapter", "options"),
    ):
        assert everything.count(f"{name}.safetensors") == 1
        assert {"loras/shelf/broken.safetensors", "loras/rotation-lora.safetensors"} <= set(everything)
    assert difference(adapted(comfy, spectral(name)).picture, adapted(comfy, spectral("rotation")).picture) == 0
    refused = adapted(comfy, spectral("loras/shelf/nowhere"))
    assert not refused.ok and "nowhere" in refused.error


def test_what_a_file_among_the_loras_is_follows_the_file(comfy: Comfy, shelf: Path, library: Path) -> None:
    name = "loras/shelf/later.safetensors"
    shutil.copy(library / "adapters" / "rotation-lora.safetensors", shelf / "later.safetensors")
    assert name not in options(comfy, NODE, "adapter", "options")
    shutil.copy(library / "adapters" / "additive.safetensors", shelf / "later.safetensors")
    assert name in options(comfy, NODE, "adapter", "options")
    (shelf / "later.safetensors").unlink()
    assert name not in options(comfy, NODE, "adapter", "options")
    store = json.loads((comfy.base / "user" / "spectral_adapters" / "lora_files.json").read_bytes())
    assert {Path(path).name: row[2] for path, row in store.items()}["turned.safetensors"] is True


def test_load_lora_warns_of_an_adapter_and_leaves_the_base(comfy: Comfy, shelf: Path, base_picture: np.ndarray) -> None:
    run = adapted(comfy, lora("shelf/turned", clip=1.0))
    assert np.array_equal(run.picture, base_picture)
    assert "lora key not loaded" in comfy.log()


def test_the_node_describes_itself(comfy: Comfy) -> None:
    info = comfy.get(f"/object_info/{NODE}")[NODE]
    assert info["display_name"] == "Spectral Adapter Loader"
    assert info["output_name"] == ["model", "clip", "trigger words", "adapter"]
    inputs = info["input"]["required"] | info["input"]["optional"]
    assert list(info["input"]["optional"]) == ["clip", "parts"]
    assert [name for name, spec in inputs.items() if not spec[1].get("tooltip")] == []
    assert inputs["strength_mode"][1]["advanced"]
    assert inputs["on_mismatch"][1]["advanced"]
    assert inputs["on_mismatch"][1]["options"] == ["refuse", "force"]


def test_help_and_translations_fit_the_node(comfy: Comfy) -> None:
    address = f"http://127.0.0.1:{comfy.port}/extensions/spectral_adapters/docs/{NODE}/en.md"
    with urllib.request.urlopen(address, timeout=10) as page:
        text = page.read().decode()
    info = comfy.get(f"/object_info/{NODE}")[NODE]
    names = json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text())[NODE]
    inputs = info["input"]["required"] | info["input"]["optional"]
    assert set(names["inputs"]) == set(inputs)
    for name, spec in inputs.items():
        assert f"| {name}" in text or f", {name}" in text or name in text
        assert names["inputs"][name]["tooltip"] == spec[1]["tooltip"]
    assert [output["name"] for output in names["outputs"].values()] == info["output_name"]


def test_the_example_workflow_is_offered_and_names_existing_nodes(comfy: Comfy) -> None:
    offered = comfy.get("/workflow_templates")["spectral_adapters"]
    assert offered
    known = comfy.get("/object_info")
    for name in offered:
        workflow = json.loads((PACK / "example_workflows" / f"{name}.json").read_text())
        assert {node["type"] for node in workflow["nodes"]} <= known.keys() | {"Note", "MarkdownNote"}
        assert (PACK / "example_workflows" / f"{name}.jpg").is_file()


def test_the_pack_loads_quickly_and_quietly(comfy: Comfy) -> None:
    log = comfy.log()
    assert "IMPORT FAILED" not in log
    line = next(line for line in log.splitlines() if "seconds" in line and line.endswith("spectral_adapters"))
    assert float(line.split("seconds")[0].split()[-1].split("]")[-1]) <= 0.3
