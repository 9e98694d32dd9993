"""Second moments of inputs, and the least-squares fusion in closed form."""

import pytest
import torch
from adapters import adapter_of
from matrices import matrix
from torch import nn
from torch.nn import functional as F

import spectral_adapters as sa
from spectral_adapters.spectral.change import dense
from spectral_adapters.spectral.fusion import Ingredient, fuse, verify
from spectral_adapters.spectral.moments import Recorder, by_layer, least_squares
from spectral_adapters.spectral.source import AdapterSource, Changes

M, N = 20, 12


def change(seed, rank=3):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(M, rank, generator=gen), torch.randn(rank, N, generator=gen)


def gram(z):
    """Z Z^T / samples for inputs z (n, samples)."""
    return (z @ z.T) / z.shape[1]


def inputs(seed, samples):
    return torch.randn(N, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("form", ["thin", "dense"])
def test_the_closed_form_is_the_least_squares_solution(form):
    """argmin_X sum_i ||(W + D_i) Z_i - X Z_i||^2 by lstsq on all samples at once; W drops out of X - W."""
    changes = [change(i) if form == "thin" else dense(change(i)) for i in range(3)]
    z = [inputs(10 + i, 40) for i in range(3)]
    w = torch.randn(M, N, dtype=torch.float64)
    targets = torch.cat([(w + dense(d).double()) @ each for d, each in zip(changes, z)], 1)
    expected = torch.linalg.lstsq(torch.cat(z, 1).T, targets.T).solution.T - w
    moments = [gram(each) for each in z]
    found = least_squares(changes, moments, sum(moments), eps=1e-12)
    assert isinstance(found, tuple) == (form == "thin" and 3 * 3 * (M + N) < M * N)
    torch.testing.assert_close(dense(found).double(), expected, atol=1e-5, rtol=1e-5)


def test_thin_changes_stay_thin():
    changes = [(torch.randn(40, 2), torch.randn(2, 60)) for _ in range(2)]
    moments = [gram(torch.randn(60, 100, dtype=torch.float64)) for _ in range(2)]
    found = least_squares(changes, moments, sum(moments))
    assert isinstance(found, tuple) and found[0].shape == (40, 4)
    expected = least_squares([dense(c) for c in changes], moments, sum(moments))
    torch.testing.assert_close(dense(found), expected, atol=1e-4, rtol=1e-4)


def test_concepts_whose_inputs_live_apart_keep_their_own_changes():
    """X Z_i = D_i Z_i exactly: nothing blends, whatever the changes are."""
    frame = torch.linalg.qr(inputs(0, N)).Q
    z = [frame[:, 4 * i : 4 * i + 4] @ inputs(i, 4)[:4] for i in range(3)]
    changes, moments = [change(i) for i in range(3)], [gram(each) for each in z]
    found = dense(least_squares(changes, moments, sum(moments), eps=1e-12)).double()
    for own, each in zip(changes, z):
        torch.testing.assert_close(found @ each, dense(own).double() @ each, atol=1e-5, rtol=1e-5)


def test_directions_without_inputs_stay_the_bases():
    z = inputs(0, 30)
    z[6:] = 0
    found = dense(least_squares([change(0)], [gram(z)], gram(z)))
    assert float(found[:, 6:].abs().max()) == 0
    torch.testing.assert_close(found[:, :6], dense(change(0))[:, :6], atol=1e-3, rtol=1e-3)


def test_without_records_the_sum_and_rounding_below_zero_is_no_obstacle():
    nothing = torch.zeros(N, N)
    found = least_squares([change(0), change(1)], [nothing, nothing], nothing)
    torch.testing.assert_close(dense(found), dense(change(0)) + dense(change(1)))
    z = inputs(3, 4)
    dented = gram(z) - 1e-3 * torch.eye(N, dtype=torch.float64)  # negative in every direction without inputs
    found = dense(least_squares([change(0)], [gram(z)], dented, eps=1e-6))
    assert bool(torch.isfinite(found).all())


def test_what_cannot_be_solved_is_refused():
    eye = torch.eye(N)
    with pytest.raises(sa.SettingError, match=r"moments of shape .* 12 inputs"):
        least_squares([change(0)], [torch.eye(5)], torch.eye(5))
    with pytest.raises(sa.SettingError, match="eps=0"):
        least_squares([change(0)], [eye], eye, eps=0)


def test_fusion_by_gradient_weighs_checks_itself_and_sums_the_rest():
    sources = [
        Changes({"a": ((M, N), change(i)), "b": ((M, N), change(i + 5))}, name=f"c{i}", kind="LoRA") for i in range(2)
    ]
    ingredients = [Ingredient(sources[0], 1.0), Ingredient(sources[1], 0.5)]
    moments = {"a": tuple(gram(inputs(i, 50)).float() for i in range(2))}
    made = fuse(ingredients, "gradient", moments=moments)
    z = [gram(inputs(i, 50)) for i in range(2)]
    expected = dense(least_squares([change(0), tuple(t * f for t, f in zip(change(1), (0.5, 1)))], z, sum(z)))
    torch.testing.assert_close(dense(made.change("a")), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense(made.change("b")), dense(change(5)) + 0.5 * dense(change(6)))
    assert verify(made, ingredients, "gradient", moments=moments).largest < 1e-5
    assert verify(made, ingredients, "gradient").largest > 0.01  # a is no plain sum
    assert "gradient" in made.text


def test_solving_can_be_followed_and_cancelled_and_needs_what_its_ingredients_need(tmp_path):
    adapter, weights = adapter_of("svdiff", {}, shapes={"a": (M, N), "b": (M, N)})
    compact = AdapterSource(sa.load(sa.save(adapter, tmp_path / "compact.safetensors")), "compact")
    lora = Changes({"a": ((M, N), change(0))}, name="lora", kind="LoRA")
    pair, moments = [Ingredient(compact), Ingredient(lora)], {"a": (gram(inputs(0, 50)), gram(inputs(1, 50)))}
    with pytest.raises(sa.WrongBaseError, match="compact file"):
        fuse(pair, "gradient", moments=moments)
    with pytest.raises(sa.Cancelled):
        fuse(pair, "gradient", moments=moments, weights=weights, cancelled=lambda: True)
    told = []
    made = fuse(pair, "gradient", moments=moments, weights=weights, progress=lambda *at: told.append(at))
    assert told == [(1, 1, "a")]
    assert not made.needs_weight("a") and made.needs_weight("b")
    assert made.columns("a") is None and made.columns("b") == tuple(range(N))
    assert verify(made, pair, "gradient", weights, moments=moments).largest < 1e-5


def test_a_concept_of_weight_zero_has_no_say():
    sources = [Changes({"a": ((M, N), change(i))}, name=f"c{i}", kind="LoRA") for i in range(2)]
    z = tuple(gram(inputs(i, 50)) for i in range(2))
    pair = [Ingredient(sources[0], 1.0), Ingredient(sources[1], 0.0)]
    made = fuse(pair, "gradient", moments={"a": z})
    torch.testing.assert_close(dense(made.change("a")), dense(least_squares([change(0)], z[:1], z[0])))
    assert verify(made, pair, "gradient", moments={"a": z}).largest < 1e-5


def test_moments_must_be_of_the_ingredients():
    ingredients = [Ingredient(Changes({"a": ((M, N), change(0))}, name="c", kind="LoRA"))]
    eye = torch.eye(N)
    with pytest.raises(sa.SettingError, match=r"found 2 matrices .* each of the 1 adapters"):
        fuse(ingredients, "gradient", moments={"a": (eye, eye)})
    with pytest.raises(sa.SettingError, match="for mode gradient alone"):
        fuse(ingredients, "sum", moments={"a": (eye,)})


def test_a_recorder_sums_what_goes_into_linear_layers_and_convolutions():
    """Against the layer itself: sum of squares of its outputs = tr(W M W^T) samples."""
    modules = {
        "line": nn.Linear(6, 4, bias=False),
        "conv": nn.Conv2d(3, 5, 3, padding=1, stride=2, bias=False),
        "point": nn.Conv2d(3, 2, 1, bias=False),
        "wide": nn.Conv2d(4, 2, 3, padding=2, dilation=2, bias=False),
    }
    shapes = {"line": (2, 7, 6), "conv": (2, 3, 8, 8), "point": (2, 3, 8, 8), "wide": (3, 4, 6, 6)}
    with Recorder(modules) as recorder:
        for seed in range(2):
            torch.manual_seed(seed)
            made = {name: modules[name](torch.randn(shape)) for name, shape in shapes.items()}
    torch.manual_seed(0)
    first = {name: torch.randn(shape) for name, shape in shapes.items()}
    assert not recorder.left_out
    for name, module in modules.items():
        torch.manual_seed(1)
        second = {other: torch.randn(shape) for other, shape in shapes.items()}[name]
        with torch.no_grad():
            outputs = [module(x) for x in (first[name], second)]
        positions = sum(y.numel() for y in outputs) // module.weight.shape[0]
        squares = float(sum(y.double().square().sum() for y in outputs)) / positions
        w = module.weight.detach().flatten(1).double()
        assert float((w @ recorder.moments[name].double() @ w.T).trace()) == pytest.approx(squares, rel=1e-5)
    assert all(y.requires_grad for y in made.values())
    before = recorder.moments["line"].clone()
    modules["line"](torch.ones(1, 6))  # outside
    assert torch.equal(recorder.moments["line"], before)
    assert not modules["line"]._forward_pre_hooks


def test_a_recorder_leaves_out_what_does_not_fit_and_names_it():
    modules = {
        "large": nn.Linear(100, 2),
        "small": nn.Linear(10, 2),
        "grouped": nn.Conv2d(4, 4, 3, groups=2),
        "mirrored": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        "same": nn.Conv2d(4, 4, 4, padding="same"),
        "norm": nn.LayerNorm(10),
    }
    with Recorder(modules, most_bytes=4 * 100 * 100) as recorder:
        modules["small"](torch.randn(3, 10))
    assert set(recorder.left_out) == {"large", "grouped", "mirrored", "same", "norm"}
    assert set(recorder.moments) == {"small"}


def test_a_recorder_lets_go_after_an_error():
    line = nn.Linear(3, 3)
    with pytest.raises(RuntimeError), Recorder({"line": line}):
        line(torch.randn(2, 4))
    assert not line._forward_pre_hooks


def test_recordings_are_joined_by_layer():
    a, b = {"x": torch.eye(2), "y": torch.eye(3)}, {"x": 2 * torch.eye(2)}
    assert {layer: len(found) for layer, found in by_layer([a, b]).items()} == {"x": 2}
    assert by_layer([]) == {}


def test_recorded_fusion_does_to_each_concepts_activations_what_its_own_change_does():
    """Better than the sum on the inputs of both, where the changes collide."""
    line = nn.Linear(N, M, bias=False)
    line.weight.data = matrix(M, N)
    changes = [change(i, rank=2) for i in range(2)]
    z = [torch.diag(torch.logspace(0, -2 if i else 2, N)) @ inputs(i, 200).float() for i in range(2)]
    recordings = []
    for each in z:
        with Recorder({"a": line}) as recorder:
            line(each.T)
        recordings.append(recorder.moments)
    sources = [Changes({"a": ((M, N), c)}, name=f"c{i}", kind="LoRA") for i, c in enumerate(changes)]
    pair = [Ingredient(one) for one in sources]

    def loss(mode, **more):
        found = dense(fuse(pair, mode, **more).change("a"))
        return sum(float(F.mse_loss(found @ each, dense(own) @ each)) for own, each in zip(changes, z))

    assert loss("gradient", moments=by_layer(recordings)) < 0.9 * min(loss("sum"), loss("mean"))
