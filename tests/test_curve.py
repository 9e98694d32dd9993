"""Curves of strength: their shapes by hand, and that the levels follow them."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_adapters.spectral.curve import EASINGS, Curve
from spectral_adapters.spectral.errors import SettingError

WEB = Path(__file__).resolve().parents[1] / "web" / "comfyui"
NODE = shutil.which("node")
CURVES = [Curve(*ends, *span, easing) for ends in ((1, 0), (-0.5, 1.5)) for span in ((0, 1), (0.2, 0.6), (0.5, 0.5))
          for easing in EASINGS]  # fmt: skip

shares = st.floats(0, 1)
strengths = st.floats(-2, 2)
slopes = st.sampled_from(("linear", "ease in", "ease out", "smooth"))


def held(keyframes, share):
    """The strength that a sampler's step at a share of the course finds."""
    return [strength for border, strength in keyframes if border <= share][-1]


@pytest.mark.parametrize(
    ("easing", "values"),
    [
        ("linear", [1, 1, 0.75, 0.5, 0.25, 0, 0]),
        ("ease in", [1, 1, 0.9375, 0.75, 0.4375, 0, 0]),
        ("ease out", [1, 1, 0.5625, 0.25, 0.0625, 0, 0]),
        ("smooth", [1, 1, 0.84375, 0.5, 0.15625, 0, 0]),
        ("step", [1, 1, 1, 0, 0, 0, 0]),
        ("between", [1, 0, 0, 0, 0, 1, 1]),
        ("constant", [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_shapes(easing, values):
    curve = Curve(1, 0, 0.2, 0.6, easing)
    places = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0]
    assert [curve.at(share) for share in places] == pytest.approx(values)
    assert curve.text.startswith("Strength")


def test_a_step_is_one_jump_a_hair_early():
    assert Curve(1, 0, 0, 1, "step").keyframes() == [(0.0, 1), (0.5 - 1e-5, 0)]
    assert Curve(1, 0, 0.5, 0.5).keyframes() == [(0.0, 1), (0.5 - 1e-5, 0)]
    assert Curve(1, 0, 0, 0).keyframes() == [(0.0, 0)], "from the first step on"
    assert Curve(1, 0, 1, 1).keyframes() == [(0.0, 1)], "never"


def test_between_is_two_jumps():
    assert Curve(0, 1, 0.25, 0.75, "between").keyframes() == [(0.0, 0), (0.25 - 1e-5, 1), (0.75 - 1e-5, 0)]
    assert Curve(0, 1, 0, 1, "between").keyframes() == [(0.0, 1)]
    assert Curve(0, 1, 0.5, 0.5, "between").keyframes() == [(0.0, 0)], "an empty span"


@pytest.mark.parametrize("easing", EASINGS)
def test_a_level_curve_is_one_keyframe(easing):
    assert Curve(0.7, 0.7, 0.1, 0.9, easing).keyframes() == [(0.0, 0.7)]


def test_levels_are_centred_on_the_curve():
    found = Curve(1, 0).keyframes(4)
    assert [strength for _, strength in found] == [1, 0.75, 0.5, 0.25, 0]
    assert [border for border, _ in found] == pytest.approx([0, 0.125, 0.375, 0.625, 0.875], abs=2e-5)


@given(strengths, strengths, shares, shares, slopes, st.integers(1, 200), shares)
def test_levels_follow_the_curve(start, end, one, two, easing, levels, share):
    begin, finish = sorted((one, two))
    curve = Curve(start, end, begin, finish, easing)
    keyframes = curve.keyframes(levels)
    borders, values = zip(*keyframes)
    assert borders[0] == 0
    assert list(borders) == sorted(set(borders))
    assert all(a != b for a, b in itertools.pairwise(values)), "equal neighbours are merged"
    if levels >= 2 and finish - begin > 0.01:
        # A slope of at most 2, half a level wide; the hair aside.
        off = abs(held(keyframes, share) - curve.at(share))
        assert off <= abs(end - start) * (1 / levels + 2e-5 / (finish - begin)) + 1e-9


@given(strengths, strengths, st.sampled_from(EASINGS))
def test_both_ends_are_exact(start, end, easing):
    keyframes = Curve(start, end, 0.2, 0.8, easing).keyframes()
    assert held(keyframes, 0.0) == start
    assert held(keyframes, 0.99) == (start if easing in ("between", "constant") else end)


@pytest.mark.parametrize(
    "wrong", [{"start": float("nan")}, {"begin": 0.6, "finish": 0.4}, {"begin": -0.1}, {"finish": 1.1}, {"easing": "?"}]
)
def test_what_is_no_curve_is_refused(wrong):
    with pytest.raises(SettingError, match="curve: "):
        Curve(**wrong)


@pytest.mark.parametrize("levels", [0, 201])
def test_levels_have_limits(levels):
    with pytest.raises(SettingError, match="levels"):
        Curve().keyframes(levels)


def in_the_page(expression):
    """What an expression on `shape`, the page's curve_shape.js, and `curves` is there."""
    curves = [vars(curve) for curve in CURVES]
    script = f"""import * as shape from {json.dumps((WEB / "curve_shape.js").as_uri())};
        const curves = {json.dumps(curves)}; console.log(JSON.stringify({expression}));"""
    done = subprocess.run([NODE, "--input-type=module", "--eval", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_page_draws_the_same_curves():
    for curve, corners in zip(CURVES, in_the_page("curves.map(shape.outline)"), strict=True):
        assert corners[0][0] == 0
        assert corners[-1][0] == 1
        assert [share for share, _ in corners] == sorted(share for share, _ in corners)
        for (left, low), (right, high) in itertools.pairwise(corners):
            if right > left:  # between two corners the line is straight
                assert (low + high) / 2 == pytest.approx(curve.at((left + right) / 2), abs=2e-3)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_points_in_the_page_do_not_pass_each_other():
    for curve, found in zip(CURVES, in_the_page("curves.map((c) => shape.moved(c, 'begin', 0.9, 0.3))"), strict=True):
        assert Curve(**found) == Curve(0.3, curve.end, min(0.9, curve.finish), curve.finish, curve.easing)
    for curve, found in zip(CURVES, in_the_page("curves.map((c) => shape.moved(c, 'finish', -1, 2))"), strict=True):
        assert Curve(**found) == Curve(curve.start, 2, curve.begin, curve.begin, curve.easing)
    for curve, (low, high) in zip(CURVES, in_the_page("curves.map(shape.range)"), strict=True):
        assert low <= min(0, curve.start, curve.end)
        assert high > max(1, curve.start, curve.end)
