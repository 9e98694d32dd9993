"""The supervisor with real child processes: order, ends of every kind, a host killed in mid-training, exact resume."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import training
from filelock import FileLock

from spectral_adapters import BasisCache
from spectral_adapters.spectral.errors import SpectralError
from spectral_adapters.trainer.jobs import settle
from spectral_adapters.trainer.jobs import supervisor as supervising
from spectral_adapters.trainer.jobs.environment import PACK, child_environment, command
from spectral_adapters.trainer.jobs.host import CPU, Device, Standalone, find_devices
from spectral_adapters.trainer.jobs.job import Entry, Options
from spectral_adapters.trainer.jobs.store import JobStore
from spectral_adapters.trainer.jobs.supervisor import Supervisor
from spectral_adapters.trainer.resume import absolute

GPU = Device("cuda:0", "a GPU that may not be there")
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals; Windows has none")


class Recorder(Standalone):
    """A host that notes what it is told."""

    def __init__(self, idle: bool = True):
        self.free, self.released, self.seen = idle, 0, []

    def idle(self) -> bool:
        return self.free

    def release(self) -> None:
        self.released += 1

    def changed(self, entry: Entry) -> None:
        self.seen.append((entry.job.name, entry.state.status))


def wait(what: Callable[[], object], seconds: float = 240.0) -> object:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return answer


@pytest.fixture
def kept(tmp_path):
    return JobStore(tmp_path / "ein home")


@pytest.fixture
def supervise(kept):
    """Makes supervisors, and ends them and every child at the end."""
    made = []

    def make(host=None, devices=(CPU,), store=kept) -> Supervisor:
        made.append(Supervisor(store, host or Recorder(), devices))
        made[-1].start()
        return made[-1]

    yield make
    for entry in kept.active():
        kept.stop(entry.id, now=True)
    for supervisor in made:
        supervisor.close()


def bad(kept: JobStore, name: str, **changes) -> Entry:
    """A training whose child says at once what is wrong: its pictures are not there."""
    spec = {"base": "tiny", "images": str(kept.home / "no such folder"), "out": str(kept.home / f"{name}.safetensors")}
    return kept.add("train", name, spec, **changes)


def status(kept: JobStore, entry: Entry) -> str:
    return kept.entry(entry.id).state.status


# --- without a training


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(supervising, "_IDLE", 0.1)
    monkeypatch.setattr(supervising, "_WATCH", 0.1)


def test_jobs_run_one_after_another_and_say_why_they_failed(kept, supervise, quick):
    jobs = [bad(kept, name) for name in "abc"]
    kept.reorder([jobs[2].id])
    host = Recorder()
    supervise(host)
    wait(lambda: sum(status == "failed" for _, status in host.seen) == 3)
    changes = [(name, status) for name in "cab" for status in ("running", "failed")]
    assert list(dict.fromkeys(host.seen)) == changes, "in the queue's order, never two at once"
    for entry in map(kept.entry, (job.id for job in jobs)):
        assert entry.state.text == f"images: {kept.home / 'no such folder'} is not a folder; " + (
            "give the folder that holds the pictures"
        )
        assert entry.state.reason == "failed" and not entry.state.resumable and entry.state.process is None
    assert kept.queue() == [] and (kept.home / "no such folder").exists() is False


def test_devices_work_at_the_same_time_and_the_gpu_is_freed_before(kept, supervise, quick):
    unknown = bad(kept, "unknown", device="cuda:7")
    first = bad(kept, "gpu")  # a GPU is taken where there is one
    keeps = bad(kept, "keeps", device="cuda:0", options=Options(unload=False))
    third = bad(kept, "cpu", device="cpu")
    host = Recorder()
    supervise(host, (GPU, CPU))
    wait(lambda: all(status(kept, job) == "failed" for job in (first, keeps, third)))
    assert [kept.entry(job.id).state.device for job in (first, keeps, third)] == ["cuda:0", "cuda:0", "cpu"]
    assert host.released == 1
    waits = kept.entry(unknown.id).state
    assert waits.status == "queued" and waits.text.startswith("Waits for cuda:7; found cuda:0, cpu.")


def test_a_job_that_waits_for_an_idle_host_lets_others_pass(kept, supervise, quick):
    patient, other = bad(kept, "patient", options=Options(wait_idle=True)), bad(kept, "other")
    host = Recorder(idle=False)
    supervise(host)
    wait(lambda: status(kept, other) == "failed")
    assert kept.entry(patient.id).state.text == "Waits until Spectral Adapters has nothing to do."
    host.free = True
    wait(lambda: status(kept, patient) == "failed")


def test_what_is_queued_later_by_another_process_is_seen(kept, supervise, quick):
    supervisor = supervise()
    wait(lambda: supervisor.leads)
    entry = bad(JobStore(kept.home), "later")
    wait(lambda: status(kept, entry) == "failed")


def test_a_second_supervisor_waits_and_takes_over(kept, supervise, quick):
    first = supervise()
    wait(lambda: first.leads)
    second = supervise()
    wait(lambda: second.status()["text"])
    assert not second.leads and second.status()["alive"]
    assert second.status()["text"].startswith(f"The queue is run by Spectral Adapters (process {os.getpid()} on ")
    first.close()
    assert not first.status()["alive"]
    wait(lambda: second.leads)
    entry = bad(kept, "after")
    wait(lambda: status(kept, entry) == "failed")
    assert second.status() == {"alive": True, "text": "Runs the queue."}


def test_what_a_full_disk_refuses_is_tried_again(kept, supervise, quick, monkeypatch):
    begin, refused = JobStore.begin, []

    def full(store, id, device):
        if not refused:
            refused.append(id)
            raise SpectralError("the disk is full")
        return begin(store, id, device)

    monkeypatch.setattr(JobStore, "begin", full)
    entry = bad(kept, "waits")
    supervise()
    wait(lambda: status(kept, entry) == "failed")
    assert refused == [entry.id]


def test_a_host_that_fails_is_said_and_lets_another_work(kept, supervise, quick, monkeypatch):
    class Broken(Recorder):
        def changed(self, entry):
            raise ValueError("no pages")

    uncaught = []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    entry = bad(kept, "begun")
    broken = supervise(Broken())
    wait(lambda: uncaught)
    wait(lambda: not broken.status()["alive"])
    assert "An error ended it: ValueError: no pages. Restart the host." in broken.status()["text"]
    supervise()
    assert wait(lambda: status(kept, entry) in ("failed", "interrupted"))


@posix
def test_children_that_are_ended_from_outside(kept, supervise, quick, tmp_path):
    pictures = training.write_pictures(tmp_path / "pictures")
    supervise(devices=(CPU, GPU))
    killed, crashed = (
        kept.add("train", name, training.spec(pictures, name).as_json(), device=device)
        for name, device in (("killed", "cpu"), ("crashed", "cuda:0"))
    )
    for entry, number in ((killed, signal.SIGKILL), (crashed, signal.SIGSEGV)):
        process = wait(lambda entry=entry: kept.entry(entry.id).state.process)
        os.kill(process.pid, number)
    wait(lambda: status(kept, killed) == status(kept, crashed) == "interrupted")
    assert "killed from outside (signal 9), perhaps because" in kept.entry(killed.id).state.text
    assert "ended by signal 11 (SIGSEGV)." in kept.entry(crashed.id).state.text
    assert kept.resume(killed.id).state.text == "Will begin again."
    process = wait(lambda: kept.entry(killed.id).state.process)
    state = kept.stop(killed.id, now=True).state
    assert state.status == "stopped" and state.attempts == 2 and process.is_gone()


def test_a_child_without_a_job_to_do_ends(kept):
    entry = bad(kept, "queued")
    done = subprocess.run(command(entry.folder), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "this job is queued; expected the supervisor to have begun it" in done.stdout
    kept.begin(entry.id, "cpu")
    with FileLock(entry.folder / "child.lock"):
        done = subprocess.run(command(entry.folder), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "found another process at work on this job" in done.stdout
    (entry.folder / "job.json").write_text("{")
    subprocess.run(command(entry.folder), check=True, timeout=60)
    assert "repair the file" in (entry.folder / "result.json").read_text()


def test_jobs_of_a_host_that_is_gone_are_interrupted(kept, supervise, quick):
    entry = kept.begin(bad(kept, "gone").id, "cpu")
    supervise()
    wait(lambda: status(kept, entry) == "interrupted")
    assert "gone without a word" in kept.entry(entry.id).state.text


def test_the_devices_of_this_machine(monkeypatch):
    known = find_devices()
    assert known[-1] == CPU
    monkeypatch.delitem(sys.modules, "torch")
    assert find_devices() == known, "asked by a process of its own"
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_name="GPU {}".format)
    mps = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, backends=SimpleNamespace(mps=mps)))
    assert [device.id for device in find_devices()] == ["cuda:0", "cuda:1", "mps", "cpu"]
    assert find_devices()[1].label == "GPU 1"


# --- the environment

HOST = {
    "PATH": "/bin", "HOME": "/home/me", "LC_ALL": "C", "OMP_NUM_THREADS": "2", "HF_HOME": "/hf", "Path": "C:\\",
    "SPECTRAL_ADAPTERS_CACHE": "/cache", "CUDA_HOME": "/cuda", "SystemRoot": "C:\\Windows",
    "HF_TOKEN": "hf_secret", "AWS_SECRET_ACCESS_KEY": "x", "SPECTRAL_ADAPTERS_TOKEN": "x", "TORCH_API_KEY": "x",
    "SSH_AUTH_SOCK": "/ssh", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "GITHUB_TOKEN": "x", "http_proxy": "x",
}  # fmt: skip


def test_a_child_gets_what_it_needs_and_no_secret():
    made = child_environment(HOST, "cpu")
    needed = {"PATH", "HOME", "LC_ALL", "OMP_NUM_THREADS", "HF_HOME", "Path", "SPECTRAL_ADAPTERS_CACHE", "CUDA_HOME"}
    assert made.keys() == needed | {"SystemRoot", "PYTHONUNBUFFERED", "PYTHONIOENCODING"}


@pytest.mark.parametrize(
    ("seen", "device", "expected"),
    [(None, "cuda:1", "1"), ("4,6", "cuda:1", "6"), ("GPU-ab, GPU-cd", "cuda:0", "GPU-ab"), ("3", "cpu", "3")],
)
def test_a_child_sees_its_gpu_alone(seen, device, expected):
    host = {} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}
    assert child_environment(host, device)["CUDA_VISIBLE_DEVICES"] == expected


def test_a_child_is_started_without_a_shell(tmp_path):
    assert command(tmp_path / "a; rm") == [sys.executable, str(PACK), "job-child", str(tmp_path / "a; rm")]


# --- one training, through everything that may happen to it

STEPS = 24
ASIDE = {"checkpoint_every": 4, "steps": STEPS, "method": "svdiff", "batch_size": 1, "keep": 2}


@contextlib.contextmanager
def hosting(kept: JobStore, secret: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A host process that works on the queue; killed at the end of the block."""
    command = [sys.executable, str(PACK), "jobs", "run", "--home", str(kept.home), "--on", "cpu"]
    with subprocess.Popen(command, env={**os.environ, **secret}, stdout=subprocess.DEVNULL) as host:
        try:
            yield host
        finally:
            host.kill()


def steps_done(entry: Entry) -> int:
    from spectral_adapters.trainer.jobs.course import Course

    return Course(entry.run).summary()["step"]


def freeze(kept: JobStore, entry: Entry, least: int) -> psutil.Process:
    """The job's child, held after a step from `least` on."""
    wait(lambda: steps_done(entry) >= least)
    process = psutil.Process(kept.entry(entry.id).state.process.pid)
    process.suspend()
    return process


def stop_and_resume(kept: JobStore, entry: Entry) -> None:
    """A stop of a training that runs saves first."""
    before = kept.entry(entry.id).state.step
    wait(lambda: steps_done(entry) > before)
    assert kept.stop(entry.id).state.status == "stopping"
    wait(lambda: status(kept, entry) == "stopped")
    stopped = kept.entry(entry.id).state
    assert stopped.resumable and before < stopped.step < STEPS
    assert stopped.text.startswith(f"Stopped at step {stopped.step} of {STEPS}, resumable.")
    kept.resume(entry.id)


@posix
@pytest.mark.parametrize("stops", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_host_killed_a_child_killed_and_in_the_end_the_same_adapter(kept, supervise, tmp_path, monkeypatch, stops):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process, for equal sums
    pictures = training.write_pictures(tmp_path / "pictures")
    spec = training.spec(pictures, "dog", **ASIDE)
    entry = kept.add("train", "dog", absolute(spec).as_json(), device="cpu")
    behind = bad(kept, "behind")
    secret = {"HF_TOKEN": "hf_do_not_pass_on", "WANDB_API_KEY": "w_do_not_pass_on"}
    with hosting(kept, secret) as host:
        wait(lambda: status(kept, entry) == "running")
        waiting = supervise()  # passive, in this process
        child = freeze(kept, entry, 5)
        environment = Path(f"/proc/{child.pid}/environ").read_bytes() if sys.platform == "linux" else b"PATH="
        assert b"do_not_pass_on" not in environment and b"PATH=" in environment
        assert child.nice() >= 10 and not waiting.leads and child.ppid() == host.pid

    # The host is gone; the child goes on, and the other supervisor takes it over.
    wait(lambda: waiting.leads)
    assert wait(waiting.busy) == {"cpu": entry.id} and status(kept, entry) == "running"
    before = steps_done(entry)
    child.resume()
    wait(lambda: steps_done(entry) > before)
    assert status(kept, behind) == "queued", "one at a time, also after the host's end"

    # The child is killed: it goes on from the last checkpoint, the job behind it runs first.
    freeze(kept, entry, 9).kill()
    wait(lambda: status(kept, entry) == "interrupted")
    state = kept.entry(entry.id).state
    saved, _ = settle.checkpoint(kept.entry(entry.id))
    assert saved in (state.step // 4 * 4, state.step // 4 * 4 - 4)  # it may have been killed while it saved
    assert state.resumable and f"Resuming goes on from step {saved}, the last complete checkpoint." in state.text
    wait(lambda: status(kept, behind) == "failed")
    assert kept.resume(entry.id).state.text == f"Will go on from step {saved}."
    waiting.wake()

    if stops:
        stop_and_resume(kept, entry)
        waiting.wake()
    wait(lambda: status(kept, entry) == "finished")
    done = kept.entry(entry.id).state
    assert (done.adapter, done.step, done.attempts) == (str(spec.out), STEPS, 2 + stops)

    from spectral_adapters.trainer.loop import train

    straight = train(replace(spec, out=spec.out.with_name("straight.safetensors")), cache=BasisCache())
    assert training.same(
        training.state(replace(spec, run=entry.run), STEPS)["tensors"],
        training.state(replace(spec, run=straight.path.with_name("straight.training")), STEPS)["tensors"],
    )
