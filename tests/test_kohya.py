"""The network module for kohya's sd-scripts, in the order in which sd-scripts calls it, on the tiny base."""

import copy
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sd_scripts_host import Host, denoising_loss, options, read_folders
from torch import nn
from training import METHODS, RATES

import spectral_adapters as sa
from spectral_adapters.spectral import names
from spectral_adapters.spectral.column_plan import plan_columns
from spectral_adapters.spectral.errors import SettingError, WrongBaseError
from spectral_adapters.spectral.layer import inject
from spectral_adapters.spectral.targets import select
from spectral_adapters.trainer import dataset, folder, kohya, kohya_label, loop
from spectral_adapters.trainer.configs import ASSETS
from spectral_adapters.trainer.events import silent
from spectral_adapters.trainer.journal import Journal
from spectral_adapters.trainer.kohya_args import ARGUMENTS, read_arguments
from spectral_adapters.trainer.kohya_base import decompose_ahead
from spectral_adapters.trainer.kohya_parts import chosen_parts
from spectral_adapters.trainer.losses import draw
from spectral_adapters.trainer.plan_file import write_plan
from spectral_adapters.trainer.run import Run
from spectral_adapters.trainer.setup import gather, set_up
from spectral_adapters.trainer.spec import TrainSpec

SPECTRAL = "spectral_adapters.trainer.kohya_optimizer.SpectralOptimizer"
CROSS = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tmp_path_factory.mktemp("network's bases")


@pytest.fixture(autouse=True)
def _bases(bases, monkeypatch):
    """The module decomposes through the user's cache: one for all tests here."""
    monkeypatch.setenv("SPECTRAL_ADAPTERS_CACHE", str(bases))


@pytest.fixture
def host(base):
    """Starts hosts on the tiny base, and takes what they put on off again."""
    started = []

    def start(network_args=(), *, pair=None, **given) -> Host:
        text, unet = pair or (base.text_encoder, base.unet)
        started.append(Host(options(network_args=list(network_args), **{"learning_rate": 1e-3, **given}), text, unet))
        return started[-1]

    yield start
    for each in started:
        each.network.remove()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)
    return torch.randn((2, 4, 16, 16), generator=generator), torch.tensor([100, 700])


def loss_on(base, inputs):
    """A loss through the text encoder and the UNet."""
    latents, timesteps = inputs

    def loss() -> torch.Tensor:
        text = base.encode(["a red mug", "a blue mug"])
        return (base.predict(latents, timesteps, text) - latents).square().mean()

    return loss


# --- the same training in both


def write_kohya_folder(root):
    """Two folders in the convention of sd-scripts: one captioned, one whose captions are its class tokens."""
    for number, (name, colour) in enumerate((("2_sks mug", (20, 140, 60)), ("1_green thing", (30, 60, 170)))):
        (root / name).mkdir(parents=True)
        picture = Image.new("RGB", (64, 64), colour)
        picture.paste((230, 200, 40), (20, 16, 52, 48))
        picture.save(root / name / f"{number}.png")
    (root / "2_sks mug" / "0.txt").write_text("a photo of sks mug\n", encoding="utf-8")
    return root


def through_ours(base, wanted: TrainSpec, bases: sa.BasisCache) -> Path:
    """Our own training, without the estimates that come before it."""
    accelerator = loop.make_accelerator(wanted)
    with Journal(wanted, silent, lambda: False, resume=False, main=True) as journal:
        ready = set_up(wanted, gather(wanted, accelerator, silent, base), accelerator, silent, journal.stop, bases)
        try:
            run = Run(ready, {}, accelerator, journal)
            assert run.train() == "finished"
            return run.write(wanted.out)
        finally:
            ready.remove()


def through_host(base, started: Host, wanted: TrainSpec, sequence: list[list[str]]) -> None:
    """Train with the host's own reading of the folders and its own loss, on the given captions and our noise."""
    pictures = read_folders(wanted.images)
    with torch.no_grad():
        latents = {c: base.vae.encode(p[None]).latent_dist.mode()[0] for c, (p, _) in pictures.items()}
    scale, alphas = base.vae.config.scaling_factor, base.noise.alphas_cumprod
    for index, captions in enumerate(sequence):
        batch = torch.stack([latents[caption] * scale for caption in captions])
        drawn = draw(wanted.seed, index, batch, len(alphas))

        def loss(batch=batch, drawn=drawn, captions=captions):
            states = base.text_encoder(base.tokens(captions))[0]
            return denoising_loss(
                lambda noisy, t: base.unet(noisy, t, states).sample, batch, drawn.noise, drawn.timesteps, alphas, 5.0
            )

        started.step(loss)


@pytest.mark.parametrize("method", METHODS)
def test_one_folder_trains_the_same_adapter_in_both(base, bases, host, tmp_path, method):
    wanted = TrainSpec(
        base="tiny",
        images=write_kohya_folder(tmp_path / "img"),
        out=tmp_path / "ours.safetensors",
        method=method,
        text_targets="attention",
        lr=RATES[method],
        text_lr=RATES[method] / 2,
        batch_size=2,
        steps=4,
        clip=0.5,
        device="cpu",
        checkpoint_every=0,
    )
    ours = sa.load(through_ours(base, wanted, sa.BasisCache(bases)))
    data = dataset.training(folder.scan(wanted.images).pictures, wanted, base)
    sequence = [data.batch(index).captions for index in range(wanted.steps)]
    assert {caption for captions in sequence for caption in captions} == {"a photo of sks mug", "green thing"}

    arguments = [f"method={method}", "text_targets=attention"] + ["rotation=stiefel"] * (method == "soda")
    started = host(
        arguments,
        unet_lr=wanted.lr,
        text_encoder_lr=[wanted.text_lr],
        max_grad_norm=wanted.clip,
        optimizer_type=SPECTRAL if method == "soda" else "AdamW",
    )
    through_host(base, started, wanted, sequence)
    theirs = sa.load(started.save(tmp_path / "theirs.safetensors", torch.float16))

    assert list(theirs.layers) == list(ours.layers) and theirs.method.settings == ours.method.settings
    assert theirs.profile == ours.profile
    weights = base.weights()
    moved = differ = 0.0
    for name in ours.layers:
        a, b = (adapter.delta(name, weights[name]) for adapter in (ours, theirs))
        moved, differ = moved + float(a.square().sum()), differ + float((a - b).square().sum())
    assert moved > 0 and (differ / moved) ** 0.5 < 1e-3, (differ / moved) ** 0.5


# --- what its state and its files are


def test_state_is_the_trained_parameters_and_a_resume_goes_on_as_if_nothing_had_been(base, host, inputs, tmp_path):
    arguments = ["method=soda", "rotation=stiefel", "text_targets=attention"]
    through = host(arguments, optimizer_type=SPECTRAL)
    loss = loss_on(base, inputs)
    through.step(loss)
    state = through.save_state(tmp_path / "state")
    through.step(loss)
    wanted = load_file(through.save(tmp_path / "through.safetensors"))
    through.network.remove()

    saved = load_file(state / "model.safetensors")
    assert saved.keys() - {"_extra_state"} == {name for name, _ in through.network.named_parameters()}
    assert all(name in wanted for name in saved if name != "_extra_state"), "named as in the file"

    resumed = host(arguments, optimizer_type=SPECTRAL, resume=str(state))
    resumed.step(loss)
    found = load_file(resumed.save(tmp_path / "resumed.safetensors"))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    resumed.network.remove()

    with pytest.raises(SettingError, match="belongs to another adapter"):
        host(["method=soda", "text_targets=attention"], resume=str(state))


def test_goes_on_from_a_file_and_takes_its_layout_from_one(base, host, inputs, tmp_path):
    first = host(["method=additive", "columns=top:4@2", "text_targets=attention"])
    first.step(loss_on(base, inputs))
    path = first.save(tmp_path / "first.safetensors")
    first.network.remove()
    wanted = load_file(path)

    again = host(["method=additive", "columns=top:4@2", "text_targets=attention"], network_weights=str(path))
    assert "68 layers of additive" in again.info
    found = load_file(again.save(tmp_path / "again.safetensors"))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()), "frames and parameters are its own"
    again.network.remove()

    read = host([], network_weights=str(path), dim_from_weights=True)
    found = load_file(read.save(tmp_path / "read.safetensors"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], t) for name, t in wanted.items())
    read.network.remove()

    before = base.unet.state_dict()
    with pytest.raises(SettingError, match="start from is additive"):
        host(["method=additive", "columns=top:4", "text_targets=attention"], network_weights=str(path))
    with pytest.raises(SettingError, match="part that is not trained"):
        host(["method=additive", "columns=top:4@2"], network_weights=str(path))
    with pytest.raises(SettingError, match="method is decided by"):
        host(["method=additive"], network_weights=str(path), dim_from_weights=True)
    assert not any("forward" in m.__dict__ for m in base.unet.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.unet.state_dict().items())


def test_load_weights_takes_the_place_of_what_was_put_on(base, host, tmp_path):
    plain = host(["method=rotation"], network_dim=4)
    path = plain.save(tmp_path / "rotation.safetensors")
    with torch.no_grad():
        for p in plain.network.parameters():
            p.add_(1)
    plain.network.load_weights(str(path))
    assert all(not p.any() for p in plain.network.parameters()), "a rotation starts at 0"
    assert {id(p) for p in plain.network.parameters()} == {
        id(p) for _, a in plain.network.injected for p in a.parameters()
    }


@pytest.mark.parametrize("targets", ["all", r"^mid_block.*attn2"])
def test_layers_and_norms_of_a_file_are_found_again(base, host, tmp_path, targets):
    first = host(["method=svdiff", "norms=true", f"targets={targets}"])
    path = first.save(tmp_path / "first.safetensors")
    first.network.remove()
    read = host([], network_weights=str(path), dim_from_weights=True)
    found = sa.load(read.save(tmp_path / "read.safetensors"))
    wanted = sa.load(path)
    assert found.layers.keys() == wanted.layers.keys() and found.gains.keys() == wanted.gains.keys()


def test_file_says_all_that_sd_scripts_says(base, host, tmp_path):
    said = {
        "ss_network_module": "spectral_adapters.trainer.kohya",
        "ss_network_dim": "None",
        "ss_network_alpha": "1",
        "ss_steps": "12",
        "ss_base_model_version": "sd_v1",
        "ss_new_sd_model_hash": "ab" * 32,
        "ss_sd_model_name": "base.safetensors",
        "ss_dataset_dirs": json.dumps({"2_sks mug": {"n_repeats": 2, "img_count": 3}}),
        "ss_tag_frequency": json.dumps({"2_sks mug": {"a photo of sks mug": 2, "sks mug": 1}}),
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "mug",
    }
    started = host(["method=additive"], network_dim=3)
    path = started.save(tmp_path / "mug.safetensors", torch.float16, **said)
    started.save(path, torch.float16, **said)  # as sd-scripts does with what has its name
    adapter = sa.load(path)
    kept = {key: value for key, value in said.items() if key != "ss_network_dim"}
    assert kept.items() <= adapter.metadata.items()
    assert adapter.metadata["ss_network_dim"] == "3"
    assert len(adapter.metadata["sshs_model_hash"]) == 64 and len(adapter.metadata["sshs_legacy_hash"]) == 8
    assert adapter.base_name == "base" and adapter.metadata["spectral.base_hash"] == "ab" * 32
    assert adapter.trigger_words == ["sks mug"]
    assert list(tmp_path.iterdir()) == [path]


def of_folder(images: int, tags: str) -> dict[str, str]:
    """What sd-scripts says of one folder, 4_dog."""
    return {
        "ss_dataset_dirs": f'{{"4_dog": {{"n_repeats": 4, "img_count": {images}}}}}',
        "ss_tag_frequency": f'{{"4_dog": {tags}}}',
    }


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"modelspec.trigger_phrase": "sks, mug"}, ("sks", "mug")),
        (of_folder(2, '{"a dog": 1, "Dog": 1}'), ("dog",)),
        (of_folder(2, '{"a dog": 1, "cat": 1}'), ()),
        (of_folder(1, '{"dogma": 1}'), ()),
        (
            {
                "ss_datasets": '[{"subsets": [{"image_dir": "x", "class_tokens": "sks", "img_count": 1},'
                ' {"image_dir": "r", "class_tokens": "dog", "is_reg": true, "img_count": 1}]}]',
                "ss_tag_frequency": '{"x": {"sks": 1}, "r": {"dog": 1}}',
            },
            ("sks",),
        ),
        ({"ss_dataset_dirs": "None", "ss_tag_frequency": "no json"}, ()),
        ({}, ()),
    ],
)  # fmt: skip
def test_trigger_words_are_those_that_every_caption_holds(said, words):
    assert kohya_label.trigger_words(said) == words


def test_a_long_label_never_costs_the_training(base, host, tmp_path, capsys):
    tags = {f"tag number {i:06}": 1 for i in range(60_000)} | {"green thing": 7}
    said = {
        "ss_tag_frequency": json.dumps({"2_green thing": tags}),
        "ss_training_comment": "\x1b[31m",
        "ss_bucket_info": "x" * 2_000_000,
        "ss_steps": "3",
    }
    started = host(["method=additive"], network_dim=2)
    kept = sa.load(started.save(tmp_path / "long.safetensors", None, **said)).metadata
    assert kept["ss_steps"] == "3" and "ss_training_comment" not in kept and "ss_bucket_info" not in kept
    (counts,) = json.loads(kept["ss_tag_frequency"]).values()
    assert len(counts) == 500 and counts["green thing"] == 7
    assert "ss_bucket_info, ss_training_comment" in capsys.readouterr().out


# --- rates


def test_every_part_and_kind_has_its_rate(base, host):
    both = host(
        ["method=svdiff", "norms=true", "text_targets=attention", "norm_lr=1e-7"],
        unet_lr=2e-3,
        text_encoder_lr=[5e-4],
    )
    rates = {text: group["lr"] for text, group in zip(both.descriptions, both.optimizer.param_groups)}
    assert rates == {"unet delta": 2e-3, "unet gain": 1e-7, "text encoder delta": 5e-4, "text encoder gain": 1e-7}
    both.network.remove()

    soda = host(["method=soda", "weight_decay=0.3"], learning_rate=7e-4)
    assert soda.descriptions == ["unet"] and soda.optimizer.param_groups[0]["weight_decay"] == 0.3
    soda.network.remove()

    own = host(["method=svdiff"], optimizer_args=["weight_decay=0.2"])
    assert own.optimizer.param_groups[0]["weight_decay"] == 0.2
    own.network.remove()

    frozen = host(["method=additive", "text_targets=attention"], text_encoder_lr=[0.0])
    assert frozen.descriptions == ["unet"]
    trained = {n for n, p in frozen.network.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("lora_unet_") for name in trained)
    assert len(frozen.network.get_trainable_params()) == len(trained)


def test_two_text_encoders_take_two_rates(base):
    pair = [base.text_encoder, copy.deepcopy(base.text_encoder)]
    started = Host(
        options(
            network_args=["method=additive", "text_targets=attention", "text_targets_2=attention"],
            unet_lr=1e-3,
            text_encoder_lr=[1e-4, 2e-4],
        ),
        pair,
        base.unet,
    )
    started.network.remove()
    assert started.descriptions == ["unet", "text encoder", "text encoder 2"]
    assert [group["lr"] for group in started.optimizer.param_groups] == [1e-3, 1e-4, 2e-4]
    assert {name.partition("_text_model")[0] for name in started.network.adapter.layers if "_te" in name} == {
        "lora_te1",
        "lora_te2",
    }


# --- strength, precision, devices


def test_multiplier_0_is_the_base_and_gradients_come_back_at_1(base, host, inputs):
    loss = loss_on(base, inputs)

    def value() -> float:
        return float(loss().detach())

    untouched = value()
    started = host(["method=additive", "text_targets=attention"], gradient_checkpointing=True)
    for _ in range(2):
        started.step(loss)
    trained = value()
    assert trained != untouched
    started.network.set_multiplier(0)
    assert value() == untouched
    started.network.set_multiplier(1)
    assert value() == trained
    started.network.remove()
    assert value() == untouched


def test_a_cast_network_and_base_keep_the_adapter_whole(base, host, inputs, tmp_path):
    whole = host(["method=svdiff", "text_targets=attention"], pretrained_model_name_or_path=str(ASSETS / "tiny_base"))
    wanted = sa.load(whole.save(tmp_path / "whole.safetensors"))
    whole.network.remove()

    text, unet = copy.deepcopy(base.text_encoder), copy.deepcopy(base.unet)
    nn.Module.to(text, torch.bfloat16)  # as sd-scripts has it by then
    merged = unet.get_submodule(CROSS).weight
    with torch.no_grad():
        merged.mul_(1.5)  # as by --base_weights
    cast = host(
        ["method=svdiff", "text_targets=attention"],
        pair=(text, unet),
        mixed_precision="bf16",
        full_bf16=True,
        pretrained_model_name_or_path=str(ASSETS / "tiny_base"),
    )
    assert unet.conv_in.weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in cast.network.parameters())
    latents, timesteps = inputs

    def loss():
        with torch.autocast("cpu", torch.bfloat16):
            states = text(base.tokens(["a mug", "a cup"]))[0]
            return unet(latents, timesteps, states).sample.float().square().mean()

    cast.step(loss)
    found = sa.load(cast.save(tmp_path / "cast.safetensors"))
    other = f"lora_unet_{CROSS.replace('.', '_')}"
    for name, layer in found.layers.items():
        assert (layer.evidence.fingerprint == wanted.layers[name].evidence.fingerprint) == (name != other), name
    assert any(layer.params["delta"].any() for layer in found.layers.values())


@pytest.mark.parametrize("when", ["training", "pictures alone"])
def test_bases_follow_the_model_to_its_device(base, when):
    moves = {
        "training": lambda network, unet: network.prepare_grad_etc(base.text_encoder, unet),
        "pictures alone": lambda network, _unet: network.to("meta"),
    }
    unet = copy.deepcopy(base.unet)
    network = kohya.create_network(1.0, 4, 1, None, base.text_encoder, unet, method="additive", targets=CROSS)
    network.apply_to(base.text_encoder, unet)
    (layer,) = network.adapter.layers.values()
    unet.to("meta")
    moves[when](network, unet)
    assert layer.frames.u.device.type == "meta"


@pytest.mark.parametrize("method", METHODS)
def test_a_base_in_8_bits_is_trained_on(base, method):
    """As with --fp8_base: the weights are cast after they have been decomposed."""
    unet = copy.deepcopy(base.unet)
    network = kohya.create_network(1.0, None, 1, None, base.text_encoder, unet, method=method, targets=CROSS)
    network.apply_to(base.text_encoder, unet)
    layer = nn.Module.to(unet.get_submodule(CROSS), torch.float8_e4m3fn)
    network.prepare_grad_etc(base.text_encoder, unet)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(2, 5, layer.in_features))
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16 and y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("method", ["additive", "svdiff"])
def test_decompositions_made_ahead_are_those_that_are_then_used(base, tmp_path, method):
    cache = sa.BasisCache(tmp_path / "ahead")
    spec = read_arguments(None, {"method": method, "targets": "^mid_block.*attn2"})
    (part, _) = chosen_parts(spec, base.text_encoder, base.unet)
    decompose_ahead(part, spec.build_method(), None, cache, torch.device("cpu"))
    assert (cache.stats.hits, cache.stats.misses) == (0, 4)
    _, adapter = inject(base.unet, spec.build_method(), part.targets, prefix=part.prefix, cache=cache)
    adapter.remove()
    assert (cache.stats.hits, cache.stats.misses) == (4, 4)


def test_merging_a_file_is_its_use_at_that_strength(base, host, inputs, tmp_path):
    first = host(["method=additive", "text_targets=attention"])
    for _ in range(2):
        first.step(loss_on(base, inputs))
    path = first.save(tmp_path / "first.safetensors")
    first.network.set_multiplier(0.5)
    wanted = float(loss_on(base, inputs)().detach())
    first.network.remove()

    pair = (copy.deepcopy(base.text_encoder), copy.deepcopy(base.unet))
    network, _ = kohya.create_network_from_weights(0.5, str(path), None, *pair, for_inference=True)
    network.merge_to(*pair, None, torch.float32, "cpu")
    merged = replace(base, text_encoders=(pair[0],), unet=pair[1])
    assert float(loss_on(merged, inputs)()) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(SettingError, match="only an adapter file"):
        kohya.create_network(1.0, 4, 1, None, *pair).merge_to(*pair)


# --- what is refused


@pytest.mark.parametrize(
    ("dim", "given", "message"),
    [
        (None, {"metod": "soda"}, "'metod' is unknown; did you mean method"),
        (None, {"conv_dim": "4"}, "'conv_dim' is unknown. This module has method, rank"),
        (None, {"method": "lora"}, "method 'lora' is unknown"),
        (8, {"rank": "4"}, "network_dim=8 and rank=4"),
        (8, {"columns": "top:8"}, "both choose columns"),
        (None, {"rank": "four"}, "rank='four'; expected a whole number"),
        (None, {"norms": "maybe", "method": "svdiff"}, "expected true or false"),
        (None, {"norms": "true"}, "additive does not have norms"),
        (None, {"rotation": "stiefel"}, "additive does not have rotation"),
        (None, {"method": "soda", "rotation": "euler"}, "rotation='euler'"),
        (None, {"start_from": "nowhere.safetensors"}, "there is no file nowhere"),
        (None, {"avoid": "a.safetensors; b.safetensors"}, "there is no file a.safetensors"),
        (None, {"avoid": '["a.safetensors"'}, "no list in JSON"),
        (None, {"concept": "cat"}, "without column_plan"),
    ],
)
def test_arguments_that_do_not_fit_are_named(dim, given, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        read_arguments(dim, given)


def test_arguments_are_the_settings_of_our_own_training():
    known = {field.name for field in fields(TrainSpec)}
    assert set(ARGUMENTS) <= known
    spec = read_arguments(None, {"method": "soda", "rank": "4", "text_targets": "all", "weight_decay": "0.1"})
    assert (spec.method, spec.rank, spec.text_targets, spec.weight_decay) == ("soda", 4, "all", 0.1)
    assert spec.rotation == "cayley"


def test_columns_may_come_from_a_plan_or_from_what_others_leave_free(base, host, tmp_path):
    write_plan(plan_columns(["cat", "dog"], rank=4), tmp_path / "plan.json")
    planned = host([f"column_plan={tmp_path / 'plan.json'}", "concept=dog"])
    path = planned.save(tmp_path / "dog.safetensors")
    planned.network.remove()
    assert {layer.indices for layer in sa.load(path).layers.values()} == {(4, 5, 6, 7)}

    beside = host(["columns=top:4@4", f"avoid={path}"])
    assert {layer.indices for layer in beside.network.adapter.layers.values()} == {(8, 9, 10, 11)}


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        ([], {"network_dropout": 0.1}, "have no dropout"),
        ([], {"save_model_as": "ckpt"}, "adapters are safetensors files"),
        (["method=soda", "rotation=stiefel"], {}, "does not keep rotations orthogonal"),
        (["text_targets_2=attention"], {}, "this model has 1 text encoders"),
        (["targets=none"], {}, "nothing to train"),
        (["targets=nothing_here"], {}, "chose no layer"),
        ([], {"network_train_text_encoder_only": True}, "only the other half"),
        ([], {"unet_lr": 0.0}, "every learning rate is 0"),
        ([], {"dim_from_weights": True}, "name it with network_weights"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_layer_is_touched(base, host, arguments, given, message):
    with pytest.raises(SettingError, match=message):
        host(arguments, **given)
    assert not any("forward" in module.__dict__ for module in base.unet.modules())


def test_a_half_that_is_switched_off_is_said(base, host, capsys):
    started = host(["text_targets=attention"], network_train_unet_only=True)
    assert "lora_te_" not in str(list(started.network.adapter.layers))
    assert "text_encoder are not trained" in capsys.readouterr().out
    started.network.remove()
    host()
    assert "network_train_unet_only spares" in capsys.readouterr().out


class Flux(nn.Module):
    def __init__(self):
        super().__init__()
        self.double_blocks = nn.ModuleList([nn.ModuleDict({"img_attn": nn.Linear(4, 4)})])


def test_other_models_are_named_with_their_layers(base):
    with pytest.raises(SettingError, match=r"found a Flux with 2 text encoders .* double_blocks\.0\.img_attn"):
        kohya.create_network(1.0, 4, 1, None, [base.text_encoder] * 2, Flux(), method="additive")
    assert kohya.SpectralNetwork.train_t5xxl is False


# --- SDXL's UNet as sd-scripts has it


def ldm_unet(width: int = 4) -> nn.Module:
    """Every layer and norm of SDXL's UNet under LDM's paths, narrow."""
    root = nn.Module()
    for module in names.unet_modules("sdxl"):
        *parents, last = module.ldm.split(".")
        place = root
        for name in parents:
            if name not in place._modules:
                place.add_module(name, nn.Module())
            place = place._modules[name]
        kinds = {"linear": nn.Linear(width, width), "conv": nn.Conv2d(width, width, 1), "norm": nn.LayerNorm(width)}
        place.add_module(last, kinds[module.kind])
    return root


def test_sdxl_under_ldms_paths_has_the_same_targets_and_names_as_under_diffusers(base, tmp_path):
    unet = ldm_unet()
    assert names.module_family(unet) == "sdxl"
    assert names.layer_names(unet, "lora_unet_").keys() == names.unet_paths("sdxl").keys()
    assert len(select(unet, "attention")) == 560 and len(select(unet, "all")) == 794

    wanted = r"^down_blocks\.1\..*attn2\.to_[kv]$"
    network = kohya.create_network(1.0, 2, 1, None, base.text_encoder, unet, targets=wanted, method="additive")
    network.apply_to(base.text_encoder, unet)
    path = tmp_path / "xl.safetensors"
    network.save_weights(str(path), None, {})
    network.remove()
    found = sa.load(path)
    expected = {
        f"lora_unet_input_blocks_{block}_1_transformer_blocks_{i}_attn2_to_{part}"
        for block in (4, 5)
        for i in (0, 1)
        for part in "kv"
    }
    assert found.layers.keys() == expected
    read, _ = kohya.create_network_from_weights(1, str(path), None, base.text_encoder, unet)
    read.apply_to(base.text_encoder, unet)
    assert read.adapter.layers.keys() == expected
    read.remove()


def test_another_models_file_is_refused(base, tmp_path):
    unet = ldm_unet()
    network = kohya.create_network(1.0, 2, 1, None, base.text_encoder, unet, targets="conv_in", method="additive")
    network.apply_to(base.text_encoder, unet)
    network.save_weights(str(tmp_path / "xl.safetensors"), None, {})
    with pytest.raises(WrongBaseError, match=r"lora_unet_input_blocks_0_0.*not in the model here"):
        kohya.create_network_from_weights(1, str(tmp_path / "xl.safetensors"), None, base.text_encoder, base.unet)


def test_importing_the_module_brings_nothing_heavy():
    program = (
        "import sys, spectral_adapters.trainer.kohya, spectral_adapters.trainer.kohya_optimizer\n"
        "print([name for name in ('diffusers', 'transformers', 'accelerate', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
