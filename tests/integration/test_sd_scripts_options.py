"""Options of a real sd-scripts with the network module: states, files to go on from, masks, losses, two rules in one.

On SD1 in its real structure with narrow layers, some ten seconds a run; see `sd_scripts_narrow`.
"""

import json
from pathlib import Path

import pytest
import sd_scripts
import sd_scripts_narrow
import torch
from safetensors.torch import load_file
from sd_scripts import OPTIMIZER, Draws, SdScripts, moved, orthogonality

import spectral_adapters as sa

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sd_scripts.is_there(), reason=sd_scripts.WITHOUT)]
LAYERS = ("targets=attention", "text_targets=attention")
SETTINGS = {
    "svdiff": ("--network_args", "method=svdiff", "norms=true", *LAYERS),
    "additive": ("--network_dim=4", "--network_args", "method=additive", *LAYERS),
    "rotation": ("--network_args", "method=rotation", "columns=top:4@2", *LAYERS),
}
STIEFEL = ("--network_args", "method=soda", "rotation=stiefel", *LAYERS)
# A rate so small that no fp16 number changes by it: what comes out is what was put in.
STILL = ("--learning_rate=1e-12", "--max_train_steps=1")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    sd_scripts.write_pictures(folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def scripts(work: Path) -> SdScripts:
    base = sd_scripts_narrow.write("sd1", work / "base.safetensors")
    return SdScripts.at(work, base, sd_scripts_narrow.plan("sd1"))


@pytest.fixture(scope="module")
def trained(scripts: SdScripts, work: Path) -> dict[str, Path]:
    """A file of some methods."""
    files = {method: work / "trained" / f"{method}.safetensors" for method in SETTINGS}
    for method, out in files.items():
        scripts.train_inside(work / "pictures", out, *SETTINGS[method])
    return files


def test_rates_are_of_their_groups_and_the_state_holds_the_trained_tensors_alone(scripts, work):
    out = work / "rates" / "rates.safetensors"
    rates = ("--unet_lr=2e-3", "--text_encoder_lr=5e-4", "--learning_rate=7e-3")
    scripts.train_inside(work / "pictures", out, *rates, "--save_state", f"--optimizer_type={OPTIMIZER}", *STIEFEL)
    state = out.with_name("rates-state")
    adapter = sa.load(out)
    groups = torch.load(state / "optimizer.bin", weights_only=True)["param_groups"]
    method = {name: group.lr_scale for name, group in adapter.method.groups.items()}
    kinds = {(group["kind"], group["lr"]) for group in groups}
    assert kinds == {
        (group.kind, rate * method[name]) for name, group in adapter.method.groups.items() for rate in (2e-3, 5e-4)
    }
    held = load_file(state / "model.safetensors")
    del held["_extra_state"]  # which adapter it is
    params = {f"{name}.{part}": p for name, layer in adapter.layers.items() for part, p in layer.params.items()}
    assert held.keys() == params.keys()
    for key, value in held.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, params[key], atol=1e-6, rtol=1e-3), key


def test_stiefel_resumed_is_stiefel_in_one_go(scripts, work):
    """Resumed from a state in the middle; the draws are given, since sd-scripts draws others after a resume."""
    file = sd_scripts.write_draws(work / "draws.safetensors", 4)
    told = ("--train_batch_size=3", "--max_train_steps=4", f"--optimizer_type={OPTIMIZER}", *STIEFEL)
    whole, rest = work / "whole" / "whole.safetensors", work / "rest" / "rest.safetensors"
    first, second = Draws(file, work / "whole.seen"), Draws(file, work / "rest.seen", first=2)
    states = ("--save_state", "--save_every_n_steps=2")
    scripts.train_inside(work / "pictures", whole, *states, *told, draws=first)
    resumed = (f"--resume={whole.with_name('whole-step00000002-state')}", "--skip_until_initial_step")
    scripts.train_inside(work / "pictures", rest, *resumed, *told, draws=second)
    assert torch.allclose(load_file(first.seen)["losses"][2:], load_file(second.seen)["losses"], rtol=1e-5)
    expected, found = load_file(whole), load_file(rest)
    assert expected.keys() == found.keys()
    # Pictures lie in a batch in another order, so sums are rounded differently.
    off = {key: float((found[key].float() - v.float()).norm() / v.float().norm()) for key, v in expected.items()}
    assert max(off.values()) < 5e-3, max(off, key=off.get)
    early = load_file(whole.with_name("whole-step00000002.safetensors"))
    assert any(not torch.equal(early[key], value) for key, value in expected.items())
    assert max(orthogonality(path) for path in (whole, rest)) < 1e-5


@pytest.mark.parametrize("method", ["svdiff", "rotation"])
def test_going_on_from_a_file_begins_with_exactly_its_numbers(method, scripts, trained, work):
    """--network_weights with the arguments of the first run, --dim_from_weights without any."""
    weights = f"--network_weights={trained[method]}"
    ways = {"weights": (weights, *SETTINGS[method]), "from": (weights, "--dim_from_weights")}
    expected = load_file(trained[method])
    for name, told in ways.items():
        out = work / "again" / f"{method}-{name}.safetensors"
        scripts.train_inside(work / "pictures", out, *STILL, *told)
        found = load_file(out)
        assert found.keys() == expected.keys()
        assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


def test_a_merged_file_gives_the_loss_of_the_file_put_on(scripts, work):
    """--base_weights, against --network_weights and against the base; strongly, for two steps change little."""
    losses, strong = {}, work / "strong.safetensors"
    scripts.train_inside(work / "pictures", strong, "--learning_rate=0.05", *SETTINGS["additive"])
    file = sd_scripts.write_draws(work / "one.safetensors", 1)
    ways = {"merged": f"--base_weights={strong}", "on": f"--network_weights={strong}", "base": "--max_grad_norm=1"}
    for name, told in ways.items():
        draws = Draws(file, work / f"{name}.seen")
        told = ("--train_batch_size=3", *STILL, told, *SETTINGS["additive"])
        scripts.train_inside(work / "pictures", work / "merged" / f"{name}.safetensors", *told, draws=draws)
        losses[name] = float(load_file(draws.seen)["losses"][0])
    assert abs(losses["merged"] - losses["on"]) < 0.02 * abs(losses["base"] - losses["on"])


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
        scripts.train_inside(work / "pictures", out, *told, *SETTINGS["svdiff"])
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
        scripts.train_inside(work / "pictures", files[name], *options, *more, *SETTINGS["additive"])
    plain, checkpointed = load_file(files["plain"]), load_file(files["checkpointed"])
    for key, value in plain.items():
        assert torch.allclose(checkpointed[key].float(), value.float(), rtol=1e-2, atol=1e-5), key
    assert all(moved(layer.params) for layer in sa.load(files["plain"]).layers.values())
