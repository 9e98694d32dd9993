"""Adapters together through the routes: compared and fused by real child processes, planned, looked into."""

import base64
import io
import time

import pytest
import torch
from adapters import adapter_of
from PIL import Image

import spectral_adapters as sa
from spectral_adapters.spectral.export import write_export

SHAPES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (40, 40),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (40, 64),
}


@pytest.fixture(scope="module", autouse=True)
def files(studio):
    """cat and dog on one block, hat on the next; style.lora is a LoRA of hat."""
    folder = studio.places.adapters
    for name, columns in (("cat", "top:4"), ("dog", "top:4"), ("hat", "top:4@4")):
        adapter, _ = adapter_of(
            "additive", {"columns": columns}, SHAPES, scale={"cat": 0.05, "dog": 0.02}.get(name, 0.03)
        )
        sa.save(adapter, folder / f"{name}.safetensors", trigger_words=[f"sks {name}"])
    write_export(sa.to_lora(adapter), adapter, folder / "style.lora.safetensors")
    studio.start()
    return folder


def finished(client, id, status="finished"):
    deadline = time.monotonic() + 60
    while (job := client.get(f"/jobs/{id}").json)["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    assert job["status"] == status, job["text"]
    return job


def test_a_comparison_is_a_job_with_a_picture(client):
    asked = {"adapters": ["cat.safetensors", "dog.safetensors", "hat.safetensors"]}
    id = client.post("/mix/conflict", asked).json["id"]
    job = finished(client, id)
    assert (job["kind"], job["parent"], job["adapter"], job["name"]) == ("conflict", None, None, "cat / dog / hat")
    assert "cat and dog both use columns 0-3 in 2 layers" in job["text"]
    found = client.get(f"/jobs/{id}/conflict").json
    assert found["sentence"] == job["text"] and [m["name"] for m in found["adapters"]] == ["cat", "dog", "hat"]
    assert found["overlap"][0][2] == 0 and found["overlap"][0][1] > 0
    for address in (found["picture"]["url"], found["picture"]["thumb"], job["cover"]):
        answer = client.call("GET", address, None, client._own())
        with Image.open(io.BytesIO(answer.body)) as picture:
            assert picture.width >= 200
    assert client.post("/mix/conflict", asked).json["id"] == id, "the same files need not be compared again"
    assert client.post(f"/jobs/{id}/delete").status == 200
    assert client.get(f"/jobs/{id}/conflict").status == 404


def test_a_fusion_is_a_new_adapter_in_the_list(client, files):
    rows = [{"name": "cat.safetensors"}, {"name": "hat.safetensors", "weight": 1}]
    made = client.post("/mix/fuse", {"adapters": rows, "mode": "sum", "name": "both"}).json
    job = finished(client, made["id"])
    assert made["notice"] == "" and job["kind"] == "fuse" and job["adapter"]["name"] == "both.safetensors"
    assert "columns" in job["text"] and "checked in fp64" in job["text"]
    fused = sa.load(files / "both.safetensors")
    assert {layer.indices for layer in fused.layers.values()} == {tuple(range(8))}
    assert "both.safetensors" in {row["name"] for row in client.get("/adapters").json}


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/mix/conflict", {"adapters": ["cat.safetensors"]}, "2 to 16"),
        ("/mix/conflict", {"adapters": ["cat.safetensors"] * 2}, "twice"),
        ("/mix/conflict", {"adapters": ["../cat.safetensors", "dog.safetensors"]}, "adapter: found"),
        ("/mix/conflict", {"adapters": ["loras/../cat.safetensors", "dog.safetensors"]}, "adapter: found"),
        ("/mix/conflict", {"adapters": ["cat.safetensors", "dog.safetensors"], "base": "/etc"}, "base model: found"),
        ("/mix/conflict", {"adapters": "cat"}, "list"),
        ("/mix/fuse", {"adapters": [], "name": "x"}, "1 to 64"),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors", "weight": "1"}], "name": "x"}, "weight="),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors", "weight": 1e9}], "name": "x"}, "-10 to 10"),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors", "path": "/etc"}], "name": "x"}, "a name and a weight"),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors"}], "name": "../x"}, "names of files cannot have"),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors"}], "name": "x", "mode": "gradient"}, "sampling run"),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors"}], "name": "x", "mode": "all"}, "sum, mean"),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors"}], "name": "x", "to": "ckpt"}, "auto, native"),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors"}], "name": "x", "energy": 2}, "energy=2"),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors"}], "name": "x", "rank": 4, "energy": 0.9}, "give one"),
        ("/mix/fuse", {"adapters": [{"name": "cat.safetensors"}], "name": "x", "rank": 4, "to": "diff"}, "to a LoRA"),
        ("/mix/plan", {"concepts": []}, "0 concepts"),
        ("/mix/plan", {"concepts": ["a"], "how": "x"}, "blocks, sample"),
        ("/mix/plan", {"concepts": ["a"], "save": "../x"}, "names of files cannot have"),
        ("/adapters/edit", {"name": "../cat.safetensors", "title": "x"}, "adapter: found"),
        ("/adapters/edit", {"name": "loras/style.lora.safetensors", "title": "x"}, "adapter: found"),
        ("/adapters/edit", {"name": "cat.safetensors", "preview": "no base64!"}, "base64"),
        ("/adapters/edit", {"name": "cat.safetensors", "preview": "PHN2Zy8+"}, "SVG"),
        ("/adapters/edit", {"name": "cat.safetensors", "trigger_words": "sks"}, "list"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_a_sentence(client, studio, path, body, text):
    before = sorted(studio.places.home.rglob("*"))
    answer = client.post(path, body)
    assert answer.status == 400 and text in answer.json["error"], answer.json
    assert sorted(studio.places.home.rglob("*")) == before


def test_only_a_finished_comparison_is_shown(client, studio):
    waiting = studio.store.add("conflict", "x", {}, device="cuda:9")
    other = studio.store.add("fuse", "x", {}, device="cuda:9")
    assert client.get(f"/jobs/{waiting.id}/conflict").status == 409
    assert client.get(f"/jobs/{waiting.id}/files/conflict.png").status == 404
    assert client.get(f"/jobs/{other.id}/conflict").status == 400
    for each in (waiting, other):
        assert client.get(f"/jobs/{each.id}").json["parent"] is None
        for what in ("grid", "export", "keep", "sample"):
            assert client.post(f"/jobs/{each.id}/{what}", {} if what != "keep" else {"checkpoint": "x"}).status in (
                400,
                409,
            )
        assert client.get(f"/jobs/{each.id}/spectrum").status == 400
        assert client.post(f"/jobs/{each.id}/stop").status == client.post(f"/jobs/{each.id}/delete").status == 200


def test_plans_are_answered_and_kept_on_request(client, studio):
    found = client.post("/mix/plan", {"concepts": ["cat", "dog"], "rank": 4}).json
    assert [row["columns"] for row in found["concepts"]] == ["top:4", "top:4@4"] and "saved" not in found
    assert not (studio.places.home / "plans").exists()
    asked = {"concepts": ["cat", "dog"], "how": "sample", "pool": 64, "save": "pets"}
    assert client.post("/mix/plan", asked).json["saved"] == "pets" and client.post("/mix/plan", asked).status == 409
    (row,) = [row for row in client.get("/form").json["settings"] if row["name"] == "column_plan"]
    assert row["choices"] == ["pets"] and row["kind"] == "choice" and row["optional"]


def test_a_file_says_what_it_is_and_takes_new_texts(client, files):
    listed = {row["name"]: row for row in client.get("/adapters").json}
    assert listed["hat.safetensors"]["kind"] == "adapter" and listed["hat.safetensors"]["editable"]
    assert listed["loras/style.lora.safetensors"]["kind"] == "lora"
    style = client.get("/adapters/info", name="loras/style.lora.safetensors").json
    assert style["method"] == "LoRA" and style["layers"] == 2 and not style["editable"]
    found = client.get("/adapters/info", name="hat.safetensors").json
    assert (found["method"], found["kind"], found["preview"]) == ("additive", "adapter", False)
    assert found["trigger_words"] == ["sks hat"] and len(found["sha256"]) == 64
    assert client.get("/adapters/preview", name="hat.safetensors").status == 404
    assert client.get("/adapters/spectrum", name="hat.safetensors").json["columns"] == "top:4@4"
    assert client.get("/adapters/spectrum", name="loras/style.lora.safetensors").status == 400
    before = {name: layer.params for name, layer in sa.load(files / "hat.safetensors").layers.items()}
    picture = io.BytesIO()
    Image.effect_noise((700, 500), 60).convert("RGB").save(picture, "PNG")
    sent = base64.b64encode(picture.getvalue()).decode()
    words = {"title": "A hat", "licence": "CC-BY-4.0", "trigger_words": ["sks hat", "red hat"], "preview": sent}
    changed = client.post("/adapters/edit", {"name": "hat.safetensors", **words}).json
    assert (changed["title"], changed["licence"], changed["trigger_words"]) == (
        "A hat",
        "CC-BY-4.0",
        words["trigger_words"],
    )
    assert (
        changed["preview"] and changed["content_hash"] == found["content_hash"] != changed["sha256"] != found["sha256"]
    )
    shown = client.get("/adapters/preview", name="hat.safetensors", v=1)
    with Image.open(io.BytesIO(shown.body)) as image:
        assert max(image.size) == 512 and shown.headers["Content-Type"] == f"image/{image.format.lower()}"
    after = sa.load(files / "hat.safetensors").layers
    assert all(torch.equal(after[name].params[key], value) for name in before for key, value in before[name].items())
    emptied = client.post("/adapters/edit", {"name": "hat.safetensors", "title": "", "preview": ""}).json
    assert not emptied["preview"] and emptied["title"] != "A hat" and emptied["licence"] == "CC-BY-4.0"


@pytest.mark.parametrize("name", ["", "..", "../cat.safetensors", "/etc/passwd", "loras/", "loras/../cat.safetensors"])
def test_no_name_leads_to_another_file(client, name):
    for what in ("info", "preview", "spectrum"):
        answer = client.get(f"/adapters/{what}", name=name)
        assert answer.status == 400 and answer.json["error"]
