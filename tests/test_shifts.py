"""SVDiff's analyses: how alike shifts are, and rank limiting."""

import math

import pytest
import torch
from adapters import adapter_of, relative

import spectral_adapters as sa
from spectral_adapters.spectral.change import dense
from spectral_adapters.spectral.shifts import correlation, kept_share, limited
from spectral_adapters.spectral.source import AdapterSource

SHAPES = {"lora_unet_a": (12, 20), "lora_unet_b": (20, 12)}


def shifted(columns, *rows):
    """An svdiff adapter whose layers have these shifts."""
    adapter, weights = adapter_of("svdiff", {"columns": columns}, shapes=SHAPES)
    for layer, row in zip(adapter.layers.values(), rows):
        layer.params["delta"] = torch.tensor(row)
    return adapter, weights


def test_the_cosine_is_that_of_shared_columns_averaged_over_layers():
    """By hand: columns 2 and 3 are shared; cosines (3*4 + 4*3)/25 = 0.96 and -1; mean -0.02."""
    a, _ = shifted([0, 2, 3], [9.0, 3.0, 4.0], [9.0, 1.0, 2.0])
    b, _ = shifted([2, 3, 7], [4.0, 3.0, 5.0], [-2.0, -4.0, 5.0])
    found = correlation([a, b], ["a", "b"])
    assert float(found.matrix[0, 1]) == pytest.approx(-0.02)
    assert torch.equal(found.matrix, found.matrix.T) and bool((found.matrix.diagonal() == 1).all())
    assert found.layers.tolist() == [[2, 2], [2, 2]] and int(found.strange.max()) == 0
    assert "-0.020" in found.text and "+1.000" in found.text
    assert found.as_json()["cosines"][0][1] == pytest.approx(-0.02)


def test_one_training_twice_is_alike_and_nothing_shared_is_no_number():
    a, _ = shifted([0, 1], [1.0, 2.0], [0.5, 0.1])
    twice, _ = shifted([0, 1], [2.0, 4.0], [5.0, 1.0])
    apart, _ = shifted([5, 6], [1.0, 2.0], [0.5, 0.1])
    found = correlation([a, twice, apart], ["a", "twice", "apart"])
    assert float(found.matrix[0, 1]) == pytest.approx(1)
    assert math.isnan(float(found.matrix[0, 2])) and found.as_json()["cosines"][0][2] is None
    assert "-" in found.text.splitlines()[1]


def test_other_bases_are_said():
    a, _ = adapter_of("svdiff", {}, shapes=SHAPES)
    other, _ = adapter_of("svdiff", {}, shapes=SHAPES, sigma="flat")
    found = correlation([a, other], ["a", "other"])
    assert found.strange[0, 1] == 2 and "different weights" in found.text


def test_what_cannot_be_correlated_is_refused():
    a, _ = adapter_of("svdiff", {}, shapes=SHAPES)
    turned, _ = adapter_of("rotation", {"rank": 3}, shapes=SHAPES)
    with pytest.raises(sa.SettingError, match="turned is of method rotation, which shifts no singular values; compare"):
        correlation([a, turned], ["a", "turned"])
    with pytest.raises(sa.SettingError, match="at least two"):
        correlation([a], ["a"])
    wider, _ = adapter_of("svdiff", {}, shapes={"lora_unet_a": (12, 24)})
    with pytest.raises(sa.SettingError, match="layer lora_unet_a"):
        correlation([a, wider], ["a", "wider"])


def test_limiting_keeps_the_leading_shifts_and_needs_no_base_for_frames(tmp_path):
    adapter, _ = adapter_of("svdiff", {}, shapes=SHAPES)
    found = limited(adapter, 4)
    assert found.profile == "portable" and found.method.columns.text == "top:4"
    for name in found.layers:
        own = adapter.layers[name]
        g = (own.frames.s + own.params["delta"]).relu() - own.frames.s
        expected = (own.frames.u[:, :4] * g[:4]) @ own.frames.v[:, :4].T
        assert relative(dense(AdapterSource(found, "found").change(name)), expected) < 1e-3  # frames in fp16
    loaded = sa.load(sa.save(found, tmp_path / "limited.safetensors"))
    assert loaded.layers["lora_unet_a"].indices == (0, 1, 2, 3)


def test_a_compact_file_is_limited_with_its_base_alone(tmp_path):
    adapter, weights = adapter_of("svdiff", {}, shapes=SHAPES)
    compact = sa.load(sa.save(adapter, tmp_path / "compact.safetensors"))
    with pytest.raises(sa.SettingError, match=r"compact.*give the base"):
        limited(compact, 4)
    found = limited(compact, "bottom:3", weights)
    for name, layer in found.layers.items():
        reference = limited(adapter, "bottom:3").layers[name]
        torch.testing.assert_close(layer.frames.s, reference.frames.s)
        torch.testing.assert_close(layer.params["delta"], reference.params["delta"], atol=1e-3, rtol=1e-3)
    with pytest.raises(sa.WrongBaseError):
        limited(compact, 4, adapter_of("svdiff", {}, shapes=SHAPES, sigma="flat")[1])
    with pytest.raises(sa.SettingError, match="no weight for layer lora_unet_b"):
        limited(compact, 4, {"lora_unet_a": weights["lora_unet_a"]})


def test_the_share_that_columns_hold():
    adapter, _ = shifted([0, 1, 5], [3.0, 4.0, 12.0], [0.0, 0.0, 0.0])
    assert kept_share(adapter, [0, 1]) == pytest.approx(25 / 169)
    assert kept_share(adapter, 8) == pytest.approx(1)
    assert kept_share(adapter, [9]) == 0


def test_limits_that_leave_nothing_or_limit_nothing_are_refused():
    adapter, _ = adapter_of("svdiff", {}, shapes=SHAPES)
    with pytest.raises(sa.SettingError, match="found none of them"):
        limited(adapter, [50])
    with pytest.raises(sa.SettingError, match="no limit"):
        limited(adapter, "all")
    with pytest.raises(sa.SettingError, match="does more than shift"):
        limited(adapter_of("soda", {}, shapes=SHAPES)[0], 4)
    with pytest.raises(sa.SettingError, match="shifts no singular values"):
        limited(adapter_of("additive", {"rank": 2}, shapes=SHAPES)[0], 1)
    with pytest.raises(sa.Cancelled):
        limited(adapter, 4, cancelled=lambda: True)
