"""Exports as jobs: the file that `convert` writes, never over another one, and what it lost said."""

import pytest
import torch
import training
from adapters import adapter_of
from safetensors.torch import load_file

import spectral_adapters as sa
from spectral_adapters.__main__ import main
from spectral_adapters.spectral.errors import AdapterFileError
from spectral_adapters.trainer.event_log import read_events
from spectral_adapters.trainer.export_task import ExportRequest, export

NOWHERE = "no such model"  # a base that cannot be loaded: who needs it, fails


@pytest.fixture(scope="module")
def files(tmp_path_factory, base):
    """Adapters of the tiny base's cross-attention: additive (portable) and svdiff (compact)."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for method in ("additive", "svdiff"):
        _, adapter = sa.inject(base.unet, method, "cross-attention", prefix="lora_unet_")
        with torch.no_grad():
            for _, p in adapter.named_parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        made[method] = sa.save(adapter, folder / f"{method}.safetensors", base_name="tiny")
        adapter.remove()
    return made


def request(files, method, out, **more):
    return {"adapter": str(files[method]), "out": str(out), **more}


def test_a_portable_file_needs_no_base(files, tmp_path):
    heard, out = training.Steps(), tmp_path / "a.lora.safetensors"
    done = export(request(files, "additive", out, base=NOWHERE), tmp_path / "run", heard)
    assert (done.reason, done.path) == ("finished", out) and f"{out.stat().st_size:,} bytes" in done.text
    assert "residual 0.0" in done.text and "layers" in done.text
    assert heard.of("Saved")[0].path == out and heard.events[-1].text == done.text
    logged = [event["event"] for event in read_events(tmp_path / "run" / "events.jsonl")]
    assert logged == [type(event).__name__ for event in heard.events] and logged[-2:] == ["Saved", "Ended"]


def test_it_is_what_convert_writes(files, tmp_path):
    one, other = tmp_path / "one" / "a.safetensors", tmp_path / "other" / "a.safetensors"
    for kind, method, more in (("lora", "additive", []), ("lora", "svdiff", ["--rank", "4"]), ("diff", "svdiff", [])):
        for path in (one, other):
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
        options = {"rank": int(more[1])} if more else {}
        export(request(files, method, one, to=kind, base="tiny", **options), tmp_path / "run")
        assert main(["convert", str(files[method]), "--to", kind, "--base", "tiny", *more, str(other)]) == 0
        assert one.read_bytes() == other.read_bytes()


def test_a_difference_file_is_the_change(files, base, tmp_path):
    out = tmp_path / "a.safetensors"
    export(request(files, "additive", out, to="diff", base="tiny"), tmp_path / "run")
    adapter, weights = sa.load(files["additive"]), base.weights()
    stored = load_file(out)
    assert stored.keys() == {f"{name}.diff" for name in adapter.layers}
    for name in adapter.layers:
        expected = adapter.delta(name, weights[name])
        torch.testing.assert_close(stored[f"{name}.diff"].float(), expected, rtol=2e-3, atol=1e-4)


def test_a_truncated_export_says_what_it_lost(files, tmp_path):
    done = export(request(files, "svdiff", tmp_path / "a.safetensors", base="tiny", rank=2), tmp_path / "run")
    assert done.reason == "finished" and "residual" in done.text and "residual 0.00%" not in done.text


def test_nothing_is_ever_overwritten(files, tmp_path):
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(AdapterFileError, match="existing file"):
        export(request(files, "additive", out), tmp_path / "run")
    assert out.read_bytes() == b"mine" and [path.name for path in tmp_path.iterdir() if path.is_file()] == [out.name]
    ended = list(read_events(tmp_path / "run" / "events.jsonl"))[-1]
    assert ended["reason"] == "failed" and "existing file" in ended["text"]


def test_a_stop_before_the_work_writes_nothing(files, tmp_path):
    done = export(request(files, "additive", tmp_path / "a.safetensors"), tmp_path / "run", stop=lambda: True)
    assert done.reason == "stopped" and done.resumable and not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("svdiff", {}, "rank"),
        ("svdiff", {"rank": 4}, "base"),
        ("svdiff", {"rank": 0, "base": "tiny"}, "rank"),
        ("svdiff", {"rank": True}, "rank"),
        ("svdiff", {"rank": 10**9}, "rank"),
        ("svdiff", {"rank": 4, "base": NOWHERE}, NOWHERE),
        ("svdiff", {"to": "diff"}, "base"),
        ("additive", {"to": "gguf"}, "gguf"),
        ("additive", {"base": 5}, "base"),
        ("additive", {"adapter": ""}, "adapter"),
        ("additive", {"out": None}, "out"),
        ("additive", {"command": "rm"}, "command"),
        ("additive", {"adapter": "nothing.safetensors"}, "nothing"),
    ],
)
def test_what_cannot_be_exported_says_why(files, tmp_path, method, change, said):
    wanted = {**request(files, method, tmp_path / "a.safetensors"), **change}
    with pytest.raises(sa.SpectralError, match=said):
        export(wanted, tmp_path / "run")
    assert not (tmp_path / "a.safetensors").exists()


def test_layers_of_another_base_are_refused(files, tmp_path):
    adapter, _ = adapter_of("svdiff", {})
    path = sa.save(adapter, tmp_path / "other.safetensors")
    with pytest.raises(sa.SpectralError, match="lora_unet_a"):
        export(
            {"adapter": str(path), "out": str(tmp_path / "b.safetensors"), "base": "tiny", "rank": 2}, tmp_path / "r"
        )


def test_a_request_has_defaults(files, tmp_path):
    read = ExportRequest.from_json(request(files, "additive", tmp_path / "a.safetensors"))
    assert (read.to, read.base, read.rank) == ("lora", None, None)
