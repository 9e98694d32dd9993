"""Hot swap: weights are those of one merge, only what changed is written, and what was there comes back bit for bit."""

import pytest
import torch
from adapters import SHAPES, adapter_of
from safetensors.torch import save_file
from torch import nn

import spectral_adapters as sa
from spectral_adapters.spectral import live as live_module
from spectral_adapters.spectral.source import AdapterSource, Changes


class Model(nn.Module):
    """The layers of `adapters.SHAPES`, and one that no adapter has."""

    def __init__(self, weights, dtype=torch.float32):
        super().__init__()
        self.a, self.b = nn.Linear(40, 24), nn.Linear(24, 40)
        self.c, self.d, self.e = nn.Conv2d(8, 20, 3), nn.Conv2d(24, 16, 1), nn.Linear(3, 3)
        with torch.no_grad():
            for p in self.parameters():
                p.fill_(0.5)
            for name, weight in weights.items():
                self.get_submodule(name[-1]).weight.copy_(weight)
        self.to(dtype)


def state(model):
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def same(model, expected):
    return all(torch.equal(p, expected[name]) for name, p in model.state_dict().items())


@pytest.fixture
def adapters():
    """Portable of low rank, compact of full rank, and what a LoRA file is, on the same weights."""
    additive, weights = adapter_of("additive", {"rank": 4})
    soda, _ = adapter_of("soda", {})
    shape = SHAPES["lora_unet_a"]
    lora = Changes({"lora_unet_a": (shape, (torch.randn(24, 2), torch.randn(2, 40)))}, name="l", kind="LoRA")
    return {"additive": AdapterSource(additive, "a"), "soda": AdapterSource(soda, "s"), "lora": lora}, weights


def expected(adapters, weights, strengths):
    found = {}
    for layer, weight in weights.items():
        total = weight.clone()
        for name, strength in strengths.items():
            source = adapters[name]
            if layer in source.shapes:
                change = source.change(layer, weight)
                change = change if isinstance(change, torch.Tensor) else change[0] @ change[1]
                total += strength * change.reshape(weight.shape)
        found[layer] = total
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("held", [live_module.HELD, 0])
def test_weights_and_their_way_back(adapters, dtype, held):
    sources, weights = adapters
    model = Model(weights, dtype)
    before = state(model)
    own = {layer: model.get_submodule(layer[-1]).weight.detach().float().clone() for layer in weights}
    live = sa.Live(model, "lora_unet_", held=held)
    on = dtype is not torch.bfloat16  # a compact adapter does not fit a bf16 base, and says so
    strengths = {"additive": 0.7, "lora": -0.4} | ({"soda": 1.0} if on else {})
    for name, strength in strengths.items():
        live.set(name, sources[name], strength)
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for layer, weight in expected(sources, own, strengths).items():
        torch.testing.assert_close(
            model.get_submodule(layer[-1]).weight.float(), weight, atol=tolerance, rtol=tolerance
        )
    live.move(dict.fromkeys(strengths, 0.0))
    assert same(model, before)
    live.move({"additive": 2.0})
    assert not same(model, before)
    live.clear()
    assert same(model, before) and live.strengths == {}


def test_it_does_not_depend_on_the_way(adapters):
    sources, weights = adapters
    one, other = Model(weights), Model(weights)
    direct, wandering = sa.Live(one, "lora_unet_"), sa.Live(other, "lora_unet_")
    for name in ("additive", "lora"):
        direct.set(name, sources[name], 0.5)
        wandering.set(name, sources[name], 3.0)
    for strength in (0.1, -7.0, 0.5):
        wandering.move({"additive": strength, "lora": strength})
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_only_what_changed_is_written(adapters, monkeypatch):
    sources, weights = adapters
    model, written = Model(weights), []
    put = live_module._put
    monkeypatch.setattr(live_module, "_put", lambda w, o, c: written.append(tuple(w.shape)) or put(w, o, c))
    live = sa.Live(model, "lora_unet_")
    live.set("additive", sources["additive"])
    assert sorted(written) == sorted(SHAPES.values())
    written.clear()
    live.set("lora", sources["lora"])
    assert written == [(24, 40)]
    written.clear()
    live.move({"additive": 1.0, "lora": 1.0})
    assert written == []
    live.move({"lora": 0.3})
    live.remove("lora")
    assert written == [(24, 40)] * 2


def test_an_adapter_takes_the_place_of_another(adapters, tmp_path):
    sources, weights = adapters
    model, fresh = Model(weights), Model(weights)
    before = state(model)
    live, other = sa.Live(model, "lora_unet_"), sa.Live(fresh, "lora_unet_")
    path = sa.save(sources["soda"].adapter, tmp_path / "soda.safetensors")
    live.set("one", sources["additive"], 0.5)
    report = live.set("one", path)
    other.set("any name", path)
    assert same(model, state(fresh)) and report.match > 0.99 and live.strengths == {"one": 1.0}
    tensors = {"lora_unet_b.lora_up.weight": torch.ones(40, 1), "lora_unet_b.lora_down.weight": torch.ones(1, 24)}
    save_file(tensors | {"lora_unet_b.alpha": torch.tensor(0.5)}, tmp_path / "lora.safetensors")
    assert live.set("one", tmp_path / "lora.safetensors") is None
    torch.testing.assert_close(model.b.weight, weights["lora_unet_b"] + 0.5)
    assert torch.equal(model.a.weight, before["a.weight"])


def test_gains_of_norms():
    weight, norm = torch.randn(4, 4), nn.LayerNorm(4)
    model = nn.ModuleDict({"proj": nn.Linear(4, 4), "norm1": norm})
    change = {"lora_unet_proj": ((4, 4), 0.1 * weight)}
    source = Changes(change, name="x", kind="difference", gains={"lora_unet_norm1": torch.arange(4.0)})
    live = sa.Live(model, "lora_unet_")
    live.set("x", source, 0.5)
    torch.testing.assert_close(norm.weight.data, 1 + 0.5 * torch.arange(4.0))
    live.clear()
    assert torch.equal(norm.weight.data, torch.ones(4))


def test_refusals_leave_the_module_alone(adapters, tmp_path):
    sources, weights = adapters
    model = Model(weights)
    live = sa.Live(model, "lora_unet_")
    live.set("additive", sources["additive"], 0.5)
    before = state(model)
    other = Model({layer: torch.randn(w.shape) for layer, w in weights.items()})
    path = sa.save(sources["soda"].adapter, tmp_path / "soda.safetensors")
    untouched = state(other)
    with pytest.raises(sa.WrongBaseError, match="off by"):
        sa.Live(other, "lora_unet_").set("soda", path)
    assert same(other, untouched)
    wrong = Changes({"lora_unet_a": ((9, 9), torch.zeros(9, 9))}, name="w", kind="LoRA")
    for bad, error in ((wrong, sa.WrongBaseError), (tmp_path / "none.safetensors", sa.AdapterFileError)):
        with pytest.raises(error):
            live.set("additive", bad)
    with pytest.raises(sa.Cancelled):
        live.set("soda", sources["soda"], cancelled=lambda: True)
    for call in (
        lambda: live.move({"nobody": 1.0}),
        lambda: live.remove("nobody"),
        lambda: live.move({"additive": float("nan")}),
    ):
        with pytest.raises(sa.SettingError):
            call()
    assert same(model, before) and live.strengths == {"additive": 0.5}
    live.clear()
