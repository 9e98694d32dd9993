"""Files of the LoRA family as sources: every form against its formula, every spelling, and files that lie."""

import json

import pytest
import torch
from adapters import adapter_of, put_together, take_apart
from safetensors.torch import save_file

import spectral_adapters as sa
from spectral_adapters.spectral import names
from spectral_adapters.spectral.change import dense
from spectral_adapters.spectral.open import open_source

TO_K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_down_blocks_1_resnets_0_conv1"


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def opened(tmp_path, tensors, metadata=None, name="file.safetensors"):
    save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / name, metadata)
    return open_source(tmp_path / name)


def whole(source, layer=TO_K, weight=None):
    return dense(source.change(layer, weight))


def close(found, expected):
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-5)


# Each form: its tensors, its weight's shape, and its change by the formula, entry by entry where that is short.


def lora():
    up, down = rand(24, 4), rand(4, 40)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(2.0)}, (24, 40), 0.5 * up @ down


def lora_without_alpha():
    up, down = rand(24, 4), rand(4, 40)
    return {"lora_up.weight": up, "lora_down.weight": down}, (24, 40), up @ down


def locon():
    up, down = rand(24, 4, 1, 1), rand(4, 8, 3, 3)
    change = torch.einsum("or,rixy->oixy", up[:, :, 0, 0], down)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(4.0)}, (24, 8, 3, 3), change


def locon_with_mid():
    """Three convolutions, one after the other, are one with this kernel."""
    up, mid, down = rand(24, 4, 1, 1), rand(4, 4, 3, 3), rand(4, 8, 1, 1)
    conv, picture = torch.nn.functional.conv2d, torch.eye(8 * 25).reshape(-1, 8, 5, 5)
    reply = conv(conv(conv(picture, down), mid), up)
    kernel = torch.stack([reply[:, :, 0, 0].reshape(8, 5, 5, 24)[:, :3, :3]]).permute(0, 4, 1, 2, 3)[0]
    parts = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    return parts, (24, 8, 3, 3), 0.25 * kernel


def loha(m=24, n=40, r=2):
    a1, b1, a2, b2 = rand(m, r), rand(r, n), rand(m, r, seed=1), rand(r, n, seed=1)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(1.0)}
    return parts, (m, n), (a1 @ b1) * (a2 @ b2) / r


def loha_of_high_rank():
    return loha(r=9)


def loha_with_tucker():
    t1, t2, a1, b1, a2, b2 = (
        rand(3, 3, 3, 3), rand(3, 3, 3, 3, seed=1), rand(3, 24), rand(3, 8), rand(3, 24, seed=1), rand(3, 8, seed=1)
    )  # fmt: skip
    change = torch.zeros(24, 8, 3, 3)
    for o in range(24):
        for i in range(8):
            first = sum(t1[r, s] * a1[r, o] * b1[s, i] for r in range(3) for s in range(3))
            change[o, i] = first * sum(t2[r, s] * a2[r, o] * b2[s, i] for r in range(3) for s in range(3))
    parts = {"hada_t1": t1, "hada_t2": t2, "hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    return parts | {"alpha": torch.tensor(6.0)}, (24, 8, 3, 3), 2 * change


def kron(w1, w2):
    """Block (i, j) of the whole is w1_ij w2."""
    return torch.cat([torch.cat([w * w2 for w in row], 1) for row in w1], 0)


def lokr():
    w1, w2 = rand(4, 5), rand(6, 8)
    # Alpha means nothing where both are whole.
    return {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(7.0)}, (24, 40), kron(w1, w2)


def lokr_with_low_rank_w2():
    w1, a, b = rand(4, 5), rand(6, 1), rand(1, 8)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(3.0)}, (24, 40), 3 * kron(w1, a @ b)


def lokr_tall_with_low_rank_w2():
    w1, a, b = rand(12, 2), rand(2, 1), rand(1, 20)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, (24, 40), kron(w1, a @ b)


def lokr_of_four():
    a1, b1, a2, b2 = rand(4, 2), rand(2, 5), rand(6, 3), rand(3, 8)
    parts = {"lokr_w1_a": a1, "lokr_w1_b": b1, "lokr_w2_a": a2, "lokr_w2_b": b2, "alpha": torch.tensor(6.0)}
    return parts, (24, 40), 2 * kron(a1 @ b1, a2 @ b2)


def lokr_with_low_rank_w1():
    a, b, w2 = rand(4, 2), rand(2, 5), rand(6, 8)
    return {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2": w2, "alpha": torch.tensor(1.0)}, (24, 40), kron(a @ b, w2) / 2


def lokr_of_a_kernel():
    w1, w2 = rand(4, 2), rand(6, 4, 3, 3)
    change = torch.zeros(24, 8, 3, 3)
    for x in range(3):
        for y in range(3):
            change[:, :, x, y] = kron(w1, w2[:, :, x, y])
    return {"lokr_w1": w1, "lokr_w2": w2}, (24, 8, 3, 3), change


def lokr_with_tucker():
    w1, t, a, b = rand(4, 2), rand(3, 3, 3, 3), rand(3, 6), rand(3, 4)
    w2 = sum(t[r, s] * a[r][:, None, None, None] * b[s][None, :, None, None] for r in range(3) for s in range(3))
    change = torch.zeros(24, 8, 3, 3)
    for x in range(3):
        for y in range(3):
            change[:, :, x, y] = kron(w1, w2[:, :, x, y])
    parts = {"lokr_w1": w1, "lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(1.0)}
    return parts, (24, 8, 3, 3), change / 3


def difference():
    change = rand(24, 8, 3, 3)
    return {"diff": change}, (24, 8, 3, 3), change


FORMS = {
    "LoRA": (lora, lora_without_alpha),
    "LoCon": (locon, locon_with_mid),
    "LoHa": (loha, loha_of_high_rank, loha_with_tucker),
    "LoKr": (
        lokr, lokr_with_low_rank_w2, lokr_tall_with_low_rank_w2, lokr_of_four, lokr_with_low_rank_w1, lokr_of_a_kernel,
        lokr_with_tucker,
    ),
    "difference": (difference,),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "make"), [(kind, make) for kind, all_ in FORMS.items() for make in all_])
def test_every_form_is_its_formula(kind, make, tmp_path):
    parts, shape, expected = make()
    source = opened(tmp_path, {f"lora_unet_x.{part}": t for part, t in parts.items()})
    assert (source.kind, source.shapes) == (kind, {"lora_unet_x": shape})
    assert not source.needs_weight("lora_unet_x")
    close(whole(source, "lora_unet_x"), expected)
    found = source.change("lora_unet_x", torch.zeros(shape))
    if not isinstance(found, torch.Tensor):
        assert found[0].shape[1] * sum((found[0].shape[0], found[1].shape[1])) <= expected.numel()
    with pytest.raises(sa.WrongBaseError, match="lora_unet_x"):
        source.change("lora_unet_x", torch.zeros(8, 3))


@pytest.mark.parametrize("low", [False, True])
def test_a_kernel_that_a_form_leaves_out_is_known_from_the_layer(low, tmp_path):
    """LyCORIS flattens a convolution's inputs and kernel where it uses no Tucker form."""
    if low:
        parts, expected = lokr_with_low_rank_w2()[0], lokr_with_low_rank_w2()[2]
        parts["lokr_w2_b"] = rand(1, 2 * 9)
        expected = 3 * kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
    else:
        parts, _, expected = loha(n=90)
    source = opened(tmp_path, {f"{CONV}.{part}": t for part, t in parts.items()})
    assert source.shapes == {CONV: (24, 10, 3, 3)}
    close(whole(source, CONV, torch.zeros(24, 10, 3, 3)), expected)


@pytest.mark.parametrize("make", [lora, locon])
@pytest.mark.parametrize("rows", [True, False])
def test_dora_is_exact_with_the_weight(rows, make, tmp_path):
    parts, shape, change = make()
    over = tuple(range(1, len(shape))) if rows else (0, *range(2, len(shape)))
    weight, merged = rand(*shape, seed=5), rand(*shape, seed=5) + change.reshape(shape)
    norm = merged.square().sum(over, keepdim=True).sqrt()
    scale = torch.rand(norm.shape) + 0.5
    source = opened(tmp_path, {f"{TO_K}.{part}": t for part, t in parts.items()} | {f"{TO_K}.dora_scale": scale})
    assert source.needs_weight(TO_K)
    with pytest.raises(sa.WrongBaseError, match="DoRA"):
        source.change(TO_K)
    close(weight + whole(source, weight=weight).reshape(shape), scale * merged / norm)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_file_of_peft_is_what_peft_merges(use_dora, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed; it only serves as a reference here")
    base = torch.nn.ModuleDict({"attn2": torch.nn.ModuleDict({"to_k": torch.nn.Linear(40, 24, bias=False)})})
    weight = base["attn2"]["to_k"].weight.detach().clone()
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["to_k"], init_lora_weights=False, use_dora=use_dora)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path)
    source = open_source(tmp_path / "adapter_model.safetensors")
    (layer,) = source.shapes
    found = weight + whole(source, layer, weight)
    merged = model.merge_and_unload()["attn2"]["to_k"].weight.detach()
    torch.testing.assert_close(found, merged, rtol=1e-4, atol=1e-5)


def test_alphas_that_diffusers_keeps_in_the_metadata(tmp_path):
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    config = {"unet.lora_alpha": 2, "unet.r": 4, "unet.alpha_pattern": {"attn2.to_k": 8}, "unet.use_rslora": True}
    tensors = {f"unet.{path}.lora_A.weight": rand(4, 40), f"unet.{path}.lora_B.weight": rand(24, 4)}
    source = opened(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(config)})
    close(whole(source), 8 / 2 * rand(24, 4) @ rand(4, 40))


SD1 = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
LDM = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
TO_K_XL = f"lora_unet_{LDM.replace('.', '_')}"
QUERY = "text_model.encoder.layers.0.self_attn.q_proj"
LINEAR = QUERY.replace(".", "_")


@pytest.mark.parametrize(
    "key",
    [
        f"lora_unet_{SD1.replace('.', '_')}.lora_down.weight",
        f"lora_unet_{LDM.replace('.', '_')}.lora_down.weight",
        f"lycoris_{SD1.replace('.', '_')}.lora_down.weight",
        f"unet.{SD1}.lora_A.weight",
        f"unet.{SD1}.lora_A.default.weight",
        f"unet.{SD1}.lora_A",
        f"unet.{SD1}.lora.down.weight",
        f"{SD1.replace('.to_k', '.processor.to_k_lora')}.down.weight",
        f"unet.{SD1.replace('.to_k', '.processor.to_k_lora')}.down.weight",
        f"base_model.model.{SD1}.lora_A.weight",
        f"diffusion_model.{LDM}.lora_down.weight",
        f"diffusion_model.{LDM}.lora_A.weight",
    ],
)
@pytest.mark.parametrize(("width", "layer"), [(768, TO_K), (1024, TO_K), (2048, TO_K_XL)])
def test_every_spelling_of_a_layer(key, width, layer, tmp_path):
    source = opened(tmp_path, {key: rand(4, width), up_of(key): rand(640, 4)})
    assert source.shapes == {layer: (640, width)}
    assert source.family == names.CROSS_WIDTH[width]
    close(whole(source, layer), rand(640, 4) @ rand(4, width))


def up_of(key):
    return key.replace("lora_down", "lora_up").replace("lora_A", "lora_B").replace(".down.", ".up.")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([f"lora_te_{LINEAR}"], [f"lora_te_{LINEAR}"]),
        ([f"text_encoder.{QUERY}"], [f"lora_te_{LINEAR}"]),
        ([f"text_encoder.{QUERY.removeprefix('text_model.')}"], [f"lora_te_{LINEAR}"]),
        ([f"text_encoder.{QUERY}", f"text_encoder_2.{QUERY}"], [f"lora_te1_{LINEAR}", f"lora_te2_{LINEAR}"]),
        ([f"text_encoder.{QUERY}", f"unet.{SD1}"], [f"lora_te_{LINEAR}", TO_K]),
        ([f"text_encoders.clip_l.transformer.{QUERY}", f"diffusion_model.{LDM}"], [f"lora_te_{LINEAR}", TO_K]),
        ([f"text_encoders.clip_g.transformer.{QUERY}", f"diffusion_model.{LDM}"], [f"lora_te2_{LINEAR}", TO_K_XL]),
        ([f"lora_te1_{LINEAR}", TO_K], [f"lora_te_{LINEAR}", TO_K]),
        ([f"lora_te1_{LINEAR}", "lora_te2_text_projection"], [f"lora_te1_{LINEAR}", "lora_te2_text_projection"]),
        (["lora_transformer_blocks_0_attn_to_k"], ["lora_transformer_blocks_0_attn_to_k"]),
        (["transformer.blocks.0.attn.to_k"], ["lora_transformer_blocks_0_attn_to_k"]),
    ],
)
def test_text_encoders_and_unknown_models(keys, expected, tmp_path):
    width = 2048 if TO_K_XL in expected else 768
    tensors = {f"{key}.lora_down.weight": rand(4, width) for key in keys}
    source = opened(tmp_path, tensors | {f"{key}.lora_up.weight": rand(640, 4) for key in keys})
    assert sorted(source.shapes) == sorted(expected)


@pytest.mark.parametrize("end", ["lora_linear_layer.down.weight", "lora_A.weight", "lora.down.weight"])
def test_text_layers_of_diffusers(end, tmp_path):
    key = f"text_encoder.{QUERY}.{end}"
    assert list(opened(tmp_path, {key: rand(4, 768), up_of(key): rand(768, 4)}).shapes) == [f"lora_te_{LINEAR}"]
    old = f"text_encoder.{QUERY.replace('q_proj', 'to_q_lora')}.down.weight"
    assert list(opened(tmp_path, {old: rand(4, 768), up_of(old): rand(768, 4)}).shapes) == [f"lora_te_{LINEAR}"]


@pytest.mark.parametrize("family", names.FAMILIES)
@pytest.mark.parametrize("spelling", ["diffusers", "ldm"])
def test_every_layer_of_a_family_in_both_spellings(family, spelling, tmp_path):
    width = next(width for width, found in names.CROSS_WIDTH.items() if found == family)
    tensors, expected = {}, names.unet_paths(family)
    for layer, diffusers in expected.items():
        path = diffusers if spelling == "diffusers" else names.to_ldm(family, layer)
        key = f"lora_unet_{path.replace('.', '_')}" if spelling == "ldm" else f"unet.{path}"
        tensors |= {f"{key}.lora_A.weight": torch.ones(1, width), f"{key}.lora_B.weight": torch.ones(2, 1)}
    source = opened(tmp_path, tensors)
    assert source.shapes.keys() == expected.keys() and source.family == family


def test_what_diffusers_saves_for_its_own_model(base, tmp_path):
    """The tiny base is of no known family, so its names stay the paths of its modules."""
    import copy

    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    unet = copy.deepcopy(base.unet)
    weights = {name: unet.get_submodule(path).weight for name, path in names.layer_names(unet, "lora_unet_").items()}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    unet.add_adapter(
        LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, target_modules=["to_k", "conv1", "proj_in"])
    )
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    config = {"unet": unet.peft_config["default"]}
    metadata = {f"{part}_lora_adapter_metadata": found.to_dict() for part, found in config.items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state, **metadata)
    unet.fuse_lora()
    source = open_source(tmp_path / "pytorch_lora_weights.safetensors")
    assert len(source.shapes) > 10 and source.shapes.keys() <= weights.keys()
    assert any(len(shape) == 4 for shape in source.shapes.values())
    merged = dict(unet.named_modules())
    for layer in source.shapes:
        path = names.layer_names(base.unet, "lora_unet_")[layer]
        change = merged[path].base_layer.weight.detach() - before[layer]
        close(whole(source, layer, before[layer]), change)


def test_norms_are_gains_and_biases_are_named(tmp_path):
    norm = "lora_unet_down_blocks_1_attentions_0_norm"
    tensors = {f"{TO_K}.{part}": t for part, t in lora()[0].items()} | {
        f"{norm}.w_norm": rand(640),
        f"{norm}.b_norm": rand(640),
        "lora_unet_conv_norm_out.diff": rand(320),
        "lora_unet_conv_out.diff_b": rand(4),
        "bundle_emb.cat.string_to_param": rand(2, 768),
    }
    source = opened(tmp_path, tensors)
    assert source.gains == {norm: 640, "lora_unet_conv_norm_out": 320}
    close(source.gain("lora_unet_conv_norm_out"), rand(320))
    close(source.gain(norm), rand(640))
    beside = ["bundle_emb.cat.string_to_param", "lora_unet_conv_out.diff_b", f"{norm}.b_norm"]
    assert sorted(source.left_out) == beside
    with pytest.raises(sa.UnknownLayerError, match="conv_out"):
        source.change("lora_unet_conv_out")
    with pytest.raises(sa.UnknownLayerError):
        source.gain(TO_K)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_dtypes_of_other_tools(dtype, tmp_path):
    tensors = {f"{TO_K}.lora_down.weight": rand(4, 40).to(dtype), f"{TO_K}.lora_up.weight": rand(24, 4).to(dtype)}
    source = opened(tmp_path, tensors | {f"{TO_K}.alpha": torch.tensor(4)})
    close(whole(source), rand(24, 4).to(dtype).float() @ rand(4, 40).to(dtype).float())
    assert source.change(TO_K)[0].dtype == torch.float32


def test_our_own_files_open_as_adapters(tmp_path):
    adapter, weights = adapter_of("additive", {"rank": 4})
    path = sa.save(adapter, tmp_path / "own.safetensors")
    source = open_source(path)
    assert (source.name, source.kind) == ("own", "additive")
    close(whole(source, "lora_unet_a"), sa.load(path).delta("lora_unet_a", weights["lora_unet_a"]))
    export = sa.to_lora(source)
    save_file(dict(export), tmp_path / "exported.safetensors")
    again = open_source(tmp_path / "exported.safetensors")
    for layer, shape in again.shapes.items():
        assert shape == tuple(weights[layer].shape)
        expected = whole(source, layer)
        assert float((whole(again, layer) - expected).norm()) < 2e-3 * float(expected.norm())


def test_metadata_beyond_the_limits_is_left_out_not_refused(tmp_path):
    """Tag counts of large data sets are longer than our own files may have them."""
    metadata = {"ss_tags": "x" * 100_000, "ss_output_name": "cat", "bell": "\x07"}
    assert opened(tmp_path, {f"{TO_K}.{part}": t for part, t in lora()[0].items()}, metadata).metadata == {
        "ss_output_name": "cat"
    }


def test_a_file_that_changed_meanwhile_is_not_read(tmp_path):
    source = opened(tmp_path, {f"{TO_K}.{part}": t for part, t in lora()[0].items()})
    save_file({f"{TO_K}.lora_up.weight": rand(24, 9), f"{TO_K}.lora_down.weight": rand(9, 40)}, source.file.path)
    with pytest.raises(sa.AdapterFileError, match="Open it again"):
        source.change(TO_K)


def good():
    return {f"{TO_K}.{part}": t for part, t in lora()[0].items()}


def without(end):
    return {key: t for key, t in good().items() if not key.endswith(end)}


ABUSE = {
    "no down": (without("lora_down.weight"), "no down"),
    "no up": (without("lora_up.weight"), "no up"),
    "alpha alone": ({f"{TO_K}.alpha": torch.tensor(1.0)}, "unknown kind"),
    "ranks differ": (good() | {f"{TO_K}.lora_up.weight": rand(24, 5)}, "one rank"),
    "rank zero": (
        {f"{TO_K}.lora_up.weight": rand(24, 0), f"{TO_K}.lora_down.weight": torch.zeros(0, 40)}, "rank of 0",
    ),
    "alpha of many": (good() | {f"{TO_K}.alpha": rand(3)}, "a single number"),
    "NaN": (good() | {f"{TO_K}.lora_up.weight": torch.full((24, 4), torch.nan)}, "NaN"),
    "infinite in fp32": (good() | {f"{TO_K}.alpha": torch.tensor(1e300, dtype=torch.float64)}, "NaN or infinity"),
    "two kinds": (good() | {f"{TO_K}.diff": rand(24, 40)}, "one kind of change"),
    "twice, in two spellings": (
        good() | {f"unet.{SD1}.lora_A.weight": rand(4, 40), f"unet.{SD1}.lora_B.weight": rand(24, 4)}, "for one tensor",
    ),
    "huge": (
        {f"{TO_K}.lora_up.weight": torch.zeros(1 << 17, 1), f"{TO_K}.lora_down.weight": torch.zeros(1, 1 << 17)},
        "268,435,456",
    ),
    "huge product": ({f"{TO_K}.lokr_w1": torch.zeros(1 << 12, 64), f"{TO_K}.lokr_w2": torch.zeros(1 << 12, 64)}, "268"),
    "one of two cores": (
        {f"{TO_K}.{part}": t for part, t in loha_with_tucker()[0].items() if part != "hada_t2"}, "hada_t1",
    ),
    "half of LoHa": ({f"{TO_K}.hada_w1_a": rand(4, 2), f"{TO_K}.hada_w1_b": rand(2, 4)}, "no hada_w2_a"),
    "two of W2": (
        {f"{TO_K}.{part}": rand(2, 2) for part in ("lokr_w1", "lokr_w2", "lokr_w2_a")}, "lokr_w2 beside lokr_w2_a"
    ),
    "DoRA of another size": (good() | {f"{TO_K}.dora_scale": rand(1, 39)}, "40 numbers"),
    "DoRA of one number": (good() | {f"{TO_K}.dora_scale": torch.tensor(1.0)}, "40 numbers"),
    "PEFT's magnitudes of another size": (good() | {f"{TO_K}.lora_magnitude_vector": rand(40)}, "24 numbers"),
    "a norm of two sides": ({f"{TO_K}.w_norm": rand(4, 4)}, "shape"),
    "half of LoKr": ({f"{TO_K}.lokr_w1": rand(4, 2)}, "no lokr_w2_a"),
    "5-D": ({f"{TO_K}.diff": rand(2, 2, 2, 2, 2)}, "shape"),
    "OFT": (good() | {f"{TO_K}.oft_blocks": rand(4, 4)}, "OFT"),
    "GLoRA": ({f"{TO_K}.{part}.weight": rand(4, 4) for part in ("a1", "a2", "b1", "b2")}, "GLoRA"),
    "IA3": ({f"{TO_K}.on_input": rand(1), f"{TO_K}.weight": rand(4)}, "IA3"),
    "LoRA on a bias": (good() | {f"unet.{SD1}.lora_B.bias": rand(24)}, "lora_B.bias"),
    "a checkpoint": ({"model.diffusion_model.input_blocks.0.0.weight": rand(4, 4)}, "full checkpoint"),
    "an embedding": ({"emb_params": rand(2, 768)}, "embedding"),
    "biases alone": ({f"{TO_K}.diff_b": rand(4)}, "a difference file"),
}  # fmt: skip


@pytest.mark.parametrize("case", ABUSE)
def test_files_that_lie_are_refused_by_name(case, tmp_path):
    tensors, said = ABUSE[case]
    with pytest.raises(sa.AdapterFileError, match=said) as caught:
        opened(tmp_path, tensors, name="bad.safetensors")
    assert "bad.safetensors" in str(caught.value) and "expected" in str(caught.value)


def test_a_change_that_no_weight_can_hold_is_refused_when_it_is_computed(tmp_path):
    source = opened(tmp_path, good() | {f"{TO_K}.alpha": torch.tensor(1e30)}, name="bad.safetensors")
    with pytest.raises(sa.AdapterFileError, match="diverged"):
        source.change(TO_K)


def test_dora_of_a_convolution_whose_kernel_is_left_out(tmp_path):
    parts, _, change = loha(n=90)
    weight, scale = rand(24, 10, 3, 3), torch.rand(1, 10, 1, 1) + 0.5
    source = opened(tmp_path, {f"{CONV}.{part}": t for part, t in parts.items()} | {f"{CONV}.dora_scale": scale})
    merged = weight + change.reshape(weight.shape)
    norm = merged.square().sum((0, 2, 3), keepdim=True).sqrt()
    close(weight + whole(source, CONV, weight).reshape(weight.shape), scale * merged / norm)


def test_damaged_files_and_pickles_are_refused_unopened(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(good(), path)
    raw = path.read_bytes()
    header, data = take_apart(path)
    twice = json.dumps(header)[:-1] + f', "{TO_K}.alpha": ' + json.dumps(header[f"{TO_K}.alpha"]) + "}"
    marker = tmp_path / "opened"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"x": Bomb()}, tmp_path / "zip.safetensors")
    torch.save({"x": Bomb()}, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    written = {"cut": raw[:-1], "longer": raw + b"x", "empty": b"", "twice": put_together(twice.encode(), data)}
    for name, content in written.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    for name in (*written, "zip", "old", "nothing"):
        with pytest.raises(sa.AdapterFileError, match=f"{name}.safetensors"):
            open_source(tmp_path / f"{name}.safetensors")
    assert not marker.exists()
