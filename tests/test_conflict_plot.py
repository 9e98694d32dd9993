"""The picture of a conflict: its cells have the adapters' colours, its frames stand where columns are shared."""

import numpy as np
import pytest
from adapters import adapter_of
from PIL import ImageColor

import spectral_adapters as sa
from spectral_adapters.__main__ import main
from spectral_adapters.spectral.conflict import conflict
from spectral_adapters.spectral.source import AdapterSource
from spectral_adapters.trainer import conflict_plot
from spectral_adapters.trainer.conflict_plot import COLOURS, draw

PARTS = ("attn1_to_q", "attn2_to_k")
SHAPES = {
    f"lora_unet_down_blocks_{i}_attentions_0_transformer_blocks_0_{part}": (40, 40) for i in (0, 1) for part in PARTS
}


@pytest.fixture(scope="module")
def adapters():
    made = {}
    for name, columns in (("cat", "top:4"), ("dog", "top:4"), ("hat", "top:4@16")):
        made[name], _ = adapter_of("additive", {"columns": columns}, SHAPES, scale=0.02)
    for layer in made["dog"].layers.values():
        layer.params = {key: value.roll(1, 0) for key, value in layer.params.items()}
    return made


def found(adapters, *names):
    return conflict([AdapterSource(adapters[name], name) for name in names])


def near(picture, colour, tolerance=12):
    """How many pixels have a colour, nearly."""
    apart = np.abs(np.asarray(picture, dtype=int) - np.array(ImageColor.getrgb(colour))).max(-1)
    return int((apart <= tolerance).sum())


@pytest.mark.parametrize("size", [None, (640, 480), (1200, 800), (400, 900)])
def test_it_has_the_size_that_is_asked_for_and_every_adapters_colour(adapters, size):
    picture = draw(found(adapters, "cat", "dog", "hat"), size)
    assert picture.size == size if size else picture.width == conflict_plot.WIDTH
    assert all(near(picture, colour) > 50 for colour in COLOURS[:3]) and near(picture, COLOURS[3]) == 0


def test_frames_stand_only_where_columns_are_shared(adapters):
    apart, together = (draw(found(adapters, *names), (1280, 900)) for names in (("cat", "hat"), ("cat", "dog")))
    assert near(together, conflict_plot.INK) > near(apart, conflict_plot.INK) + 1000


def test_rows_are_gathered_where_there_is_no_room(adapters):
    both = found(adapters, "cat", "dog")
    rows = {height: len(conflict_plot._fitting(both, 100, height)[0]) for height in (None, 400, 150, 50)}
    assert rows == {None: 4, 400: 4, 150: 2, 50: 1}


def test_five_adapters_and_long_names_fit(adapters):
    sources = [AdapterSource(adapters["cat"], "a name of great length " * 8), *(
        AdapterSource(adapters[name], name) for name in ("dog", "hat", "cat", "dog"))]  # fmt: skip
    assert draw(conflict(sources), (640, 480)).size == (640, 480)


@pytest.fixture(scope="module")
def files(adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return [str(sa.save(adapters[name], folder / f"{name}.safetensors")) for name in ("cat", "dog", "hat")]


def test_the_command_prints_and_draws(files, tmp_path, capsys):
    out = tmp_path / "conflict.png"
    assert main(["compare", *files, "--png", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "cat and dog both use columns 0-3 in 4 layers" in printed and f"Wrote {out}." in printed
    assert out.is_file() and main(["compare", *files, "--png", str(out)]) == 2
    assert "existing file" in capsys.readouterr().err
    assert main(["compare", *files, "--json"]) == 0
    assert capsys.readouterr().out.startswith('{"format": 1, "adapters": [{"name": "cat"')
    assert main(["compare", files[0]]) == 2 and "2 to 16" in capsys.readouterr().err
    assert main(["compare", *files, "--base", "tiny"]) == 2 and "no layer" in capsys.readouterr().err


def test_the_command_plans_and_writes(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", "cat", "dog", "--rank", "4", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "dog  top:4@4" in printed and f"--column-plan {out} --concept NAME" in printed
    assert main(["plan", "cat", "dog", "--out", str(out)]) == 2 and "existing file" in capsys.readouterr().err
    assert main(["plan", "cat", "dog", "--how", "sample", "--json"]) == 0
    assert '"pair": 0.41' in capsys.readouterr().out
