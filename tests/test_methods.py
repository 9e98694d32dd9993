import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import matrix, random_params

import spectral_adapters as sa
from spectral_adapters.spectral.linalg import cayley, skew
from spectral_adapters.spectral.methods.svdiff import apply_shift, shift
from spectral_adapters.spectral.ops import LinearMap

WEIGHTS = {
    "wide": lambda: matrix(24, 40),
    "square": lambda: matrix(32, 32),
    "tall": lambda: matrix(40, 24),
    "conv1x1": lambda: matrix(20, 24).reshape(20, 24, 1, 1),
    "conv3x3": lambda: matrix(20, 216).reshape(20, 24, 3, 3),
    "conv-tall": lambda: matrix(64, 36).reshape(64, 4, 3, 3),
    "prime": lambda: matrix(20, 17),
}
SETTINGS = [
    ("svdiff", {}),
    ("svdiff", {"rank": 5}),
    ("additive", {"rank": 4}),
    ("additive", {"columns": "top:4@3"}),
    ("rotation", {"rank": 6}),
    ("rotation", {"rank": 1}),
    ("soda", {}),
    ("soda", {"rotation": "cayley"}),
    ("soda", {"rotation": "exp", "rank": 5}),
]
every_method = pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=lambda x: str(x))
every_weight = pytest.mark.parametrize("kind", WEIGHTS)


def trained(name, settings, weight, scale=0.05):
    method = sa.method(name, **settings)
    basis = sa.decompose(weight, method.columns)
    return method, basis, random_params(method, weight, basis, scale)


def layer_of(weight, **conv):
    if weight.ndim == 2:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    else:
        layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2, **conv)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


@every_weight
@every_method
def test_identity_changes_nothing(name, settings, kind):
    weight = WEIGHTS[kind]()
    method = sa.method(name, **settings)
    basis = sa.decompose(weight, method.columns)
    delta = method.delta(basis, method.init(weight, basis))
    assert delta.shape == (weight.shape[0], weight[0].numel())
    assert delta.abs().max() < 1e-6


@every_weight
@every_method
def test_strength_modes_agree_at_zero_and_one(name, settings, kind):
    method, basis, params = trained(name, settings, WEIGHTS[kind]())
    full = method.delta(basis, params)
    for mode in ("linear", "spectral"):
        assert not method.delta(basis, params, 0.0, mode).any()
        torch.testing.assert_close(method.delta(basis, params, 1.0, mode), full, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(method.delta(basis, params, 0.5), 0.5 * full)


@every_weight
@every_method
def test_factors_multiply_to_the_change(name, settings, kind):
    method, basis, params = trained(name, settings, WEIGHTS[kind]())
    for strength, mode in ((1.0, "linear"), (0.7, "linear"), (0.7, "spectral")):
        factors = method.factors(basis, params, strength, mode)
        if factors is None:
            assert name == "soda" or basis.full
            return
        up, down = factors
        assert up.shape[1] == down.shape[0] <= 2 * len(basis.columns)
        torch.testing.assert_close(up @ down, method.delta(basis, params, strength, mode), atol=1e-6, rtol=1e-4)


@every_weight
@every_method
def test_activations_see_the_merged_weight(name, settings, kind):
    weight = WEIGHTS[kind]()
    method, basis, params = trained(name, settings, weight)
    layer = layer_of(weight)
    x = torch.randn(2, 5, weight.shape[1]) if weight.ndim == 2 else torch.randn(2, weight.shape[1], 6, 5)
    y = method.apply(LinearMap(layer), basis, params, x)
    with torch.no_grad():
        layer.weight += method.delta(basis, params).reshape(weight.shape)
    torch.testing.assert_close(y, LinearMap(layer).base(x), atol=3e-3, rtol=3e-3)  # W here is not rounded to fp16


@pytest.mark.parametrize("conv", [{"stride": 2}, {"dilation": 2}, {"padding_mode": "circular"}])
@every_method
def test_activations_follow_the_geometry_of_a_convolution(name, settings, conv):
    weight = WEIGHTS["conv3x3"]().half().float()
    method, basis, params = trained(name, settings, weight)
    layer, x = layer_of(weight, **conv), torch.randn(1, 24, 8, 8)
    y = method.apply(LinearMap(layer), basis, params, x)
    with torch.no_grad():
        layer.weight += method.delta(basis, params).reshape(weight.shape)
    torch.testing.assert_close(y, LinearMap(layer).base(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["wide", "tall", "conv3x3", "conv-tall"])
def test_every_form_of_the_shift_gives_one_answer_and_one_gradient(kind):
    # Few positions: on activations. Many: the rebuilt weight. The same x is repeated, so the answers must be too.
    weight = WEIGHTS[kind]().half().float()
    basis, layer = sa.decompose(weight), layer_of(weight)
    few = torch.randn(1, 3, weight.shape[1]) if weight.ndim == 2 else torch.randn(1, weight.shape[1], 2, 2)
    results = []
    for copies in (1, 400):
        delta = (0.05 * torch.ones_like(basis.s)).requires_grad_()
        x = few.repeat(copies, *[1] * (few.ndim - 1))
        y = apply_shift(LinearMap(layer), basis, shift(basis, delta), x)[:1]
        y.square().sum().backward()
        results.append((y.detach(), delta.grad))
    for one, many in zip(*results):
        torch.testing.assert_close(one, many, atol=1e-4, rtol=1e-4)


@every_method
def test_gradients_agree_with_finite_differences(name, settings):
    weight = matrix(6, 8).half().double()
    method = sa.method(name, **{**settings, **({"columns": "top:3@1"} if settings.get("columns") else {})})
    basis = sa.decompose(weight.float(), method.columns)
    for field in ("s", "_u", "_v"):
        if (side := getattr(basis, field)) is not None:
            setattr(basis, field, side.double())
    params = {n: p.double().requires_grad_() for n, p in random_params(method, weight.float(), basis).items()}
    layer, x = layer_of(weight.float()).double(), torch.randn(2, 8, dtype=torch.float64)
    names = list(params)

    def forward(*values):
        return method.apply(LinearMap(layer), basis, dict(zip(names, values)), x)

    assert torch.autograd.gradcheck(forward, tuple(params.values()), atol=1e-5)


def test_svdiff_closed_form():
    weight = matrix(8, 12).half().float()
    basis = sa.decompose(weight)
    delta = torch.linspace(-2, 0.5, 8)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    expected = (u * torch.relu(s + delta)) @ vh - weight
    torch.testing.assert_close(sa.method("svdiff").delta(basis, {"delta": delta}), expected, atol=1e-5, rtol=1e-4)


def test_svdiff_strength_clips_inside_the_relu_in_spectral_mode():
    basis = sa.decompose(torch.eye(2))
    params = {"delta": torch.tensor([-0.8, -0.8])}
    at_two = sa.method("svdiff").delta(basis, params, 2.0, "spectral")
    torch.testing.assert_close(at_two, -torch.eye(2))  # relu(1 - 1.6) = 0: the direction is gone and not reversed


def test_directions_without_signal_are_inert():
    weight = matrix(16, 24, "rank-deficient").half().float()
    weight[8:] = 0
    basis = sa.decompose(weight)
    assert 0 < int((~basis.live).sum()) < 16
    delta = torch.where(basis.live, 0.0, 1.0)
    assert not sa.method("svdiff").delta(basis, {"delta": delta}).any()


def test_additive_closed_form():
    weight = matrix(10, 14)
    method, basis, p = trained("additive", {"rank": 3}, weight)
    s = torch.diag(basis.s)
    expected = (basis.u + p["a_u"]) @ s @ (basis.v + p["a_v"]).T - basis.u @ s @ basis.v.T
    torch.testing.assert_close(method.delta(basis, p), expected, atol=1e-6, rtol=1e-4)


def test_additive_concepts_on_disjoint_columns_do_not_cross():
    weight = matrix(32, 40)
    deltas = []
    for columns in ("top:4", "top:4@4"):
        method = sa.method("additive", columns=columns)
        basis = sa.decompose(weight, method.columns)
        params = random_params(method, weight, basis) | {"a_v": torch.zeros(40, 4)}
        deltas.append(method.delta(basis, params))
    assert abs(float((deltas[0] * deltas[1]).sum())) < 1e-6 * float(deltas[0].norm() * deltas[1].norm()) + 1e-9


def test_rotation_closed_form_keeps_the_spectrum():
    weight = matrix(12, 18).half().float()
    method, basis, p = trained("rotation", {"rank": 5}, weight, 0.3)
    r_u, r_v = (cayley(skew(p[q], 5)) for q in ("q_u", "q_v"))
    s = torch.diag(basis.s)
    expected = (basis.u @ r_u) @ s @ (basis.v @ r_v).T - basis.u @ s @ basis.v.T
    delta = method.delta(basis, p)
    torch.testing.assert_close(delta, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        torch.linalg.svdvals(weight + delta), torch.linalg.svdvals(weight), atol=1e-5, rtol=1e-4
    )


def test_soda_closed_form():
    weight = matrix(10, 24).half().float()
    method, basis, p = trained("soda", {}, weight)
    k = torch.kron(torch.kron(p["k1"], p["k2"]), p["k3"])
    shifted = (basis.u * torch.relu(basis.s + p["delta"])) @ basis.v.T
    torch.testing.assert_close(method.delta(basis, p), shifted @ k.T - weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rotation", ["stiefel", "cayley", "exp"])
def test_soda_with_rotation_alone_keeps_the_spectrum_at_every_strength(rotation):
    weight = matrix(10, 24).half().float()
    method, basis, p = trained("soda", {"rotation": rotation}, weight, 0.2)
    p["delta"] = torch.zeros(10)
    for strength in (-1.0, 0.4, 1.7):
        turned = weight + method.delta(basis, p, strength, "spectral")
        torch.testing.assert_close(torch.linalg.svdvals(turned), torch.linalg.svdvals(weight), atol=1e-5, rtol=1e-4)


def test_soda_names_a_prime_width():
    weight = matrix(8, 67)
    method = sa.method("soda")
    with pytest.warns(UserWarning, match="67 x 67"):
        params = method.init(weight, sa.decompose(weight))
    assert params["k3"].shape == (67, 67)


@pytest.mark.parametrize(("width", "sizes"), [(320, (5, 8, 8)), (1024, (8, 8, 16))])
def test_soda_has_factors_for_the_widths_of_stable_diffusion(width, sizes):
    shapes = sa.method("soda").param_shapes((16, width), 16)
    assert shapes == {"delta": (16,), **{f"k{i + 1}": (d, d) for i, d in enumerate(sizes)}}


@given(
    st.sampled_from(SETTINGS),
    st.integers(6, 20),
    st.integers(6, 20),
    st.floats(-1.5, 2.0),
    st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_random_layers_agree_between_forward_and_delta(setting, m, n, strength, seed):
    name, settings = setting
    weight = matrix(m, n, seed=seed).half().float()
    method, basis, params = trained(name, settings, weight)
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(seed))
    applied = method.apply(LinearMap(layer_of(weight)), basis, params, x)
    torch.testing.assert_close(applied, x @ (weight + method.delta(basis, params)).T, atol=1e-4, rtol=1e-3)
    spectral, linear = (method.delta(basis, params, strength, mode) for mode in ("spectral", "linear"))
    assert torch.isfinite(spectral).all()
    assert (spectral - linear).norm() <= (1 + 2 * abs(strength)) * method.delta(basis, params).norm() + 1e-5


@every_method
def test_settings_make_the_same_method_again(name, settings):
    method = sa.method(name, **settings)
    assert sa.method(name, **method.settings).settings == method.settings


def test_registry_refuses_unknown_names_and_settings():
    assert sa.METHODS == ("svdiff", "additive", "rotation", "soda")
    for call in (
        lambda: sa.method("lora"),
        lambda: sa.method("soda", rotation="euler"),
        lambda: sa.method("svdiff", alpha=1),
        lambda: sa.method("additive", rank=4, columns="top:4"),
    ):
        with pytest.raises(sa.SettingError):
            call()


@every_method
def test_check_accepts_its_own_and_names_a_wrong_shape(name, settings):
    weight = matrix(24, 40)
    method, basis, params = trained(name, settings, weight)
    r = len(basis.columns)
    assert method.check(params, weight.shape, r) is None
    first = next(iter(params))
    assert "expected" in method.check(params | {first: torch.zeros(3, 5, 7)}, weight.shape, r)
    assert "expected" in method.check({}, weight.shape, r)


def test_soda_check_measures_orthogonality():
    weight = matrix(24, 40)
    method, _, params = trained("soda", {}, weight)
    assert "not orthogonal" in method.check(params | {"k1": 2 * params["k1"]}, weight.shape, 24)
