"""Extraction: closed forms, the energy that is held, round trips through LoRA files, checkpoints minus their base."""

import shutil

import pytest
import torch
from adapters import METHODS, SHAPES, adapter_of, base_weight
from diffusers import UNet2DConditionModel
from matrices import matrix

import spectral_adapters as sa
from spectral_adapters.__main__ import main
from spectral_adapters.spectral import fit
from spectral_adapters.spectral.change import dense, distance, norm, triples
from spectral_adapters.spectral.choose import asks_for_best
from spectral_adapters.spectral.export import write_export
from spectral_adapters.spectral.extract import difference, extract
from spectral_adapters.spectral.linalg import cayley, skew
from spectral_adapters.spectral.open import open_source
from spectral_adapters.spectral.source import AdapterSource, Changes
from spectral_adapters.trainer.configs import ASSETS

LAYER = "lora_unet_a"


def changes_of(tensors, kind="LoRA"):
    """A source of these changes: {layer: (shape of the weight, change)}."""
    return Changes(tensors, name="given", kind=kind)


def random_changes(shapes=SHAPES, rank=3, seed=0, scale=0.1):
    gen, changes = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        up, down = (torch.randn(size, rank, generator=gen) for size in (shape[0], torch.Size(shape[1:]).numel()))
        changes[name] = (shape, (scale * up, down.T))
    return changes_of(changes)


def held(adapter, source, weights):
    """The share of the energy, from dense matrices in fp64."""
    missed = whole = 0.0
    for layer, weight in weights.items():
        wanted = dense(source.change(layer, weight)).double()
        found = adapter.delta(layer, weight).flatten(1).double()
        missed, whole = missed + float((wanted - found).square().sum()), whole + float(wanted.square().sum())
    return 1 - missed / whole


@pytest.mark.parametrize(("name", "settings"), METHODS)
@pytest.mark.parametrize("scale", [0.05, 0.4])
def test_a_method_finds_its_own_change_again(name, settings, scale):
    adapter, weights = adapter_of(name, settings, scale=scale)
    made = extract(AdapterSource(adapter, "own"), weights, adapter.method)
    assert 1 - made.total < 1e-6 and min(made.explained.values()) > 1 - 2e-6  # fp16 rounds parameters to 2e-4
    for layer, weight in weights.items():
        assert distance(made.adapter.delta(layer, weight).flatten(1), adapter.delta(layer, weight).flatten(1)) <= (
            1e-3 * norm(adapter.delta(layer, weight).flatten(1))
        )


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_the_energy_is_that_of_the_file(name, settings, tmp_path):
    _, weights = adapter_of(name, settings)
    source = random_changes()
    made = extract(source, weights, sa.method(name, **settings), base_name="some base", base_hash="0" * 64)
    path = sa.save(made.adapter, tmp_path / "made.safetensors")
    loaded = sa.load(path)
    assert held(loaded, source, weights) == pytest.approx(made.total, abs=1e-4)
    assert loaded.base_name == "some base" and loaded.metadata["spectral.base_hash"] == "0" * 64
    assert sa.check_layers(loaded, weights).match > 0.99
    assert f"{made.total * 100:.1f} %" in loaded.metadata["modelspec.description"]
    for profile in ("portable", "compact") if loaded.method.portable else ("compact",):
        other = sa.save(made.adapter, tmp_path / f"{profile}.safetensors", profile=profile)
        assert held(sa.load(other), source, weights) == pytest.approx(made.total, abs=1e-4)


def test_shifts_are_the_diagonal_and_stop_at_zero():
    weight = matrix(6, 9, torch.tensor([6.0, 5, 4, 3, 2, 1], dtype=torch.float64)).half().float()
    basis = sa.decompose(weight)
    wanted = torch.tensor([1.0, -0.5, 0.25, -3.5, 0.0, 2.0])
    change = (basis.u * wanted) @ basis.v.T + 3 * torch.outer(basis.u[:, 0], basis.v[:, 1])
    found = fit.nearest_shift(basis, change)
    expected = torch.tensor([1.0, -0.5, 0.25, -float(basis.s[3]), 0.0, 2.0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    made = extract(changes_of({LAYER: ((6, 9), change)}), {LAYER: weight}, sa.method("svdiff"))
    g = torch.where(wanted < -basis.s, -basis.s, wanted)
    missed = 9 + float((wanted - g).square().sum())
    assert made.total == pytest.approx(1 - missed / float(change.square().sum()), abs=1e-4)


def test_frames_reach_the_bound_of_eckart_and_young():
    weight = base_weight((24, 40))
    source = random_changes({LAYER: (24, 40)}, rank=5)
    basis = sa.decompose(weight, 4)
    goal = dense(source.change(LAYER)).double() + ((basis.u * basis.s) @ basis.v.T).double()
    tail = torch.linalg.svdvals(goal)[4:].square().sum()
    made = extract(source, {LAYER: weight}, sa.method("additive", rank=4))
    assert made.total == pytest.approx(1 - float(tail) / norm(source.change(LAYER)) ** 2, abs=1e-4)


def test_frames_stay_near_those_of_the_base():
    adapter, weights = adapter_of("additive", {"rank": 4}, scale=0.02)
    made = extract(AdapterSource(adapter, "own"), weights, adapter.method).adapter
    for layer, found in made.layers.items():
        s = adapter.layers[layer].frames.s.sqrt()
        sizes = [sum(float((p * s).norm()) ** 2 for p in a.layers[layer].params.values()) for a in (made, adapter)]
        assert sizes[0] <= 1.001 * sizes[1]  # of all frames with this change, no larger than the ones it was made of
        assert torch.isfinite(found.params["a_u"]).all()


def test_rotations_are_the_best_of_all_rotations():
    """Against every turn of a fine grid, on two columns, where R_U and R_V are an angle each."""
    weight = matrix(5, 7, torch.tensor([3.0, 2, 1, 0.5, 0.2], dtype=torch.float64))
    change = 0.8 * torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    basis = sa.decompose(weight, 2)
    wanted = torch.diag(basis.s.double()) + fit.core(basis, change)

    sigma = basis.s.double()

    def missed(r_u, r_v):
        return (wanted - (r_u * sigma) @ r_v.mT).square().sum((-2, -1))

    angles = torch.linspace(-torch.pi, torch.pi, 181, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    turns = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    best = float(missed(turns[:, None], turns[None]).min())
    found = fit.nearest_rotations(basis, change)
    for r in found:
        assert torch.linalg.det(r) > 0
    assert best - 1e-2 <= float(missed(*found)) <= best + 1e-9


@pytest.mark.parametrize("mirror", ["neither", "one", "both"])
def test_mirrored_frames_become_rotations(mirror):
    weight = base_weight((16, 16))
    basis = sa.decompose(weight, 4)
    flip = torch.diag(torch.tensor([1.0, 1, 1, -1]))
    r = torch.matrix_exp(skew(torch.linspace(-0.5, 0.5, 6), 4))
    left, right = (r @ flip if mirror != "neither" else r), (r.T @ flip if mirror == "both" else r.T)
    change = basis.u @ (left @ torch.diag(basis.s) @ right.T - torch.diag(basis.s)) @ basis.v.T
    for side in fit.nearest_rotations(basis, change):
        torch.testing.assert_close(side @ side.T, torch.eye(4, dtype=torch.float64))
        assert torch.linalg.det(side) == pytest.approx(1)
    made = extract(changes_of({LAYER: ((16, 16), change)}), {LAYER: weight}, sa.method("rotation", rank=4))
    # A single mirror is no rotation: the smallest singular value is what it costs.
    least = (2 * float(basis.s[3])) ** 2 / float(change.square().sum()) if mirror == "one" else 0.0
    assert made.total == pytest.approx(1 - least, abs=1e-3)


@pytest.mark.parametrize("angles", [[0.3, 1.0], [3.0, 3.1415], [torch.pi, 0.2], [torch.pi, torch.pi], [0.0, 0.0]])
def test_inverse_cayley(angles):
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    turn = torch.zeros(5, 5, dtype=torch.float64)
    turn[0, 1], turn[2, 3] = (torch.tensor(a, dtype=torch.float64) for a in angles)
    r = q @ torch.matrix_exp(turn - turn.T) @ q.T
    found = fit.inverse_cayley(r)
    torch.testing.assert_close(found, -found.T)
    assert float((cayley(found) - r).norm()) < (1e-9 if max(angles) < 3.14 else 6e-3)
    assert float((torch.matrix_exp(fit.rotation_log(r)) - r).norm()) < (1e-9 if max(angles) < 3.14 else 6e-3)


def test_soda_is_no_worse_than_the_shift_alone():
    _, weights = adapter_of("soda", {})
    source = random_changes(rank=12, scale=0.02)
    shift = extract(source, weights, sa.method("svdiff"))
    soda = extract(source, weights, sa.method("soda"))
    assert all(soda.explained[layer] >= shift.explained[layer] - 1e-6 for layer in weights)
    assert soda.total > shift.total + 0.01


@pytest.mark.parametrize(("name", "settings", "rank"), [("additive", {"rank": 4}, 8), ("rotation", {"rank": 5}, 5)])
def test_native_to_lora_and_back(name, settings, rank, tmp_path):
    """The stated error: fp16 factors and fp16 parameters, each 3e-4 of the change."""
    adapter, weights = adapter_of(name, settings)
    export = sa.to_lora(adapter)
    assert set(export.residual.ranks.values()) == {rank} and export.residual.total < 5e-4
    lora = tmp_path / "as.lora.safetensors"
    write_export(export, adapter, lora)
    made = extract(open_source(lora), weights, adapter.method)
    assert 1 - made.total < 1e-6
    for layer, weight in weights.items():
        own = adapter.delta(layer, weight).flatten(1)
        assert distance(made.adapter.delta(layer, weight).flatten(1), own) < 1e-3 * norm(own)


def test_a_lora_on_the_columns_that_hold_most():
    _, weights = adapter_of("additive", {"rank": 3})
    source = random_changes(rank=3, scale=0.05)
    method = sa.method("additive", rank=3)
    plain, chosen = extract(source, weights, method), extract(source, weights, method, choose=True)
    assert chosen.total > plain.total + 0.3
    assert held(chosen.adapter, source, weights) == pytest.approx(chosen.total, abs=1e-4)
    weakest = extract(source, weights, sa.method("additive", columns="bottom:3"))
    assert all(chosen.explained[layer] >= weakest.explained[layer] - 1e-4 for layer in weights)


def test_chosen_columns_survive_the_file(tmp_path):
    _, weights = adapter_of("svdiff", {"rank": 3})
    source = random_changes()
    made = extract(source, weights, sa.method("svdiff", rank=3), choose=True)
    loaded = sa.load(sa.save(made.adapter, tmp_path / "a.safetensors"))
    for layer, weight in weights.items():
        basis = sa.decompose(weight)
        diagonal = fit.diagonal(basis, source.change(layer)).abs()
        assert set(loaded.layers[layer].indices) == set(diagonal.topk(3).indices.tolist())
        assert loaded.layers[layer].indices == made.adapter.layers[layer].indices
    assert held(loaded, source, weights) == pytest.approx(made.total, abs=1e-4)
    with pytest.raises(sa.SettingError, match="nothing to choose"):
        extract(source, weights, sa.method("svdiff"), choose=True)


def test_a_difference_of_checkpoints():
    base = {layer: base_weight(shape, seed).half() for seed, (layer, shape) in enumerate(SHAPES.items())}
    tuned = {layer: (w + 0.1 * torch.randn(w.shape)).half() for layer, w in base.items()}
    tuned["lora_unet_b"] = base["lora_unet_b"].clone()
    tuned["lora_unet_norm"], base["lora_unet_norm"] = torch.full((8,), 1.5), torch.ones(8)
    fetched = []

    def lazily(weights):
        return {name: lambda name=name: fetched.append(name) or weights[name] for name in weights}

    shapes = {name: tuple(w.shape) for name, w in base.items()}
    source = difference(lazily(tuned), lazily(base), "tuned", shapes=shapes)
    assert not fetched and source.gains == {"lora_unet_norm": 8} and set(source.shapes) == set(SHAPES)
    wanted = tuned[LAYER].float() - base[LAYER].float()
    assert torch.equal(source.change(LAYER), wanted) and torch.equal(
        source.gain("lora_unet_norm"), torch.full((8,), 0.5)
    )
    made = extract(source, base, sa.method("svdiff", norms=True))
    assert made.unchanged == ("lora_unet_b",) and "lora_unet_b" in made.text
    torch.testing.assert_close(made.adapter.gains["lora_unet_norm"].change(), torch.full((8,), 0.5))
    plain = extract(source, base, sa.method("additive", rank=2))
    assert plain.left_out == ("lora_unet_norm",) and "1 norm gains are left out" in plain.text
    part = extract(source, base, sa.method("additive", rank=2), only=[LAYER])
    assert part.left_out == () and list(part.explained) == [LAYER]


def test_full_columns_hold_everything():
    """With as many columns as there are, X S Y^T is any matrix, so additive holds any change."""
    weight = base_weight((12, 20))
    change = 0.1 * torch.randn(12, 20)
    made = extract(changes_of({LAYER: ((12, 20), change)}), {LAYER: weight}, sa.method("additive", rank=12))
    assert made.total > 1 - 1e-5


def test_refusals():
    _, weights = adapter_of("additive", {"rank": 3})
    source, method = random_changes(), sa.method("additive", rank=3)
    with pytest.raises(sa.WrongBaseError, match="none of the 4 layers"):
        extract(source, {"lora_unet_z": weights[LAYER]}, method)
    with pytest.raises(sa.WrongBaseError, match="shape"):
        extract(source, {LAYER: torch.zeros(3, 3)}, method)
    with pytest.raises(sa.WrongBaseError, match="changes none"):
        extract(changes_of({LAYER: ((24, 40), torch.zeros(24, 40))}), weights, method)
    with pytest.raises(sa.Cancelled):
        extract(source, weights, method, cancelled=lambda: True)
    with pytest.raises(sa.WrongBaseError, match="share no layer"):
        difference({"a": torch.zeros(2, 2)}, {"b": torch.zeros(2, 2)}, "tuned")
    with pytest.raises(sa.WrongBaseError, match=r"shape \(2, 2\)"):
        difference({"a": torch.zeros(2, 2)}, {"a": torch.zeros(2, 3)}, "tuned")
    compact, own = adapter_of("svdiff", {})
    other = {layer: base_weight(shape, seed + 9) for seed, (layer, shape) in enumerate(SHAPES.items())}
    made = extract(AdapterSource(compact, "own"), own, compact.method).adapter
    with pytest.raises(sa.WrongBaseError, match="off by"):
        extract(AdapterSource(made, "own"), other, compact.method)


def test_progress_and_missing_layers():
    _, weights = adapter_of("additive", {"rank": 3})
    seen = []
    del weights["lora_unet_d"]
    rotation = sa.method("rotation", rank=3)
    made = extract(random_changes(), weights, rotation, progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert made.missing == ("lora_unet_d",) and "1 layers are not in this base: lora_unet_d" in made.text


def test_triples_of_a_thin_change_below_the_rank():
    """A change that takes the whole block away leaves fewer directions than columns."""
    weight = base_weight((24, 40))
    basis = sa.decompose(weight, 3)
    change = (-basis.u * basis.s, basis.v.T)
    made = extract(changes_of({LAYER: ((24, 40), change)}), {LAYER: weight}, sa.method("additive", rank=3))
    assert made.total > 1 - 1e-6 and len(triples(change)[1]) == 3


def test_asking_for_the_best():
    assert asks_for_best(None) == asks_for_best("top:8") == (False, None)
    assert asks_for_best("best") == (True, None) and asks_for_best(" best:16 ") == (True, 16)
    for wrong in ("best:0", "best:x"):
        with pytest.raises(sa.SettingError, match="best:16"):
            asks_for_best(wrong)


def test_the_command(tmp_path, capsys, base):
    _, adapter = sa.inject(base.unet, "additive", "cross-attention", prefix="lora_unet_")
    with torch.no_grad():
        for _, p in adapter.named_parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    own = sa.save(adapter, tmp_path / "own.safetensors", trigger_words=("sks mug",))
    adapter.remove()
    lora, out = tmp_path / "own.lora.safetensors", tmp_path / "out.safetensors"
    assert main(["convert", str(own), "--to", "lora", str(lora)]) == 0
    assert main(["extract", str(lora), "--base", "tiny", "--rank", "8", str(out)]) == 0
    said = capsys.readouterr().out
    assert "holds 100.0 % of the change's energy" in said and f"{out.stat().st_size:,} bytes" in said
    loaded = sa.load(out)
    assert loaded.base_name == "tiny_base" and loaded.metadata["spectral.base_hash"] == base.file_hash
    for layer in loaded.layers:
        found, wanted = (a.delta(layer, base.weights()[layer]).flatten(1) for a in (loaded, sa.load(own)))
        assert distance(found, wanted) < 1e-3 * norm(wanted)
    assert main(["extract", str(lora), "--base", "tiny", str(out)]) == 2
    assert "existing file" in capsys.readouterr().err
    more = ["--base", "tiny", "--targets", "nowhere", str(tmp_path / "b.safetensors")]
    assert main(["extract", str(own), *more]) == 2
    assert "chose none of the" in capsys.readouterr().err


def test_the_command_on_a_tuned_model(tmp_path, capsys, base):
    tuned = tmp_path / "tuned"
    shutil.copytree(ASSETS / "tiny_base", tuned)
    unet = UNet2DConditionModel.from_pretrained(tuned / "unet")
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    with torch.no_grad():
        weight = unet.get_submodule(path).weight
        low = torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])
        weight.add_(0.01 * low)
    unet.save_pretrained(tuned / "unet")
    out = tmp_path / "out.safetensors"
    assert main(["extract", str(tuned), "--base", "tiny", "--columns", "best:2", "--layers", str(out)]) == 0
    said = capsys.readouterr().out
    layer = f"lora_unet_{path.replace('.', '_')}"
    assert list(sa.load(out).layers) == [layer]  # what was not trained is not in the file
    assert said.count(layer) >= 2 and "layers are unchanged and left out" in said
