import pytest
import torch
from adapters import METHODS, PORTABLE, adapter_of, base_weight, relative

import spectral_adapters as sa
from spectral_adapters.spectral import basis as basis_module
from spectral_adapters.spectral import matching


def compact(adapter, tmp_path):
    return sa.load(sa.save(adapter, tmp_path / "compact.safetensors", profile="compact", base_name="toy base"))


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_delta_has_the_weights_shape_and_the_methods_values(name, settings):
    adapter, weights = adapter_of(name, settings)
    for layer, weight in weights.items():
        found = adapter.delta(layer, weight.half(), 0.5)
        expected = adapter.method.delta(adapter.layers[layer].frames, adapter.layers[layer].params, 0.5)
        assert found.shape == weight.shape and found.dtype == torch.float32
        torch.testing.assert_close(found.flatten(1), expected, atol=1e-6, rtol=1e-5)
        assert not adapter.delta(layer, weight, 0.0).any()


@pytest.mark.parametrize(("name", "settings"), PORTABLE)
def test_factors_multiply_to_delta(name, settings):
    adapter, weights = adapter_of(name, settings)
    for layer, weight in weights.items():
        up, down = adapter.factors(layer, strength=-0.7)
        torch.testing.assert_close(up @ down, adapter.delta(layer, weight, -0.7).flatten(1), atol=1e-5, rtol=1e-4)


def test_full_rank_methods_have_no_factors():
    adapter, weights = adapter_of("soda", {})
    assert adapter.factors("lora_unet_a", weights["lora_unet_a"]) is None


def test_an_unknown_layer_is_named():
    adapter, _ = adapter_of("additive", {"rank": 2})
    with pytest.raises(sa.UnknownLayerError, match="no layer 'nowhere'; it has 4, such as lora_unet_a"):
        adapter.delta("nowhere", torch.zeros(3, 3))


def test_another_shape_is_refused():
    adapter, _ = adapter_of("additive", {"rank": 2})
    with pytest.raises(sa.WrongBaseError, match=r"weight has shape \(24, 41\), the adapter was trained on \(24, 40\)"):
        adapter.delta("lora_unet_a", torch.zeros(24, 41))
    with pytest.raises(sa.WrongBaseError, match="shape"):
        adapter.factors("lora_unet_c", torch.zeros(20, 72))  # a 3x3 convolution is no linear layer of equal size


def test_a_1x1_convolution_and_a_linear_layer_are_the_same():
    adapter, weights = adapter_of("additive", {"rank": 2})
    weight = weights["lora_unet_d"]
    torch.testing.assert_close(
        adapter.delta("lora_unet_d", weight[:, :, 0, 0]), adapter.delta("lora_unet_d", weight)[:, :, 0, 0]
    )


def test_a_compact_layer_needs_the_weight(tmp_path):
    adapter, _ = adapter_of("rotation", {"rank": 3})
    with pytest.raises(sa.WrongBaseError, match="holds no frames; pass the weight of the base model"):
        compact(adapter, tmp_path).factors("lora_unet_a")


def test_params_may_live_in_a_module(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.ReLU(), torch.nn.Linear(20, 8))
    for name, settings in METHODS[:1] + METHODS[2:3] + METHODS[4:6]:
        _, adapter = sa.inject(net, sa.method(name, **settings), "all")
        for p in adapter.parameters():
            p.data += 0.01 * torch.randn_like(p) * (p.ndim == 1 or name == "additive")
        adapter.remove()
        assert adapter.profile == ("portable" if adapter.method.portable else "compact")
        loaded = sa.load(sa.save(adapter, tmp_path / f"{name}.safetensors"))
        for layer, index in (("0", 0), ("2", 2)):
            weight = net[index].weight.detach()
            assert relative(loaded.delta(layer, weight), adapter.delta(layer, weight)) < 2e-3


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_the_own_base_matches(name, settings, tmp_path):
    adapter, weights = adapter_of(name, settings)
    report = sa.check_layers(compact(adapter, tmp_path), weights)
    assert report.error < 2e-3 and report.alignment is None and report.match > 0.998
    assert report.same == len(report.layers) == 4 and not report.unused and not report.misfits
    assert "4 of 4 layers fit" in str(report)


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_another_base_is_refused_naming_both(name, settings, tmp_path):
    adapter, weights = adapter_of(name, settings)
    loaded = compact(adapter, tmp_path)
    other = {layer: base_weight(tuple(w.shape), seed=77) for layer, w in weights.items()}
    with pytest.raises(sa.WrongBaseError, match="trained on 'toy base'; on 'other model' its change would be off by"):
        sa.check_layers(loaded, other, model_name="other model")
    forced = sa.check_layers(loaded, other, on_mismatch="force")
    assert forced.error > 0.3 and forced.same == 0 and len(forced.layers) == 4


@pytest.mark.parametrize(("name", "settings"), PORTABLE)
def test_portable_applies_to_any_base_and_says_how_related(name, settings, tmp_path):
    adapter, weights = adapter_of(name, settings)
    loaded = sa.load(sa.save(adapter, tmp_path / "a.safetensors"))
    own = sa.check_layers(loaded, weights)
    assert own.error is None and own.alignment > 0.99 and "agree with this model to" in str(own)
    other = {layer: base_weight(tuple(w.shape), seed=77) for layer, w in weights.items()}
    strange = sa.check_layers(loaded, other)
    assert strange.alignment < 0.5 and "differs much" in str(strange)
    for layer, weight in weights.items():
        assert torch.equal(loaded.delta(layer, weight), loaded.delta(layer, other[layer]))


def test_nothing_in_common_is_refused(tmp_path):
    adapter, weights = adapter_of("additive", {"rank": 2})
    with pytest.raises(sa.WrongBaseError, match=r"none of the adapter's 4 layers is in SDXL: found .*'lora_unet_a'"):
        sa.check_layers(adapter, {"elsewhere": weights["lora_unet_a"]}, model_name="SDXL")


def test_layers_of_another_shape_are_refused_or_left_out():
    adapter, weights = adapter_of("additive", {"rank": 2})
    weights["lora_unet_b"] = torch.zeros(40, 30)
    with pytest.raises(sa.WrongBaseError, match=r"1 of 4 layers do not fit .* layer lora_unet_b: .* \(40, 30\)"):
        sa.check_layers(adapter, weights)
    report = sa.check_layers(adapter, weights, on_mismatch="force")
    assert report.misfits == ("lora_unet_b",) and len(report.layers) == 3 and "another shape" in str(report)
    with pytest.raises(sa.WrongBaseError, match="1 of 1 layers do not fit"):
        sa.check_layers(adapter, {"lora_unet_b": weights["lora_unet_b"]}, on_mismatch="force")


def test_unused_layers_are_named_and_only_shared_ones_are_fetched():
    adapter, weights = adapter_of("additive", {"rank": 2})
    fetched, seen = [], []

    def source(layer):
        return lambda: fetched.append(layer) or weights[layer]

    sources = {"lora_unet_a": source("lora_unet_a"), "strange": source("strange")}
    report = sa.check_layers(adapter, sources, progress=lambda *step: seen.append(step))
    assert fetched == ["lora_unet_a"] and seen == [(1, 1, "lora_unet_a")]
    assert report.unused == ("lora_unet_b", "lora_unet_c", "lora_unet_d")
    assert "3 layers are not in this model: lora_unet_b" in str(report)


def test_cancelling_raises(tmp_path):
    adapter, weights = adapter_of("svdiff", {})
    with pytest.raises(sa.Cancelled):
        sa.check_layers(compact(adapter, tmp_path), weights, cancelled=lambda: True)


def test_the_cache_is_used_and_reported(tmp_path):
    adapter, weights = adapter_of("svdiff", {})
    loaded, cache = compact(adapter, tmp_path), sa.BasisCache(tmp_path / "bases")
    assert sa.check_layers(loaded, weights, cache=cache).from_cache == 0
    assert sa.check_layers(loaded, weights, cache=cache).from_cache == 4


@pytest.mark.parametrize(("name", "settings"), METHODS)
@pytest.mark.parametrize(("strength", "mode"), [(1.0, "linear"), (0.6, "linear"), (0.6, "spectral")])
def test_a_match_gives_the_change_while_it_is_seen(name, settings, strength, mode, tmp_path):
    adapter, weights = adapter_of(name, settings)
    loaded, changes = compact(adapter, tmp_path), {}

    def note(layer, match):
        changes[layer] = loaded.change(layer, match, strength, mode)

    report = sa.check_layers(loaded, weights, on_match=note)
    for layer, change in changes.items():
        dense = change[0] @ change[1] if isinstance(change, tuple) else change
        expected = loaded.delta(layer, weights[layer], strength, mode).flatten(1)
        torch.testing.assert_close(dense, expected, atol=1e-5, rtol=1e-4)
        assert report.layers[layer].basis is None
        with pytest.raises(ValueError, match="verdict"):
            loaded.change(layer, report.layers[layer], strength, mode)


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_an_untrained_adapter_matches_every_base(name, settings, tmp_path):
    adapter, weights = adapter_of(name, settings, scale=0.0)
    loaded = compact(adapter, tmp_path)
    other = {layer: base_weight(tuple(w.shape), seed=77) for layer, w in weights.items()}
    assert sa.check_layers(loaded, weights).error == sa.check_layers(loaded, other).error == 0


def test_one_bad_layer_among_good_ones_shows_in_its_own_match(tmp_path):
    adapter, weights = adapter_of("svdiff", {})
    loaded = compact(adapter, tmp_path)
    weights["lora_unet_d"] = base_weight((16, 24, 1, 1), seed=50)
    report = sa.check_layers(loaded, weights, on_mismatch="force")
    assert report.layers["lora_unet_d"].match < 0.8 and report.layers["lora_unet_a"].match > 0.998
    assert report.same == 3 and "another weight" in report.layers["lora_unet_d"].note


def test_trigger_words_come_from_either_place():
    adapter, _ = adapter_of("additive", {"rank": 2})
    assert adapter.trigger_words == []
    adapter.metadata["modelspec.trigger_phrase"] = "sks dog, in oil"
    assert adapter.trigger_words == ["sks dog", "in oil"]
    adapter.metadata["spectral.trigger_words"] = '["a, b"]'
    assert adapter.trigger_words == ["a, b"]


def test_thin_changes_are_checked_without_dense_ones_and_without_hashes(tmp_path, monkeypatch):
    adapter, weights = adapter_of("additive", {"rank": 4})
    loaded = sa.load(sa.save(adapter, tmp_path / "a.safetensors"))

    def never(*_):
        raise AssertionError("a portable check must neither hash a weight nor build a dense change")

    monkeypatch.setattr(type(adapter.method), "_delta", never)
    with monkeypatch.context() as m:
        m.setattr(matching, "content_hash", never)
        m.setattr(basis_module, "content_hash", never)
        assert len(sa.check_layers(loaded, weights).layers) == 4
    compact_file = sa.save(loaded, tmp_path / "b.safetensors", profile="compact")
    assert sa.check_layers(sa.load(compact_file), weights).match > 0.998
