"""Jobs on disk: what each change leaves there, what several processes may do at once, and what is broken."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spectral_adapters.spectral.errors import SettingError, SpectralError
from spectral_adapters.trainer import processes
from spectral_adapters.trainer.checkpoint import Checkpoints, State
from spectral_adapters.trainer.jobs import job as jobs
from spectral_adapters.trainer.jobs import settle, store
from spectral_adapters.trainer.jobs.job import BrokenJob, JobConflict, Options, UnknownJob, read_entry, write_state
from spectral_adapters.trainer.jobs.store import JobStore

SPEC = {"base": "tiny", "images": "/pictures", "out": "/out.safetensors", "steps": 10}


@pytest.fixture
def home(tmp_path):
    return tmp_path / "mit Leerzeichen" / "写真"


@pytest.fixture
def kept(home):
    return JobStore(home)


def add(kept: JobStore, name: str = "dog", **changes):
    return kept.add("train", name, SPEC, **changes)


def running(kept: JobStore, name: str = "dog", **changes):
    """A job that this very process seems to work on."""
    entry = kept.begin(add(kept, name, **changes).id, "cpu")
    return kept.began(entry.id, processes.this())


def ended(kept: JobStore, status: str, **changes):
    entry = running(kept, **changes.pop("job", {}))
    write_state(entry.folder, entry.state.becomes(status, process=None, **changes))
    return kept.entry(entry.id)


def checkpoint(entry, step: int) -> None:
    Checkpoints(entry.run / "checkpoints").save(State(step, {}))


# --- one process


def test_a_queued_job_lies_whole_on_disk(kept, home):
    made = add(kept, request={"name": "dog"}, device="cuda:1", options=Options(wait_idle=True), digest="d")
    read = JobStore(home).entry(made.id)
    assert read == made and jobs.JOB_ID.fullmatch(made.id)
    assert read.job.spec == {**SPEC, "run": str(home / "jobs" / made.id / "run")}
    assert (read.job.request, read.job.device, read.job.options) == ({"name": "dog"}, "cuda:1", Options(True, True))
    assert read.state.status == "queued" and read.state.attempts == 0
    assert {p.name for p in made.folder.iterdir()} == {"job.json", "state.json"}
    assert kept.add("grid", "dog", SPEC).job.spec == SPEC, "only a training has a run folder of its own"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "shell"}, "kind='shell'; expected one of train, grid, export"),
        ({"device": "cuda:0; rm"}, "expected auto, cpu, mps or cuda:N"),
        ({"name": ""}, "name of 0 characters"),
        ({"name": "x" * 201}, "name of 201 characters"),
    ],
)
def test_what_cannot_be_a_job_is_refused_and_leaves_nothing(kept, home, wrong, said):
    given = {"kind": "train", "name": "dog", "device": "auto", **wrong}
    with pytest.raises(SettingError, match=said):
        kept.add(given["kind"], given["name"], SPEC, device=given["device"])
    assert list((home / "jobs").iterdir()) == [] and kept.queue() == []


def test_entries_are_listed_newest_first_and_queued_oldest_first(kept):
    ids = [add(kept, name).id for name in "abc"]
    assert [entry.id for entry in kept.entries()] == ids[::-1]
    assert kept.queue() == ids


def test_the_queue_in_another_order(kept):
    a, b, c = (add(kept, name).id for name in "abc")
    assert kept.reorder([c]) == kept.queue() == [c, a, b]
    assert kept.reorder([b, c, b, a]) == [b, c, a]
    kept.begin(b, "cpu")
    assert kept.reorder([a, b]) == kept.queue() == [a, c], "a page may not know yet that b has begun"
    with pytest.raises(UnknownJob, match="found no job '20260101-000000-0000'"):
        kept.reorder(["20260101-000000-0000"])
    (kept.home / "queue.json").write_text("[broken")
    assert set(kept.queue()) == {a, c}, "what waits is known without the order"


@pytest.mark.parametrize("id", ["../../etc", "", "20260101-000000-zzzz", "20260101-000000-0000/..", None, 5])
def test_only_ids_are_looked_up(kept, id):
    with pytest.raises(UnknownJob, match="expected the id of one"):
        kept.entry(id)


def test_stopping(kept):
    waits, runs = add(kept, "waits"), running(kept, "runs")
    assert kept.stop(waits.id).state.text == "Taken out of the queue before it began."
    assert kept.entry(waits.id).state.status == "stopped" and kept.queue() == []
    assert kept.stop(runs.id).state.status == "stopping" and (runs.folder / "stop").read_text() == ""
    with pytest.raises(JobConflict, match=r"waits \(.*\) is stopped; only what runs can be stopped"):
        kept.stop(waits.id)


def test_ending_at_once_what_has_no_process_any_more(kept):
    runs = kept.begin(add(kept).id, "cpu")
    state = kept.stop(runs.id, now=True).state
    assert state.status == "stopped" and state.text.startswith("Ended at once, as asked. No checkpoint had been saved")


def test_ending_a_process_at_once(kept, monkeypatch):
    monkeypatch.setattr(settle, "_POLITE", 0.3)
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        runs = kept.began(kept.begin(add(kept).id, "cpu").id, processes.of(process.pid))
        checkpoint(runs, 7)
        state = kept.stop(runs.id, now=True).state
    assert process.returncode == -9, "it did not listen to SIGTERM"
    assert (state.status, state.process, state.resumable) == ("stopped", None, True)
    assert state.text == "Ended at once, as asked. Resuming goes on from step 7, the last complete checkpoint."


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("x", end="", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("status", ["stopped", "interrupted", "failed"])
def test_resuming(kept, status):
    entry = ended(kept, status)
    add(kept, "other")
    assert kept.resume(entry.id).state.text == "Will begin again."
    with pytest.raises(JobConflict, match="is queued; only a job that was stopped, interrupted or failed"):
        kept.resume(entry.id)
    kept.stop(entry.id)
    checkpoint(entry, 12)
    state = kept.resume(entry.id, allow=["images"]).state
    assert (state.text, state.resumable, state.allow) == ("Will go on from step 12.", True, ("images",))
    assert kept.queue()[-1] == entry.id


def test_what_runs_or_is_finished_is_not_resumed(kept):
    for entry in (running(kept), ended(kept, "finished")):
        with pytest.raises(JobConflict, match=f"is {entry.state.status}; only a job that was stopped"):
            kept.resume(entry.id)


def test_asking_for_samples_needs_a_training_that_trains(kept):
    with pytest.raises(JobConflict, match="is queued; expected a training that runs"):
        kept.sample(add(kept).id)
    with pytest.raises(JobConflict, match="is still being prepared; ask again when it trains"):
        kept.save(running(kept).id)


def test_deleting_goes_to_the_trash_with_what_was_made_of_it(kept, home):
    entry, other = ended(kept, "finished"), add(kept, "other")
    grid = kept.add("grid", "dog", {}, parent=entry.id)
    assert kept.delete(entry.id) == home / "trash" / entry.id
    assert {p.name for p in (home / "trash").iterdir()} == {entry.id, grid.id}
    assert [e.id for e in kept.entries()] == kept.queue() == [other.id]
    with pytest.raises(UnknownJob):
        kept.entry(entry.id)
    (home / "jobs" / entry.id).mkdir()
    assert kept.delete(entry.id) != home / "trash" / entry.id, "nothing in the trash is overwritten"


def test_what_runs_is_not_deleted(kept):
    entry = ended(kept, "finished")
    task = kept.begin(kept.add("export", "dog", {}, parent=entry.id).id, "cpu")
    for id in (task.id, entry.id):
        with pytest.raises(JobConflict, match=rf"dog \({task.id}\) is running; stop it before deleting {id}"):
            kept.delete(id)


def test_the_same_training_is_found(kept, tmp_path):
    file = tmp_path / "dog.safetensors"
    failed = ended(kept, "failed", job={"digest": "d"})
    assert kept.find("d") is None
    stopped = ended(kept, "stopped", resumable=True, job={"digest": "d"})
    assert kept.find("d").id == stopped.id
    finished = ended(kept, "finished", adapter=str(file), job={"digest": "d"})
    assert kept.find("d").id == stopped.id, "the adapter file is gone"
    file.touch()
    assert kept.find("d").id == finished.id
    assert kept.resume(failed.id) and kept.find("d").id == failed.id, "what waits comes first"
    assert kept.find("other") is None


def test_the_version_changes_with_everything_that_is_shown_and_only_then(kept, home):
    seen = [kept.version()]

    def changed() -> bool:
        seen.append(kept.version())
        return seen[-1] not in seen[:-1]

    entry, other = add(kept), add(kept, "other")
    assert changed() and kept.version() == JobStore(home).version()
    kept.reorder([other.id])
    assert changed()
    kept.begin(entry.id, "cpu")
    assert changed()
    entry.run.mkdir()
    (entry.run / "events.jsonl").write_text("{}\n")
    assert changed(), "a running job's events"
    (entry.folder / "heartbeat").touch()
    kept.entries(), kept.queue()
    assert not changed(), "looking changes nothing"
    os.utime(entry.folder / "heartbeat", (0, 0))
    write_state(entry.folder, kept.entry(entry.id).state.__class__("running", since=1.0))
    assert changed() and kept.entry(entry.id).silence() > jobs.SILENT
    kept.delete(other.id)
    assert changed()


# --- broken folders


def break_job(folder: Path, how: str) -> None:
    texts = {
        "no job.json": lambda: (folder / "job.json").unlink(),
        "no state.json": lambda: (folder / "state.json").unlink(),
        "half a file": lambda: (folder / "job.json").write_text('{"format": 1, "id"'),
        "a list": lambda: (folder / "state.json").write_text("[]"),
        "another id": lambda: change(folder / "job.json", id="20260101-000000-0000"),
        "a newer format": lambda: change(folder / "state.json", format=2),
        "a field of tomorrow": lambda: change(folder / "job.json", colour="red"),
        "an unknown status": lambda: change(folder / "state.json", status="dreaming"),
        "a strange device": lambda: change(folder / "job.json", device="cuda:0 --shell"),
        "a huge file": lambda: (folder / "job.json").write_bytes(b" " * (5 << 20)),
        "a spec that is no table": lambda: change(folder / "job.json", spec=[1]),
    }
    texts[how]()


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


BREAKS = {
    "no job.json": r"job\.json: found no such file",
    "no state.json": r"state\.json: found no such file",
    "half a file": r"job\.json: .*repair the file",
    "a list": r"found a list, expected a state as a table",
    "another id": r"job\.json: id: found '20260101-000000-0000', expected",
    "a newer format": r"format: found '2', expected 1",
    "a field of tomorrow": r"found 'colour' in a job; a newer version",
    "an unknown status": r"status: found 'dreaming', expected one of queued",
    "a strange device": r"device: found 'cuda:0 --shell', expected auto, cpu, mps or cuda:N",
    "a huge file": r"found 5242880 bytes, expected at most",
    "a spec that is no table": r"spec: found '\[1\]', expected a table",
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_job_is_listed_with_the_reason_and_harms_no_other(kept, how):
    whole, entry = add(kept, "whole"), add(kept, "broken")
    break_job(entry.folder, how)
    listed = {e.id: e for e in kept.entries()}
    assert listed[whole.id].state.status == "queued" and kept.queue() == [whole.id]
    state = listed[entry.id].state
    assert state.status == "failed" and not state.resumable
    with pytest.raises(BrokenJob, match=BREAKS[how]) as error:
        read_entry(entry.folder)
    assert str(error.value) == state.text
    with pytest.raises(BrokenJob):
        kept.resume(entry.id)
    assert kept.delete(entry.id).is_dir()


def test_folders_that_are_no_jobs_are_passed_over(kept, home):
    for name in ("notes", ".20260101-000000-0000.0123456789ab.tmp", "20260101-000000-000g"):
        (home / "jobs" / name).mkdir()
    assert kept.entries() == [] and kept.queue() == []


def test_a_full_disk_is_said_and_leaves_nothing(kept, home, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.files, "write_new", refuse)
    with pytest.raises(SpectralError, match="queueing a job failed: found that the disk is full"):
        add(kept)
    assert list((home / "jobs").iterdir()) == []


def test_a_home_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpectralError, match="making the folder of jobs failed"):
        JobStore(tmp_path / "file")


# --- how jobs end


def settled(kept, code, **files):
    entry = kept.begin(add(kept).id, "cpu")
    for name, text in files.items():
        (entry.folder / name.replace("_", ".")).write_text(text)
    return kept.settle(entry.id, code).state


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (None, "interrupted", "The process is gone without a word"),
        (-9, "interrupted", "killed from outside (signal 9), perhaps because the machine ran out of memory."),
        (-11, "interrupted", "ended by signal 11 (SIGSEGV)."),
        (1, "failed", "ended with exit status 1 before it could say why."),
        (0xC0000005, "failed", "ended with exit status 0xc0000005 before"),
    ],
)
def test_a_child_that_died_without_a_word(kept, code, status, said):
    log = f"{settle.ATTEMPT}1\nof old\n{settle.ATTEMPT}2, now\nTraceback\n\n  KeyError: 'x'\n"
    state = settled(kept, code, child_log=log)
    assert state.status == status and said in state.text and state.reason == "killed"
    assert "No checkpoint had been saved, so resuming begins again." in state.text
    assert (" Its last lines were: Traceback / KeyError: 'x'" in state.text) == (status == "failed")
    assert "of old" not in state.text and state.ended is not None and not state.resumable


@pytest.mark.parametrize(
    ("reason", "status"),
    [("finished", "finished"), ("converged", "finished"), ("stopped", "stopped"), ("diverged", "failed"),
     ("out_of_memory", "failed"), ("failed", "failed")],
)  # fmt: skip
def test_a_child_that_said_how_it_ended(kept, reason, status):
    result = {"reason": reason, "text": "So it was.", "step": 9, "resumable": True, "adapter": "/a.safetensors"}
    state = settled(kept, -9, result_json=json.dumps(result))
    assert (state.status, state.reason, state.text, state.step) == (status, reason, "So it was.", 9)
    assert state.resumable == (status != "finished")
    assert state.adapter == ("/a.safetensors" if status == "finished" else None)


def test_a_child_killed_between_its_last_event_and_its_result(kept):
    entry = kept.begin(add(kept).id, "cpu")
    entry.run.mkdir()
    events = [
        {"event": "Saved", "path": "/a.safetensors", "file_bytes": 3},
        {"event": "Ended", "reason": "finished", "step": 4, "text": "Done.", "resumable": True},
    ]
    for time, status, adapter in ((entry.state.started - 5, "interrupted", None), (2e9, "finished", "/a.safetensors")):
        lines = (json.dumps({**event, "time": time}) + "\n" for event in events)
        (entry.run / "events.jsonl").write_text("".join(lines))
        state = settle.outcome(entry, -9)
        assert (state.status, state.adapter) == (status, adapter), "what an earlier attempt said does not count"


def test_a_child_is_known_by_its_heartbeat_before_its_host_has_noted_it(kept):
    entry, this = kept.begin(add(kept).id, "cpu"), processes.this()
    assert settle.child(entry) is None
    for process, expected in ((this, this), (replace(this, started=this.started - 60), None)):
        (entry.folder / "heartbeat").write_text(json.dumps(vars(process)))
        assert settle.child(entry) == expected
    for broken in ("", "[]", '{"pid": 1}'):
        (entry.folder / "heartbeat").write_text(broken)
        assert settle.child(entry) is None


def test_what_was_settled_stays(kept):
    entry = ended(kept, "finished", text="Well.")
    assert kept.settle(entry.id, 1) == entry


# --- several processes


MANY = """
import sys
from dataclasses import replace
from pathlib import Path
from spectral_adapters.trainer.jobs.store import JobStore
store = JobStore(Path(sys.argv[1]))
sys.stdin.read(1)
for i in range(12):
    made = store.add("train", f"{sys.argv[2]}-{i}", {"out": "x"})
    store.reorder([made.id])
    if i % 3 == 0:
        store.stop(made.id)
"""


def test_two_processes_at_once_lose_nothing(kept, home):
    both = [
        subprocess.Popen([sys.executable, "-c", MANY, str(home), name], stdin=subprocess.PIPE) for name in ("a", "b")
    ]
    for process in both:
        process.stdin.write(b"x")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    names = {entry.job.name: entry.state.status for entry in kept.entries()}
    assert sorted(names) == sorted(f"{who}-{i}" for who in "ab" for i in range(12))
    order = json.loads((home / "queue.json").read_text())
    assert sorted(order) == sorted(entry.id for entry in kept.entries() if entry.state.status == "queued")
    assert len(order) == 16 and not list(home.rglob("*.tmp"))


HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("x", end="", flush=True)
time.sleep(60)
"""


def test_a_lock_goes_with_its_process(kept, home, monkeypatch):
    command = [sys.executable, "-c", HOLD, str(home / "store.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.read(1)
        monkeypatch.setattr(store, "_WAIT", 0.2)
        with pytest.raises(SettingError, match="found it locked by another process"):
            add(kept)
        assert kept.entries() == [], "looking needs no lock"
        holder.kill()
    assert add(kept).state.status == "queued"


LIGHT = """
import sys
from spectral_adapters.trainer.jobs import child, cli, supervisor
heavy = {"torch", "diffusers", "transformers", "accelerate", "numpy", "PIL", "safetensors"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_a_host_that_only_looks_after_jobs_stays_light():
    subprocess.run([sys.executable, "-c", LIGHT], check=True, timeout=60)
