"""What a web UI applies of a file: judged whole, computed once from untouched weights, let go of in time."""

import gc

import pytest
import torch
from adapters import METHODS, adapter_of, relative

import spectral_adapters as sa
from spectral_adapters.hosts import changes
from spectral_adapters.hosts.changes import Base, Settings, changes_of, model_name
from spectral_adapters.spectral.another_model import FAMILY_NAMES
from spectral_adapters.spectral.gains import Gain, gain_fingerprint

PLACE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
SD1_SHAPES = {f"{PLACE}q": (24, 40), f"{PLACE}k": (40, 24), f"{PLACE}v": (20, 8, 3, 3)}


class Owner:
    """Stands for a host's model: it can be held weakly."""


@pytest.fixture(autouse=True)
def nothing_kept():
    changes.forget()
    yield
    changes.forget()


def base_of(weights, owner, version="one", name="Stable Diffusion 1.x"):
    """(a base that counts in `fetched` which weights it was asked for)."""
    fetched = []

    def weight(layer):
        fetched.append(layer)
        return weights[layer]

    return Base(owner, version, name, {layer: lambda each=layer: weight(each) for layer in weights}), fetched


def saved(adapter, path, profile=None):
    sa.save(adapter, path, **({} if profile is None else {"profile": profile}))
    return path


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_the_change_is_the_adapters(tmp_path, name, settings):
    adapter, weights = adapter_of(name, settings)
    path, owner = saved(adapter, tmp_path / "a.safetensors"), Owner()
    applied = changes_of(path, base_of(weights, owner)[0], Settings())
    again = sa.load(path)
    assert set(applied.layers) == set(weights)
    for layer, weight in weights.items():
        expected = again.delta(layer, weight).reshape(weight.shape[0], -1)
        found = applied.change(layer)
        assert found.dtype == torch.float32
        assert relative(found, expected) < 1e-3
    assert applied.text.startswith("4 of 4 layers applied, 0 unused. Match ")
    assert applied.report.match > 0.99


def test_a_norms_gain_is_exact_to_half_precision(tmp_path):
    adapter, weights = adapter_of("svdiff", {"norms": True})
    norm = torch.ones(16)
    shift = torch.linspace(-1e-3, 1e-3, 16)
    adapter.gains["lora_unet_conv_norm_out"] = Gain("lora_unet_conv_norm_out", shift, gain_fingerprint(norm))
    path, owner = saved(adapter, tmp_path / "a.safetensors"), Owner()
    applied = changes_of(path, base_of({**weights, "lora_unet_conv_norm_out": norm}, owner)[0], Settings())
    assert relative(applied.change("lora_unet_conv_norm_out"), shift) < 1e-3
    assert applied.text.startswith("4 of 4 layers applied, 0 unused, 1 of 1 norms.")


def test_a_file_is_computed_once_for_a_base(tmp_path):
    adapter, weights = adapter_of("svdiff", {})
    path, owner = saved(adapter, tmp_path / "a.safetensors"), Owner()
    base, fetched = base_of(weights, owner)
    first = changes_of(path, base, Settings())
    count = len(fetched)
    assert count >= len(weights)
    assert changes_of(path, base, Settings()) is first
    assert len(fetched) == count


@pytest.mark.parametrize("changed", ["file", "version", "owner", "policy"])
def test_another_file_or_base_is_computed_anew(tmp_path, changed):
    adapter, weights = adapter_of("additive", {"rank": 4})
    path, owner = saved(adapter, tmp_path / "a.safetensors"), Owner()
    first = changes_of(path, base_of(weights, owner)[0], Settings())
    settings = Settings(policy="force") if changed == "policy" else Settings()
    if changed == "file":
        path.unlink()
        saved(adapter_of("rotation", {"rank": 5})[0], path)
    other = Owner() if changed == "owner" else owner
    base, _ = base_of(weights, other, "two" if changed == "version" else "one")
    assert changes_of(path, base, settings) is not first


def test_the_oldest_goes_when_too_much_is_kept(tmp_path):
    adapter, weights = adapter_of("svdiff", {})
    owner = Owner()
    base, fetched = base_of(weights, owner)
    paths = [saved(adapter, tmp_path / f"{name}.safetensors") for name in "abc"]
    one = changes_of(paths[0], base, Settings()).bytes
    room = Settings(kept_bytes=2 * one)
    for path in (paths[1], paths[0], paths[2]):
        changes_of(path, base, room)
    assert changes.kept_bytes() == 2 * one
    count = len(fetched)
    changes_of(paths[0], base, room)
    assert len(fetched) == count
    changes_of(paths[1], base, room)
    assert len(fetched) > count
    changes_of(paths[2], base, Settings(kept_bytes=0))
    assert changes.kept_bytes() == one


def test_changes_of_a_model_that_is_gone_are_let_go(tmp_path):
    adapter, weights = adapter_of("additive", {"rank": 4})
    path, first, second = saved(adapter, tmp_path / "a.safetensors"), Owner(), Owner()
    one = changes_of(path, base_of(weights, first)[0], Settings()).bytes
    del first
    gc.collect()
    changes_of(path, base_of(weights, second)[0], Settings())
    assert changes.kept_bytes() == one


def test_another_kind_of_model_is_refused_before_any_weight_is_read(tmp_path):
    adapter, weights = adapter_of("additive", {"rank": 4}, SD1_SHAPES)
    path, owner = saved(adapter, tmp_path / "a.safetensors"), Owner()
    base, fetched = base_of(weights, owner, name=FAMILY_NAMES["sdxl"])
    with pytest.raises(sa.WrongBaseError, match=r"trained on Stable Diffusion 1\.x, the model here is SDXL\. Load"):
        changes_of(path, base, Settings())
    assert fetched == []
    assert changes.kept_bytes() == 0


def test_a_compact_file_on_a_strangers_weights_is_refused_unless_forced(tmp_path):
    adapter, weights = adapter_of("svdiff", {}, SD1_SHAPES)
    path, owner = saved(adapter, tmp_path / "a.safetensors"), Owner()
    others = {layer: torch.randn_like(weight) for layer, weight in weights.items()}
    base, _ = base_of(others, owner)
    with pytest.raises(sa.WrongBaseError, match="change would be off by"):
        changes_of(path, base, Settings())
    assert set(changes_of(path, base, Settings(policy="force")).layers) == set(weights)


def test_autocast_does_not_halve_the_precision(tmp_path):
    adapter, weights = adapter_of("rotation", {"rank": 5})
    path, owner = saved(adapter, tmp_path / "a.safetensors"), Owner()
    plain = changes_of(path, base_of(weights, owner)[0], Settings()).change("lora_unet_a")
    changes.forget()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = changes_of(path, base_of(weights, owner)[0], Settings()).change("lora_unet_a")
        assert torch.is_autocast_cpu_enabled()
    assert torch.equal(found, plain)


def test_cancelling_keeps_nothing(tmp_path):
    adapter, weights = adapter_of("svdiff", {})
    path, owner = saved(adapter, tmp_path / "a.safetensors"), Owner()
    with pytest.raises(sa.Cancelled):
        changes_of(path, base_of(weights, owner)[0], Settings(), cancelled=lambda: True)
    assert changes.kept_bytes() == 0


def test_a_missing_file_says_so(tmp_path):
    owner = Owner()
    with pytest.raises(sa.AdapterFileError, match=r"none\.safetensors"):
        changes_of(tmp_path / "none.safetensors", base_of({}, owner)[0], Settings())


@pytest.mark.parametrize(
    ("width", "name"), [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "SDXL"), (512, "Else")]
)
def test_a_model_is_called_by_its_family(width, name):
    assert model_name(width, "Else") == name
