"""The choice of what trains, in a real Chromium on the real server; nothing is trained."""

import os
import re

import pytest
import sd_scripts_checkout as fake
from chromium import launched, needs_chromium, sync_api
from panel_server import TOKEN, make_studio, serving
from training import write_pictures

from spectral_adapters.trainer.sd_scripts import place

pytestmark = [
    needs_chromium,
    pytest.mark.skipif(os.name == "nt", reason="the checkout's Python is a shell script"),
]

PATIENCE = 60_000  # milliseconds; a busy machine takes its time
sync_api.expect.set_options(timeout=PATIENCE)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """sd-scripts, set up for this host until `monkeypatch` takes it away."""
    made = fake.make_checkout(tmp_path / "sd-scripts")
    monkeypatch.setattr(place, "remembered_file", lambda: tmp_path / "remembered.json")
    monkeypatch.setenv(place.FOLDER_VARIABLE, str(made.folder))
    monkeypatch.setenv(place.PYTHON_VARIABLE, str(made.python))
    return made


@pytest.fixture
def studio(tmp_path):
    write_pictures(tmp_path / "own" / "mugs")
    made = make_studio(tmp_path, own=tmp_path / "own")
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser():
    with launched() as chromium:
        yield chromium


@pytest.fixture
def open_page(studio, browser):
    """A function that opens a place in the panel in a language; no page may have an error."""
    faults, contexts = [], []
    with serving(studio) as client:

        def made(language, place):
            context = browser.new_context(viewport={"width": 1280, "height": 900}, locale=language)
            context.set_default_timeout(PATIENCE)
            contexts.append(context)
            page = context.new_page()
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto(f"http://127.0.0.1:{client.port}/?token={TOKEN}#{place}")
            return page

        yield made
        for context in contexts:
            context.close()
    assert not faults


def at(page, name):
    return page.locator(f"[data-test={name}]")


def choose(page):
    """Sections 1 and 2 of the form."""
    at(page, "base").select_option("tiny")
    at(page, "dataset").select_option("own/mugs")


def shows(page, name, text):
    sync_api.expect(at(page, name).first).to_contain_text(text)


def test_the_engine_is_chosen_and_says_what_it_does(open_page, checkout, monkeypatch):
    page = open_page("en-US", "new")
    choose(page)
    sync_api.expect(at(page, "engine-hint")).to_be_hidden()
    sync_api.expect(at(page, "engine-says")).to_be_hidden()
    at(page, "engine").select_option("sd-scripts")
    shows(page, "engine-says", "Seed: the random numbers are sd-scripts' own")
    refused = page.locator("[data-test=engine-says] [data-kind=refused]")
    sync_api.expect(refused).to_have_text(re.compile("^Base model: sd-scripts knows Stable Diffusion 1.x, 2.x and XL"))
    shows(page, "train-reason", "sd-scripts cannot do this training. Base model: ")
    shows(page, "estimate-state", "Estimated for the built-in engine")
    french = open_page("fr-FR", "new")
    choose(french)
    at(french, "engine").select_option(label="sd-scripts")
    shows(french, "engine-says", "Graine : les nombres aléatoires sont ceux de sd-scripts")
    shows(french, "train-reason", "sd-scripts ne peut pas faire cet entraînement. Modèle de base : sd-scripts ne")
    # It is no longer there: said, until another is chosen.
    monkeypatch.delenv(place.FOLDER_VARIABLE)
    page.reload()
    shows(page, "train-reason", "sd-scripts cannot be used here; choose another engine. found no sd-scripts set up")
    at(page, "engine").select_option("built-in")
    sync_api.expect(at(page, "engine")).to_be_hidden()
    shows(page, "engine-hint", "docs/kohya.md")
    sync_api.expect(at(page, "train-reason")).to_have_text("")


def test_a_job_names_its_engine_and_the_next_one_has_it_too(open_page, studio, checkout):
    request = {"name": "fish", "base": "sd1.safetensors", "dataset": "own/fish", "settings": {}, "engine": "sd-scripts"}
    spec = {"base": "/nowhere/sd1.safetensors", "out": "/nowhere/fish.safetensors", "method": "additive", "steps": 9}
    entry = studio.store.add("train", "fish", spec, request=request, engine="sd-scripts")
    page = open_page("en-US", f"job?id={entry.id}")
    shows(page, "job", "sd1.safetensors · additive · sd-scripts")
    shows(page, "plan", "Enginesd-scripts")
    at(page, "leave").click()
    at(page, "again").click()
    sync_api.expect(at(page, "engine")).to_have_value("sd-scripts")
