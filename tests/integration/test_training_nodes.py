"""The trainer and job nodes in a running ComfyUI."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from comfy_driver import PACK, Comfy, picture_graph
from safetensors import safe_open
from trainings import (
    LONG,
    give_pictures,
    give_pictures_to,
    job_node,
    jobs,
    named,
    trainer,
    wait_for_status,
    wait_for_step,
    wait_until,
)

LOADER = "SpectralAdapterLoader"
STRENGTHS = {"strength_model": 1.0, "strength_clip": 1.0, "strength_mode": "linear", "on_mismatch": "refuse"}


@pytest.fixture(scope="module")
def comfy(
    comfy_root: Path, comfy_python: str, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("comfy")
    (base / "models" / "checkpoints").mkdir(parents=True)
    (base / "models" / "checkpoints" / "small.safetensors").symlink_to(library / "small.safetensors")
    give_pictures(base)
    with Comfy(comfy_root, comfy_python, base, [PACK]) as server:
        yield server
        end_children(server)


def end_children(comfy: Comfy) -> None:
    """Ends the trainings that tests have left, which would otherwise outlive ComfyUI."""
    for job in jobs(comfy):
        if job["status"] in ("queued", "running", "stopping"):
            comfy.post(f"/spectral_adapters/jobs/{job['id']}/stop", {"now": True})


def child_of(comfy: Comfy, job: str) -> psutil.Process:
    state = json.loads((comfy.base / "user" / "spectral_adapters" / "jobs" / job / "state.json").read_text())
    return psutil.Process(state["process"]["pid"])


def adapters(comfy: Comfy) -> list[str]:
    """The loader's choices."""
    kind, options = comfy.get(f"/object_info/{LOADER}")[LOADER]["input"]["required"]["adapter"]
    return kind if isinstance(kind, list) else options["options"]


def run_in_background(comfy: Comfy, graph: dict) -> list:
    """Starts a prompt; the list gets its Run when it ends."""
    ended: list = []
    threading.Thread(target=lambda: ended.append(comfy.run(graph)), daemon=True).start()
    return ended


def test_every_widget_and_output_has_its_words_in_the_locale(comfy: Comfy) -> None:
    words = json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text())
    for node in ("SpectralAdapterTrainer", "SpectralAdapterJob", LOADER):
        shown = comfy.get(f"/object_info/{node}")[node]
        inputs = shown["input"]["required"] | shown["input"].get("optional", {})
        known = set(inputs)
        for name, (kind, options) in inputs.items():
            if kind == "COMFY_DYNAMICCOMBO_V3":
                known |= {f"{name}_{own}" for option in options["options"] for own in option["inputs"]["required"]}
        assert set(words[node]["inputs"]) == known
        assert len(words[node]["outputs"]) == len(shown["output"])
        assert (PACK / "web" / "docs" / node / "en.md").is_file()


def test_queue_mode_is_done_at_once_and_leaves_comfyui_free(comfy: Comfy) -> None:
    began = time.monotonic()
    run = comfy.run({"1": trainer(name="queued", steps=LONG, wait=False), "2": job_node(["1", 1])})
    assert run.ok, run.error
    assert time.monotonic() - began < 20
    assert run.text["1"].startswith("queued: ")
    wait_for_step(comfy, "queued", 1)
    assert comfy.run(picture_graph("small.safetensors")).ok
    assert named(comfy, "queued")["status"] == "running"
    again = comfy.run({"1": trainer(name="queued", steps=LONG, wait=False)})
    assert again.ok and len([job for job in jobs(comfy) if job["name"] == "queued"]) == 1
    comfy.post(f"/spectral_adapters/jobs/{named(comfy, 'queued')['id']}/stop", {})
    assert wait_for_status(comfy, "queued", "stopped")["resumable"]


def test_wait_mode_gives_the_adapter_and_trains_it_once(comfy: Comfy) -> None:
    graph = {
        "1": trainer(sample_prompts="a sks fish\n\na boat"),
        "2": job_node(["1", 1]),
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 3]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 4]}},
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    assert run.text["1"].startswith("fish: finished.") and run.text["2"] == run.text["1"]
    loss, *samples = sorted(run.pictures, key=lambda picture: -picture.shape[1])
    assert loss.shape == (500, 900, 3) and loss.std() > 10
    assert [sample.shape for sample in samples] == [(64, 64, 3)] * 2
    assert adapters(comfy) == ["fish.safetensors"]
    file = comfy.base / "output" / "spectral_adapters" / "fish.safetensors"
    with safe_open(file, "numpy") as adapter:
        assert adapter.metadata()["spectral.method"] == "rotation"
    again = comfy.run(graph)
    assert again.ok and len(again.cached) == 0  # the job it has now is not the one it knew of before
    third = comfy.run(graph)
    assert third.ok and "1" in third.cached
    assert len([job for job in jobs(comfy) if job["name"].startswith("fish")]) == 1


def test_the_loader_takes_the_adapter_from_the_trainer(comfy: Comfy) -> None:
    """In one prompt. It then refuses it, with the reason: the tiny base is no model that ComfyUI can load."""
    graph = picture_graph("small.safetensors", (LOADER, {"adapter": ["30", 0], **STRENGTHS}))
    run = comfy.run(graph | {"30": trainer(name="handed on", steps=2)})
    assert not run.ok and "tiny" in run.error
    assert (comfy.base / "output" / "spectral_adapters" / "handed on.safetensors").is_file()


def test_cancel_stops_with_a_save_and_the_same_workflow_goes_on(comfy: Comfy) -> None:
    graph = {"1": trainer(name="cancelled", steps=60, training_seed=3)}
    ended = run_in_background(comfy, graph)
    wait_for_step(comfy, "cancelled", 2)
    pressed = time.monotonic()
    comfy.post("/interrupt", {})
    wait_until(lambda: ended, "the prompt is interrupted")
    assert ended[0].error == "interrupted" and time.monotonic() - pressed < 10
    stopped = wait_for_status(comfy, "cancelled", "stopped", "finished")
    if stopped["status"] == "finished":
        pytest.fail("60 steps were done before Cancel; the test needs more")
    assert stopped["resumable"] and 2 <= stopped["step"] < 60
    run = comfy.run(graph)
    assert run.ok, run.error
    job = named(comfy, "cancelled")
    assert job["id"] == stopped["id"] and job["status"] == "finished" and job["step"] == 60
    log = comfy.base / "user" / "spectral_adapters" / "jobs" / job["id"] / "run" / "events.jsonl"
    assert sum('"Resumed"' in line for line in log.read_text().splitlines()) == 1


def test_a_training_that_fails_says_why_on_the_node(comfy: Comfy) -> None:
    (comfy.base / "input" / "broken").mkdir()
    (comfy.base / "input" / "broken" / "1.png").write_bytes(b"this is no picture")
    comfy.get("/object_info/SpectralAdapterTrainer")
    run = comfy.run({"1": trainer(name="broken", dataset="input/broken")})
    assert not run.ok and "1.png" in run.error and "broken" in run.error


def test_names_that_are_no_names_are_refused(comfy: Comfy) -> None:
    for widgets in ({"name": "../../outside"}, {"name": "a/b"}, {"name": ""}, {"trigger": "x" * 5000}):
        run = comfy.run({"1": trainer(**{"steps": 1, **widgets})})
        assert not run.ok and "expected" in run.error, widgets
    for widgets in ({"dataset": "../user"}, {"dataset": "input/../../x"}, {"checkpoint": "/etc/passwd"}):
        assert not comfy.run({"1": trainer(**widgets)}).ok, widgets
    assert not list(comfy.base.rglob("outside*"))


def test_sd_scripts_is_an_engine_and_refuses_the_tiny_base(comfy: Comfy) -> None:
    """Whether it is set up here or not: nothing is queued, and the sentence says why."""
    before = len(jobs(comfy))
    run = comfy.run({"1": trainer(name="other", engine="sd-scripts")})
    assert not run.ok and "sd-scripts" in run.error
    assert any(reason in run.error for reason in ("not the bundled base", "kohya --remember")), run.error
    assert len(jobs(comfy)) == before


def test_a_name_that_the_loader_finds_elsewhere_gets_a_number(comfy: Comfy) -> None:
    """The loader looks into models/spectral_adapters first, and would take the other file for this training's."""
    elsewhere = comfy.base / "models" / "spectral_adapters" / "known.safetensors"
    elsewhere.write_bytes(b"another adapter")
    run = comfy.run({"1": trainer(name="known", steps=1)})
    assert run.ok, run.error
    assert (comfy.base / "output" / "spectral_adapters" / "known-2.safetensors").is_file()
    assert elsewhere.read_bytes() == b"another adapter"


def test_folders_from_extra_paths_and_roots_json_can_be_trained_on(
    comfy_root: Path, comfy_python: str, tmp_path: Path
) -> None:
    for name in ("photos", "album"):
        give_pictures_to(tmp_path / name / "fish")
    paths = tmp_path / "paths.yaml"
    paths.write_text(f"shared:\n    base_path: {tmp_path}\n    datasets: photos\n")
    base = tmp_path / "comfy"
    home = base / "user" / "spectral_adapters"
    home.mkdir(parents=True)
    (home / "roots.json").write_text(json.dumps({"my album": str(tmp_path / "album")}))
    with Comfy(comfy_root, comfy_python, base, [PACK], ("--extra-model-paths-config", str(paths))) as server:
        node = server.get("/object_info/SpectralAdapterTrainer")["SpectralAdapterTrainer"]
        assert node["input"]["required"]["dataset"][1]["options"] == ["my album/fish", "photos/fish"]
        for root in ("photos", "my album"):
            run = server.run({"1": trainer(name=root, dataset=f"{root}/fish", steps=1)})
            assert run.ok, run.error


def test_an_unknown_method_is_refused(comfy: Comfy) -> None:
    widgets = {name: value for name, value in trainer()["inputs"].items() if not name.startswith("method.")}
    run = comfy.run({"1": {"class_type": "SpectralAdapterTrainer", "inputs": widgets | {"method": "magic"}}})
    assert not run.ok


def test_two_jobs_run_one_after_the_other_and_their_order_can_be_changed(comfy: Comfy) -> None:
    for name in ("first", "second", "third"):
        steps = LONG if name == "first" else 2
        assert comfy.run({"1": trainer(name=name, wait=False, steps=steps)}).ok
    first, second, third = (named(comfy, name)["id"] for name in ("first", "second", "third"))
    wait_for_step(comfy, "first", 1)
    state = comfy.get("/spectral_adapters/state")
    assert state["queue"] == [second, third]
    comfy.post("/spectral_adapters/queue", {"order": [third, second]})
    assert comfy.get("/spectral_adapters/state")["queue"] == [third, second]
    comfy.post(f"/spectral_adapters/jobs/{first}/stop", {})
    ended = [wait_for_status(comfy, name, "finished")["ended"] for name in ("third", "second")]
    assert ended == sorted(ended)
    assert named(comfy, "first")["status"] == "stopped"


def test_the_newest_job_is_shown_without_an_id(comfy: Comfy) -> None:
    run = comfy.run({"1": job_node()})
    assert run.ok and run.text["1"].startswith(f"{jobs(comfy)[0]['name']}: ")
    unknown = comfy.run({"1": job_node("20200101-000000-0000")})
    assert not unknown.ok and "found no job" in unknown.error


def test_a_training_outlives_a_killed_comfyui_and_is_taken_over(comfy: Comfy) -> None:
    assert comfy.run({"1": trainer(name="survivor", steps=LONG, wait=False)}).ok
    before = wait_for_step(comfy, "survivor", 2)
    child = child_of(comfy, before["id"])
    comfy.kill()
    assert child.is_running()
    comfy.start()
    after = wait_for_step(comfy, "survivor", before["step"] + 2)
    assert after["id"] == before["id"] and child_of(comfy, after["id"]).pid == child.pid
    comfy.post(f"/spectral_adapters/jobs/{after['id']}/stop", {})
    assert wait_for_status(comfy, "survivor", "stopped")["resumable"]


def test_what_died_with_comfyui_is_resumable_and_goes_on(comfy: Comfy) -> None:
    graph = {"1": trainer(name="lost", steps=40, wait=False, training_seed=7)}
    assert comfy.run(graph).ok
    job = wait_for_step(comfy, "lost", 2)
    comfy.post(f"/spectral_adapters/jobs/{job['id']}/save", {})
    checkpoints = comfy.base / "user" / "spectral_adapters" / "jobs" / job["id"] / "run" / "checkpoints"
    wait_until(lambda: list(checkpoints.glob("step-*/manifest.json")), "a checkpoint")
    child = child_of(comfy, job["id"])
    comfy.kill()
    os.kill(child.pid, signal.SIGKILL)
    comfy.start()
    found = wait_until(lambda: (j := named(comfy, "lost"))["status"] != "running" and j, "the loss is noticed")
    assert found["status"] == "interrupted" and found["resumable"], found["text"]
    run = comfy.run({"1": trainer(name="lost", steps=40, training_seed=7)})
    assert run.ok, run.error
    assert named(comfy, "lost")["id"] == job["id"]
    assert named(comfy, "lost")["status"] == "finished"


def test_the_routes_are_guarded_inside_comfyui(comfy: Comfy) -> None:
    body, json_type = b"{}", {"Content-Type": "application/json"}
    own = f"http://127.0.0.1:{comfy.port}"
    for prefix in ("", "/api"):
        path = f"{prefix}/spectral_adapters/jobs/20200101-000000-0000/delete"
        assert comfy.call(path, body, json_type | {"Origin": own})[0] == 404  # let in, but there is no such job
        for headers, status in (
            ({"Content-Type": "text/plain"}, 415),
            ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
            (json_type | {"Origin": "null"}, 403),
            (json_type | {"Origin": "http://elsewhere.example"}, 403),
            (json_type | {"Sec-Fetch-Site": "cross-site"}, 403),
            (json_type | {"Sec-Fetch-Site": "same-site"}, 403),
            (json_type | {"Host": "rebound.example", "Origin": "http://rebound.example"}, 403),
        ):
            assert comfy.call(path, body, headers)[0] == status, (prefix, headers)
        assert comfy.call(f"{prefix}/spectral_adapters/state", headers={"Host": "rebound.example"})[0] == 403
        assert comfy.call(f"{prefix}/spectral_adapters/state", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert comfy.call(f"{prefix}/spectral_adapters/state")[0] == 200


def test_where_others_can_reach_comfyui_the_routes_ask_for_a_token(
    comfy_root: Path, comfy_python: str, tmp_path: Path
) -> None:
    with Comfy(comfy_root, comfy_python, tmp_path, [PACK], ("--listen", "0.0.0.0")) as open_server:
        status, answer = open_server.call("/spectral_adapters/state")
        assert status in (401, 403) and "token" in json.loads(answer)["error"]
        token = (tmp_path / "user" / "spectral_adapters" / "token").read_text()
        assert token in open_server.log()
        assert open_server.call("/spectral_adapters/state", headers={"X-Spectral-Token": token})[0] == 200
        assert open_server.call("/spectral_adapters/state", headers={"X-Spectral-Token": token + "x"})[0] != 200


PROBE = """
import asyncio
import sys
import comfy.model_management
from aiohttp import web
from server import PromptServer
NODE_CLASS_MAPPINGS = {}
async def loaded(request):
    return web.json_response({"models": len(comfy.model_management.current_loaded_models)})
def host():
    return next(m for name, m in sys.modules.items() if name.endswith("spectral_adapters.nodes.studio")).host()
async def release(request):
    await asyncio.to_thread(host().release)
    return await loaded(request)
async def waiting(request):
    with host().waiting():
        host().release()
        return web.json_response({"idle": host().idle(), "flags": PromptServer.instance.prompt_queue.get_flags(False)})
PromptServer.instance.routes.post("/probe/release")(release)
PromptServer.instance.routes.post("/probe/waiting")(waiting)
PromptServer.instance.routes.get("/probe/loaded")(loaded)
"""


def test_before_a_training_on_the_gpu_comfyui_gives_its_memory_back(
    comfy_root: Path, comfy_python: str, library: Path, tmp_path: Path
) -> None:
    """What the supervisor calls then, asked for here through a route of the test's own: there may be no GPU."""
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    (tmp_path / "models" / "checkpoints" / "small.safetensors").symlink_to(library / "small.safetensors")
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "probe.py").write_text(PROBE)
    with Comfy(comfy_root, comfy_python, tmp_path, [PACK]) as server:
        picture = server.run(picture_graph("small.safetensors")).picture
        assert server.get("/probe/loaded")["models"] > 0
        # While a node waits for a training, that node decides what is unloaded, and nothing else runs.
        assert server.post("/probe/waiting", {}) == {"idle": True, "flags": {}}
        assert server.get("/probe/loaded")["models"] > 0
        server.post("/probe/release", {})
        wait_until(lambda: server.get("/probe/loaded")["models"] == 0, "the models are unloaded", 30)
        assert np.array_equal(server.run(picture_graph("small.safetensors", seed=1)).picture, picture)


WITHOUT_FILELOCK = """
import builtins
real = builtins.__import__
def without(name, globals=None, locals=None, fromlist=(), level=0):
    if name == "filelock" and "spectral_adapters" in (globals or {}).get("__name__", ""):
        raise ModuleNotFoundError("No module named 'filelock'", name="filelock")
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = without
"""


def test_without_a_package_the_loader_works_and_the_log_says_what_is_missing(
    comfy_root: Path, comfy_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI itself brings most of what training needs, so its absence is played for this pack's modules alone."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_FILELOCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    with Comfy(comfy_root, comfy_python, tmp_path / "comfy", [PACK]) as server:
        assert LOADER in server.get(f"/object_info/{LOADER}")
        assert server.get("/object_info/SpectralAdapterTrainer") == {}
        said = [line for line in server.log().splitlines() if "filelock" in line]
        assert len(said) == 1 and "pip install -r" in said[0] and "IMPORT FAILED" not in server.log()


def test_without_a_usable_user_folder_the_loader_works(comfy_root: Path, comfy_python: str, tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "spectral_adapters").write_text("a file where the folder of jobs belongs")
    (tmp_path / "models" / "spectral_adapters").mkdir(parents=True)
    (tmp_path / "models" / "spectral_adapters" / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    with Comfy(comfy_root, comfy_python, tmp_path, [PACK]) as server:
        assert LOADER in server.get(f"/object_info/{LOADER}")
        assert server.get("/object_info/SpectralAdapterTrainer") == {}
        assert "training is off" in server.log() and "IMPORT FAILED" not in server.log()
    (tmp_path / "user" / "spectral_adapters").unlink()
    with Comfy(comfy_root, comfy_python, tmp_path, [PACK]) as server:
        assert server.get("/spectral_adapters/adapters") == []  # the broken link is passed over


def test_the_loss_picture_is_the_jobs_own(comfy: Comfy) -> None:
    """Two jobs, two pictures: the plot on the node is drawn from the events of the job that was asked for."""
    pictures = []
    for seed in (11, 12):
        graph = {
            "1": trainer(name=f"seed {seed}", steps=6, training_seed=seed),
            "2": job_node(["1", 1]),
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 3]}},
        }
        pictures.append(comfy.run(graph).picture)
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.1
