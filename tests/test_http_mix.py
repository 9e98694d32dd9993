"""Adapters together through the routes: compared and fused by real child processes, planned, looked into."""

import base64
import io
import json
import time

import pytest
from adapters import adapter_of
from PIL import Image

import spectral_adapters as sa
from spectral_adapters.spectral.export import write_export
from spectral_adapters.trainer.addresses import PREFIX

SHAPES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (40, 40),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (40, 64),
}


@pytest.fixture(scope="module", autouse=True)
def files(studio):
    """cat and dog on one block, hat on the next; style.lora is a LoRA of hat."""
    folder = studio.places.adapters
    for name, columns in (("cat", "top:4"), ("dog", "top:4"), ("hat", "top:4@4")):
        adapter, _ = adapter_of("additive", {"columns": columns}, SHAPES, scale={"cat": 0.05, "dog": 0.02}.get(name, 0.03))
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
