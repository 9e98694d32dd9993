"""Which layers of the model the network module for sd-scripts takes."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import spectral_adapters as sa
from spectral_adapters.spectral.adapter import join
from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.spectral.targets import select
from spectral_adapters.trainer.kohya_parts import chosen_parts, parts_of_file
from spectral_adapters.trainer.spec import TrainSpec

SPEC = TrainSpec(base="", images=Path(), out=Path(), targets="none")


@pytest.fixture(scope="module")
def pooling():
    """A small text encoder that projects its pooled text, as SDXL's second."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=99, projection_dim=32, **sizes))


def test_the_projection_that_sd_scripts_reads_transposed_is_not_trained(base, pooling, capsys):
    texts = [base.text_encoder, pooling]
    parts = chosen_parts(replace(SPEC, text_targets_2="all"), texts, base.unet)
    every = select(pooling, "all")
    assert "text_projection" in every
    assert select(pooling, parts[2].targets) == [path for path in every if path != "text_projection"]
    assert "text_projection of the text_encoder_2 is not trained" in capsys.readouterr().out
    assert chosen_parts(replace(SPEC, text_targets_2="attention"), texts, base.unet)[2].targets == "attention"
    with pytest.raises(SettingError):
        chosen_parts(replace(SPEC, text_targets_2="text_projection"), texts, base.unet)


def test_a_file_that_changes_the_projection_is_not_gone_on_from(base, pooling):
    _, adapter = sa.inject(pooling, "additive", "text_projection", prefix="lora_te2_")
    with pytest.raises(SettingError, match="lora_te2_text_projection, which sd-scripts reads transposed"):
        parts_of_file(join([adapter]), [base.text_encoder, pooling], base.unet)
    adapter.remove()
