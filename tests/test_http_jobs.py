"""Jobs through the routes, with one real training: asked for, followed, and what comes out of it."""

import json
import math
import time

import pytest

import spectral_adapters as sa
from spectral_adapters.trainer.addresses import PREFIX
from spectral_adapters.trainer.jobs.job import STATE

HOSTILE = "<img src=x onerror=alert(1)> \u202e 日本"


def request(name="mug", **settings):
    given = {"steps": 12, "batch_size": 1, "targets": "cross-attention", "trigger": "sks", **settings}
    return {"request": {"name": name, "base": "tiny", "dataset": "own/mugs", "settings": given, "device": "cpu"}}


def wait(client, id, *statuses):
    deadline = time.monotonic() + 300  # a busy machine takes its time
    while (job := client.get(f"/jobs/{id}").json)["status"] not in statuses:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


@pytest.fixture(scope="module")
def trained(client, studio):
    """The id of a finished training."""
    samples = {"sample_prompts": ["a sks mug", HOSTILE], "sample_steps": 1, "sample_every": 6}
    checks = {"checkpoint_every": 4, "validation": 1, "validate_every": 4, "description": HOSTILE}
    answer = client.post("/jobs", request(**samples, **checks))
    assert answer.status == 200 and answer.json["notice"] == "", answer.json
    studio.start()
    try:
        job = wait(client, answer.json["id"], "finished", "failed", "stopped", "interrupted")
    finally:
        studio.supervisor.close()
    assert job["status"] == "finished", job
    return job["id"]


def test_a_finished_training_is_told_whole(client, trained):
    job = client.get(f"/jobs/{trained}").json
    assert (job["kind"], job["name"], job["base"], job["method"], job["trigger"]) == (
        "train", "mug", "tiny", "additive", "sks",
    )  # fmt: skip
    assert job["step"] == job["steps"] == 12 and job["loss"] > 0 and job["reason"] == "finished"
    assert job["best"]["step"] in (4, 8, 12) and str(job["best"]["step"]) in job["best"]["text"]
    assert [step for step, _ in job["validations"]] == [0, 4, 8, 12]
    assert {c["name"] for c in job["checkpoints"]} <= {"step-000004", "step-000008", "step-000012"}
    assert sum(c["best"] for c in job["checkpoints"]) == 1
    assert job["prompts"] == ["a sks mug", HOSTILE] and job["request"]["settings"]["description"] == HOSTILE
    assert [(s["step"], s["number"], s["prompt"]) for s in job["samples"]] == [
        (step, number, prompt) for step in (0, 6, 12) for number, prompt in ((1, "a sks mug"), (2, HOSTILE))
    ]
    for address in [job["cover"], *job["pictures"].values(), *(s["thumb"] for s in job["samples"])]:
        assert client.call("GET", address, None, client._own()).headers["Content-Type"].startswith("image/")
    adapter = job["adapter"]
    assert adapter["name"] == "mug.safetensors" and adapter["bytes"] > 1000 and len(sa.load(adapter["path"]).layers)
    listed = {"name": adapter["name"], "kind": "adapter", "bytes": adapter["bytes"], "editable": True}
    assert client.get("/adapters").json == [listed]


def test_the_curve_comes_in_pieces(client, trained):
    whole = client.get(f"/jobs/{trained}/curve").json
    assert whole["steps"] == list(range(1, 13)) and whole["reset"] and whole["next"] == 12
    rest = client.get(f"/jobs/{trained}/curve", after=9, generation=whole["generation"]).json
    assert rest["steps"] == [10, 11, 12] and rest["loss"] == whole["loss"][9:] and not rest["reset"]
    assert client.get(f"/jobs/{trained}/curve", after=9, generation=7).json["reset"]
    assert client.get(f"/jobs/{trained}/curve", after="x").status == 400


def test_the_state_is_sent_again_only_when_it_has_changed(client, studio, trained):
    first = client.get("/state").json
    assert first["devices"] == [{"id": "cpu", "label": "CPU", "job": None}] and first["host"]["token_needed"]
    assert trained in [job["id"] for job in first["jobs"]]
    assert client.get("/state", known=first["version"]).json == {"version": first["version"], "unchanged": True}
    other = client.post("/jobs", request("other")).json["id"]
    second = client.get("/state", known=first["version"]).json
    assert second["queue"] == [other] and second["jobs"][0]["status"] == "queued"
    assert client.post(f"/jobs/{other}/delete").status == 200
    assert client.get("/state", known=second["version"]).json["queue"] == []


def test_spectrum_and_comparison(client, trained):
    for checkpoint in ("final", client.get(f"/jobs/{trained}").json["checkpoints"][0]["name"]):
        found = client.get(f"/jobs/{trained}/spectrum", checkpoint=checkpoint).json
        assert found["method"] == "additive" and found["layers"] and found["blocks"]
    for wrong in ("step-999999", "..", "../../mug", "", "step-000004/..", "\0"):
        answer = client.get(f"/jobs/{trained}/spectrum", checkpoint=wrong)
        assert answer.status == 400 and "error" in answer.json
    other = client.post("/jobs", request("rotated", method="rotation")).json["id"]
    both = client.get("/compare", a=trained, b=other).json
    differing = {row["name"]: (row["a"], row["b"]) for row in both["settings"]}
    assert differing["method"] == ("additive", "rotation") and "steps" not in differing
    assert [run["id"] for run in both["runs"]] == [trained, other] and len(both["runs"][0]["samples"]) == 6
    assert client.get("/compare", a=trained, b="x").status == 404
    client.post(f"/jobs/{other}/delete")


def test_a_checkpoint_is_kept_as_an_adapter_of_its_own(client, trained):
    checkpoint = client.get(f"/jobs/{trained}").json["checkpoints"][0]["name"]
    made = client.post(f"/jobs/{trained}/keep", {"checkpoint": checkpoint}).json["adapter"]
    assert made == f"mug-{checkpoint}.safetensors"
    assert made in {found["name"] for found in client.get("/adapters").json}
    assert client.post(f"/jobs/{trained}/keep", {"checkpoint": checkpoint}).json["adapter"] == made, "once is enough"
    for wrong in ("step-999999", "../checkpoints", "", "\0"):
        assert client.post(f"/jobs/{trained}/keep", {"checkpoint": wrong}).status == 400


def test_a_grid_and_an_export_are_jobs_of_the_training(client, trained):
    asked = {"strengths": [0, 1], "prompts": ["a sks mug"], "checkpoints": ["final"], "seed": 3}
    grid = client.post(f"/jobs/{trained}/grid", asked).json["id"]
    first = client.post(f"/jobs/{trained}/export", {}).json["id"]
    second = client.post(f"/jobs/{trained}/export", {"rank": 2}).json["id"]
    tasks = {task["id"]: task for task in client.get(f"/jobs/{trained}").json["tasks"]}
    assert {id: (task["kind"], task["parent"]) for id, task in tasks.items()} == {
        grid: ("grid", trained), first: ("export", trained), second: ("export", trained),
    }  # fmt: skip
    outs = [client.get(f"/jobs/{id}").json["spec"]["out"] for id in (first, second)]
    assert [out.rpartition("/")[2] for out in outs] == ["mug.lora.safetensors", "mug-2.lora.safetensors"]
    empty = client.get(f"/jobs/{grid}/grid").json
    assert empty["cells"] == []
    for wrong in ({"strengths": ["x"]}, {"checkpoints": ["../x"]}, {"strengths": [0] * 99}, {"prompts": "x"}):
        assert client.post(f"/jobs/{trained}/grid", wrong).status == 400
    for wrong in ({"rank": 0}, {"rank": "8"}, {"checkpoint": "../../x"}, {"checkpoint": "final\0"}):
        assert client.post(f"/jobs/{trained}/export", wrong).status == 400
    assert client.post(f"/jobs/{grid}/export", {}).status == 400, "a grid is no training"
    waiting = client.post("/jobs", request("waiting")).json["id"]
    for what in ("grid", "export"):
        assert client.post(f"/jobs/{waiting}/{what}").status == 409, "its checkpoints still change"
    client.post(f"/jobs/{waiting}/delete")
    for id in (grid, first, second):
        assert client.post(f"/jobs/{id}/delete").status == 200


def test_the_same_training_is_not_queued_twice(client, studio):
    first = client.post("/jobs", request("twice")).json
    again = client.post("/jobs", request("twice")).json
    assert again["id"] == first["id"] and "there already" in again["notice"]
    other = client.post("/jobs", request("twice", steps=13)).json
    assert other["id"] != first["id"] and "twice-2.safetensors" in other["notice"]
    client.post(f"/jobs/{first['id']}/delete")
    client.post(f"/jobs/{other['id']}/delete")


def test_a_finished_training_serves_again_where_that_is_asked_for(studio, trained):
    from spectral_adapters.trainer.request import Request

    wanted = Request.from_json(studio.store.entry(trained).job.request)
    entry, notice = studio.create(wanted, reuse=True)
    assert entry.id == trained and "finished" in notice
    entry, notice = studio.create(wanted)
    assert entry.id != trained and "mug-2" in notice
    studio.delete(entry.id)


def test_the_queue_is_put_in_order(client):
    ids = [client.post("/jobs", request(name)).json["id"] for name in ("one", "two", "three")]
    assert client.post("/queue", {"order": [ids[2], ids[0]]}).status == 200
    assert client.get("/state").json["queue"] == [ids[2], ids[0], ids[1]]
    assert client.post("/queue", {"order": ["x"]}).status == 404
    assert client.post("/queue", {"order": "x"}).status == 400
    for id in ids:
        client.post(f"/jobs/{id}/delete")


def test_what_does_not_go_with_a_jobs_state_is_a_conflict(client, trained):
    for action in ("stop", "resume", "sample", "save"):
        answer = client.post(f"/jobs/{trained}/{action}")
        assert answer.status == 409 and "finished" in answer.json["error"]


@pytest.mark.parametrize(
    "changes",
    [{"dataset": "own/../../etc"}, {"dataset": "/etc"}, {"base": "/etc/passwd"}, {"base": "../x"}, {"name": "../x"},
     {"name": "a/b"}, {"name": "CON"}, {"name": ""}, {"name": "a\0b"}, {"name": "\ud800"}, {"preset": "x"},
     {"device": "cuda:0; rm"}, {"settings": {"out": "/tmp/x"}}, {"settings": {"run": "/tmp/x"}},
     {"settings": {"optimizer": "os.system"}}, {"settings": {"steps": 10**9}}, {"settings": {"lr": "1"}},
     {"settings": {"start_from": "../x"}}, {"settings": []}, {"options": {"shell": True}}, {"path": "/etc"}],
)  # fmt: skip
def test_a_request_that_cannot_be_is_refused_and_nothing_is_queued(client, changes):
    before = client.get("/state").json
    wanted = request("refused")["request"] | changes
    for path in ("/jobs", "/estimate"):
        answer = client.post(path, {"request": wanted})
        assert answer.status == 400 and answer.json["error"], answer.json
    assert client.get("/state", known=before["version"]).json["unchanged"]


def test_a_broken_job_is_listed_with_its_reason(client, studio):
    id = client.post("/jobs", request("broken")).json["id"]
    (studio.store.jobs / id / STATE).write_text("{")
    (found,) = [job for job in client.get("/state").json["jobs"] if job["id"] == id]
    assert found["status"] == "failed" and STATE in found["text"]
    assert client.get(f"/jobs/{id}").status == 200
    assert client.post(f"/jobs/{id}/delete").status == 200


def test_hostile_events_come_back_as_json(client, studio):
    """A log that another program wrote: numbers that are none, texts that are markup, fields of other types."""
    entry = studio.store.add("train", "odd", {"base": "tiny"})
    lines = [
        {"event": "Phase", "name": HOSTILE},
        {"event": "Notice", "text": HOSTILE, "time": 1},
        {"event": "Step", "step": 1, "steps": 9, "loss": "NaN", "lr": "Infinity"},
        {"event": "Step", "step": "x", "steps": None, "loss": [], "lr": {}},
        {"event": 5},
        {"event": "Sampled", "step": 1, "paths": ["/etc/passwd", "../x.png"], "prompts": [HOSTILE, HOSTILE]},
        {"event": "Sampled", "step": 1, "paths": 5, "prompts": None},
        {"event": "Plan", "steps": HOSTILE, "memory": []},
        {"event": "Checkpointed", "step": None, "path": {}},
        {"event": "Resumed", "step": "x"},
    ]
    entry.run.mkdir()
    (entry.run / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{torn", encoding="utf-8")
    job = client.get(f"/jobs/{entry.id}").json
    assert job["phase"] == HOSTILE and job["notices"][0]["text"] == HOSTILE and job["samples"] == []
    assert entry.id in [job["id"] for job in client.get("/state").json["jobs"]], "one bad folder spoils nothing"
    curve = client.get(f"/jobs/{entry.id}/curve").json
    assert curve["loss"][0] is None and not any(isinstance(x, float) and math.isnan(x) for x in curve["lr"] if x)
    assert client.post(f"/jobs/{entry.id}/delete").status == 200


def test_a_job_that_someone_edited_spoils_nothing(client, studio):
    entry = studio.store.add("train", "edited", {"base": "tiny"})
    odd = {"spec": {"base": 5, "out": [], "steps": "x", "sample_prompts": 7}, "request": {"base": {"a": HOSTILE}}}
    job = json.loads((entry.folder / "job.json").read_text())
    (entry.folder / "job.json").write_text(json.dumps(job | odd))
    state = json.loads((entry.folder / "state.json").read_text())
    (entry.folder / "state.json").write_text(json.dumps(state | {"adapter": 5, "text": HOSTILE}))
    assert client.get(f"/jobs/{entry.id}").status == client.get("/state").status == 200
    other = client.post("/jobs", request("beside")).json["id"]
    for id in (entry.id, other):
        assert client.post(f"/jobs/{id}/delete").status == 200


def test_a_folder_is_opened_by_its_job_only_where_a_screen_is(client, trained, monkeypatch):
    opened = []
    monkeypatch.setattr("spectral_adapters.trainer.open_folder._opener", lambda: None)
    answer = client.post(f"/jobs/{trained}/open")
    assert answer.status == 400 and trained in answer.json["error"] and client.get("/state").json["host"]["can"] == []
    monkeypatch.setattr("spectral_adapters.trainer.open_folder._opener", lambda: opened.append)
    assert client.get("/state").json["host"]["can"] == ["open"]
    assert client.post(f"/jobs/{trained}/open", {"folder": "/etc"}).status == 400 and opened == []
    assert client.post(f"/jobs/{trained}/open").status == 200
    assert [path.name for path in opened] == [trained]


def test_deleting_a_training_leaves_its_adapter(client, studio, trained):
    adapter = client.get(f"/jobs/{trained}").json["adapter"]["path"]
    trash = client.post(f"/jobs/{trained}/delete").json["trash"]
    assert trained in trash and sa.load(adapter).layers
    assert client.get(f"/jobs/{trained}").status == 404
    assert client.call("GET", f"{PREFIX}/jobs/{trained}/curve", None, client._own()).status == 404
