"""ComfyUI's page in Chromium: opened with settings, a node put on its canvas, in either renderer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from chromium import sync_api
from comfy_driver import Comfy

PATIENCE = 60_000  # milliseconds
READY = "() => window.app?.canvas && app.extensionManager && !document.querySelector('#splash-loader')"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
RENDERERS = {"classic": False, "nodes-2": True}


def set_up(comfy: Comfy, **settings: object) -> None:
    """The page's settings, before it is opened; a name's dots as double underscores."""
    for name, value in (SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}).items():
        headers = {"Content-Type": "application/json"}
        assert comfy.call(f"/settings/{name}", json.dumps(value).encode(), headers)[0] == 200


@contextmanager
def opened(browser: sync_api.Browser, comfy: Comfy, renderer: str) -> Iterator[sync_api.Page]:
    """The page with an empty workflow. No error may come from this pack's own scripts."""
    set_up(comfy, Comfy__VueNodes__Enabled=RENDERERS[renderer])
    context = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: "spectral" in (error.stack or "") and faults.append(error.stack))
    page.on("response", lambda answer: "spectral" in answer.url and answer.status >= 400 and faults.append(answer.url))
    go(page, comfy)
    yield page
    context.close()
    assert not faults


def go(page: sync_api.Page, comfy: Comfy) -> None:
    page.goto(f"http://127.0.0.1:{comfy.port}")
    page.wait_for_function(READY)
    page.evaluate("() => app.graph.clear()")


def add_node(page: sync_api.Page, kind: str) -> None:
    """A node of that type in view, alone."""
    page.evaluate(
        """(kind) => {
            const node = LiteGraph.createNode(kind);
            node.pos = [100, 100];
            app.graph.add(node);
            app.canvas.ds.offset = [200, 60];
            app.canvas.ds.scale = 1;
            app.canvas.setDirty(true, true);
        }""",
        kind,
    )


def at(name: str) -> str:
    return f"[data-test={name}]"
