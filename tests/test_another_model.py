"""What is said of an adapter on another kind of model, and of one that is applied."""

import pytest
import torch
from adapters import adapter_of

import spectral_adapters as sa
from spectral_adapters.spectral.another_model import FAMILY_NAMES, applied_text, fit_text, refuse_another_model
from spectral_adapters.spectral.source import AdapterSource, Changes

SD1, SDXL = FAMILY_NAMES["sd1"], FAMILY_NAMES["sdxl"]
BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
SD1_LAYERS = {f"{BLOCK}{part}": (12, 12) for part in "qkv"}
SDXL_LAYERS = {f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_{part}": (12, 12) for part in "qkv"}


def adapter_source(shapes, base_name=""):
    source = AdapterSource(adapter_of("rotation", {"rank": 4}, shapes=shapes)[0], "dog")
    source.metadata = {"spectral.base_name": base_name} if base_name else {}
    return source


def lora_source(shapes):
    changes = {layer: (shape, torch.zeros(shape)) for layer, shape in shapes.items()}
    return Changes(changes, name="dog", kind="LoRA")


def test_a_file_of_another_family_names_both_and_the_base():
    source = adapter_source(SDXL_LAYERS, "sd_xl_base_1.0")
    with pytest.raises(sa.WrongBaseError) as found:
        refuse_another_model(source, source.shapes, SD1_LAYERS, SD1)
    assert str(found.value) == (
        "this adapter was trained on SDXL (sd_xl_base_1.0), the model here is Stable Diffusion 1.x. "
        "Load a checkpoint of SDXL, or choose another adapter."
    )


def test_a_lora_of_another_family_is_refused_too():
    source = lora_source(SDXL_LAYERS)
    with pytest.raises(sa.WrongBaseError, match=r"trained on SDXL, the model here is Stable Diffusion 1\.x"):
        refuse_another_model(source, source.shapes, SD1_LAYERS, SD1)


def test_layers_that_fit_in_part_only_are_counted():
    source = adapter_source(SD1_LAYERS)
    with pytest.raises(sa.WrongBaseError, match="1 of the adapter's 3 layers are not in the model here") as found:
        refuse_another_model(source, source.shapes, [f"{BLOCK}q", f"{BLOCK}k"], SD1)
    assert f"{BLOCK}v" in str(found.value) and "force" in str(found.value)


@pytest.mark.parametrize(
    ("source", "known"),
    [
        (adapter_source(SD1_LAYERS), SD1_LAYERS),
        (adapter_source(SD1_LAYERS), {}),  # the check of the layers says it better
        (lora_source(SD1_LAYERS), {f"{BLOCK}q": (12, 12)}),  # hosts leave out layers of LoRA files themselves
    ],
)
def test_the_right_family_goes_on(source, known):
    refuse_another_model(source, source.shapes, known, SD1)


def test_a_family_that_nobody_can_tell_is_judged_by_its_layers():
    source = adapter_source({"lora_unet_strange": (12, 12)})
    refuse_another_model(source, source.shapes, source.shapes, "Flux")


def test_what_is_applied_is_counted_and_the_match_never_rounded_up():
    adapter, weights = adapter_of("rotation", {"rank": 4})
    report = sa.check_layers(adapter, weights)
    placed = [*weights][:3]
    assert fit_text(weights, weights, {}, report) == "4 of 4 layers applied, 0 unused. Match 99.9 %"
    assert applied_text(placed, weights, {"norm": 8}) == "3 of 4 layers applied, 1 unused, 0 of 1 norms."
    assert fit_text(placed, weights, {}, None) == "3 of 4 layers applied, 1 unused."
