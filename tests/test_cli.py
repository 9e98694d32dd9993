"""The command line: train, info and convert as a user types them, its start-up time, and how it says no."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import spectral_adapters as sa
from spectral_adapters.__main__ import main, parser
from spectral_adapters.install import missing
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
    plain = ["train", "--base", TINY, "--images", str(pictures), "--out", str(out), "--steps", "3", "--trigger", "sks"]
    return main([*plain, "--cpu", *more])


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
    assert train(pictures, out, "--rank", "4", "--targets", "cross-attention") == 0
    said = capsys.readouterr().out
    assert "additive, columns top:4" in said and "trainable parameters on 28 layers" in said and "3 steps" in said
    assert f"Saved {out}" in said and "Finished 3 steps" in said
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
        (["train", "--base", TINY, "--images", "nowhere", "--out", "a.safetensors"], "nowhere is not a folder"),
        (["train", "--base", TINY, "--images", ".", "--out", "a.ckpt"], "must end in .safetensors"),
        (["train", "--base", TINY, "--images", ".", "--out", "a.safetensors", "--method", "x"], "'x' is unknown"),
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
    for arguments in ([], ["fly"], ["train", "--base", "tiny"], ["info"]):
        with pytest.raises(SystemExit) as stopped:
            parser().parse_args(arguments)
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


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX systems do")
def test_ctrl_c_saves_what_there_is(pictures, tmp_path):
    out = tmp_path / "stopped.safetensors"
    arguments = ["train", "--base", TINY, "--images", str(pictures), "--out", str(out), "--steps", "100000", "--cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "spectral_adapters", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Training"):
                time.sleep(1.0)
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, "".join(said)
    assert "Stopped at step" in "".join(said)
    assert int(sa.load(out).metadata["ss_steps"]) > 0


def test_install_names_what_is_missing(tmp_path):
    listed = tmp_path / "requirements.txt"
    listed.write_text("numpy\npillow  # pictures\n\nno_such_package_at_all\n", encoding="utf-8")
    assert missing(listed) == ["no_such_package_at_all"]
    shown = run(sys.executable, str(ROOT / "install.py"))
    assert (shown.returncode, shown.stdout) == (0, "")
