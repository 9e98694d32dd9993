"""Datasets and the form through the routes: filled by upload, seen, checked and edited, whatever names are sent."""

import base64
import io

import pytest
from PIL import Image

TRAVERSALS = (
    "..", "../..", "own/..", "own/../..", "/etc", "own//etc", "own/./mugs", "own\\mugs", "C:/x", "own/mugs\0",
    "own/\ud800", "", "nothing", "own/CON", "own/mugs/../../home", "~", "own/" + "a" * 300, "own/mugs" + "/x" * 50,
)  # fmt: skip
HOSTILE = '<script>alert("1")</script> \u202e {{7*7}}'


def png(size=(80, 60)):
    made = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(made, "PNG")
    return made.getvalue()


def sent(data):
    return base64.b64encode(data).decode()


def test_a_dataset_is_made_filled_seen_checked_and_edited(client, studio):
    id = client.post("/datasets/create", {"name": "fish"}).json["id"]
    assert client.post("/datasets/create", {"name": "fish"}).status == 409
    names = [client.post("/datasets/upload", {"id": id, "name": n, "data": sent(png())}).json["name"] for n in "aab"]
    assert len(set(names)) == 3
    assert client.post("/datasets/caption", {"id": id, "name": names[0], "text": HOSTILE}).status == 200
    found = client.get("/datasets/pictures", id=id).json
    assert found["total"] == 3 and [p["name"] for p in found["pictures"]] == sorted(names)
    captions = {p["name"]: p["caption"] for p in found["pictures"]}
    assert captions[names[0]] == HOSTILE and captions[names[1]] == ""
    (listed,) = [each for each in client.get("/datasets").json if each["id"] == id]
    assert (listed["pictures"], listed["captions"], listed["writable"]) == (3, 1, True)
    checked = client.post("/datasets/check", {"id": id, "base": "tiny", "settings": {"trigger": "sks"}}).json
    assert checked["usable"] == 3 and sum(checked["sizes"].values()) == 3 and checked["trigger"] == "sks"
    thumb = client.get("/datasets/thumb", id=id, name=names[0], size=32)
    with Image.open(io.BytesIO(thumb.body)) as image:
        assert max(image.size) == 32 and thumb.headers["Content-Type"] == f"image/{image.format.lower()}"
    assert client.post("/datasets/caption", {"id": id, "name": names[0], "text": ""}).status == 200
    assert client.post("/datasets/remove", {"id": id, "name": names[1]}).status == 200
    found = client.get("/datasets/pictures", id=id, offset=1).json
    assert found["total"] == 2 and len(found["pictures"]) == 1 and not found["pictures"][0]["caption"]


@pytest.mark.parametrize("id", TRAVERSALS)
def test_no_name_leads_out_of_the_roots(client, studio, id):
    before = sorted(str(path) for path in studio.places.home.parent.rglob("*"))
    calls = [
        *(client.post(f"/datasets/{what}", {"id": id, "name": "0.png", **more}) for what, more in (
            ("upload", {"data": sent(png())}), ("caption", {"text": "x"}), ("remove", {}),
        )),
        client.post("/datasets/check", {"id": id, "base": "tiny", "settings": {}}),
        client.post("/datasets/check", {"id": "own/mugs", "base": "tiny", "settings": {"masks": id or ".."}}),
    ]  # fmt: skip
    if "\ud800" not in id:  # a query cannot say half a character
        calls += [client.get("/datasets/pictures", id=id), client.get("/datasets/thumb", id=id, name="0.png")]
    for answer in calls:
        assert answer.status in (400, 404) and answer.json["error"], answer.body
    assert sorted(str(path) for path in studio.places.home.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["../mugs/0.png", "..", "0.txt", "0.png/x", "/etc/passwd", "0.png\0", "x.png", "", "\\"]
)
def test_no_picture_name_leads_out_of_its_dataset(client, studio, name):
    before = sorted(str(path) for path in studio.places.home.parent.rglob("*"))
    for answer in (
        client.get("/datasets/thumb", id="own/mugs", name=name),
        client.post("/datasets/caption", {"id": "own/mugs", "name": name, "text": "x"}),
        client.post("/datasets/remove", {"id": "own/mugs", "name": name}),
    ):
        assert answer.status in (400, 404) and answer.json["error"]
    assert sorted(str(path) for path in studio.places.home.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/b", "a\\b", "CON", "x.", " x", "a:b", "a\0b", "\ud800", "", "a" * 300, 5, None]
)
def test_a_new_dataset_needs_a_plain_name(client, studio, name):
    answer = client.post("/datasets/create", {"name": name})
    assert answer.status == 400 and answer.json["error"]


@pytest.mark.parametrize(
    "data",
    ["", "no base64!", sent(b""), sent(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"), sent(b"GIF89a"),
     sent(png()[:200]), sent(b"\x89PNG\r\n\x1a\n" + b"\0" * 100), sent(b"<html>"), 5, None],
)  # fmt: skip
def test_only_pictures_are_taken(client, data):
    before = client.get("/datasets/pictures", id="own/mugs").json
    answer = client.post("/datasets/upload", {"id": "own/mugs", "name": "x.png", "data": data})
    assert answer.status == 400 and answer.json["error"]
    assert client.get("/datasets/pictures", id="own/mugs").json == before


def test_an_upload_that_says_it_is_too_large_is_not_read(client):
    headers = {**client._own(), "Content-Type": "application/json", "Content-Length": str(1 << 40)}
    assert client.raw("POST", "/spectral_adapters/datasets/upload", b"{", headers) == 413


def test_an_uploads_name_is_only_a_wish(client):
    id = client.post("/datasets/create", {"name": "wishes"}).json["id"]
    for wish in ("../../x.svg", "con.png", "/etc/passwd", "a\0b.html", "x.png.exe", "<b>.png", ""):
        answer = client.post("/datasets/upload", {"id": id, "name": wish, "data": sent(png())})
        assert answer.status == 200, answer.json
        assert answer.json["name"].endswith(".png") and not set("/\\<>\0") & set(answer.json["name"])


def test_a_caption_is_short(client):
    answer = client.post("/datasets/caption", {"id": "own/mugs", "name": "0.png", "text": "x" * 5000})
    assert answer.status == 400 and "4,096" in answer.json["error"].replace("4096", "4,096")


def test_thumbs_are_bounded(client):
    for size in (0, 15, 1025, "x"):
        assert client.get("/datasets/thumb", id="own/mugs", name="0.png", size=size).status == 400


def test_the_form_and_what_there_is_to_choose(client):
    form = client.get("/form").json
    assert {"groups", "settings", "presets", "methods", "common"} <= set(form)
    offered = {row["name"] for row in form["settings"]}
    assert "steps" in offered and not offered & {"out", "run", "images", "base", "cache_dir"}
    found = client.post("/form/values", {"preset": "subject", "method": "rotation", "base": "tiny"}).json
    assert found["method"] == "rotation" and found["values"]["steps"] == 200 and found["sources"]["steps"]
    assert client.post("/form/values", {"preset": "subject", "base": "tiny"}).json["method"] == "additive"
    for wrong in ({"preset": "x"}, {"preset": "subject", "base": "/etc"}, {"preset": "subject", "method": "x"}, {}):
        assert client.post("/form/values", wrong).status == 400
    assert client.get("/bases").json == [{"name": "tiny", "kind": "tiny", "bytes": None}]
    assert client.get("/adapters").json == []
