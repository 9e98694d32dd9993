"""What a training moved: closed forms per method, one unit for all, sums that add up, names that users know."""

import json
import time

import pytest
import torch
from adapters import METHODS, adapter_of, relative
from matrices import matrix, random_params, spectrum
from PIL import Image

import spectral_adapters as sa
from spectral_adapters.__main__ import main
from spectral_adapters.spectral import names
from spectral_adapters.spectral.blocks import place
from spectral_adapters.spectral.evidence import Evidence
from spectral_adapters.spectral.gains import Gain
from spectral_adapters.spectral.linalg import cayley, skew
from spectral_adapters.spectral.spectrum import band_edges, measure
from spectral_adapters.spectral.spectrum import spectrum as moved_json
from spectral_adapters.trainer import spectrum_plot
from spectral_adapters.trainer.spectrum_plot import heat_rows, plot_spectrum

SELF, CROSS = "self-attention", "cross-attention"
every_method = pytest.mark.parametrize(("name", "settings"), METHODS, ids=str)


def trained(name, weight, scale=0.05, **settings):
    method = sa.method(name, **settings)
    basis = sa.decompose(weight, method.columns)
    assert basis.u is not None and basis.v is not None  # both sides at hand
    return method, basis, random_params(method, weight, basis, scale)


def one_layer(name, weight, scale=0.05, **settings):
    method, basis, params = trained(name, weight, scale, **settings)
    columns = None if basis.full else basis.columns
    return sa.Adapter(method, {"lora_unet_a": sa.AdapterLayer("lora_unet_a", weight.shape, params, columns, basis)})


def piece(u, s, v):
    return float((s * torch.outer(u, v)).norm())


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize(("name", "settings"), [("svdiff", {}), ("svdiff", {"rank": 5}), ("additive", {"rank": 4})])
def test_a_column_moves_as_far_as_its_parameters_alone_move_the_weight(name, settings, shape):
    method, basis, params = trained(name, matrix(*shape), **settings)
    moved = method.moved(basis, params)
    for i in range(len(basis.columns)):
        alone = {part: torch.zeros_like(p) for part, p in params.items()}
        for part, p in params.items():
            alone[part][..., i] = p[..., i]
        assert float(moved.columns[i]) == pytest.approx(float(method.delta(basis, alone).norm()), rel=1e-4)
    assert moved.total == pytest.approx(float(method.delta(basis, params).norm()), rel=1e-4)
    assert moved.exact and moved.turn is None


def test_a_shift_below_zero_stops_at_zero():
    weight = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    method = sa.method("svdiff")
    basis = sa.decompose(weight)
    moved = method.moved(basis, {"delta": torch.tensor([0.5, -5.0, 0.0])})
    assert moved.columns.tolist() == pytest.approx([0.5, 2.0, 0.0])


@pytest.mark.parametrize("scale", [1e-5, 0.05, 0.6])
def test_a_rotation_moves_its_columns_by_their_chords(scale):
    method, basis, params = trained("rotation", matrix(40, 24), scale, rank=5)
    moved = method.moved(basis, params)
    r_u, r_v = (cayley(skew(params[part].double(), 5)) for part in ("q_u", "q_v"))
    u, v, s = basis.u.double(), basis.v.double(), basis.s.double()
    for i in range(5):
        apart = torch.outer((u @ r_u)[:, i], (v @ r_v)[:, i]) - torch.outer(u[:, i], v[:, i])
        assert float(moved.columns[i]) == pytest.approx(float(s[i] * apart.norm()), rel=2e-3)
    assert moved.total == pytest.approx(float(method.delta(basis, params).double().norm()), rel=2e-3)


def test_a_known_rotation_says_its_angle():
    method = sa.method("rotation", rank=2)
    basis = sa.decompose(torch.diag(torch.tensor([2.0, 2.0, 1.0])), method.columns)
    q = torch.tensor([torch.tan(torch.deg2rad(torch.tensor(10.0)))])  # Cayley: the angle is 2 arctan q
    moved = method.moved(basis, {"q_u": q, "q_v": torch.zeros(1)})
    assert moved.turn == pytest.approx(20.0, rel=1e-5)
    chord = 2 * 2 * torch.sin(torch.deg2rad(torch.tensor(10.0)))
    assert moved.columns.tolist() == pytest.approx([float(chord)] * 2, rel=1e-5)
    same = method.moved(basis, {"q_u": q, "q_v": q})
    assert same.total == pytest.approx(0.0, abs=1e-6), "equal singular values turned together change nothing"


@pytest.mark.parametrize("rotation", ["stiefel", "cayley", "exp"])
def test_soda_is_exact_in_the_mean(rotation):
    """With equal singular values the mean over all directions is all there is; else it is close."""
    flat = matrix(36, 36, torch.full((36,), 3.0, dtype=torch.float64))
    for weight, within in ((flat, 1e-4), (matrix(36, 36, "decaying"), 0.2)):
        method, basis, params = trained("soda", weight, 0.1, rotation=rotation)
        params["delta"] = torch.zeros(36)
        moved = method.moved(basis, params)
        assert moved.total == pytest.approx(float(method.delta(basis, params).norm()), rel=within)
        assert not moved.exact and 0 < moved.turn < 90
    shifted = {**method.init(weight, basis), "delta": torch.linspace(-0.1, 0.1, 36)}
    only = method.moved(basis, shifted)
    assert only.exact and only.turn == 0
    assert only.total == pytest.approx(float(method.delta(basis, shifted).norm()), rel=1e-4)


@every_method
def test_nothing_trained_nothing_moved(name, settings):
    adapter, weights = adapter_of(name, settings)
    for layer in adapter.layers.values():
        layer.params = adapter.method.init(weights[layer.name], layer.frames)
    found = json.loads(json.dumps(moved_json(adapter), allow_nan=False))
    assert all(moved == 0 for layer in found["layers"] for moved in (*layer["moved"], layer["total"], layer["share"]))
    assert plot_spectrum(measure(adapter)).size[0] == 900


@every_method
def test_shares_add_up_however_they_are_summed(name, settings):
    adapter, _ = adapter_of(name, settings)
    found = measure(adapter)
    for shares in (found.layers, found.blocks(), found.kinds(), found.bands(), heat_rows(found)):
        parts = [row["share"] if isinstance(row, dict) else row.share for row in shares]
        assert sum(parts) == pytest.approx(1) and min(parts) >= 0
    for block in found.blocks():
        assert sum(block["kinds"].values()) == pytest.approx(block["share"])


@every_method
def test_the_unit_does_not_know_how_large_a_weight_is(name, settings):
    """A weight and its parameters 16 times as large: the same movement in shares of its largest singular value."""
    rows = []
    for scale in (1, 16):
        adapter = one_layer(name, scale * matrix(24, 40).half().float(), **settings)
        rows.append(measure(adapter).layers[0])
    torch.testing.assert_close(rows[0].moved, rows[1].moved, rtol=2e-3, atol=1e-7)


def test_twice_the_change_is_twice_the_movement():
    near, far = (one_layer("svdiff", matrix(24, 24), scale) for scale in (0.01, 0.02))
    torch.testing.assert_close(2 * measure(near).layers[0].moved, measure(far).layers[0].moved)


@every_method
def test_a_file_says_the_same_as_the_training(name, settings, tmp_path):
    adapter, _ = adapter_of(name, settings)
    fresh = measure(adapter)
    read = measure(sa.load(sa.save(adapter, tmp_path / "a.safetensors", dtype=torch.float32)))
    for one, other in zip(fresh.layers, read.layers):
        assert relative(other.moved, one.moved) < 5e-3
        assert other.total == pytest.approx(one.total, rel=5e-3)


@pytest.mark.parametrize("name", ["additive", "rotation"])
def test_without_frames_it_says_when_it_estimates(name, tmp_path):
    adapter, _ = adapter_of(name, {"rank": 4})
    path = sa.save(adapter, tmp_path / "a.safetensors", profile="compact", dtype=torch.float32)
    bare, framed = measure(sa.load(path)), measure(adapter)
    assert bare.exact == (name == "rotation") and framed.exact
    for one, other in zip(framed.layers, bare.layers):
        assert relative(other.moved, one.moved) < (0.25 if name == "additive" else 1e-3)


def test_many_columns_become_bands_that_keep_their_sum():
    adapter = one_layer("svdiff", matrix(200, 150))
    layer = measure(adapter).layers[0]
    row = moved_json(adapter)["layers"][0]
    assert row["columns"] == band_edges(150) and sum(row["widths"]) == 150
    squares = sum(width * moved**2 for width, moved in zip(row["widths"], row["moved"]))
    assert squares == pytest.approx(float(layer.moved.square().sum()), rel=1e-6)
    every = moved_json(adapter, most=150)["layers"][0]
    assert every["columns"] == list(range(150)) and every["widths"] == [1] * 150
    assert band_edges(1) == [0] and band_edges(5) == [0, 1, 2, 3, 4] and band_edges(9)[-2:] == [6, 8]


def test_a_block_further_down_is_placed_there():
    adapter = one_layer("additive", matrix(48, 64), columns="top:4@16")
    found = measure(adapter)
    assert found.layers[0].columns == (16, 17, 18, 19)
    assert [(band["first"], band["last"]) for band in found.bands()] == [(16, 19)]
    assert found.layers[0].moved.max() < 0.2, "in shares of the largest singular value, not of the sixteenth"


@pytest.mark.parametrize(
    ("layer", "family", "expected"),
    [
        ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q", "sd1", ("IN02", "down", SELF)),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v", "sd1", ("MID", "mid", CROSS)),
        ("lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_2", "sd1", ("OUT05", "up", "feed-forward")),
        ("lora_unet_up_blocks_3_resnets_2_conv1", "sd1", ("OUT11", "up", "convolution")),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", "sd1", ("IN03", "down", "convolution")),
        ("lora_unet_time_embedding_linear_1", "sd1", ("TIME", "other", "time")),
        ("lora_unet_output_blocks_1_1_transformer_blocks_3_attn2_to_out_0", "sdxl", ("OUT01", "up", CROSS)),
        ("lora_unet_input_blocks_4_0_emb_layers_1", "sdxl", ("IN04", "down", "time")),
        ("lora_te_text_model_encoder_layers_3_self_attn_q_proj", "sd1", ("TE-03", "text", "text-attention")),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1", "sdxl", ("TE2-31", "text", "text-feed-forward")),
        ("lora_unet_up_blocks_1_attentions_0_proj_in", None, ("UP1", "up", "projection")),
        ("lora_unet_conv_in", None, ("INPUT", "down", "convolution")),
        ("lora_unet_conv_out", "sd1", ("OUTPUT", "up", "convolution")),
        ("something", None, ("", "other", "other")),
    ],
)  # fmt: skip
def test_blocks_have_the_names_that_users_know(layer, family, expected):
    found = place(layer, family)
    assert (found.block, found.area, found.work) == expected


@pytest.mark.parametrize("family", names.FAMILIES)
def test_every_layer_of_every_family_has_its_place(family):
    paths = dict(names.unet_paths(family))
    for prefix in names.TEXT_PREFIXES[family]:
        paths |= names.text_paths(family, prefix)
    places = {layer: place(layer, family) for layer in paths}
    assert {layer for layer, p in places.items() if p.work == "other"} == set()
    blocks = {p.block for p in places.values()}
    assert {"IN00", "IN01", "MID", "OUT00", "OUT08", "TIME"} <= blocks
    assert all(p.block and (p.area != "other" or p.block == "TIME") for p in places.values())
    ordered = list(dict.fromkeys(p.block for p in sorted(places.values(), key=lambda p: p.order)))
    assert ordered[-2:] == ["OUTPUT", "TIME"] and ordered.index("IN01") < ordered.index("MID") < ordered.index("OUT00")
    for layer, path in paths.items():
        assert ("attn1" in path) == (places[layer].work == "self-attention")
        assert ("attn2" in path) == (places[layer].work == "cross-attention")
        assert ("conv" in path) == (places[layer].work == "convolution")


def test_norms_are_told_apart_from_columns():
    adapter, _ = adapter_of("svdiff", {"norms": True})
    adapter.gains["lora_unet_norm"] = Gain("lora_unet_norm", torch.tensor([3.0, -4.0, 0.0, 0.0]))
    assert moved_json(adapter)["norms"] == [{"name": "lora_unet_norm", "moved": pytest.approx(2.5)}]


def test_an_adapter_without_layers_is_refused():
    with pytest.raises(sa.SpectralError, match="no layers"):
        measure(sa.Adapter(sa.method("svdiff"), {}))


@pytest.mark.parametrize("name", ["svdiff", "additive", "rotation", "soda"])
def test_a_whole_model_is_quick(name):
    """128 layers of SD1.5's widths, as read from a file; the time is a matter of proportion, the limit is generous."""
    shapes = {
        layer: (320, 768) if "attn2_to_k" in layer else (1280, 1280) if "up_blocks_1" in layer else (640, 640)
        for layer in names.unet_paths("sd1")
        if "attn1" in layer or "attn2" in layer
    }
    method, layers = sa.method(name), {}
    for layer, shape in shapes.items():
        columns = method.columns.resolve(min(shape))
        s = spectrum("decaying", min(shape)).float()[list(columns)]
        params = {part: torch.zeros(size) + 0.01 for part, size in method.param_shapes(shape, len(s)).items()}
        if name == "soda":
            params |= {part: torch.eye(len(p)) for part, p in params.items() if part != "delta"}
        layers[layer] = sa.AdapterLayer(layer, shape, params, columns, None, Evidence("", s))
    started = time.perf_counter()
    found = moved_json(sa.Adapter(method, layers))
    assert time.perf_counter() - started < 1.0
    assert len(found["layers"]) == 128 and len(json.dumps(found)) < 200_000


def test_the_command_shows_it_as_text_json_and_picture(tmp_path, capsys):
    adapter, _ = adapter_of("additive", {"rank": 4})
    path, out = sa.save(adapter, tmp_path / "a.safetensors"), tmp_path / "a.png"
    assert main(["spectrum", str(path), "--png", str(out)]) == 0
    said = capsys.readouterr().out
    assert "additive, columns top:4: 4 layers" in said and "by singular direction" in said and str(out) in said
    with Image.open(out) as picture:
        assert picture.size[0] == 900
    assert main(["spectrum", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == moved_json(sa.load(path))
    before = out.read_bytes()
    assert main(["spectrum", str(path), "--png", str(out)]) == 2
    assert "existing file" in capsys.readouterr().err and out.read_bytes() == before
    assert main(["spectrum", str(path), "--png", str(tmp_path / "a.txt")]) == 2
    assert main(["spectrum", str(out)]) == 2


def test_the_picture_is_darkest_where_most_was_moved():
    adapter, _ = adapter_of("svdiff", {})
    for layer in adapter.layers.values():
        layer.params["delta"] = torch.zeros_like(layer.params["delta"])
    adapter.layers["lora_unet_a"].params["delta"][0] = adapter.layers["lora_unet_a"].frames.s[0]
    row = heat_rows(measure(adapter))[0]
    assert row.moved[0] == max(row.moved) and set(row.moved[1:]) == {0.0}
    picture = plot_spectrum(measure(adapter))
    assert picture.getpixel((spectrum_plot._LEFT + 4, spectrum_plot._TOP + 4)) == (11, 42, 87), (
        "the dark end of the ramp"
    )
