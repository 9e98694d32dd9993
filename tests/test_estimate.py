"""The estimate before training: a plan's numbers without weights, the process that finds them, and what it learns."""

import json
import os
import queue
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_checkpoints import small_configs, write
from training import Steps, spec, write_pictures

import spectral_adapters as sa
from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.trainer import configs, estimate_server, loop, speed
from spectral_adapters.trainer.calibrate import calibrate
from spectral_adapters.trainer.estimate import EstimateFault, Estimator
from spectral_adapters.trainer.jobs.store import JobStore
from spectral_adapters.trainer.models import load_base
from spectral_adapters.trainer.quick import Quick, cost_key
from spectral_adapters.trainer.room import free_bytes
from spectral_adapters.trainer.spec import TrainSpec
from spectral_adapters.trainer.speed import Machine, Measured, Place, Speed, Work


@pytest.fixture(scope="module")
def quick() -> Quick:
    return Quick()


@pytest.fixture
def pictures(tmp_path) -> Path:
    return write_pictures(tmp_path / "mugs")


def plan(wanted: TrainSpec, base: object = None) -> object:
    events = Steps()
    loop.train(wanted, events, base=base, dry_run=True)
    return events.of("Plan")[0]


ROTATION = {"method": "rotation", "columns": "top:6@4", "gradient_checkpointing": True, "sample_prompts": ("a mug",)}
RUNS = [
    {"method": "svdiff", "norms": True, "text_targets": "attention", "ema": 0.99},
    {"method": "soda", "targets": "cross-attention", "precision": "bf16", "latent_cache": "none", "shuffle_tags": True},
    pytest.param(ROTATION, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("changes", RUNS, ids=lambda changes: changes["method"])
def test_the_numbers_are_those_of_the_plan(quick, pictures, changes):
    wanted = spec(pictures, **changes)
    found, real = quick.outlook(wanted), plan(wanted)
    assert (found.parameters, found.layers) == (real.parameters, real.layers)
    assert {f"{w}x{h}": count for (w, h), count in found.sizes.items()} == real.buckets
    assert found.file_bytes == pytest.approx(real.file_bytes, rel=0.002)
    assert found.cost.memory.total == pytest.approx(real.memory_bytes, rel=0.01)
    assert found.cost.memory.parts.keys() == real.memory.keys()
    assert not list(pictures.parent.glob("*.training")), "an estimate leaves nothing behind"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_plan_of_a_single_file(quick, tmp_path, monkeypatch, pictures, base, family):
    wanted = _single_file(tmp_path, monkeypatch, pictures, base, family)
    found, real = quick.outlook(wanted), plan(wanted)
    assert (found.parameters, found.layers) == (real.parameters, real.layers)
    assert found.file_bytes == pytest.approx(real.file_bytes, rel=0.002)
    assert found.cost.memory.total == pytest.approx(real.memory_bytes, rel=0.01)


def test_a_single_file_is_known_by_its_header(quick, tmp_path, monkeypatch, pictures, base):
    wanted = _single_file(tmp_path, monkeypatch, pictures, base, "sd1")
    weights = load_base(wanted.base, weights_only=True).weights()
    chosen = [
        w for name, w in weights.items() if "_attn2_" in name or (name.startswith("lora_te_") and "_attn_" in name)
    ]
    found = quick.outlook(wanted)
    assert found.layers == {"unet": 64, "text_encoder": 48} and sum(found.layers.values()) == len(chosen)
    assert found.parameters == sum(8 * (w.shape[0] + w.shape[1]) for w in chosen)
    assert found.cost.memory.parts["base model"] > 4 * sum(w.numel() for w in weights.values())
    assert (found.kind, found.resolution) == ("sd", 64)


def _single_file(tmp_path: Path, monkeypatch, pictures: Path, base: object, family: str) -> TrainSpec:
    """A run on a narrow checkpoint in one file."""
    monkeypatch.setattr(configs, "CONFIGS", small_configs(tmp_path))
    base.tokenizer.save_pretrained(tmp_path / "words")
    path = write(tmp_path / f"{family}.safetensors", family, config=_small(family))
    texts = {"text_targets": "attention"} | ({"text_targets_2": "all"} if family == "sdxl" else {})
    return spec(pictures, base=str(path), tokenizer=str(tmp_path / "words"), targets="cross-attention", resolution=64,
                **texts)  # fmt: skip


def _small(family: str) -> dict:
    return json.loads((configs.CONFIGS / f"{family}.json").read_text(encoding="utf-8"))


def test_an_adapter_to_start_from_and_one_to_avoid(quick, pictures, base):
    first = spec(pictures, steps=1, targets="cross-attention")
    loop.train(first, base=base)
    for changes in ({"start_from": first.out}, {"avoid": (first.out,)}):
        wanted = spec(pictures, "second", targets="cross-attention", **changes)
        found, real = quick.outlook(wanted), plan(wanted)
        assert found.parameters == real.parameters and found.file_bytes == pytest.approx(real.file_bytes, rel=0.002)


@pytest.mark.parametrize(
    "changes",
    [
        {"resolution": 50},
        {"targets": "no_such_layer"},
        {"text_targets_2": "all"},
        {"validation": 3},
        {"columns": "top:8@900"},
        {"rank": 4, "columns": "top:4"},
        {"images": Path("nowhere")},
    ],
)
def test_the_same_sentence_as_training(quick, pictures, base, changes):
    wanted = spec(pictures, **changes)
    with pytest.raises(SettingError) as here:
        quick.outlook(wanted)
    with pytest.raises(SettingError) as there:
        loop.train(wanted, base=base)
    assert str(here.value) == str(there.value)
    quick.outlook(spec(pictures))  # nothing was left on the base


def test_what_is_asked_again_is_known(quick, pictures):
    wanted = spec(pictures, rank=3, targets="cross-attention")
    first = quick.outlook(wanted).cost
    assert quick.outlook(replace(wanted, steps=900, lr=1e-3, seed=4)).cost is first
    assert quick.outlook(replace(wanted, batch_size=1)).cost.memory.total < first.memory.total
    assert quick.cost(wanted, {(64, 64): 3}) is first, "also when its pictures are gone"
    twice = quick.outlook(replace(wanted, accumulation=2)).cost
    assert twice.work == Work(2 * first.work.flops, 2 * first.work.calls) and twice.memory == first.memory
    assert quick.outlook(replace(wanted, class_prompt="a mug")).cost.work.flops == 2 * first.work.flops


def test_turned_pictures_count_as_they_are_shown(quick, pictures):
    from PIL import Image

    for path in pictures.glob("*.png"):
        path.unlink()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (200, 100)).save(pictures / "0.jpg", exif=turned)
    (pictures / "broken.png").write_bytes(b"no picture")
    ((width, height),) = quick.outlook(spec(pictures)).sizes
    assert width < height


# --- how fast the machine is

CPU = Place("cpu", "fp32", "tiny")
HERE = Machine(1e9, 1e-5)


def test_seconds_come_from_the_nearest_measurement():
    work, key = Work(10**9, 10**5), "a"
    known = Speed(machines={CPU.machine: HERE})
    assert known.step_seconds(key, CPU, work) == (pytest.approx(10.0), "estimated")
    known = known.with_work("b", Work(10**9, 0)).with_run(Measured("1", CPU, "b", 3.0))
    assert known.step_seconds(key, CPU, work) == (pytest.approx(6.0), "calibrated")
    known = known.with_run(Measured("2", CPU, key, 2.5))
    assert known.step_seconds(key, CPU, work) == (2.5, "measured")
    other = replace(CPU, precision="bf16")
    known = known.with_machine(other.machine, HERE)
    assert known.step_seconds(key, other, work)[1] == "estimated", "another precision is another matter"


def test_speeds_are_kept_and_a_damaged_file_is_none(tmp_path):
    made = Speed((Measured("1", CPU, "b", 3.0),), {CPU.machine: HERE}, {"b": Work(1, 2)})
    speed.write(tmp_path, made)
    assert speed.read(tmp_path) == made
    for text in ("", "{", "[]", '{"format": 1}', '{"format": 2}', '{"format": 1, "runs": [3], "machines": {}}'):
        (tmp_path / speed.FILE).write_text(text)
        assert speed.read(tmp_path) == Speed()
    for i in range(200):
        made = made.with_run(Measured(str(i), CPU, "b", 3.0)).with_work(str(i), Work(1, 2))
    assert len(made.runs) == len(made.works) == speed._MOST and made.runs[-1].job == "199"


def test_a_calibration_is_of_this_world_and_the_better_one_stays():
    found = calibrate(torch.device("cpu"), torch.float32)
    assert 1e8 < found.flops < 1e14 and 1e-7 < found.start < 1e-2
    assert Machine(2.0, 3.0).better(Machine(1.0, 2.0)) == Machine(2.0, 2.0)


def test_runs_in_the_home_are_learnt_from(tmp_path, pictures, base):
    store = JobStore(tmp_path / "home")
    wanted = spec(pictures, rank=2, targets="cross-attention")
    entry = store.add("train", "mug", wanted.as_json())
    loop.train(replace(wanted, run=entry.run, steps=1), base=base)
    speed.write(store.home, Speed(machines={CPU.machine: HERE}))
    answers = estimate_server.Answers(store.home)
    same = answers.to({"id": 1, "spec": replace(wanted, out=wanted.out.with_name("new.safetensors")).as_json(),
                       "device": "cpu", "unload": False})["answer"]  # fmt: skip
    real = next(e for e in speed.read_events(entry.run / "events.jsonl") if e["event"] == "Plan")
    assert (same["sources"]["time"], same["step_seconds"]) == ("measured", real["step_seconds"])
    assert same["seconds"] == pytest.approx(wanted.steps * real["step_seconds"])
    kept = speed.read(store.home)
    assert [run.key for run in kept.runs] == [cost_key(wanted, {(64, 64): 3})] and kept.runs[0].key in kept.works
    other = {
        "id": 2,
        "spec": spec(pictures, "new", targets="cross-attention").as_json(),
        "device": "cpu",
        "unload": False,
    }
    assert estimate_server.Answers(store.home).to(other)["answer"]["sources"]["time"] == "calibrated"


def test_a_pause_is_used_to_calibrate_again(tmp_path):
    slow = Machine(1.0, 1e-9)
    speed.write(tmp_path, Speed(machines={"cpu/fp32": slow, "cuda:0/fp32": slow}))
    answers = estimate_server.Answers(tmp_path)
    answers._guessed = {"cpu/fp32", "cuda:0/fp32"}
    questions = queue.Queue()
    assert estimate_server._next(questions, 0.01, answers) is None, "nobody asks any more"
    found = speed.read(tmp_path).machines
    assert found["cpu/fp32"].flops > 1e8 and found["cpu/fp32"].start == 1e-9 and found["cuda:0/fp32"] == slow
    questions.put("one more")
    assert estimate_server._next(questions, 0.01, answers) == "one more"


def test_free_memory_is_told_without_a_gpu(monkeypatch, tmp_path):
    assert free_bytes("cpu") > 1 << 20 and free_bytes("mps") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert free_bytes("cuda:0") is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$1" in *apps*) echo "77, 500"; echo "78, 9";; *) echo "1000";; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    assert free_bytes("cuda:0") == 1000 << 20 and free_bytes("cuda", 77) == 1500 << 20


# --- the process


def test_the_process_answers_and_ends(tmp_path, pictures):
    home = tmp_path / "home"
    home.mkdir()
    speed.write(home, Speed(machines={"cpu/fp32": HERE}))
    estimator = Estimator(home)
    wanted = spec(pictures)
    try:
        found = estimator.ask(wanted.as_json(), "cpu")
        assert found["parameters"] == 75_264 and found["buckets"] == {"64x64": 3} and found["resolution"] == 64
        assert found["memory_bytes"] == sum(found["memory"].values()) and found["free_bytes"] > found["memory_bytes"]
        assert found["seconds"] == pytest.approx(found["step_seconds"] * wanted.steps)
        assert found["sources"] == {"time": "estimated"} and json.loads(json.dumps(found)) == found
        with pytest.raises(SettingError, match="multiples of 16"):
            estimator.ask(spec(pictures, resolution=50).as_json(), "cpu")
        with pytest.raises(SettingError, match="needs a GPU"):
            estimator.ask(spec(pictures, precision="fp16").as_json(), "cpu")
        process = estimator._process._popen
        with pytest.raises(EstimateFault, match="within 0 seconds"):
            estimator.ask(spec(pictures, rank=9).as_json(), "cpu", timeout=0)
        assert process.wait(10) is not None, "what takes too long is ended"
    finally:
        estimator.close()
    with pytest.raises(EstimateFault, match="closed"):
        estimator.ask(wanted.as_json())


def test_a_process_that_dies_says_why(tmp_path, monkeypatch, pictures):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    estimator = Estimator(tmp_path)
    monkeypatch.setattr("spectral_adapters.trainer.estimate.PACK", tmp_path / "no_such_pack")
    with pytest.raises(EstimateFault, match="no_such_pack"):
        estimator.ask(spec(pictures).as_json())
    estimator.close()


def test_it_ends_by_itself_and_with_its_host(tmp_path):
    import subprocess
    import sys

    command = [sys.executable, str(Path(sa.__file__).parent), "estimate-server", str(tmp_path), "--idle", "0.1"]
    started = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stdout == b"" and time.monotonic() - started < 60
