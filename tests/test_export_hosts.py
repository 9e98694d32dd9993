"""An exported LoRA through diffusers' own loader gives the picture of the merged adapter."""

import pytest
import torch

import spectral_adapters as sa
from spectral_adapters.spectral.export import write_export
from spectral_adapters.trainer.models import load_base

pytest.importorskip("peft", reason="diffusers loads LoRA files through peft: pip install peft")


def predict(unet):
    gen = torch.Generator().manual_seed(5)
    noisy, text = torch.randn(1, 4, 16, 16, generator=gen), torch.randn(1, 24, 96, generator=gen)
    with torch.no_grad():
        return unet(noisy, torch.tensor([300]), text).sample


@pytest.mark.parametrize(("name", "targets"), [("additive", "all"), ("rotation", "attention")])
def test_diffusers_reads_an_exported_lora(name, targets, tmp_path):
    base, merged = load_base("tiny"), load_base("tiny")
    _, adapter = sa.inject(base.unet, sa.method(name, rank=4), targets, prefix="lora_unet_")
    with torch.no_grad():
        for p in adapter.parameters():
            p.normal_(std=0.02 if name == "additive" else 0.3)
    adapter.remove()
    plain = predict(base.unet)
    export = write_export(sa.to_lora(adapter), adapter, tmp_path / "lora.safetensors")

    base.pipeline().load_lora_weights(str(export))
    sa.merge(adapter, merged.unet)
    change = predict(merged.unet) - plain
    assert change.norm() > 0.1
    assert (predict(base.unet) - plain - change).norm() < 5e-3 * change.norm()
