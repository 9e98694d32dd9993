"""A folder to share: what the Hub reads of it, what a reader sees, and texts that would like to be more than text."""

import io
import re

import pytest
import torch
import yaml
from adapters import adapter_of
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

import spectral_adapters as sa
from spectral_adapters.__main__ import main
from spectral_adapters.spectral.open import open_source
from spectral_adapters.trainer.decode import PictureFault
from spectral_adapters.trainer.edit import edit
from spectral_adapters.trainer.model_card import LICENCES, plain
from spectral_adapters.trainer.publish import Published, PublishError, Sample, publish

EVIL = "a: b\n---\n# <script>alert(1)</script> [x](http://evil) ![y](//evil) `code` | cell | \\ *bold* @someone"


@pytest.fixture
def own(tmp_path):
    adapter, _ = adapter_of("additive", {"rank": 3})
    metadata = {"ss_steps": "40", "ss_tag_frequency": '{"cats": {"a secret": 3}}', "modelspec.license": "cc-by-4.0"}
    words = ["<cat>", "oil painting"]
    return sa.save(adapter, tmp_path / "cat.safetensors", metadata=metadata, trigger_words=words, base_name="v1-5")


@pytest.fixture
def picture(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "C:/Users/me/secret")
    Image.effect_noise((1500, 600), 60).convert("RGB").save(tmp_path / "shot.png", pnginfo=info)
    return tmp_path / "shot.png"


def card(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.S).groups()
    return yaml.safe_load(front), body


def test_the_folder_holds_file_card_samples_and_an_exact_lora(own, picture, tmp_path):
    made = publish(
        own,
        tmp_path / "to share",
        samples=[Sample(picture, "a photo of <cat>, at night"), Sample(picture)],
        base_model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    )
    assert isinstance(made, Published) and made.url == ""
    expected = ["README.md", "cat.safetensors", "cat_lora.safetensors", "images/sample-1.webp", "images/sample-2.webp"]
    assert [name.replace("\\", "/").replace(".jpg", ".webp") for name in made.files] == expected
    assert (made.folder / "cat.safetensors").read_bytes() == own.read_bytes()
    assert any("ss_tag_frequency" in note for note in made.notes)
    front, body = card(made.folder)
    assert front["license"] == "cc-by-4.0" and front["pipeline_tag"] == "text-to-image"
    assert front["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert front["library_name"] == "diffusers" and front["instance_prompt"] == "<cat>, oil painting"
    assert {"lora", "template:sd-lora", "additive", "spectral-adapter"} <= set(front["tags"])
    assert [row["text"] for row in front["widget"]] == ["a photo of <cat>, at night", "<cat>, oil painting"]
    assert all((made.folder / row["output"]["url"]).is_file() for row in front["widget"])
    for part in ("Spectral Adapter Loader", "<lora:cat_lora:1>", "load_lora_weights", "`<cat>`", "| steps | 40 |"):
        assert part in body, part
    source, lora = open_source(own), load_file(made.folder / "cat_lora.safetensors")
    layer = next(iter(source.shapes))
    up, down = lora[f"{layer}.lora_up.weight"].float(), lora[f"{layer}.lora_down.weight"].float()
    expected = torch.matmul(*source.change(layer))
    torch.testing.assert_close(up.flatten(1) @ down.flatten(1), expected, rtol=1e-2, atol=2e-3)


def test_samples_carry_pixels_and_nothing_else(own, picture, tmp_path):
    made = publish(own, tmp_path / "out", samples=[Sample(picture)])
    blob = next((made.folder / "images").iterdir()).read_bytes()
    assert b"secret" not in blob and b"workflow" not in blob
    with Image.open(io.BytesIO(blob)) as image:
        assert image.size == (1024, 410)


def test_the_python_of_the_card_is_python(own, tmp_path):
    edit(own, trigger_words=['"; import os; "', "x"])
    body = card(publish(own, tmp_path / "out").folder)[1]
    code = re.search(r"```python\n(.*?)\n```", body, re.S)[1]
    compile(code, "card", "exec")
    assert code.count("\n") == 4


def test_texts_stay_text(own, tmp_path):
    edit(
        own, title=EVIL.replace("\n", " "), description=EVIL, trigger_words=[EVIL], author=EVIL, licence="My: `own` | x"
    )
    made = publish(own, tmp_path / "out", samples=[])
    front, body = card(made.folder)
    assert front["license"] == "other" and front["license_name"] == "my-own-x"
    assert front["instance_prompt"] == EVIL and set(front) <= {
        "license", "license_name", "instance_prompt", "tags", "pipeline_tag", "library_name"
    }  # fmt: skip
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", body)  # escaped, so only text
    outside = re.sub(r"```.*?```|(`+).*?\1", "", bare, flags=re.S)
    for mark in ("<script", "](http", "http:", "\n---\n# <", "*bold*", " @", "![", "<h"):
        assert mark not in outside, mark
    # A row of a table has as many cells as the table.
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert plain(EVIL).replace("\\", "") == " ".join(EVIL.split()).replace("\\", "")


@pytest.mark.parametrize(
    "text",
    [
        *(EVIL, "- a list", "+ one", "1. one", "12. one", "2) two", "#", "# heading", "=== ", "--- ", "> quote"),
        *("    code", "~~~", "<!-- x -->", "www.evil.example", "https://evil.example", "a@evil.example", "***", "`"),
        *("&lt;b&gt;", "![x](y)", "[x]: http://y"),
    ],
)
def test_a_reader_of_markdown_sees_one_paragraph_of_that_text(text):
    commonmark = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed; it only serves to check")
    parser = commonmark.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(plain(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in tokens[1].children} == {"text"} or {child.type for child in tokens[1].children} == {
        "text",
        "text_special",
    }
    assert "".join(child.content for child in tokens[1].children) == " ".join(text.split())


def test_what_only_the_pack_applies_exactly_has_no_lora(tmp_path):
    adapter, _ = adapter_of("svdiff", {})
    path = sa.save(adapter, tmp_path / "shift.safetensors")
    made = publish(path, tmp_path / "out", licence="openrail")
    assert made.files == ("README.md", "shift.safetensors") and "no LoRA" in made.notes[0]
    front, body = card(made.folder)
    assert "lora" not in front["tags"] and front["library_name"] == "spectral-adapters" and "<lora:" not in body
    assert "base_model" not in front


def test_a_lora_of_another_tool(tmp_path):
    save_file({"lora_unet_conv_in.diff": torch.ones(320, 4, 3, 3)}, tmp_path / "a.safetensors", {"ss_output_name": "A"})
    made = publish(tmp_path / "a.safetensors", tmp_path / "out", licence="unknown")
    assert made.files == ("README.md", "a.safetensors")
    front, body = card(made.folder)
    assert "# A\n" in body and "<lora:a:1>" in body and "spectral-adapter" not in front["tags"]


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"licence": ""}, sa.SettingError, "no licence"),
        ({"base_model": "v1-5"}, sa.SettingError, "base model"),
        ({"repo": "../x"}, sa.SettingError, "repository"),
        ({"upload": True}, sa.SettingError, "without a repository"),
        ({"samples": [Sample(None)] * 17}, sa.SettingError, "at most 16"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_written(own, tmp_path, more, error, said):
    with pytest.raises(error, match=said):
        publish(own, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_nothing_half_written(own, picture, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(sa.SettingError, match="not empty"):
        publish(own, tmp_path / "full")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    before = sorted(tmp_path.iterdir())
    for sample, error in ((tmp_path / "broken.png", PictureFault), (tmp_path / "missing.png", sa.SettingError)):
        with pytest.raises(error):
            publish(own, tmp_path / "out", samples=[Sample(picture), Sample(sample)])
        assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "empty").mkdir()
    assert publish(own, tmp_path / "empty").files


def test_an_upload_goes_through_the_hubs_own_login(own, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda self: calls.append("whoami"))
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, **more: calls.append((repo, more)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **more: calls.append(more))
    made = publish(own, tmp_path / "out", repo="me/cat", upload=True)
    assert calls[1] == ("me/cat", {"private": True, "exist_ok": True})
    assert calls[2]["folder_path"] == tmp_path / "out" and made.url.endswith("/me/cat")
    assert "token" not in str(calls)


def test_without_a_login_the_folder_stays(own, tmp_path, monkeypatch):
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(PublishError, match="hf auth login"):
        publish(own, tmp_path / "out", repo="me/cat", upload=True)
    assert (tmp_path / "out" / "README.md").is_file()


def test_the_command(own, picture, tmp_path, capsys):
    args = ["publish", str(own), str(tmp_path / "out"), "--sample", str(picture), "a cat", "--sample", str(picture)]
    assert main(args) == 0
    assert "Nothing was uploaded" in capsys.readouterr().out
    assert [row["text"] for row in card(tmp_path / "out")[0]["widget"]] == ["a cat", "<cat>, oil painting"]
    assert main(args) == 2 and "not empty" in capsys.readouterr().err
    assert main([*args[:2], str(tmp_path / "b"), "--sample", "a", "b", "c"]) == 2


def test_licences_of_the_hub_are_written_as_it_spells_them():
    assert all(name == name.lower() and " " not in name for name in LICENCES)
