import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_adapters.spectral.columns import Columns
from spectral_adapters.spectral.errors import SettingError


@pytest.mark.parametrize(
    ("spec", "k", "expected"),
    [
        (None, 4, (0, 1, 2, 3)),
        ("all", 3, (0, 1, 2)),
        (2, 5, (0, 1)),
        ("top:2@3", 9, (3, 4)),
        ("top:8@6", 9, (6, 7, 8)),
        (20, 3, (0, 1, 2)),
        ("bottom:2", 5, (3, 4)),
        ([4, 1], 5, (1, 4)),
        ("list:0,3", 5, (0, 3)),
        (range(8, 10), 64, (8, 9)),
    ],
)
def test_resolves(spec, k, expected):
    assert Columns.parse(spec).resolve(k) == expected


@pytest.mark.parametrize(
    "spec", ["", "top", "top:0", "top:-1", "best:3", [], [1, 1], [-1], 0, True, "list:", "sample:3"]
)
def test_refuses_with_the_grammar(spec):
    with pytest.raises(SettingError, match=r"top:8|at least 1|at least one"):
        Columns.parse(spec)


@pytest.mark.parametrize("spec", ["top:4@9", "list:0,9"])
def test_columns_beyond_the_layer_are_refused_with_its_size(spec):
    with pytest.raises(SettingError, match="9 singular values"):
        Columns.parse(spec).resolve(9)


def test_sample_is_fixed_by_its_seed_and_stays_in_its_pool():
    assert Columns.parse("sample:4:7").resolve(1000) == (96, 129, 803, 923)  # the same on every machine, for ever
    assert Columns.parse("sample:4:8").resolve(1000) != Columns.parse("sample:4:7").resolve(1000)
    assert max(Columns.parse("sample:4:7:16").resolve(1000)) < 16


@given(
    st.one_of(
        st.none(),
        st.integers(1, 40),
        st.lists(st.integers(0, 30), min_size=1, max_size=9, unique=True),
        st.builds("top:{}@{}".format, st.integers(1, 9), st.integers(0, 9)),
        st.builds("sample:{}:{}:{}".format, st.integers(1, 9), st.integers(0, 99), st.integers(1, 20)),
    )
)
def test_text_reads_back_and_indices_are_valid(spec):
    columns = Columns.parse(spec)
    assert Columns.parse(columns.text) == columns
    indices = columns.resolve(40)
    assert list(indices) == sorted(set(indices)) and indices[0] >= 0 and indices[-1] < 40
