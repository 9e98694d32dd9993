"""Conflicts computed by hand on small cases: whose columns, how alike, how much lies on the other's."""

import json
import math

import pytest
import torch
from adapters import adapter_of
from hypothesis import given
from hypothesis import strategies as st

import spectral_adapters as sa
from spectral_adapters.spectral.change import dense
from spectral_adapters.spectral.column_use import base_frame, carrying, energies, files_frame, matrix_frame, use_of
from spectral_adapters.spectral.conflict import conflict
from spectral_adapters.spectral.conflict_rows import spans
from spectral_adapters.spectral.conflict_text import spelled
from spectral_adapters.spectral.errors import Cancelled, SettingError, WrongBaseError
from spectral_adapters.spectral.source import AdapterSource, Changes

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
M = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
SHAPES = {Q: (48, 48), K: (40, 64), M: (64, 40)}
EYE = matrix_frame(torch.eye(4), torch.eye(4), range(4), 4)


def source(name, columns="top:4", method="additive", seed=0, shapes=SHAPES, **more):
    adapter, weights = adapter_of(method, {"columns": columns} if columns else {}, shapes, **more)
    for i, layer in enumerate(adapter.layers.values()):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        for key, value in layer.params.items():
            if seed:
                layer.params[key] = value + 0.05 * torch.randn(value.shape, generator=generator) * (
                    layer.frames.s if key == "delta" else 1
                )
    return AdapterSource(adapter, name), weights


def lora(name, seed=5, rank=3, shapes=SHAPES):
    g = torch.Generator().manual_seed(seed)
    return Changes(
        {layer: ((m, n), (torch.randn(m, rank, generator=g), torch.randn(rank, n, generator=g)))
         for layer, (m, n) in shapes.items()}, name=name, kind="LoRA",
    )  # fmt: skip


def pair(*sources, weights=None):
    (found,) = conflict(sources, weights).pairs
    return found


# --- the energy of columns


def test_a_diagonal_change_has_its_own_columns_and_nothing_else():
    energy, total = energies(torch.diag(torch.tensor([0.0, 3.0, 0.0, -4.0])), EYE)
    assert energy.tolist() == [0, 9, 0, 16] and total == 25


def test_an_entry_counts_for_the_column_that_moves_more():
    """Column 0 turned towards 1, 2, 3: C = e_1 e_0^T + e_2 e_0^T + e_3 e_0^T. ||D v_0||^2 = 3, ||u_i^T D||^2 = 1."""
    change = torch.zeros(4, 4)
    change[1:, 0] = 1
    energy, total = energies(change, EYE)
    assert energy.tolist() == [3 * 3 / 4, 1 / 4, 1 / 4, 1 / 4] and total == 3


def test_what_leads_out_of_the_known_directions_counts_for_the_known_one():
    known = matrix_frame(torch.eye(4)[:, :2], torch.eye(4)[:, :2], (0, 1), 4)
    change = torch.zeros(4, 4)
    change[0, 3], change[2, 1], change[3, 3] = 2, 1, 5
    energy, total = energies(change, known)
    assert energy.tolist() == [4, 1] and total == 30


@given(st.integers(0, 50), st.sampled_from([(12, 12), (8, 20), (20, 8)]), st.integers(1, 5))
def test_the_energies_of_all_columns_add_up_to_the_change(seed, shape, rank):
    g = torch.Generator().manual_seed(seed)
    frame = base_frame(sa.decompose(torch.randn(shape, generator=g)))
    up, down = torch.randn(shape[0], rank, generator=g), torch.randn(rank, shape[1], generator=g)
    thin, total = energies((up, down), frame)
    whole, _ = energies(up @ down, frame)
    assert (
        float(thin.sum())
        == pytest.approx(total, rel=1e-4)
        == pytest.approx(float((up @ down).square().sum()), rel=1e-4)
    )
    assert torch.allclose(thin, whole, rtol=1e-3, atol=1e-5 * total)


def test_directions_of_the_base_are_the_same_by_either_way():
    weight = torch.randn(20, 12)
    basis = sa.decompose(weight)
    change = (torch.randn(20, 2), torch.randn(2, 12))
    by_weight, _ = energies(change, base_frame(basis))
    by_sides, _ = energies(change, matrix_frame(basis.u, basis.v, basis.columns, basis.k))
    assert torch.allclose(by_weight, by_sides, rtol=1e-3)


def test_svdiff_uses_exactly_the_columns_that_it_shifts():
    adapter, weights = adapter_of("svdiff", {}, {Q: (48, 48)})
    layer = adapter.layers[Q]
    shift = torch.zeros(48)
    shift[3], shift[7] = 0.3, 0.1
    layer.params["delta"] = shift
    change = AdapterSource(adapter, "x").change(Q, weights[Q])
    energy, total = energies(change, base_frame(sa.decompose(weights[Q])))
    assert energy[3] == pytest.approx(0.09, rel=1e-3) and energy[7] == pytest.approx(0.01, rel=1e-3)
    assert float(energy.sum() - energy[3] - energy[7]) < 1e-6 * total


def test_additive_uses_its_block_and_leaks_little():
    cat, weights = source("cat", "top:4@4", shapes={Q: (200, 200)}, scale=0.01)
    found = use_of(cat.change(Q), base_frame(sa.decompose(weights[Q])), None)
    assert found.measured and set(range(4, 8)) <= found.used
    assert 0.9 < found.on(frozenset(range(4, 8))) < 1
    rest = [float(e) for column, e in zip(found.columns, found.energy) if column not in range(4, 8)]
    assert max(rest) < 0.01 * found.total, "the other side of a direction that was turned is spread over all columns"


def test_the_fewest_columns_that_carry_a_change():
    energy = torch.tensor([1.0, 50.0, 9.0, 40.0], dtype=torch.float64)
    assert carrying(torch.arange(4), energy, 100.0) == {1, 3}
    assert carrying(torch.arange(4), energy, 112.0) == {1, 2, 3, 0}
    assert carrying(torch.arange(4), torch.zeros(4), 0.0) == frozenset()


# --- two adapters


@pytest.mark.parametrize("based", [False, True])
def test_disjoint_blocks_share_nothing(based):
    cat, weights = source("cat", "top:4", seed=1)
    dog, _ = source("dog", "top:4@4", seed=2)
    found = conflict([cat, dog], weights if based else None)
    (both,) = found.pairs
    assert (both.overlap, both.shared_layers, both.columns, both.layers) == (0.0, 0, (), 3)
    assert max(both.interference) < 0.1
    assert found.sentence == "cat and dog share no column: they fuse without mixing."


def test_on_disjoint_blocks_only_mixed_terms_are_left():
    """<A_1 S V_1^T, A_2 S V_2^T> and <U_1 S B_1^T, U_2 S B_2^T> vanish; A_1 S V_1^T with U_2 S B_2^T need not."""
    cat, _ = source("cat", "top:4", seed=1)
    dog, _ = source("dog", "top:4@4", seed=2)
    inner = 0.0
    for layer in SHAPES:
        one, other = (s.adapter.layers[layer] for s in (cat, dog))
        (a1, b1), (a2, b2) = ([found.params[key].double() for key in ("a_u", "a_v")] for found in (one, other))
        u1, s1, v1 = (t.double() for t in (one.frames.u, one.frames.s, one.frames.v))
        u2, s2, v2 = (t.double() for t in (other.frames.u, other.frames.s, other.frames.v))
        u_parts, v_parts = ((a1 * s1) @ v1.T, (a2 * s2) @ v2.T), ((u1 * s1) @ b1.T, (u2 * s2) @ b2.T)
        size = dense(cat.change(layer)).norm() * dense(dog.change(layer)).norm()
        for first, second in (u_parts, v_parts):
            # Frames of files are fp16: 2e-4 of a right angle; exact ones are held to 1e-6 below.
            assert abs(float((first * second).sum())) < 1e-3 * size
        inner += float((dense(cat.change(layer)) * dense(dog.change(layer))).sum())
    norms = [math.sqrt(sum(float(dense(s.change(layer)).square().sum()) for layer in SHAPES)) for s in (cat, dog)]
    assert abs(inner) > 1e-3 * norms[0] * norms[1], "mixed terms do not vanish"
    assert pair(cat, dog).cosine == pytest.approx(inner / (norms[0] * norms[1]), rel=1e-3)


def test_parts_of_different_columns_are_orthogonal_to_rounding():
    g = torch.Generator().manual_seed(0)
    basis = sa.decompose(torch.randn(60, 60, generator=g))
    one, other = basis.select(range(8)), basis.select(range(8, 16))
    for _ in range(3):
        a1, a2 = (torch.randn(60, 8, generator=g, dtype=torch.float64) for _ in range(2))
        first, second = (a1 * one.s) @ one.v.double().T, (a2 * other.s) @ other.v.double().T
        assert abs(float((first * second).sum())) < 1e-6 * float(first.norm() * second.norm())
        first, second = (one.u.double() * one.s) @ a1.T, (other.u.double() * other.s) @ a2.T
        assert abs(float((first * second).sum())) < 1e-6 * float(first.norm() * second.norm())


@pytest.mark.parametrize("method", ["additive", "rotation", "svdiff", "soda"])
@pytest.mark.parametrize("based", [False, True])
def test_an_adapter_is_wholly_in_conflict_with_itself(method, based):
    cat, weights = source("cat", None if method in ("svdiff", "soda") else "top:4", method)
    found = conflict([cat, cat], weights if based else None)
    (both,) = found.pairs
    assert both.overlap == pytest.approx(1, abs=1e-6) and both.cosine == pytest.approx(1, abs=1e-6)
    assert both.shared_layers == 3 and min(both.interference) > 0.7
    assert found.sentence == "cat and cat (2) make the same change (cosine 1.00): use one of them."


def test_overlap_is_what_both_do_on_shared_columns():
    """Shifts 3, 4 on columns 0, 1 and 4, 3 on columns 1, 2, one layer: shares 9/25, 16/25 and 16/25, 9/25."""
    frames = sa.Basis(torch.tensor([5.0, 4.0, 3.0]), range(3), (6, 6), u=torch.eye(6)[:, :3], v=torch.eye(6)[:, :3])
    changes = {"a": torch.diag(torch.tensor([3.0, 4, 0, 0, 0, 0])), "b": torch.diag(torch.tensor([0.0, 4, 3, 0, 0, 0]))}

    class Made(Changes):
        def __init__(self, name, columns):
            super().__init__({Q: ((6, 6), changes[name])}, name=name, kind="made")
            self._columns = columns

        def columns(self, layer):
            return self._columns

        def frames(self, layer):
            return frames

    both = pair(Made("a", (0, 1)), Made("b", (1, 2)))
    assert both.columns == (1,) and both.overlap == pytest.approx(16 / 25) and both.cosine == pytest.approx(16 / 25)
    assert both.interference == pytest.approx((16 / 25, 16 / 25))


def test_layers_count_by_what_happens_in_them():
    """On one layer of two the same columns; the adapter does 3 of its 4 units of energy there."""
    basis = sa.Basis(torch.ones(2), range(2), (4, 4), u=torch.eye(4)[:, :2], v=torch.eye(4)[:, :2])

    class Made(Changes):
        def __init__(self, name, **energy):
            at = {"q": (Q, 0), "m": (M, 0), "m2": (M, 1)}
            made = {}
            for key, value in energy.items():
                layer, column = at[key]
                change = torch.zeros(4, 4)
                change[column, column] = value**0.5
                made[layer] = ((4, 4), change)
            super().__init__(made, name=name, kind="made")
            self.where = {at[key][0]: (at[key][1],) for key in energy}

        def columns(self, layer):
            return self.where[layer]

        def frames(self, layer):
            return basis

    both = pair(Made("a", q=3.0, m=1.0), Made("b", q=3.0, m2=1.0))
    assert both.overlap == pytest.approx(0.75) and both.cosine == pytest.approx(0.75)
    assert (both.layers, both.shared_layers) == (2, 1)
    apart = pair(Made("a", q=1.0), Made("b", m=1.0))
    assert (apart.layers, apart.overlap, apart.cosine, apart.interference) == (0, 0.0, 0.0, (0.0, 0.0))


def test_the_opposite_change_has_cosine_minus_one():
    made = lora("one")
    other = Changes(
        {layer: ((m, n), (-a, b)) for layer, ((m, n), (a, b)) in made._changes.items()}, name="other", kind="x"
    )
    assert pair(made, other).cosine == pytest.approx(-1)


# --- without a base, with a base


def test_a_lora_is_compared_as_far_as_the_files_go():
    cat, weights = source("cat")
    found = conflict([cat, lora("style")])
    (both,) = found.pairs
    assert both.overlap is None and both.cosine is not None
    assert both.interference[0] is None, "which columns the LoRA uses is not known"
    frame = files_frame([cat.frames(Q)])
    energy, total = energies(lora("style").change(Q), frame)
    assert found.layers[0].uses[1].on(frozenset(range(4))) == pytest.approx(float(energy.sum()) / total)
    assert "give the base" in found.sentence and "style carries no directions" in found.notes[0]
    found = conflict([cat, lora("style")], weights)
    assert found.pairs[0].overlap is not None and found.based and not found.notes
    assert found.members[1].measured and 20 < found.members[1].width < 48
    assert "overlap by" in found.sentence


def test_a_mixture_without_directions_of_its_own_is_not_taken_for_what_others_know():
    """Of a fusion on columns 0-5 only 4 and 5 can be measured in the other's directions: the rest lies on 0-3."""
    cat, weights = source("cat")
    turn, _ = source("turn", "top:4@2", "rotation")
    dog, _ = source("dog", "top:4@4", seed=2)
    mixed = sa.fuse([sa.Ingredient(cat), sa.Ingredient(turn)], name="mixed")
    assert mixed.native is None and mixed.columns(Q) == tuple(range(6))
    by_files, by_base = pair(mixed, dog), pair(mixed, dog, weights=weights)
    assert by_files.columns == by_base.columns == (4, 5)
    assert by_files.overlap == pytest.approx(by_base.overlap, abs=0.1) and by_files.overlap < 0.25


def test_compact_files_are_compared_by_their_parameters(tmp_path):
    paths = []
    for seed, name in ((1, "a"), (2, "b")):
        made, weights = source(name, None, "svdiff", seed)
        paths.append(sa.save(made.adapter, tmp_path / f"{name}.safetensors", profile="compact", dtype=torch.float32))
    sources = [AdapterSource(sa.load(path), path.stem) for path in paths]
    files, based = conflict(sources), conflict(sources, weights)
    assert files.pairs[0].cosine is None and "Give the base" in files.notes[-1]
    assert files.pairs[0].overlap == pytest.approx(based.pairs[0].overlap, abs=0.02)
    assert based.pairs[0].cosine is not None
    other = {layer: torch.randn(shape, generator=torch.Generator().manual_seed(9)) for layer, shape in SHAPES.items()}
    with pytest.raises(WrongBaseError, match="would be off by"):
        conflict(sources, other)


def test_files_of_different_bases_are_told_apart():
    cat, _ = source("cat")
    dog, weights = source("dog")
    for i, layer in enumerate(dog.adapter.layers.values()):
        layer.frames = sa.decompose(torch.randn(layer.shape, generator=torch.Generator().manual_seed(i)), "top:4")
    found = conflict([cat, dog])
    assert found.apart == 3 and "different weights" in found.notes[0]
    assert found.pairs[0].interference == (None, None) and found.pairs[0].cosine is not None
    assert conflict([cat, dog], weights).apart == 0


def test_what_cannot_be_compared_is_refused():
    cat, weights = source("cat")
    with pytest.raises(SettingError, match="2 to 16"):
        conflict([cat])
    with pytest.raises(SettingError, match="one kind of base"):
        conflict([cat, lora("style", shapes={Q: (32, 32)})])
    with pytest.raises(WrongBaseError, match=f"no layer {K}, which cat"):
        conflict([cat, cat], {Q: weights[Q], M: weights[M]})
    with pytest.raises(WrongBaseError, match="shape"):
        conflict([cat, cat], {**weights, K: weights[M]})
    calls = []
    with pytest.raises(Cancelled):
        conflict([cat, cat], progress=lambda *at: calls.append(at), cancelled=lambda: len(calls) == 2)
    assert calls == [(1, 3, Q), (2, 3, K)]


def test_an_untrained_adapter_is_compared_too():
    cat, _ = source("cat")
    blank, _ = source("blank", scale=0.0)
    found = conflict([cat, blank])
    assert found.pairs[0].cosine is None and found.pairs[0].overlap is None
    assert found.sentence == "cat and blank do not meet, because one of them changes nothing."
    json.dumps(found.as_json(), allow_nan=False)


# --- what is said and shown


def test_several_adapters_are_told_of_in_one_sentence():
    made = [source(name, "top:4", seed=i)[0] for i, name in enumerate(("cat", "dog", "hat"), 1)]
    assert conflict(made).sentence == (
        "cat, dog and hat all use columns 0-3 in 3 layers: retrain one with `avoid`, or expect blending."
    )
    apart = source("sky", "top:4@4")[0]
    said = conflict([*made[:2], apart]).sentence
    assert said.startswith(
        "cat and dog both use columns 0-3 in 3 layers: retrain one with `avoid`, or expect blending; "
    )
    assert said.endswith("share no column: they fuse without mixing.")
    elsewhere = source("far", shapes={"lora_te_text_model_encoder_layers_0_self_attn_q_proj": (40, 40)})[0]
    assert conflict([apart, elsewhere]).sentence == "sky and far change no layer in common: they fuse without mixing."


def test_json_holds_everything_and_adds_up():
    cat, weights = source("cat", seed=1)
    found = conflict([cat, source("dog", "top:4@2", seed=2)[0], lora("style")], weights)
    values = json.loads(json.dumps(found.as_json(), allow_nan=False))
    for i in range(3):
        assert sum(row["shares"][i] for row in values["rows"]) == pytest.approx(1)
        assert sum(sum(row["bands"][i]) for row in values["rows"]) == pytest.approx(1, abs=1e-3)
    assert [row["block"] for row in values["rows"]] == ["DOWN0", "DOWN0", "MID"]
    assert values["adapters"][0]["columns"] == [[0, 3]] and values["adapters"][2]["columns"] is None
    first = values["layers"][0]
    assert first["used"][:2] == [[[0, 3]], [[2, 5]]] and first["pairs"][0]["shared"] == [[2, 3]]
    assert sum(values["rows"][0]["shared"][:6]) >= 4, "columns 2 to 5 are used by two at least"
    matrix = values["cosine"]
    assert matrix[0][1] == matrix[1][0] == pytest.approx(found.pairs[0].cosine) and matrix[2][2] == 1


def test_the_text_names_everything():
    cat, _ = source("cat")
    text = conflict([cat, source("dog", "top:4@2", seed=3)[0]]).text
    for part in ("both use columns 2-3 in 3 layers", "cat  additive", "columns 2-5", "cat / dog", "DOWN0", "MID"):
        assert part in text


def test_columns_are_spelt_short():
    assert spans([0, 1, 2, 5, 7, 8]) == [[0, 2], [5, 5], [7, 8]] and spans([]) == []
    assert spelled(range(8)) == "0-7" and spelled([3]) == "3"
    assert spelled([0, 2, 4, 6, 8, 9]) == "0, 2, 4 and 3 others"
