"""Two runs side by side: only settings that differ, and samples in pairs."""

import json
import subprocess
import sys

import pytest

from spectral_adapters.trainer.compare import Side, compare, differences, pairs
from spectral_adapters.trainer.event_log import EventLog
from spectral_adapters.trainer.events import Sampled, Step, Validated
from spectral_adapters.trainer.jobs.course import Course
from spectral_adapters.trainer.spec import TrainSpec


def spec(tmp_path, **changes):
    plain = {"base": "tiny", "images": tmp_path / "dogs", "out": tmp_path / "a.safetensors"}
    return TrainSpec(**{**plain, **changes}).as_json()


def picture(step, number, prompt, run):
    return {"step": step, "number": number, "prompt": prompt, "url": f"{run}/{step}-{number}"}


def test_equal_settings_are_left_out(tmp_path):
    one, other = spec(tmp_path), spec(tmp_path, out=tmp_path / "b.safetensors", run=tmp_path / "elsewhere")
    assert differences(one, one) == [] == differences(one, other), "where a run lies changes nothing of it"


def test_different_settings_have_their_labels_in_the_form_s_order(tmp_path):
    rows = differences(spec(tmp_path, lr=1e-3, steps=100, seed=1), spec(tmp_path, steps=200, seed=2, rank=16))
    found = {row["name"]: (row["a"], row["b"]) for row in rows}
    assert found == {"rank": (None, 16), "steps": (100, 200), "lr": (1e-3, None), "seed": (1, 2)}
    names = list(TrainSpec.__dataclass_fields__)
    assert [row["name"] for row in rows] == sorted(found, key=names.index)
    labels = {name: TrainSpec.__dataclass_fields__[name].metadata["label"] for name in found}
    assert {row["name"]: row["label"] for row in rows} == labels and all(row["group"] for row in rows)


def test_settings_of_other_methods_are_left_out(tmp_path):
    one, other = spec(tmp_path, method="additive", rotation="cayley"), spec(tmp_path, method="svdiff", rotation="exp")
    assert [row["name"] for row in differences(one, other)] == ["method"]
    soda = spec(tmp_path, method="soda", rotation="exp")
    assert {row["name"] for row in differences(one, soda)} == {"method", "rotation"}


def test_folders_are_told_apart_by_their_names(tmp_path):
    rows = differences(spec(tmp_path), spec(tmp_path, images=tmp_path / "cats"))
    assert rows[0]["a"] == "dogs" and rows[0]["b"] == "cats"
    same = differences(spec(tmp_path), spec(tmp_path, images=tmp_path / "other" / "dogs"))
    assert same[0]["a"] == str(tmp_path / "dogs") and same[0]["b"].endswith("dogs")


def test_samples_are_paired_by_prompt_and_step():
    a = [picture(0, 1, "a dog", "a"), picture(50, 1, "a dog", "a"), picture(50, 2, "a cat", "a")]
    b = [picture(50, 1, "a cow", "b"), picture(50, 2, "a dog", "b"), picture(100, 2, "a dog", "b")]
    rows = pairs(a, b)
    assert [row["prompt"] for row in rows] == ["a dog", "a cat", "a cow"], "those of both runs first"
    dogs = [(row["step"], row["a"] and row["a"]["url"], row["b"] and row["b"]["url"]) for row in rows[0]["steps"]]
    assert dogs == [(0, "a/0-1", None), (50, "a/50-1", "b/50-2"), (100, None, "b/100-2")]
    assert rows[2]["steps"] == [{"step": 50, "a": None, "b": b[0]}]


def test_a_prompt_given_twice_stays_two():
    twice = [picture(5, number, "a dog", run) for run in "a" for number in (1, 2)]
    once = [picture(5, 1, "a dog", "b")]
    rows = pairs(twice, once)
    assert [[step["a"]["number"] for step in row["steps"]] for row in rows] == [[1], [2]]
    assert rows[0]["steps"][0]["b"] == once[0] and rows[1]["steps"][0]["b"] is None
    assert pairs([], []) == []


@pytest.fixture
def sides(tmp_path):
    made = []
    for name, best in (("first", 2), ("second", 1)):
        run = tmp_path / name
        run.mkdir()
        with EventLog(run / "events.jsonl") as log:
            for step in (1, 2):
                log(Step(step, 2, 0.5 / step, 1e-3))
                log(Validated(step, 0.3 if step == best else 0.4, step == best))
            log(Sampled(2, (run / "samples" / "step-000002-01.png",), ("a dog",)))
        course = Course(run)
        curve, summary = course.curve(), course.summary()
        made.append(
            Side(name, name.title(), spec(tmp_path, seed=best), curve, summary["best"], [picture(2, 1, "a dog", name)])
        )
    return made


def test_two_runs_from_their_logs(sides):
    found = json.loads(json.dumps(compare(*sides), allow_nan=False))
    assert [row["name"] for row in found["settings"]] == ["seed"]
    assert [(run["id"], run["name"], run["best"]["step"]) for run in found["runs"]] == [
        ("first", "First", 2),
        ("second", "Second", 1),
    ]
    assert found["runs"][0]["curve"]["loss"] == [0.5, 0.25] and found["runs"][1]["validations"] == [[1, 0.3], [2, 0.4]]
    assert found["pairs"] == [
        {"prompt": "a dog", "steps": [{"step": 2, "a": sides[0].samples[0], "b": sides[1].samples[0]}]}
    ]


def test_pages_get_it_without_torch():
    """Grids are asked for and runs compared in the host's own process, which may have no torch loaded yet."""
    names = ("compare", "grid_request", "spectrum_cli")
    code = "; ".join(f"import spectral_adapters.trainer.{name}" for name in names) + "; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "diffusers", "transformers"} & set(loaded)
