"""The page of its own: served with a policy that runs nothing foreign, opened by the printed address alone."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from panel_server import TOKEN, make_studio, serving

import spectral_adapters
from spectral_adapters.__main__ import main
from spectral_adapters.trainer.http import strings
from spectral_adapters.trainer.http.guard import cookie_name

ROOT = Path(spectral_adapters.__file__).parent
WEB = ROOT / "web"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    studio = make_studio(tmp_path_factory.mktemp("studio"))
    with serving(studio) as client:
        yield client
    studio.close()


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html; charset=utf-8"), ("/index.html", "text/html; charset=utf-8"),
     ("/panel/panel.js", "text/javascript; charset=utf-8"), ("/panel/style.css", "text/css; charset=utf-8"),
     ("/panel/icon.svg", "image/svg+xml")],
)  # fmt: skip
def test_the_page_and_its_parts(client, path, kind):
    answer = client.call("GET", path)
    assert answer.status == 200 and answer.headers["Content-Type"] == kind
    assert answer.body == (WEB / (path[1:] or "index.html")).read_bytes()
    policy = answer.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy and "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/pyproject.toml", "/../pyproject.toml", "/%2e%2e/pyproject.toml", "/..%2fpyproject.toml", "/panel", "/panel/",
     "/panel/../../README.md", "/..%5cpyproject.toml", "/%00", "//etc/passwd", "/docs", "/panel/%2e%2e/%2e%2e/LICENSE",
     "/panel/panel.js%00.css", "/docs/SpectralAdapterLoader/en.md", "/index.html/", "/a" * 500],
)  # fmt: skip
def test_nothing_else_is_served(client, path):
    assert client.call("GET", path).status == 404


def test_links_out_of_the_folder_are_not_followed(client, tmp_path, monkeypatch):
    (tmp_path / "web").mkdir()
    (tmp_path / "secret.js").write_text("secret")
    (tmp_path / "web" / "out.js").symlink_to(tmp_path / "secret.js")
    (tmp_path / "web" / "in.js").write_text("mine")
    monkeypatch.setattr("spectral_adapters.trainer.http.pages.WEB", tmp_path / "web")
    assert client.call("GET", "/in.js").body == b"mine"
    assert client.call("GET", "/out.js").status == 404


def test_the_printed_address_leaves_a_cookie_and_a_clean_address(client):
    answer = client.call("GET", f"/?token={TOKEN}")
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith(f"{cookie_name(f'127.0.0.1:{client.port}')}={TOKEN};")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    name_and_value = cookie.partition(";")[0]
    assert client.call("GET", "/spectral_adapters/state", None, {"Cookie": name_and_value}).status == 200
    wrong = client.call("GET", "/?token=wrong")
    assert wrong.status == 303 and "Set-Cookie" not in wrong.headers


def test_the_token_can_be_entered(client):
    client.token = None
    try:
        assert client.get("/state").status == 401
        assert client.post("/session", {"token": "wrong"}).status == 403
        answer = client.post("/session", {"token": TOKEN})
    finally:
        client.token = TOKEN
    assert answer.status == 200 and TOKEN in answer.headers["Set-Cookie"]


def test_a_foreign_name_gets_no_page(client):
    assert client.call("GET", "/", None, {"Host": "elsewhere.example"}).status == 403


def test_strings_come_in_the_language_asked_for_over_the_english_ones(client, tmp_path, monkeypatch):
    for name, words in {"en": {"a": "one", "b": {"c": "two", "d": "three"}}, "fr": {"b": {"c": "deux"}}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.json").write_text(json.dumps({"spectralAdapters": words}), encoding="utf-8")
    monkeypatch.setattr(strings, "LOCALES", tmp_path)
    french = {"a": "one", "b": {"c": "deux", "d": "three"}}
    english = {"a": "one", "b": {"c": "two", "d": "three"}}
    for language, found in {"fr": french, "FR-ca": french, "en": english, "xx": english, "../fr": english}.items():
        assert client.get("/strings", lang=language).json == found
    assert client.get("/strings").json == english


def test_the_command_serves_and_stops(tmp_path):
    """As a user types it; --home's folder is made, and nothing else is written."""
    typed = ["ui", "--home", str(tmp_path / "home"), "--port", "0", "--no-browser", "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-m", "spectral_adapters", *typed], stdout=subprocess.PIPE, text=True) as ui:
        address = ui.stdout.readline().split()[-1]
        assert address.startswith("http://127.0.0.1:") and "/?token=" in address
        port, _, token = address.removeprefix("http://127.0.0.1:").partition("/?token=")
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as connection:
            call = f"GET /spectral_adapters/state HTTP/1.1\r\nHost: localhost:{port}\r\nX-Spectral-Token: {token}\r\n"
            connection.sendall(f"{call}Connection: close\r\n\r\n".encode())
            said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert said.startswith(b"HTTP/1.1 200") and len(token) >= 32
        ui.terminate()
        assert ui.wait(20) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_port_that_is_taken_is_a_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        typed = ["ui", "--home", str(tmp_path), "--port", port, "--no-browser", "--device", "cpu"]
        shown = subprocess.run([sys.executable, "-m", "spectral_adapters", *typed], capture_output=True, text=True)
    assert shown.returncode == 2 and port in shown.stderr and "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--models", "nowhere"], "--models: found no folder nowhere"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--home", "file/home"], "home"),
        (["--root", "a/b=."], "--root"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(typed, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("spectral_adapters.trainer.jobs.host.find_devices", lambda: ())
    assert main(["ui", "--no-browser", "--port", "0", "--home", "home", *typed]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and said in shown


@pytest.mark.parametrize(
    "typed", [["--port", "99999"], ["--port", "-1"], ["--root", "x"], ["--fly"], ["--host", "0.0.0.0"]]
)
def test_options_that_there_are_not(typed, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["ui", *typed])
    assert stopped.value.code == 2 and typed[-1].strip("-") in capsys.readouterr().err


def test_the_command_line_stays_light():
    """Its options are read without aiohttp, and --help of all commands imports none of their modules."""
    code = (
        "import sys, spectral_adapters.__main__ as m; m.parser('ui').parse_args(['ui']); "
        "print([name for name in ('aiohttp', 'torch', 'PIL', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
