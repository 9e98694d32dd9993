"""A run's folder: what begins in it, who holds it, and what others may ask of it."""

import contextlib
import errno
import json
import os
import signal

import psutil
import pytest
import torch

from spectral_adapters.spectral.errors import SettingError, SpectralError
from spectral_adapters.trainer import processes, run_folder
from spectral_adapters.trainer.checkpoint import State
from spectral_adapters.trainer.run_folder import REQUESTS, Requests, RunFolder, ask, running

SPEC = {"base": "tiny", "images": "/pictures", "out": "/out.safetensors", "steps": 10}
GUARD = ".run.lock.guard"
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a forked child; Windows has no fork")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mit Leerzeichen" / "lauf 写真.training"


def begin(path, steps=(), spec=SPEC):
    """A run with checkpoints that nobody holds any more."""
    with RunFolder.create(path, spec) as run:
        for step in steps:
            run.checkpoints(3).save(State(step, {"p": torch.ones(3)}))
    return path


def test_a_new_run_has_its_folders_and_its_settings(path):
    with RunFolder.create(path, SPEC) as run:
        assert run.spec == SPEC and run.notices == [] and running(path) == os.getpid()
        assert run.events == path / "events.jsonl"
        assert run.samples.is_dir() and run.requests.is_dir()
    assert running(path) is None and {p.name for p in path.iterdir()} == {"spec.json", "samples", "requests", GUARD}


def test_settings_stay_as_they_were_and_resumes_are_noted(path):
    begin(path, [4])
    for step, steps in ((4, 20), (8, 30)):
        with RunFolder.resume(path) as run:
            run.record_resume(step, {**SPEC, "steps": steps}, [f"steps: 10 -> {steps}"])
            assert run.spec == SPEC
    lines = [json.loads(line) for line in (path / "resumes.jsonl").read_text().splitlines()]
    assert [(line["step"], line["spec"]["steps"], line["notices"]) for line in lines] == [
        (4, 20, ["steps: 10 -> 20"]),
        (8, 30, ["steps: 10 -> 30"]),
    ]


def test_a_folder_with_other_files_is_refused_untouched(path):
    path.mkdir(parents=True)
    (path / "thesis.docx").write_text("mine")
    with pytest.raises(SettingError, match="found a folder with other files, expected an empty folder"):
        RunFolder.create(path, SPEC)
    (path / "spec.json").write_text('{"openapi": "3.0"}')
    with pytest.raises(SettingError, match="found a folder with other files"):
        RunFolder.create(path, SPEC)
    assert {p.name for p in path.iterdir()} == {"thesis.docx", "spec.json"}
    with pytest.raises(SettingError, match="found a file, expected an empty folder"):
        RunFolder.create(path / "thesis.docx", SPEC)


def test_a_run_with_checkpoints_is_not_begun_again(path):
    begin(path, [4, 8])
    with pytest.raises(SettingError, match=r"found a run with checkpoints, the last step-000008.*--resume"):
        RunFolder.create(path, {**SPEC, "steps": 99})
    with RunFolder.resume(path) as run:
        assert run.spec == SPEC


def test_an_attempt_without_a_checkpoint_is_begun_again_with_its_events_set_aside(path):
    for attempt in range(3):
        with RunFolder.create(path, {**SPEC, "steps": attempt}) as run:
            assert run.spec["steps"] == attempt and len(run.notices) == (attempt > 0)
            run.events.write_text(f"{attempt}\n")
    texts = {p.name: p.read_text() for p in path.glob("events*")}
    assert texts == {"events-1.jsonl": "0\n", "events-2.jsonl": "1\n", "events.jsonl": "2\n"}
    assert "saved no checkpoint; its events are now in events-2.jsonl" in run.notices[0]


def test_resuming_what_is_no_run_is_refused(path):
    with pytest.raises(SettingError, match="found no such folder; expected the folder of an earlier run"):
        RunFolder.resume(path)
    path.mkdir(parents=True)
    with pytest.raises(SettingError, match=r"found no spec\.json in it"):
        RunFolder.resume(path)
    (path / "spec.json").write_text("{")
    with pytest.raises(SettingError, match="expected the settings of a run as JSON"):
        RunFolder.create(path, SPEC)
    with RunFolder.resume(path) as run, pytest.raises(SettingError, match="expected the settings of a run as JSON"):
        _ = run.spec


def test_what_killed_processes_leave_is_removed_and_nothing_else(path):
    begin(path, [4])
    (path / ".spec.json.0123456789ab.tmp").write_text("half")
    (path / "checkpoints" / ".step-000008.0123456789ab.tmp").mkdir()
    (path / "checkpoints" / "step-000008").mkdir()
    (path / ".hidden").write_text("the user's")
    with RunFolder.resume(path):
        pass
    assert {p.name for p in path.iterdir()} == {"spec.json", "samples", "requests", "checkpoints", GUARD, ".hidden"}
    assert {p.name for p in (path / "checkpoints").iterdir()} == {"step-000004", "step-000008"}


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_place_that_cannot_be_written_is_refused_in_words(path, code, monkeypatch):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(SpectralError, match=r"holding the run's folder failed: found that .*Choose another with run"):
        RunFolder.create(path, SPEC)


def test_a_disk_that_is_full_at_the_settings_lets_the_run_go(path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder.files, "write_bytes", refuse)
    with pytest.raises(SpectralError, match="beginning a run failed: found that the disk is full"):
        RunFolder.create(path, SPEC)
    assert running(path) is None
    monkeypatch.undo()
    begin(path)


# --- one process per run


@pytest.fixture
def children():
    """Collects forked children; none outlives its test, whatever fails."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _holder(path, children: list[int]) -> int:
    """A child that holds the run until it is killed."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            RunFolder.resume(path)
            os.write(tell, b"x")
            signal.pause()
        finally:
            os._exit(1)
    children.append(child)
    os.close(tell)
    assert os.read(ready, 1) == b"x"  # nothing, when the child has failed
    os.close(ready)
    return child


@forks
def test_two_processes_cannot_have_one_run_and_a_dead_one_lets_it_go(path, children):
    begin(path)
    child = _holder(path, children)
    for attempt in (lambda: RunFolder.resume(path), lambda: RunFolder.create(path, SPEC)):
        with pytest.raises(SettingError, match=f"found that process {child} is training there"):
            attempt()
    assert running(path) == child
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE and running(path) is None
    with RunFolder.resume(path) as run:
        assert run.notices == [
            f"The last training here (process {child}) ended without letting the run go; it is taken over."
        ]
    os.waitpid(child, 0)


def _contend(path, count: int, start: int, said: int, children: list[int]) -> None:
    """Fork children that try to take the run once `start` has bytes, say w (won) or l (lost) and stay alive."""
    for _ in range(count):
        child = os.fork()
        if child == 0:
            answer = b"?"
            try:
                os.read(start, 1)
                run_folder._lock(path / "run.lock")
                answer = b"w"
            except SettingError:
                answer = b"l"
            finally:
                os.write(said, answer)
                signal.pause()
                os._exit(0)
        children.append(child)


@forks
def test_of_many_processes_that_find_a_dead_ones_run_one_gets_it(path, children):
    begin(path, [4])
    for _ in range(8):
        _lock_of(path, boot="another")
        (start, go), (hear, said) = os.pipe(), os.pipe()
        _contend(path, 6, start, said, children)
        os.write(go, b"." * 6)
        answers = b"".join(os.read(hear, 1) for _ in children)
        while children:
            os.kill(children[-1], signal.SIGKILL)
            os.waitpid(children.pop(), 0)
        for end in (start, go, hear, said):
            os.close(end)
        assert sorted(answers) == sorted(b"wlllll")


def _lock_of(path, **changes):
    (path / "run.lock").write_text(json.dumps({**vars(processes.this()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [{"boot": "another"}, {"started": 0.0}, {"pid": 2**22 + 1}],
    ids=["another boot", "the number given out again", "no such process"],
)
def test_a_lock_of_a_process_that_is_gone_is_taken_over(path, changes):
    _lock_of(begin(path, [4]), **changes)
    with RunFolder.resume(path) as run:
        assert "is taken over" in run.notices[0] and running(path) == os.getpid()


def test_a_lock_of_another_machine_is_left_alone(path):
    _lock_of(begin(path, [4]), host="nas-2", boot="another")
    with pytest.raises(SettingError, match=r"on nas-2 is training there.*If it is certainly gone, delete .*run\.lock"):
        RunFolder.resume(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid":"x","started":0,"boot":"","host":""}'])
def test_a_damaged_lock_is_taken_over(path, text):
    (begin(path, [4]) / "run.lock").write_text(text)
    with RunFolder.resume(path) as run:
        assert "(process unknown) ended without letting the run go; it is taken over" in run.notices[0]
    assert running(path) is None


def test_closing_leaves_a_lock_that_is_another_ones(path):
    run = RunFolder.create(path, SPEC)
    _lock_of(path, pid=1)
    run.close()
    assert (path / "run.lock").exists()


# --- requests


def test_requests_are_heard_once_and_a_stop_for_good(path):
    with RunFolder.create(path, SPEC) as run:
        requests = Requests(run.requests)
        assert not (requests.stop() or requests.sample() or requests.save())
        for request in REQUESTS:
            ask(path, request)
        assert requests.sample() and requests.save() and requests.stop()
        assert not requests.sample() and not requests.save() and requests.stop()
        assert list(run.requests.iterdir()) == []
        assert Requests(run.requests, also=lambda: True).stop()


def test_requests_from_before_the_start_are_not_obeyed(path):
    begin(path, [4])
    (path / "requests" / "stop").touch()
    with RunFolder.resume(path) as run:
        assert not Requests(run.requests).stop()


def test_asking_where_nothing_trains_is_refused(path):
    with pytest.raises(SettingError, match="found no training running in it, expected one to ask for 'stop'"):
        ask(path, "stop")
    begin(path)
    with pytest.raises(SettingError, match="found no training running"):
        ask(path, "stop")
