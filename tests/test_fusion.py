"""Fusion: every mode against its formula, native results, and what is refused."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from adapters import SHAPES, adapter_of, base_weight, relative

import spectral_adapters as sa
from spectral_adapters.spectral.change import dense
from spectral_adapters.spectral.fusion import Fused, FusedAdapter, Ingredient, fuse, verify
from spectral_adapters.spectral.gains import Gain
from spectral_adapters.spectral.parted import parted
from spectral_adapters.spectral.parts import Parts
from spectral_adapters.spectral.source import AdapterSource, Changes

EXACT = 5e-7  # relative, of changes computed in fp32 from parameters that are only put side by side


def concept(name, columns, seed=0, shapes=SHAPES, scale=0.05, **settings):
    """An adapter with parameters of its own on the weights that all concepts share."""
    adapter, _ = adapter_of(name, {"columns": columns, **settings}, shapes=shapes, scale=scale)
    for number, layer in enumerate(adapter.layers.values()):
        gen = torch.Generator().manual_seed(1000 * seed + number)
        for key, param in layer.params.items():
            if adapter.method.groups[key].kind != "stiefel":
                unit = layer.frames.s if key == "delta" else 1
                layer.params[key] = scale * torch.randn(param.shape, generator=gen) * unit
    return adapter


def source(adapter, name):
    return AdapterSource(adapter, name)


def weights():
    return {layer: base_weight(shape, seed) for seed, (layer, shape) in enumerate(SHAPES.items())}


def mix(*pairs):
    """Ingredients of (adapter, weight)."""
    return [Ingredient(source(adapter, f"concept {i}"), weight) for i, (adapter, weight) in enumerate(pairs)]


def change64(adapter, layer, strength=1.0):
    """sum of a layer's columns as the method's paper writes it, dense in fp64: the additive one."""
    found, basis = adapter.layers[layer], adapter.layers[layer].frames
    u, s, v = (t.double() for t in (basis.u, basis.s, basis.v))
    a, b = strength * found.params["a_u"].double(), strength * found.params["a_v"].double()
    return ((u + a) * s) @ (v + b).T - (u * s) @ v.T


@pytest.mark.parametrize("name", ["additive", "rotation"])
def test_disjoint_blocks_sum_exactly_as_one_adapter_and_from_its_file(name, tmp_path):
    """The parameters and frames of each concept are kept bit for bit, so the sum is exact to fp32's own rounding."""
    cat, dog, fox = (concept(name, f"top:4@{4 * i}", i) for i in range(3))
    ingredients = mix((cat, 1.0), (dog, 1.0), (fox, 1.0))
    made = fuse(ingredients, "sum", name="three")
    assert isinstance(made, FusedAdapter) and made.native.method.columns.text == "top:12"
    saved = source(sa.load(sa.save(made.native, tmp_path / "three.safetensors", dtype=torch.float32)), "file")
    for layer in SHAPES:
        expected = sum(dense(one.source.change(layer)).double() for one in ingredients)
        for found in (made.change(layer), saved.change(layer)):
            assert relative(dense(found).double(), expected) < EXACT
    for found in (made, saved):
        assert verify(found, ingredients, "sum").largest < EXACT


def test_a_saved_fusion_keeps_the_bits_of_its_ingredients(tmp_path):
    """Saved in fp16 and fused, or fused and saved in fp16: the same file contents."""
    parts = [concept("additive", f"top:4@{4 * i}", i) for i in range(2)]
    loaded = [sa.load(sa.save(part, tmp_path / f"{i}.safetensors")) for i, part in enumerate(parts)]
    made = sa.load(sa.save(fuse(mix(*((a, 1.0) for a in loaded))).native, tmp_path / "made.safetensors"))
    for layer, found in made.layers.items():
        for key in ("a_u", "a_v"):
            assert torch.equal(found.params[key], torch.cat([a.layers[layer].params[key] for a in loaded], 1))
        for side in ("u", "v"):
            expected = torch.cat([getattr(a.layers[layer].frames, side) for a in loaded], 1)
            assert torch.equal(getattr(found.frames, side), expected)


def test_the_parts_of_concepts_on_different_columns_are_orthogonal():
    """<A_i S_i V_i^T, A_j S_j V_j^T> = 0 and the same for B: methods.md 2.5. In the canonical basis, before fp16."""
    weight = base_weight((96, 160))
    basis = sa.decompose(weight, "top:24")
    gen = torch.Generator().manual_seed(0)
    left, right = [], []
    for start in (0, 8, 16):
        part = basis.select(range(start, start + 8))
        u, s, v = (t.double() for t in (part.u, part.s, part.v))
        left.append((torch.randn(96, 8, generator=gen).double() * s) @ v.T)
        right.append((u * s) @ torch.randn(8, 160, generator=gen).double())
    for parts in (left, right):
        for a, b in itertools.combinations(parts, 2):
            assert abs(float((a * b).sum())) <= 1e-6 * float(a.norm() * b.norm())


def test_paper_is_lambda_times_the_linear_plus_lambda_squared_times_the_quadratic_part():
    cat, dog = concept("additive", "top:4", 1), concept("additive", "top:4@4", 2)
    made = fuse(mix((cat, 1.0), (dog, 1.0)), "paper")
    assert made.native is not None
    for layer in SHAPES:
        expected = 0
        for adapter in (cat, dog):
            basis, p = adapter.layers[layer].frames, adapter.layers[layer].params
            u, s, v, a, b = (t.double() for t in (basis.u, basis.s, basis.v, p["a_u"], p["a_v"]))
            linear, quadratic = (a * s) @ v.T + (u * s) @ b.T, (a * s) @ b.T
            expected = expected + 0.5 * linear + 0.25 * quadratic
        assert relative(dense(made.change(layer)).double(), expected) < EXACT


def test_paper_on_shared_columns_is_the_formula_with_its_cross_terms():
    cat, dog = concept("additive", "top:4", 1), concept("additive", "top:4", 2)
    made = fuse(mix((cat, 1.0), (dog, 3.0)), "paper")
    both = copy.deepcopy(cat)
    for layer, found in both.layers.items():
        other = dog.layers[layer].params
        found.params = {key: 0.5 * p + 1.5 * other[key] for key, p in found.params.items()}
    for layer in SHAPES:
        assert relative(dense(made.change(layer)).double(), change64(both, layer)) < EXACT


def test_overlap_is_said_as_counted_by_hand():
    cat = concept("additive", [0, 1, 2, 5], 1)
    dog = concept("additive", [1, 2, 5, 7], 2)
    for layer in list(SHAPES)[2:]:
        del dog.layers[layer]
    made = fuse(mix((cat, 1.0), (dog, 1.0)))
    assert made.native is None
    assert made.why == "concept 0 and concept 1 share columns 1-2, 5 in 2 layers"
    assert made.why in made.text


def test_weights_other_than_one_and_means_add_changes():
    cat, dog = concept("additive", "top:4", 1), concept("additive", "top:4@4", 2)
    for mode, factors in (("sum", (0.5, -2.0)), ("mean", (0.25, -1.0))):
        made = fuse(mix((cat, 0.5), (dog, -2.0)), mode)
        assert made.native is None and "scaled change" in made.why
        for layer in SHAPES:
            expected = factors[0] * change64(cat, layer) + factors[1] * change64(dog, layer)
            assert relative(dense(made.change(layer)).double(), expected) < EXACT
    assert fuse(mix((cat, 2.0), (dog, 2.0)), "mean").native is not None


def test_rotations_compose_along_their_axes():
    """At 0.5 + 0.5 one adapter is itself; at 2 it is its own spectral strength 2."""
    cat = concept("rotation", "top:5", 1, scale=0.3)
    halves = fuse(mix((cat, 0.5), (cat, 0.5)), "rotate")
    twice = fuse(mix((cat, 2.0)), "rotate")
    for layer in SHAPES:
        assert relative(dense(halves.change(layer)), dense(source(cat, "cat").change(layer))) < 2e-6
        frames = cat.layers[layer].frames
        expected = cat.method.delta(frames, cat.layers[layer].params, 2.0, "spectral")
        assert relative(dense(twice.change(layer)), expected) < 2e-6
    apart = concept("rotation", "top:5@5", 2)
    assert verify(fuse(mix((cat, 1.0), (apart, 1.0)), "rotate"), mix((cat, 1.0), (apart, 1.0)), "sum").largest < 2e-6


def test_a_rotation_by_half_a_turn_is_refused_and_beyond_it_is_exact():
    """2 arctan(1) = 90 degrees: twice is 180, which no parameters state; three times is 270, which is -90."""
    cat = concept("rotation", "top:2", 1)
    for layer in cat.layers.values():
        layer.params = {key: torch.ones(1) for key in layer.params}
    with pytest.raises(sa.SettingError, match=r"almost 180 degrees.*choose sum, mean or interpolate"):
        fuse(mix((cat, 2.0)), "rotate")
    made = fuse(mix((cat, 3.0)), "rotate")
    for layer in made.native.layers.values():
        torch.testing.assert_close(layer.params["q_u"], -torch.ones(1))


def test_paper_averages_rotation_parameters():
    cat, dog = concept("rotation", "top:5", 1), concept("rotation", "top:5", 2)
    made = fuse(mix((cat, 1.0), (dog, 1.0)), "paper")
    for name, layer in made.native.layers.items():
        for key, q in layer.params.items():
            torch.testing.assert_close(q, (cat.layers[name].params[key] + dog.layers[name].params[key]) / 2)


@pytest.mark.parametrize("columns", ["all", "top:5"])
def test_shifts_add_inside_one_relu(columns):
    """A singular value that two adapters push below zero together stops there: a sum of changes would not."""
    cat, dog = concept("svdiff", columns, 1), concept("svdiff", columns, 2)
    for adapter in (cat, dog):
        for layer in adapter.layers.values():
            layer.params["delta"][1] = -0.8 * layer.frames.s[1]
    made = fuse(mix((cat, 1.0), (dog, 1.0)), "shift")
    for name in SHAPES:
        one, other = cat.layers[name], dog.layers[name]
        u, s, v = (t.double() for t in (one.frames.u, one.frames.s, one.frames.v))
        moved = (s + one.params["delta"].double() + other.params["delta"].double()).clamp_min(0)
        assert moved[1] == 0
        assert relative(dense(made.change(name)).double(), (u * (moved - s)) @ v.T) < 1e-5
    summed = fuse(mix((cat, 1.0), (dog, 1.0)), "sum")
    assert summed.native is None and "negative" in summed.why
    assert verify(summed, mix((cat, 1.0), (dog, 1.0)), "sum").largest < EXACT


def test_a_sum_of_svdiff_changes_is_one_adapter_at_any_weights():
    cat, dog = concept("svdiff", "top:5", 1), concept("svdiff", "top:5@3", 2)
    for layer in cat.layers.values():
        layer.params["delta"][0] = -2 * layer.frames.s[0]  # acts as -1 sigma
    made = fuse(mix((cat, 0.5), (dog, -0.7)))
    assert made.native is not None and made.native.method.columns.text == "top:8"
    assert verify(made, mix((cat, 0.5), (dog, -0.7))).largest < 1e-5


def test_interpolation_of_shifts_is_svdiffs_and_weights_are_made_to_add_up_to_one():
    cat, dog = concept("svdiff", "top:5", 1), concept("svdiff", "top:5", 2)
    made = fuse(mix((cat, 3.0), (dog, 1.0)), "interpolate")
    for name, layer in made.native.layers.items():
        expected = 0.75 * cat.layers[name].params["delta"] + 0.25 * dog.layers[name].params["delta"]
        torch.testing.assert_close(layer.params["delta"], expected)
    with pytest.raises(sa.SettingError, match="add up to 0"):
        fuse(mix((cat, 1.0), (dog, -1.0)), "interpolate")


def test_methods_ranks_profiles_and_loras_mix_by_their_changes(tmp_path):
    base = weights()
    cat = concept("additive", "top:4", 1)
    shifted = sa.load(sa.save(concept("svdiff", "all", 2), tmp_path / "compact.safetensors", profile="compact"))
    turned = concept("soda", "all", 3)
    gen = torch.Generator().manual_seed(4)
    up, down = torch.randn(24, 3, generator=gen), torch.randn(3, 40, generator=gen)
    lora = Changes({"lora_unet_a": ((24, 40), (up, down))}, name="lora", kind="LoRA")
    ingredients = [*mix((cat, 1.0), (shifted, 0.5), (turned, 0.3)), Ingredient(lora, -0.1)]
    made = fuse(ingredients, weights=base)
    assert isinstance(made, Fused)
    assert made.needs_weight("lora_unet_a") and set(made.shapes) == set(SHAPES)
    for layer, weight in base.items():
        expected = sum(
            one.weight * dense(one.source.change(layer, weight)).double()
            for one in ingredients
            if layer in one.source.shapes
        )
        assert relative(dense(made.change(layer, weight)).double(), expected) < EXACT
    assert verify(made, ingredients, weights=base).largest < EXACT
    assert made.check(base).error < 1e-3
    assert relative(dense(fuse([Ingredient(lora, 2.0)]).change("lora_unet_a")), 2 * up @ down) < EXACT


def test_thin_changes_stay_thin():
    a, b = ((torch.randn(64, 2), torch.randn(2, 96)) for _ in range(2))
    sources = [Changes({"x": ((64, 96), change)}, name="x", kind="LoRA") for change in (a, b)]
    change = fuse([Ingredient(one) for one in sources]).change("x")
    assert isinstance(change, tuple) and change[0].shape == (64, 4)


def test_adapters_that_stay_off_each_other_layer_by_layer_are_called_by_what_they_have():
    """As `avoid` trains them: both say top:3, the second one's layers say which."""
    cat, dog = concept("additive", "top:3", 1), concept("additive", "top:3@3", 2)
    dog.method = cat.method
    made = fuse(mix((cat, 1.0), (dog, 1.0)))
    assert made.native.method.columns.text == "top:6"
    assert fuse(mix((dog, 1.0))).native.layers["lora_unet_a"].indices == (3, 4, 5)


def test_fusions_can_be_fused_again():
    cat, dog, fox = (concept("additive", f"top:3@{3 * i}", i) for i in range(3))
    pair = fuse(mix((cat, 1.0), (dog, 1.0)), name="pair")
    whole, steps = fuse(mix((cat, 1.0), (dog, 1.0), (fox, 1.0))), fuse([Ingredient(pair), *mix((fox, 1.0))])
    loose = fuse([Ingredient(fuse(mix((cat, 0.5), (dog, 0.5)))), *mix((fox, 0.5))], "sum")
    for layer in SHAPES:
        assert torch.equal(dense(steps.change(layer)), dense(whole.change(layer)))
    assert steps.native is not None and loose.native is None
    assert verify(loose, [*mix((cat, 0.5), (dog, 0.5), (fox, 0.5))]).largest < EXACT


def test_a_one_by_one_convolution_is_a_linear_layer_and_tensors_without_a_weight_are_named():
    conv = concept("additive", "top:3", 1, {"lora_unet_p": (16, 24, 1, 1)})
    plain = Changes({"lora_unet_p": ((16, 24), torch.ones(16, 24))}, name="plain", kind="LoRA")
    plain.left_out = ("lora_unet_p.diff_b",)
    made = fuse([*mix((conv, 1.0)), Ingredient(plain)])
    expected = dense(source(conv, "c").change("lora_unet_p")) + 1
    for shape in ((16, 24, 1, 1), (16, 24)):
        torch.testing.assert_close(dense(made.change("lora_unet_p", torch.zeros(shape))), expected)
    assert made.text.endswith("Left out, because no weight changes: 1 tensor, such as plain: lora_unet_p.diff_b.")


def test_adapters_of_different_bases_are_added_not_merged():
    cat = concept("additive", "top:4", 1)
    dog = concept("additive", "top:4@4", 2)
    for number, (name, layer) in enumerate(dog.layers.items()):
        basis = sa.decompose(base_weight(layer.shape, number + 50), "top:4@4").half_rounded()
        dog.layers[name] = replace(layer, frames=basis)
    made = fuse(mix((cat, 1.0), (dog, 1.0)))
    assert made.native is None and "different bases" in made.why
    assert verify(made, mix((cat, 1.0), (dog, 1.0))).largest < EXACT
    with pytest.raises(sa.SettingError, match=r"paper: .*different bases.*choose sum"):
        fuse(mix((cat, 1.0), (dog, 1.0)), "paper")


def test_flipped_signs_are_another_basis():
    """The same column with the opposite sign: merging the parameters would be off by far more than 100 %."""
    cat, dog = concept("additive", "top:4", 1), concept("additive", "top:4", 2)
    for layer in dog.layers.values():
        layer.frames.u.neg_(), layer.frames.v.neg_()
    with pytest.raises(sa.SettingError, match="different bases"):
        fuse(mix((cat, 1.0), (dog, 1.0)), "paper")
    assert fuse(mix((cat, 1.0), (dog, 1.0)), "interpolate").native is None


def test_a_base_that_differs_by_rounding_alone_is_the_same():
    cat, dog = concept("additive", "top:4", 1), concept("additive", "top:4", 2)
    for layer in dog.layers.values():
        basis = layer.frames
        near = [
            t + 2e-4 * torch.randn(t.shape, generator=torch.Generator().manual_seed(0)) * t.std()
            for t in (basis.u, basis.v)
        ]
        layer.frames = sa.Basis(basis.s * (1 + 1e-6), basis.columns, basis.shape, u=near[0], v=near[1])
    assert fuse(mix((cat, 1.0), (dog, 1.0)), "paper").native is not None


def test_compact_files_are_merged_with_their_base_and_refused_on_another(tmp_path):
    base = weights()
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for i, file in enumerate(files):
        sa.save(concept("svdiff", "all", i), file)
    ingredients = mix(*((sa.load(file), 1.0) for file in files))
    with pytest.raises(sa.SettingError, match=r"compact.*give the base"):
        fuse(ingredients, "shift")
    made = fuse(ingredients, "shift", weights=base)
    assert made.native.profile == "compact"
    assert all(layer.frames is None for layer in made.native.layers.values())
    assert verify(made, ingredients, "shift", base).largest < 1e-3
    saved = sa.load(sa.save(made.native, tmp_path / "both.safetensors"))
    report = sa.check_layers(saved, base)
    assert report.error < 1e-3 and report.same == len(base)
    strangers = {layer: base_weight(shape, 90 + seed) for seed, (layer, shape) in enumerate(SHAPES.items())}
    with pytest.raises(sa.WrongBaseError, match="off by"):
        fuse(ingredients, "shift", weights=strangers)
    with pytest.raises(sa.WrongBaseError, match="off by"):
        sa.check_layers(saved, strangers)


@pytest.mark.parametrize("mode", ["shift", "sum"])
def test_a_few_shifts_and_all_of_them_are_merged_in_the_whole_basis(mode, tmp_path):
    base = weights()
    few = sa.load(sa.save(concept("svdiff", "top:5@2", 1), tmp_path / "few.safetensors"))
    every = sa.load(sa.save(concept("svdiff", "all", 2), tmp_path / "every.safetensors"))
    ingredients = mix((few, 0.5), (every, 1.0))
    made = fuse(ingredients, mode, weights=base)
    assert made.native.method.columns.text == "all" and made.native.profile == "compact"
    assert verify(made, ingredients, mode, base).largest < 1e-3
    saved = source(sa.load(sa.save(made.native, tmp_path / "made.safetensors")), "made")
    assert saved.check(base).error < 1e-3
    assert verify(saved, ingredients, mode, base).largest < 1e-3


def test_compact_rotations_become_one_portable_adapter(tmp_path):
    base = weights()
    files = [
        sa.save(concept("rotation", f"top:4@{4 * i}", i), tmp_path / f"{i}.safetensors", profile="compact")
        for i in range(2)
    ]
    ingredients = mix(*((sa.load(file), 1.0) for file in files))
    made = fuse(ingredients, weights=base)
    assert made.native.profile == "portable"
    assert verify(made, ingredients, weights=base).largest < EXACT


def test_layer_groups_of_different_adapters_make_one(tmp_path):
    """SVDiff's style mixing: some blocks of one adapter, the others of another; compact files need no base for it."""
    shapes = {
        "lora_unet_down_blocks_0_attentions_0_proj_in": (24, 40),
        "lora_unet_mid_block_attentions_0_proj_in": (40, 24),
    }
    cat, style = (
        sa.load(sa.save(concept("svdiff", "all", i, shapes), tmp_path / f"{i}.safetensors")) for i in range(2)
    )
    parts = [
        Ingredient(parted(source(cat, "cat"), Parts.parse("mid=0"))),
        Ingredient(parted(source(style, "style"), Parts.parse("*=0, mid=1"))),
    ]
    made = fuse(parts)
    assert made.native is not None
    first, second = shapes
    assert torch.equal(made.native.layers[first].params["delta"], cat.layers[first].params["delta"])
    assert torch.equal(made.native.layers[second].params["delta"], style.layers[second].params["delta"])
    assert verify(made, parts).largest == 0
    half = fuse([Ingredient(parted(source(cat, "cat"), Parts.parse("mid=0.5")))])
    assert half.native is None and "strengths of their own" in half.why


def test_norm_gains_are_added_with_the_same_weights(tmp_path):
    norms = [concept("svdiff", "all", i, norms=True) for i in range(2)]
    for i, adapter in enumerate(norms):
        adapter.gains = {"lora_unet_norm": Gain("lora_unet_norm", torch.full((6,), 1.0 + i))}
    plain = concept("svdiff", "all", 3)
    ingredients = mix((norms[0], 0.5), (norms[1], -1.0), (plain, 1.0))
    for mode, expected in (("sum", -1.5), ("mean", -0.5), ("shift", -1.5), ("paper", -0.5), ("interpolate", -3.0)):
        made = fuse(ingredients, mode)
        assert made.native is not None and made.native.method.shifts_gains
        assert dict(made.gains) == {"lora_unet_norm": 6}
        torch.testing.assert_close(made.gain("lora_unet_norm"), torch.full((6,), expected))
    sa.save(fuse(ingredients).native, tmp_path / "norms.safetensors")
    loose = fuse([*ingredients, Ingredient(source(concept("additive", "top:2", 5), "a"), 1.0)])
    torch.testing.assert_close(loose.gain("lora_unet_norm"), torch.full((6,), -1.5))
    with pytest.raises(sa.UnknownLayerError):
        loose.gain("lora_unet_other")


def test_what_the_fused_file_says_of_itself(tmp_path):
    parts = [concept("additive", f"top:4@{4 * i}", i) for i in range(2)]
    files = [
        sa.save(part, tmp_path / f"{name}.safetensors", base_name="base", trigger_words=[word, "toy"], metadata=extra)
        for part, name, word, extra in zip(
            parts, ("cat", "dog"), ("sks", "zwx"), ({"modelspec.license": "MIT"}, {"modelspec.license": "CC-BY-4.0"})
        )
    ]
    made = fuse([Ingredient(source(sa.load(file), file.stem)) for file in files], name="both")
    loaded = sa.load(sa.save(made.native, tmp_path / "both.safetensors"))
    assert loaded.trigger_words == ["sks", "toy", "zwx"] and loaded.base_name == "base"
    assert loaded.metadata["modelspec.license"] == "cat: MIT; dog: CC-BY-4.0"
    assert loaded.metadata["modelspec.merged_from"] == "cat, dog" and loaded.title == "both"
    assert made.text == "sum of cat x 1, dog x 1: 4 layers, as one additive adapter, columns top:8."


def test_columns_that_not_every_layer_has_are_spelt_out_per_layer(tmp_path):
    cat, dog = concept("additive", [0, 3], 1), concept("additive", [5, 14], 2)
    small = base_weight((10, 12), 9)
    tiny = concept("additive", [0, 3], 3, {"lora_unet_small": small.shape})
    cat.layers |= tiny.layers
    made = fuse(mix((cat, 1.0), (dog, 1.0)))
    loaded = sa.load(sa.save(made.native, tmp_path / "made.safetensors"))
    assert loaded.layers["lora_unet_a"].indices == (0, 3, 5, 14)
    assert loaded.layers["lora_unet_small"].indices == (0, 3)


@pytest.mark.parametrize(
    ("mode", "methods", "message"),
    [
        (
            "shift",
            ("additive", "additive"),
            "shift: concept 0 is of method additive, which this mode does not fit; choose sum",
        ),
        ("rotate", ("svdiff", "svdiff"), "rotate: concept 0 is of method svdiff"),
        ("paper", ("soda", "soda"), "paper: concept 0 is of method soda"),
        (
            "paper",
            ("additive", "rotation"),
            "concept 0 is of method additive, concept 1 of method rotation; choose sum",
        ),
        ("blend", ("additive", "additive"), "fusion mode 'blend' is unknown; expected one of sum, mean"),
        ("gradient", ("additive", "additive"), "found moments: none"),
    ],
)
def test_modes_that_do_not_fit_are_refused(mode, methods, message):
    ingredients = mix(
        *((concept(name, "all" if name in ("soda", "svdiff") else "top:3", i), 1.0) for i, name in enumerate(methods))
    )
    with pytest.raises(sa.SettingError, match=message):
        fuse(ingredients, mode)


def test_ingredients_that_do_not_belong_together_are_refused():
    cat = concept("additive", "top:3", 1)
    other = Changes({"lora_unet_a": ((24, 41), torch.zeros(24, 41))}, name="other", kind="LoRA")
    with pytest.raises(
        sa.SettingError, match=r"layer lora_unet_a: concept 0 changes a weight of shape \(24, 40\), other"
    ):
        fuse([*mix((cat, 1.0)), Ingredient(other)])
    with pytest.raises(sa.SettingError, match="at least one"):
        fuse([])
    with pytest.raises(sa.SettingError, match="every weight is 0"):
        fuse(mix((cat, 0.0)))
    with pytest.raises(sa.SettingError, match="weight nan"):
        fuse(mix((cat, float("nan"))))
    with pytest.raises(sa.UnknownLayerError):
        fuse(mix((cat, 0.5))).change("lora_unet_nowhere")
    with pytest.raises(sa.WrongBaseError, match="shape"):
        fuse(mix((cat, 0.5))).change("lora_unet_a", torch.zeros(3, 3))


def test_an_adapter_of_weight_zero_is_left_out_but_counted_in_a_mean():
    cat, dog = concept("additive", "top:3", 1), concept("additive", "top:3", 2)
    dog.layers["lora_unet_extra"] = replace(dog.layers["lora_unet_a"], name="lora_unet_extra")
    made = fuse(mix((cat, 1.0), (dog, 0.0)), "mean")
    assert set(made.shapes) == set(SHAPES)
    assert relative(dense(made.change("lora_unet_a")).double(), 0.5 * change64(cat, "lora_unet_a")) < EXACT
    assert fuse(mix((cat, 1.0), (dog, 0.0))).native is not None


def test_work_can_be_followed_and_cancelled():
    cat, dog = concept("additive", "top:3", 1), concept("additive", "top:3@3", 2)
    told = []
    fuse(mix((cat, 1.0), (dog, 1.0)), progress=lambda *at: told.append(at))
    assert [at[:2] for at in told] == [(i, 4) for i in range(1, 5)]
    with pytest.raises(sa.Cancelled):
        fuse(mix((cat, 1.0), (dog, 1.0)), cancelled=lambda: True)
    with pytest.raises(sa.Cancelled):
        verify(fuse(mix((cat, 1.0))), mix((cat, 1.0)), cancelled=lambda: True)


def test_verification_finds_what_is_wrong():
    """A parameter changed by a thousandth, and a layer that is gone."""
    cat, dog = concept("additive", "top:3", 1), concept("additive", "top:3@3", 2)
    made = fuse(mix((cat, 1.0), (dog, 1.0)))
    made.native.layers["lora_unet_b"].params["a_u"].mul_(1.001)
    report = verify(made, mix((cat, 1.0), (dog, 1.0)))
    assert report.where == "lora_unet_b" and 1e-4 < report.largest < 1e-2
    assert f"largest {report.largest:.1e} in lora_unet_b" in report.text
    broken = copy.deepcopy(made.native)
    del broken.layers["lora_unet_b"]
    with pytest.raises(sa.SettingError, match="lacks layer 'lora_unet_b'"):
        verify(source(broken, "broken"), mix((cat, 1.0), (dog, 1.0)))


def test_merging_into_a_module_adds_the_fusion():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(40, 24, bias=False), "b": torch.nn.Linear(24, 40, bias=False)})
    with torch.no_grad():
        for name in "ab":
            module[name].weight.copy_(weights()[f"lora_unet_{name}"])
    cat, dog = concept("additive", "top:4", 1), concept("svdiff", "top:4", 2)
    made = fuse(mix((cat, 1.0), (dog, 0.5)))
    before = {name: module[name].weight.detach().clone() for name in "ab"}
    assert sa.merge(made, module, 0.5, prefix="lora_unet_") is not None
    for name in "ab":
        expected = 0.5 * dense(made.change(f"lora_unet_{name}"))
        torch.testing.assert_close(module[name].weight.detach() - before[name], expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(sa.SettingError, match="strength is linear"):
        sa.merge(made, module, mode="spectral", prefix="lora_unet_")
