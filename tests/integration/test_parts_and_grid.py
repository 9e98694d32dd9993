"""Strength by part of the model, and the grid of adapters by strengths, in a running ComfyUI."""

import json
import time

import numpy as np
import pytest
from comfy_driver import PACK, Comfy, Run, difference, picture_graph
from sample_adapters import layer_keys

BASE = "small.safetensors"
VISIBLE = 1.0  # grey levels: every sample adapter changes the picture by more
SLIDERS = ("down", "mid", "up", "text", "self_attention", "cross_attention", "feed_forward", "convolution")
STRENGTHS = {"svdiff": 1.0, "rotation": 0.8}


@pytest.fixture(scope="module")
def base_picture(comfy: Comfy) -> np.ndarray:
    return comfy.run(picture_graph(BASE)).picture


def loader(name: str, model: float = 1.0, clip: float = 0.0) -> tuple[str, dict]:
    inputs = {"adapter": f"{name}.safetensors", "strength_model": model, "strength_clip": clip}
    return "SpectralAdapterLoader", inputs | {"strength_mode": "linear", "on_mismatch": "refuse"}


def blocks(single: str = "", **sliders: float) -> dict:
    inputs = dict.fromkeys(SLIDERS, 1.0) | {"single": single} | sliders
    return {"class_type": "SpectralAdapterBlocks", "inputs": inputs}


def in_parts(name: str, single: str = "", clip: float = 0.0, **sliders: float) -> dict:
    graph = picture_graph(BASE, loader(name, 1.0, clip))
    graph["30"] = blocks(single, **sliders)
    graph["20"]["inputs"]["parts"] = ["30", 0]
    return graph


def drawn(run: Run) -> np.ndarray:
    """The sampled picture; the node of the parts shows one of its own."""
    assert run.ok, run.error
    return next(picture for picture in run.pictures if picture.shape == (64, 64, 3))


def test_parts_of_one_change_nothing(comfy: Comfy) -> None:
    plain = comfy.run(picture_graph(BASE, loader("svdiff"))).picture
    run = comfy.run(in_parts("svdiff"))
    assert difference(drawn(run), plain) == 0
    assert run.text["30"] == "All parts as trained."
    assert any(picture.shape[1] == 640 for picture in run.pictures), "the node shows the factors as a picture"


def test_parts_of_zero_are_the_base(comfy: Comfy, base_picture: np.ndarray) -> None:
    run = comfy.run(in_parts("svdiff", "*=0", clip=1.0))
    assert difference(drawn(run), base_picture) == 0
    assert f"{len(layer_keys())} of them left alone: their part is 0." in run.text["20"]


def test_all_parts_at_a_half_are_half_the_strength(comfy: Comfy) -> None:
    half = comfy.run(picture_graph(BASE, loader("additive", 0.5))).picture
    assert difference(drawn(comfy.run(in_parts("additive", "*=0.5"))), half) == 0
    spelt = in_parts("additive", down=0.5, mid=0.5, up=0.5)
    assert difference(drawn(comfy.run(spelt)), half) == 0


def test_blocks_of_the_text_and_sliders_work_together(comfy: Comfy, base_picture: np.ndarray) -> None:
    # The small checkpoint has blocks of its own: DOWN0, MID and UP0.
    one, other = (drawn(comfy.run(in_parts("svdiff", text, down=0.0, mid=0.0))) for text in ("", "UP0=0"))
    assert difference(one, base_picture) > 0.1, "the up blocks are left"
    assert difference(other, base_picture) == 0
    again = comfy.run(in_parts("svdiff", "DOWN0=1, UP*=0, IN04=0.5", down=0.0, mid=0.0))
    assert difference(drawn(again), base_picture) > 0.1, "a named block stands over its half"
    assert "down: IN00-IN03 0, IN04 0.5, IN05-IN11 0" in again.text["30"]


def test_columns_are_told_apart_and_add_up(comfy: Comfy) -> None:
    """What the first columns and what the others do is, together, what the adapter does."""
    texts = "columns 0-3=0", "columns *=0, columns 0-3=1"
    without, only = (drawn(comfy.run(in_parts("rotation", text))) for text in texts)
    whole = comfy.run(picture_graph(BASE, loader("rotation"))).picture
    assert difference(without, whole) > 0.05
    assert difference(only, whole) > 0.05
    both = picture_graph(BASE, loader("rotation"), loader("rotation"))
    for node, parts, text in zip(("20", "21"), ("30", "31"), texts):
        both[parts] = blocks(text)
        both[node]["inputs"]["parts"] = [parts, 0]
    assert difference(drawn(comfy.run(both)), whole) < 0.05


def test_two_tables_multiply(comfy: Comfy) -> None:
    graph = in_parts("additive", "*=0.5")
    graph["31"] = blocks("*=0.6")
    graph["30"]["inputs"]["parts"] = ["31", 0]
    expected = comfy.run(picture_graph(BASE, loader("additive", 0.3))).picture
    assert difference(drawn(comfy.run(graph)), expected) < 0.01


def test_an_unknown_part_is_refused_before_the_run(comfy: Comfy) -> None:
    refused = comfy.run(in_parts("svdiff", "IN12=0.5"))
    assert not refused.ok
    assert "IN00-IN11" in refused.error


def grid(*names: str, strengths: str = "0, 1", steps: int = 2, **more: object) -> dict:
    graph = picture_graph(BASE)
    for node in ("2", "3", "4", "5", "6", "7"):
        del graph[node]
    rows = [{"on": True, "adapter": f"{name}.safetensors", "model": STRENGTHS[name], "clip": 0} for name in names]
    graph["20"] = {"class_type": "SpectralAdapterStack", "inputs": {"rows": json.dumps(rows), "on_mismatch": "refuse"}}
    inputs = {
        "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "adapters": ["20", 3], "positive": "a dog on a beach",
        "negative": "", "strengths": strengths, "seed": 1, "steps": steps, "cfg": 1.0, "sampler_name": "euler",
        "scheduler": "normal", "width": 64, "height": 64, "trigger_words": False, "together": False,
        "on_mismatch": "refuse",
    }  # fmt: skip
    graph["21"] = {"class_type": "SpectralAdapterXY", "inputs": inputs | more}
    graph["22"] = {"class_type": "SaveImage", "inputs": {"images": ["21", 1], "filename_prefix": "cells"}}
    return graph


def test_the_grids_pictures_are_those_of_the_plain_nodes(comfy: Comfy, base_picture: np.ndarray) -> None:
    run = comfy.run(grid("svdiff", "rotation", together=True))
    assert run.ok, run.error
    sheet, cells = [p for p in run.pictures if p.shape[0] > 64], [p for p in run.pictures if p.shape[0] == 64]
    assert len(sheet) == 1
    assert run.text["21"] == "6 pictures: 3 by 2."
    plain = [comfy.run(picture_graph(BASE, loader(name, STRENGTHS[name]))).picture for name in STRENGTHS]
    both = comfy.run(picture_graph(BASE, *(loader(name, STRENGTHS[name]) for name in STRENGTHS))).picture
    expected = [base_picture, plain[0], base_picture, plain[1], base_picture, both]
    assert [difference(cell, wanted) for cell, wanted in zip(cells, expected, strict=True)] == [0] * 6
    assert difference(comfy.run(picture_graph(BASE)).picture, base_picture) == 0


def test_trigger_words_are_put_before_the_prompt(comfy: Comfy) -> None:
    called = comfy.run(grid("rotation", strengths="1", trigger_words=True)).pictures[-1]
    graph = picture_graph(BASE, loader("rotation", STRENGTHS["rotation"]))
    # The prompt has "dog" already.
    graph["2"]["inputs"]["text"] = "sks, a dog on a beach"
    assert difference(called, comfy.run(graph).picture) == 0


@pytest.mark.parametrize(("strengths", "word"), [("1, big", "'big'"), ("", "found none"), ("11", "up to 10")])
def test_strengths_that_are_none_are_refused_before_the_run(strengths: str, word: str, comfy: Comfy) -> None:
    assert word in comfy.run(grid("rotation", strengths=strengths)).error


def test_too_large_a_grid_is_refused(comfy: Comfy) -> None:
    refused = comfy.run(grid("rotation", strengths=" ".join(["1"] * 101)))
    assert "101 pictures; expected at most 100" in refused.error


def test_cancel_ends_the_grid(comfy: Comfy) -> None:
    prompt = comfy.queue(grid("rotation", strengths="1, 0.9, 0.8", steps=1000))["prompt_id"]
    while not comfy.get("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(3)
    began = time.monotonic()
    comfy.post("/interrupt", {})
    assert comfy.wait(prompt).error == "interrupted"
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("node", ["SpectralAdapterBlocks", "SpectralAdapterSchedule", "SpectralAdapterXY"])
def test_the_nodes_describe_themselves(node: str, comfy: Comfy) -> None:
    info = comfy.get(f"/object_info/{node}")[node]
    inputs = info["input"]["required"] | info["input"].get("optional", {})
    assert [name for name, spec in inputs.items() if not spec[1].get("tooltip")] == []
    named = json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))[node]
    assert {name: spec[1]["tooltip"] for name, spec in inputs.items()} == {
        name: texts["tooltip"] for name, texts in named["inputs"].items()
    }
    assert [output["name"] for output in named["outputs"].values()] == info["output_name"]
    status, page = comfy.call(f"/extensions/spectral_adapters/docs/{node}/en.md")
    assert status == 200
    assert [name for name in inputs if name not in page.decode()] == []
