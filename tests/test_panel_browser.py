"""The panel's page in a real Chromium on a real server: from pictures to an adapter, a grid and a LoRA."""

import base64
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from chromium import launched, needs_chromium, sync_api

pytestmark = needs_chromium

ROOT = Path(__file__).resolve().parents[1]
FISH = sorted((ROOT / "assets" / "demo" / "banded_fish").iterdir())
PICTURE = ROOT / "assets" / "demo" / "banded_fish_heldout" / "3_night.png"
PATIENCE = 120_000  # milliseconds; a process that loads torch on a busy machine takes its time
HOSTILE = '<img src=x onerror="window.hacked=1"> a photo of a sks fish'
# Drops a picture onto an element of the panel; returns whether the page keeps the browser from opening it.
DROP = """([name, data]) => {
  const target = document.querySelector("spectral-panel").shadowRoot.querySelector(`[data-test=${name}]`);
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
  const options = { bubbles: true, cancelable: true, composed: true, dataTransfer };
  return !target.dispatchEvent(new DragEvent("drop", options));
}"""
# Small enough for seconds, long enough to be stopped in the middle on a fast machine.
SETTINGS = {"steps": "120", "batch_size": "2", "sample_every": "60", "sample_steps": "2", "checkpoint_every": "40"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address with token, home) of `ui` in a process of its own; it and its children end with the test."""
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, str(ROOT), "ui", "--home", str(home), "--port", "0", "--no-browser", "--device", "cpu"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        yield address_in(process), home
    finally:
        end(process)


def address_in(process) -> str:
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"http://\S+token=\S+", line):
            return found.group(0)
    raise AssertionError(f"the server ended without an address: {''.join(said)}")


def end(process) -> None:
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(timeout=30)
    process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    with launched() as chromium:
        yield chromium


@pytest.fixture
def page(browser):
    """A page whose console must stay free of errors."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda said: said.type == "error" and page.faults.append(f"{said.text} {said.location['url']}"))
    yield page
    faults = page.faults
    context.close()
    assert not faults


def at(name: str) -> str:
    return f"[data-test={name}]"


def see(page, name: str, text: str | re.Pattern | None = None):
    """The first element of that name, once it is in sight (with that text)."""
    found = page.locator(at(name)).first
    if text is None:
        found.wait_for()
    else:
        sync_api.expect(found).to_contain_text(text, timeout=PATIENCE)
    return found


def until(page, expression: str) -> None:
    """Waits until an expression in the panel's `root` is true."""
    page.wait_for_function(
        f"() => {{ const root = document.querySelector('spectral-panel').shadowRoot; return {expression}; }}"
    )


def setting(page, name: str, value: str) -> None:
    """Finds a setting as a person does who knows its name."""
    field = page.locator(at(f"setting-{name}"))
    if not field.is_visible():
        if not page.locator(at("search")).is_visible():
            page.locator(f"{at('advanced')} > summary").click()
        page.fill(at("search"), name)
    field.fill(value)


def upload(page, tmp_path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    page.select_option(at("dataset"), label="New dataset from my pictures")
    page.fill(at("dataset-name"), "my fish")
    page.set_input_files(at("upload-input"), [*map(str, FISH), str(broken)])
    see(page, "upload-errors", "broken.png")
    sync_api.expect(page.locator(at("picture"))).to_have_count(5)
    # Chromium itself writes a refused request to the console.
    assert page.faults.pop().startswith("Failed to load resource")


def edit_captions(page, folder: Path) -> None:
    """A caption that is markup is kept and shown as the text that it is; Enter goes on to the next picture."""
    captions = page.locator(at("caption"))
    assert captions.nth(0).input_value() == (folder / "1.txt").read_text(encoding="utf-8").strip()
    captions.nth(1).fill(HOSTILE)
    captions.nth(1).press("Enter")
    sync_api.expect(captions.nth(2)).to_be_focused()
    until(page, "root.querySelectorAll('[data-test=picture]')[1].querySelector('.saved')")
    assert (folder / "2.txt").read_text(encoding="utf-8").strip() == HOSTILE


def drop_and_remove(page, folder: Path) -> None:
    """A dropped picture joins the dataset; the bin takes it out after a question; beside the zone nothing happens."""
    data = base64.b64encode(PICTURE.read_bytes()).decode()
    assert page.evaluate(DROP, ["main", data])
    assert page.evaluate(DROP, ["drop-zone", data])
    row = page.locator("[data-name='dropped.png']")
    row.wait_for()
    row.locator(at("remove")).click()
    page.click(at("confirm-no"))
    assert (folder / "dropped.png").is_file()
    row.locator(at("remove")).click()
    page.click(at("confirm-yes"))
    sync_api.expect(row).to_have_count(0)
    assert not (folder / "dropped.png").exists()


def fill_in(page) -> None:
    page.fill(at("trigger"), "sks fish")
    for name, value in SETTINGS.items():
        setting(page, name, value)
    page.fill(at("prompts"), HOSTILE)
    sync_api.expect(see(page, "check-headline")).to_have_attribute("data-usable", "5", timeout=PATIENCE)
    until(page, "/\\d/.test(root.querySelector('[data-test=estimate-file]').textContent)")


def reload_keeps_the_draft(page) -> None:
    page.reload()
    see(page, "base")
    sync_api.expect(page.locator(at("caption"))).to_have_count(5)
    assert page.input_value(at("trigger")) == "sks fish"
    assert page.input_value(at("setting-steps")) == SETTINGS["steps"]
    assert page.locator(at("caption")).nth(1).input_value() == HOSTILE


def samples(page) -> int:
    return page.locator(at("sample-item")).count()


def watch_and_stop(page) -> None:
    """The first samples and the loss arrive; a reload in between loses nothing; Stop saves."""
    until(page, "root.querySelectorAll('[data-test=sample-item]').length >= 1")
    before, address = samples(page), page.url
    page.reload()
    assert page.url == address
    until(page, f"root.querySelectorAll('[data-test=sample-item]').length >= {before}")
    see(page, "stat-loss", re.compile(r"\d"))
    page.click(at("stop"))
    see(page, "status", "Stopped")


def finish(page, home: Path) -> None:
    page.click(at("resume"))
    see(page, "status", "Finished")
    see(page, "adapter", "my fish")
    assert (home / "adapters" / "my fish.safetensors").is_file()
    # At the beginning, in the middle and at the end.
    until(page, "root.querySelectorAll('[data-test=sample-item]').length >= 3")


def make_grid(page) -> None:
    page.fill(at("grid-strengths"), "0, 1")
    page.click(at("grid-make"))
    until(page, "root.querySelectorAll('[data-test=grid-cell] img').length >= 2")
    until(page, "[...root.querySelectorAll('[data-test=grid-cell] img')].every((image) => image.naturalWidth > 0)")


def export_lora(page, home: Path) -> None:
    fold = page.locator(at("export-fold"))
    if not fold.evaluate("(fold) => fold.open"):
        fold.locator("summary").first.click()
    page.click(at("export-make"))
    see(page, "export-task", "Finished")
    assert [path for path in (home / "adapters").glob("*.safetensors") if path.name != "my fish.safetensors"]


def train_again(page) -> None:
    """The form filled in with the same settings; the name is free again, the file that is there stays."""
    page.click(at("again"))
    see(page, "base")
    assert page.input_value(at("setting-steps")) == SETTINGS["steps"]
    assert page.input_value(at("prompts")) == HOSTILE
    sync_api.expect(see(page, "new-training")).to_contain_text("my fish-2")
    page.click(at("draft-back"))
    sync_api.expect(page.locator(at("draft-back"))).to_have_count(0)


def test_from_pictures_to_an_adapter(page, server, tmp_path):
    address, home = server
    page.goto(address)
    see(page, "begin").click()
    see(page, "train-reason", "base model")
    page.select_option(at("base"), "tiny")
    upload(page, tmp_path)
    edit_captions(page, home / "datasets" / "my fish")
    drop_and_remove(page, home / "datasets" / "my fish")
    fill_in(page)
    reload_keeps_the_draft(page)
    page.click(at("train"))
    see(page, "job-name", "my fish")
    watch_and_stop(page)
    finish(page, home)
    make_grid(page)
    export_lora(page, home)
    train_again(page)
    assert page.evaluate("window.hacked") is None


def test_what_is_wrong_is_said_where_it_is(page, server):
    """A setting that is no number keeps the training from starting, with the reason; the way back is one click."""
    address, _ = server
    page.goto(address)
    see(page, "main")
    page.click(at("tab-new"))
    see(page, "base")
    page.fill(at("setting-steps"), "many")
    sync_api.expect(page.locator(at("setting-steps"))).to_have_attribute("aria-invalid", "true")
    assert page.locator(at("train")).get_attribute("aria-disabled") == "true"
    page.fill(at("setting-steps"), "12")
    page.click(at("reset-steps"))
    assert page.input_value(at("setting-steps")) == ""


def test_a_broken_picture_is_named_and_can_be_left_out(page, server):
    address, home = server
    folder = home / "datasets" / "some bad"
    folder.mkdir(parents=True)
    shutil.copy(PICTURE, folder / "good.png")
    (folder / "bad.png").write_bytes(PICTURE.read_bytes()[:200])
    page.goto(address)
    see(page, "main")
    page.click(at("tab-new"))
    see(page, "base")
    page.select_option(at("base"), "tiny")
    page.select_option(at("dataset"), "datasets/some bad")
    see(page, "finding", "bad.png")
    see(page, "train-reason", "cannot be used")
    assert page.locator(at("train")).get_attribute("aria-disabled") == "true"
    page.locator(at("skip-bad")).check(force=True)
    sync_api.expect(page.locator(at("train"))).to_have_attribute("aria-disabled", "false", timeout=PATIENCE)
    page.faults[:] = [fault for fault in page.faults if "/datasets/thumb?" not in fault]


def test_narrow_pages_do_not_scroll_sideways(page, server):
    address, _ = server
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(address)
    see(page, "main")
    page.click(at("tab-new"))
    see(page, "base")
    wide = "const main = document.querySelector('spectral-panel').shadowRoot.querySelector('main');"
    assert page.evaluate(f"() => {{ {wide} return main.scrollWidth <= main.clientWidth; }}")


def test_without_the_token_it_is_asked_for(browser, server):
    address, _ = server
    origin, _, token = address.partition("/?token=")
    context = browser.new_context(locale="en-US")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(f"{origin}/")
    see(page, "token-screen")
    page.fill(at("token"), "wrong")
    page.click(at("token-enter"))
    sync_api.expect(page.locator(at("token-screen"))).to_contain_text("not the token", timeout=PATIENCE)
    page.fill(at("token"), token)
    page.click(at("token-enter"))
    see(page, "tab-jobs")
    sync_api.expect(page.locator(at("token-screen"))).to_have_count(0)
    context.close()


def test_a_lost_server_is_said_and_found_again(page, server):
    """The banner comes when the server is out of reach and goes by itself; what is shown stays."""
    address, _ = server
    page.goto(address)
    see(page, "main")
    page.click(at("tab-jobs"))
    page.context.set_offline(True)
    sync_api.expect(page.locator(at("banner"))).to_be_visible(timeout=PATIENCE)
    page.context.set_offline(False)
    sync_api.expect(page.locator(at("banner"))).to_be_hidden(timeout=PATIENCE)
    page.faults[:] = [fault for fault in page.faults if "ERR_INTERNET_DISCONNECTED" not in fault]
