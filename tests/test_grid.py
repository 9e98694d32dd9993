"""Grids of checkpoint x strength x prompt: pictures as inference makes them, weights given back, stopped, gone on."""

import json
from dataclasses import asdict

import pytest
import torch
import training
from PIL import Image

import spectral_adapters as sa
from spectral_adapters.spectral.errors import Cancelled
from spectral_adapters.trainer import grid, samples
from spectral_adapters.trainer.dial import Dial
from spectral_adapters.trainer.event_log import read_events
from spectral_adapters.trainer.grid import grid_sheet, make_grid
from spectral_adapters.trainer.grid_request import GridRequest, adapters_of, data_digest, grid_request
from spectral_adapters.trainer.loop import train
from spectral_adapters.trainer.models import load_base
from spectral_adapters.trainer.samples import Look

PROMPTS = ("a photo of a sks mug on grass", "a photo of a red fish")


@pytest.fixture(scope="module")
def run(tmp_path_factory, base, cache):
    """A short training with three checkpoints and a held-out picture."""
    folder = tmp_path_factory.mktemp("run")
    spec = training.spec(
        training.write_pictures(folder / "pictures"),
        steps=6,
        lr=2e-3,
        checkpoint_every=2,
        validation=1,
        validate_every=2,
        sample_prompts=PROMPTS,
        sample_steps=2,
        sample_every=6,
        sample_guidance=3.0,
    )
    train(spec, base=base, cache=cache)
    return spec


def asked(run, **changes):
    plain = grid_request(
        run.run_folder, run.as_json(), run.out, {"strengths": [0, 0.5, 1], "checkpoints": [2, "final"]}
    )
    return {**plain, "device": "cpu", **changes}


def pixels(path):
    with Image.open(path) as picture:
        return picture.tobytes()


def bits(base):
    return {name: weight.detach().clone() for name, weight in base.weights().items()}


def adapter_for(base, method, **settings):
    """An adapter with a change large enough to be seen, on the tiny base's cross-attention."""
    _, adapter = sa.inject(base.unet, method, "cross-attention", prefix="lora_unet_", **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            if method == "soda" and not name.endswith("delta"):
                noise = 0.1 * torch.randn(p.shape, generator=generator)
                p.copy_(torch.matrix_exp(noise - noise.T))
            else:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    adapter.remove()
    return adapter


@pytest.mark.parametrize("room", [None, 0])
@pytest.mark.parametrize("method", training.METHODS)
def test_the_dial_gives_every_strength_and_the_weights_back(base, cache, method, room):
    before = bits(base)
    adapter = adapter_for(base, method, cache=cache)
    dial = Dial(base, adapter.layers, cache=cache, room=room)
    report = dial.mount(adapter)
    assert len(report.layers) == len(adapter.layers)
    whole = {name: adapter.delta(name, before[name], cache=cache) for name in adapter.layers}
    for strength in (1.0, -0.5, 1.25, 0.5):
        dial.turn(strength)
        for name, weight in base.weights().items():
            expected = before[name] + strength * whole[name] if name in whole else before[name]
            torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=2e-6)
    dial.turn(0)
    assert training.same(bits(base), before)
    dial.turn(1.0)
    dial.restore()
    assert training.same(bits(base), before)


def test_the_dial_leaves_nothing_of_the_last_adapter(base, cache):
    before = bits(base)
    one, other = adapter_for(base, "additive", cache=cache), adapter_for(base, "svdiff", cache=cache)
    kept, gone = list(other.layers)[:2], list(one.layers)[2]
    other.layers = {name: other.layers[name] for name in kept}
    dial = Dial(base, {*one.layers, *other.layers}, cache=cache)
    dial.mount(one)
    dial.turn(1.0)
    dial.mount(other)
    assert training.same(bits(base), before)
    dial.turn(1.0)
    now = bits(base)
    assert torch.equal(now[gone], before[gone]) and not torch.equal(now[kept[0]], before[kept[0]])
    dial.restore()


def test_a_dial_that_is_stopped_gives_the_weights_back(base, cache):
    before = bits(base)
    adapter = adapter_for(base, "svdiff", cache=cache)
    stopping = False
    dial = Dial(base, adapter.layers, cache=cache, room=0, stop=lambda: stopping)
    dial.mount(adapter)
    stopping = True
    with pytest.raises(Cancelled):
        dial.turn(0.5)
    assert training.same(bits(base), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_in_every_precision(dtype):
    half = load_base("tiny", dtype=dtype)
    with torch.no_grad():
        for i, weight in enumerate(half.weights().values()):
            if i % 2:
                weight.mul_(1.0001)  # no longer a number that fp16 holds
    adapter = adapter_for(load_base("tiny"), "additive")
    before = bits(half)
    dial = Dial(half, adapter.layers)
    dial.mount(adapter)
    dial.turn(1.0)
    assert not training.same(bits(half), before)
    dial.restore()
    assert training.same(bits(half), before)


@pytest.fixture(scope="module")
def made(run, base, cache, tmp_path_factory):
    """(folder, events, request) of a finished grid."""
    folder, heard = tmp_path_factory.mktemp("made"), training.Steps()
    before = bits(base)
    request = asked(run)
    done = make_grid(request, folder, heard, base=base, cache=cache)
    assert done.reason == "finished" and done.path == folder / "sheet.png"
    assert training.same(bits(base), before)
    return folder, heard, request


def test_every_picture_is_what_inference_makes(made, run, base):
    folder, _, request = made
    look, seen = Look((64, 64), 2, 3.0), samples.shots(PROMPTS, run.sample_seed)
    plain = samples.sample(base, seen, look)
    for p in range(2):
        assert pixels(folder / "grid" / f"base-p{p}.png") == plain[p].tobytes()
    for c, row in enumerate(request["adapters"]):
        fresh = load_base("tiny")
        sa.merge(sa.load(row["path"]), fresh.unet, prefix="lora_unet_")
        for p, picture in enumerate(samples.sample(fresh, seen, look)):
            found = pixels(folder / "grid" / f"c{c}-s2-p{p}.png")
            apart = torch.tensor(list(found), dtype=torch.int16) - torch.tensor(list(picture.tobytes()))
            assert int(apart.abs().max()) <= 1, "merged at once or on a dial: the same but for one rounding"
            assert found != pixels(folder / "grid" / f"c{c}-s1-p{p}.png") != plain[p].tobytes()
    with Image.open(folder / "grid" / "c1-s1-p0.png") as picture:
        assert picture.info["strength"] == "0.5" and picture.info["adapter"] == "step 6, best, final"
        assert picture.info["prompt"] == PROMPTS[0] and picture.info["seed"] == str(run.sample_seed)


def test_the_final_row_is_what_the_run_sampled_at_its_end(made, run):
    """The same prompts, seed and settings: training's own sample of the last step, but for roundings."""
    folder, _, _ = made
    own = torch.tensor(list(pixels(run.run_folder / "samples" / "step-000006-01.png")), dtype=torch.int16)
    again = torch.tensor(list(pixels(folder / "grid" / "c1-s2-p0.png")))
    assert float((own - again).abs().float().mean()) < 1.0


def test_its_table_names_every_cell(made):
    folder, _, request = made
    table = json.loads((folder / "grid.json").read_text())
    axes = table["axes"]
    assert axes["strengths"] == [0.0, 0.5, 1.0] and axes["prompts"] == list(PROMPTS) and axes["seed"] == 1
    assert [(row["step"], row["best"], row["final"]) for row in axes["checkpoints"]] == [
        (2, False, False),
        (6, True, True),
    ]
    assert all(0 < row["loss"] < 1 for row in axes["checkpoints"])
    places = {(cell["checkpoint"], cell["strength"], cell["prompt"]): cell["name"] for cell in table["cells"]}
    assert len(places) == len(table["cells"]) == 2 * 3 * 2
    assert table["made"] == table["total"] == GridRequest.from_json(request).pictures == 10 == len(set(places.values()))
    assert places[0, 0, 1] == places[1, 0, 1], "strength 0 is the base whatever the checkpoint"
    assert {path.name for path in (folder / "grid").iterdir()} == set(places.values())
    assert not any("path" in row for row in axes["checkpoints"]), "pages need no paths"


def test_its_events_are_logged(made):
    folder, heard, _ = made
    logged = list(read_events(folder / "events.jsonl"))
    assert [event["event"] for event in logged] == [type(event).__name__ for event in heard.events]
    assert heard.count("Sampled") == 10 and heard.events[-1].reason == "finished"
    assert [event.done for event in heard.of("Progress")] == list(range(1, 11))
    assert heard.of("Sampled")[0].step == 0 and heard.of("Sampled")[-1].step == 6


def test_its_sheet_has_a_picture_in_every_place(made):
    folder, _, _ = made
    small = grid_sheet(folder, cell=64)
    with Image.open(folder / "sheet.png") as shown:
        assert shown.size[0] == 2 * 24 + 3 * (224 + 12) - 12
    assert small.size[0] == 2 * 24 + 3 * (64 + 12) - 12
    (folder / "elsewhere").mkdir()
    table = json.loads((folder / "grid.json").read_text())
    table["cells"] = table["cells"][:-1]
    (folder / "elsewhere" / "grid.json").write_text(json.dumps(table))
    (folder / "elsewhere" / "grid").symlink_to(folder / "grid")
    partly = grid_sheet(folder / "elsewhere", cell=64)
    assert partly.size == small.size and partly.tobytes() != small.tobytes()


def test_it_stops_between_pictures_and_goes_on(made, base, cache, tmp_path):
    whole, _, request = made
    heard = training.Steps()
    done = make_grid(request, tmp_path, heard, lambda: heard.count("Sampled") >= 4, base=base, cache=cache)
    assert done.reason == "stopped" and done.resumable and "4 of 10" in done.text
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "grid").iterdir()}
    table = json.loads((tmp_path / "grid.json").read_text())
    assert len(kept) == 4 == table["made"] and not (tmp_path / "sheet.png").exists()
    heard = training.Steps()
    assert make_grid({**request, "device": "auto"}, tmp_path, heard, base=base, cache=cache).reason == "finished"
    assert heard.count("Sampled") == 6 and all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for path in (whole / "grid").iterdir():
        assert path.read_bytes() == (tmp_path / "grid" / path.name).read_bytes()
    with pytest.raises(sa.SettingError, match="another grid"):
        make_grid({**request, "seed": 9}, tmp_path, base=base, cache=cache)
    assert list(read_events(tmp_path / "events.jsonl"))[-1]["reason"] == "failed"


def test_a_file_named_stop_stops_it(made, base, cache, tmp_path):
    _, _, request = made

    def listen(event):
        if type(event).__name__ == "Sampled":
            (tmp_path / "requests" / "stop").touch()

    done = make_grid(request, tmp_path, listen, base=base, cache=cache)
    assert done.reason == "stopped" and len(list((tmp_path / "grid").iterdir())) == 1


def test_a_full_memory_is_said_and_can_be_gone_on_from(made, base, cache, tmp_path, monkeypatch):
    _, _, request = made

    def full(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(grid, "sample", full)
        done = make_grid(request, tmp_path, base=base, cache=cache)
    assert done.reason == "out_of_memory" and done.resumable and "smaller" in done.text


def test_an_adapter_that_cannot_be_read_is_said_before_any_picture(made, base, tmp_path):
    _, _, request = made
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    rows = [*request["adapters"], {"path": str(broken), "step": 9, "label": "broken"}]
    with pytest.raises(sa.AdapterFileError, match="broken"):
        make_grid({**request, "adapters": rows}, tmp_path / "grid", base=base)
    ended = list(read_events(tmp_path / "grid" / "events.jsonl"))[-1]
    assert ended["event"] == "Ended" and ended["reason"] == "failed" and "broken" in ended["text"]
    assert list((tmp_path / "grid" / "grid").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strengths": []}, "strengths"),
        ({"strengths": [99]}, "strengths"),
        ({"strengths": [float("nan")]}, "strengths"),
        ({"strengths": [True]}, "strengths"),
        ({"prompts": []}, "prompts"),
        ({"prompts": ["x" * 501]}, "characters"),
        ({"prompts": [3]}, "prompts"),
        ({"prompts": ["a"] * 9}, "prompts"),
        ({"adapters": []}, "adapters"),
        ({"adapters": [{"step": 1}]}, "path"),
        ({"adapters": [{"path": "a", "shell": "b"}]}, "shell"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"sampling_steps": 0}, "steps"),
        ({"sampling_steps": 100_000}, "steps"),
        ({"size": [64]}, "width and height"),
        ({"size": 64}, "width and height"),
        ({"size": [64, 10_000]}, "size"),
        ({"guidance": "high"}, "guidance"),
        ({"base": ""}, "base"),
        ({"precision": "fp8"}, "precision"),
        ({"prediction": 3}, "prediction"),
        ({"command": "rm"}, "command"),
    ],
)
def test_what_cannot_be_made_is_refused(run, change, said):
    with pytest.raises(sa.SettingError, match=said):
        GridRequest.from_json({**asked(run), **change})


def test_a_request_comes_back_from_json(run):
    request = GridRequest.from_json(asked(run))
    assert GridRequest.from_json(json.loads(json.dumps(request.as_json()))) == request
    many = {**asked(run), "strengths": [1, 0, 1.0, 0.5, -0.0]}
    assert GridRequest.from_json(many).strengths == (0.0, 0.5, 1.0), "each once, in order"


def test_a_device_that_is_not_there_is_said(run, tmp_path):
    with pytest.raises(sa.SettingError, match="device"):
        make_grid(asked(run, device="cuda:99"), tmp_path / "a")
    with pytest.raises(sa.SettingError, match="fp16"):
        make_grid(asked(run, precision="fp16"), tmp_path / "b")


def test_a_size_that_the_base_cannot_make_is_said(run, base, tmp_path):
    with pytest.raises(sa.SettingError, match="divisible"):
        make_grid(asked(run, size=[100, 64]), tmp_path, base=base)


def test_a_run_offers_what_it_has_kept(run):
    rows = adapters_of(run.run_folder, run.out)
    assert [row.step for row in rows] == [2, 4, 6]
    assert [row.final for row in rows] == [False, False, True], "the result is the last checkpoint under another name"
    best = min(rows, key=lambda row: row.loss)
    assert [row for row in rows if row.best] == [best]
    assert rows[-1].path.name == "adapter.safetensors" and data_digest(run.out) == data_digest(rows[-1].path) != ""
    assert [row.final for row in adapters_of(run.run_folder, None)] == [False] * 3
    assert [row.final for row in adapters_of(run.run_folder, rows[-1].path)] == [False] * 3, "of a run cut short"


def test_a_result_without_its_checkpoint_is_a_row_of_its_own(run, tmp_path):
    other = tmp_path / "other.safetensors"
    adapter = sa.load(run.out)
    for layer in adapter.layers.values():
        layer.params = {name: p * 2 for name, p in layer.params.items()}
    sa.save(adapter, other)
    rows = adapters_of(run.run_folder, other)
    assert [(row.step, row.final) for row in rows] == [(2, False), (4, False), (6, False), (6, True)]
    assert rows[-1].path == other and rows[-1].loss is None


def test_what_is_not_asked_for_is_as_the_run_sampled(run):
    request = grid_request(run.run_folder, run.as_json(), run.out)
    assert len(request["adapters"]) == 3 and request["prompts"] == list(PROMPTS) and request["size"] == [64, 64]
    assert (request["sampling_steps"], request["guidance"], request["seed"]) == (2, 3.0, run.sample_seed)
    chosen = {"checkpoints": ["step-000004", 4, "final"], "seed": 7, "steps": 9, "size": None}
    named = grid_request(run.run_folder, run.as_json(), run.out, chosen)
    assert [row["step"] for row in named["adapters"]] == [4, 6] and named["seed"] == 7
    assert named["sampling_steps"] == 9 and named["size"] == [64, 64]
    untold = {**run.as_json(), "sample_prompts": []}
    assert grid_request(run.run_folder, untold, run.out)["prompts"] == ["a photo of sks"]
    with pytest.raises(sa.SettingError, match="prompts"):
        grid_request(run.run_folder, {**untold, "trigger": ""}, run.out)


@pytest.mark.parametrize("names", [["../../etc"], [3], [], "final", [None], [["final"]]])
def test_only_checkpoints_that_the_run_has_are_taken(run, names):
    with pytest.raises(sa.SettingError, match="checkpoint"):
        grid_request(run.run_folder, run.as_json(), run.out, {"checkpoints": names})
    with pytest.raises(sa.SettingError, match="base"):
        grid_request(run.run_folder, run.as_json(), run.out, {"base": "/etc/passwd"})


def test_a_run_without_anything_kept_is_said(run, tmp_path):
    with pytest.raises(sa.SettingError, match="no checkpoint"):
        grid_request(tmp_path, run.as_json(), None)


def test_many_checkpoints_are_thinned_and_the_best_stays(run):
    from spectral_adapters.trainer.grid_request import GridAdapter, _thinned

    rows = [GridAdapter(run.out, step, str(step), best=step == 7) for step in range(1, 21)]
    shown = _thinned(rows)
    assert (
        len(shown) == 6 and {1, 7, 20} <= {row.step for row in shown} and shown == sorted(shown, key=lambda r: r.step)
    )
    assert asdict(shown[0])["step"] == 1


def test_in_half_precision_changes_are_made_of_the_file_s_own_numbers(run, tmp_path, cache):
    request = asked(run, precision="bf16", strengths=[0, 1], prompts=list(PROMPTS[:1]))
    assert make_grid({**request, "adapters": request["adapters"][-1:]}, tmp_path, cache=cache).reason == "finished"
    plain = load_base("tiny")
    seen, look = samples.shots(PROMPTS[:1], run.sample_seed), Look((64, 64), 2, 3.0)
    merged = load_base("tiny")
    sa.merge(sa.load(run.out), merged.unet, prefix="lora_unet_")
    for name, base in (("base-p0.png", plain), ("c0-s1-p0.png", merged)):
        expected = samples.sample(base.cast(torch.bfloat16), seen, look)[0]
        assert pixels(tmp_path / "grid" / name) == expected.tobytes()
