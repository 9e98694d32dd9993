"""The optimiser for sd-scripts: each kind of group by its own rule, exactly as two optimisers would."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.spectral.stiefel import StiefelAdam
from spectral_adapters.trainer.kohya_optimizer import SpectralOptimizer


def parameters(dtype: torch.dtype = torch.float32) -> tuple[list[Parameter], list[Parameter]]:
    """Two ordinary parameters and two orthogonal matrices."""
    generator = torch.Generator().manual_seed(5)
    ordinary = [torch.randn(shape, generator=generator) for shape in ((7,), (3, 4))]
    orthogonal = [torch.linalg.qr(torch.randn((d, d), generator=generator))[0] for d in (3, 5)]
    return [Parameter(t.to(dtype)) for t in ordinary], [Parameter(t.to(dtype)) for t in orthogonal]


def set_gradients(params: list[Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def groups(ordinary: list[Parameter], orthogonal: list[Parameter]) -> list[dict]:
    return [
        {"params": ordinary, "lr": 0.02, "weight_decay": 0.1, "kind": "adamw", "name": "delta"},
        {"params": orthogonal, "lr": 0.03, "weight_decay": 0.0, "kind": "stiefel", "name": "k1"},
    ]


def trained(optimizer: SpectralOptimizer, params: list[Parameter], steps: range) -> list[Tensor]:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()
    return [p.detach().clone() for p in params]


def test_each_kind_steps_by_its_own_rule():
    ordinary, orthogonal = parameters()
    found = trained(SpectralOptimizer(groups(ordinary, orthogonal), eps=1e-7), [*ordinary, *orthogonal], range(5))
    ordinary, orthogonal = parameters()
    two = [
        torch.optim.AdamW(ordinary, lr=0.02, weight_decay=0.1, eps=1e-7),
        StiefelAdam(orthogonal, lr=0.03),
    ]
    for step in range(5):
        set_gradients([*ordinary, *orthogonal], step)
        for optimizer in two:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(found, [*ordinary, *orthogonal]))
    for k in found[2:]:
        assert torch.allclose(k.T @ k, torch.eye(len(k)), atol=1e-6)


def test_groups_without_a_kind_and_bare_parameters_are_ordinary():
    (p, _), _ = parameters()
    other = Parameter(p.detach().clone())
    found = trained(SpectralOptimizer([p], lr=0.05, weight_decay=0.2), [p], range(3))
    plain = torch.optim.AdamW([other], lr=0.05, weight_decay=0.2)
    for step in range(3):
        set_gradients([other], step)
        plain.step()
    assert torch.equal(found[0], other)


def test_schedulers_reach_both_kinds():
    ordinary, orthogonal = parameters()
    before = [p.detach().clone() for p in (*ordinary, *orthogonal)]
    optimizer = SpectralOptimizer(groups(ordinary, orthogonal))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 0.0)
    set_gradients([*ordinary, *orthogonal], 0)
    optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before, (*ordinary, *orthogonal)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_goes_on_as_if_nothing_had_been(dtype, tmp_path):
    ordinary, orthogonal = parameters(dtype)
    optimizer = SpectralOptimizer(groups(ordinary, orthogonal))
    trained(optimizer, [*ordinary, *orthogonal], range(3))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    again = copy.deepcopy(ordinary), copy.deepcopy(orthogonal)
    wanted = trained(optimizer, [*ordinary, *orthogonal], range(3, 6))

    resumed = SpectralOptimizer(groups(*again))
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.bin", weights_only=True))
    assert [group["kind"] for group in resumed.param_groups] == ["adamw", "stiefel"]
    found = trained(resumed, [*again[0], *again[1]], range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


def test_half_precision_is_stepped_as_its_fp32_copy():
    ordinary, orthogonal = parameters(torch.bfloat16)
    wide = [Parameter(p.detach().float()) for p in (*ordinary, *orthogonal)]
    slow = [{**group, "lr": 1e-4} for group in groups(ordinary, orthogonal)]
    optimizer = SpectralOptimizer(slow)
    reference = SpectralOptimizer([{**g, "params": wide[i : i + 2]} for g, i in zip(slow, (0, 2))])
    for step in range(20):
        set_gradients([*ordinary, *orthogonal], step)
        for p, copied in zip((*ordinary, *orthogonal), wide):
            copied.grad = p.grad.float()
        optimizer.step()
        reference.step()
    for p, copied in zip((*ordinary, *orthogonal), wide):
        assert p.dtype == torch.bfloat16 and torch.equal(p, copied.bfloat16())


def test_each_kind_is_clipped_by_itself():
    ordinary, orthogonal = parameters()
    optimizer = SpectralOptimizer(groups(ordinary, orthogonal), clip=0.5)
    set_gradients([*ordinary, *orthogonal], 0)
    for p in orthogonal:
        p.grad *= 1e-3
    small = [p.grad.clone() for p in orthogonal]
    optimizer.step()
    assert torch.cat([p.grad.flatten() for p in ordinary]).norm() == pytest.approx(0.5, rel=1e-4)
    assert all(torch.equal(p.grad, g) for p, g in zip(orthogonal, small)), "which the other kind's norm leaves alone"


def test_what_cannot_be_stepped_is_refused():
    ordinary, orthogonal = parameters()
    with pytest.raises(SettingError, match="kind 'muon'"):
        SpectralOptimizer([{"params": ordinary, "kind": "muon"}])
    with pytest.raises(SettingError, match="square matrices"):
        SpectralOptimizer([{"params": ordinary, "kind": "stiefel"}])
    with pytest.raises(SettingError, match="clip=0"):
        SpectralOptimizer(orthogonal, clip=0)
