"""The training panel in the sidebar of a running ComfyUI, in a real Chromium."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_driver import PACK, Comfy
from trainings import LONG, give_pictures, jobs, named, trainer, wait_for_status, wait_for_step

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

PATIENCE = 240_000  # milliseconds
FLAGS = ["--no-sandbox", "--disable-gpu"]
TAB = ".spectral-adapters-tab-button"
LOADER = "SpectralAdapterLoader"
READY = "() => window.app?.canvas && app.extensionManager && !document.querySelector('#splash-loader')"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}


@pytest.fixture(scope="module")
def comfy(comfy_root: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("comfy")
    give_pictures(base)
    with Comfy(comfy_root, comfy_python, base, [PACK]) as server:
        for name, value in SETTINGS.items():
            set_up(server, name, value)
        yield server
        for job in jobs(server):
            if job["status"] in ("queued", "running", "stopping"):
                server.post(f"/spectral_adapters/jobs/{job['id']}/stop", {"now": True})


def set_up(comfy: Comfy, name: str, value: object) -> None:
    """One of the page's settings, before it is opened."""
    assert comfy.call(f"/settings/{name}", json.dumps(value).encode(), {"Content-Type": "application/json"})[0] == 200


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: "sync_api.Browser", comfy: Comfy) -> Iterator["sync_api.Page"]:
    """ComfyUI's page with an empty workflow. No error may come from this pack's own scripts."""
    context = browser.new_context(viewport={"width": 1600, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: "spectral" in (error.stack or "") and faults.append(error.stack))
    page.on("response", lambda answer: "spectral" in answer.url and answer.status >= 400 and faults.append(answer.url))
    opened(page, comfy)
    yield page
    context.close()
    assert not faults


def opened(page: "sync_api.Page", comfy: Comfy) -> None:
    page.goto(f"http://127.0.0.1:{comfy.port}")
    page.wait_for_function(READY)
    page.evaluate("() => app.graph.clear()")


def at(name: str) -> str:
    return f"[data-test={name}]"


def see(page: "sync_api.Page", name: str, text: str | re.Pattern = "") -> "sync_api.Locator":
    found = page.locator(at(name)).first
    sync_api.expect(found).to_be_visible(timeout=PATIENCE)
    sync_api.expect(found).to_contain_text(text, timeout=PATIENCE)
    return found


def open_tab(page: "sync_api.Page") -> None:
    page.click(TAB)
    see(page, "main")


def train_tiny(page: "sync_api.Page", name: str, steps: int) -> None:
    """Through the form, as a person does."""
    page.click(at("tab-new"))
    page.select_option(at("base"), "tiny")
    page.select_option(at("dataset"), "input/fish")
    page.fill(at("trigger"), "sks fish")
    page.fill(at("name"), name)
    page.fill(at("setting-steps"), str(steps))
    sync_api.expect(page.locator(at("train"))).not_to_have_attribute("aria-disabled", "true", timeout=PATIENCE)
    page.click(at("train"))
    see(page, "job-name", name)


def loaders(page: "sync_api.Page") -> list[list]:
    """[adapter, strength, connected inputs, selected] of every loader in the workflow."""
    return page.evaluate(
        """(type) => app.graph.nodes.filter((node) => node.type === type).map((node) => [
            node.widgets.find((widget) => widget.name === "adapter").value,
            node.widgets.find((widget) => widget.name === "strength_model").value,
            node.inputs.filter((input) => input.link != null).length,
            app.canvas.selectedItems.has(node),
        ])""",
        LOADER,
    )


def in_sight(page: "sync_api.Page") -> bool:
    """Whether the newest node lies on the canvas beside the sidebar."""
    return page.evaluate(
        """() => {
            const node = app.graph.nodes.at(-1);
            const { scale, offset } = app.canvas.ds;
            const left = (node.pos[0] + offset[0]) * scale;
            const right = left + node.size[0] * scale;
            const edge = document.querySelector("spectral-panel").getBoundingClientRect().right;
            return left >= edge && right <= innerWidth;
        }"""
    )


def test_train_watch_close_reopen_and_use_in_the_graph(page: "sync_api.Page", comfy: Comfy) -> None:
    open_tab(page)
    train_tiny(page, "from the page", steps=40)
    see(page, "stat-loss", re.compile(r"\d"))
    page.click(TAB)
    sync_api.expect(page.locator("spectral-panel")).to_have_count(0)
    opened(page, comfy)
    open_tab(page)
    see(page, "job-name", "from the page")
    see(page, "status", "Finished")
    page.click(at("use-in-graph"))
    page.wait_for_function("(type) => app.graph.nodes.some((node) => node.type === type)", arg=LOADER)
    assert loaders(page) == [["from the page.safetensors", 1, 0, True]]
    assert in_sight(page)


def test_a_finished_training_is_told_and_listed_in_loaders_that_are_there(page: "sync_api.Page", comfy: Comfy) -> None:
    """The page did nothing: neither the tab was open nor R pressed."""
    page.evaluate("(type) => { app.graph.add(LiteGraph.createNode(type)); }", LOADER)
    assert comfy.run({"1": trainer(name="by the node", steps=2)}).ok
    page.wait_for_function(
        """(type) => app.graph.nodes.find((node) => node.type === type)
            .widgets.find((widget) => widget.name === "adapter").options.values.includes("by the node.safetensors")""",
        arg=LOADER,
    )
    toast = page.locator(".p-toast-message", has_text="by the node")
    sync_api.expect(toast).to_be_visible(timeout=PATIENCE)
    fresh = "(type) => LiteGraph.createNode(type).widgets.find((w) => w.name === 'adapter').options.values"
    assert "by the node.safetensors" in page.evaluate(fresh, LOADER)


def test_messages_can_be_turned_off(page: "sync_api.Page", comfy: Comfy) -> None:
    page.evaluate("() => app.extensionManager.setting.set('SpectralAdapters.Notify', false)")
    page.evaluate(
        "() => { window.told = []; app.api.addEventListener('spectral_adapters', (e) => told.push(e.detail.status)); }"
    )
    assert comfy.run({"1": trainer(name="in silence", steps=1)}).ok
    page.wait_for_function("() => told.includes('finished')")
    page.wait_for_timeout(500)
    assert page.locator(".p-toast-message", has_text="in silence").count() == 0
    page.evaluate("() => app.extensionManager.setting.set('SpectralAdapters.Notify', true)")


def test_the_command_opens_the_panel_and_keeps_it_open(page: "sync_api.Page") -> None:
    for _ in range(2):
        page.evaluate("() => app.extensionManager.command.execute('SpectralAdapters.OpenPanel')")
        see(page, "main")


def test_two_tabs_show_and_steer_the_same_job(page: "sync_api.Page", browser: "sync_api.Browser", comfy: Comfy) -> None:
    assert comfy.run({"1": trainer(name="shared", steps=LONG, wait=False)}).ok
    wait_for_step(comfy, "shared", 1)
    other = browser.new_context(viewport={"width": 1000, "height": 800}, locale="en-US").new_page()
    other.set_default_timeout(PATIENCE)
    opened(other, comfy)
    for each in (page, other):
        open_tab(each)
        each.click(at("tab-jobs"))
        each.locator(at("job-row"), has_text="shared").locator(at("job-open")).click()
        see(each, "stat-loss", re.compile(r"\d"))
    other.click(at("stop"))
    see(page, "status", "Stopped")
    see(other, "status", "Stopped")
    other.context.close()
    assert wait_for_status(comfy, "shared", "stopped")["resumable"]
    assert named(comfy, "shared")["status"] == "stopped"


def test_a_closed_panel_asks_the_server_nothing(page: "sync_api.Page") -> None:
    asked: list[str] = []
    open_tab(page)
    page.click(TAB)
    sync_api.expect(page.locator("spectral-panel")).to_have_count(0)
    page.on("request", lambda request: "/spectral_adapters/" in request.url and asked.append(request.url))
    page.wait_for_timeout(6000)
    assert not [url for url in asked if "/extensions/" not in url]


def test_where_others_can_reach_comfyui_the_panel_asks_for_the_token(
    browser: "sync_api.Browser", comfy_root: Path, comfy_python: str, tmp_path: Path
) -> None:
    with Comfy(comfy_root, comfy_python, tmp_path, [PACK], ("--listen", "0.0.0.0")) as server:
        set_up(server, "Comfy.TutorialCompleted", True)
        context = browser.new_context(viewport={"width": 1600, "height": 900}, locale="en-US")
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        opened(page, server)
        page.click(TAB)
        see(page, "token-screen")
        page.fill(at("token"), (tmp_path / "user" / "spectral_adapters" / "token").read_text())
        page.click(at("token-enter"))
        see(page, "tab-jobs")
        opened(page, server)  # the browser keeps it
        open_tab(page)
        sync_api.expect(page.locator(at("token-screen"))).to_have_count(0)
        context.close()


@pytest.mark.parametrize("renderer", [False, True], ids=["classic", "nodes-2"])
def test_the_trainer_node_shows_the_live_loss(renderer: bool, browser: "sync_api.Browser", comfy: Comfy) -> None:
    """The plot arrives in the page while the training runs, and Cancel in the page stops it with a save."""
    set_up(comfy, "Comfy.VueNodes.Enabled", renderer)
    context = browser.new_context(viewport={"width": 1600, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    name = f"live {renderer}"
    try:
        opened(page, comfy)
        page.evaluate(
            "() => { window.plots = 0; app.api.addEventListener('b_preview_with_metadata', () => { plots += 1; }); }"
        )
        page.evaluate("(graph) => app.loadApiJson(graph, 'live')", {"1": trainer(name=name, steps=LONG)})
        page.evaluate("() => app.queuePrompt(0, 1)")
        page.wait_for_function("() => plots >= 2")
        assert named(comfy, name)["status"] == "running"
        page.evaluate("() => app.api.interrupt()")
        assert wait_for_status(comfy, name, "stopped")["resumable"]
    finally:
        context.close()
        set_up(comfy, "Comfy.VueNodes.Enabled", False)
