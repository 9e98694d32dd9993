"""The mixing nodes and the example workflows in ComfyUI's page, on the classic canvas and in Nodes 2.0."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sample_adapters
from chromium import needs_chromium, sync_api
from comfy_driver import PACK, Comfy
from page import RENDERERS, opened
from safetensors.torch import load_file

import spectral_adapters as sa

pytestmark = needs_chromium

SETTLED = 500  # milliseconds after which the page has dealt with a new link; it does so a frame later
BASE = "small.safetensors"
COLUMNS = {"cat": "top:4@0", "dog": "top:4@2", "watercolor": "top:4@8"}
WORKFLOWS = sorted(path.stem for path in (PACK / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def comfy(
    comfy_root: Path, comfy_python: str, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("comfy")
    models = base / "models"
    (models / "checkpoints").mkdir(parents=True)
    (models / "checkpoints" / BASE).symlink_to(library / BASE)
    (models / "spectral_adapters").mkdir()
    state = load_file(library / BASE)
    weights = {name: state[key].float() for name, key in sample_adapters.layer_keys(text_encoder=False).items()}
    for name, columns in COLUMNS.items():
        made = sample_adapters.make(sa.method("additive", columns=columns), weights, "portable")
        sa.save(made, models / "spectral_adapters" / f"{name}.safetensors", base_name="small", trigger_words=(name,))
    with Comfy(comfy_root, comfy_python, base, [PACK]) as server:
        yield server


@pytest.fixture(params=RENDERERS)
def page(request: pytest.FixtureRequest, browser: sync_api.Browser, comfy: Comfy) -> Iterator[sync_api.Page]:
    """ComfyUI's page in one of its renderers, which may not warn of anything that is ours."""
    with opened(browser, comfy, request.param) as page:
        faults: list[str] = []
        page.on("console", lambda said: is_warning(said.type, said.text) and faults.append(said.text))
        yield page
        assert not faults


def is_warning(kind: str, text: str) -> bool:
    """Whether the page says that a workflow or a node of ours is not as it should be."""
    words = ("workflow", "schema", "validation", "zod", "spectral", "widget")
    return kind in ("warning", "error") and "deprecated" not in text and any(w in text.lower() for w in words)


def load(page: sync_api.Page, workflow: dict) -> None:
    page.evaluate("(data) => app.loadGraphData(data)", workflow)
    page.wait_for_function("(count) => app.graph.nodes.length === count", arg=len(workflow["nodes"]))
    page.wait_for_timeout(1500)  # what a widget or a warning needs to show


def prompt_of(page: sync_api.Page) -> dict:
    return page.evaluate("async () => (await app.graphToPrompt()).output")


def example(name: str) -> dict:
    return json.loads((PACK / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_example_loads_without_a_warning_and_keeps_its_links_and_values(name: str, page: sync_api.Page) -> None:
    workflow = example(name)
    load(page, workflow)
    assert page.locator(".p-toast-message").all_text_contents() == []
    assert page.locator(".p-dialog").all_text_contents() == []
    prompt = prompt_of(page)
    types = {str(node["id"]): node["type"] for node in workflow["nodes"] if "Note" not in node["type"]}
    assert {id: node["class_type"] for id, node in prompt.items()} == types
    names = {
        (str(node["id"]), slot): given["name"]
        for node in workflow["nodes"]
        for slot, given in enumerate(node.get("inputs", []))
    }
    for _, source, output, target, slot, _ in workflow["links"]:
        assert prompt[str(target)]["inputs"][names[str(target), slot]] == [str(source), output]
    for node in workflow["nodes"]:
        if not node["type"].startswith("Spectral") or "Note" in node["type"]:
            continue
        sent = prompt[str(node["id"])]["inputs"]
        widgets = [given["name"] for given in node.get("inputs", []) if "widget" in given]
        assert {name: sent[name] for name in widgets if name in sent and not isinstance(sent[name], list)} == {
            name: value
            for name, value in zip(widgets, node.get("widgets_values", []))
            if not isinstance(sent[name], list)
        }


def fusion_of(page: sync_api.Page, strength: float = 1.0) -> None:
    """The fusion example on the test's checkpoint, without sampling."""
    workflow = example("fuse_adapters")
    for node in workflow["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            node["widgets_values"] = [BASE]
        if node["type"] == "SpectralAdapterStack":
            rows = json.loads(node["widgets_values"][0])
            node["widgets_values"][0] = json.dumps([row | {"model": strength, "clip": strength} for row in rows])
    load(page, workflow)
    page.evaluate(
        """() => {
            for (const node of [...app.graph.nodes]) {
                if (!node.type.startsWith("Spectral") && node.type !== "CheckpointLoaderSimple") app.graph.remove(node);
            }
        }"""
    )


def run(page: sync_api.Page) -> None:
    page.evaluate(
        """() => {
            window.ended = null;
            for (const type of ["execution_success", "execution_error"]) {
                app.api.addEventListener(type, ({ detail: { exception_message: said } }) => {
                    window.ended = [type, said ?? ""];
                });
            }
            return app.queuePrompt(0, 1);
        }"""
    )
    page.wait_for_function("() => window.ended")
    assert page.evaluate("() => window.ended") == ["execution_success", ""]


def test_the_conflict_and_the_fusion_show_themselves(page: sync_api.Page, comfy: Comfy) -> None:
    before = len(list((comfy.base / "output").rglob("cat_and_dog*.safetensors")))
    fusion_of(page, strength=1 - before / 100)  # of a node that comes from the cache, nothing is shown
    run(page)
    page.wait_for_function("() => Object.values(app.nodeOutputs ?? {}).some((output) => output.images?.length)")
    shown = page.evaluate(
        """() => Object.fromEntries(app.graph.nodes.map((node) => {
            const { text, images } = app.nodeOutputs?.[node.id] ?? {};
            return [node.type, { text: (text ?? []).join(" "), images: images?.length }];
        }))"""
    )
    assert "columns 2-3" in shown["SpectralAdapterConflict"]["text"]
    assert shown["SpectralAdapterConflict"]["images"] == 1
    assert "Verified" in shown["SpectralAdapterFusion"]["text"]
    assert "Wrote output/" in shown["SpectralAdapterSave"]["text"]
    toast = page.locator(".p-toast-message", has_text="cat_and_dog")
    sync_api.expect(toast).to_be_visible()
    files = list((comfy.base / "output").rglob("cat_and_dog*.safetensors"))
    listed = page.evaluate(
        """async () => {
            const response = await app.api.fetchApi("/object_info/SpectralAdapterLoader");
            const [type, options] = (await response.json()).SpectralAdapterLoader.input.required.adapter;
            return Array.isArray(type) ? type : options.options;
        }"""
    )
    own = {path.name for path in files if path.parent.name == "spectral_adapters"}
    assert own <= set(listed) and len(files) == before + 1


def test_an_input_appears_when_one_is_taken_and_goes_when_it_is_freed(page: sync_api.Page) -> None:
    fusion_of(page)
    sockets = """() => app.graph.nodes.find((node) => node.type === "SpectralAdapterFusion")
        .inputs.filter((input) => input.name.startsWith("adapters."))
        .map((input) => [input.name, input.link != null])"""
    assert page.evaluate(sockets) == [["adapters.adapter_0", True], ["adapters.adapter_1", False]]
    page.evaluate(
        """() => {
            const find = (type) => app.graph.nodes.find((node) => node.type === type);
            const [stack, fusion] = [find("SpectralAdapterStack"), find("SpectralAdapterFusion")];
            stack.connect(3, fusion, fusion.inputs.findIndex((input) => input.name === "adapters.adapter_1"));
        }"""
    )
    page.wait_for_function(f"() => ({sockets})().length === 3")
    page.wait_for_timeout(SETTLED)
    assert prompt_of(page)["20"]["inputs"]["adapters.adapter_1"] == ["30", 3]
    page.evaluate(
        """() => {
            const fusion = app.graph.nodes.find((node) => node.type === "SpectralAdapterFusion");
            fusion.disconnectInput(fusion.inputs.findIndex((input) => input.name === "adapters.adapter_1"));
        }"""
    )
    page.wait_for_function(f"() => ({sockets})().length === 2")


def test_a_choice_brings_its_own_settings(page: sync_api.Page) -> None:
    fusion_of(page)
    choose = """([type, name, value]) => {
        const widget = app.graph.nodes.find((node) => node.type === type).widgets.find((each) => each.name === name);
        widget.value = value;
        widget.callback?.(value);
    }"""
    page.evaluate(choose, ["SpectralAdapterFusion", "mode", "gradient"])
    page.evaluate(choose, ["SpectralAdapterSave", "format", "LoRA"])
    page.wait_for_timeout(SETTLED)
    prompt = prompt_of(page)
    assert prompt["20"]["inputs"].items() >= {"mode": "gradient", "mode.steps": 8, "mode.size": 256}.items()
    assert prompt["50"]["inputs"].items() >= {"format": "LoRA", "format.rank": 0, "format.energy": 1}.items()
