"""Who may call: the guard's rules one by one, with the headers that browsers and attackers send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_adapters.trainer.http.guard import (
    Access,
    check,
    check_page,
    cookie_name,
    is_loopback,
    token_is,
)

OPEN = Access(loopback=True)
LOCKED = Access(loopback=True, token="secret")
LISTENING = Access(loopback=False, token="secret")
POST = {"Host": "127.0.0.1:8188", "Content-Type": "application/json"}
GET = {"Host": "127.0.0.1:8188"}


def status(method, headers, access=OPEN, cookies=None, **more):
    refusal = check(method, headers, cookies or {}, access, **more)
    return 200 if refusal is None else refusal.status


def test_a_page_of_this_server_and_a_program_are_answered():
    assert status("GET", GET) == status("POST", POST) == 200
    own = {"Origin": "http://127.0.0.1:8188", "Sec-Fetch-Site": "same-origin"}
    assert status("GET", GET | own) == status("POST", POST | own) == 200
    assert status("POST", POST | {"Host": "localhost", "Origin": "http://localhost"}) == 200
    assert status("POST", POST | {"Host": "[::1]:8188", "Origin": "http://[::1]:8188"}) == 200
    assert status("POST", POST | {"Host": "LocalHost:80", "Origin": "http://localhost"}) == 200


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json ",
     "text/plain; application/json", "application/json; charset=utf-8", "application/jsonx"],
)  # fmt: skip
def test_what_a_form_can_send_is_refused(kind):
    assert status("POST", POST | {"Content-Type": kind}) == 415
    assert status("POST", GET) == 415


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "null"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "http://127.0.0.1:8189"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://localhost:8188"},
        {"Origin": "http://127.0.0.1:8188.elsewhere.example"},
        {"Origin": "http://user@127.0.0.1:8188"},
        {"Origin": "file://127.0.0.1:8188"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": ""},
    ],
)
def test_another_sites_page_changes_nothing(method, headers):
    assert status(method, POST | headers) == 403


def test_another_sites_page_reads_nothing():
    assert status("GET", GET | {"Sec-Fetch-Site": "cross-site"}) == 403
    assert status("GET", GET | {"Origin": "https://elsewhere.example"}) == 403
    assert status("GET", GET | {"Origin": "null"}) == 403


@pytest.mark.parametrize(
    "host",
    ["", "elsewhere.example", "elsewhere.example:8188", "127.0.0.1.elsewhere.example", "localhost.elsewhere.example",
     "192.168.0.7:8188", "0.0.0.0", "user@localhost", "localhost:8188:1", "[::2]", "127.0.0.1:8188/x", "2130706433"],
)  # fmt: skip
def test_a_name_that_was_rebound_to_this_machine_is_refused(host):
    for method, headers in (("GET", GET), ("POST", POST)):
        bound = headers | {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert status(method, bound) == 403
        assert status(method, headers | {"Host": host}, LOCKED, {cookie_name(host): "secret"}) == 403
    assert check_page(GET | {"Host": host}, OPEN).status == 403


def test_a_server_for_others_takes_any_name_but_only_with_its_token():
    headers = {"Host": "studio.lan:8188", "Origin": "http://studio.lan:8188", "Content-Type": "application/json"}
    assert status("POST", headers, LISTENING) == 401
    assert status("POST", headers | {"X-Spectral-Token": "secret"}, LISTENING) == 200
    assert status("POST", headers, LISTENING, {cookie_name("studio.lan:8188"): "secret"}) == 200
    assert status("GET", GET, LISTENING) == 401, "a Host header is easily made up, so it opens nothing"
    with pytest.raises(ValueError, match="token"):
        Access(loopback=False)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_token_is_asked_for_where_there_is_one(method):
    headers = GET if method == "GET" else POST
    assert check(method, headers, {}, LOCKED).token_needed
    assert status(method, headers | {"X-Spectral-Token": "other"}, LOCKED) == 401
    assert status(method, headers, LOCKED, {cookie_name("127.0.0.1:8189"): "secret"}) == 401, "another server's cookie"
    assert status(method, headers, LOCKED, {cookie_name("127.0.0.1:8188"): "secret"}) == 200
    assert status(method, headers | {"X-Spectral-Token": "secret"}, LOCKED) == 200
    assert status(method, headers, LOCKED, open_to_all=True) == 200
    foreign = headers | {"Sec-Fetch-Site": "cross-site"}
    assert status(method, foreign, LOCKED, open_to_all=True) == 403, "the token is the only thing that is not asked"


def test_the_pages_own_code_may_be_opened_from_a_link():
    assert check_page(GET | {"Sec-Fetch-Site": "cross-site"}, LOCKED) is None


@given(st.text())
def test_any_text_is_judged(text):
    """Whatever a header holds, it is refused or answered, and opens nothing by itself."""
    assert not is_loopback(text) or "localhost" in text.lower() or "127" in text or ":" in text
    assert not token_is(text, LOCKED) or text == "secret"
    assert status("POST", POST | {"Origin": text}) == 403 or text == "http://127.0.0.1:8188"
    assert status("POST", POST | {"Content-Type": text}) == 415 or text == "application/json"
