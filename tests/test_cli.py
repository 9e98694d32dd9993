"""The command line: train, info and convert as a user types them, its start-up time, and how it says no."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import spectral_adapters as sa
from spectral_adapters.__main__ import main, parser
from spectral_adapters.trainer.event_log import read_events
from spectral_adapters.trainer.models import load_base

TINY = "tiny"
ROOT = Path(sa.__file__).parent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        Image.new("RGB", (64, 64), (90 * i, 60, 200)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a photo of a sks mug", encoding="utf-8")
    return folder


def train(pictures: Path, out: Path, *more: str) -> int:
    return main(["train", *arguments(pictures, out), *more])


def arguments(pictures: Path, out: Path) -> list[str]:
    plain = ["--base", TINY, "--images", str(pictures), "--out", str(out), "--steps", "3", "--trigger", "sks"]
    return [*plain, "--batch-size", "1", "--targets", "cross-attention", "--cpu"]


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def files(pictures, tmp_path_factory) -> dict[str, Path]:
    """One file per profile: additive is portable, svdiff compact."""
    folder = tmp_path_factory.mktemp("files")
    made = {method: folder / f"{method}.safetensors" for method in ("additive", "svdiff")}
    for method, path in made.items():
        assert train(pictures, path, "--method", method) == 0
    return made


def run(*arguments: str, timeout: int = 120) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, cwd="/")


def test_help_is_quick_and_imports_no_torch():
    started = time.perf_counter()
    shown = run(sys.executable, "-X", "importtime", "-m", "spectral_adapters", "train", "--help")
    seconds = time.perf_counter() - started
    imported = {line.rsplit("|", 1)[-1].strip() for line in shown.stderr.splitlines()}
    assert shown.returncode == 0 and "--images" in shown.stdout
    assert not imported & {"torch", "numpy", "diffusers", "transformers"}
    # A busy machine gets some allowance; without torch it takes under 0.1 s.
    assert seconds < 2.0


def test_train_says_what_it_will_do_and_info_what_it_did(pictures, tmp_path, capsys):
    out = tmp_path / "mug.safetensors"
    assert train(pictures, out, "--rank", "4") == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("additive, columns top:4", "trainable parameters", "28 in the UNet", "3 of 1 picture", f"Saved {out}"):
        assert part in said, part
    assert "Finished 3 steps" in said and str(tmp_path / "mug.training" / "loss.png") in said
    assert main(["info", str(out)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert lines["method"] == "additive, columns top:4" and lines["layers"] == "28"
    assert lines["file"].startswith(f"{out.stat().st_size:,} bytes")


def test_info_as_json(files, capsys):
    assert main(["info", str(files["svdiff"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    adapter = sa.load(files["svdiff"])
    assert found["method"] == "svdiff" and found["profile"] == "compact" and found["trigger_words"] == ["sks"]
    assert found["parameters"] == sum(p.numel() for layer in adapter.layers.values() for p in layer.params.values())
    assert found["layers"] == found["probes"] == found["fingerprints"] == len(adapter.layers)
    assert found["file_bytes"] == files["svdiff"].stat().st_size


def test_convert_to_lora_is_exact_for_a_portable_file(files, tmp_path, capsys):
    out = tmp_path / "lora.safetensors"
    assert main(["convert", str(files["additive"]), "--to", "lora", str(out)]) == 0
    assert "What the export lost" in capsys.readouterr().out
    adapter, lora = sa.load(files["additive"]), load_file(out)
    for name, layer in adapter.layers.items():
        up, down = adapter.factors(name)
        up16, down16 = (lora[f"{name}.lora_{side}.weight"].float().flatten(1) for side in ("up", "down"))
        exported = up16 @ down16
        assert float((exported - up @ down).norm()) <= 2e-3 * float((up @ down).norm()), name
        assert exported.shape == layer.matrix


def test_convert_of_a_compact_file_needs_its_base(files, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    for kind in ("lora", "diff"):
        assert main(["convert", str(files["svdiff"]), "--to", kind, str(out), "--rank", "8"]) == 2
        assert "base" in capsys.readouterr().err and not out.exists()
    assert main(["convert", str(files["svdiff"]), "--to", "diff", str(out), "--base", TINY]) == 0
    adapter, diff, weights = sa.load(files["svdiff"]), load_file(out), load_base(TINY).weights()
    name = max(adapter.layers, key=lambda n: float(diff[f"{n}.diff"].float().norm()))
    change = adapter.delta(name, weights[name])
    assert torch.allclose(diff[f"{name}.diff"].float(), change, atol=2e-3 * float(change.abs().max()))
    truncated = tmp_path / "lora.safetensors"
    assert main(["convert", str(files["svdiff"]), "--to", "lora", str(truncated), "--base", TINY, "--rank", "8"]) == 0
    assert "residual" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nothing.safetensors"], "nothing.safetensors"),
        (["convert", "nothing.safetensors", "--to", "lora", "out.safetensors"], "nothing.safetensors"),
        (["train", "--base", TINY, "--images", "nowhere", "--out", "a.safetensors"], "nowhere"),
        (["train", "--base", TINY, "--images", ".", "--out", "a.ckpt"], "must end in .safetensors"),
        (["train", "--base", TINY, "--images", ".", "--out", "a.safetensors", "--method", "x"], "'x' is no method"),
    ],
)
def test_errors_are_one_sentence_and_status_two(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(files, pictures, capsys):
    before = files["additive"].read_bytes()
    assert train(pictures, files["additive"]) == 2
    assert main(["convert", str(files["additive"]), "--to", "lora", str(files["svdiff"])]) == 2
    assert files["additive"].read_bytes() == before
    capsys.readouterr()


def test_unknown_commands_and_options_are_refused():
    for typed in ([], ["fly"], ["train", "--fly"], ["info"], ["info", "--fly"], ["ask", "folder", "fly"]):
        with pytest.raises(SystemExit) as stopped:
            parser().parse_args(typed)
        assert stopped.value.code == 2


def test_the_pack_folder_runs_without_being_installed(files, tmp_path):
    """Under any folder name, with the folder off sys.path afterwards, where its `nodes` could shadow a host's."""
    pack = tmp_path / "any-name"
    pack.symlink_to(ROOT)
    shown = run(sys.executable, str(pack), "info", str(files["svdiff"]), "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["method"] == "svdiff"
    probe = (
        "import runpy, sys\n"
        f"sys.argv = [{str(pack)!r}, 'info', 'nothing.safetensors']\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stopped: print('status', stopped.code)\n"
        "print(sys.modules['spectral_adapters'].__file__)\n"
        f"print('on path', {str(ROOT)!r} in sys.path or {str(pack)!r} in sys.path, 'nodes' in sys.modules)\n"
    )
    shown = run(sys.executable, "-c", probe)
    assert shown.stdout.splitlines() == ["status 2", str(ROOT / "__init__.py"), "on path False False"], shown.stderr


def test_a_dry_run_says_the_plan_and_writes_nothing(pictures, tmp_path, capsys):
    out = tmp_path / "dry.safetensors"
    before = contents(tmp_path), contents(pictures)
    class_pictures = ("--class-prompt", "a photo of a mug", "--class-count", "9")
    assert train(pictures, out, "--dry-run", "--sample-prompt", "a mug", *class_pictures) == 0
    said = capsys.readouterr().out
    assert "Plan" in said and "trainable parameters" in said and "Training" not in said
    assert "9 class pictures are made before the training" in said
    assert (contents(tmp_path), contents(pictures)) == before


def test_a_dry_run_finds_what_is_wrong(pictures, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    assert train(tmp_path / "photos", tmp_path / "a.safetensors", "--dry-run") == 2
    assert "broken.png" in capsys.readouterr().err
    assert contents(tmp_path) == ["photos", "photos/broken.png"]


def test_a_spec_file_events_as_json_and_the_runs_folder(pictures, tmp_path):
    """As a program would: settings in a file, events read from stdout."""
    (tmp_path / "mug.toml").write_text(
        f'base = "tiny"\nimages = "{pictures.as_posix()}"\nout = "mug.safetensors"\ntrigger = "sks"\n'
        'steps = 9\nbatch_size = 1\ntargets = "cross-attention"\ndevice = "cpu"\n'
        'sample_prompts = ["a photo of a sks mug", "a red fish"]\nsample_steps = 2\nvalidate_every = 2\n',
        encoding="utf-8",
    )
    shown = run(
        sys.executable, "-m", "spectral_adapters", "train", str(tmp_path / "mug.toml"), "--json", "--steps", "4"
    )
    assert shown.returncode == 0, shown.stderr
    events = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [e["step"] for e in events if e["event"] == "Step"] == [1, 2, 3, 4], "the flag wins over the file"
    assert events[-1]["event"] == "Ended" and events[-1]["reason"] == "finished"
    logged = (tmp_path / "mug.training" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in logged] == [e["event"] for e in events]
    sampled = [e for e in events if e["event"] == "Sampled"]
    assert [e["step"] for e in sampled] == [0, 4] and all(Path(p).is_file() for e in sampled for p in e["paths"])
    with Image.open(tmp_path / "mug.training" / "sheet.png") as sheet:
        assert sheet.width > 2 * 256 and sheet.height > 2 * 256

    os.remove(tmp_path / "mug.training" / "loss.png")
    assert main(["plot", str(tmp_path / "mug.training")]) == 0
    assert (tmp_path / "mug.training" / "loss.png").is_file()
    assert main(["ask", str(tmp_path / "mug.training"), "stop"]) == 2


def test_an_error_ends_the_json_stream(pictures, tmp_path, capsys):
    assert train(pictures, tmp_path / "a.safetensors", "--json", "--resolution", "7") == 2
    shown = capsys.readouterr()
    last = json.loads(shown.out.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("Ended", "failed")
    assert shown.err == f"error: {last['text']}\n"


def test_resume_goes_on_with_a_run(pictures, tmp_path, capsys):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert train(pictures, first, "--run", str(tmp_path / "run")) == 0
    assert train(pictures, second, "--run", str(tmp_path / "run")) == 2, "a run is not begun over another"
    assert "--resume" in capsys.readouterr().err
    assert train(pictures, second, "--run", str(tmp_path / "run"), "--resume", "--steps", "5") == 0
    said = capsys.readouterr().out
    assert "Going on after step 3" in said and "steps: 3 -> 5" in said
    assert sa.load(second).metadata["ss_steps"] == "5"
    assert train(pictures, tmp_path / "third.safetensors", "--resume") == 2
    assert "Leave --resume out" in capsys.readouterr().err


def test_a_training_that_goes_wrong_has_status_one(pictures, tmp_path, capsys):
    out = tmp_path / "wrong.safetensors"
    assert train(pictures, out, "--steps", "20", "--lr", "1e30", "--clip", "1e30", "--warmup", "0") == 1
    shown = capsys.readouterr()
    assert "learning rate" in shown.out + shown.err and not out.exists()


class Training:
    """A training in a process of its own, long enough to be interrupted."""

    def __init__(self, pictures: Path, out: Path):
        typed = [sys.executable, "-m", "spectral_adapters", "train", *arguments(pictures, out), "--steps", "100000"]
        self.process = subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(self, start: str) -> None:
        line = next((line for line in self.process.stdout if line.lstrip().startswith(start)), None)
        assert line is not None, self.process.communicate(timeout=60)

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX systems do")
def test_ctrl_c_saves_what_there_is_and_says_how_to_go_on(pictures, tmp_path):
    out = tmp_path / "stopped.safetensors"
    with Training(pictures, out) as training:
        training.wait_for("step 1 of")
        training.process.send_signal(signal.SIGINT)
        said, errors = training.process.communicate(timeout=60)
    assert training.process.returncode == 0, said + errors
    assert "Stopping after this step" in errors and "Stopped at step" in said
    command = next(line for line in said.splitlines() if line.startswith("To go on with it:"))
    assert shlex.split(command.partition(":")[2]) == [
        "python", "-m", "spectral_adapters", "train", *arguments(pictures, out), "--steps", "100000", "--resume",
    ]  # fmt: skip
    (checkpoint,) = (tmp_path / "stopped.training" / "checkpoints").glob("step-*")
    assert int(sa.load(checkpoint / "adapter.safetensors").metadata["ss_steps"]) == int(checkpoint.name[-6:]) > 0
    assert not out.exists(), "the adapter's own name is kept for the finished one"


def test_a_running_training_can_be_asked(pictures, tmp_path, capsys):
    run_folder = tmp_path / "asked.training"
    typed = (pictures, tmp_path / "asked.safetensors", "--steps", "100000", "--sample-prompt", "a mug")
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, *typed, "--sample-steps", "1")
        try:
            while not training.done() and not any(
                e["event"] == "Step" for e in read_events(run_folder / "events.jsonl")
            ):
                time.sleep(0.05)
            for request in ("sample", "save", "stop"):
                assert main(["ask", str(run_folder), request]) == 0
        finally:
            (run_folder / "requests" / "stop").touch()
        assert training.result(timeout=60) == 0
    said = capsys.readouterr().out
    assert "Stopped at step" in said and said.count("Samples after step") == 1 and "Checkpoint after step" in said


@pytest.mark.slow
def test_it_runs_under_accelerate_launch_without_being_installed(pictures, tmp_path):
    """One process: for several on a CPU accelerate wants MPI; those are tried with torchrun (test_training.py)."""
    pack = tmp_path / "any-name"
    pack.symlink_to(ROOT)
    out = tmp_path / "launched.safetensors"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    shown = run(*launch, str(pack / "__main__.py"), "train", *arguments(pictures, out), "--json", timeout=300)
    assert shown.returncode == 0, shown.stderr
    events = [json.loads(line) for line in shown.stdout.splitlines() if line.startswith("{")]
    assert [e["step"] for e in events if e["event"] == "Step"] == [1, 2, 3] and sa.load(out).layers


def test_a_missing_package_is_named_with_the_way_to_get_it(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["train", "--base", "tiny", "--images", str(pictures), "--out", str(tmp_path / "a.safetensors")]) == 2
    shown = capsys.readouterr().err
    assert "diffusers" in shown and "requirements.txt" in shown and "Traceback" not in shown
