"""What a call asks: bodies and values as attackers and mistaken programs send them, each refused with a sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.trainer.http.call import Call, check_names, read_body
from spectral_adapters.trainer.http.guard import Access


def call(**values):
    return Call({}, values, Access(loopback=True))


def query(**values):
    return Call({}, values, Access(loopback=True), from_query=True)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b'"text"', b"{", b'{"a": NaN}', b'{"a": Infinity}', b"\xff\xfe", b"[" * 100_000,
     b'{"a":' * 100_000, b'{"n": ' + b"9" * 10_000 + b"}"],
)  # fmt: skip
def test_a_body_is_one_json_object(body):
    with pytest.raises(SettingError, match="body"):
        read_body(body)


@given(st.binary())
def test_any_body_is_read_or_refused(blob):
    try:
        assert isinstance(read_body(blob), dict)
    except SettingError as error:
        assert str(error)


def test_only_the_routes_own_names_are_taken():
    check_names({"id": 1}, ("id", "name"))
    with pytest.raises(SettingError, match=r"'path'.*id, name"):
        check_names({"id": 1, "path": "/etc/passwd"}, ("id", "name"))


def test_values_of_the_wrong_type_or_size_are_refused():
    for wrong in (None, 5, ["a"], {"a": 1}, "x" * 5000):
        with pytest.raises(SettingError, match="name"):
            call(name=wrong).text("name")
    for wrong in (None, -1, 1.5, True, "1.5", "-1", "٣", "9" * 30, "", [1], 1 << 60):
        for asked in (call(offset=wrong), query(offset=wrong), call(offset="1")):
            with pytest.raises(SettingError, match="offset"):
                asked.whole("offset")
    for wrong in ("a", [1], ["a"] * 1001, {"a": 1}):
        with pytest.raises(SettingError, match="order"):
            call(order=wrong).texts("order")
    with pytest.raises(SettingError, match="now"):
        call(now=1).yes("now")
    with pytest.raises(SettingError, match="request"):
        call(request=[]).table("request")


def test_values_as_queries_and_bodies_bring_them():
    assert query(offset="200").whole("offset") == call(offset=200).whole("offset") == 200
    assert call().whole("offset", 7) == 7 and call().maybe_whole("generation") is None
    assert query(generation="").maybe_whole("generation") is None
    assert query(generation="3").maybe_whole("generation") == 3
    assert call(name="ä").text("name") == "ä" and call().text("name", "") == ""
    assert call().texts("order") == [] and call(order=["a"]).texts("order") == ["a"]
    assert call(now=True).yes("now") and not call().yes("now") and call().table("settings") == {}
