"""The command `jobs`: every action, as text and as JSON, and what is refused with which exit status."""

import json

import pytest
import training

from spectral_adapters.__main__ import main
from spectral_adapters.trainer.jobs.job import write_state
from spectral_adapters.trainer.jobs.store import JobStore


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def jobs(home, capsys):
    """Runs `jobs` with arguments: (exit status, what it printed)."""

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["jobs", *map(str, arguments), "--home", str(home)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return call


@pytest.fixture
def spec_file(tmp_path):
    training.write_pictures(tmp_path / "pictures")
    path = tmp_path / "dog.toml"
    path.write_text('base = "tiny"\nimages = "pictures"\nout = "dog.safetensors"\nsteps = 8\n', encoding="utf-8")
    return path


def test_queueing_and_looking(jobs, home, spec_file, tmp_path):
    assert jobs("list") == (0, f"No jobs in {home}. Queue one with `jobs add`.\n")
    status, printed = jobs(
        "add", spec_file, "--set", "method=soda", "--set", "steps=9", "--on", "cuda:0", "--wait-idle"
    )
    (entry,) = JobStore(home).entries()
    assert status == 0 and printed == f"Queued dog as {entry.id}.\n"
    chosen = {"method": "soda", "steps": 9, "preset": "subject", "images": str(tmp_path / "pictures")}
    assert chosen.items() <= entry.job.spec.items()
    assert entry.job.device == "cuda:0" and entry.job.options.wait_idle and entry.job.options.unload
    assert entry.job.spec["out"] == str(tmp_path / "dog.safetensors")
    assert entry.id in jobs("list")[1] and "0 of 9" in jobs("list")[1]
    assert f"{entry.id}  dog: queued, 0 of 9" in jobs("show", entry.id)[1]
    shown = json.loads(jobs("show", entry.id, "--json")[1])
    assert (shown["status"], shown["steps"], shown["spec"]) == ("queued", 9, entry.job.spec)
    assert json.loads(jobs("list", "--json")[1])["queue"] == [entry.id]


def test_steering(jobs, home, spec_file):
    first, second = (json.loads(jobs("add", spec_file, "--name", name, "--json")[1])["id"] for name in "ab")
    assert jobs("order", second) == (0, f"{second}\n{first}\n")
    assert jobs("stop", first) == (0, f"{first} is stopped. Taken out of the queue before it began.\n")
    assert jobs("follow", first)[0] == 0
    assert json.loads(jobs("resume", first, "--allow", "images", "--json")[1])["status"] == "queued"
    assert JobStore(home).entry(first).state.allow == ("images",)
    assert jobs("delete", first) == (0, f"Moved {first} to {home / 'trash' / first}.\n")
    assert JobStore(home).queue() == [second]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "20260101-000000-0000"], "found no job '20260101-000000-0000'"),
        (["stop", "../../etc"], "expected the id of one"),
        (["add", "--set", "bse=tiny"], "'bse' is no setting of a training run; did you mean base?"),
        (["add", "--set", "base=tiny"], "images is missing"),
        (["add", "/no/such/file.toml"], "the settings /no/such/file.toml cannot be read"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(jobs, home, arguments, said):
    status, printed = jobs(*arguments)
    assert status == 2 and printed.startswith("error: ") and said in printed
    assert JobStore(home).entries() == []


def test_asking_a_job_that_does_not_run(jobs, spec_file):
    id = json.loads(jobs("add", spec_file, "--json")[1])["id"]
    for action in ("sample", "save"):
        assert jobs(action, id) == (2, f"error: dog ({id}) is queued; expected a training that runs.\n")


def test_results_are_made_of_trainings_that_have_some(jobs, home, spec_file):
    id = json.loads(jobs("add", spec_file, "--json")[1])["id"]
    for action in ("grid", "export"):
        status, printed = jobs(action, id)
        assert status == 2 and printed.startswith("error: ")
    assert len(JobStore(home).entries()) == 1


def test_exporting_a_training_and_keeping_a_checkpoint(jobs, home, spec_file, tmp_path):
    id = json.loads(jobs("add", spec_file, "--json")[1])["id"]
    store = JobStore(home)
    entry = store.begin(id, "cpu")
    (tmp_path / "dog.safetensors").touch()
    adapter = str(tmp_path / "dog.safetensors")
    write_state(entry.folder, entry.state.becomes("finished", adapter=adapter))
    made = store.entry(json.loads(jobs("export", id, "--rank", 4, "--json")[1])["id"])
    assert (made.job.kind, made.job.parent, made.job.spec["rank"]) == ("export", id, 4)
    checkpoint = entry.run / "checkpoints" / "step-000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "adapter.safetensors").write_bytes(b"x")
    assert jobs("keep", id, "step-000004") == (0, "It is there as dog-step-000004.safetensors.\n")
    assert (tmp_path / "dog-step-000004.safetensors").read_bytes() == b"x"
    assert made.job.spec["adapter"] == adapter and made.job.spec["out"] == str(tmp_path / "dog.lora.safetensors")


def test_running_the_queue(jobs, home, spec_file, tmp_path):
    id = json.loads(jobs("add", spec_file, "--json")[1])["id"]
    assert jobs("stop", id)[0] == 0 and jobs("run", "--on", "cpu") == (0, ""), "nothing waits"
    jobs("resume", id)
    (tmp_path / "pictures").rename(tmp_path / "moved")
    status, printed = jobs("run", "--on", "cpu")
    assert status == 1 and f"{id}  running: dog. Starts.\n{id}  failed: dog. images: " in printed
    assert jobs("follow", id)[0] == 1
