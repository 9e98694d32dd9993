"""The terminal's side of a run: what every event looks like, bars and plain lines, JSON lines, status, Ctrl-C."""

import io
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from spectral_adapters.spectral.errors import Cancelled, SettingError
from spectral_adapters.trainer import console
from spectral_adapters.trainer.console import Console, Follower, StopOnSignal, plan_text, print_json
from spectral_adapters.trainer.events import (
    Checkpointed,
    Ended,
    Event,
    Notice,
    Phase,
    Plan,
    Progress,
    Resumed,
    Sampled,
    Saved,
    Skipped,
    Step,
    Validated,
)
from spectral_adapters.trainer.words import duration_text

PLAN = Plan(
    method="additive, columns top:8",
    layers={"unet": 32, "text_encoder": 24},
    parameters=380_016,
    file_bytes=1_620_000,
    pictures=12,
    buckets={"512x768": 7, "768x512": 5},
    steps=1500,
    epochs=500.0,
    batch=4,
    memory={"weights": 3_400_000_000, "activations": 2_100_000_000, "adapter": 3_000_000, "optimizer_state": 6_000_000},
    memory_bytes=5_509_000_000,
    free_bytes=22_000_000_000,
    step_seconds=1.25,
    seconds=1875.0,
    device="cuda",
)
RUN = Path("runs") / "dog.training"
# One of every kind, and what the user must be able to read of it.
SEEN: list[tuple[Event, tuple[str, ...]]] = [
    (Phase("loading the base model"), ("Loading the base model",)),
    (Progress(1, 3, "a.png"), ()),
    (Notice("2 captions are cut"), ("Note: 2 captions are cut",)),
    (PLAN, ("380,016 trainable parameters", "1.6 MB", "1,500", "5.5 GB", "31 min")),
    (Resumed(500, RUN / "checkpoints" / "step-000500"), ("after step 500", "step-000500")),
    (Step(501, 1500, 0.1234, 1e-4, 2.0), ("501", "1,500", "0.1234", "1.0e-04", "2.00 steps/s", "8 min left")),
    (Skipped(502, "the loss is not a finite number", 2), ("Warning", "502", "not a finite number", "2 in a row")),
    (Validated(600, 0.0812, True), ("after step 600", "0.0812", "best")),
    (
        Sampled(600, (RUN / "samples" / "step-000600-01.png", RUN / "samples" / "step-000600-02.png"), ("a", "b")),
        ("after step 600", str(RUN / "samples" / "step-000600-01.png"), "step-000600-02.png"),
    ),
    (Checkpointed(750, RUN / "checkpoints" / "step-000750", True), ("after step 750", "step-000750", "best")),
    (Saved(Path("dog.safetensors"), 1_620_000), ("Saved dog.safetensors", "1.6 MB")),
    (Ended("stopped", 800, "Stopped at step 800.", True), ("Stopped at step 800.", "GO ON", "--resume")),
]


def said(capsys, *events: Event, bars: bool = False, resume: str = "GO ON --resume") -> str:
    with Console(resume) as listener:
        listener._has_bars = bars
        for event in events:
            listener(event)
    return "".join(capsys.readouterr())


def test_every_event_has_its_words():
    assert {type(event) for event, _ in SEEN} == set(get_args(Event))


@pytest.mark.parametrize("bars", [False, True])
@pytest.mark.parametrize(("event", "words"), SEEN, ids=lambda value: type(value).__name__)
def test_what_is_printed(capsys, event, words, bars):
    text = said(capsys, event, bars=bars).replace("501/1500", "501 of 1,500")
    assert [word for word in words if word not in text] == []
    assert "<" not in text.replace("<?", ""), "no object's repr"


def test_nothing_is_lost_while_a_bar_is_open(capsys):
    steps = [Step(i, 20, 1 / i, 1e-3, 5.0) for i in range(1, 21)]
    text = said(capsys, Phase("training"), *steps[:10], *(event for event, _ in SEEN[6:10]), *steps[10:], bars=True)
    for _, words in SEEN[6:10]:
        assert all(word in text for word in words)
    assert "20/20" in text


def test_a_resumed_bar_begins_where_the_run_does(capsys):
    text = said(capsys, Phase("training"), Step(901, 1000, 0.1, 1e-3, 1.0), bars=True)
    assert "901/1000" in text and "2 min left" in text


def test_without_a_terminal_a_line_now_and_then(capsys):
    text = said(capsys, Phase("training"), *(Step(i, 500, 0.1, 1e-3, 50.0) for i in range(1, 501)))
    lines = [line for line in text.splitlines() if "step " in line]
    assert lines[0].startswith("  step 1 of 500") and lines[-1].startswith("  step 500 of 500")
    assert len(lines) == 2 and "\r" not in text


def test_the_shown_loss_is_smoothed_and_survives_a_bad_step():
    mean = console.RunningMean()
    assert math.isnan(mean.add(math.nan))
    assert mean.add(1.0) == 1.0
    for value in [1.0, math.inf, 0.0, 2.0, math.nan] * 20:
        shown = mean.add(value)
    assert 0.9 < shown < 1.1


def test_the_plan_is_a_block_that_fits():
    for width in (60, 80, 110):
        lines = plan_text(PLAN, width).splitlines()
        assert lines[0] == "Plan" and max(map(len, lines)) <= width
    text = " ".join(plan_text(PLAN).split())
    for part in (
        "32 in the UNet, 24 in the text encoder",
        "12: 7 of 512x768, 5 of 768x512",
        "1,500 of 4 pictures, 500.0 epochs",
        "5.5 GB (weights 3.4 GB, activations 2.1 GB, optimizer state 6.0 MB); 22.0 GB free",
        "31 min (1.25 s per step) on cuda",
    ):
        assert part in text


def test_a_plan_that_does_not_fit_says_so_and_what_to_do():
    tight = " ".join(plan_text(replace(PLAN, free_bytes=4_000_000_000)).split())
    assert "MORE than the 4.0 GB that are free" in tight and "gradient_checkpointing" in tight
    unknown = plan_text(replace(PLAN, free_bytes=None))
    assert "free" not in unknown and "5.5 GB" in unknown


def test_many_sizes_are_counted():
    buckets = {f"{64 * i}x512": i for i in range(1, 10)}
    assert "9 of 576x512" in plan_text(replace(PLAN, buckets=buckets)) and "and 5 more sizes" in plan_text(
        replace(PLAN, buckets=buckets)
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (89, "89 s"), (90, "2 min"), (3000, "50 min"), (12_000, "3 h 20 min"),
     (200_000, "2 days 7 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_the_pictures_of_a_run_are_named_where_they_are_there(capsys, tmp_path):
    (tmp_path / "loss.png").write_bytes(b"")
    with Console(run=tmp_path) as listener:
        listener(Ended("finished", 10, "Finished 10 steps.", True))
    text = capsys.readouterr().out
    assert str(tmp_path / "loss.png") in text and "sheet.png" not in text


def test_a_finished_run_needs_no_command(capsys):
    text = said(capsys, Ended("finished", 10, "Finished 10 steps.", True))
    assert "Finished 10 steps." in text and "GO ON" not in text


def test_json_lines_hold_every_event(capsys):
    for event, _ in SEEN:
        print_json(event)
    print_json(Step(1, 2, math.nan, 1e-3))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in found[:-1]] == [type(event).__name__ for event, _ in SEEN]
    assert found[3]["memory"] == dict(PLAN.memory) and math.isnan(float(found[-1]["loss"]))
    assert all(line["time"] > 1e9 for line in found)


@pytest.mark.parametrize(
    ("events", "error", "status"),
    [
        ([PLAN, Ended("finished", 3, "")], None, 0),
        ([PLAN, Ended("converged", 3, "")], None, 0),
        ([PLAN, Ended("stopped", 3, "")], None, 0),
        ([PLAN, Ended("diverged", 3, "")], None, 1),
        ([PLAN, Ended("out_of_memory", 3, "")], None, 1),
        ([PLAN, Ended("failed", 3, "")], SettingError("no room"), 1),
        ([Ended("failed", 0, "")], SettingError("no such folder"), 2),
        ([], SettingError("no such folder"), 2),
        ([], Cancelled("asked to stop"), 0),
        ([PLAN], None, 0),
    ],
)
def test_the_status_of_a_run(events, error, status, capsys):
    seen: list[Event] = []
    follower = Follower(seen.append)
    for event in events:
        follower(event)
    if error is not None:
        follower.end(error)
    assert follower.status == status
    assert seen[: len(events)] == events
    if error is not None:
        assert isinstance(seen[-1], Ended), "the stream ends with the reason"
        assert (f"error: {error}" in capsys.readouterr().err) == (seen[-1].reason == "failed")


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX systems do")
def test_signals_ask_first_and_a_second_ctrl_c_interrupts(capfd):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopOnSignal() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    shown = capfd.readouterr()
    assert "Stopping after this step" in shown.err and shown.out == "", "stdout is for events"


def test_a_terminal_is_told_from_a_file(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert Console()._has_bars is False
