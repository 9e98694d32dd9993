"""The form is made from the settings' metadata, agrees with what requests take, and can be translated."""

import json
from typing import get_args

import pytest
from training import write_pictures

import spectral_adapters as sa
from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.spectral.methods.soda import Parameterisation
from spectral_adapters.trainer import spec
from spectral_adapters.trainer.form import METHODS, Kind, form, values
from spectral_adapters.trainer.places import Places, standalone
from spectral_adapters.trainer.presets import PRESETS, preset_values
from spectral_adapters.trainer.request import OFFERED, Request, resolve

LEAST = {"name": "mug", "base": "tiny", "dataset": "datasets/mugs"}


@pytest.fixture
def places(tmp_path) -> Places:
    made = standalone(tmp_path / "home", {}, [])
    write_pictures(tmp_path / "home" / "datasets" / "mugs")
    (tmp_path / "home" / "adapters" / "old.safetensors").write_bytes(b"x")
    return made


@pytest.fixture
def rows(places) -> dict[str, dict]:
    return {row["name"]: row for row in form(places)["settings"]}


def test_every_setting_of_a_request_has_its_row(places, rows):
    drawn = form(places)
    assert json.loads(json.dumps(drawn)) == drawn
    assert tuple(rows) == OFFERED and {row["group"] for row in rows.values()} <= {g["id"] for g in drawn["groups"]}
    assert {row["kind"] for row in rows.values()} == set(get_args(Kind))
    assert [row["name"] for row in rows.values() if not row["advanced"]] == sorted(drawn["common"], key=OFFERED.index)
    labels = [row["label"] for row in rows.values()]
    assert len(set(labels)) == len(labels) and all(label[0].isupper() and len(label) <= 22 for label in labels)


def test_methods_and_choices_are_those_of_the_engine(places, rows):
    assert set(METHODS) == set(sa.METHODS) == set(rows["method"]["choices"])
    assert rows["rotation"]["choices"] == list(get_args(Parameterisation)) and rows["rotation"]["methods"] == ["soda"]
    assert [p["name"] for p in form(places)["presets"]] == [*PRESETS, "none"]
    assert rows["start_from"]["choices"] == ["old.safetensors"]
    for name, row in rows.items():
        for method in row.get("methods", ()):
            spec.TrainSpec(
                **{"base": "tiny", "images": "", "out": "", "method": method, name: _other(row)}
            ).build_method()


def _other(row: dict) -> object:
    """A value of the setting that is not its default."""
    return row["choices"][0] if row["kind"] == "choice" else {"bool": True, "float": 0.5}[row["kind"]]


def test_limits_are_those_that_requests_check(places, rows):
    for name, row in rows.items():
        for bound, beyond in (("min", -1), ("max", 1)):
            if bound in row:
                Request.from_json(LEAST | {"settings": {name: row[bound]}})
                with pytest.raises(SettingError, match=name):
                    resolve(_sound(name, row[bound] + beyond), places)
        if "above" in row:
            with pytest.raises(SettingError, match=f"{name}=0"):
                resolve(_sound(name, row["above"]), places)


def _sound(name: str, value: float) -> Request:
    """A request in which nothing else is wrong: what depends on other settings has them."""
    others = {"text_lr": {"text_targets": "all"}, "norm_lr": {"method": "svdiff", "norms": True}}
    return Request.from_json(LEAST | {"settings": {name: value, **others.get(name, {})}})


def test_defaults_are_values_that_requests_take(places, rows):
    for name, row in rows.items():
        request = Request.from_json(LEAST | {"preset": "none", "settings": {name: row["default"]}})
        assert getattr(resolve(request, places), name) == getattr(resolve(_bare(), places), name)


def _bare() -> Request:
    return Request.from_json(LEAST | {"preset": "none"})


def test_values_are_those_of_the_run(places):
    for preset in PRESETS:
        for method in (None, *sa.METHODS):
            found = values(preset, method, "tiny", places)
            run = resolve(
                Request.from_json(LEAST | {"preset": preset, "settings": {"method": found["method"]}}), places
            )
            assert found["method"] == (method or PRESETS[preset].method)
            assert found["values"] == {name: value for name, value in run.as_json().items() if name in OFFERED}
            given = preset_values(preset, found["method"], "tiny")
            assert set(found["sources"]) == set(given), "every value of the preset says where it is from"
    assert values("none", None, "tiny", places)["sources"] == {}
    for wrong in (("subjekt", None, "tiny"), ("style", "lora", "tiny"), ("style", None, "other")):
        with pytest.raises(SettingError):
            values(*wrong, places)
