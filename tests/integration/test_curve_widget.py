"""The curve on the schedule node, in ComfyUI's page: on the classic canvas and in Nodes 2.0."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import needs_chromium, sync_api
from comfy_driver import PACK, Comfy
from page import RENDERERS, add_node, at, opened

pytestmark = needs_chromium

NODE = "SpectralAdapterSchedule"
SETTLED = 400  # milliseconds after which the page has seen that something changed
CURVE = ("strength_start", "strength_end", "start_percent", "end_percent", "easing")
DRAWN = "() => document.querySelector('.spectral-curve-line')?.getAttribute('points')"


@pytest.fixture(scope="module")
def comfy(comfy_root: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    with Comfy(comfy_root, comfy_python, tmp_path_factory.mktemp("comfy"), [PACK]) as server:
        yield server


@pytest.fixture(params=RENDERERS)
def page(request: pytest.FixtureRequest, browser: sync_api.Browser, comfy: Comfy) -> Iterator[sync_api.Page]:
    """The page with one schedule node, its curve drawn, at another zoom than 1."""
    with opened(browser, comfy, request.param) as page:
        add_node(page, NODE)
        page.evaluate("() => { app.canvas.ds.scale = 1.25; app.canvas.setDirty(true, true); }")
        sync_api.expect(page.locator(at("curve-finish"))).to_be_visible()
        page.wait_for_function(DRAWN)
        yield page


def values(page: sync_api.Page) -> list:
    """The curve as the node's widgets hold it."""
    return page.evaluate(
        "(names) => names.map((name) => app.graph.nodes[0].widgets.find((widget) => widget.name === name).value)",
        list(CURVE),
    )


def change(page: sync_api.Page, name: str, value: object) -> None:
    """A number changed where it stands, not in the curve."""
    page.evaluate(
        """([name, value]) => {
            const widget = app.graph.nodes[0].widgets.find((each) => each.name === name);
            widget.value = value;
            widget.callback?.(value);
        }""",
        [name, value],
    )


def line(page: sync_api.Page) -> str:
    return page.get_attribute(".spectral-curve-line", "points")


def middle(page: sync_api.Page, name: str) -> tuple[float, float]:
    box = page.locator(at(name)).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_points_are_dragged(page: sync_api.Page) -> None:
    assert values(page) == [1, 0, 0, 1, "smooth"]
    begin, finish = middle(page, "curve-begin"), middle(page, "curve-finish")
    page.mouse.move(*finish)
    page.mouse.down()
    # Three quarters of the way along, half of the way up.
    page.mouse.move(begin[0] + 0.75 * (finish[0] - begin[0]), (begin[1] + finish[1]) / 2, steps=8)
    sync_api.expect(page.locator(".spectral-curve-said")).to_have_text("75 %: strength 0.5")
    page.mouse.up()
    assert values(page) == [1, 0.5, 0, 0.75, "smooth"]
    sync_api.expect(page.locator(".spectral-curve-said")).to_be_hidden()
    page.mouse.move(*middle(page, "curve-begin"))
    page.mouse.down()
    page.mouse.move(finish[0] + 60, finish[1] + 200, steps=8)
    page.mouse.up()
    assert values(page) == [0, 0.5, 0.75, 0.75, "smooth"], "the points do not pass each other"


def test_points_follow_the_arrow_keys_and_undo_takes_back(page: sync_api.Page) -> None:
    point = page.locator(at("curve-begin"))
    point.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "Shift+ArrowUp"):
        point.press(key)
    assert values(page) == [0.91, 0, 0.01, 1, "smooth"]
    assert point.get_attribute("aria-valuetext") == "1 %: strength 0.91"
    assert page.evaluate("() => app.graph.nodes.length") == 1, "keys do not reach the canvas"
    page.wait_for_timeout(SETTLED)
    page.keyboard.press("Control+z")
    page.wait_for_function("() => app.graph.nodes[0].widgets[0].value === 0.9")
    sync_api.expect(page.locator(at("curve-begin"))).to_have_attribute("aria-valuetext", "1 %: strength 0.9")


def test_the_curve_follows_the_numbers(page: sync_api.Page) -> None:
    before = line(page)
    change(page, "strength_end", 0.8)
    page.wait_for_function(
        "(before) => document.querySelector('.spectral-curve-line').getAttribute('points') !== before", arg=before
    )
    change(page, "easing", "constant")
    sync_api.expect(page.locator(at("curve-finish"))).to_be_hidden()
    change(page, "easing", "between")
    sync_api.expect(page.locator(at("curve-finish"))).to_be_visible()


def test_a_saved_workflow_brings_its_curve_back(page: sync_api.Page) -> None:
    change(page, "start_percent", 0.2)
    change(page, "easing", "ease in")
    drawn = line(page)
    saved = page.evaluate("() => app.graph.serialize()")
    assert saved["nodes"][0]["widgets_values"] == [1, 0, 0.2, 1, "ease in", 20, True, "refuse"]
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert set(next(iter(sent.values()))["inputs"]) == {*CURVE, "levels", "schedule_clip", "on_mismatch"}
    page.evaluate("async (saved) => { app.graph.clear(); await app.loadGraphData(saved); }", saved)
    page.wait_for_function(DRAWN)
    assert values(page) == [1, 0, 0.2, 1, "ease in"]
    assert len(line(page).split()) == len(drawn.split())
    assert page.locator(at("curve")).count() == 1
