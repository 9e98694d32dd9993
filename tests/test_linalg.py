import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import SHAPES, SPECTRA, matrix

from spectral_adapters.spectral.linalg import (
    cayley,
    kron_factors,
    kron_rotate,
    orthogonal_power,
    other_side,
    rotation_power,
    skew,
    small_side,
    top_svd,
)


def worst(w, u, s, v):
    """Largest residual of a triple relative to sigma_1, and largest departure from orthonormality."""
    w, u, s, v = (t.double() for t in (w, u, s, v))
    eye = torch.eye(len(s), dtype=torch.float64)
    residual = max((w @ v - u * s).norm(dim=0).max(), (w.T @ u - v * s).norm(dim=0).max()) / s[0]
    return float(residual), float(max((u.T @ u - eye).abs().max(), (v.T @ v - eye).abs().max()))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
def test_all_columns_meet_the_accuracy(shape, spectrum):
    w = matrix(*shape, spectrum)
    q, s = small_side(w)
    p = other_side(w, q, s, float(s[0]))
    u, v = (q, p) if shape[0] <= shape[1] else (p, q)
    residual, departure = worst(w, u, s, v)
    assert residual < 1e-5 and departure < 1e-5
    assert (s[:-1] >= s[1:]).all()
    torch.testing.assert_close(s, torch.linalg.svdvals(w.double()).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("spectrum", ["decaying", "steep", "rank-deficient", "clustered"])
@pytest.mark.parametrize("shape", [(320, 320), (320, 900), (700, 320)])
def test_top_columns_meet_the_accuracy(shape, spectrum):
    w = matrix(*shape, spectrum)
    u, s, v = top_svd(w, 8)
    residual, departure = worst(w, u, s, v)
    assert residual < 1e-5 and departure < 1e-5
    torch.testing.assert_close(s, torch.linalg.svdvals(w.double())[:8].float(), atol=2e-6, rtol=0)


def test_top_columns_give_up_on_a_flat_spectrum():
    assert top_svd(torch.randn(320, 320), 8) is None


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_small_and_odd_shapes(m, n, seed):
    w = torch.randn(m, n, generator=torch.Generator().manual_seed(seed))
    q, s = small_side(w)
    p = other_side(w, q, s, float(s[0]))
    u, v = (q, p) if m <= n else (p, q)
    residual, departure = worst(w, u, s, v)
    assert residual < 1e-5 and departure < 1e-5


def test_zero_matrix_has_an_orthonormal_basis():
    q, s = small_side(torch.zeros(4, 7))
    p = other_side(torch.zeros(4, 7), q, s, 0.0)
    assert not s.any()
    torch.testing.assert_close(p.T @ p, torch.eye(4))


def test_largest_entry_of_each_small_side_column_is_positive():
    q, _ = small_side(torch.randn(30, 50))
    assert (q.gather(0, q.abs().argmax(0, keepdim=True)) > 0).all()


def test_skew_and_cayley_of_two_dimensions():
    # Q = [[0, q], [-q, 0]] turns by the angle 2 arctan(q): the closed form of Cayley in the plane.
    q = 0.7
    angle = 2 * math.atan(q)
    expected = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    torch.testing.assert_close(cayley(skew(torch.tensor([q]), 2)), expected)


def test_skew_reads_the_upper_triangle_row_by_row():
    expected = torch.tensor([[0.0, 1, 2], [-1, 0, 3], [-2, -3, 0]])
    torch.testing.assert_close(skew(torch.tensor([1.0, 2, 3]), 3), expected)


@given(st.integers(1, 8), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_powers_of_a_rotation_form_a_group(r, s, t, seed):
    gen = torch.Generator().manual_seed(seed)
    q = skew(0.3 * torch.randn(r * (r - 1) // 2, generator=gen, dtype=torch.float64), r)
    product = rotation_power(q, s) @ rotation_power(q, t)
    torch.testing.assert_close(product, rotation_power(q, s + t), atol=1e-10, rtol=0)
    torch.testing.assert_close(rotation_power(q, 1.0), cayley(q), atol=1e-10, rtol=0)
    torch.testing.assert_close(orthogonal_power(cayley(q), s), rotation_power(q, s), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("n", "factors"), [(320, (5, 8, 8)), (768, (8, 8, 12)), (1024, (8, 8, 16)), (1280, (8, 10, 16)), (997, (1, 1, 997))]
)
def test_kronecker_factors(n, factors):
    assert kron_factors(n) == factors


@given(st.integers(1, 3000))
def test_kronecker_factors_multiply_to_the_width_and_no_split_is_cheaper(n):
    a, b, c = kron_factors(n)
    assert a * b * c == n and a <= b <= c
    cheapest = min(
        d * d + e * e + (n // d // e) ** 2
        for d in range(1, round(n ** (1 / 3)) + 1)
        if n % d == 0
        for e in range(d, math.isqrt(n // d) + 1)
        if (n // d) % e == 0
    )
    assert a * a + b * b + c * c == cheapest


def test_kronecker_rotation_equals_the_dense_product():
    k1, k2, k3 = (torch.randn(d, d) for d in (2, 3, 4))
    x = torch.randn(5, 7, 24)
    torch.testing.assert_close(kron_rotate(x, k1, k2, k3), x @ torch.kron(torch.kron(k1, k2), k3), atol=1e-4, rtol=1e-4)
