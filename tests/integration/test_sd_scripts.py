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
from sd_scripts import FEW, FEW_TEXT, OPTIMIZER, SdScripts
from torch import Tensor

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
# A rate so small that no fp16 number changes by it: what comes out is what was put in.
STILL = ("--learning_rate=1e-12", "--max_train_steps=1")


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


def moved(params: dict[str, Tensor]) -> float:
    """How far a layer's parameters came at most."""
    return max(float((p - sd_scripts.beginning(part, p)).abs().max()) for part, p in params.items() if p.numel())


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
        missing = expected.keys() - found.keys()
        assert not missing - {"ss_network_args"}, method
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


def test_rates_are_of_their_groups_and_the_state_holds_the_trained_tensors_alone(scripts, work):
    out = work / "rates" / "rates.safetensors"
    rates = ("--unet_lr=2e-3", "--text_encoder_lr=5e-4", "--learning_rate=7e-3")
    scripts.train(work / "pictures", out, *rates, "--save_state", f"--optimizer_type={OPTIMIZER}", *STIEFEL)
    state = out.with_name("rates-state")
    adapter = sa.load(out)
    groups = torch.load(state / "optimizer.bin", weights_only=True)["param_groups"]
    method = {name: group.lr_scale for name, group in adapter.method.groups.items()}
    kinds = {(group["kind"], group["lr"]) for group in groups}
    assert kinds == {
        (group.kind, rate * method[name]) for name, group in adapter.method.groups.items() for rate in (2e-3, 5e-4)
    }
    held = load_file(state / "model.safetensors")
    params = {f"{name}.{part}": p for name, layer in adapter.layers.items() for part, p in layer.params.items()}
    assert held.keys() == params.keys()
    for key, value in held.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, params[key], atol=1e-6, rtol=1e-3), key


def orthogonality(path: Path) -> float:
    """The largest entry of |K^T K - 1| of a file's rotations."""
    factors = [value for key, value in load_file(path).items() if sd_scripts.is_rotation(key, value)]
    assert factors
    return max(float((k.float().T @ k.float() - torch.eye(len(k))).abs().max()) for k in factors)


def test_stiefel_resumed_is_stiefel_in_one_go(scripts, work):
    """Resumed from a state in the middle; the draws are given, since sd-scripts draws others after a resume."""
    draws = sd_scripts.write_draws(work / "draws.safetensors", 4)
    told = ("--train_batch_size=3", "--max_train_steps=4", f"--optimizer_type={OPTIMIZER}", *STIEFEL)
    whole, rest = work / "whole" / "whole.safetensors", work / "rest" / "rest.safetensors"
    states = ("--save_state", "--save_every_n_steps=2")
    plan = {"script": "train_network", "draws": str(draws), "captions": sd_scripts.CAPTIONS, "narrow": None}
    scripts.train_drawn(plan | {"first": 0, "seen": str(work / "whole.seen")}, work / "pictures", whole, *states, *told)
    middle = whole.with_name("whole-step00000002-state")
    resumed = (f"--resume={middle}", "--skip_until_initial_step")
    scripts.train_drawn(plan | {"first": 2, "seen": str(work / "rest.seen")}, work / "pictures", rest, *resumed, *told)
    a, b = load_file(work / "whole.seen"), load_file(work / "rest.seen")
    assert torch.allclose(a["losses"][2:], b["losses"], rtol=1e-5)
    expected, found, early = (
        load_file(whole),
        load_file(rest),
        load_file(whole.with_name("whole-step00000002.safetensors")),
    )
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key].float(), value.float(), rtol=2e-3, atol=1e-6), key
    assert any(not torch.equal(early[key], value) for key, value in expected.items())
    assert orthogonality(whole) < 1e-5
    assert orthogonality(rest) < 1e-5


@pytest.mark.parametrize("method", ["svdiff", "rotation"])
def test_going_on_from_a_file_begins_with_exactly_its_numbers(method, scripts, trained, work):
    """--network_weights with the arguments of the first run, --dim_from_weights without any."""
    weights = f"--network_weights={trained[method]}"
    ways = {"weights": (weights, *SETTINGS[method]), "from": (weights, "--dim_from_weights")}
    expected = load_file(trained[method])
    for name, told in ways.items():
        out = work / "again" / f"{method}-{name}.safetensors"
        scripts.train(work / "pictures", out, *STILL, *told)
        found = load_file(out)
        assert found.keys() == expected.keys()
        assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


def test_a_merged_file_gives_the_loss_of_the_file_put_on(scripts, trained, work):
    """--base_weights, against --network_weights and against the base; strongly, for two steps change little."""
    losses, strong = {}, work / "strong.safetensors"
    scripts.train(work / "pictures", strong, "--learning_rate=0.05", *SETTINGS["additive"])
    draws = sd_scripts.write_draws(work / "one.safetensors", 1)
    ways = {"merged": (f"--base_weights={strong}",), "put on": (f"--network_weights={strong}",), "base": ()}
    for name, told in ways.items():
        out, seen = work / "merged" / f"{name[:3]}.safetensors", work / f"{name[:3]}.seen"
        plan = {"script": "train_network", "draws": str(draws), "captions": sd_scripts.CAPTIONS, "narrow": None}
        plan |= {"first": 0, "seen": str(seen)}
        told = ("--train_batch_size=3", *STILL, *told, *SETTINGS["additive"])
        scripts.train_drawn(plan, work / "pictures", out, *told)
        losses[name] = float(load_file(seen)["losses"][0])
    assert abs(losses["merged"] - losses["put on"]) < 0.02 * abs(losses["base"] - losses["put on"])


def masked_dataset(work: Path, value: int) -> Path:
    """A --dataset_config with masks of one value for the pictures."""
    masks = sd_scripts.write_masks(work / f"masks{value}", value)
    config = work / f"masks{value}.toml"
    config.write_text(
        f"""[[datasets]]
resolution = {sd_scripts.SIZE}
batch_size = 1
[[datasets.subsets]]
image_dir = {json.dumps(str(work / "pictures" / "1_sks mug"))}
conditioning_data_dir = {json.dumps(str(masks))}
caption_extension = ".txt"
num_repeats = 1
""",
        encoding="utf-8",
    )
    return config


def test_masks_reach_the_loss(scripts, work):
    """Under a mask that hides everything nothing is learnt; under one that shows everything, something."""
    came = {}
    for value in (0, 255):
        out = work / "masked" / f"masked{value}.safetensors"
        told = (f"--dataset_config={masked_dataset(work, value)}", "--masked_loss")
        scripts.train(work / "pictures", out, *told, *SETTINGS["svdiff"])
        came[value] = max(moved(layer.params) for layer in sa.load(out).layers.values())
    assert came[0] == 0 < came[255]


def test_checkpointed_gradients_are_the_same_and_every_loss_option_is_taken(scripts, work):
    options = (
        "--min_snr_gamma=5",
        "--noise_offset=0.05",
        "--loss_type=huber",
        "--huber_c=0.2",
        "--scale_weight_norms=1",
    )
    files = {}
    for name, more in {"plain": (), "checkpointed": ("--gradient_checkpointing",)}.items():
        files[name] = work / "options" / f"{name}.safetensors"
        scripts.train(work / "pictures", files[name], *options, *more, *SETTINGS["additive"])
    plain, checkpointed = load_file(files["plain"]), load_file(files["checkpointed"])
    for key, value in plain.items():
        assert torch.allclose(checkpointed[key].float(), value.float(), rtol=1e-2, atol=1e-5), key


def test_full_bf16_keeps_fp32_numbers_and_the_files_own_weights(scripts, work, base):
    out = work / "bf16" / "bf16.safetensors"
    halved = ("--mixed_precision=bf16", "--full_bf16", "--save_precision=float", "--save_state")
    scripts.train(work / "pictures", out, *halved, f"--optimizer_type={OPTIMIZER}", *STIEFEL)
    held = load_file(out.with_name("bf16-state") / "model.safetensors")
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
