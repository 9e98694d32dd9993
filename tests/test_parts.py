"""Parts: the language of factors, and what they do to the pieces of every method."""

import pytest
import torch
from adapters import METHODS, adapter_of
from hypothesis import given
from hypothesis import strategies as st
from test_methods import SETTINGS, WEIGHTS, trained

from spectral_adapters.spectral.blocks import Place, place
from spectral_adapters.spectral.change import dense
from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.spectral.matching import LayerMatch
from spectral_adapters.spectral.names import TEXT_PREFIXES, norm_paths, text_paths, unet_paths
from spectral_adapters.spectral.part_words import in_words
from spectral_adapters.spectral.parted import parted
from spectral_adapters.spectral.parts import BLOCKS, Parts
from spectral_adapters.spectral.source import AdapterSource, Changes
from spectral_adapters.trainer.parts_plot import _CELL, _LEFT, _TOP, WIDTH, plot_parts

IN04 = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
OUT05 = "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_k"
MID = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj"
TEXT = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"


def of(text, layer):
    return Parts.parse(text).of(layer, "sd1")


def test_names_reach_the_layers_that_users_mean():
    text = "IN04=0.5, mid=0, OUT*=1.2, attention=0.5, cross-attention=0.25, text=3"
    assert of(text, IN04) == 0.25
    assert of(text, OUT05) == pytest.approx(0.3)
    assert of(text, MID) == 0
    assert of(text, TEXT) == 3
    assert of("", IN04) == 1
    assert of("TE-3=2, feed-forward=4", TEXT) == 2
    assert Parts.parse("IN04=0.5").of("lora_unet_input_blocks_4_1_proj_in", "sdxl") == 0.5


def test_the_most_specific_rule_decides():
    assert of("IN04=1, *=0", IN04) == 1
    assert of("IN04=1, *=0", OUT05) == 0
    assert of("IN04=3, IN*=2, down=0.5", IN04) == 3
    assert of("IN*=2, down=0.5, *=7", IN04) == 2
    assert of("down=0.5, *=7", IN04) == 0.5
    assert of("I*4=2, IN*=3", IN04) == 3, "of two patterns the later"
    assert of("self-attention=2, attention=5", IN04) == 2


def test_tables_multiply():
    both = Parts.parse("down=0.5") * Parts.parse("*=3")
    assert both.text == "down=0.5; *=3"
    assert both.of(IN04, "sd1") == 1.5
    assert Parts.parse(both.text) == both


def test_in_words():
    assert in_words(Parts()) == "All parts as trained."
    assert in_words(Parts.parse("*=0.5")) == "down: 0.5.\nmid: 0.5.\nup: 0.5.\ntext: 0.5."
    text = in_words(Parts.parse("down=0.5, IN04=1, OUT1*=0, attention=0.8, text=0, columns 0-3=0.5; columns 8-=0"))
    assert text.splitlines() == [
        "down: IN00-IN03 0.5, IN04 1, IN05-IN11 0.5.",
        "up: OUT00-OUT09 1, OUT10-OUT11 0.",
        "text: 0.",
        "times: self-attention 0.8, cross-attention 0.8.",
        "times: columns 0-3 0.5, columns 8- 0.",
    ]


def test_picture_of_parts():
    """Cells by their places: the colour of 1, of 0, of 2, and of what works against."""
    plain = plot_parts(Parts())
    assert plain.size[0] == WIDTH
    changed = plot_parts(Parts.parse("IN00=0, OUT11=2, MID=-1, columns 23=0"))
    assert changed.size[1] > plain.size[1], "columns are drawn where they are told apart"

    def cell(picture, block):
        return picture.getpixel((_LEFT + block * _CELL + 2, _TOP + 3))

    one = cell(plain, 0)
    assert [cell(plain, i) for i in range(25)] == [one] * 25
    assert [cell(changed, i) for i in range(1, 12)] == [one] * 11
    assert [cell(changed, i) for i in (0, 12, 24)] == [(0xF4, 0xF7, 0xFB), (0xD9, 0x69, 0x1E), (0x0B, 0x2A, 0x57)]


def test_columns_count_from_the_strongest():
    parts = Parts.parse("columns *=0, columns 2-4=0.5, columns 3=2, columns 6-=1")
    assert parts.of_columns(range(8), 8).tolist() == [0, 0, 0.5, 2, 0.5, 0, 1, 1]
    assert parts.of_columns((3, 7), 8).tolist() == [2, 1]
    assert parts.of_columns((6, 7), 8) is None, "all 1"
    assert Parts.parse("columns 100-200=0").of_columns(range(8), 8) is None, "a small layer has no such columns"
    assert Parts.parse("IN04=0").of_columns(range(8), 8) is None


names = st.sampled_from((*BLOCKS, "*", "down", "text", "attention", "projection", "IN*", "columns 3", "columns 8-"))
rules = st.dictionaries(names, st.floats(-10, 10, allow_subnormal=False), max_size=4)


@given(st.lists(rules, max_size=3))
def test_text_round_trip(tables):
    text = ";".join(",".join(f"{name}={factor!r}" for name, factor in table.items()) for table in tables)
    parts = Parts.parse(text)
    assert Parts.parse(parts.text) == parts
    assert parts.of(IN04, "sd1") == Parts.parse(parts.text).of(IN04, "sd1")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("IN12=1", "IN12"),
        ("atention=1", "atention"),
        ("IN04", "IN04"),
        ("IN04=", "IN04="),
        ("IN04=nan", "nan"),
        ("IN04=11", "up to 10"),
        ("IN04=1, in4=2", "twice"),
        ("columns 4-2=1", "smaller"),
        ("columns=1", "columns"),
        ("ZZ*=1", "ZZ*"),
        ("=1", "''"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, found):
    with pytest.raises(SettingError, match="parts: ") as caught:
        Parts.parse(text)
    assert found in str(caught.value)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_block_can_be_named(family):
    text = [layer for prefix in TEXT_PREFIXES[family] for layer in text_paths(family, prefix)]
    for where in {place(layer, family) for layer in (*unet_paths(family), *norm_paths(family), *text)}:
        assert where.block in (*BLOCKS, "", "TIME"), "TIME is meant by its work"
        named = where.block if where.block in BLOCKS else "I*"
        assert Parts.parse(f"*=0, {named}=2, {where.work}=2").at(where) == (4 if named == where.block else 0)


def test_places_without_a_block():
    assert Parts.parse("down=0").at(Place("", "other", "other")) == 1
    assert Parts.parse("*=0").at(Place("", "other", "other")) == 0


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=lambda x: str(x))
def test_pieces_are_the_change(name, settings, kind):
    method, basis, params = trained(name, settings, WEIGHTS[kind]())
    ones = torch.ones(len(basis.columns))
    if name == "soda" and not basis.full:
        with pytest.raises(SettingError, match="cannot be told apart by columns"):
            method.delta(basis, params, columns=ones)
        return
    expected = method.delta(basis, params)
    scale = float(basis.s.max())
    for strength, mode in ((1.0, "linear"), (0.4, "spectral")):
        whole = method.delta(basis, params, strength, mode)
        torch.testing.assert_close(method.delta(basis, params, strength, mode, ones), whole, atol=1e-6, rtol=0)
        made = method.pieces(basis, params, strength if mode == "spectral" else 1.0)
        total = (made.x * made.c) @ made.y.T - (basis.u * basis.s) @ basis.v.T
        torch.testing.assert_close(total, whole, atol=1e-5 * scale, rtol=0)
    none = method.delta(basis, params, columns=torch.zeros_like(ones))
    assert float(none.abs().max()) < 2e-6 * scale
    if settings != {"rank": 1}:  # nothing can turn in one dimension
        assert float(expected.abs().max()) > 1e-3 * scale, "there must be something to leave out"


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("name", "settings"), [s for s in SETTINGS if s != ("soda", {"rotation": "exp", "rank": 5})])
def test_weights_act_on_their_own_columns(name, settings, kind):
    method, basis, params = trained(name, settings, WEIGHTS[kind]())
    r, scale = len(basis.columns), float(basis.s.max())
    made = method.pieces(basis, params)
    for columns in (torch.linspace(0, 2, r), torch.eye(r)[r // 2] * 1.5):
        w = columns
        expected = (made.x * (w * made.c)) @ made.y.T - (basis.u * (w * basis.s)) @ basis.v.T
        found = method.delta(basis, params, columns=w)
        torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=0)
        if pair := method.factors(basis, params, columns=w):
            torch.testing.assert_close(pair[0] @ pair[1], found, atol=2e-6 * scale, rtol=0)
            assert pair[0].shape[1] <= 2 * r


def test_svdiff_pieces_in_closed_form():
    method, basis, params = trained("svdiff", {}, WEIGHTS["wide"]())
    w = torch.zeros(24)
    w[3:5] = torch.tensor([1.0, 0.5])
    g = (basis.s + params["delta"]).relu() - basis.s
    up, down = method.factors(basis, params, columns=w)
    expected = (basis.u[:, 3:5] * (g * w)[3:5]) @ basis.v[:, 3:5].T
    assert up.shape == (24, 2), "few columns stay thin, though the change of all has full rank"
    torch.testing.assert_close(up @ down, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_parted_adapter(name, settings):
    adapter, weights = adapter_of(name, settings)
    source = AdapterSource(adapter, "cat")
    part = parted(source, Parts.parse("*=0.5; columns 0-1=0"))
    assert parted(source, Parts()) is source
    for layer, weight in weights.items():
        indices = torch.tensor(source.columns(layer))
        w = torch.where(indices < 2, 0.0, 1.0)
        match = LayerMatch(adapter.layers[layer].frames, None)
        by_hand = dense(adapter.change(layer, match, 0.5, columns=w))
        torch.testing.assert_close(dense(part.change(layer, weight)), by_hand, atol=1e-6, rtol=1e-5)
        assert set(part.columns(layer)) == set(source.columns(layer)) - {0, 1}
    twice = parted(part, Parts.parse("columns 2=0"))
    assert not set(twice.columns("lora_unet_a")) & {0, 1, 2}
    first = dense(twice.change("lora_unet_a", weights["lora_unet_a"]))
    once = parted(source, Parts.parse("*=0.5; columns 0-2=0"))
    torch.testing.assert_close(first, dense(once.change("lora_unet_a", weights["lora_unet_a"])))


def test_layers_of_factor_zero_drop_out():
    up, down = torch.ones(4, 1), torch.ones(1, 3)
    shapes = {layer: ((4, 3), (up, down)) for layer in (IN04, OUT05, TEXT)}
    source = Changes(shapes, name="cat", kind="LoRA", gains={TEXT.replace("self_attn_q_proj", "layer_norm1"): up[:, 0]})
    part = parted(source, Parts.parse("text=0, down=0.5"))
    assert set(part.shapes) == {IN04, OUT05}
    assert not part.gains
    torch.testing.assert_close(dense(part.change(IN04)), torch.full((4, 3), 0.5))
    with pytest.raises(SettingError, match="not made of columns"):
        parted(source, Parts.parse("columns 0-3=0.5"))
    with pytest.raises(SettingError, match="not made of columns"):
        source.of_columns(IN04, torch.ones(1))
