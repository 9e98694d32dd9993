"""Strength over the steps and over the parts of a model, in a running ComfyUI."""

import json

import numpy as np
import pytest
from comfy_driver import Comfy, Run, difference, picture_graph

BASE = "small.safetensors"
STEPS = 4
VISIBLE = 1.0  # grey levels: every sample adapter changes the picture by more
ROUNDING = 0.01  # grey levels: the order of the same additions


@pytest.fixture(scope="module")
def base_picture(comfy: Comfy) -> np.ndarray:
    return comfy.run(picture_graph(BASE, steps=STEPS)).picture


def row(name: str, model: float = 1.0, clip: float = 0.0, **more: object) -> dict:
    return {"on": True, "adapter": f"{name}.safetensors", "model": model, "clip": clip} | more


def stack(*rows: dict) -> tuple[str, dict]:
    return "SpectralAdapterStack", {"rows": json.dumps(rows), "on_mismatch": "refuse"}


def loader(name: str, model: float = 1.0, clip: float = 0.0) -> tuple[str, dict]:
    inputs = {"adapter": f"{name}.safetensors", "strength_model": model, "strength_clip": clip}
    return "SpectralAdapterLoader", inputs | {"strength_mode": "linear", "on_mismatch": "refuse"}


def scheduled(
    *rows: dict, start: float = 1.0, end: float = 0.0, span: tuple[float, float] = (0, 1), easing: str = "linear",
    levels: int = 20, schedule_clip: bool = True, steps: int = STEPS,
) -> dict:  # fmt: skip
    """A stack without a model, its adapters on a schedule, and the plain model sampled."""
    graph = picture_graph(BASE, steps=steps)
    graph["20"] = {"class_type": "SpectralAdapterStack", "inputs": stack(*rows)[1]}
    curve = {"strength_start": start, "strength_end": end, "start_percent": span[0], "end_percent": span[1]}
    inputs = {"model": ["1", 0], "clip": ["1", 1], "adapters": ["20", 3], "easing": easing, "levels": levels}
    inputs |= curve | {"schedule_clip": schedule_clip, "on_mismatch": "refuse"}
    graph["21"] = {"class_type": "SpectralAdapterSchedule", "inputs": inputs}
    for node in ("2", "3"):
        graph[node]["inputs"]["clip"] = ["21", 0]
    return graph


def halves(first: list, second: list, conditionings: tuple[list, list], switch: int) -> dict:
    """The picture of a model for the first steps, and another model with another prompt for the rest."""
    graph = picture_graph(BASE, steps=STEPS)
    for node, clip in (("30", conditionings[0]), ("31", conditionings[1])):
        for end, source in (("p", "2"), ("n", "3")):
            text = graph[source]["inputs"]["text"]
            graph[node + end] = {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": clip}}
    del graph["5"]
    common = {"noise_seed": 1, "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    one = {"model": first, "positive": ["30p", 0], "negative": ["30n", 0], "latent_image": ["4", 0]}
    one |= {"add_noise": "enable", "start_at_step": 0, "end_at_step": switch, "return_with_leftover_noise": "enable"}
    two = {"model": second, "positive": ["31p", 0], "negative": ["31n", 0], "latent_image": ["40", 0]}
    two |= {"add_noise": "disable", "start_at_step": switch, "end_at_step": STEPS}
    two |= {"return_with_leftover_noise": "disable"}
    graph["40"] = {"class_type": "KSamplerAdvanced", "inputs": common | one}
    graph["5"] = {"class_type": "KSamplerAdvanced", "inputs": common | two}
    return graph


def adapted(comfy: Comfy, *nodes: tuple[str, dict], steps: int = STEPS) -> Run:
    return comfy.run(picture_graph(BASE, *nodes, steps=steps))


@pytest.mark.parametrize("rows", [[("svdiff", 1.0, 1.0)], [("norms", 0.8, 0.6), ("rotation", 0.5, -0.3)]])
def test_a_constant_curve_is_the_plain_adapter_bit_for_bit(rows, comfy: Comfy, base_picture: np.ndarray) -> None:
    plain = adapted(comfy, *(loader(*each) for each in rows))
    curved = comfy.run(scheduled(*(row(*each) for each in rows), start=1, end=1))
    assert difference(curved.picture, plain.picture) == 0
    assert difference(curved.picture, base_picture) > VISIBLE
    assert "Strength 1 throughout; 1 level." in curved.text["21"]


def test_a_curve_of_nothing_is_the_base_bit_for_bit(comfy: Comfy, base_picture: np.ndarray) -> None:
    assert difference(comfy.run(scheduled(row("svdiff", 1, 1), start=0, end=0)).picture, base_picture) == 0
    never = comfy.run(scheduled(row("norms", 1, 1), start=0, end=1, span=(1, 1))).picture
    assert difference(never, base_picture) == 0


def test_after_a_schedule_the_base_is_as_before(comfy: Comfy, base_picture: np.ndarray) -> None:
    assert difference(comfy.run(scheduled(row("norms", 1, 1), levels=3)).picture, base_picture) > VISIBLE
    assert difference(comfy.run(picture_graph(BASE, steps=STEPS)).picture, base_picture) == 0


@pytest.mark.parametrize("switch", [1, 2])
def test_a_step_is_a_change_of_models_while_sampling(switch: int, comfy: Comfy, base_picture: np.ndarray) -> None:
    graph = halves(["20", 0], ["1", 0], (["20", 1], ["1", 1]), switch)
    name, inputs = loader("svdiff", 1.0, 1.0)
    graph["20"] = {"class_type": name, "inputs": inputs | {"model": ["1", 0], "clip": ["1", 1]}}
    switched = comfy.run(graph).picture
    # The steps of this schedule lie at 0, 1/3, 2/3 and all of the course: the border between two of them.
    border = (switch - 0.5) / (STEPS - 1)
    curved = comfy.run(scheduled(row("svdiff", 1, 1), span=(border, border), easing="step"))
    assert difference(curved.picture, switched) == 0
    assert difference(curved.picture, base_picture) > VISIBLE / 4
    assert difference(curved.picture, adapted(comfy, loader("svdiff", 1.0, 1.0)).picture) > 0.1
    assert "2 levels" in curved.text["21"]


def test_a_step_on_the_border_belongs_to_what_follows(comfy: Comfy) -> None:
    at, before = (
        comfy.run(scheduled(row("svdiff", 1, 1), span=(share, share), easing="step")).picture for share in (1 / 3, 0.3)
    )
    assert difference(at, before) == 0


def test_a_slope_is_sampled_where_the_steps_are(comfy: Comfy) -> None:
    """With as many levels as steps lie apart, each step has the strength of a model switched in there."""
    graph = halves(["20", 0], ["21", 0], (["20", 1], ["21", 1]), 1)
    for node, strength in (("20", 1.0), ("21", 0.5)):
        name, inputs = loader("additive", strength, strength)
        graph[node] = {"class_type": name, "inputs": inputs | {"model": ["1", 0], "clip": ["1", 1]}}
    switched = comfy.run(graph).picture
    curved = comfy.run(scheduled(row("additive", 1, 1), end=0.5, span=(0, 1 / 3), levels=1))
    assert difference(curved.picture, switched) == 0


def test_more_levels_than_steps_do_not_fall_behind(comfy: Comfy) -> None:
    few, many = (comfy.run(scheduled(row("svdiff"), levels=levels)).picture for levels in (3, 150))
    assert difference(few, many) < 0.05, "both have 1, 2/3, 1/3 and 0 at the four steps, to half a level"


def test_the_text_encoder_may_keep_its_strength(comfy: Comfy, base_picture: np.ndarray) -> None:
    off = {"start": 0, "end": 0}
    only_text = comfy.run(scheduled(row("additive", 1, 1), **off, schedule_clip=False)).picture
    assert difference(only_text, base_picture) > 0
    by_loader = adapted(comfy, loader("additive", 0.0, 1.0)).picture
    assert difference(only_text, by_loader) == 0


def test_two_schedules_add_up(comfy: Comfy) -> None:
    graph = scheduled(row("svdiff", 1, 1), start=1, end=1)
    graph["22"] = {"class_type": "SpectralAdapterStack", "inputs": stack(row("rotation", 0.5, 0.5))[1]}
    second = graph["21"]["inputs"] | {"clip": ["21", 0], "adapters": ["22", 3]}
    graph["23"] = {"class_type": "SpectralAdapterSchedule", "inputs": second}
    for node in ("2", "3"):
        graph[node]["inputs"]["clip"] = ["23", 0]
    both = adapted(comfy, loader("svdiff", 1.0, 1.0), loader("rotation", 0.5, 0.5)).picture
    assert difference(comfy.run(graph).picture, both) <= ROUNDING


def test_the_hooks_alone_serve_comfyuis_own_nodes(comfy: Comfy) -> None:
    graph = scheduled(row("svdiff", 1, 0), start=1, end=0, span=(0.5, 0.5))
    wanted = comfy.run(graph).picture
    for node in ("2", "3"):
        graph[node]["inputs"]["clip"] = ["1", 1]
    for node, source in zip(("33", "34"), ("2", "3")):
        inputs = {"cond_NEW": [source, 0], "strength": 1.0, "set_cond_area": "default", "hooks": ["21", 1]}
        graph[node] = {"class_type": "ConditioningSetProperties", "inputs": inputs}
    graph["5"]["inputs"] |= {"positive": ["33", 0], "negative": ["34", 0]}
    assert difference(comfy.run(graph).picture, wanted) == 0


def test_hooked_weights_are_not_taken_for_the_models_own(comfy: Comfy) -> None:
    """After a prompt the text encoder keeps its hooks, here over the patches of a loader."""
    graph = scheduled(row("additive", 1, 1), start=1, end=1)
    name, inputs = loader("rotation", 1.0, 1.0)
    graph["23"] = {"class_type": name, "inputs": inputs | {"model": ["1", 0], "clip": ["1", 1]}}
    graph["21"]["inputs"]["clip"] = ["23", 1]
    assert comfy.run(graph).ok
    name, inputs = loader("svdiff", 1.0, 0.77)
    after = adapted(comfy, (name, inputs | {"strength_mode": "spectral"}))
    assert "Match 100.0 %" in after.text["20"]


def test_another_models_adapter_is_refused(comfy: Comfy) -> None:
    refused = comfy.run(scheduled(row("sdxl", 1, 1)))
    assert not refused.ok
    assert "trained on SDXL" in refused.error
    wrong = comfy.run(scheduled(row("svdiff"), span=(0.6, 0.4)))
    assert "expected the first not after the second" in wrong.error
