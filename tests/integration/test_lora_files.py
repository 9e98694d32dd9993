"""LoRA files mean here what they mean to ComfyUI: the same layers by every spelling, the same changes in every form."""

import json
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# Keys of ComfyUI's map: kohya's two spellings, SimpleTuner's, its own, and diffusers' with and without "unet.".
UNET_KEYS = {"sd1": 1400, "sd2": 1400, "sdxl": 4000}
TEXT_KEYS = {"sd1": 150, "sd2": 150, "sdxl": 500}


@pytest.fixture(scope="module")
def compared(comfy_root, comfy_python, tmp_path_factory):
    result = tmp_path_factory.mktemp("lora") / "result.json"
    command = [comfy_python, HERE / "lora_inside.py", comfy_root, HERE.parent.parent, result]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(result.read_text())


@pytest.mark.parametrize(("part", "least"), [("unet", UNET_KEYS), ("text", TEXT_KEYS)])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_spelling_leads_to_the_same_layer(part, least, family, compared):
    count, wrong = compared[part][family]
    assert not wrong and count >= least[family], (count, wrong[:5])


def test_every_form_is_the_same_change(compared):
    assert len(compared["forms"]) == 22
    assert all(error < 1e-6 for error in compared["forms"].values()), compared["forms"]
