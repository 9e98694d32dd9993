"""The stack in a running ComfyUI: rows on, off, in any order, next to loaders one after the other."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from comfy_driver import PACK, Comfy, Run, difference, picture_graph

NODE = "SpectralAdapterStack"
BASE = "small.safetensors"
VISIBLE = 1.0  # grey levels: every sample adapter changes the picture by more
ROUNDING = 0.1  # grey levels: a LoRA's product in ComfyUI's order and in ours


@pytest.fixture(scope="module")
def comfy(
    comfy_root: Path, comfy_python: str, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("comfy")
    models = base / "models"
    for folder, pattern in (("checkpoints", "*.safetensors"), ("loras/animals", "adapters/*-lora.safetensors")):
        (models / folder).mkdir(parents=True)
        for file in library.glob(pattern):
            (models / folder / file.name).symlink_to(file)
    shutil.copytree(library / "adapters", models / "spectral_adapters")
    with Comfy(comfy_root, comfy_python, base, [PACK]) as server:
        yield server


@pytest.fixture(scope="module")
def base_picture(comfy: Comfy) -> np.ndarray:
    return comfy.run(picture_graph(BASE)).picture


def row(name: str, model: float = 1.0, clip: float = 0.0, **more: object) -> dict:
    """Mostly without the text encoder, which is slow at its full size."""
    return {"on": True, "adapter": f"{name}.safetensors", "model": model, "clip": clip} | more


def stack(*rows: dict, mismatch: str = "refuse", **more: object) -> tuple:
    return NODE, {"rows": json.dumps(rows), "on_mismatch": mismatch} | more


def loader(name: str, model: float = 1.0, clip: float = 0.0) -> tuple:
    inputs = {"adapter": f"{name}.safetensors", "strength_model": model, "strength_clip": clip}
    return "SpectralAdapterLoader", inputs | {"strength_mode": "linear", "on_mismatch": "refuse"}


def adapted(comfy: Comfy, *nodes: tuple, checkpoint: str = BASE) -> Run:
    return comfy.run(picture_graph(checkpoint, *nodes))


def test_rows_equal_loaders_one_after_the_other_bit_for_bit(comfy: Comfy, base_picture: np.ndarray) -> None:
    chained = adapted(comfy, loader("svdiff", 0.7, 0.7), loader("rotation", 0.5), loader("additive", -0.4, 0.3))
    stacked = adapted(comfy, stack(row("svdiff", 0.7, 0.7), row("rotation", 0.5), row("additive", -0.4, 0.3)))
    assert difference(stacked.picture, chained.picture) == 0
    assert difference(stacked.picture, base_picture) > VISIBLE
    assert [line.split(":")[0] for line in stacked.text["20"].splitlines() if line.startswith("row")] == [
        "row 1 (svdiff)",
        "row 2 (rotation)",
        "row 3 (additive)",
    ]


def test_rows_that_are_off_or_empty_change_nothing(comfy: Comfy, base_picture: np.ndarray) -> None:
    one = adapted(comfy, stack(row("rotation", on=False), row("additive"), {"adapter": ""}))
    assert difference(one.picture, adapted(comfy, loader("additive")).picture) == 0
    assert "row 2 (additive): " in one.text["20"]
    none = adapted(comfy, stack(row("rotation", on=False)))
    assert difference(none.picture, base_picture) == 0
    assert "No row is on" in none.text["20"]
    assert difference(adapted(comfy, stack()).picture, base_picture) == 0


def test_a_changed_row_prepares_only_itself(comfy: Comfy) -> None:
    adapted(comfy, stack(row("svdiff"), row("soda")))
    moved = adapted(comfy, stack(row("soda", 0.3), row("svdiff", 0.9)))
    assert moved.text["20"].count("kept from the last run") == 2
    changed = adapted(comfy, stack(row("soda", 0.3), row("rotation-compact")))
    lines = changed.text["20"].splitlines()
    assert "kept from the last run" in lines[1]
    assert "from cache" in lines[4]


def test_the_order_of_rows_matters_to_rounding_only(comfy: Comfy) -> None:
    one = adapted(comfy, stack(row("additive"), row("unet-only", 0.5)))
    two = adapted(comfy, stack(row("unet-only", 0.5), row("additive")))
    assert difference(one.picture, two.picture) < 0.05


@pytest.mark.parametrize("name", ["additive", "rotation"])
def test_a_lora_row_paints_as_core_does(name: str, comfy: Comfy, base_picture: np.ndarray) -> None:
    inputs = {"lora_name": f"animals/{name}-lora.safetensors", "strength_model": 0.8, "strength_clip": 0.8}
    core = adapted(comfy, ("LoraLoader", inputs)).picture
    ours = adapted(comfy, stack(row(f"loras/animals/{name}-lora", 0.8, 0.8)))
    assert difference(ours.picture, base_picture) > VISIBLE
    assert difference(ours.picture, core) < ROUNDING
    assert "LoRA, no decomposition" in ours.text["20"] or "LoCon, no decomposition" in ours.text["20"]


def test_adapters_come_out_and_go_in_before_the_rows(comfy: Comfy, base_picture: np.ndarray) -> None:
    graph = picture_graph(BASE, loader("rotation", 0.6), stack(row("additive")))
    graph["21"]["inputs"] |= {"model": ["1", 0], "clip": ["1", 1], "adapters": ["20", 3]}
    graph["22"] = {"class_type": "PreviewAny", "inputs": {"source": ["21", 2]}}
    run = comfy.run(graph)
    chained = adapted(comfy, loader("rotation", 0.6), loader("additive"))
    assert difference(run.picture, chained.picture) == 0
    assert "rotation: " in run.text["21"] and "row 1 (additive): " in run.text["21"]
    assert run.text["22"] == "sks, dog"


def test_without_a_model_the_rows_only_come_out(comfy: Comfy) -> None:
    graph = picture_graph(BASE, stack(row("additive")), stack())
    del graph["20"]["inputs"]["model"], graph["20"]["inputs"]["clip"]
    graph["21"]["inputs"] |= {"model": ["1", 0], "clip": ["1", 1], "adapters": ["20", 3]}
    run = comfy.run(graph)
    assert "no model is connected" in run.text["20"]
    assert difference(run.picture, adapted(comfy, loader("additive")).picture) == 0


def test_parts_of_a_row_move_without_preparation(comfy: Comfy, base_picture: np.ndarray) -> None:
    whole = adapted(comfy, stack(row("additive")))
    off = adapted(comfy, stack(row("additive", parts="*=0")))
    assert difference(off.picture, base_picture) == 0
    half = adapted(comfy, stack(row("additive", parts="*=0.5")))
    assert "kept from the last run" in half.text["20"]
    assert difference(half.picture, adapted(comfy, stack(row("additive", 0.5))).picture) == 0
    mid = adapted(comfy, stack(row("additive", parts="*=0, mid=1")))
    assert 0 < difference(mid.picture, base_picture) < difference(whole.picture, base_picture)
    assert "left alone: their part is 0" in mid.text["20"]
    columns = adapted(comfy, stack(row("additive", parts="columns 2-=0")))
    assert difference(columns.picture, whole.picture) > 0


def test_another_base_is_refused_by_row_and_the_model_stays_as_it_was(comfy: Comfy) -> None:
    plain = comfy.run(picture_graph("changed.safetensors")).picture
    refused = adapted(comfy, stack(row("additive"), row("svdiff")), checkpoint="changed.safetensors")
    assert not refused.ok
    assert refused.error.startswith("row 2 (svdiff): ")
    assert "off by" in refused.error
    assert difference(comfy.run(picture_graph("changed.safetensors")).picture, plain) == 0
    forced = adapted(comfy, stack(row("additive"), row("svdiff"), mismatch="force"), checkpoint="changed.safetensors")
    assert difference(forced.picture, plain) > VISIBLE
    family = adapted(comfy, stack(row("additive"), row("sdxl")))
    assert family.error.startswith("row 2 (sdxl): ") and "SDXL" in family.error


@pytest.mark.parametrize(
    "rows, words",
    [
        (json.dumps([row("additive"), row("nowhere")]), ("row 2", "nowhere.safetensors")),
        (json.dumps([row("loras/nowhere")]), ("row 1", "LoRA", "nowhere.safetensors")),
        (json.dumps([row("additive", model=11)]), ("row 1, model", "11")),
        (json.dumps([row("additive", weight=1)]), ("row 1", "weight")),
        (json.dumps([row("additive", on="yes")]), ("row 1", "yes")),
        ("[{", ("no JSON",)),
        ('{"adapter": "additive.safetensors"}', ("expected a list",)),
        (json.dumps([row("../../checkpoints/small")]), ("row 1", "not found")),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_before_anything_runs(rows: str, words: tuple[str, ...], comfy: Comfy) -> None:
    answer = comfy.queue(picture_graph(BASE, (NODE, {"rows": rows, "on_mismatch": "refuse"})))
    assert "prompt_id" not in answer
    for word in words:
        assert word in json.dumps(answer, ensure_ascii=False).replace("\\\\", "\\")


def test_a_broken_file_or_part_names_its_row(comfy: Comfy) -> None:
    broken = adapted(comfy, stack(row("additive"), row("cut-off")))
    assert broken.error.startswith("row 2 (cut-off): ")
    part = adapted(comfy, stack(row("additive", parts="IN99=1")))
    assert part.error.startswith("row 1 (additive): ") and "IN99" in part.error


def test_a_replaced_file_is_loaded_again(comfy: Comfy, library: Path) -> None:
    file = comfy.base / "models" / "spectral_adapters" / "swapped.safetensors"
    shutil.copy(library / "adapters" / "additive.safetensors", file)
    first = adapted(comfy, stack(row("swapped")))
    assert "20" in adapted(comfy, stack(row("swapped"))).cached
    shutil.copy(library / "adapters" / "rotation.safetensors", file)
    second = adapted(comfy, stack(row("swapped")))
    assert difference(first.picture, second.picture) > VISIBLE
    assert difference(second.picture, adapted(comfy, loader("rotation")).picture) == 0
