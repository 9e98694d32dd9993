"""Adapters in a real Chromium on the real server: found, looked into, edited, compared, fused, planned."""

import re
from functools import cache

import pytest
from chromium import launched, needs_chromium, sync_api
from matrices import random_params
from panel_server import TOKEN, make_studio, serving
from PIL import Image
from safetensors.torch import load_file

import spectral_adapters as sa
from spectral_adapters.trainer.models import load_base

pytestmark = needs_chromium

PATIENCE = 60_000  # milliseconds; a busy machine takes its time
sync_api.expect.set_options(timeout=PATIENCE)
HOSTILE = '<img src=x onerror="window.hacked=1">'
MAIN = "document.querySelector('spectral-panel').shadowRoot.querySelector('main')"
WORDS = {"modelspec.title": HOSTILE, "modelspec.description": f"{HOSTILE} a cat", "modelspec.author": HOSTILE}


@cache
def weights():
    return load_base("tiny", weights_only=True, dtype=None).weights()


def make(folder, name, method="additive", seed=1, words=(), **settings):
    """An adapter of random parameters for a few layers of the tiny base."""
    method, layers = sa.method(method, **settings), {}
    for layer, weight in weights().items():
        if "up_blocks" not in layer or "_attn1_" not in layer:
            continue
        basis = sa.decompose(weight.float(), method.columns)
        basis = basis.half_rounded() if method.portable else basis
        params = random_params(method, weight, basis, 0.05, seed + len(layers))
        columns = None if basis.full else basis.columns
        layers[layer] = sa.AdapterLayer(layer, tuple(weight.shape), params, columns, basis)
    adapter = sa.Adapter(method, layers)
    adapter.metadata = dict(WORDS) if words else {}
    return sa.save(adapter, folder / f"{name}.safetensors", base_name="tiny", trigger_words=list(words))


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Four adapters, two of them on the same columns, one that needs its base."""
    made = make_studio(tmp_path_factory.mktemp("mix"))
    folder = made.places.adapters
    make(folder, "cat", seed=10, rank=4, words=["sks cat", HOSTILE])
    make(folder, "dog", seed=20, rank=4)
    make(folder, "bird", seed=30, columns="top:4@4")
    make(folder, "compact", "svdiff", seed=40)
    (folder / "broken.safetensors").write_bytes(b"nothing of the kind")
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(studio):
    with serving(studio) as client:
        yield client


@pytest.fixture(scope="module")
def chromium():
    with launched() as browser:
        yield browser


@pytest.fixture
def panel(server, chromium):
    """A function that opens a page at a place in the panel; no page may have had an error, or run what a file says."""
    faults, pages = [], []

    def open_page(place, lang="en-US", **options):
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale=lang, **options)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        pages.append(page)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: said.type == "error" and faults.append(f"{said.text} {said.location['url']}"))
        page.goto(f"http://127.0.0.1:{server.port}/?token={TOKEN}#{place}")
        return page

    yield open_page
    for page in pages:
        assert page.evaluate("window.hacked") is None
        page.context.close()
    # Chromium itself writes a refused request to the console: the broken file is one.
    assert not [fault for fault in faults if "name=broken" not in fault]


def at(page, name):
    return page.locator(f"[data-test={name}]")


def shows(page, name, text):
    sync_api.expect(at(page, name).first).to_contain_text(text)


def row(page, name):
    return page.locator(f"[data-name='{name}.safetensors']")


def choose(page, *names):
    for name in names:
        row(page, name).locator("[data-test=adapter-pick]").check()


def fits(page) -> bool:
    return page.evaluate(f"() => {MAIN}.scrollWidth <= {MAIN}.clientWidth")


def test_adapters_are_found_by_their_words(panel):
    page = panel("adapters")
    sync_api.expect(at(page, "adapter-row")).to_have_count(5)
    sync_api.expect(row(page, "cat")).to_contain_text("sks cat")
    sync_api.expect(row(page, "cat")).to_contain_text(HOSTILE)
    sync_api.expect(row(page, "broken")).to_contain_text("broken.safetensors")
    at(page, "adapters-search").fill("SKS")
    sync_api.expect(at(page, "adapters-count")).to_have_text("1 of 5 files")
    sync_api.expect(row(page, "dog")).to_be_hidden()
    at(page, "adapters-search").fill("svdiff")
    sync_api.expect(row(page, "compact")).to_be_visible()
    at(page, "adapters-search").fill("")
    first, second = at(page, "adapter-open").nth(0), at(page, "adapter-open").nth(1)
    first.focus()
    page.keyboard.press("ArrowDown")
    sync_api.expect(second).to_be_focused()
    choose(page, "cat")
    assert at(page, "adapters-mix").is_disabled(), "one cannot be mixed"
    page.reload()
    sync_api.expect(row(page, "cat").locator("[data-test=adapter-pick]")).to_be_checked()


def test_what_a_file_says_is_changed_and_what_it_does_is_not(studio, panel, tmp_path):
    path = make(studio.places.adapters, "edited", seed=50, rank=2, words=["sks thing"])
    before = load_file(path)
    page = panel("adapter?name=edited.safetensors")
    shows(page, "adapter-title", HOSTILE)
    shows(page, "adapter-description", HOSTILE)
    shows(page, "trigger-word", "sks thing")
    shows(page, "adapter-facts", "additive, top:2")
    shows(page, "adapter-facts", "tiny")
    assert at(page, "edit-save").is_disabled()
    at(page, "edit-title").fill("A thing")
    at(page, "edit-triggers").fill(f"sks thing\n{HOSTILE}")
    at(page, "edit-licence").fill("cc-by-4.0")
    Image.new("RGB", (1200, 900), (200, 40, 40)).save(tmp_path / "red.png")
    at(page, "preview-input").set_input_files(str(tmp_path / "red.png"))
    sync_api.expect(at(page, "edit-save")).to_be_enabled()
    at(page, "edit-save").click()
    shows(page, "adapter-title", "A thing")
    sync_api.expect(at(page, "trigger-word")).to_have_count(2)
    assert at(page, "edit-save").is_disabled()
    seen = "(image) => image.complete && image.naturalWidth > 100 && image.naturalWidth < 1200"
    page.wait_for_function(seen, arg=page.locator(".preview-large").element_handle())
    at(page, "adapter-spectrum").locator("summary").first.click()
    at(page, "spectrum-map").wait_for()
    at(page, "spectrum-map").focus()
    page.keyboard.press("ArrowRight")
    shows(page, "spectrum-readout", re.compile("column 1: moved by"))
    at(page, "adapter-back").click()
    sync_api.expect(row(page, "edited")).to_contain_text("A thing")
    after, read = load_file(path), sa.load(path)
    assert before.keys() == after.keys() and all((before[key] == after[key]).all() for key in before)
    assert read.metadata["modelspec.license"] == "cc-by-4.0" and read.trigger_words == ["sks thing", HOSTILE]


def test_two_adapters_meet_and_become_one(studio, panel):
    page = panel("adapters")
    choose(page, "cat", "dog")
    at(page, "adapters-mix").click()
    sync_api.expect(at(page, "mix-row")).to_have_count(2)
    at(page, "mix-look").click()
    shows(page, "conflict-sentence", re.compile("cat and dog .*0-3"))
    sync_api.expect(at(page, "conflict-pair")).to_have_class("clash")
    shows(page, "conflict-pair", re.compile(r"0–3169\d%"))
    at(page, "conflict-map").focus()
    page.keyboard.press("ArrowDown")
    shows(page, "conflict-readout", re.compile("UP0.*columns 0: cat .*dog .*Used by more than one"))
    page.keyboard.press("ArrowRight")
    shows(page, "conflict-readout", "columns 1:")
    at(page, "conflict-rows-layers").check(force=True)
    at(page, "conflict-map").focus()
    page.keyboard.press("ArrowDown")
    shows(page, "conflict-readout", "lora_unet_up_blocks_0")
    at(page, "conflict-table").locator("summary").click()
    shows(page, "conflict-table", "lora_unet_up_blocks_1")
    address = page.url
    page.reload()
    assert page.url == address
    shows(page, "conflict-sentence", "cat and dog")
    for mode in ("rotate", "shift"):
        sync_api.expect(at(page, f"mode-{mode}")).to_be_disabled()
    at(page, "mix-slider").first.fill("0.5")
    assert at(page, "mix-weight").first.input_value() == "0.5"
    at(page, "mix-weight").last.fill("1.25")
    at(page, "fuse-name").fill("both of them")
    at(page, "fuse").click()
    shows(page, "fuse-result", "both of them")
    shows(page, "fuse-report", "cat x 0.5, dog x 1.25")
    at(page, "fuse-open").click()
    shows(page, "adapter-title", "both of them")
    assert [path for path in studio.places.adapters.iterdir() if path.name.startswith("both of them")]
    at(page, "tab-jobs").click()
    shows(page, "jobs-past", "Fusing both of them")
    at(page, "job-open").filter(has_text="Conflicts of").click()
    shows(page, "job-name", "Conflicts of cat / dog")
    shows(page, "conflict-sentence", "cat and dog")
    at(page, "task-mix").click()
    sync_api.expect(at(page, "mix-row")).to_have_count(2)


def test_an_adapter_is_exported_as_a_lora(studio, panel):
    """One that changes every direction needs its base and a rank. What was asked is found again after a reload."""
    page = panel("adapter?name=compact.safetensors")
    at(page, "adapter-elsewhere").locator("summary").click()
    sync_api.expect(at(page, "export-base")).to_have_value("tiny")
    sync_api.expect(at(page, "lora-by-rank")).to_be_checked()
    shows(page, "adapter-elsewhere", f'publish "{studio.places.adapters / "compact.safetensors"}" "compact-hub"')
    page = panel("adapter?name=bird.safetensors")
    at(page, "adapter-elsewhere").locator("summary").click()
    sync_api.expect(at(page, "export-base")).to_have_count(0)
    at(page, "lora-by-rank").check(force=True)
    at(page, "lora-rank").fill("2")
    at(page, "adapter-export").click()
    page.wait_for_url(re.compile("job="))
    page.reload()
    shows(page, "fuse-report", "What the file lost")
    at(page, "fuse-open").click()
    shows(page, "adapter-facts", "LoRA")


def test_what_is_missing_for_a_mix_is_said(panel):
    """A compact file needs the base, which it names; disjoint adapters need none."""
    page = panel('mix?adapters=["bird.safetensors","compact.safetensors"]')
    sync_api.expect(at(page, "mix-base")).to_have_value("tiny")
    at(page, "mix-base").select_option("")
    shows(page, "fuse-missing", "compact can only be read with it")
    assert at(page, "fuse").is_disabled()
    at(page, "mix-base").select_option("tiny")
    sync_api.expect(at(page, "fuse")).to_be_enabled()
    page = panel('mix?adapters=["bird.safetensors"]')
    shows(page, "main", "two adapters or more")


def test_columns_are_planned_kept_and_trained_on(studio, panel):
    page = panel("plan")
    at(page, "plan-concepts").fill(f"cat\ndog\n{HOSTILE}")
    sync_api.expect(at(page, "plan-row")).to_have_count(3)
    shows(page, "plan-result", "No two of them share a column")
    sync_api.expect(at(page, "plan-row").nth(2)).to_contain_text(HOSTILE)
    sync_api.expect(at(page, "plan-row").nth(1)).to_contain_text("top:8@8")
    at(page, "plan-rank").fill("4")
    sync_api.expect(at(page, "plan-row").nth(1)).to_contain_text("top:4@4")
    at(page, "plan-map").focus()
    page.keyboard.press("ArrowDown")
    shows(page, "plan-readout", "cat: columns 0–3")
    at(page, "plan-how-sample").check(force=True)
    at(page, "plan-pool").fill("4")
    shows(page, "plan-result", "cat and dog share columns 0, 1, 2, 3")
    shows(page, "plan-result", "any two of 3 with 100%")
    at(page, "plan-how-blocks").check(force=True)
    sync_api.expect(at(page, "plan-row").nth(1)).to_contain_text("top:4@4")
    at(page, "plan-name").fill("pets")
    at(page, "plan-save").click()
    shows(page, "plan-saved", "Kept as pets")
    assert studio.places.plan("pets").is_file()
    at(page, "plan-train").nth(1).click()
    sync_api.expect(at(page, "setting-columns")).to_have_value("top:4@4")
    assert at(page, "name").input_value() == "dog"
    at(page, "draft-back").click()
    sync_api.expect(at(page, "setting-columns")).to_have_value("")


@pytest.mark.parametrize(("theme", "lang"), [("light", "fr-FR"), ("dark", "en-US")])
def test_narrow_pages_of_adapters_do_not_scroll_sideways(panel, theme, lang):
    page = panel("adapters", lang, color_scheme=theme)
    page.set_viewport_size({"width": 360, "height": 800})
    sync_api.expect(row(page, "cat")).to_contain_text("sks cat")
    choose(page, "cat", "bird", "compact")
    assert fits(page)
    at(page, "adapters-mix").click()
    sync_api.expect(at(page, "mix-base")).to_have_value("tiny")
    assert fits(page)
    page.goto(page.url.partition("#")[0] + "#adapter?name=cat.safetensors")
    shows(page, "adapter-title", HOSTILE)
    at(page, "adapter-elsewhere").locator("summary").click()
    assert fits(page)
    page.goto(page.url.partition("#")[0] + "#plan")
    at(page, "plan-concepts").fill("cat\na name that is much longer than any that would fit into a sidebar")
    sync_api.expect(at(page, "plan-row")).to_have_count(2)
    assert fits(page)
