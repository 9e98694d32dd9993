"""Adapters in AUTOMATIC1111's Lora, on a small web UI of our own: its tags, its weights, its errors, its reloads."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from adapters import relative
from matrices import random_params
from safetensors.torch import save_file
from webui_fakes import A1111, NORMS, SD1, SD2, SDXL, HTTPException, weights_of

import spectral_adapters as sa
from spectral_adapters.hosts import changes, routes, settings
from spectral_adapters.hosts.automatic1111 import places
from spectral_adapters.spectral.gains import Gain, gain_fingerprint

METHODS = [("svdiff", {}), ("additive", {"rank": 4}), ("rotation", {"rank": 5}), ("soda", {})]
DOOR = Path(__file__).resolve().parents[1] / "scripts" / "spectral_webui.py"


@pytest.fixture(autouse=True)
def nothing_kept():
    changes.forget()


@pytest.fixture
def ui(monkeypatch, tmp_path):
    made = A1111(monkeypatch, tmp_path)
    made.start()
    return made


@pytest.fixture
def computed(monkeypatch):
    """How often a file was checked on a base."""
    counted, check = [], changes.check_layers
    monkeypatch.setattr(changes, "check_layers", lambda *a, **k: (counted.append(1), check(*a, **k))[1])
    return counted


def adapter_for(layers, name="svdiff", options=None, seed=0, of=None):
    """An adapter of a host's layers (or of those in `of`), made on its first checkpoint."""
    method = sa.method(name, **(options or {}))
    made = {}
    for i, (layer, weight) in enumerate(weights_of(layers, seed).items()):
        if weight.ndim < 2 or (of is not None and layer not in of):
            continue
        basis = sa.decompose(weight, method.columns)
        basis = basis.half_rounded() if method.portable else basis
        params = random_params(method, weight, basis, 0.05, 100 + i)
        made[layer] = sa.AdapterLayer(layer, tuple(weight.shape), params, None if basis.full else basis.columns, basis)
    return sa.Adapter(method, made)


def deltas(path, weights):
    read = sa.load(path)
    return {layer: read.delta(layer, weights[layer]) for layer in (*read.layers, *read.gains)}


def same(a, b):
    return all(torch.equal(a[layer], b[layer]) for layer in b)


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_strengths_scale_the_change_of_each_side(ui, name, options):
    path = ui.save(adapter_for(SD1, name, options), "dog")
    before = ui.model.now()
    expected = deltas(path, before)
    now, generation = ui.generate(("dog", 0.3, -0.8))
    for layer, change in expected.items():
        strength = 0.3 if layer.startswith("lora_te") else -0.8
        assert relative(now[layer] - before[layer], strength * change) < 2e-3
    assert generation.comments[0].startswith("dog: 5 of 5 layers applied, 0 unused. Match ")


def test_strength_0_and_no_tag_leave_every_bit(ui):
    ui.save(adapter_for(SD1), "dog")
    before = ui.model.now()
    ui.generate(("dog", 1, 1))
    for tags in ([("dog", 0, 0)], []):
        now, generation = ui.generate(*tags)
        assert same(now, before)
        assert generation.comments == []
    half, _ = ui.generate(("dog", 0, 1))
    assert torch.equal(
        half["lora_te_text_model_encoder_layers_0_mlp_fc1"], before["lora_te_text_model_encoder_layers_0_mlp_fc1"]
    )


def test_norms_that_lora_itself_does_not_find_are_shifted(ui):
    adapter, before = adapter_for(SD1, "svdiff", {"norms": True}), ui.model.now()
    for norm in NORMS:
        shift = torch.linspace(-0.1, 0.2, before[norm].shape[0])
        adapter.gains[norm] = Gain(norm, shift, gain_fingerprint(before[norm]))
    path = ui.save(adapter, "dog")
    now, generation = ui.generate(("dog", 0.5, 2))
    for norm, strength in zip(NORMS, (2, 0.5)):
        assert relative(now[norm] - before[norm], strength * deltas(path, before)[norm]) < 1e-3
    assert "2 of 2 norms" in generation.comments[0]
    assert same(ui.generate()[0], before)


def test_files_add_up_in_any_order_with_those_of_other_kinds(ui):
    before = ui.model.now()
    first, second = ui.save(adapter_for(SD1), "dog"), ui.save(adapter_for(SD1, "rotation", {"rank": 5}), "cat")
    other = {layer: 0.1 * torch.randn_like(weight) for layer, weight in before.items() if layer not in NORMS}
    save_file({f"{layer}.diff": change for layer, change in other.items()}, ui.path("lora"), {"ss_v2": "False"})
    ui.refresh()
    tags = [("lora", 1, 1), ("dog", 1, 1), ("cat", 0.5, 0.5)]
    forth, _ = ui.generate(*tags)
    back, _ = ui.generate(*reversed(tags))
    a, b = deltas(first, before), deltas(second, before)
    for layer in other:
        assert relative(forth[layer], back[layer]) < 1e-6
        assert relative(forth[layer] - before[layer], other[layer] + a[layer] + 0.5 * b[layer]) < 2e-3
    assert same(ui.generate()[0], before)


def test_a_file_is_computed_once_for_a_checkpoint(ui, computed):
    ui.save(adapter_for(SD1), "dog")
    for strength in (1, 0.5, 0.25):
        ui.generate(("dog", strength, strength))
    ui.generate()
    ui.generate(("dog", 1, 1))
    assert len(computed) == 1


def test_changes_that_no_prompt_uses_stay_only_within_the_memory_for_them(ui, computed):
    setattr(ui.opts, settings.KEPT, 0)
    for name in ("dog", "cat"):
        ui.save(adapter_for(SD1), name)
        ui.generate((name, 1, 1))
    assert ui.networks.networks_in_memory["dog"].spectral_chosen is None
    for strength in (1, 0.5):
        ui.generate(("dog", strength, strength), ("cat", 1, 1))
    assert len(computed) == 3  # the cat has stayed in use


def test_another_checkpoint_in_the_same_object_is_another_base(ui, tmp_path, computed):
    path = ui.save(adapter_for(SD1, "rotation", {"rank": 5}), "dog")
    ui.generate(("dog", 1, 1))
    (tmp_path / "two.ckpt").write_bytes(b"2")
    ui.model.load(tmp_path / "two.ckpt", seed=3)
    before = ui.model.now()
    now, _ = ui.generate(("dog", 1, 1))
    assert len(computed) == 2
    for layer, change in deltas(path, before).items():
        assert relative(now[layer] - before[layer], change) < 2e-3


def test_the_wrong_checkpoint_stops_the_generation_and_changes_nothing(ui, tmp_path):
    ui.save(adapter_for(SD1), "dog")
    ui.save(adapter_for(SD1, "rotation", {"rank": 5}), "cat")
    (tmp_path / "two.ckpt").write_bytes(b"2")
    ui.model.load(tmp_path / "two.ckpt", seed=3)
    before = ui.model.now()
    with pytest.raises(sa.WrongBaseError, match=r"its change would be off by about .* of 5 weights"):
        ui.generate(("cat", 1, 1), ("dog", 1, 1))
    assert same(ui.model.now(), before)
    assert same(ui.generate()[0], before)
    assert not same(ui.generate(("cat", 1, 1))[0], before)


def test_another_kind_of_model_is_told_as_in_comfyui(monkeypatch, tmp_path):
    ui = A1111(monkeypatch, tmp_path, SDXL)
    ui.start()
    ui.save(adapter_for(SD1, of=[layer for layer in SD1 if "unet" in layer]), "dog", base_name="dreamy")
    with pytest.raises(sa.WrongBaseError) as found:
        ui.generate(("dog", 1, 1))
    assert str(found.value) == (
        "this adapter was trained on Stable Diffusion 1.x (dreamy), the model here is SDXL. "
        "Load a checkpoint of Stable Diffusion 1.x, or choose another adapter."
    )


def test_a_refusal_in_hires_fix_stops_there_and_is_over_then(ui, tmp_path):
    ui.save(adapter_for(SD1), "dog")
    (tmp_path / "two.ckpt").write_bytes(b"2")
    ui.model.load(tmp_path / "two.ckpt", seed=3)
    with pytest.raises(sa.WrongBaseError):
        ui.generate(hires=[("dog", 1, 1)])
    generation = ui.generate()[1]
    assert "setup_conds" not in vars(generation)


def test_forced_it_applies_what_fits(ui, tmp_path):
    path = ui.save(adapter_for(SD1), "dog")
    (tmp_path / "two.ckpt").write_bytes(b"2")
    ui.model.load(tmp_path / "two.ckpt", seed=3)
    setattr(ui.opts, settings.MISMATCH, settings.FORCE)
    before = ui.model.now()
    now, _ = ui.generate(("dog", 1, 1))
    for layer, change in deltas(path, before).items():
        assert relative(now[layer] - before[layer], change) < 2e-3


@pytest.mark.parametrize("layers", [SD2, SDXL])
@pytest.mark.parametrize("parts", [("q", "v"), ("out",), ("q", "k", "v", "out")])
def test_parts_of_openclips_attention_are_changed_alone(monkeypatch, tmp_path, layers, parts):
    ui = A1111(monkeypatch, tmp_path, layers)
    ui.start()
    wanted = [layer for layer in layers if layer.endswith(tuple(f"_{part}_proj" for part in parts))]
    cross = next(layer for layer in layers if "attn2_to_k" in layer)
    path = ui.save(adapter_for(layers, "rotation", {"rank": 5}, of=[cross, *wanted]), "dog")
    before = ui.model.now()
    expected = deltas(path, before)
    now, _ = ui.generate(("dog", 1, 1))
    for layer in layers:
        if layer in expected:
            assert relative(now[layer] - before[layer], expected[layer]) < 2e-3
        else:
            assert torch.equal(now[layer], before[layer])
    assert same(ui.generate()[0], before)


def test_the_untouched_weight_is_found_while_networks_are_on(ui):
    before = ui.model.now()
    ui.save(adapter_for(SD1), "dog")
    ui.generate(("dog", 1, 1))
    found = {layer: place.untouched() for layer, place in places(ui.model).items()}
    assert found.keys() == before.keys()
    assert same(found, before)
    place = places(ui.model)["lora_te_text_model_encoder_layers_0_mlp_fc1"]
    place.module.fp16_weight = torch.zeros(40, 24)  # what the web UI keeps beside weights in fp8
    assert torch.equal(place.untouched(), torch.zeros(40, 24))


def test_a_refiner_of_the_same_kind_has_changes_of_its_own(ui, tmp_path, computed):
    path = ui.save(adapter_for(SD1, "rotation", {"rank": 5}), "dog")
    ui.generate(("dog", 1, 1))
    (tmp_path / "two.ckpt").write_bytes(b"2")
    ui.model.load(tmp_path / "two.ckpt", seed=3)
    before = ui.model.now()
    ui.forward()
    assert len(computed) == 2
    for layer, change in deltas(path, before).items():
        assert relative(ui.model.now()[layer] - before[layer], change) < 2e-3


def test_a_refiner_that_the_file_does_not_fit_stops_the_generation(ui, tmp_path):
    ui.save(adapter_for(SD1), "dog")
    save_file({f"{layer}.diff": torch.ones(shape) for layer, (_, shape) in SD1.items()}, ui.path("lora"))
    ui.refresh()
    ui.generate(("lora", 1, 1), ("dog", 1, 1))
    (tmp_path / "two.ckpt").write_bytes(b"2")
    ui.model.load(tmp_path / "two.ckpt", seed=3)
    before = ui.model.now()
    with pytest.raises(sa.WrongBaseError):
        ui.forward()
    assert same(ui.generate()[0], before)


def test_a_refiner_of_another_kind_stays_as_it_is(ui, monkeypatch, tmp_path):
    ui.save(adapter_for(SD1), "dog")
    ui.generate(("dog", 1, 1))
    second = tmp_path / "second"
    second.mkdir()
    other = A1111(monkeypatch, second, SDXL)
    other.networks.loaded_networks.extend(ui.networks.loaded_networks)
    before = other.model.now()
    other.forward()
    assert same(other.model.now(), before)


def test_an_interrupted_generation_ends_quietly_without_networks(ui):
    ui.save(adapter_for(SD1), "dog")
    ui.state.interrupted = True
    before = ui.model.now()
    assert same(ui.generate(("dog", 1, 1))[0], before)
    ui.state.interrupted = False
    assert not same(ui.generate(("dog", 1, 1))[0], before)


def test_progress_is_shown_where_the_pictures_is(ui):
    ui.save(adapter_for(SD1), "dog")
    ui.generate(("dog", 1, 1))
    assert ui.state.textinfo == "Spectral adapter dog: layer 5 of 5"


def test_start_again_registers_nothing_twice(ui, computed):
    ui.save(adapter_for(SD1), "dog")
    ui.start()
    ui.start()
    assert len(ui.networks.module_types) == 2
    assert len(ui.app.router.routes) == 3
    ui.generate(("dog", 1, 1))
    assert len(computed) == 1


def test_unloading_leaves_the_host_as_it_was(monkeypatch, tmp_path):
    ui = A1111(monkeypatch, tmp_path)
    lora, types = ui.extra.extra_network_registry["lora"], list(ui.networks.module_types)
    ui.start()
    assert ui.extra.extra_network_aliases == {"spectral": lora}
    assert "activate" in vars(lora)
    ui.unload()
    assert ui.networks.module_types == types
    assert ui.extra.extra_network_aliases == {}
    assert "activate" not in vars(lora)


def test_a_reload_of_the_scripts_serves_as_before(ui):
    path = ui.save(adapter_for(SD1), "dog")
    before = ui.model.now()
    ui.unload()
    ui.before_ui()  # Lora makes its extra network anew
    ui.start()
    now, _ = ui.generate(("dog", 1, 1))
    for layer, change in deltas(path, before).items():
        assert relative(now[layer] - before[layer], change) < 2e-3


def test_settings_have_labels_and_keep_what_the_user_chose(ui):
    assert [info.label for info in ui.opts.labels.values()] == [
        "Decompose weights on",
        "Memory for changes that were computed, in MB",
        "When a file was trained on another model",
    ]
    assert settings.current() == changes.Settings(torch.device("cpu"), 2 << 30, "refuse")
    setattr(ui.opts, settings.KEPT, 100)
    setattr(ui.opts, settings.DEVICE, settings.PROCESSOR)
    settings.register()
    assert settings.current().kept_bytes == 100 << 20


def test_the_details_of_a_file(ui):
    ui.save(adapter_for(SD1), "dog", trigger_words=("sks",))
    found = ui.app.call("GET", f"{routes.PREFIX}/{{name}}", "dog")
    assert (found["name"], found["method"], found["layers"], found["trigger_words"]) == ("dog", "svdiff", 5, ["sks"])
    assert str(ui.folder) not in str(found)


def test_the_match_of_a_file_and_why_it_does_not_fit(ui, tmp_path):
    ui.save(adapter_for(SD1), "dog")
    path = f"{routes.PREFIX}/{{name}}/match"
    found = ui.app.call("GET", path, "dog")
    assert (found["fits"], found["model"], found["match"]) == (True, "Stable Diffusion 1.x", pytest.approx(1))
    assert len(found["layers"]) == 5
    assert ui.lock.held == 1
    (tmp_path / "two.ckpt").write_bytes(b"2")
    ui.model.load(tmp_path / "two.ckpt", seed=3)
    assert ui.app.call("GET", path, "dog")["fits"] is False


@pytest.mark.parametrize("to", ["lora", "difference"])
def test_an_export_lies_beside_and_gives_the_same_change(ui, to):
    path = ui.save(adapter_for(SD1, "rotation", {"rank": 5}), "dog")
    found = ui.app.call("POST", f"{routes.PREFIX}/{{name}}/export", "dog", {"to": to, "name": "dog for all"})
    assert found["lost"] < 1e-3
    assert "dog for all" in ui.networks.available_networks
    exported = sa.open_source(ui.path("dog for all"))
    for layer, change in deltas(path, ui.model.now()).items():
        made = exported.change(layer, ui.model.now()[layer])
        made = made if isinstance(made, torch.Tensor) else made[0] @ made[1]
        assert relative(made, change.reshape(made.shape)) < 1e-3


def test_an_export_of_a_compact_file_takes_the_untouched_weights(ui):
    path = ui.save(adapter_for(SD1), "dog")
    before = ui.model.now()
    ui.generate(("dog", 1, 1))
    ui.app.call("POST", f"{routes.PREFIX}/{{name}}/export", "dog", {"to": "difference", "name": "dog-diff"})
    exported = sa.open_source(ui.path("dog-diff"))
    for layer, change in deltas(path, before).items():
        assert relative(exported.change(layer), change.reshape(change.shape[0], -1)) < 1e-3


def test_an_export_from_the_wrong_checkpoint_is_refused(ui, tmp_path):
    ui.save(adapter_for(SD1), "dog")
    (tmp_path / "two.ckpt").write_bytes(b"2")
    ui.model.load(tmp_path / "two.ckpt", seed=3)
    with pytest.raises(HTTPException, match="its change would be off by"):
        ui.app.call("POST", f"{routes.PREFIX}/{{name}}/export", "dog", {"to": "difference", "name": "dog-diff"})
    assert not ui.path("dog-diff").exists()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"to": "gif", "name": "x"}, "expected lora or difference"),
        ({"to": "lora", "name": "../x"}, "the new file's name"),
        ({"to": "lora", "name": "a/b"}, "the new file's name"),
        ({"to": "lora", "name": ".x"}, "the new file's name"),
        ({"to": "lora", "name": "x."}, "the new file's name"),
        ({"to": "lora", "name": 3}, "the new file's name"),
        ({"to": "lora", "name": "x", "rank": 0}, "expected 1 to 4096"),
        ({"to": "lora", "name": "x", "rank": True}, "expected 1 to 4096"),
        ({"to": "lora", "name": "x", "energy": 2}, "a share above 0"),
        ({"to": "difference", "name": "x", "rank": 4}, "always whole"),
        ({"to": "lora", "name": "x", "path": "/etc"}, "has no setting 'path'"),
        ({"to": "lora", "name": "dog"}, "existing file"),
    ],
)
def test_a_wrong_export_is_refused_and_writes_nothing(ui, wanted, said):
    ui.save(adapter_for(SD1, "rotation", {"rank": 5}), "dog")
    before = {path: path.read_bytes() for path in (ui.folder / "Lora").iterdir()}
    with pytest.raises(HTTPException, match=said) as found:
        ui.app.call("POST", f"{routes.PREFIX}/{{name}}/export", "dog", wanted)
    assert found.value.status_code == 422
    assert str(ui.folder) not in found.value.detail
    assert {path: path.read_bytes() for path in (ui.folder / "Lora").iterdir()} == before


def test_an_unknown_name_is_no_path(ui):
    save_file({"lora_unet_x.diff": torch.zeros(2, 2)}, ui.path("plain"), {"ss_v2": "False"})
    ui.refresh()
    for name in ("plain", "nothing", str(ui.path("plain"))):
        with pytest.raises(HTTPException, match="found no spectral adapter named") as found:
            ui.app.call("GET", f"{routes.PREFIX}/{{name}}", name)
        assert found.value.status_code == 404


def test_the_hosts_password_guards_the_routes(ui):
    ui.shared.cmd_opts.api_auth = "ann:one,bob:two:three"
    routes.add(ui.app, None)
    assert len(ui.app.router.routes) == 3
    for route in ui.app.router.routes:
        (check,) = route.dependencies
        check(SimpleNamespace(username="bob", password="two:three"))
        for name, password in (("ann", "two:three"), ("eve", "one"), ("ann", "")):
            with pytest.raises(HTTPException) as found:
                check(SimpleNamespace(username=name, password=password))
            assert found.value.status_code == 401


def test_the_door_registers_the_package_and_loads_nothing_heavy(tmp_path):
    code = f"""
import runpy, sys, types
path = list(sys.path)
modules = types.ModuleType("modules")
modules.script_callbacks = sys.modules["modules.script_callbacks"] = types.ModuleType("modules.script_callbacks")
sys.modules["modules"] = modules
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
runpy.run_path({str(DOOR)!r})
import spectral_adapters
assert spectral_adapters.__file__ == {str(DOOR.parents[1] / "__init__.py")!r}
assert sys.path == path
first = spectral_adapters
runpy.run_path({str(DOOR)!r})
assert sys.modules["spectral_adapters"] is first
heavy = {{"diffusers", "transformers", "accelerate", "fastapi", "gradio", "PIL", "comfy", "nodes", "trainer"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "found no Lora extension that takes other kinds of files" in done.stdout
