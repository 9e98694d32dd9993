"""Carrying changes to a related base: projections, agreement of the directions, what is kept and what is refused."""

import pytest
import torch
from adapters import SHAPES, adapter_of, base_weight, relative
from matrices import matrix

import spectral_adapters as sa
from spectral_adapters.__main__ import main
from spectral_adapters.spectral.change import dense, distance, norm
from spectral_adapters.spectral.convert import to_lora
from spectral_adapters.spectral.export import write_export
from spectral_adapters.spectral.open import open_source
from spectral_adapters.spectral.source import AdapterSource, Changes
from spectral_adapters.spectral.transfer import agreement, projected, transfer

LAYER = "lora_unet_a"


def related(weights, share=0.02):
    """A fine-tune of the base: the weights plus noise of this share of their size."""
    gen = torch.Generator().manual_seed(7)
    return {n: (w + share * w.std() * torch.randn(w.shape, generator=gen)).half().float() for n, w in weights.items()}


def lora(rank=3):
    gen, changes = torch.Generator().manual_seed(5), {}
    for name, shape in SHAPES.items():
        up, down = (torch.randn(size, rank, generator=gen) for size in (shape[0], torch.Size(shape[1:]).numel()))
        changes[name] = (shape, (0.05 * up, down.T))
    return Changes(changes, name="lora", kind="LoRA")


def all_of(source, weights):
    return torch.cat([dense(source.change(name, weights[name])).flatten() for name in source.shapes])


def test_projections_against_their_formulas():
    basis, change = sa.decompose(matrix(12, 20), 4), torch.randn(12, 20)
    p_u, p_v = basis.u @ basis.u.T, basis.v @ basis.v.T
    up, down = torch.randn(12, 2), torch.randn(2, 20)
    for given in (change, (up, down)):
        d = dense(given)
        torch.testing.assert_close(dense(projected(given, basis, "both")), p_u @ d @ p_v, atol=1e-5, rtol=1e-5)
        either = p_u @ d + d @ p_v - p_u @ d @ p_v
        torch.testing.assert_close(dense(projected(given, basis, "either")), either, atol=1e-5, rtol=1e-5)


def test_agreement_is_the_mean_squared_cosine():
    a = sa.decompose(matrix(12, 20), 2)
    assert agreement(a, a) == pytest.approx(1, abs=1e-6)
    assert agreement(a, sa.decompose(matrix(12, 20), (2, 3))) == pytest.approx(0, abs=1e-6)
    # One of two directions in common, turned by 60 degrees on the left side alone.
    other = sa.decompose(matrix(12, 20), (0, 3))
    assert agreement(a, other) == pytest.approx(0.5, abs=1e-6)
    turned = other.half_rounded()
    turned.u[:, 0] = 0.5 * a.u[:, 0] + 0.75**0.5 * sa.decompose(matrix(12, 20), (7,)).u[:, 0]
    assert agreement(a, turned) == pytest.approx((0.25 + 1) / 4, abs=1e-3)
    assert agreement(a, sa.decompose(matrix(12, 20), 5)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "sides", "lost"),
    [
        ("rotation", {"rank": 5}, "both", 1e-3),
        ("svdiff", {"columns": "top:5@2"}, "both", 1e-3),
        ("additive", {"rank": 4}, "either", 0.05),  # A_U S A_V^T, of second order, leaves the directions on both sides
    ],
)
def test_to_its_own_base_nothing_changes(name, settings, sides, lost):
    adapter, weights = adapter_of(name, settings, scale=0.01)
    source = AdapterSource(adapter, "own")
    made = transfer(source, weights)
    assert {found.sides for found in made.layers.values()} == {sides}
    assert relative(all_of(made.source, weights), all_of(source, weights)) < lost
    assert min(made.agreement.values()) > 0.9999 and made.kept > 0.99
    assert not made.left_out and "agree to" in made.text


def test_to_a_related_base_it_lies_in_that_bases_directions():
    adapter, weights = adapter_of("rotation", {"rank": 3})
    target = related(weights, 0.2)
    made = transfer(AdapterSource(adapter, "own"), target)
    for name in SHAPES:
        basis = sa.decompose(target[name], 3)
        change = made.source.change(name)
        torch.testing.assert_close(dense(projected(change, basis, "both")), dense(change), atol=1e-5, rtol=1e-4)
        assert made.source.columns(name) == (0, 1, 2)
    far = transfer(AdapterSource(adapter, "own"), related(weights, 1.0))
    assert all(far.agreement[name] < made.agreement[name] for name in SHAPES)
    assert "agree to less than 90%" in far.text


def test_what_it_keeps_is_counted():
    adapter, weights = adapter_of("rotation", {"rank": 3})
    source, target = AdapterSource(adapter, "own"), related(weights, 0.3)
    made = transfer(source, target)
    kept = norm(all_of(made.source, target)[None]) ** 2 / norm(all_of(source, weights)[None]) ** 2
    assert made.kept == pytest.approx(kept, rel=1e-5)


def test_a_lora_by_rank_and_by_energy():
    weights = adapter_of("additive", {"rank": 3})[1]
    source, target = lora(), related(weights)
    by_rank = transfer(source, target, rank=6)
    assert {found.rank for found in by_rank.layers.values()} == {6} and by_rank.agreement == {}
    for name in SHAPES:
        expected = projected(source.change(name), sa.decompose(target[name], 6), "both")
        assert distance(by_rank.source.change(name), expected) < 1e-5 * norm(expected)
    by_energy = transfer(source, target, energy=0.9, home=weights)
    for name, found in by_energy.layers.items():
        shares = sa.decompose(target[name]).s.double().square().cumsum(0)
        assert shares[found.rank - 1] >= 0.9 * shares[-1] > (shares[found.rank - 2] if found.rank > 1 else 0)
        assert found.agreement > 0.99
    assert transfer(source, target).layers == transfer(source, target, energy=0.9).layers
    everything = transfer(source, target, energy=1.0)
    assert everything.kept == pytest.approx(1, abs=0.8)  # the directions of the longer side stay out
    assert transfer(source, target, energy=1.0, sides="either").kept == pytest.approx(1, abs=1e-4)


def test_layers_that_agree_too_little_are_left_out():
    adapter, weights = adapter_of("rotation", {"rank": 3})
    target = related(weights)
    target[LAYER] = base_weight(SHAPES[LAYER], seed=99)
    made = transfer(AdapterSource(adapter, "own"), target, least=0.6)
    assert made.left_out == (LAYER,) and LAYER not in made.source.shapes and "left out" in made.text
    with pytest.raises(sa.WrongBaseError, match="hardly related"):
        transfer(AdapterSource(adapter, "own"), {LAYER: target[LAYER]}, least=0.6)


def test_a_compact_file_needs_its_own_base(tmp_path):
    adapter, weights = adapter_of("svdiff", {})
    source, target = open_source(sa.save(adapter, tmp_path / "a.safetensors")), related(weights)
    with pytest.raises(sa.WrongBaseError, match="the base that it was trained on too"):
        transfer(source, target)
    with pytest.raises(sa.WrongBaseError, match="off by"):
        transfer(source, target, home={n: base_weight(s, seed=50 + i) for i, (n, s) in enumerate(SHAPES.items())})
    whole = transfer(source, target, home=weights)
    assert torch.equal(all_of(whole.source, target), all_of(source, weights)) and "carried as it is" in whole.text
    part = transfer(source, target, home=weights, rank=4)
    assert not part.source.needs_weight(LAYER) and 0 < part.kept < 1


def test_refusals():
    adapter, weights = adapter_of("rotation", {"rank": 3})
    source = AdapterSource(adapter, "own")
    for wrong in ({"rank": 3, "energy": 0.5}, {"rank": 0}, {"energy": 1.5}, {"sides": "left"}, {"least": 2}):
        with pytest.raises(sa.SettingError, match=r"found|both choose"):
            transfer(source, weights, **wrong)
    with pytest.raises(sa.WrongBaseError, match="none of the 4 layers"):
        transfer(source, {"lora_unet_z": weights[LAYER]})
    with pytest.raises(sa.WrongBaseError, match="shape"):
        transfer(source, {LAYER: torch.randn(24, 41)})
    with pytest.raises(sa.Cancelled):
        transfer(source, weights, cancelled=lambda: True)
    del weights["lora_unet_d"]
    made = transfer(source, weights)
    assert made.missing == ("lora_unet_d",) and "3 of 4 layers" in made.text
    with pytest.raises(sa.UnknownLayerError):
        made.source.change("lora_unet_d")


def test_it_exports_and_extracts():
    adapter, weights = adapter_of("rotation", {"rank": 3})
    target = related(weights)
    made = transfer(AdapterSource(adapter, "own"), target)
    export = to_lora(made.source)
    assert set(export.residual.ranks.values()) == {3} and export.residual.total < 1e-3
    again = sa.extract(made.source, target, adapter.method)
    assert again.total > 0.9


def test_the_command(tmp_path, capsys, base):
    files = {}
    for method in ("rotation", "svdiff"):
        _, adapter = sa.inject(base.unet, method, "cross-attention", prefix="lora_unet_")
        with torch.no_grad():
            for _, p in adapter.named_parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        files[method] = sa.save(adapter, tmp_path / f"{method}.safetensors", trigger_words=("sks",))
        if method == "rotation":
            files["lora"] = write_export(sa.to_lora(adapter), adapter, tmp_path / "l.safetensors")
        adapter.remove()
    out = tmp_path / "out.safetensors"
    assert main(["transfer", str(files["rotation"]), "--to", "tiny", str(out)]) == 0
    said = capsys.readouterr().out
    assert "agree to 100.0 %" in said and "holds 100.0 %" in said
    loaded = sa.load(out)
    assert loaded.method.name == "rotation" and loaded.base_name == "tiny_base" and loaded.trigger_words == ["sks"]
    assert (
        main(["transfer", str(files["lora"]), "--to", "tiny", "--energy", "0.99", str(tmp_path / "b.safetensors")]) == 0
    )
    assert open_source(tmp_path / "b.safetensors").kind == "LoRA"
    assert main(["transfer", str(files["svdiff"]), "--to", "tiny", str(tmp_path / "c.safetensors")]) == 2
    assert "the base that it was trained on too" in capsys.readouterr().err
    asked = ["--to", "tiny", "--from", "tiny", str(tmp_path / "c.safetensors")]
    assert main(["transfer", str(files["svdiff"]), *asked]) == 0
    assert open_source(tmp_path / "c.safetensors").kind == "difference"
    assert (
        main(["transfer", str(files["lora"]), "--to", "tiny", "--as", "native", str(tmp_path / "d.safetensors")]) == 2
    )
    assert "`extract` an adapter from it" in capsys.readouterr().err
