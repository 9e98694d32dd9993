"""Fusing, comparing, saving, extracting and transferring adapters in a running ComfyUI."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sample_adapters
from comfy_driver import PACK, Comfy, Run, difference, picture_graph
from safetensors import safe_open
from safetensors.torch import load_file
from trainings import wait_until

import spectral_adapters as sa

BASE, CHANGED = "small.safetensors", "changed.safetensors"
VISIBLE = 1.0  # grey levels: every sample adapter changes the picture by more
ROUNDING = 0.1  # grey levels: sums in another order, or through fp16
COUNT = len(sample_adapters.layer_keys())
UNET_COUNT = len(sample_adapters.layer_keys(text_encoder=False))
COLUMNS = {"left": "top:4@0", "right": "top:4@4", "over": "top:4@2"}
NODES = ("Fusion", "Conflict", "Save", "Extract", "Transfer")


@pytest.fixture(scope="module")
def comfy(comfy_root: Path, comfy_python: str, library: Path, stocked: Path) -> Iterator[Comfy]:
    adapters = stocked / "models" / "spectral_adapters"
    state = load_file(library / BASE)
    weights = {name: state[key].float() for name, key in sample_adapters.layer_keys().items()}
    for seed, (name, columns) in enumerate(COLUMNS.items()):
        made = sample_adapters.make(sa.method("additive", columns=columns), weights, "portable", seed=20 + seed)
        sa.save(made, adapters / f"{name}.safetensors", base_name="small", trigger_words=(f"{name} thing",))
    with Comfy(comfy_root, comfy_python, stocked, [PACK]) as server:
        yield server


@pytest.fixture(scope="module")
def base_picture(comfy: Comfy) -> np.ndarray:
    return comfy.run(picture_graph(BASE)).picture


Row = tuple[str, float, float]
"""An adapter's name and its strengths; mostly without the text encoder, which is slow at its full size."""


def on(name: str, model: float = 1.0, clip: float = 0.0) -> Row:
    return name, model, clip


def stack(*rows: Row) -> dict:
    """A stack without a model: its adapters come out of its output 3."""
    shown = [{"adapter": f"{name}.safetensors", "model": model, "clip": clip} for name, model, clip in rows]
    return {"class_type": "SpectralAdapterStack", "inputs": {"rows": json.dumps(shown), "on_mismatch": "refuse"}}


def loaders(*rows: Row) -> list[tuple]:
    """Loaders one after the other, as `picture_graph` takes them."""
    shown = [(f"{name}.safetensors", model, clip) for name, model, clip in rows]
    usual = {"strength_mode": "linear", "on_mismatch": "refuse"}
    return [
        ("SpectralAdapterLoader", {"adapter": name, "strength_model": model, "strength_clip": clip, **usual})
        for name, model, clip in shown
    ]


def chained(comfy: Comfy, *rows: Row) -> np.ndarray:
    return comfy.run(picture_graph(BASE, *loaders(*rows))).picture


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": f"SpectralAdapter{kind}", "inputs": inputs}


def settings(choice: str, **own: object) -> dict[str, object]:
    """A choice and what belongs to it, as prompts spell them: settings("mode", mode="sum")."""
    return {key if key == choice else f"{choice}.{key}": value for key, value in own.items()}


def fusion_graph(*sockets: tuple[Row, ...], mode: str = "sum", checkpoint: str = BASE, **more: object) -> dict:
    """checkpoint -> fusion of what each socket brings -> picture. The fusion is node "20", the stacks are "30", ..."""
    graph = picture_graph(
        checkpoint, ("SpectralAdapterFusion", {"mode": mode, "on_mismatch": "refuse", "verify": True})
    )
    for number, rows in enumerate(sockets):
        graph[str(30 + number)] = stack(*rows)
        graph["20"]["inputs"][f"adapters.adapter_{number}"] = [str(30 + number), 3]
    graph["20"]["inputs"] |= more
    return graph


def fused(comfy: Comfy, *sockets: tuple[Row, ...], mode: str = "sum", **more: object) -> Run:
    return comfy.run(fusion_graph(*sockets, mode=mode, **more))


def checkpoints(*names: str) -> dict:
    """Checkpoint loaders with the ids "1", "2", ..."""
    return {
        str(i): {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}
        for i, name in enumerate(names or (BASE,), 1)
    }


def saved(comfy: Comfy, adapters: dict, format: str = "auto", name: str = "made", **more: object) -> Run:
    """Nodes that end in "30", whose output 3 (of a stack) or 0 is saved by node "50"."""
    output = 3 if adapters["30"]["class_type"].endswith("Stack") else 0
    save = node("Save", adapters=["30", output], name=name, format=format, **more)
    return comfy.run(checkpoints() | adapters | {"50": save})


def written(run: Run) -> Path:
    """output/... of the report of a save, from ComfyUI's base folder on."""
    assert run.ok, run.error
    return Path(re.search(r"Wrote (\S+),", run.text["50"])[1])


def verified_error(run: Run) -> float:
    return float(re.search(r"largest (\S+) in", run.text["20"])[1])


def picture_of_lora(comfy: Comfy, file: str, strength: float = 1.0, clip: float = 0.0) -> np.ndarray:
    """Through ComfyUI's own loader."""
    inputs = {"lora_name": file, "strength_model": strength, "strength_clip": clip}
    return comfy.run(picture_graph(BASE, ("LoraLoader", inputs))).picture


def test_disjoint_adapters_fuse_to_what_loaders_in_a_row_paint(comfy: Comfy, base_picture: np.ndarray) -> None:
    run = fused(comfy, (on("left", 1, 1),), (on("right", 1, 1),))
    assert difference(run.picture, chained(comfy, on("left", 1, 1), on("right", 1, 1))) < ROUNDING
    assert difference(run.picture, base_picture) > VISIBLE
    assert "as one additive adapter" in run.text["20"] and f"Verified: {COUNT} layers" in run.text["20"]
    assert verified_error(run) < 1e-3  # the adapters' own fp16 parameters
    assert f"{COUNT} of {COUNT} layers applied" in fused_text(comfy, (on("left", 1, 1),), (on("right", 1, 1),))


def fused_text(comfy: Comfy, *sockets: tuple[Row, ...]) -> str:
    """The report as the node's output hands it on, with what was applied."""
    graph = fusion_graph(*sockets)
    graph["60"] = {"class_type": "PreviewAny", "inputs": {"source": ["20", 4]}}
    run = comfy.run(graph)
    assert run.ok, run.error
    return run.text["60"]


@pytest.mark.parametrize(
    "rows",
    [
        (on("left"), on("over")),
        (on("additive", 0.8), on("rotation", 0.5), on("svdiff", -0.3)),
        (on("left", 0.5, 0.5), on("svdiff", 0.4, 0.9)),
        (on("left"), on("loras/additive-lora", 0.6)),
        (on("rotation-compact"), on("soda", 0.5)),
    ],
    ids=["overlapping", "methods", "two strengths", "a LoRA", "compact"],
)
def test_any_adapters_fuse_to_their_sum(rows: tuple[Row, ...], comfy: Comfy, base_picture: np.ndarray) -> None:
    run = fused(comfy, rows)
    assert run.ok, run.error
    one_by_one = picture_graph(BASE, ("SpectralAdapterStack", {**stack(*rows)["inputs"]}))
    assert difference(run.picture, comfy.run(one_by_one).picture) < ROUNDING
    assert difference(run.picture, base_picture) > VISIBLE
    assert verified_error(run) < 1e-3


def test_parts_are_fused_as_they_are_applied(comfy: Comfy, base_picture: np.ndarray) -> None:
    rows = json.loads(stack(on("left"), on("loras/rotation-lora"))["inputs"]["rows"])
    rows[0] |= {"parts": "mid=0.3, columns 0-1=0.5"}
    rows[1] |= {"parts": "self-attention=0"}
    graph = fusion_graph((on("left"),))
    graph["30"]["inputs"]["rows"] = json.dumps(rows)
    run = comfy.run(graph)
    assert run.ok, run.error
    applied = picture_graph(BASE, ("SpectralAdapterStack", graph["30"]["inputs"]))
    assert difference(run.picture, comfy.run(applied).picture) < ROUNDING
    assert difference(run.picture, chained_rows(comfy, on("left"), on("loras/rotation-lora"))) > ROUNDING


def test_inputs_grow_and_may_have_gaps(comfy: Comfy) -> None:
    graph = fusion_graph((on("left"),), (on("right"), on("rotation", 0.5)), (on("svdiff", 0.3),))
    graph["20"]["inputs"]["adapters.adapter_7"] = graph["20"]["inputs"].pop("adapters.adapter_1")
    run = comfy.run(graph)
    assert run.ok, run.error
    assert "sum of left x 1, svdiff x 0.3, right x 1, rotation x 0.5" in run.text["20"]
    same = (on("left"), on("svdiff", 0.3), on("right"), on("rotation", 0.5))
    assert difference(run.picture, chained(comfy, *same)) < ROUNDING


@pytest.mark.parametrize(
    ("mode", "rows"),
    [
        ("mean", (on("left"), on("svdiff"))),
        ("paper", (on("left"), on("right"))),
        ("rotate", (on("rotation", 0.3), on("rotation", 0.3))),
        ("shift", (on("svdiff", 0.7), on("svdiff", 0.5))),
        ("interpolate", (on("svdiff", 2.0), on("rotation", 2.0))),
    ],
)
def test_modes(mode: str, rows: tuple[Row, ...], comfy: Comfy, base_picture: np.ndarray) -> None:
    run = fused(comfy, rows, mode=mode)
    assert run.ok, run.error
    assert verified_error(run) < 2e-3
    assert difference(run.picture, base_picture) > 0.3
    if mode in ("mean", "interpolate"):
        halves = [(name, 0.5, 0.0) for name, _, _ in rows]
        assert difference(run.picture, chained(comfy, *halves)) < ROUNDING
    if mode == "paper":
        mean = fused(comfy, rows, mode="mean").picture
        assert 0 < difference(run.picture, mean) < difference(run.picture, base_picture)


def test_gradient_mode_samples_with_each_adapter(comfy: Comfy, base_picture: np.ndarray) -> None:
    own = settings("mode", mode="gradient", steps=2, size=64, prompts="")
    run = fused(comfy, (on("left"), on("over")), **own)
    assert run.ok, run.error
    assert f"Recorded {UNET_COUNT} layers in 2 steps per adapter" in run.text["20"]
    assert verified_error(run) < 1e-3
    summed = fused(comfy, (on("left"), on("over"))).picture
    assert difference(run.picture, summed) > ROUNDING and difference(run.picture, base_picture) > VISIBLE
    assert difference(comfy.run(picture_graph(BASE)).picture, base_picture) == 0
    for prompts in ("one line", "one\ntwo\nthree"):
        refused = fused(comfy, (on("left"), on("over")), **(own | {"mode.prompts": prompts}))
        assert not refused.ok and "expected one line per adapter" in refused.error
    graph = fusion_graph((on("left"), on("over")), **own)
    del graph["20"]["inputs"]["clip"]
    for prompt in ("2", "3"):
        graph[prompt]["inputs"]["clip"] = ["1", 1]
    refused = comfy.run(graph)
    assert not refused.ok and "Connect the checkpoint's CLIP" in refused.error


def test_the_same_inputs_are_not_computed_again(comfy: Comfy) -> None:
    first = fused(comfy, (on("left", 0.9),), (on("right", 0.9),))
    again = fused(comfy, (on("left", 0.9),), (on("right", 0.9),))
    assert {"20", "30", "31"} <= set(again.cached) and difference(first.picture, again.picture) == 0
    moved = fused(comfy, (on("left", 0.9),), (on("right", 0.8),))
    assert "20" not in moved.cached and difference(first.picture, moved.picture) > 0


def test_the_fused_adapter_goes_on_as_one(comfy: Comfy) -> None:
    """Into another stack, and into another fusion."""
    graph = fusion_graph((on("left"),), (on("right"),))
    graph["40"] = node("Stack", model=["1", 0], clip=["1", 1], adapters=["20", 3], rows="[]", on_mismatch="refuse")
    graph["5"]["inputs"]["model"] = ["40", 0]
    once = comfy.run(graph)
    assert difference(once.picture, chained(comfy, on("left"), on("right"))) < ROUNDING
    graph["41"] = node("Fusion", model=["1", 0], mode="sum", on_mismatch="refuse", verify=True)
    graph["41"]["inputs"] |= {"adapters.adapter_0": ["20", 3], "adapters.adapter_1": ["30", 3]}
    graph["5"]["inputs"]["model"] = ["41", 0]
    twice = comfy.run(graph)
    assert difference(twice.picture, chained(comfy, on("left", 2.0), on("right"))) < ROUNDING


@pytest.mark.parametrize(
    ("mode", "rows", "words"),
    [
        ("paper", (on("left"), on("rotation")), ("left", "rotation", "choose sum")),
        ("rotate", (on("left"), on("right")), ("choose sum",)),
        ("sum", (on("left"), on("sdxl")), ("sdxl", "not in the connected model")),
        ("sum", (on("left", 0.0),), ("left", "strengths are 0")),
        ("sum", (), ("found no adapter at the inputs", "Spectral Adapter Loader")),
        ("interpolate", (on("left"), on("right", -1.0)), ("add up to 0",)),
        ("paper", (on("left", 1, 0.5), on("right", 1, 1)), ("left", "one strength", "paper")),
        ("sum", (on("left"), on("cut-off")), ("cut-off", "cut off")),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    mode: str, rows: tuple[Row, ...], words: tuple[str, ...], comfy: Comfy, base_picture: np.ndarray
) -> None:
    refused = fused(comfy, rows, mode=mode)
    assert not refused.ok
    for word in words:
        assert word in refused.error
    assert difference(comfy.run(picture_graph(BASE)).picture, base_picture) == 0


def test_another_base_is_refused_by_name(comfy: Comfy) -> None:
    refused = comfy.run(fusion_graph((on("left"), on("svdiff")), checkpoint=CHANGED))
    assert not refused.ok and "svdiff" in refused.error and "off by" in refused.error
    forced = comfy.run(fusion_graph((on("left"), on("svdiff")), checkpoint=CHANGED, on_mismatch="force"))
    assert forced.ok, forced.error


def test_without_connections_or_with_an_unknown_mode_nothing_runs(comfy: Comfy) -> None:
    graph = fusion_graph((on("left"),))
    del graph["20"]["inputs"]["adapters.adapter_0"]
    refused = comfy.run(graph)
    assert not refused.ok and ("adapter_0" in refused.error or "found no adapter" in refused.error)
    unknown = fused(comfy, (on("left"),), mode="magic")
    assert not unknown.ok and "mode" in unknown.error


def test_the_report_says_what_is_left_out(comfy: Comfy) -> None:
    graph = fusion_graph((on("left", 1, 1),), (on("right", 1, 0),))
    del graph["20"]["inputs"]["clip"]
    for prompt in ("2", "3"):
        graph[prompt]["inputs"]["clip"] = ["1", 1]
    run = comfy.run(graph)
    left = COUNT - UNET_COUNT
    assert f"left: {left} of {COUNT} layers left out, no CLIP is connected." in run.text["20"]
    assert f"right: {left} of {COUNT} layers left out, their strength is 0." in run.text["20"]


def conflict_of(comfy: Comfy, *rows: Row) -> Run:
    graph = checkpoints() | {"30": stack(*rows)}
    graph["40"] = node("Conflict", model=["1", 0], clip=["1", 1], **{"adapters.adapter_0": ["30", 3]})
    graph["60"] = {"class_type": "PreviewAny", "inputs": {"source": ["40", 1]}}
    return comfy.run(graph)


def test_the_conflict_is_shown_before_fusing(comfy: Comfy) -> None:
    apart = conflict_of(comfy, on("left", 1, 1), on("right", 1, 1))
    assert apart.ok, apart.error
    assert "share no column" in apart.text["40"]
    over = conflict_of(comfy, on("left", 1, 1), on("over", 1, 1))
    assert "columns 2-3" in over.text["40"] and "left" in over.text["40"]
    for run in (apart, over):
        assert min(run.picture.shape[:2]) > 300 and run.picture.std() > 10
        assert run.text["40"] in run.text["60"] and len(run.text["60"]) > len(run.text["40"])
    assert difference(*(run.picture for run in (apart, over))) > 0.5 if apart.picture.shape == over.picture.shape else 1
    mixed = conflict_of(comfy, on("left"), on("loras/rotation-lora"), on("svdiff"))
    assert mixed.ok, mixed.error
    wrong = conflict_of(comfy, on("left"), on("sdxl"))
    assert not wrong.ok and "sdxl: " in wrong.error and "not in the connected model" in wrong.error
    alone = conflict_of(comfy, on("left"))
    assert not alone.ok and "expected 2 to" in alone.error


def test_a_native_file_is_listed_at_once_and_paints_the_same(comfy: Comfy) -> None:
    graph = fusion_graph((on("left", 1, 1),), (on("right", 1, 1),))
    graph["50"] = node("Save", adapters=["20", 3], name="both", format="auto", title="Two", author="Me")
    run = comfy.run(graph)
    file = written(run)
    assert file == Path("output/spectral_adapters/both.safetensors")
    assert "additive" in run.text["50"]
    assert difference(chained(comfy, on("both", 1, 1)), run.picture) < ROUNDING
    with safe_open(comfy.base / file, "numpy") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.title"] == "Two" and metadata["modelspec.author"] == "Me"
    assert json.loads(metadata["spectral.trigger_words"]) == ["left thing", "right thing"]
    assert metadata["modelspec.merged_from"] == "left, right"


def test_an_unchanged_adapter_is_saved_as_it_is(comfy: Comfy) -> None:
    run = saved(comfy, {"30": stack(on("svdiff", 1, 1))}, name="copy", trigger_words="new, words")
    path = comfy.base / written(run)
    source, copy = load_file(comfy.base / "models/spectral_adapters/svdiff.safetensors"), load_file(path)
    assert source.keys() == copy.keys() and all((source[key] == copy[key]).all() for key in source)
    assert sa.load(path).trigger_words == ["new", "words"] and sa.load(path).base_name == "small"


def test_nothing_is_ever_overwritten(comfy: Comfy) -> None:
    adapters = {"30": stack(on("left", 1, 1))}
    first = written(saved(comfy, adapters, name="same", title="1"))
    before = (comfy.base / first).read_bytes()
    second = written(saved(comfy, adapters, name="same.safetensors", title="2"))
    elsewhere = written(saved(comfy, adapters, name="rotation"))  # a name that models/ has
    assert [path.name for path in (first, second, elsewhere)] == [
        "same.safetensors", "same-2.safetensors", "rotation-2.safetensors",
    ]  # fmt: skip
    assert (comfy.base / first).read_bytes() == before
    assert not list((comfy.base / "output").rglob("*.tmp"))
    for name in ("../outside", "a/b", "", "con"):
        refused = saved(comfy, adapters, name=name)
        assert not refused.ok and "name" in refused.error
    assert not list(comfy.base.rglob("outside*"))


def test_a_lora_paints_the_same_in_comfyuis_own_loader(comfy: Comfy) -> None:
    rows = (on("left", 0.7, 0.7), on("rotation", 0.5, 0.5))
    run = saved(comfy, {"30": stack(*rows)}, name="as lora", trigger_words="left thing, dog")
    file = written_lora(run)
    assert file == "as lora.safetensors" and "LoRA" in run.text["50"]
    assert float(re.search(r"residual (\S+)%", run.text["50"])[1]) < 0.2
    wanted = chained(comfy, *rows)
    assert difference(picture_of_lora(comfy, file, clip=1.0), wanted) < ROUNDING
    assert difference(chained_rows(comfy, on("loras/as lora", 1, 1)), wanted) < ROUNDING
    with safe_open(comfy.base / "output" / "loras" / file, "numpy") as opened:
        assert opened.metadata()["modelspec.trigger_phrase"] == "left thing, dog"
        assert opened.metadata()["ss_network_module"] == "networks.lora"


def written_lora(run: Run) -> str:
    assert run.ok, run.error
    return re.search(r"Wrote output/loras/(.+?), [\d,]+ bytes", run.text["50"])[1]


def chained_rows(comfy: Comfy, *rows: Row) -> np.ndarray:
    return comfy.run(picture_graph(BASE, ("SpectralAdapterStack", stack(*rows)["inputs"]))).picture


def test_full_rank_changes_become_a_difference_or_a_lora_with_its_error(comfy: Comfy) -> None:
    rows = (on("svdiff", 0.5, 0.5), on("rotation", 0.5, 0.5))
    adapters, models = {"30": stack(*rows)}, {"model": ["1", 0], "clip": ["1", 1]}
    wanted = chained(comfy, *rows)
    whole = saved(comfy, adapters, name="whole", **models)
    assert "difference" in whole.text["50"]
    assert difference(picture_of_lora(comfy, written_lora(whole), clip=1.0), wanted) < ROUNDING
    errors = []
    for rank in (8, 64):
        run = saved(
            comfy, adapters, name=f"rank {rank}", **settings("format", format="LoRA", rank=rank, energy=1.0), **models
        )
        errors.append(difference(picture_of_lora(comfy, written_lora(run), clip=1.0), wanted))
        assert float(re.search(r"residual (\S+)%", run.text["50"])[1]) > 1
    assert errors[0] > errors[1]
    energy = saved(comfy, adapters, name="energy", **settings("format", format="LoRA", rank=0, energy=0.9), **models)
    assert 20 < float(re.search(r"residual (\S+)%", energy.text["50"])[1]) < 32
    refused = saved(comfy, adapters, name="exact", **settings("format", format="LoRA", rank=0, energy=1.0), **models)
    assert not refused.ok and "energy" in refused.error
    refused = saved(comfy, adapters, name="no model")
    assert not refused.ok and "Connect the model" in refused.error
    refused = saved(comfy, adapters, "native", name="native", **models)
    assert not refused.ok and "auto" in refused.error
    unknown = saved(comfy, adapters, "zip", name="zip")
    assert not unknown.ok
    names = {path.name for path in (comfy.base / "output").rglob("*.safetensors")}
    assert not names & {"exact.safetensors", "no model.safetensors", "native.safetensors", "zip.safetensors"}


def test_a_baked_checkpoint_paints_the_same(comfy: Comfy) -> None:
    graph = fusion_graph((on("left", 1, 1),), (on("svdiff", 0.5, 0.5),))
    inputs = {"model": ["20", 0], "clip": ["20", 1], "vae": ["1", 2], "filename_prefix": "baked"}
    graph["50"] = {"class_type": "CheckpointSave", "inputs": inputs}
    wanted = comfy.run(graph).picture
    file = next((comfy.base / "output").glob("baked*.safetensors"))
    file.rename(comfy.base / "models" / "checkpoints" / "baked.safetensors")
    assert difference(comfy.run(picture_graph("baked.safetensors")).picture, wanted) < ROUNDING


def extracted_graph(method: str, **more: object) -> dict:
    """Node "20" extracts; node "21" applies what it found, and node "5" samples with that."""
    graph = picture_graph(BASE, ("SpectralAdapterExtract", {"method": method, "layers": "all"}))
    graph["20"]["inputs"] |= more
    graph["21"] = node("Stack", model=["1", 0], clip=["1", 1], adapters=["20", 0], rows="[]", on_mismatch="refuse")
    graph["5"]["inputs"]["model"] = ["21", 0]
    for prompt in ("2", "3"):
        graph[prompt]["inputs"]["clip"] = ["21", 1]
    return graph


def explained(run: Run) -> float:
    assert run.ok, run.error
    return float(re.search(r"holds (\S+) % of the change", run.text["20"])[1])


def test_a_lora_becomes_an_adapter_again(comfy: Comfy) -> None:
    """The LoRA is the exact export of an additive adapter, so that method on the same columns holds all of it."""
    own = settings("method", rank=8, columns="")
    graph = extracted_graph("additive", adapters=["30", 3], **own) | {"30": stack(on("loras/additive-lora", 1, 1))}
    run = comfy.run(graph)
    assert explained(run) > 99.8
    assert difference(run.picture, chained(comfy, on("additive", 1, 1))) < ROUNDING
    graph["50"] = node("Save", adapters=["20", 0], name="extracted", format="native")
    run = comfy.run(graph)
    assert sa.load(comfy.base / written(run)).method.name == "additive"
    assert difference(chained(comfy, on("extracted", 1, 1)), run.picture) < ROUNDING
    rotated = comfy.run(extracted_graph("rotation", adapters=["30", 3], **own) | {"30": graph["30"]})
    assert 0.1 < explained(rotated) < 99
    best = extracted_graph("additive", adapters=["30", 3], **settings("method", rank=8, columns="best:16"))
    assert explained(comfy.run(best | {"30": graph["30"]})) > 99
    summed = comfy.run(extracted_graph("svdiff", adapters=["30", 3], **settings("method", columns="")) | {
        "30": stack(on("svdiff", 0.4), on("svdiff", 0.3))
    })  # fmt: skip
    assert explained(summed) > 95


def test_a_fine_tune_becomes_an_adapter(comfy: Comfy) -> None:
    plain = comfy.run(picture_graph(CHANGED)).picture
    tuned = checkpoints(CHANGED)["1"]
    models = {"tuned_model": ["9", 0], "tuned_clip": ["9", 1]}
    shares = []
    for rank in (32, 320):
        own = settings("method", rank=rank, columns="")
        run = comfy.run(extracted_graph("additive", **own, **models) | {"9": tuned})
        shares.append(explained(run))
    assert 5 < shares[0] < shares[1] and shares[1] > 90  # 320 columns are all but of the time embedding's 1280
    assert difference(run.picture, plain) < difference(comfy.run(picture_graph(BASE)).picture, plain) / 4
    attention = extracted_graph("additive", **settings("method", rank=4, columns=""), **models) | {"9": tuned}
    attention["20"]["inputs"]["layers"] = "cross-attention"
    assert "12 layers: " in comfy.run(attention).text["20"]


def test_what_is_applied_to_a_fine_tune_counts(comfy: Comfy) -> None:
    own = settings("method", rank=8, columns="")
    graph = extracted_graph("additive", tuned_model=["10", 0], **own)
    kind, inputs = loaders(on("additive"))[0]
    graph["10"] = {"class_type": kind, "inputs": {"model": ["1", 0], **inputs}}
    del graph["20"]["inputs"]["clip"]
    run = comfy.run(graph)
    assert explained(run) > 99.8
    assert difference(run.picture, chained(comfy, on("additive"))) < ROUNDING


def test_a_merge_of_models_counts_as_a_fine_tune(comfy: Comfy, base_picture: np.ndarray) -> None:
    inputs = {"model1": ["1", 0], "model2": ["9", 0], "ratio": 0.5}
    models = {"9": checkpoints(CHANGED)["1"], "10": {"class_type": "ModelMergeSimple", "inputs": inputs}}
    plain = picture_graph(BASE) | models
    plain["5"]["inputs"]["model"] = ["10", 0]
    merged = comfy.run(plain).picture
    own = settings("method", rank=320, columns="")
    graph = extracted_graph("additive", tuned_model=["10", 0], **own) | models
    del graph["20"]["inputs"]["clip"]
    run = comfy.run(graph)
    assert explained(run) > 90
    assert difference(run.picture, merged) < difference(base_picture, merged) / 4


def test_extracting_needs_one_source_of_change(comfy: Comfy) -> None:
    own = settings("method", rank=8, columns="")
    neither = comfy.run(extracted_graph("additive", **own))
    assert not neither.ok and "found neither" in neither.error
    both = comfy.run(
        extracted_graph("additive", adapters=["30", 3], tuned_model=["1", 0], **own) | {"30": stack(on("left"))}
    )
    assert not both.ok and "found both" in both.error
    one_clip = comfy.run(extracted_graph("additive", tuned_model=["1", 0], **own))
    assert not one_clip.ok and "tuned_clip" in one_clip.error
    same = comfy.run(extracted_graph("additive", tuned_model=["1", 0], tuned_clip=["1", 1], **own))
    assert not same.ok and "changes none" in same.error
    wrong = comfy.run(
        extracted_graph("additive", adapters=["30", 3], **settings("method", rank=8, columns="top"))
        | {"30": stack(on("left"))}
    )
    assert not wrong.ok and "columns='top'" in wrong.error


def transfer_graph(target: str, rows: tuple[Row, ...], **more: object) -> dict:
    """Node "20" transfers; its adapters are applied to the target by node "21"."""
    graph = picture_graph(target, ("SpectralAdapterTransfer", {"columns": "as the adapter", "sides": "auto"}))
    graph["20"]["inputs"] |= {"least": 0.0, "adapters": ["30", 3]} | more
    graph["30"] = stack(*rows)
    graph["21"] = node("Stack", model=["1", 0], clip=["1", 1], adapters=["20", 0], rows="[]", on_mismatch="refuse")
    graph["5"]["inputs"]["model"] = ["21", 0]
    for prompt in ("2", "3"):
        graph[prompt]["inputs"]["clip"] = ["21", 1]
    return graph


def test_a_transfer_to_the_same_base_changes_nothing_and_to_another_says_how_well_it_agrees(comfy: Comfy) -> None:
    same = comfy.run(transfer_graph(BASE, (on("rotation", 0.8, 0.8),)))
    assert difference(same.picture, chained(comfy, on("rotation", 0.8, 0.8))) < ROUNDING
    assert f"rotation: Carried {COUNT} of {COUNT} layers" in same.text["20"]
    other = comfy.run(transfer_graph(CHANGED, (on("rotation"), on("left", 0.5))))
    assert other.ok, other.error
    agreement = float(re.search(r"agree to (\S+) %", other.text["20"])[1])
    assert 80 < agreement < 100
    assert difference(other.picture, comfy.run(picture_graph(CHANGED)).picture) > VISIBLE


def test_a_transfer_asks_for_what_it_needs(comfy: Comfy) -> None:
    refused = comfy.run(transfer_graph(CHANGED, (on("svdiff"),)))
    assert not refused.ok and "Connect that model to home_model" in refused.error and "svdiff" in refused.error
    graph = transfer_graph(CHANGED, (on("svdiff"),), home_model=["9", 0], home_clip=["9", 1]) | {
        "9": checkpoints()["1"]
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    assert "Carried" in run.text["20"]
    few = comfy.run(
        transfer_graph(CHANGED, (on("loras/additive-lora"),), **settings("columns", columns="rank", rank=16))
    )
    more = comfy.run(
        transfer_graph(CHANGED, (on("loras/additive-lora"),), **settings("columns", columns="energy", energy=0.95))
    )
    kept = [float(re.search(r"Keeps (\S+) % of", run.text["20"])[1]) for run in (few, more)]
    assert kept[0] < kept[1]


def test_cancel_is_heard_and_leaves_nothing_behind(comfy: Comfy, base_picture: np.ndarray) -> None:
    """While it records; hooks that stayed would go on recording, patches that stayed would change the picture."""
    ended: list[Run] = []
    own = settings("mode", mode="gradient", steps=100, size=256, prompts="")
    graph = fusion_graph((on("left"), on("right")), **own)
    threading.Thread(target=lambda: ended.append(comfy.run(graph)), daemon=True).start()
    wait_until(lambda: comfy.get("/queue")["queue_running"], "the prompt runs", 30)
    time.sleep(2)
    pressed = time.monotonic()
    comfy.post("/interrupt", {})
    wait_until(lambda: ended, "the prompt ends", 60)
    assert ended[0].error == "interrupted" and time.monotonic() - pressed < 10
    assert difference(comfy.run(picture_graph(BASE)).picture, base_picture) == 0


def test_the_nodes_describe_themselves_in_both_languages(comfy: Comfy) -> None:
    for kind in NODES:
        name = f"SpectralAdapter{kind}"
        shown = comfy.get(f"/object_info/{name}")[name]
        inputs = shown["input"]["required"] | shown["input"].get("optional", {})
        known = set(inputs)
        for id, (type_, options) in inputs.items():
            assert options.get("tooltip"), (name, id)
            if type_ == "COMFY_DYNAMICCOMBO_V3":
                for option in options["options"]:
                    own = option["inputs"].get("required", {})
                    known |= {f"{id}_{each}" for each in own}
                    assert all(each[1].get("tooltip") for each in own.values())
        for language in ("en", "fr"):
            words = json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[name]
            assert set(words["inputs"]) == known
            assert len(words["outputs"]) == len(shown["output"])
            assert (PACK / "web" / "docs" / name / f"{language}.md").is_file()
        words = json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text())[name]
        assert words["description"] == shown["description"] and words["display_name"] == shown["display_name"]
        for id, (_, options) in inputs.items():
            assert words["inputs"][id]["tooltip"] == options["tooltip"]
        assert [each["name"] for each in words["outputs"].values()] == shown["output_name"]
        assert all(shown["output_tooltips"])
