from dataclasses import replace

import pytest
import torch
from matrices import matrix, random_params

import spectral_adapters as sa
from spectral_adapters.spectral.change import refactor

SHAPES = {"lora_unet_a": (24, 40), "lora_unet_b": (40, 24), "lora_unet_c": (20, 8, 3, 3), "lora_unet_d": (16, 24, 1, 1)}


def adapter_of(name, **settings):
    """An adapter of random parameters on four layers, and the weights it was made on."""
    method, layers, weights = sa.method(name, **settings), {}, {}
    for i, (layer, shape) in enumerate(SHAPES.items()):
        weight = matrix(shape[0], torch.Size(shape[1:]).numel(), seed=i).reshape(shape)
        basis = sa.decompose(weight, method.columns)
        params = random_params(method, weight, basis)
        layers[layer] = sa.AdapterLayer(layer, shape, params, None if basis.full else basis.columns, basis)
        weights[layer] = weight
    return sa.Adapter(method, layers), weights


def read_back(adapter):
    """As from a compact file: without frames."""
    bare = {name: replace(layer, frames=None) for name, layer in adapter.layers.items()}
    return sa.Adapter(adapter.method, bare)


def lora_delta(export, layer):
    """What every host computes from a LoRA: alpha / rank * up @ down, convolutions flattened."""
    up, down = export[f"{layer}.lora_up.weight"].double(), export[f"{layer}.lora_down.weight"].double()
    scale = float(export[f"{layer}.alpha"]) / up.shape[1]
    return scale * up.flatten(1) @ down.flatten(1)


@pytest.mark.parametrize(
    ("name", "settings", "rank"),
    [("additive", {"rank": 4}, 8), ("rotation", {"rank": 5}, 5), ("svdiff", {"rank": 6}, 6)],
)
@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_low_rank_methods_export_exactly(name, settings, rank, strength):
    adapter, weights = adapter_of(name, **settings)
    export = sa.to_lora(adapter, strength=strength, dtype=torch.float64)
    assert set(export.residual.ranks.values()) == {rank} and export.residual.total < 1e-6
    for layer, weight in weights.items():
        expected = adapter.delta(layer, weight, strength).flatten(1).double()
        torch.testing.assert_close(lora_delta(export, layer), expected, atol=1e-6, rtol=1e-5)


def test_rounding_to_fp16_is_reported():
    adapter, _ = adapter_of("additive", rank=4)
    export = sa.to_lora(adapter)
    assert all(t.dtype == torch.float16 for t in export.values())
    assert 1e-5 < export.residual.total < 2e-3
    assert "4 layers" in str(export.residual)


@pytest.mark.parametrize("name", ["svdiff", "soda"])
def test_full_rank_methods_need_a_rank_and_state_what_is_lost(name):
    adapter, weights = adapter_of(name)
    with pytest.raises(sa.SettingError, match="rank"):
        sa.to_lora(adapter, weights)
    with pytest.raises(sa.SettingError, match="base"):
        sa.to_lora(read_back(adapter), rank=4)
    export = sa.to_lora(adapter, weights, rank=4, dtype=torch.float64)
    errors = energy = 0.0
    for layer, weight in weights.items():
        change = adapter.delta(layer, weight).flatten(1).double()
        s = torch.linalg.svdvals(change)
        error = float((lora_delta(export, layer) - change).norm())
        assert error == pytest.approx(float(s[4:].norm()), rel=1e-4)  # the best there is: Eckart and Young
        assert export.residual.per_layer[layer] == pytest.approx(error / float(s.norm()), rel=1e-4)
        errors, energy = errors + error**2, energy + float(s.square().sum())
    assert export.residual.total == pytest.approx((errors / energy) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("name", ["svdiff", "additive", "rotation", "soda"])
def test_difference_files_hold_the_whole_change(name):
    adapter, weights = adapter_of(name)
    export = sa.to_diff(adapter, weights, dtype=torch.float32)
    assert export.residual.total < 1e-6
    for layer, weight in weights.items():
        torch.testing.assert_close(export[f"{layer}.diff"], adapter.delta(layer, weight))


def test_truncating_a_low_rank_export_is_the_best_of_that_rank():
    adapter, weights = adapter_of("additive", rank=4)
    export = sa.to_lora(adapter, rank=3, dtype=torch.float64)
    for layer, weight in weights.items():
        s = torch.linalg.svdvals(adapter.delta(layer, weight).flatten(1).double())
        assert export.residual.per_layer[layer] == pytest.approx(float(s[3:].norm() / s.norm()), rel=1e-3)


def test_an_untrained_adapter_exports_a_lora_that_does_nothing():
    adapter, _ = adapter_of("additive", rank=4)
    for layer in adapter.layers.values():
        layer.params = {name: torch.zeros_like(p) for name, p in layer.params.items()}
    export = sa.to_lora(adapter)
    assert export.residual.total == 0
    assert not any(lora_delta(export, layer).any() for layer in SHAPES)


def test_refactoring_balances_and_drops_idle_rank():
    up, down = 1e4 * torch.randn(30, 4, dtype=torch.float64), 1e-4 * torch.randn(4, 20, dtype=torch.float64)
    up, down = torch.cat([up, up], 1), torch.cat([down, down], 0)
    new_up, new_down = refactor(up, down)
    assert new_up.shape == (30, 4)
    torch.testing.assert_close(new_up @ new_down, up @ down)
    torch.testing.assert_close(new_up.norm(dim=0), new_down.norm(dim=1))


def test_a_base_that_lacks_a_layer_is_named():
    adapter, weights = adapter_of("soda")
    del weights["lora_unet_b"]
    with pytest.raises(sa.SpectralError, match="lora_unet_b"):
        sa.to_diff(read_back(adapter), weights)


def test_energy_is_the_least_rank_that_holds_it():
    for name, settings in (("svdiff", {}), ("additive", {"rank": 6})):
        adapter, weights = adapter_of(name, **settings)
        export = sa.to_lora(adapter, weights, energy=0.9, dtype=torch.float64)
        for layer, weight in weights.items():
            squares = torch.linalg.svdvals(adapter.delta(layer, weight).flatten(1).double()).square()
            rank, whole = export.residual.ranks[layer], float(squares.sum())
            assert float(squares[:rank].sum()) >= 0.9 * whole > float(squares[: rank - 1].sum())
            assert export.residual.per_layer[layer] == pytest.approx(
                (float(squares[rank:].sum()) / whole) ** 0.5, rel=1e-3
            )
        capped = sa.to_lora(adapter, weights, energy=0.9, rank=2)
        assert set(capped.residual.ranks.values()) <= {1, 2}
        assert all(rank <= 24 for rank in sa.to_lora(adapter, weights, energy=1.0).residual.ranks.values())


def test_energy_of_an_untrained_adapter_is_rank_one_of_nothing():
    adapter, weights = adapter_of("svdiff")
    for layer in adapter.layers.values():
        layer.params = {name: torch.zeros_like(p) for name, p in layer.params.items()}
    export = sa.to_lora(adapter, weights, energy=0.99)
    assert set(export.residual.ranks.values()) == {1} and export.residual.total == 0


@pytest.mark.parametrize(
    ("limits", "said"), [({"rank": 0}, "rank 0"), ({"energy": 0.0}, "energy 0"), ({"energy": 1.1}, "1.1")]
)
def test_limits_that_mean_nothing_are_refused(limits, said):
    with pytest.raises(sa.SettingError, match=said):
        sa.to_lora(adapter_of("additive", rank=4)[0], **limits)


def test_any_source_is_exported_layer_by_layer():
    adapter, weights = adapter_of("additive", rank=4)
    source = sa.AdapterSource(adapter, "cat")
    seen = []
    export = sa.to_lora(source, dtype=torch.float64, strength=0.5, progress=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(i, 4) for i in range(1, 5)] and {step[2] for step in seen} == set(SHAPES)
    for layer, weight in weights.items():
        torch.testing.assert_close(
            lora_delta(export, layer), 0.5 * adapter.delta(layer, weight).flatten(1).double(), atol=1e-6, rtol=1e-5
        )
    for made in (sa.to_lora, sa.to_diff):
        with pytest.raises(sa.Cancelled):
            made(source, cancelled=lambda: True)
    assert not sa.to_diff(source).residual.left_out
