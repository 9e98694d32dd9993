"""The stack's rows in ComfyUI's page, in Chromium, on the classic canvas and in Nodes 2.0."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import needs_chromium, sync_api
from comfy_driver import PACK, Comfy
from page import RENDERERS, add_node, at, go, opened

pytestmark = needs_chromium

SETTLED = 400  # milliseconds after which the page has seen that something changed
NODE = "SpectralAdapterStack"
CAT = "pets/cat.safetensors"
ARE_NAMED = """(wanted) => JSON.parse(app.graph.nodes[0].widgets.find((widget) => widget.name === "rows").value)
    .map((row) => row.adapter).join() === wanted"""
LORA = "loras/animals/rotation-lora.safetensors"


@pytest.fixture(scope="module")
def comfy(
    comfy_root: Path, comfy_python: str, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("comfy")
    adapters, loras = (base / "models" / name for name in ("spectral_adapters", "loras/animals"))
    (adapters / "pets").mkdir(parents=True)
    loras.mkdir(parents=True)
    for name in ("additive", "svdiff"):
        shutil.copy(library / "adapters" / f"{name}.safetensors", adapters)
    shutil.copy(library / "adapters" / "rotation.safetensors", adapters / CAT)
    shutil.copy(library / "adapters" / "rotation-lora.safetensors", loras)
    with Comfy(comfy_root, comfy_python, base, [PACK]) as server:
        yield server


@pytest.fixture(params=RENDERERS)
def page(request: pytest.FixtureRequest, browser: sync_api.Browser, comfy: Comfy) -> Iterator[sync_api.Page]:
    """The page with one empty stack."""
    with opened(browser, comfy, request.param) as page:
        add_node(page, NODE)
        sync_api.expect(page.locator(at("rows-add"))).to_be_visible()
        yield page


def rows(page: sync_api.Page) -> list[dict]:
    """What the widget holds."""
    return json.loads(page.evaluate("() => app.graph.nodes[0].widgets.find((w) => w.name === 'rows').value"))


def names(page: sync_api.Page) -> list[str]:
    return [row["adapter"] for row in rows(page)]


def add(page: sync_api.Page, *searches: str) -> None:
    """As people do: the button, some letters, Enter."""
    for search in searches:
        count = page.locator(at("row")).count()
        page.click(at("rows-add"))
        page.fill(at("rows-search"), search)
        page.keyboard.press("Enter")
        sync_api.expect(page.locator(at("row"))).to_have_count(count + 1)


def drag(page: sync_api.Page, grip: sync_api.Locator, by: tuple[float, float]) -> None:
    box = grip.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by[0], y + by[1], steps=10)
    page.mouse.up()


def test_rows_are_picked_switched_weighed_and_kept(page: sync_api.Page, comfy: Comfy) -> None:
    page.click(at("rows-add"))
    listed = page.locator(f"{at('rows-options')} [role=option]")
    assert {each.get_attribute("data-name") for each in listed.all()} == {
        "additive.safetensors", "svdiff.safetensors", CAT, LORA,
    }  # fmt: skip
    page.fill(at("rows-search"), "PETS ca")
    sync_api.expect(listed).to_have_count(1)
    page.keyboard.press("Enter")
    add(page, "additive", "animals")
    fresh = {"on": True, "model": 1, "clip": 1, "parts": ""}
    assert rows(page) == [fresh | {"adapter": name} for name in (CAT, "additive.safetensors", LORA)]
    drag(page, page.locator(at("row-model")).nth(0), (-20, 0))
    page.locator(at("row-link")).nth(1).click()
    page.locator(at("row-clip")).nth(1).click()
    page.keyboard.type("0,3")
    page.keyboard.press("Enter")
    page.locator(at("row-on")).nth(2).click()
    wanted = [(True, 0.75, 0.75), (True, 1, 0.3), (False, 1, 1)]
    assert [(row["on"], row["model"], row["clip"]) for row in rows(page)] == wanted
    # Into the prompt, into the workflow, and back out of it.
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert json.loads(sent[next(iter(sent))]["inputs"]["rows"]) == rows(page)
    saved = page.evaluate("() => JSON.stringify(app.graph.serialize())")
    before = rows(page)
    go(page, comfy)
    page.evaluate("(saved) => app.loadGraphData(JSON.parse(saved))", saved)
    sync_api.expect(page.locator(at("row"))).to_have_count(3)
    assert rows(page) == before
    sync_api.expect(page.locator(at("row-clip")).nth(1)).to_have_value("0.30")
    sync_api.expect(page.locator(at("row-clip")).nth(0)).to_be_hidden()
    page.click(at("rows-all"))
    assert [row["on"] for row in rows(page)] == [True] * 3
    page.click(at("rows-all"))
    assert [row["on"] for row in rows(page)] == [False] * 3


def test_rows_move_by_pointer_and_by_keys_and_undo_takes_it_back(page: sync_api.Page) -> None:
    add(page, "additive", "svdiff", "cat")
    first, second, third = names(page)
    drag(page, page.locator(at("job-move")).nth(0), (0, 62))
    assert names(page) == [second, third, first]
    page.locator(at("job-move")).nth(2).focus()
    page.wait_for_timeout(SETTLED)
    page.keyboard.press("ArrowUp")
    assert names(page) == [second, first, third]
    page.wait_for_timeout(SETTLED)
    assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Move additive"
    page.locator(at("row-remove")).nth(0).click()
    assert names(page) == [first, third]
    page.evaluate("() => document.activeElement.blur()")
    page.wait_for_timeout(SETTLED)
    # Older Nodes 2.0 enlarge every node at the second undo, which is a step of its own.
    classic = page.evaluate("() => !LiteGraph.vueNodesMode")
    for wanted in ([second, first, third], [second, third, first], [first, second, third])[: 3 if classic else 1]:
        page.keyboard.press("Control+z")
        page.wait_for_function(ARE_NAMED, arg=",".join(wanted))
        page.wait_for_timeout(SETTLED)
    sync_api.expect(page.locator(at("row"))).to_have_count(3)


def test_the_keyboard_alone_does_it_all(page: sync_api.Page) -> None:
    page.locator(at("rows-add")).focus()
    page.keyboard.press("Enter")
    page.keyboard.type("svd")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(at("row-name"))).to_be_focused()
    page.keyboard.press("Tab")
    sync_api.expect(page.locator(at("row-model"))).to_be_focused()
    for key in ("ArrowDown", "ArrowDown", "Shift+ArrowUp"):
        page.keyboard.press(key)
    assert rows(page)[0]["model"] == rows(page)[0]["clip"] == 0.91
    page.locator(at("row-on")).focus()
    page.keyboard.press("Space")
    assert not rows(page)[0]["on"]
    page.locator(at("job-move")).focus()
    page.keyboard.press("Delete")  # ComfyUI's own key, which would remove the node
    assert page.evaluate("() => app.graph.nodes.length") == 1
    page.locator(at("row-name")).focus()
    page.keyboard.press("Enter")
    page.keyboard.type("r")
    page.keyboard.press("Escape")
    sync_api.expect(page.locator(at("row-name"))).to_be_focused()
    sync_api.expect(page.locator(at("rows-picker"))).to_have_count(0)
    assert names(page) == ["svdiff.safetensors"]


def test_a_row_tells_what_its_file_is(page: sync_api.Page) -> None:
    add(page, "cat", "animals")
    page.locator(at("row-info")).nth(0).click()
    info = page.locator(at("rows-info"))
    sync_api.expect(info).to_contain_text("rotation, top:8")
    sync_api.expect(info).to_contain_text("small")
    info.locator(at("rows-word"), has_text="sks").click()
    assert page.evaluate("() => navigator.clipboard.readText()") == "sks"
    page.fill(at("rows-parts"), " mid=0, OUT*=0.5 ")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    sync_api.expect(info).to_have_count(0)
    assert rows(page)[0]["parts"] == "mid=0, OUT*=0.5"
    page.locator(at("row-name")).nth(1).click(button="right")
    sync_api.expect(info).to_contain_text("LoCon")


def test_the_node_grows_and_shrinks_with_its_rows(page: sync_api.Page) -> None:
    page.wait_for_timeout(300)
    height = "() => app.graph.nodes[0].size[1]"
    empty = page.evaluate(height)
    add(page, "additive", "svdiff", "cat", "animals")
    page.wait_for_timeout(300)
    assert page.evaluate(height) >= empty + 3 * 28
    rows_box, add_box = (page.locator(at(name)).bounding_box() for name in ("rows", "rows-add"))
    last = page.locator(at("row")).nth(3).bounding_box()
    assert last["y"] + last["height"] <= rows_box["y"] + rows_box["height"] + 1
    assert add_box["x"] + add_box["width"] <= rows_box["x"] + rows_box["width"] + 1
    for _ in range(4):
        page.locator(at("row-remove")).nth(0).click()
    page.wait_for_timeout(300)
    assert abs(page.evaluate(height) - empty) <= 2


def test_what_cannot_be_read_is_said_and_missing_files_are_marked(page: sync_api.Page) -> None:
    put = "(value) => { app.graph.nodes[0].widgets.find((w) => w.name === 'rows').value = value; }"
    page.evaluate(put, '[{"adapter": "gone.safetensors", "model": 0.5}]')
    name = page.locator(at("row-name"))
    sync_api.expect(name).to_have_text("gone")
    sync_api.expect(name).to_have_class("spectral-name bad")
    sync_api.expect(page.locator(at("row-model"))).to_have_value("0.50")
    page.evaluate(put, "[{")
    sync_api.expect(page.locator(at("rows")).get_by_role("alert")).to_be_visible()
    add(page, "svd")
    assert names(page) == ["svdiff.safetensors"]
    sync_api.expect(page.locator(at("rows")).get_by_role("alert")).to_be_hidden()


def test_what_is_set_in_the_page_is_what_runs(page: sync_api.Page, comfy: Comfy) -> None:
    """Only the words come out, which needs no model."""
    add(page, "cat")
    page.evaluate(
        """() => {
            const shown = LiteGraph.createNode("PreviewAny");
            shown.pos = [600, 100];
            app.graph.add(shown);
            app.graph.nodes[0].connect(2, shown, 0);
        }"""
    )
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function("() => app.graph.nodes[1].widgets?.some((widget) => widget.value === 'sks, dog')")
