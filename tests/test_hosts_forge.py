"""Adapters in the Lora tags of Forge, reForge, Forge Neo and Forge Classic: fakes of our own stand for the hosts."""

import sys
from types import SimpleNamespace

import forge_fakes as fakes
import pytest
import torch
from adapters import relative
from forge_fakes import LAYERS, NORMS, WEIGHTS
from matrices import random_params

import spectral_adapters as sa
from spectral_adapters import hosts
from spectral_adapters.hosts import changes, forge_family, forge_lora
from spectral_adapters.hosts.automatic1111 import AUTOMATIC1111
from spectral_adapters.hosts.forge_family import FORGE_FAMILY
from spectral_adapters.hosts.forge_patch import added
from spectral_adapters.spectral.errors import AdapterFileError, WrongBaseError
from spectral_adapters.spectral.gains import Gain, gain_fingerprint

HOSTS = [fakes.Forge, fakes.AdapterHost, fakes.Classic]
METHODS = {"additive": {"rank": 4}, "rotation": {"rank": 5}, "svdiff": {"norms": True}, "soda": {}}


@pytest.fixture(autouse=True)
def nothing_kept():
    changes.forget()
    forge_lora.fits.clear()
    yield
    changes.forget()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """{method: (file, {layer or norm: its change at strength 1})}, and another model's file."""
    folder = tmp_path_factory.mktemp("Lora")
    made = {name: _write(folder / f"{name}.safetensors", name, settings) for name, settings in METHODS.items()}
    weights = {layer: torch.randn(WEIGHTS[layer].shape).half().float() for layer in LAYERS}
    made["of another base"] = _write(folder / "another.safetensors", "svdiff", {}, weights)
    return made


def _write(path, name, settings, weights=WEIGHTS):
    method, layers = sa.method(name, **settings), {}
    for seed, layer in enumerate(LAYERS):
        weight = weights[layer]
        basis = sa.decompose(weight, method.columns)
        basis = basis.half_rounded() if method.portable else basis
        params = random_params(method, weight, basis, 0.05, seed)
        columns = None if basis.full else basis.columns
        layers[layer] = sa.AdapterLayer(layer, tuple(weight.shape), params, columns, basis)
    adapter = sa.Adapter(method, layers)
    if settings.get("norms"):
        shift = {norm: torch.linspace(-0.2, 0.3, WEIGHTS[norm].shape[0]) for norm in NORMS}
        adapter.gains = {norm: Gain(norm, each, gain_fingerprint(WEIGHTS[norm])) for norm, each in shift.items()}
    sa.save(adapter, path)
    again = sa.load(path)
    return path, {place: again.delta(place, weights[place]) for place in (*again.layers, *again.gains)}


@pytest.fixture(params=HOSTS, ids=lambda host: host.__name__)
def host(request, monkeypatch):
    ui = request.param(monkeypatch)
    undo = FORGE_FAMILY.attach()
    yield ui
    undo()


def unchanged(found):
    return all(torch.equal(found[name], weight) for name, weight in WEIGHTS.items())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_changes_the_weights_by_its_strengths(host, library, name):
    file, change = library[name]
    found = host.weights((file, 0.8, -0.5))
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS if name not in change)
    for layer, delta in change.items():
        strength = -0.5 if layer.startswith("lora_te_") else 0.8
        assert relative(found[layer] - WEIGHTS[layer], strength * delta) < 1e-3
    assert host.handed_on == []


@pytest.mark.parametrize("name", METHODS)
def test_strength_zero_and_a_removed_tag_leave_the_base_bit_for_bit(host, library, name):
    file, _ = library[name]
    assert unchanged(host.weights((file, 0.0, 0.0)))
    assert not unchanged(host.weights((file, 1.0, 1.0)))
    assert unchanged(host.weights())
    half = host.weights((file, 0.0, 1.0))
    assert all(torch.equal(half[n], WEIGHTS[n]) for n in WEIGHTS if n.startswith("lora_unet_"))
    assert not unchanged(half)


def test_the_order_of_stacked_files_does_not_matter(host, library):
    a, b = (library["additive"][0], 0.7, 0.7), (library["svdiff"][0], 0.9, 0.9)
    one, other = host.weights(a, b), host.weights(b, a)
    for layer in LAYERS:
        both = 0.7 * library["additive"][1][layer] + 0.9 * library["svdiff"][1][layer]
        assert relative(one[layer] - WEIGHTS[layer], both) < 1e-3
        assert torch.allclose(one[layer], other[layer], atol=1e-6)


def test_a_file_is_computed_from_untouched_weights_while_another_is_on_the_model(host, library):
    host.weights((library["rotation"][0], 1.0, 1.0))
    after = host.weights((library["svdiff"][0], 1.0, 1.0))
    for layer in LAYERS:
        assert relative(after[layer] - WEIGHTS[layer], library["svdiff"][1][layer]) < 1e-3


def test_another_strength_is_not_computed_again(host, library, monkeypatch):
    file, change = library["svdiff"]
    host.weights((file, 0.5, 0.5))
    monkeypatch.setattr(changes, "compute", None)
    found = host.weights((file, 0.25, 0.25))
    for layer, delta in change.items():
        assert relative(found[layer] - WEIGHTS[layer], 0.25 * delta) < 1e-3


def test_other_files_are_handed_on_as_they_came(host, library, tmp_path):
    other = tmp_path / "lora.safetensors"
    other.write_bytes(b"no adapter")
    host.weights((other, 0.5, 0.4), (library["additive"][0], 1.0, 1.0))
    ((file, strength_model, strength_clip, more, named),) = host.handed_on
    assert (file, strength_model, strength_clip, more) == (str(other), 0.5, 0.4, ())
    assert named == ({"online_mode": False} if isinstance(host, fakes.Forge) else {})


def test_another_base_is_refused_whole_and_asked_for_again(host, library):
    file, _ = library["of another base"]
    for _ in range(2):
        with pytest.raises(WrongBaseError, match="Load the base it was trained on"):
            host.load_networks((library["additive"][0], 1.0, 1.0), (file, 1.0, 1.0))
        FORGE_FAMILY.drop()
        assert host.networks.loaded_networks == []
    assert unchanged(host.weights())
    host.opts.spectral_mismatch = "Apply what fits"
    assert not unchanged(host.weights((file, 1.0, 1.0)))


def test_another_kind_of_model_is_refused_by_its_name(host, tmp_path):
    weight = torch.randn(640, 64)
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    method = sa.method("rotation", rank=2)
    basis = sa.decompose(weight, method.columns).half_rounded()
    params = random_params(method, weight, basis, 0.1, 1)
    path = tmp_path / "sdxl.safetensors"
    sa.save(sa.Adapter(method, {layer: sa.AdapterLayer(layer, (640, 64), params, basis.columns, basis)}), path)
    with pytest.raises(WrongBaseError, match=r"trained on SDXL.*the model here is Stable Diffusion 1\.x"):
        host.weights((path, 1.0, 1.0))


def test_a_broken_adapter_is_refused(host, library, tmp_path):
    whole = library["svdiff"][0].read_bytes()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(whole[: len(whole) - 100])
    with pytest.raises(AdapterFileError, match=r"broken\.safetensors"):
        host.weights((broken, 1.0, 1.0))


def test_the_page_is_told_how_files_fit(host, library):
    said = []
    file, _ = library["svdiff"]
    host.load_networks((file, 1.0, 1.0), (library["soda"][0], 0.0, 0.0))
    FORGE_FAMILY.prepare(SimpleNamespace(comment=said.append))
    (line,) = said
    assert line.startswith(f"{file}: 5 of 5 layers applied, 0 unused, 2 of 2 norms. Match ")
    assert "layer 7 of 7" in host.state.textinfo


def test_the_base_for_routes_is_untouched(host, library):
    host.weights((library["additive"][0], 1.0, 1.0))
    base = FORGE_FAMILY.base()
    assert base.name == "Stable Diffusion 1.x"
    assert unchanged({name: base.weights[name]() for name in WEIGHTS})


def test_a_restart_replaces_ours_and_an_undo_takes_it_out(host, library):
    first = host.networks.load_lora_for_models
    undo = FORGE_FAMILY.attach()
    second = host.networks.load_lora_for_models
    assert second is not first
    host.weights((library["additive"][0], 1.0, 1.0))
    host.networks.load_lora_for_models(None, None, {}, 1.0, 1.0, filename="x")
    assert len(host.handed_on) == 1
    undo()
    host.networks.load_lora_for_models(None, None, {}, 1.0, 1.0, filename=str(library["additive"][0]))
    assert host.networks.load_lora_for_models == host._others
    assert len(host.handed_on) == 2


def test_an_undo_leaves_another_extensions_function(host):
    undo, ours = FORGE_FAMILY.attach(), host.networks.load_lora_for_models

    def theirs(*given, **named):
        return ours(*given, **named)

    host.networks.load_lora_for_models = theirs
    undo()
    assert host.networks.load_lora_for_models is theirs


@pytest.mark.parametrize("name", METHODS)
def test_forge_adds_at_each_forward_where_weights_are_stored_in_few_bits(monkeypatch, library, name):
    ui = fakes.Forge(monkeypatch, online=True)
    undo = FORGE_FAMILY.attach()
    file, change = library[name]
    found = ui.weights((file, 1.0, 1.0))
    assert ui.sd_model.forge_objects_original.unet.lora_loader.backup == {}
    for layer, delta in change.items():
        # The weight itself has fp16's rounding, which the change is not to be blamed for.
        assert float((found[layer] - WEIGHTS[layer] - delta).abs().max()) < 2e-3 * float(WEIGHTS[layer].abs().max())
    undo()


def test_forge_weights_in_few_bits_are_judged_dequantised(monkeypatch, library):
    ui = fakes.Forge(monkeypatch)
    undo = FORGE_FAMILY.attach()
    layer = next(iter(LAYERS))
    packed = ui.sd_model.forge_objects_original.unet.model.get_parameter(LAYERS[layer][0])
    whole = WEIGHTS[layer]
    packed.data = torch.zeros(4, 4)
    packed.gguf_cls = object
    ui.module("backend.operations_gguf", dequantize_tensor=lambda weight: whole)
    assert torch.equal(FORGE_FAMILY.base().weights[layer](), whole)
    ui.load_networks((library["svdiff"][0], 1.0, 1.0))
    undo()


def test_neo_with_forges_own_loader_is_read_from_it(monkeypatch):
    ui = fakes.AdapterHost(monkeypatch, module="backend.patcher.lora")
    layer, (key, _) = next(iter(LAYERS.items()))
    patcher = ui.sd_model.forge_objects_original.unet
    patcher.lora_loader = SimpleNamespace(backup={key: WEIGHTS[layer] + 1})
    assert torch.equal(FORGE_FAMILY.base().weights[layer](), WEIGHTS[layer] + 1)


@pytest.mark.parametrize(
    ("kind", "expected"), [(fakes.Forge, "Forge"), (fakes.AdapterHost, "AdapterClass"), (fakes.Classic, "Classic")]
)
def test_hosts_are_told_by_what_they_offer(monkeypatch, kind, expected):
    kind(monkeypatch)
    assert FORGE_FAMILY.present() and not AUTOMATIC1111.present()
    assert type(forge_family.variant()).__name__ == expected
    assert hosts._find() is FORGE_FAMILY


def test_no_host_is_found_elsewhere(monkeypatch):
    assert "networks" not in sys.modules
    assert not FORGE_FAMILY.present()
    assert forge_family.variant() is None


def test_a_change_for_a_weight_of_another_size_names_both():
    with pytest.raises(ValueError, match=r"shape \(4, 4\), the weight \(3, 3\)"):
        added(torch.zeros(3, 3), 1.0, (torch.ones(4, 1), torch.ones(1, 4)))
