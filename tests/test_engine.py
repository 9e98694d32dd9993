"""The engine of a training: the built-in one, or sd-scripts; in requests, jobs, routes and the command.

`sd_scripts_checkout` is a small program of our own with sd-scripts' files; a real one trains in tests/integration.
"""

import json
import os
import time
from contextlib import contextmanager

import pytest
import sd_scripts_checkout as fake
import torch
from panel_server import serving
from safetensors.torch import save_file
from training import write_pictures

import spectral_adapters as sa
from spectral_adapters.__main__ import main
from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.trainer import engines
from spectral_adapters.trainer.jobs import child, settle
from spectral_adapters.trainer.jobs.environment import child_environment
from spectral_adapters.trainer.jobs.host import CPU, Standalone
from spectral_adapters.trainer.jobs.job import BrokenJob, Job
from spectral_adapters.trainer.places import standalone
from spectral_adapters.trainer.request import Request, digest
from spectral_adapters.trainer.sd_scripts import place
from spectral_adapters.trainer.speed import planned
from spectral_adapters.trainer.studio import Studio

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the checkout's Python is a shell script")

SD1 = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(autouse=True)
def _nothing_set_up(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "remembered_file", lambda: tmp_path / "remembered.json")
    for name in (place.FOLDER_VARIABLE, place.PYTHON_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """sd-scripts, set up for this host."""
    made = fake.make_checkout(tmp_path / "sd-scripts")
    monkeypatch.setenv(place.FOLDER_VARIABLE, str(made.folder))
    monkeypatch.setenv(place.PYTHON_VARIABLE, str(made.python))
    return made


@pytest.fixture
def studio(tmp_path):
    """With the dataset own/mugs and sd1.safetensors, a file with an SD1 model's header and hardly anything in it."""
    write_pictures(tmp_path / "own" / "mugs")
    (tmp_path / "models").mkdir()
    save_file({SD1: torch.zeros(320, 768, dtype=torch.float16)}, tmp_path / "models" / "sd1.safetensors")
    places = standalone(tmp_path / "home", {"own": tmp_path / "own"}, [tmp_path / "models"])
    made = Studio(places, Standalone(), devices=(CPU,))
    yield made
    for entry in made.store.active():
        made.store.stop(entry.id, now=True)
    made.close()


def asked(name="mug", engine="sd-scripts", base="sd1.safetensors", **settings):
    given = {"steps": 40, "resolution": 64, "trigger": "sks", "sample_prompts": ["a sks mug"], **settings}
    return {"name": name, "base": base, "dataset": "own/mugs", "settings": given, "device": "cpu", "engine": engine}


def wait(what, seconds=240.0):
    """The first true answer; a busy machine takes its time."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return answer


# --- what a job and a request say


def test_jobs_from_before_there_was_a_choice_are_built_in():
    values = Job("20260101-000000-abcd", "train", "x", 1.0, engine="sd-scripts").as_json()
    assert Job.from_json(values).engine == "sd-scripts"
    assert Job.from_json({name: value for name, value in values.items() if name != "engine"}).engine == "built-in"
    with pytest.raises(BrokenJob, match="engine: found 'other', expected one of built-in, sd-scripts"):
        Job.from_json({**values, "engine": "other"})


def test_only_trainings_have_a_choice(studio):
    with pytest.raises(SettingError, match="built-in for a export"):
        studio.store.add("export", "x", {}, engine="sd-scripts")
    with pytest.raises(SettingError, match="engine='other'"):
        studio.store.add("train", "x", {}, engine="other")


def test_a_request_names_an_engine_and_never_a_program(studio):
    plain = {name: value for name, value in asked().items() if name != "engine"}
    assert Request.from_json(plain).engine == "built-in"
    assert Request.from_json(Request.from_json(asked()).as_json()).engine == "sd-scripts"
    for wrong in ("/bin/sh", "", "SD-scripts", 1, None, ["sd-scripts"]):
        with pytest.raises(SettingError, match="engine"):
            Request.from_json({**plain, "engine": wrong})
    for name in ("python", "checkout", "sd_scripts", "sd-scripts"):
        with pytest.raises(SettingError, match="is not known in the request"):
            Request.from_json({**plain, name: "/bin/sh"})
    same, other = (digest(Request.from_json(each), studio.places) for each in (plain, asked(engine="built-in")))
    assert same == other != digest(Request.from_json(asked()), studio.places)


def test_the_child_learns_which_sd_scripts_there_is(checkout):
    found = child_environment(os.environ, "cpu")
    assert found[place.FOLDER_VARIABLE] == str(checkout.folder) and found[place.PYTHON_VARIABLE] == str(checkout.python)


# --- what can be chosen


def test_without_sd_scripts_the_form_says_how_to_get_it_and_nothing_is_queued(studio):
    with serving(studio) as client:
        built_in, other = client.get("/form").json["engines"]
        assert (built_in["name"], built_in["available"], built_in["text"]) == ("built-in", True, "")
        assert (other["name"], other["available"]) == ("sd-scripts", False) and "kohya --remember" in other["text"]
        answer = client.post("/jobs", {"request": asked()})
        assert answer.status == 400 and answer.json["error"] == other["text"]
        assert studio.store.entries() == []
        assert client.post("/jobs", {"request": asked(engine="built-in")}).status == 200


def test_what_it_does_otherwise_is_said_before_and_what_it_cannot_keeps_it_from_the_queue(studio, checkout):
    with serving(studio) as client:
        assert [each["available"] for each in client.get("/form").json["engines"]] == [True, True]
        found = client.post("/form/engine", {"request": asked(ema=0.9)}).json
        assert [each["setting"] for each in found["refusals"]] == ["ema"]
        assert {"seed", "sample_prompts"} <= {each["setting"] for each in found["remarks"]}
        assert all(each["text"].endswith(".") for each in (*found["refusals"], *found["remarks"]))
        silent = {"refusals": [], "remarks": []}
        assert client.post("/form/engine", {"request": asked(ema=0.9, engine="built-in")}).json == silent
        for cannot, name in ((asked(ema=0.9), "ema"), (asked(base="tiny"), "base")):
            answer = client.post("/jobs", {"request": cannot})
            assert answer.status == 400 and f"sd-scripts cannot do this training. {name}: " in answer.json["error"]
        assert studio.store.entries() == []
        id = client.post("/jobs", {"request": asked()}).json["id"]
        job = client.get(f"/jobs/{id}").json
        assert job["engine"] == job["request"]["engine"] == "sd-scripts"
        other = client.post("/jobs", {"request": asked(engine="built-in")}).json["id"]
        assert other != id, "the same settings by another engine are another training"
        assert client.post("/jobs", {"request": asked()}).json["id"] == id
        first, *_ = client.get("/compare", a=id, b=other).json["settings"]
        assert (first["name"], first["a"], first["b"]) == ("engine", "sd-scripts", "built-in")


def test_the_command_queues_for_an_engine(studio, checkout, tmp_path, capsys):
    write_pictures(tmp_path / "pictures")
    spec = tmp_path / "dog.toml"
    base = tmp_path / "models" / "sd1.safetensors"
    spec.write_text(f'base = "{base}"\nimages = "pictures"\nout = "dog.safetensors"\nsteps = 8\n', encoding="utf-8")

    def jobs(*arguments):
        status = main(["jobs", *map(str, arguments), "--home", str(tmp_path / "home")])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    status, printed = jobs("add", spec, "--engine", "sd-scripts")
    (entry,) = studio.store.entries()
    assert status == 0 and entry.job.engine == "sd-scripts"
    assert printed.startswith(f"Queued dog as {entry.id}.\n  ") and "\n  seed: the random numbers are" in printed
    assert f"{entry.id}  dog: queued, by sd-scripts, 0 of 8" in jobs("show", entry.id)[1]
    assert json.loads(jobs("show", entry.id, "--json")[1])["engine"] == "sd-scripts"
    told = json.loads(jobs("add", spec, "--engine", "sd-scripts", "--json")[1])
    assert any(remark.startswith("seed: ") for remark in told["remarks"])
    status, printed = jobs("add", spec, "--engine", "sd-scripts", "--set", "dco_beta=500")
    assert status == 2 and "sd-scripts cannot do this training. dco_beta: " in printed
    os.environ[place.FOLDER_VARIABLE] = str(tmp_path / "gone")
    status, printed = jobs("add", spec, "--engine", "sd-scripts")
    assert status == 2 and f"found no folder {tmp_path / 'gone'}" in printed
    assert len(studio.store.entries()) == 2
    assert engines.why_not("sd-scripts").startswith("sd-scripts: found no folder") and engines.why_not("built-in") == ""


def test_what_another_engine_takes_says_nothing_of_ours(studio):
    """Its plan has no measured step, which would make every later training look free."""
    plan = {"event": "Plan", "time": 1.0, "step_seconds": 0.0, "buckets": {"64x64": 3}}
    spec, home = {"base": "tiny", "images": "/x", "out": "/x.safetensors"}, studio.places.home
    made = [studio.store.add("train", name, spec, engine=name) for name in engines.ENGINES]
    for entry in made:
        entry.run.mkdir()
        (entry.run / "events.jsonl").write_text(json.dumps(plan) + "\n", encoding="utf-8")
    assert [found.job for found in planned(home, frozenset())] == [made[0].id]


# --- jobs that train


@contextmanager
def running(studio):
    studio.start()
    try:
        yield
    finally:
        studio.supervisor.close()


def test_the_work_of_a_job_by_sd_scripts(studio, checkout):
    """What the child does, without its process; it goes on where there was an attempt before."""
    entry = studio.create(Request.from_json(asked(steps=30)))[0]
    entry = studio.store.begin(entry.id, "cpu")
    told = child._Told()
    fake.behave(checkout.folder, seconds=0.2)
    stopped = child._train(entry, told, lambda: told.step >= 1)
    fake.behave(checkout.folder)
    assert (stopped["reason"], stopped["resumable"], stopped["adapter"]) == ("stopped", True, None), stopped
    done = child._train(entry, told, lambda: False)
    assert (done["reason"], done["step"], done["resumable"]) == ("finished", 30, True), done
    assert len(sa.load(done["adapter"]).layers) > 0
    assert {"resumed": stopped["step"]} in fake.noted(checkout.folder)


@pytest.mark.slow
def test_a_job_by_sd_scripts_stops_goes_on_and_finishes(studio, checkout):
    """Real child processes, and the checkout's own: the same folder, course and end as by the built-in engine."""
    fake.behave(checkout.folder, seconds=0.2)
    entry = studio.create(Request.from_json(asked(checkpoint_every=20, sample_every=20)))[0]

    def now():
        return studio.store.entry(entry.id)

    with running(studio):
        wait(lambda: studio.course(entry.id).summary()["step"] >= 3 or now().state.status == "failed")
        studio.stop(entry.id)
        stopped = wait(lambda: now().state.status not in ("running", "stopping") and now().state)
        assert (stopped.status, stopped.reason, stopped.resumable) == ("stopped", "stopped", True), stopped
        assert stopped.adapter is None and stopped.step >= 3
        fake.behave(checkout.folder)
        studio.resume(entry.id)
        ended = wait(lambda: now().state.status not in ("queued", "running", "stopping") and now().state)
    assert (ended.status, ended.reason, ended.step) == ("finished", "finished", 40), ended
    assert ended.text.startswith("Finished 40 steps") and len(sa.load(ended.adapter).layers) > 0
    assert {"resumed": stopped.step} in fake.noted(checkout.folder)
    seen = studio.detail(entry.id)
    assert seen["engine"] == "sd-scripts" and seen["step"] == 40 and studio.curve(entry.id)["next"] == 40
    assert {each["step"] for each in seen["samples"]} == {0, 20, 40} and seen["checkpoints"]
    assert any(each["text"].startswith("seed: ") for each in seen["notices"])


def test_a_job_whose_sd_scripts_is_gone_says_so(checkout):
    (checkout.folder / "train_network.py").unlink()
    with pytest.raises(SettingError, match=r"found no train_network.py in .*; expected a checkout"):
        child._trainer("sd-scripts")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["now", "killed"])
def test_ending_a_job_at_once_ends_sd_scripts_too(studio, checkout, how):
    fake.behave(checkout.folder, seconds=0.2)
    entry = studio.create(Request.from_json(asked(steps=2000, checkpoint_every=2)))[0]
    with running(studio):
        wait(lambda: studio.course(entry.id).summary()["step"] >= 3)
        family = settle._family(settle.child(studio.store.entry(entry.id)))
        assert len(family) >= 2
        if how == "now":
            studio.stop(entry.id, now=True)
        else:
            family[0].kill()
        state = wait(lambda: not (now := studio.store.entry(entry.id).state).active and now)
        wait(lambda: not any(each.is_running() and each.status() != "zombie" for each in family), 60)
    assert state.status == ("stopped" if how == "now" else "interrupted") and state.resumable
