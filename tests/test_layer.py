import copy

import pytest
import torch
from torch import nn

import spectral_adapters as sa
from spectral_adapters.spectral.targets import select

METHODS = ["svdiff", "additive", "rotation", "soda"]


class Block(nn.Module):
    """Attention, a feed-forward and a convolution, named as diffusers names them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 24, 3, padding=1)
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(24, 24), "to_v": nn.Linear(24, 24, bias=False)})
        self.attn2 = nn.ModuleDict({"to_k": nn.Linear(24, 32)})
        self.ff = nn.ModuleDict({"net": nn.Linear(24, 48)})
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=4)

    def forward(self, x):
        x = self.grouped(self.conv(x)).flatten(2).mT
        x = torch.sigmoid(self.attn1["to_q"](x)) * self.attn1["to_v"](x)
        return self.attn2["to_k"](x).sum() + self.ff["net"](x).square().mean()


@pytest.fixture
def block():
    return Block()


def disturb(adapter, scale=0.1):
    """Move every parameter as training would, keeping orthogonal factors orthogonal."""
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            noise = scale * torch.randn_like(p)
            if adapter.method.groups[name.rsplit(".", 1)[1]].kind == "stiefel":
                p.copy_(torch.matrix_exp(noise - noise.T))
            else:
                p.add_(noise)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention", ["attn1.to_q", "attn1.to_v", "attn2.to_k"]),
        ("cross-attention", ["attn2.to_k"]),
        ("attention+ff", ["attn1.to_q", "attn1.to_v", "attn2.to_k", "ff.net"]),
        ("all", ["conv", "attn1.to_q", "attn1.to_v", "attn2.to_k", "ff.net"]),
        (r"to_[kv]$", ["attn1.to_v", "attn2.to_k"]),
        (["ff.net"], ["ff.net"]),
        (lambda path, m: isinstance(m, nn.Conv2d), ["conv"]),
    ],
)
def test_targets(block, targets, expected):
    assert select(block, targets) == expected


@pytest.mark.parametrize("targets", ["no_such_layer", "(", [], ["grouped"], ["attn9"], lambda path, m: False])
def test_targets_that_find_nothing_are_refused(block, targets):
    with pytest.raises(sa.SettingError, match="targets"):
        sa.inject(block, "svdiff", targets)


@pytest.mark.parametrize("name", METHODS)
def test_untrained_adapter_changes_nothing_and_disabled_one_is_bit_exact(block, name):
    x = torch.randn(2, 4, 6, 6)
    base = block(x)
    _, adapter = sa.inject(block, name, "all")
    torch.testing.assert_close(block(x), base, atol=1e-5, rtol=1e-5)
    disturb(adapter)
    assert (block(x) - base).abs() > 1e-4
    adapter.enabled = False
    assert torch.equal(block(x), base)
    adapter.enabled, adapter.strength = True, 0.0
    assert torch.equal(block(x), base)


@pytest.mark.parametrize("name", METHODS)
def test_removal_restores_the_module_exactly(block, name):
    x, before, flags = torch.randn(1, 4, 5, 5), copy.deepcopy(block.state_dict()), []
    block.conv.weight.requires_grad_(False)
    flags = [p.requires_grad for p in block.parameters()]
    base = block(x)
    _, adapter = sa.inject(block, name)
    disturb(adapter)
    assert list(block.state_dict()) == list(before) and not any(p.requires_grad for p in block.parameters())
    adapter.remove()
    assert torch.equal(block(x), base) and [p.requires_grad for p in block.parameters()] == flags
    assert all(torch.equal(a, b) for a, b in zip(block.state_dict().values(), before.values()))
    assert not any("forward" in m.__dict__ for m in block.modules())


@pytest.mark.parametrize("name", METHODS)
def test_training_merging_and_a_saved_file_agree(block, name, tmp_path):
    x = torch.randn(2, 4, 6, 6)
    reference = copy.deepcopy(block)
    _, adapter = sa.inject(block, name, "all")
    disturb(adapter)
    trained = block(x)
    path = sa.save(adapter, tmp_path / "a.safetensors", trigger_words=["sks"])
    for source in (adapter, sa.load(path)):
        merged = copy.deepcopy(reference)
        report = sa.merge(source, merged)
        assert len(report.layers) == 5 and not report.unused
        torch.testing.assert_close(merged(x), trained, atol=5e-3, rtol=5e-3)
    unchanged = copy.deepcopy(reference)
    sa.merge(adapter, unchanged, 0.0)
    assert torch.equal(unchanged(x), reference(x))


@pytest.mark.parametrize("name", METHODS)
def test_strength_of_a_single_layer_is_linear(name):
    layer = nn.Sequential(nn.Linear(20, 16))
    x = torch.randn(5, 20)
    base = layer(x)
    _, adapter = sa.inject(layer, name, "all")
    disturb(adapter)
    full = layer(x) - base
    adapter.strength = 0.3
    torch.testing.assert_close(layer(x) - base, 0.3 * full, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_runs_on_half_precision_models_with_fp32_parameters(name, dtype):
    layer = nn.Sequential(nn.Linear(32, 24)).to(dtype)
    _, adapter = sa.inject(layer, name, "all")
    y = layer(torch.randn(4, 32, dtype=dtype))
    y.float().square().mean().backward()
    assert y.dtype == dtype
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in adapter.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_learns_a_small_task(block, name):
    block.requires_grad_(False)
    x = torch.randn(4, 4, 6, 6)
    _, adapter = sa.inject(block, name, "all")
    groups = adapter.param_groups(lr=1e-2)
    assert {g["name"] for g in groups} == set(adapter.method.groups)
    plain = [g for g in groups if g["kind"] == "adamw"]
    optimizers = [torch.optim.AdamW(plain)]
    if stiefel := [g for g in groups if g["kind"] == "stiefel"]:
        optimizers.append(sa.StiefelAdam(stiefel))
    losses = []
    for _ in range(60):
        loss = (block(x) - 3.0).square()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_a_second_adapter_on_the_same_layers_is_refused(block):
    sa.inject(block, "svdiff")
    with pytest.raises(sa.SettingError, match="already"):
        sa.inject(block, "rotation")


def test_names_that_collide_in_the_file_are_refused():
    module = nn.Module()
    module.a_b = nn.Linear(4, 4)
    module.a = nn.Module()
    module.a.b = nn.Linear(4, 4)
    with pytest.raises(sa.SettingError, match="a_b"):
        sa.inject(module, "svdiff", "all")


@pytest.mark.parametrize("name", METHODS)
def test_a_language_model(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config).eval()
    plain, tokens = copy.deepcopy(model), torch.arange(12)[None]
    _, adapter = sa.inject(model, name, "attention")
    assert len(adapter.layers) == 8
    model(tokens, labels=tokens).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in adapter.parameters())
    disturb(adapter)
    sa.save(adapter, tmp_path / "lm.safetensors")
    sa.merge(sa.load(tmp_path / "lm.safetensors"), plain)
    torch.testing.assert_close(plain(tokens).logits, model(tokens).logits, atol=5e-3, rtol=5e-3)


def test_cuda_and_cpu_give_one_answer():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    layer = nn.Sequential(nn.Linear(64, 48)).cuda()
    basis, same = sa.decompose(layer[0].weight), sa.decompose(layer[0].weight.cpu())
    torch.testing.assert_close(basis.s.cpu(), same.s, atol=1e-5, rtol=1e-5)
