"""A base's weights read one by one are those of its modules, for folders and single files of every family."""

import pytest
import random_checkpoints
import torch

from spectral_adapters.spectral import names
from spectral_adapters.trainer import configs
from spectral_adapters.trainer.base import BaseModelError
from spectral_adapters.trainer.base_weights import is_base, open_base
from spectral_adapters.trainer.models import load_base


@pytest.fixture(scope="module", autouse=True)
def narrow_configs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "CONFIGS", random_checkpoints.small_configs(tmp_path_factory.mktemp("configs")))
        yield


def assert_same(lazy, base):
    weights = base.weights()
    assert set(lazy) == set(weights) and (lazy.name, lazy.family) == (base.name, base.family)
    for layer, weight in weights.items():
        assert lazy.shapes[layer] == tuple(weight.shape)
        assert torch.equal(lazy[layer]().float(), weight.float()), layer
    assert lazy.file_hash == base.file_hash


def test_the_tiny_base():
    assert_same(open_base("tiny"), load_base("tiny", weights_only=True, dtype=None))
    assert is_base("tiny")


@pytest.mark.parametrize("family", names.FAMILIES)
def test_a_checkpoint(family, tmp_path):
    path = random_checkpoints.write(
        tmp_path / f"{family}.safetensors", family, config=random_checkpoints.small_config(family)
    )
    lazy = open_base(str(path))
    assert_same(lazy, load_base(str(path), weights_only=True, dtype=None))
    layer = next(iter(names.unet_paths(family)))
    assert lazy.paths[layer] == names.to_diffusers(family, layer) and is_base(str(path))


def test_refusals(tmp_path):
    with pytest.raises(BaseModelError, match="no base model at"):
        open_base(str(tmp_path / "none.safetensors"))
    with pytest.raises(BaseModelError, match=r"model_index\.json"):
        open_base(str(tmp_path))
    (tmp_path / "m.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(BaseModelError, match="pickled"):
        open_base(str(tmp_path / "m.ckpt"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(BaseModelError):
        open_base(str(tmp_path / "cut.safetensors"))
    assert not is_base(str(tmp_path / "cut.safetensors"))
