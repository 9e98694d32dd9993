import hashlib

import pytest
import torch
from matrices import matrix

import spectral_adapters as sa
from spectral_adapters.spectral.evidence import align, make_evidence, probe_error, probe_response, rademacher


def test_rademacher_is_sha256_in_counter_mode():
    found = rademacher("some label", 3, 100)
    stream = b"".join(hashlib.sha256(b"some label\x00" + i.to_bytes(8, "big")).digest() for i in range(2))
    bits = [(byte >> (7 - b)) & 1 for byte in stream for b in range(8)][:300]
    assert found.flatten().tolist() == [2.0 * bit - 1 for bit in bits]
    # Written down once, so that no later version can change it unnoticed.
    assert "".join("+" if x > 0 else "-" for x in rademacher("spectral", 1, 32)[0]) == GOLDEN


GOLDEN = "+-+--++-++------+---+-+--------+"


def test_rademacher_differs_by_label_and_is_balanced():
    a, b = rademacher("a", 64, 64), rademacher("b", 64, 64)
    assert a.abs().eq(1).all() and abs(float(a.mean())) < 0.06 and abs(float((a * b).mean())) < 0.06


def test_the_three_forms_of_a_change_give_one_probe():
    up, down = torch.randn(30, 4), torch.randn(4, 50)
    dense = up @ down
    for change in (dense, lambda x: dense @ x):
        torch.testing.assert_close(
            probe_response("l", (30, 50), change), probe_response("l", (30, 50), (up, down)), rtol=1e-4, atol=1e-4
        )


def test_the_probe_estimates_the_size_of_a_change():
    change = matrix(60, 90)
    squares = [float(probe_response(f"layer{i}", (60, 90), change).square().sum()) / 128 for i in range(60)]
    assert sum(squares) / len(squares) == pytest.approx(float(change.square().sum()), rel=0.1)


@pytest.mark.parametrize("rank", [1, 8, 48])
def test_the_probe_estimates_the_error_of_a_change(rank):
    trained = (torch.randn(48, rank) @ torch.randn(rank, 64)) / rank
    error2 = change2 = true2 = 0.0
    for i in range(30):
        here = trained + 0.03 * torch.randn(48, 1) @ torch.randn(1, 64)
        basis = sa.decompose(torch.randn(48, 64), 8)
        evidence = make_evidence(f"layer{i}", basis, trained, sketch=False)
        found = probe_error(f"layer{i}", (48, 64), evidence, here)
        error2, change2, true2 = error2 + found[0], change2 + found[1], true2 + float((here - trained).square().sum())
    true = (true2 / (30 * float(trained.square().sum()))) ** 0.5
    assert (error2 / change2) ** 0.5 == pytest.approx(true, rel=0.3)


def test_an_equal_change_has_no_error():
    evidence = make_evidence("l", sa.decompose(matrix(20, 30), 4), matrix(20, 30, seed=3), sketch=False)
    assert probe_error("l", (20, 30), evidence, matrix(20, 30, seed=3))[0] == 0


def _scrambled(basis, u, v, s=None):
    return sa.Basis(basis.s if s is None else s, range(u.shape[1]), basis.shape, u=u, v=v)


def test_align_undoes_signs_and_order():
    basis = sa.decompose(matrix(40, 60), 8)
    evidence = make_evidence("l", basis, None, sketch=True)
    order, signs = torch.tensor([1, 0, 2, 4, 3, 5, 7, 6]), torch.tensor([1.0, -1, -1, 1, 1, -1, 1, -1])
    other = _scrambled(basis, basis.u[:, order] * signs, basis.v[:, order] * signs, basis.s[order])
    back = align("l", evidence, other, range(8))
    torch.testing.assert_close(back.u, basis.u, atol=2e-3, rtol=0)
    torch.testing.assert_close(back.v, basis.v, atol=2e-3, rtol=0)
    torch.testing.assert_close(back.s, basis.s)


def test_align_finds_columns_that_left_the_first_eight():
    basis = sa.decompose(matrix(40, 60, "steep"), 12)
    evidence = make_evidence("l", basis.select(range(8)), None, sketch=True)
    order = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 7, 9, 10, 11])
    back = align("l", evidence, _scrambled(basis, basis.u[:, order], basis.v[:, order]), range(8))
    torch.testing.assert_close(back.u, basis.u[:, :8], atol=2e-3, rtol=0)


def test_align_rotates_inside_a_cluster():
    basis = sa.decompose(matrix(40, 60, "clustered"), 10)
    evidence = make_evidence("l", basis, None, sketch=True)
    rotation = torch.block_diag(*(torch.linalg.qr(torch.randn(5, 5)).Q for _ in range(2)))
    back = align("l", evidence, _scrambled(basis, basis.u @ rotation, basis.v @ rotation), range(10))
    torch.testing.assert_close(back.u, basis.u, atol=2e-3, rtol=0)
    torch.testing.assert_close(back.v, basis.v, atol=2e-3, rtol=0)
    torch.testing.assert_close(back.u.T @ back.u, torch.eye(10), atol=1e-5, rtol=0)


def test_a_basis_of_another_weight_is_aligned_to_nothing_sensible_but_stays_orthonormal():
    evidence = make_evidence("l", sa.decompose(matrix(40, 60), 8), None, sketch=True)
    back = align("l", evidence, sa.decompose(matrix(40, 60, seed=9), 16), range(8))
    torch.testing.assert_close(back.v.T @ back.v, torch.eye(8), atol=1e-5, rtol=0)
