"""The commands fuse, correlate and limit, as a user types them, on the bundled base."""

import json

import pytest
import torch
from safetensors.torch import load_file

import spectral_adapters as sa
from spectral_adapters.__main__ import main
from spectral_adapters.spectral.change import dense
from spectral_adapters.spectral.mixture import Ingredient
from spectral_adapters.spectral.open import open_source
from spectral_adapters.trainer.base_weights import open_base
from spectral_adapters.trainer.models import load_base
from spectral_adapters.trainer.recording import record
from spectral_adapters.trainer.samples import Look


def adapter(name, columns, seed, layers, base):
    """An adapter of random parameters on layers of the bundled base."""
    method = sa.method(name, columns=columns)
    made = {}
    for number, layer in enumerate(layers):
        weight = base[layer]()
        basis = sa.decompose(weight, method.columns)
        basis = basis.half_rounded() if method.portable else basis
        gen = torch.Generator().manual_seed(100 * seed + number)
        unit = {"delta": 0.1 * basis.s}
        params = {
            key: unit.get(key, 0.05) * torch.randn(shape, generator=gen)
            for key, shape in method.param_shapes(tuple(weight.shape), len(basis.columns)).items()
        }
        chosen = None if basis.full else basis.columns
        made[layer] = sa.AdapterLayer(layer, tuple(weight.shape), params, chosen, basis)
    return sa.Adapter(method, made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Portable and compact adapters and a LoRA, on cross-attention and one text layer of the bundled base."""
    folder, base = tmp_path_factory.mktemp("fuse"), open_base("tiny")
    layers = [layer for layer in base if "attn2_to_" in layer][:6]
    layers.append(next(layer for layer in base if layer.startswith("lora_te_") and "self_attn_q" in layer))

    def write(name, method, columns, seed, **more):
        made = adapter(method, columns, seed, layers, base)
        return sa.save(made, folder / f"{name}.safetensors", trigger_words=[f"a {name}"], **more)

    write("cat", "additive", "top:4", 1)
    write("dog", "additive", "top:4@4", 2)
    write("fox", "additive", "top:4@2", 3)
    write("hue", "svdiff", "all", 4)
    write("ink", "svdiff", "all", 5)
    write("spin", "rotation", "top:4", 6)
    assert main(["convert", str(folder / "fox.safetensors"), "--to", "lora", str(folder / "lora.safetensors")]) == 0
    return folder


def fuse(out, *arguments):
    """The exit status of the command."""
    return main(["fuse", *arguments, "--out", str(out)])


def path(folder, name):
    return str(folder / f"{name}.safetensors")


def sum_of(folder, out, **weights):
    """The largest relative error of a file against a weighted sum of others, on the bundled base."""
    base, made = open_base("tiny"), open_source(out)
    sources = [(open_source(path(folder, name)), weight) for name, weight in weights.items()]
    worst = 0.0
    for layer in made.shapes:
        w = base[layer]()
        expected = sum(weight * dense(source.change(layer, w)).double() for source, weight in sources)
        worst = max(worst, float((dense(made.change(layer, w)).double() - expected).norm() / expected.norm()))
    return worst


def test_blocks_become_one_adapter_without_a_base(folder, tmp_path, capsys):
    out = tmp_path / "both.safetensors"
    assert fuse(out, path(folder, "cat"), path(folder, "dog")) == 0
    said = capsys.readouterr().out
    assert "Sum of cat x 1, dog x 1: 7 layers, as one additive adapter, columns top:8." in said
    assert "7 layers checked in fp64: error" in said and "Wrote " in said
    assert sa.load(out).trigger_words == ["a cat", "a dog"]
    assert sum_of(folder, out, cat=1, dog=1) < 1e-6


def test_weights_and_overlap_make_a_lora_or_what_was_asked_for(folder, tmp_path, capsys):
    lora, diff = tmp_path / "lora.safetensors", tmp_path / "diff.safetensors"
    given = [f"{path(folder, 'cat')}:0.5", f"{path(folder, 'fox')}:-1.5"]
    assert fuse(lora, *given, "--to", "lora") == 0
    assert "What the file lost: 7 layers, residual 0.0" in capsys.readouterr().out
    assert any(key.endswith("lora_up.weight") for key in load_file(lora))
    assert sum_of(folder, lora, cat=0.5, fox=-1.5) < 2e-3
    assert fuse(diff, *given, "--to", "diff") == 0
    assert sum_of(folder, diff, cat=0.5, fox=-1.5) < 2e-3
    assert fuse(tmp_path / "auto.safetensors", path(folder, "cat"), path(folder, "lora")) == 0
    assert sum_of(folder, tmp_path / "auto.safetensors", cat=1, lora=1) < 2e-3


def test_rank_and_energy_cut_the_lora(folder, tmp_path, capsys):
    cut, part = tmp_path / "cut.safetensors", tmp_path / "part.safetensors"
    two = [path(folder, "cat"), path(folder, "dog")]
    assert fuse(cut, *two, "--rank", "3") == 0
    assert {len(t) for key, t in load_file(cut).items() if "lora_down" in key} == {3}
    assert fuse(part, *two, "--energy", "0.9") == 0
    assert 0.1 < sum_of(folder, part, cat=1, dog=1) < 0.33  # sqrt(1 - 0.9)
    assert fuse(tmp_path / "x.safetensors", *two, "--rank", "3", "--energy", "0.9") == 2
    assert "give one" in capsys.readouterr().err


def test_compact_files_need_their_base(folder, tmp_path, capsys):
    out, two = tmp_path / "shift.safetensors", [path(folder, "hue"), path(folder, "ink")]
    assert fuse(out, *two) == 2
    assert "hue: found a compact file" in capsys.readouterr().err and not out.exists()
    assert fuse(out, *two, "--mode", "shift", "--base", "tiny") == 0
    assert "as one svdiff adapter, columns all" in capsys.readouterr().out
    made = sa.load(out)
    expected = sum(sa.load(p).layers[next(iter(made.layers))].params["delta"] for p in two)
    torch.testing.assert_close(next(iter(made.layers.values())).params["delta"], expected, atol=2e-3, rtol=2e-3)
    mixed = tmp_path / "mixed.safetensors"
    assert fuse(mixed, path(folder, "cat"), f"{two[0]}:0.5", path(folder, "spin"), "--base", "tiny") == 0
    assert sum_of(folder, mixed, cat=1, hue=0.5, spin=1) < 2e-3


def test_parts_are_taken_from_different_adapters(folder, tmp_path, capsys):
    """Style mixing: text from one compact file, the UNet from another; no base is needed."""
    out = tmp_path / "style.safetensors"
    take = ["--take", "hue=text", "--take", "ink=cross-attention"]
    assert fuse(out, path(folder, "hue"), path(folder, "ink"), *take) == 0
    made, hue, ink = (sa.load(p) for p in (out, path(folder, "hue"), path(folder, "ink")))
    for name, layer in made.layers.items():
        owner = hue if name.startswith("lora_te_") else ink
        assert torch.equal(layer.params["delta"], owner.layers[name].params["delta"])
    assert fuse(tmp_path / "y.safetensors", path(folder, "hue"), "--take", "cow=text") == 2
    assert "NAME one of hue" in capsys.readouterr().err
    assert fuse(tmp_path / "y.safetensors", path(folder, "hue"), "--take", "hue=OUT07") == 2
    assert "no layers in these parts" in capsys.readouterr().err


def test_gradient_records_and_leaves_the_sum_behind(folder, tmp_path, capsys):
    out = tmp_path / "gradient.safetensors"
    three = [path(folder, name) for name in ("cat", "fox", "hue")]
    options = ["--mode", "gradient", "--base", "tiny", "--steps", "2", "--size", "32"]
    assert fuse(out, *three, *options) == 0
    said = capsys.readouterr().out
    assert "Gradient of cat x 1, fox x 1, hue x 1" in said and "7 layers checked" in said
    assert sum_of(folder, out, cat=1, fox=1, hue=1) > 0.01
    assert fuse(tmp_path / "no.safetensors", *three, "--mode", "gradient") == 2
    assert "give the base with --base" in capsys.readouterr().err
    assert fuse(tmp_path / "no.safetensors", *three, *options, "--prompt", "one") == 2
    assert "found 1 prompts for 3 adapters" in capsys.readouterr().err


def test_recording_puts_the_base_back_bit_by_bit(folder):
    base = load_base("tiny")
    before = {name: weight.clone() for name, weight in base.weights().items()}
    ingredients = [Ingredient(open_source(path(folder, name)), 2.0) for name in ("cat", "hue")]
    found = record(base, ingredients, ["a cat", "a hue"], Look((32, 32), 2, 1.0))
    assert not found.missing and set(found.moments) == set(ingredients[0].source.shapes)
    for layer, pair in found.moments.items():
        n = before[layer].flatten(1).shape[1]
        assert len(pair) == 2 and all(m.shape == (n, n) and float(m.trace()) > 0 for m in pair)
        assert not torch.equal(*pair)
    assert all(torch.equal(weight, before[name]) for name, weight in base.weights().items())


def test_what_cannot_be_done_leaves_nothing_behind(folder, tmp_path, capsys):
    cat, dog, out = path(folder, "cat"), path(folder, "dog"), tmp_path / "out.safetensors"
    assert fuse(out, cat, dog, "--mode", "shift") == 2
    assert "cat is of method additive, which this mode does not fit; choose sum" in capsys.readouterr().err
    assert fuse(out, f"{cat}:0.5", dog, "--to", "native") == 2
    assert "this is no single adapter, because cat counts 0.5 times" in capsys.readouterr().err
    assert fuse(out, cat, dog, "--steps", "5") == 2
    assert "belong to --mode gradient" in capsys.readouterr().err
    assert fuse(out, cat, str(tmp_path / "none.safetensors")) == 2
    assert list(tmp_path.iterdir()) == []
    out.write_bytes(b"mine")
    assert fuse(out, cat, dog) == 2 and out.read_bytes() == b"mine"


def test_one_adapter_twice_has_two_names(folder, tmp_path, capsys):
    assert fuse(tmp_path / "out.safetensors", path(folder, "spin"), path(folder, "spin"), "--mode", "rotate") == 0
    assert "Rotate of spin x 1, spin (2) x 1" in capsys.readouterr().out


def test_correlate_and_limit(folder, tmp_path, capsys):
    hue, ink, out = path(folder, "hue"), path(folder, "ink"), tmp_path / "limited.safetensors"
    assert main(["correlate", hue, ink, hue, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cosines"][0][2] == pytest.approx(1) and abs(found["cosines"][0][1]) < 0.5
    assert main(["correlate", hue, ink]) == 0
    assert "+1.000" in capsys.readouterr().out
    assert main(["correlate", hue, path(folder, "cat")]) == 2
    assert "shifts no singular values" in capsys.readouterr().err
    assert main(["limit", hue, str(out), "--columns", "8"]) == 2
    assert main(["limit", hue, str(out), "--columns", "8", "--base", "tiny"]) == 0
    assert "7 layers keep " in capsys.readouterr().out
    assert sa.load(out).profile == "portable" and sa.load(out).method.columns.text == "top:8"
