"""A run's course read as its log grows: resumes, torn lines, other attempts, and how quick it is."""

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_adapters.trainer.jobs.course import Course


def write(run, *events, mode="a", end=""):
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "events.jsonl", mode) as f:
        f.write("".join(json.dumps({"time": 1e9, **event}) + "\n" for event in events) + end)


def step(number, loss=0.5, steps=100):
    values = {"step": number, "steps": steps, "loss": loss, "lr": 1e-3, "rate": 2.0, "memory": 7, "norm": 1.0}
    return {"event": "Step", **values}


def phase(name):
    return {"event": "Phase", "name": name}


def validated(number, loss, best):
    return {"event": "Validated", "step": number, "loss": loss, "best": best}


def checkpointed(number, best=False):
    return {"event": "Checkpointed", "step": number, "path": f"/run/checkpoints/step-{number:06d}", "best": best}


def sampled(number):
    return {"event": "Sampled", "step": number, "paths": [f"/s/{number}.png"], "prompts": ["a dog"]}


def resumed(number):
    return {"event": "Resumed", "step": number, "path": "/run"}


ENDED = {"event": "Ended", "reason": "stopped", "step": 2, "text": "Stopped.", "resumable": True}


def test_a_run_that_has_not_begun(tmp_path):
    course = Course(tmp_path / "none")
    assert not course.refresh()
    summary = course.summary()
    assert summary["step"] == 0 and summary["ended"] is summary["loss"] is summary["best"] is summary["phase"] is None
    assert course.curve()["steps"] == [] and json.dumps([summary, course.curve()], allow_nan=False)


def test_where_a_run_stands(tmp_path):
    plan = {"event": "Plan", "method": "soda", "steps": 100, "seconds": 5.0}
    write(tmp_path, phase("loading"), {"event": "Progress", "done": 1, "total": 3, "item": "a.png"})
    course = Course(tmp_path)
    assert course.summary()["phase"] == "loading"
    assert course.summary()["progress"] == {"done": 1, "total": 3, "item": "a.png"}
    write(tmp_path, plan, validated(0, 0.9, False), phase("training"), step(1, 0.5), step(2, 0.7))
    summary = course.summary()
    assert (summary["phase"], summary["progress"], summary["step"], summary["steps"]) == ("training", None, 2, 100)
    assert summary["plan"] == {"method": "soda", "steps": 100, "seconds": 5.0}
    assert summary["loss"] == pytest.approx((0.98 * 0.5 + 0.7) / 1.98) and summary["eta"] == 49.0
    assert (summary["lr"], summary["rate"], summary["memory"], summary["best"]) == (1e-3, 2.0, 7, None)
    write(tmp_path, validated(2, 0.25, True), {"event": "Notice", "text": "Note."}, ENDED)
    summary = course.summary()
    assert summary["best"] == {
        "step": 2,
        "loss": 0.25,
        "text": "Step 2 has the lowest loss on held-out pictures: 0.2500; before training it was 0.9000.",
    }
    assert summary["notices"] == [{"time": 1e9, "step": 2, "kind": "notice", "text": "Note."}]
    assert summary["ended"]["reason"] == "stopped" and summary["eta"] is None and summary["phase"] is None


def test_a_resume_takes_back_what_later_steps_said(tmp_path):
    course = Course(tmp_path)
    write(tmp_path, step(1, 0.4), checkpointed(1), validated(1, 0.9, True), sampled(1), step(2), step(3))
    write(tmp_path, validated(3, 0.1, True), checkpointed(3, True), sampled(3), ENDED)
    first = course.curve()
    assert first["steps"] == [1, 2, 3] and first["generation"] == 0 and first["reset"]
    assert course.summary()["best"]["step"] == 3
    write(tmp_path, resumed(1), step(2, 0.6))
    curve, summary = course.curve(first["next"], first["generation"]), course.summary()
    assert curve["generation"] == 1 and curve["reset"] and curve["steps"] == [1, 2] and curve["loss"] == [0.4, 0.6]
    assert curve["validations"] == [[1, 0.9]] and summary["best"]["step"] == 1 and summary["ended"] is None
    assert curve["checkpoints"] == [
        {"step": 1, "best": True, "name": "step-000001", "path": "/run/checkpoints/step-000001"}
    ]
    assert curve["samples"] == [{"step": 1, "paths": ["/s/1.png"], "prompts": ["a dog"]}]
    assert summary["loss"] == pytest.approx((0.98 * 0.4 + 0.6) / 1.98)
    assert summary["notices"][-1]["kind"] == "resumed"


def test_only_what_is_new_is_given(tmp_path):
    course = Course(tmp_path)
    write(tmp_path, step(1), step(2))
    known = course.curve()
    write(tmp_path, step(3))
    more = course.curve(known["next"], known["generation"])
    assert (more["steps"], more["next"], more["total"], more["reset"]) == ([3], 3, 3, False)
    assert course.curve(3, 0)["steps"] == []
    for wrong in ((3, 5), (99, 0), (-1, 0)):
        again = course.curve(*wrong)
        assert again["reset"] and again["steps"] == [1, 2, 3]


def test_a_line_that_is_still_written_is_waited_for(tmp_path):
    course = Course(tmp_path)
    write(tmp_path, step(1), end='{"event": "Step", "step": 2, "steps": 9,')
    assert course.curve()["steps"] == [1]
    with open(tmp_path / "events.jsonl", "a") as f:
        f.write(' "loss": 1, "lr": 1}\n')
    assert course.curve()["steps"] == [1, 2]
    write(tmp_path, end='{"event": "Step", "st')  # a crash; the next process ends the line
    write(tmp_path, end="\n\n[]\nnull\n" + '{"event": "Step", "step": [], "steps": 1, "loss": "x", "lr": 0}\n\xff\n')
    write(tmp_path, {"event": "Tomorrow", "step": 9}, step(3))
    assert course.curve()["steps"] == [1, 2, 3]


def test_numbers_that_are_none_are_null(tmp_path):
    write(tmp_path, {"event": "Skipped", "step": 1, "reason": "the loss is not a finite number", "streak": 1})
    write(tmp_path, step(1, "NaN"), step(2, 0.5), step(3, "Infinity"), validated(3, "-Infinity", False))
    course = Course(tmp_path)
    curve = course.curve()
    assert curve["loss"] == [None, 0.5, None] and curve["validations"] == [[3, None]]
    assert course.summary()["loss"] == 0.5 and course.summary()["notices"][0]["kind"] == "warning"
    json.dumps([curve, course.summary()], allow_nan=False)


def test_another_attempt_in_the_folder(tmp_path):
    course = Course(tmp_path)
    write(tmp_path, step(1), step(2), ENDED)
    before = course.curve()
    (tmp_path / "events.jsonl").rename(tmp_path / "events-1.jsonl")
    write(tmp_path, phase("loading"), step(1, 0.9))
    curve = course.curve(before["next"], before["generation"])
    assert curve["reset"] and curve["loss"] == [0.9] and curve["generation"] != before["generation"]
    assert course.summary()["ended"] is None
    assert Course(tmp_path).curve()["generation"] == curve["generation"], "the same after a restart of the host"


def test_the_summary_of_an_ended_run_is_kept(tmp_path):
    write(tmp_path, step(1), step(2), ENDED)
    Course(tmp_path).keep()
    expected = Course(tmp_path).summary()
    kept = json.loads((tmp_path / "summary.json").read_text())
    kept["summary"]["phase"] = "from the file"
    (tmp_path / "summary.json").write_text(json.dumps(kept))
    course = Course(tmp_path)
    assert course.summary() == {**expected, "phase": "from the file"}, "read without the events"
    assert course.curve()["steps"] == [1, 2] and course.summary() == expected
    write(tmp_path, step(3))
    assert Course(tmp_path).summary()["step"] == 3
    (tmp_path / "summary.json").write_text("[")
    assert Course(tmp_path).summary()["step"] == 3
    Course(tmp_path / "none").keep()
    assert not (tmp_path / "none").exists()


EVENTS = st.lists(
    st.one_of(
        st.builds(step, st.integers(1, 9), st.sampled_from([0.1, 0.2, "NaN"])),
        st.builds(resumed, st.integers(0, 9)),
        st.builds(validated, st.integers(0, 9), st.sampled_from([0.1, 0.3]), st.booleans()),
        st.builds(checkpointed, st.integers(1, 9)),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(events=EVENTS, cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_read_in_pieces_or_at_once_is_the_same(tmp_path_factory, events, cuts):
    run = tmp_path_factory.mktemp("run")
    data = "".join(json.dumps(event) + "\n" for event in events).encode()
    growing, at = Course(run), 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        with open(run / "events.jsonl", "ab") as f:
            f.write(data[at:cut])
        at = cut
        growing.refresh()
    once = Course(run)
    assert growing.curve() == once.curve() and growing.summary() == once.summary()


def test_twenty_thousand_steps(tmp_path):
    write(tmp_path, *(step(i, 0.1 + i * 1e-6, 20_010) for i in range(1, 20_001)))
    first, later = [], []
    for _ in range(3):
        course = Course(tmp_path)
        started = time.process_time()
        course.refresh()
        first.append(time.process_time() - started)
    for i in range(20_001, 20_011):
        write(tmp_path, step(i, math.inf if i == 20_005 else 0.1, 20_010))
    for _ in range(3):
        started = time.process_time()
        course.refresh()
        later.append(time.process_time() - started)
    assert min(first) < 0.3 and max(later) < 0.02, (first, later)
    assert course.curve(20_000, 0)["steps"] == list(range(20_001, 20_011))
    assert course.summary()["step"] == 20_010
