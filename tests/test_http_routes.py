"""Every route: guarded, documented, and answering in JSON whatever it is sent."""

import re
from pathlib import Path

import pytest
from panel_server import TOKEN

import spectral_adapters
from spectral_adapters.trainer.addresses import PREFIX
from spectral_adapters.trainer.http import Access, every_route, routes
from spectral_adapters.trainer.http.app import application

ROOT = Path(spectral_adapters.__file__).parent
ROUTES = every_route()
NAMES = [f"{route.method} {route.path}" for route in ROUTES]
EVERY = pytest.mark.parametrize("route", ROUTES, ids=NAMES)
CHANGING = pytest.mark.parametrize("route", [r for r in ROUTES if r.method != "GET"], ids=lambda r: r.path)
WITH_TOKEN = {"X-Spectral-Token": TOKEN}
JSON = {"Content-Type": "application/json"}


def send(client, route, headers, body=b"{}"):
    path = PREFIX + re.sub(r"\{\w+\}", "20260101-000000-abcd", route.path)
    own = f"127.0.0.1:{client.port}"
    answer = client.call(route.method, path, None if route.method == "GET" else body, {"Host": own, **headers})
    assert (
        answer.headers["Content-Type"] == "application/json" and answer.headers["X-Content-Type-Options"] == "nosniff"
    )
    return answer


@EVERY
def test_a_page_of_another_site_gets_nothing(client, route):
    kind = {} if route.method == "GET" else JSON
    for foreign in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Host": "elsewhere.example"},
        {"Host": "elsewhere.example", "Origin": "http://elsewhere.example", "Sec-Fetch-Site": "same-origin"},
    ):
        assert send(client, route, {**WITH_TOKEN, **kind, **foreign}).status == 403, foreign


@CHANGING
def test_what_a_form_can_send_is_refused(client, route):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"):
        assert send(client, route, {**WITH_TOKEN, "Content-Type": kind}).status == 415
    assert send(client, route, WITH_TOKEN).status == 415
    assert send(client, route, {**WITH_TOKEN, **JSON, "Sec-Fetch-Site": "same-site"}).status == 403


@EVERY
def test_the_token_is_asked_for(client, route):
    kind = {} if route.method == "GET" else JSON
    answers = [send(client, route, {**kind, **more}) for more in ({}, {"X-Spectral-Token": "x"})]
    for answer in answers:
        assert (answer.status == 401) != route.open_to_all
        assert route.open_to_all or answer.json["token_needed"]


def test_only_the_strings_and_the_token_itself_are_open():
    assert [route.path for route in ROUTES if route.open_to_all] == ["/strings", "/session"]


@EVERY
def test_unknown_values_are_refused(client, route):
    """With its own names, so that a route without the check would answer something else."""
    path = PREFIX + re.sub(r"\{\w+\}", "20260101-000000-abcd", route.path)
    if route.method == "GET":
        answer = client.call("GET", f"{path}?path=/etc/passwd", None, WITH_TOKEN)
    else:
        answer = client.call("POST", path, b'{"path": "/etc/passwd"}', {**WITH_TOKEN, **JSON})
    assert answer.status == 400 and "'path'" in answer.json["error"]


@CHANGING
def test_bodies_are_capped_and_must_be_objects(client, route):
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 50_000):
        assert send(client, route, {**WITH_TOKEN, **JSON}, body).status == 400
    if route.most < 1 << 20:
        assert send(client, route, {**WITH_TOKEN, **JSON}, b" " * (route.most + 1)).status == 413
        chunked = {**WITH_TOKEN, **JSON, "Transfer-Encoding": "chunked"}
        path = PREFIX + re.sub(r"\{\w+\}", "20260101-000000-abcd", route.path)
        blob = b"%x\r\n%s\r\n0\r\n\r\n" % (route.most + 1, b" " * (route.most + 1))
        assert client.raw("POST", path, blob, chunked) == 413


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_a_method_that_a_route_does_not_have_does_nothing(client, method):
    for route in ROUTES:
        if route.method == method or (method in ("GET", "POST") and sum(r.path == route.path for r in ROUTES) > 1):
            continue
        path = PREFIX + re.sub(r"\{\w+\}", "20260101-000000-abcd", route.path)
        answer = client.call(method, path, b"{}" if method != "GET" else None, {**WITH_TOKEN, **JSON})
        assert answer.status in (404, 405), f"{method} {path}"
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_nothing_is_registered_without_the_guard(studio):
    """Every handler of the server is made by the one function that asks the guard, or is the page's."""
    app = application(studio, TOKEN)
    made = [f"{r.handler.__module__}.{r.handler.__qualname__}" for r in app.router.routes()]
    package = "spectral_adapters.trainer.http"
    assert made.count(f"{package}.route.definition.<locals>.handle") == len(ROUTES)
    assert made.count(f"{package}.pages.page.<locals>.handle") == 1 and len(made) == len(ROUTES) + 1
    defined = routes(studio, Access(loopback=True))
    assert [(r.method, r.path) for r in defined] == [(r.method, PREFIX + r.path) for r in ROUTES]
    assert {r.method for r in ROUTES} == {"GET", "POST"} and len(set(NAMES)) == len(NAMES)


def test_the_docs_name_every_route_and_no_other():
    text = (ROOT / "docs" / "routes.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `((?:GET|POST) \S+)` \|", text, re.MULTILINE)) == sorted(NAMES)
    for route in ROUTES:
        (row,) = re.findall(rf"^\| `{re.escape(f'{route.method} {route.path}')}` \|([^|]*)\|", text, re.MULTILINE)
        for name in route.takes:
            assert re.search(rf"\b{name}\b", row), f"{route.path}: {name}"


def test_an_unknown_job_is_not_found(client):
    for route in ROUTES:
        if "{id}" not in route.path:
            continue
        for job in ("20260101-000000-abcd", "x", "..", "%2e%2e", "..%2f..%2fjobs", "%00", "a" * 300):
            path = PREFIX + route.path.replace("{id}", job).replace("{name}", "step-000001-01.png")
            headers = {**WITH_TOKEN, **(JSON if route.method == "POST" else {})}
            answer = client.call(route.method, path, b"{}" if route.method == "POST" else None, headers)
            assert answer.status == 404, f"{path}: {answer.body[:200]}"


def test_the_unexpected_is_a_short_sentence_and_a_line_in_the_log(client, studio, monkeypatch, caplog):
    def broken():
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(studio.store, "version", broken)
    answer = client.get("/state")
    assert answer.status == 500 and "ZeroDivisionError" in answer.json["error"]
    assert "secret detail" not in answer.json["error"] and "secret detail" in caplog.text


def test_the_panel_calls_only_routes_that_there_are():
    """Paths as the panel's code writes them; ${...} stands for any one part of a path."""
    called = re.compile(r"\b(get|post|act|url)\((?:\w+\.)*\w*,? ?[\"`](/[a-z][^\"`?]*)")
    found = set()
    for file in sorted((ROOT / "web").rglob("*.js")):
        for verb, path in called.findall(file.read_text(encoding="utf-8")):
            method = "GET" if verb in ("get", "url") else "POST"
            pattern = re.sub(r"\\\$\\\{[^}]*\\\}", "[^/]+", re.escape(path.removesuffix("${known}")))
            fitting = [r for r in ROUTES if r.method == method and re.fullmatch(pattern, r.path)]
            assert fitting, f"{file.name}: {method} {path}"
            found |= {route.path for route in fitting}
    assert {"/state", "/datasets/upload", "/jobs/{id}/stop", "/queue", "/jobs/{id}/grid"} <= found
