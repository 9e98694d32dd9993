"""The pages of jobs in a real Chromium on the real server; the jobs' files are written here, so nothing is trained."""

import json
import math
import re
import time
from dataclasses import replace

import pytest
from chromium import launched, needs_chromium, sync_api
from panel_server import TOKEN, make_studio, serving
from PIL import Image

from spectral_adapters.trainer.jobs.job import write_state
from spectral_adapters.trainer.sample_files import sample_name, save_png

pytestmark = needs_chromium

PATIENCE = 60_000  # milliseconds; a busy machine takes its time
sync_api.expect.set_options(timeout=PATIENCE)
HOSTILE = '<img src=x onerror="window.hacked=1">'
PROMPTS = ["a photo of a sks fish", HOSTILE]


def add(studio, name, **spec):
    spec = {"base": "tiny", "method": "svdiff", "steps": 200, "sample_prompts": PROMPTS, "sample_every": 40, **spec}
    request = {"name": name, "base": "tiny", "dataset": "own/fish", "preset": "subject", "settings": {}}
    return studio.store.add("train", name, {"out": f"/nowhere/{name}.safetensors", **spec}, request=request)


def tell(entry, *events):
    with (entry.run / "events.jsonl").open("a") as log:
        log.writelines(json.dumps({"time": time.time(), **event}) + "\n" for event in events)
    (entry.folder / "heartbeat").touch()


def steps(first, last):
    return [
        {"event": "Step", "step": s, "steps": 200, "loss": 0.1 + 0.3 * math.exp(-s / 30), "lr": 1e-3, "rate": 2.0}
        for s in range(first, last + 1)
    ]


def sampled(entry, step):
    paths = [entry.run / "samples" / sample_name(step, number + 1) for number in range(len(PROMPTS))]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        save_png(path, Image.new("RGB", (64, 64), (step % 256, 90, 160)))
    return {"event": "Sampled", "step": step, "paths": [str(path) for path in paths], "prompts": PROMPTS}


def begin(studio, name, last, **spec):
    """A training that has come to a step, as far as its files say."""
    entry = add(studio, name, **spec)
    studio.store.begin(entry.id, "cpu")
    entry.run.mkdir()
    validated = [
        {"event": "Validated", "step": s, "loss": 0.2 + abs(s - 40) / 400, "best": s == 40} for s in range(20, last, 20)
    ]
    tell(entry, {"event": "Phase", "name": "training"}, sampled(entry, 0), *steps(1, last), *validated)
    tell(entry, *(sampled(entry, s) for s in range(40, last + 1, 40)))
    return entry


def end(studio, entry, status, **more):
    state = studio.store.entry(entry.id).state
    write_state(entry.folder, replace(state, status=status, ended=time.time(), **more))


@pytest.fixture
def studio(tmp_path):
    made = make_studio(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def chromium():
    with launched() as browser:
        yield browser


@pytest.fixture
def panel(studio, chromium):
    """A function that opens a page at a place in the panel; no page may have had an error."""
    faults, contexts = [], []
    with serving(studio) as client:

        def open_page(place):
            context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
            context.set_default_timeout(PATIENCE)
            contexts.append(context)
            page = context.new_page()
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: message.type == "error" and faults.append(message.text))
            page.goto(f"http://127.0.0.1:{client.port}/?token={TOKEN}#{place}")
            return page

        yield open_page
        for context in contexts:
            context.close()
    assert not faults


def at(page, name):
    return page.locator(f"[data-test={name}]")


def shows(page, name, text):
    sync_api.expect(at(page, name).first).to_contain_text(text)


def test_a_running_training_is_followed_in_every_tab(studio, panel):
    """New steps are added without drawing pictures anew; a resume takes steps back; texts stay texts."""
    entry = begin(studio, HOSTILE, 60)
    pages = [panel(f"job?id={entry.id}") for _ in range(2)]
    for page in pages:
        shows(page, "chart-readout", "step 60")
        shows(page, "where", "Step 60 of 200 (30%)")
        shows(page, "job-name", HOSTILE)
        shows(page, "samples-next", "step 80")
        sync_api.expect(at(page, "sample-item")).to_have_count(2)
        at(page, "sample-item").locator("img").last.evaluate("(image) => { image.kept = true; }")
    tell(entry, *steps(61, 80), sampled(entry, 80))
    for page in pages:
        shows(page, "chart-readout", "step 80")
        sync_api.expect(at(page, "sample-item")).to_have_count(3)
        assert at(page, "sample-item").nth(1).locator("img").evaluate("(image) => image.kept === true")
    tell(entry, {"event": "Resumed", "step": 40, "path": "x"}, *steps(41, 43))
    for page in pages:
        shows(page, "chart-readout", "step 43")
        sync_api.expect(at(page, "sample-item")).to_have_count(2)
        at(page, "sample-prompt-pick").nth(1).click()
        shows(page, "sample-prompt", HOSTILE)
        assert page.evaluate("window.hacked") is None
    at(pages[0], "stop").click()
    for page in pages:
        sync_api.expect(at(page, "status").first).to_have_text("Stopping")
        sync_api.expect(at(page, "stop-now")).to_be_visible()


def test_chart_and_pictures_by_keyboard(studio, panel):
    entry = begin(studio, "fish", 100)
    end(studio, entry, "stopped", reason="stopped", resumable=True, text="Stopped.")
    page = panel(f"job?id={entry.id}")
    shows(page, "chart-readout", "step 100")
    chart = at(page, "chart")
    chart.focus()
    page.keyboard.press("Home")
    shows(page, "chart-readout", "step 1")
    page.keyboard.press("Shift+ArrowRight")
    shows(page, "chart-readout", "step 11")
    page.keyboard.press("+")
    sync_api.expect(at(page, "chart-reset")).to_be_enabled()
    page.keyboard.press("0")
    sync_api.expect(at(page, "chart-reset")).to_be_disabled()
    page.keyboard.press("l")
    sync_api.expect(at(page, "chart-log")).to_have_attribute("aria-pressed", "true")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 60, steps=3)
    page.mouse.up()
    sync_api.expect(at(page, "chart-reset")).to_be_enabled()
    chart.dblclick()
    sync_api.expect(at(page, "chart-reset")).to_be_disabled()
    line = at(page, "sample-line")
    line.focus()
    page.keyboard.press("ArrowLeft")
    assert line.get_attribute("aria-valuenow") == "48"
    page.keyboard.press("End")
    assert line.get_attribute("aria-valuenow") == "100"
    at(page, "sample-step").focus()
    page.keyboard.press("ArrowLeft")
    sync_api.expect(at(page, "sample-item").nth(1)).to_have_attribute("aria-pressed", "true")
    sync_api.expect(at(page, "sample-follow")).to_be_visible()
    at(page, "sample-against").select_option("80")
    sync_api.expect(at(page, "sample-pictures").locator(".ba-label.start")).to_have_text("step 80")
    at(page, "sample-enlarge").click()
    shows(page, "lightbox", "step 40")
    page.keyboard.press("ArrowRight")
    shows(page, "lightbox", "step 80")
    page.keyboard.press("Escape")
    sync_api.expect(at(page, "lightbox")).to_have_count(0)


def test_the_queue_is_put_in_order_and_left(studio, panel):
    ids = [add(studio, f"fish {number}").id for number in range(3)]
    page = panel("jobs")
    sync_api.expect(at(page, "job-move")).to_have_count(3)
    handles = at(page, "job-move")
    handles.nth(2).focus()
    page.keyboard.press("ArrowUp")
    assert until(lambda: studio.store.queue() == [ids[0], ids[2], ids[1]])
    assert handles.nth(1).evaluate("(handle) => handle.matches(':focus')"), "the focus goes with the row"
    start, goal = handles.nth(0).bounding_box(), handles.nth(2).bounding_box()
    page.mouse.move(start["x"] + 8, start["y"] + 10)
    page.mouse.down()
    page.mouse.move(goal["x"] + 8, goal["y"] + goal["height"], steps=6)
    page.mouse.up()
    assert until(lambda: studio.store.queue() == [ids[2], ids[1], ids[0]])
    at(page, "job-leave").first.click()
    assert until(lambda: studio.store.queue() == [ids[1], ids[0]])
    at(page, "jobs-past").locator("[data-test=job-open]").click()
    shows(page, "verdict-title", "Taken out of the queue")
    at(page, "resume").click()
    assert until(lambda: studio.store.queue() == [ids[1], ids[0], ids[2]])
    shows(page, "where", "In the queue: 3 of 3.")
    shows(page, "plan", "own/fish")


@pytest.mark.parametrize(
    ("state", "title", "first"),
    [
        ({"status": "finished", "reason": "finished", "adapter": True}, "Your adapter is ready", "copy-name"),
        ({"status": "stopped", "reason": "stopped", "resumable": True}, "Stopped at step 60 of 200", "resume"),
        ({"status": "interrupted", "reason": "killed", "resumable": True}, "Interrupted at step 60 of 200", "resume"),
        ({"status": "failed", "reason": "diverged", "resumable": True}, "out of control", "again-rate"),
        ({"status": "failed", "reason": "out_of_memory"}, "not enough memory", "again-memory"),
        ({"status": "failed", "reason": "failed", "text": "no picture can be used"}, "This training failed", "again"),
        ({"status": "failed", "text": "images: changed; --allow images"}, "Not resumed yet", "resume-allow"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["status"],
)
def test_every_ending_says_why_and_offers_the_next_step(studio, panel, state, title, first):
    entry = begin(studio, "fish", 60)
    if state.get("adapter"):
        made = studio.places.free_out("fish")
        made.write_bytes(b"x" * 2048)
        state = {**state, "adapter": str(made)}
    end(studio, entry, **state)
    page = panel(f"job?id={entry.id}")
    shows(page, "verdict-title", title)
    sync_api.expect(at(page, "verdict").locator(".button").first).to_have_attribute("data-test", first)
    if "text" in state:
        shows(page, "verdict-text", state["text"])
    if first == "again-rate":
        at(page, first).click()
        sync_api.expect(at(page, "setting-lr")).to_have_value("0.00025")


def test_two_trainings_are_compared_and_one_is_deleted(studio, panel):
    one, other = begin(studio, "gentle", 100), begin(studio, "bold", 80, method="rotation", lr=0.01)
    for entry in (one, other):
        end(studio, entry, "stopped", reason="stopped", resumable=True)
    page = panel("jobs")
    sync_api.expect(at(page, "job-pick")).to_have_count(2)
    for pick in at(page, "job-pick").all():
        pick.check()
    at(page, "jobs-compare").click()
    shows(page, "compare-settings", "rotation")
    shows(page, "chart-readout", re.compile("gentle.*bold|bold.*gentle"))
    at(page, "compare-samples-line").focus()
    at(page, "compare-back").click()
    at(page, "job-open").filter(has_text="bold").click()
    at(page, "delete").click()
    at(page, "confirm-no").click()
    at(page, "delete").click()
    at(page, "confirm-yes").click()
    sync_api.expect(at(page, "job-row")).to_have_count(1)
    assert [entry.id for entry in studio.store.entries()] == [one.id]
    assert (studio.store.trash / other.id / "job.json").is_file()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_narrow_pages_of_jobs_do_not_scroll_sideways(studio, panel, theme):
    entry = begin(studio, "a fish with a long name that would not fit into a narrow sidebar at all", 60)
    add(studio, "another")
    page = panel("jobs")
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": 360, "height": 800})
    at(page, "job-move").wait_for()
    wide = "document.querySelector('spectral-panel').shadowRoot.querySelector('main')"
    fits = f"() => {wide}.scrollWidth <= {wide}.clientWidth"
    assert page.evaluate(fits)
    at(page, "job-open").first.click()
    shows(page, "chart-readout", "step 60")
    assert page.evaluate(fits)
    end(studio, entry, "failed", reason="diverged", resumable=True)
    at(page, "verdict").wait_for()
    assert page.evaluate(fits)


def until(holds) -> bool:
    """Whether it comes to hold before patience ends."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
