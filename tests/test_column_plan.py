"""Plans of columns: blocks that share nothing, samples whose odds are exact, files, and trainings that read them."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_adapters.spectral.column_plan import Plan, plan_columns
from spectral_adapters.spectral.columns import Columns
from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.trainer.layering import layered, over_preset
from spectral_adapters.trainer.places import NameFault, NameTaken, standalone
from spectral_adapters.trainer.plan_file import keep, read_plan, write_plan
from spectral_adapters.trainer.request import Request, digest, resolve
from spectral_adapters.trainer.spec import TrainSpec


def indices(plan, k):
    return [Columns.parse(each.columns).resolve(k) for each in plan.concepts]


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 40))
def test_blocks_follow_each_other_and_share_nothing(count, rank, start):
    plan = plan_columns([f"c{i}" for i in range(count)], rank, start)
    found = [column for block in indices(plan, 1000) for column in block]
    assert found == list(range(start, start + count * rank))
    assert plan.odds == {"pair": 0, "any": 0, "shared": 0} and plan.collisions() == []


def test_a_sample_follows_from_the_concepts_name_alone():
    together = plan_columns(["cat", "dog", "Été"], how="sample", pool=64)
    alone = plan_columns(["  DOG "], how="sample", pool=64)
    assert alone.concepts[0].columns == together.columns("dog") == together.columns("Dog")
    assert plan_columns(["E\u0301te\u0301"], how="sample", pool=64).concepts[0].columns == together.columns("été")
    assert plan_columns(["dog"], how="sample", pool=64, seed=1).columns("dog") != together.columns("dog")
    assert all(len(chosen) == 8 and chosen[-1] < 64 for chosen in indices(together, 320))
    assert plan_columns(["dog"], rank=4, how="sample").pool == 64, "16 times the rank where nothing is said"


def test_the_odds_are_those_of_counting_by_hand():
    """Pairs from 5 columns: of 10 equally likely choices 3 share nothing with a given one; three cannot all differ."""
    plan = plan_columns(["a", "b"], rank=2, how="sample", pool=5)
    choices = list(itertools.combinations(range(5), 2))
    shares = [len(set(a) & set(b)) for a in choices for b in choices]
    assert plan.odds["pair"] == pytest.approx(sum(n > 0 for n in shares) / len(shares)) == pytest.approx(0.7)
    assert plan.odds["shared"] == pytest.approx(sum(shares) / len(shares)) == pytest.approx(0.8)
    assert plan_columns(["a", "b", "c"], rank=2, how="sample", pool=5).odds["any"] == 1
    three = plan_columns(["a", "b", "c"], rank=1, how="sample", pool=4)
    differ = sum(len({a, b, c}) == 3 for a, b, c in itertools.product(range(4), repeat=3))
    assert three.odds["any"] == pytest.approx(1 - differ / 4**3)


def test_the_odds_are_those_of_many_names():
    names = [f"concept {i}" for i in range(60)]
    plan = plan_columns(names, rank=4, how="sample", pool=64)
    pairs = len(names) * (len(names) - 1) / 2
    assert len(plan.collisions()) / pairs == pytest.approx(plan.odds["pair"], abs=0.04)
    a, b, shared = plan.collisions()[0]
    one, other = (set(Columns.parse(plan.columns(name)).resolve(64)) for name in (a, b))
    assert tuple(sorted(one & other)) == shared
    assert f"{a} and {b} share" in plan.text


@pytest.mark.parametrize(
    ("concepts", "values", "text"),
    [
        ([], {}, "0 concepts"),
        (["cat", "CAT "], {}, "'cat' before"),
        ([""], {}, "1 to 100"),
        (["a\nb"], {}, "printable"),
        (["x" * 101], {}, "1 to 100"),
        ([f"c{i}" for i in range(65)], {}, "1 to 64"),
        (["cat"], {"rank": 0}, "rank=0"),
        (["cat"], {"rank": 2.0}, "rank=2.0"),
        (["cat"], {"start": -1}, "start=-1"),
        (["cat"], {"how": "both"}, "blocks, sample"),
        (["cat"], {"pool": 64}, "blocks are not drawn"),
        (["cat"], {"how": "sample", "start": 8}, "from the first columns on"),
        (["cat"], {"how": "sample", "pool": 7}, "pool=7"),
        (["cat"], {"how": "sample", "seed": -1}, "seed=-1"),
    ],
)
def test_what_cannot_be_planned_is_refused(concepts, values, text):
    with pytest.raises(SettingError, match=text):
        plan_columns(concepts, **values)


def test_plans_are_files_that_are_never_written_over(tmp_path):
    for how in ("blocks", "sample"):
        plan = plan_columns(["cat", "dog"], rank=4, how=how)
        path = write_plan(plan, tmp_path / f"{how}.json")
        assert read_plan(path) == plan
        with pytest.raises(SettingError, match="never overwritten"):
            write_plan(plan, path)
    with pytest.raises(SettingError, match=r"\.json"):
        write_plan(plan, tmp_path / "plan.txt")
    with pytest.raises(SettingError, match="no folder"):
        write_plan(plan, tmp_path / "no" / "plan.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks.json", "sample.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"concepts": {}}, {"concepts": [{"name": "a"}]}, {"concepts": [{"name": 1, "columns": "top:8"}]},
        {"concepts": [{"name": "a", "columns": "top:x"}]}, {"how": "x"}, {"rank": "8"}, {"pool": 0}, {"seed": None},
        {"concepts": []},
    ],
)  # fmt: skip
def test_a_damaged_plan_is_refused_with_its_file(tmp_path, change):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_columns(["a"], how="sample").as_json() | change))
    with pytest.raises(SettingError, match=r"plan\.json"):
        read_plan(path)
    for text in ("", "[]", "{", "[" * 10_000):
        path.write_text(text)
        with pytest.raises(SettingError, match=r"plan\.json"):
            read_plan(path)
    with pytest.raises(SettingError, match="nothing"):
        read_plan(tmp_path / "nothing.json")


@pytest.fixture
def plan(tmp_path):
    return write_plan(plan_columns(["cat", "dog"], rank=4), tmp_path / "plan.json")


def spec(tmp_path, **values):
    return TrainSpec.from_mapping(
        {"base": "tiny", "images": str(tmp_path), "out": str(tmp_path / "a.safetensors"), **values}
    )


def test_a_training_takes_its_columns_from_the_plan(tmp_path, plan):
    asked = spec(tmp_path, column_plan=str(plan), concept="dog")
    asked.check()
    assert asked.build_method().columns.text == "top:4@4"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"concept": ""}, "which one of it this is: cat, dog"),
        ({"concept": "hat"}, "one of: cat, dog"),
        ({"rank": 8}, "rank=8 and column_plan=.*give one"),
        ({"columns": "top:8"}, "columns='top:8' and column_plan=.*give one"),
        ({"avoid": ["plan.json"]}, "column_plan and avoid both"),
        ({"column_plan": None}, "without column_plan"),
        ({"column_plan": "nowhere.json"}, "no file"),
    ],
)
def test_one_way_to_choose_columns_is_enough(tmp_path, plan, monkeypatch, values, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=text):
        spec(tmp_path, **{"column_plan": str(plan), "concept": "cat", **values}).check()


def test_a_plan_and_a_rank_push_each_other_out_between_layers():
    planned = {"column_plan": "p.json", "concept": "cat"}
    assert layered(planned, {"rank": 4}) == {"rank": 4}
    assert layered({"rank": 4}, planned) == planned
    assert layered(planned, {"concept": "dog"}) == {"column_plan": "p.json", "concept": "dog"}
    assert layered({"concept": "dog"}) == {"concept": "dog"}, "whether it makes sense is said when all are together"
    over = over_preset({"base": "tiny", "preset": "subject", **planned})
    assert over["column_plan"] == "p.json" and over.get("rank") is None and over.get("columns") is None


def test_requests_name_the_plans_that_are_kept(tmp_path):
    places = standalone(tmp_path, {}, [])
    made = plan_columns(["cat", "dog"], rank=4)
    assert keep(places, "pets", made) == "pets" and list(places.plan_files()) == ["pets"]
    for name, kind in (("pets", NameTaken), ("PETS.json", NameTaken), ("../pets", NameFault), ("con", NameFault)):
        with pytest.raises(kind):
            keep(places, name, made)
    (tmp_path / "datasets" / "mugs").mkdir()
    asked = {"name": "x", "base": "tiny", "dataset": "datasets/mugs"}
    request = Request.from_json({**asked, "settings": {"column_plan": "pets", "concept": "dog"}})
    assert resolve(request, places).build_method().columns.text == "top:4@4"
    before = digest(request, places)
    (tmp_path / "plans" / "pets.json").write_text(json.dumps(plan_columns(["dog"]).as_json()))
    assert digest(request, places) != before, "another plan is another training"
    for wrong in ("../pets", str(tmp_path / "plans" / "pets.json"), "dogs"):
        request = Request.from_json({**asked, "settings": {"column_plan": wrong, "concept": "dog"}})
        with pytest.raises(NameFault, match="plan"):
            resolve(request, places)


def test_from_json_reads_what_as_json_writes():
    plan = plan_columns(["cat", "dog"], how="sample", pool=99, seed=5)
    assert Plan.from_json(json.loads(json.dumps(plan.as_json()))) == plan
