"""The curve on the schedule node, in ComfyUI's page: on the classic canvas and in Nodes 2.0."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import launched, needs_chromium, sync_api
from comfy_driver import PACK, Comfy

pytestmark = needs_chromium

NODE = "SpectralAdapterSchedule"
PATIENCE = 240_000  # milliseconds
READY = "() => window.app?.canvas && app.extensionManager && !document.querySelector('#splash-loader')"
PLAIN = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
CURVE = ("strength_start", "strength_end", "start_percent", "end_percent", "easing")


@pytest.fixture(scope="module")
def comfy(comfy_root: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    with Comfy(comfy_root, comfy_python, tmp_path_factory.mktemp("comfy"), [PACK]) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with launched() as chromium:
        yield chromium


@pytest.fixture(params=["classic", "nodes 2.0"])
def page(request: pytest.FixtureRequest, browser: "sync_api.Browser", comfy: Comfy) -> Iterator["sync_api.Page"]:
    """A workflow of one schedule node. No error may come from this pack's own scripts."""
    for name, value in (PLAIN | {"Comfy.VueNodes.Enabled": request.param == "nodes 2.0"}).items():
        assert (
            comfy.call(f"/settings/{name}", json.dumps(value).encode(), {"Content-Type": "application/json"})[0] == 200
        )
    context = browser.new_context(viewport={"width": 1200, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: "spectral" in (error.stack or "") and faults.append(error.stack))
    page.goto(f"http://127.0.0.1:{comfy.port}")
    page.wait_for_function(READY)
    page.evaluate(
        """(type) => {
            app.graph.clear();
            const node = LiteGraph.createNode(type);
            node.pos = [60, 60];
            app.graph.add(node);
            app.canvas.ds.scale = 1.25;
            app.canvas.ds.offset = [60, 40];
            app.canvas.setDirty(true, true);
        }""",
        NODE,
    )
    sync_api.expect(page.locator("[data-test=curve-finish]")).to_be_visible(timeout=PATIENCE)
    page.wait_for_function("() => document.querySelector('.spectral-curve-line')?.getAttribute('points')")
    yield page
    context.close()
    assert not faults


def values(page: "sync_api.Page") -> list:
    """The curve as the node's widgets hold it."""
    return page.evaluate(
        "(names) => names.map((name) => app.graph.nodes[0].widgets.find((widget) => widget.name === name).value)",
        list(CURVE),
    )


def change(page: "sync_api.Page", name: str, value: object) -> None:
    """A number changed where it stands, not in the curve."""
    page.evaluate(
        """([name, value]) => {
            const widget = app.graph.nodes[0].widgets.find((each) => each.name === name);
            widget.value = value;
            widget.callback?.(value);
        }""",
        [name, value],
    )


def line(page: "sync_api.Page") -> str:
    return page.get_attribute(".spectral-curve-line", "points")


def middle(page: "sync_api.Page", name: str) -> tuple[float, float]:
    box = page.locator(f"[data-test={name}]").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_points_are_dragged(page: "sync_api.Page") -> None:
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


def test_points_follow_the_arrow_keys_and_undo_takes_back(page: "sync_api.Page") -> None:
    point = page.locator("[data-test=curve-begin]")
    point.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "Shift+ArrowUp"):
        point.press(key)
    assert values(page) == [0.91, 0, 0.01, 1, "smooth"]
    assert point.get_attribute("aria-valuetext") == "1 %: strength 0.91"
    assert page.evaluate("() => app.graph.nodes.length") == 1, "keys do not reach the canvas"
    page.wait_for_function("() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length > 0")
    page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    page.wait_for_function("() => app.graph.nodes[0].widgets[0].value !== 0.91")


def test_the_curve_follows_the_numbers(page: "sync_api.Page") -> None:
    before = line(page)
    change(page, "strength_end", 0.8)
    page.wait_for_function(
        "(before) => document.querySelector('.spectral-curve-line').getAttribute('points') !== before", arg=before
    )
    change(page, "easing", "constant")
    sync_api.expect(page.locator("[data-test=curve-finish]")).to_be_hidden()
    change(page, "easing", "between")
    sync_api.expect(page.locator("[data-test=curve-finish]")).to_be_visible()


def test_a_saved_workflow_brings_its_curve_back(page: "sync_api.Page") -> None:
    change(page, "start_percent", 0.2)
    change(page, "easing", "ease in")
    drawn = line(page)
    saved = page.evaluate("() => app.graph.serialize()")
    assert saved["nodes"][0]["widgets_values"] == [1, 0, 0.2, 1, "ease in", 20, True, "refuse"]
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert set(next(iter(sent.values()))["inputs"]) == {*CURVE, "levels", "schedule_clip", "on_mismatch"}
    page.evaluate("async (saved) => { app.graph.clear(); await app.loadGraphData(saved); }", saved)
    page.wait_for_function(
        "(drawn) => document.querySelector('.spectral-curve-line')?.getAttribute('points')?.length > 0"
    )
    assert values(page) == [1, 0, 0.2, 1, "ease in"]
    assert len(line(page).split()) == len(drawn.split())
    assert page.locator("[data-test=curve]").count() == 1
