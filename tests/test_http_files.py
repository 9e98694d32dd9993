"""Pictures of jobs: served by id and name alone, with a fixed type, from the job's own folder."""

import io
import os
from urllib.parse import quote

import pytest
from PIL import Image

from spectral_adapters.trainer.addresses import PREFIX


def picture(path, size=(96, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert("RGB").save(path)
    return path


@pytest.fixture
def job(studio):
    entry = studio.store.add("train", "fish", {"base": "tiny"})
    for name in ("samples/step-000010-01.png", "grid/c0-s1-p0.png", "grid/base-p0.png", "loss.png", "sheet.png"):
        picture(entry.run / name)
    (entry.run / "samples" / "notes.txt").write_text("private")
    (entry.run / "spec.json").write_text("{}")
    return entry


FILES = ("samples/step-000010-01.png", "grid/c0-s1-p0.png", "grid/base-p0.png", "loss.png", "sheet.png")


@pytest.mark.parametrize("name", FILES)
def test_pictures_are_served_whole_and_small(client, job, name):
    whole = client.get(f"/jobs/{job.id}/files/{name}")
    assert whole.status == 200 and whole.headers["Content-Type"] == "image/png"
    assert whole.body == (job.run / name).read_bytes()
    small = client.get(f"/jobs/{job.id}/files/{name}", size=32, v=5)
    with Image.open(io.BytesIO(small.body)) as image:
        assert max(image.size) == 32 and small.headers["Content-Type"] == f"image/{image.format.lower()}"
    for answer in (whole, small):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert "no-cache" in whole.headers["Cache-Control"] and "immutable" in small.headers["Cache-Control"]


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "step-000010-01.PNG", "step-000010-01.png.txt", "../spec.json", "..", ".", "step-000010-01.png/x",
     "../../state.json", "..\\spec.json", "step-000010-01.png\0", "/etc/passwd", "C:\\x.png", "step-1-1.png",
     "step-٠٠٠٠١٠-01.png", "a" * 300, "", " step-000010-01.png"],
)  # fmt: skip
def test_no_other_name_is_served(client, job, name):
    for folder in ("samples", "grid"):
        for sent in (quote(name, safe=""), quote(name, safe="/.")):
            answer = client.call("GET", f"{PREFIX}/jobs/{job.id}/files/{folder}/{sent}", None, client._own())
            assert answer.status in (400, 404) and b"private" not in answer.body, answer.body[:100]


def test_a_picture_that_is_not_there_is_not_found(client, job):
    assert client.get(f"/jobs/{job.id}/files/samples/step-000099-01.png").status == 404
    os.remove(job.run / "loss.png")
    assert client.get(f"/jobs/{job.id}/files/loss.png").status == 404
    empty = client.call("GET", f"{PREFIX}/jobs/{job.id}/files/", None, client._own())
    assert empty.status == 404, "folders are not listed"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_out_of_the_job_are_refused(client, job, tmp_path):
    secret = picture(tmp_path / "secret.png")
    (job.run / "samples" / "step-000020-01.png").symlink_to(secret)
    (job.run / "loss.png").unlink()
    (job.run / "loss.png").symlink_to(secret)
    for name in ("samples/step-000020-01.png", "loss.png"):
        answer = client.get(f"/jobs/{job.id}/files/{name}")
        assert answer.status == 400 and "leads out" in answer.json["error"]


def test_a_file_that_is_no_picture_is_not_served(client, job):
    (job.run / "loss.png").write_text("<script>alert(1)</script>")
    for more in ({}, {"size": 64}):
        answer = client.get(f"/jobs/{job.id}/files/loss.png", **more)
        assert answer.status == 400 and b"<script>" not in answer.body


def test_sizes_are_bounded(client, job):
    for size in (0, 15, 1025, -1, "x", "1e3"):
        answer = client.get(f"/jobs/{job.id}/files/sheet.png", size=size)
        assert answer.status == 400 and "1024" in answer.json["error"]


def test_addresses_in_answers_lead_to_the_pictures_and_change_with_them(client, studio, job):
    found = studio.detail(job.id)["pictures"]["loss"]
    assert client.call("GET", found, None, client._own()).body == (job.run / "loss.png").read_bytes()
    os.utime(job.run / "loss.png", (1, 1))
    assert studio.detail(job.id)["pictures"]["loss"] != found
