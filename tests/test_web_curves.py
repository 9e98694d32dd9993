"""The page's curves against the trainer's own plot: the same mean, the same ticks, and nothing lost by increments."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from spectral_adapters.trainer.plot import Axis, round_step, running_mean

PANEL = Path(__file__).resolve().parents[1] / "web" / "panel"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def run(script: str, given: object = None) -> object:
    """What a script's `answer(given)` returns; modules of the panel are imported by their file names."""
    begin = f"import {{ readFileSync }} from 'node:fs'; const panel = {json.dumps(PANEL.as_uri())};\n"
    end = "\nconsole.log(JSON.stringify(await answer(JSON.parse(readFileSync(0, 'utf-8')))));"
    done = subprocess.run(
        [NODE, "--input-type=module", "--eval", begin + script + end],
        input=json.dumps(given), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def part(steps, losses, **more):
    return {
        "generation": 0, "next": 0, "total": 0, "reset": False, "steps": steps, "loss": losses, "lr": steps,
        "memory": steps, "rate": steps, "validations": [], "checkpoints": [], **more,
    }  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 7, 40, 999])
def test_the_running_mean_is_the_plots(count):
    losses = np.exp(np.random.default_rng(count).normal(size=count))
    losses[3::11] = np.nan
    wanted = running_mean(list(enumerate(losses.tolist())))[:, 1]
    given = [None if math.isnan(loss) else loss for loss in losses.tolist()]
    found = run(
        """
        const { Curve } = await import(`${panel}/curve.js`);
        const answer = (losses) => {
          const curve = new Curve();
          const steps = losses.map((_, i) => i);
          curve.apply({ generation: 0, next: 1, reset: true, steps, loss: losses });
          return [...curve.mean];
        };
        """,
        given,
    )
    assert [value is None for value in found] == np.isnan(wanted).tolist()
    numbers = [value for value in found if value is not None]
    np.testing.assert_allclose(numbers, wanted[~np.isnan(wanted)], rtol=1e-9)


def test_a_curve_in_parts_is_the_curve_at_once():
    """Points are appended; a reset and another generation begin anew; the base model is never the best."""
    losses = [0.5 / (i + 1) for i in range(3000)]
    steps = list(range(1, 3001))
    pieces = [
        part(steps[:10], losses[:10], reset=True, next=10),
        part(steps[10:2500], losses[10:2500], next=2500),
        part(steps[2500:], losses[2500:], next=3000, validations=[[0, 0.01], [100, 0.3], [200, 0.2], [300, None]]),
    ]
    answer = run(
        """
        const { Curve } = await import(`${panel}/curve.js`);
        const shown = (curve) => ({
          steps: [...curve.steps.subarray(0, curve.count)], loss: [...curve.loss.subarray(0, curve.count)],
          mean: curve.mean.length, best: curve.best, query: curve.query, last: curve.last,
          near: [curve.nearest(-5), curve.nearest(17.4), curve.nearest(9999)], range: curve.range(100, 200),
        });
        const answer = ({ pieces, resumed }) => {
          const curve = new Curve();
          const before = curve.query;
          const changed = pieces.map((piece) => curve.apply(piece));
          const idle = curve.apply({ ...pieces.at(-1), steps: [], loss: [] });
          const whole = shown(curve);
          curve.apply(resumed);
          return { before, changed, idle, whole, after: shown(curve) };
        };
        """,
        {"pieces": pieces, "resumed": part([1, 2], [0.9, None], generation=1, reset=True, next=2)},
    )
    assert answer["before"] == "after=0" and answer["changed"] == [True] * 3 and answer["idle"] is False
    whole = answer["whole"]
    assert whole["steps"] == steps and whole["loss"] == losses and whole["mean"] == 3000 and whole["last"] == 3000
    assert whole["best"] == {"step": 200, "loss": 0.2}
    assert whole["query"] == "after=3000&generation=0"
    assert whole["near"] == [0, 16, 2999] and whole["range"] == [98, 201]
    assert answer["after"]["steps"] == [1, 2] and answer["after"]["loss"] == [0.9, None]
    assert answer["after"]["query"] == "after=2&generation=1"


def test_ticks_are_the_plots():
    ranges = [(0.0, 1.0, False), (0.013, 0.094, False), (0.0, 19999.0, False), (0.004, 0.9, True), (0.5, 40.0, True)]
    found = run(
        """
        const { Axis, roundStep } = await import(`${panel}/axis.js`);
        const axis = ([low, high, log]) => new Axis(low, high, { log, wanted: 5 });
        const answer = (ranges) => ({
          ticks: ranges.map((range) => axis(range).ticks()),
          places: ranges.map((range) => axis(range).place(0.5)),
          back: ranges.map((range) => axis(range).value(axis(range).place(0.05))),
          steps: [0.003, 0.2, 0.21, 7, 26].map(roundStep),
        });
        """,
        ranges,
    )
    for (low, high, log), ticks, place, back in zip(ranges, found["ticks"], found["places"], found["back"]):
        axis = Axis(low, high, log)
        np.testing.assert_allclose(ticks, axis.ticks(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(place, axis.place(np.array([0.5]))[0], rtol=1e-9)
        assert back == pytest.approx(0.05)
    assert found["steps"] == pytest.approx([round_step(least) for least in (0.003, 0.2, 0.21, 7, 26)])


def test_zoom_and_pan_stay_within_the_run():
    found = run(
        """
        const { StepWindow } = await import(`${panel}/chart_view.js`);
        const answer = () => {
          const view = new StepWindow();
          view.last = 1000;
          const seen = [];
          const look = (work) => { work(); seen.push([Math.round(view.low), Math.round(view.high)]); };
          look(() => view.show(400, 200));
          look(() => view.zoom(2, 300));
          look(() => view.pan(-500));
          look(() => view.pan(5000));
          look(() => view.zoom(1e9, 999));
          look(() => view.zoom(1e-9, 999));
          look(() => { view.show(10, 20); view.last = 2000; });
          look(() => view.reset());
          return seen;
        };
        """
    )
    zoomed = [[200, 400], [250, 350], [0, 100], [900, 1000]]
    assert found[:4] == zoomed and found[4][1] - found[4][0] == 4 and found[5:] == [[0, 1000], [10, 20], [0, 2000]]


def test_strengths_are_read_as_people_write_them():
    texts = ["0, 0.5, 1, 1.25", "0 0.5 1", "0;1", " 1 ", "-1, 2", "1,2", "0, x", "", "1, 1"]
    found = run(
        """
        const { readStrengths } = await import(`${panel}/strengths.js`);
        const answer = (texts) => texts.map(readStrengths);
        """,
        texts,
    )
    wanted = [[0, 0.5, 1, 1.25], [0, 0.5, 1], [0, 1], [1], [-1, 2], [1, 2], None, None, [1]]
    assert found == wanted


def test_numbers_are_said_in_the_readers_language():
    found = run(
        """
        const { formats } = await import(`${panel}/format.js`);
        const answer = () => ["en", "fr", "no such language"].map((lang) => {
          const f = formats(lang);
          const texts = [f.count(20000), f.loss(0.06731), f.loss(null), f.loss(0.00002), f.rate(0.0001)];
          const times = [f.duration(42), f.duration(125), f.duration(4000), f.duration(90000)];
          return [...texts, ...times, f.bytes(1650000)];
        });
        """
    )
    english, french, unknown = found
    assert english == [
        "20,000", "0.06731", "–", "2e-5", "1e-4", "42 sec", "2 min", "1 hr 7 min", "1 day 1 hr", "1.7 MB",
    ]  # fmt: skip
    assert unknown == english and french[1] == "0,06731" and french[-1].endswith("Mo")
