import pytest
import torch
from matrices import matrix

import spectral_adapters as sa
from spectral_adapters.spectral.ops import LinearMap


def departure(x):
    return float((x.T @ x - torch.eye(x.shape[0])).abs().max())


@pytest.mark.parametrize("adaptive", [True, False])
def test_stays_orthogonal_for_a_thousand_steps(adaptive):
    params = [torch.nn.Parameter(torch.eye(d)) for d in (4, 4, 9, 16)]
    optimizer = sa.StiefelAdam(params, lr=0.05, adaptive=adaptive)
    for _ in range(1000):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert max(departure(p.detach()) for p in params) < 1e-5


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("d", [3, 8, 20])
def test_solves_orthogonal_procrustes(d, adaptive):
    # argmin ||X A - B|| over rotations is U V^T of B A^T = U S V^T, with the last sign set for determinant 1.
    a, b = torch.randn(d, 3 * d), torch.randn(d, 3 * d)
    turn = torch.matrix_exp(0.5 * (b[:, :d] - b[:, :d].T) / d**0.5)
    b = turn @ a + 0.1 * b
    u, _, vh = torch.linalg.svd(b @ a.T)
    sign = torch.ones(d)
    sign[-1] = torch.det(u @ vh).sign()
    best = (u * sign) @ vh

    x = torch.nn.Parameter(torch.eye(d))
    optimizer = sa.StiefelAdam([x], lr=0.1 if adaptive else 0.3 / (a @ a.T).norm(), adaptive=adaptive)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        (0.5 * (x @ a - b).square().sum()).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(x.detach(), best, atol=2e-3, rtol=0)


def test_a_batch_of_equal_sizes_steps_like_each_alone():
    grads = [torch.randn(5, 5) for _ in range(3)]
    together = [torch.nn.Parameter(torch.eye(5)) for _ in grads]
    alone = [torch.nn.Parameter(torch.eye(5)) for _ in grads]
    optimizers = [sa.StiefelAdam(together, lr=0.1), *(sa.StiefelAdam([p], lr=0.1) for p in alone)]
    for _ in range(4):
        for p, q, g in zip(together, alone, grads):
            p.grad, q.grad = g.clone(), g.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(together, alone):
        torch.testing.assert_close(p.detach(), q.detach(), atol=1e-6, rtol=0)


def test_state_survives_saving():
    def run(optimizer, p, steps):
        for _ in range(steps):
            p.grad = (p.detach() - target).clone()
            optimizer.step()

    target = torch.matrix_exp(matrix(6, 6) - matrix(6, 6).T)
    whole, part = torch.nn.Parameter(torch.eye(6)), torch.nn.Parameter(torch.eye(6))
    run(sa.StiefelAdam([whole], lr=0.02), whole, 10)
    first = sa.StiefelAdam([part], lr=0.02)
    run(first, part, 5)
    resumed = sa.StiefelAdam([part], lr=0.02)
    resumed.load_state_dict(first.state_dict())
    run(resumed, part, 5)
    assert torch.equal(whole, part)


def test_parameters_without_a_gradient_are_left_alone():
    p, q = torch.nn.Parameter(torch.eye(3)), torch.nn.Parameter(torch.eye(3))
    p.grad = torch.randn(3, 3)
    sa.StiefelAdam([p, q], lr=0.1).step()
    assert torch.equal(q, torch.eye(3)) and not torch.equal(p, torch.eye(3))


def test_wrong_shapes_and_settings_are_refused():
    with pytest.raises(sa.SettingError, match="square"):
        sa.StiefelAdam([torch.nn.Parameter(torch.zeros(3, 4))])
    with pytest.raises(sa.SettingError, match="lr=-1"):
        sa.StiefelAdam([torch.nn.Parameter(torch.eye(3))], lr=-1)


@pytest.mark.parametrize("rotation", ["cayley", "exp"])
def test_plain_adamw_reaches_the_same_rotation(rotation):
    method = sa.method("soda", rotation=rotation)
    weight = matrix(8, 12).half().float()
    basis = sa.decompose(weight)
    goal = sa.method("soda").init(weight, basis)
    upper = 0.3 * torch.randn(3, 3).triu(1)
    goal["k3"] = torch.matrix_exp(upper - upper.T)
    target = sa.method("soda").delta(basis, goal)
    layer = torch.nn.Linear(12, 8, bias=False)
    layer.weight.data.copy_(weight)
    x = torch.randn(64, 12)
    params = {n: torch.nn.Parameter(p) for n, p in method.init(weight, basis).items()}
    optimizer = torch.optim.AdamW(params.values(), lr=0.02, weight_decay=0)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (method.apply(LinearMap(layer), basis, params, x) - x @ (weight + target).T).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-3 * losses[0]
