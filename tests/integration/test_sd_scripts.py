"""The network module inside a real sd-scripts, on SD1.5 in its real size, started as its users start it.

    SPECTRAL_SD_SCRIPTS_DIR=... SPECTRAL_SD_SCRIPTS_PYTHON=... \\
        python -m pytest -m slow tests/integration/test_sd_scripts.py

needs 8 GB of memory and about a minute for each run on two cores. See `sd_scripts` for the variables.
"""

import json
import re
from pathlib import Path

import pytest
import random_checkpoints
import sd_scripts
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sd_scripts import FEW, FEW_TEXT, OPTIMIZER, SdScripts, moved, orthogonality

import spectral_adapters as sa
from spectral_adapters.trainer.base_weights import BaseWeights, open_base

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sd_scripts.is_there(), reason=sd_scripts.WITHOUT)]
LAYERS = (f"targets={FEW}", f"text_targets={FEW_TEXT}")
# Per method: what is said of it, beside the layers.
SETTINGS = {
    "svdiff": ("--network_args", "method=svdiff", "norms=true", *LAYERS),
    "additive": ("--network_dim=4", "--network_args", "method=additive", *LAYERS),
    "rotation": ("--network_args", "method=rotation", "columns=top:4@2", *LAYERS),
    "soda": ("--network_args", "method=soda", *LAYERS),
}
STIEFEL = ("--network_args", "method=soda", "rotation=stiefel", *LAYERS)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd_scripts")
    sd_scripts.write_pictures(folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def scripts(work: Path) -> SdScripts:
    given = sd_scripts.given("BASE")
    return SdScripts.at(work, Path(given) if given else random_checkpoints.write(work / "base.safetensors"))


@pytest.fixture(scope="module")
def base(scripts: SdScripts) -> BaseWeights:
    return open_base(str(scripts.base))


@pytest.fixture(scope="module")
def trained(scripts: SdScripts, work: Path) -> dict[str, Path]:
    """A file of every method, trained on the UNet and the text encoder."""
    files = {method: work / "trained" / f"{method}.safetensors" for method in SETTINGS}
    for method, out in files.items():
        scripts.train(work / "pictures", out, *SETTINGS[method])
    return files


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def chosen(base: BaseWeights) -> set[str]:
    """The layers that LAYERS means, by the base's own paths."""
    return {
        layer
        for layer, path in base.paths.items()
        if re.search(FEW if layer.startswith("lora_unet_") else FEW_TEXT, path) and len(base.shapes[layer]) > 1
    }


@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_trains_the_chosen_layers_of_unet_and_text_encoder(method, trained, base):
    adapter = sa.load(trained[method])
    assert adapter.method.name == method
    assert set(adapter.layers) == chosen(base)
    assert {name.split("_")[1] for name in adapter.layers} == {"unet", "te"}
    assert [name for name, layer in adapter.layers.items() if not moved(layer.params)] == []
    if method == "svdiff":
        assert adapter.gains
        assert all(gain.shift.any() for gain in adapter.gains.values())


@pytest.mark.parametrize("method", SETTINGS)
def test_the_file_fits_the_base_it_was_trained_on(method, trained, base):
    report = sa.check_layers(sa.load(trained[method]), base)
    assert report.match > 0.999
    assert not report.unused
    # Portable files carry their frames; the others name the very weights of the checkpoint.
    assert report.same == (len(report.layers) if report.alignment is None else 0)


def test_every_file_says_all_that_sd_scripts_says_of_a_lora(scripts, trained, work):
    lora = work / "lora.safetensors"
    scripts.train(work / "pictures", lora, "--network_module=networks.lora", "--network_dim=2")
    expected = metadata_of(lora)
    for method, path in trained.items():
        found = metadata_of(path)
        # A method that trains every direction of a layer has no rank.
        rankless = {"ss_network_dim"} if method in ("svdiff", "soda") else set()
        assert expected.keys() - found.keys() <= rankless, method
        same = {"ss_base_model_version", "ss_v2", "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash"}
        same |= {"ss_tag_frequency", "ss_dataset_dirs", "ss_resolution", "ss_seed", "modelspec.architecture"}
        assert {key: found[key] for key in same} == {key: expected[key] for key in same}
        assert found["ss_network_module"] == sd_scripts.MODULE
        assert json.loads(found["ss_network_args"])["method"] == method
        assert found["ss_output_name"] == method
        assert len(found["sshs_model_hash"]) == 64
        assert len(found["sshs_legacy_hash"]) == 8


def test_info_knows_base_and_trigger_word(scripts, trained):
    info = sa.read_info(trained["additive"])
    assert info.family == "sd1"
    assert info.base_name == scripts.base.stem
    assert info.base_hash == metadata_of(trained["additive"])["ss_new_sd_model_hash"]
    assert info.trigger_words == ["sks mug"]
    assert info.columns == "top:4"


def test_full_bf16_keeps_fp32_numbers_and_the_files_own_weights(scripts, work, base):
    out = work / "bf16" / "bf16.safetensors"
    halved = ("--mixed_precision=bf16", "--full_bf16", "--save_precision=float", "--save_state")
    scripts.train(work / "pictures", out, *halved, f"--optimizer_type={OPTIMIZER}", *STIEFEL)
    held = load_file(out.with_name("bf16-state") / "model.safetensors")
    del held["_extra_state"]  # which adapter it is
    assert {value.dtype for value in held.values()} == {torch.float32}
    assert orthogonality(out) < 1e-5
    report = sa.check_layers(sa.load(out), base)
    assert report.same == len(report.layers)


def test_what_cannot_be_trained_is_said_before_training(scripts, work):
    out = work / "refused" / "refused.safetensors"
    said = scripts.refused(work / "pictures", out, "--network_args", "metod=svdiff")
    assert "'metod' is unknown; did you mean method?" in said
    said = scripts.refused(work / "pictures", out, *STIEFEL)
    assert f"choose {OPTIMIZER}" in said


@pytest.mark.skipif(not sd_scripts.given("SDXL"), reason="SPECTRAL_SD_SCRIPTS_SDXL names no checkpoint to train on")
def test_sdxl_in_its_real_size(scripts, work):
    """In bf16, the UNet alone, text states cached; still the file is of the checkpoint's own weights."""
    out = work / "sdxl" / "sdxl.safetensors"
    scripts.train(
        work / "pictures",
        out,
        f"--pretrained_model_name_or_path={sd_scripts.given('SDXL')}",
        "--mixed_precision=bf16",
        "--full_bf16",
        "--network_train_unet_only",
        "--cache_text_encoder_outputs",
        "--network_args",
        "method=svdiff",
        r"targets=down_blocks\.1\..*attn2",
        script="sdxl_train_network.py",
    )
    adapter, xl = sa.load(out), open_base(sd_scripts.given("SDXL"))
    wanted = {name for name, path in xl.paths.items() if re.search(r"down_blocks\.1\..*attn2", path)}
    assert set(adapter.layers) == {name for name in wanted if len(xl.shapes[name]) > 1}
    assert [name for name, layer in adapter.layers.items() if not moved(layer.params)] == []
    assert sa.check_layers(adapter, xl).same == len(adapter.layers)
    assert metadata_of(out)["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata_of(out)["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
