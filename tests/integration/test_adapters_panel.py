"""The panel's adapters in the sidebar of a running ComfyUI: looked at, fused, put into the graph, in Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import needs_chromium, sync_api
from comfy_driver import PACK, Comfy
from page import RENDERERS, at, opened

pytestmark = needs_chromium

PATIENCE = 180_000  # milliseconds; a job loads torch in a process of its own
TAB = ".spectral-adapters-tab-button"
LORA = "loras/styles/additive-lora.safetensors"
AMONG_LORAS = "loras/styles/turned.safetensors"
FILES = """(type) => app.graph.nodes.filter((node) => node.type === type).map((node) => node.widgets[0].value)"""


@pytest.fixture(scope="module")
def comfy(
    comfy_root: Path, comfy_python: str, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("comfy")
    adapters, loras = (base / "models" / name for name in ("spectral_adapters", "loras/styles"))
    for folder in (adapters, loras):
        folder.mkdir(parents=True)
    for name in ("additive", "rotation"):
        shutil.copy(library / "adapters" / f"{name}.safetensors", adapters)
    shutil.copy(library / "adapters" / "additive-lora.safetensors", loras)
    shutil.copy(library / "adapters" / "rotation.safetensors", loras / "turned.safetensors")
    with Comfy(comfy_root, comfy_python, base, [PACK]) as server:
        yield server


@pytest.fixture(params=RENDERERS)
def page(request: pytest.FixtureRequest, browser: sync_api.Browser, comfy: Comfy) -> Iterator[sync_api.Page]:
    """ComfyUI's page with the sidebar open at the list of adapters."""
    with opened(browser, comfy, request.param) as page:
        page.set_default_timeout(PATIENCE)
        page.click(TAB)
        page.click(at("tab-adapters"))
        yield page


def in_graph(page: sync_api.Page, kind: str) -> list[str]:
    """The files chosen in the loaders of a kind, once there is one."""
    page.wait_for_function(f"(type) => ({FILES})(type).length > 0", arg=kind)
    return page.evaluate(FILES, kind)


def test_a_file_of_either_kind_goes_into_the_graph(page: sync_api.Page) -> None:
    page.locator(f"[data-name='{LORA}']").locator(at("adapter-open")).click()
    page.click(at("use-in-graph"))
    assert in_graph(page, "LoraLoader") == [str(Path(LORA).relative_to("loras"))]
    page.click(at("adapter-back"))
    page.locator("[data-name='rotation.safetensors']").locator(at("adapter-open")).click()
    sync_api.expect(page.locator(at("adapter-facts"))).to_contain_text("rotation", timeout=PATIENCE)
    page.click(at("use-in-graph"))
    assert in_graph(page, "SpectralAdapterLoader") == ["rotation.safetensors"]


def test_an_adapter_among_the_loras_is_looked_into_and_goes_into_our_loader(page: sync_api.Page) -> None:
    page.locator(f"[data-name='{AMONG_LORAS}']").locator(at("adapter-open")).click()
    sync_api.expect(page.locator(at("adapter-facts"))).to_contain_text("rotation", timeout=PATIENCE)
    page.click(at("use-in-graph"))
    assert in_graph(page, "SpectralAdapterLoader") == [AMONG_LORAS]


def test_adapters_are_compared_fused_and_used(page: sync_api.Page) -> None:
    for name in ("additive.safetensors", LORA):
        page.locator(f"[data-name='{name}']").locator(at("adapter-pick")).check()
    page.click(at("adapters-mix"))
    page.click(at("mix-look"))
    sync_api.expect(page.locator(at("conflict-sentence"))).to_contain_text("additive", timeout=PATIENCE)
    page.click(at("fuse"))
    page.locator(at("fuse-use")).click()
    (made,) = in_graph(page, "LoraLoader")
    assert made.startswith("additive-additive-lora")
