"""LoRA files as this pack and as ComfyUI itself read them: every spelling of every layer, every form of change.

    python lora_inside.py COMFYUI PACK RESULT.json

RESULT.json: {what was compared: a number}. `test_lora_files.py` starts this inside ComfyUI's interpreter.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

ROOT, PACK, RESULT = (Path(p) for p in sys.argv[1:4])
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p or ".").resolve() not in (HERE, PACK))]
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.weight_adapter  # noqa: E402
import torch  # noqa: E402
from comfy.sd1_clip import SD1ClipModel  # noqa: E402
from comfy.sdxl_clip import SDXLClipModel  # noqa: E402
from comfy.text_encoders.sd2_clip import SD2ClipModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "spectral_adapters", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
)
sys.modules["spectral_adapters"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["spectral_adapters"])

from spectral_adapters.spectral import names  # noqa: E402
from spectral_adapters.spectral.change import dense  # noqa: E402
from spectral_adapters.spectral.lora_keys import layer_names, read_place  # noqa: E402
from spectral_adapters.spectral.open import open_source  # noqa: E402

WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
UNET = {
    "in_channels": 4, "out_channels": 4, "model_channels": 320, "image_size": 32, "adm_in_channels": None,
    "use_checkpoint": False, "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
    "use_temporal_resblock": False,
}  # fmt: skip
FOUR = {
    "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0, 0],
    "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
THREE = {
    "channel_mult": [1, 2, 4], "num_res_blocks": [2] * 3, "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3,
    "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
LINEAR = {"use_linear_in_transformer": True, "num_head_channels": 64}
MODELS = {
    "sd1": (comfy.supported_models.SD15, FOUR | {"use_linear_in_transformer": False, "num_heads": 8}, SD1ClipModel),
    "sd2": (comfy.supported_models.SD20, FOUR | LINEAR, SD2ClipModel),
    "sdxl": (comfy.supported_models.SDXL, THREE | LINEAR, SDXLClipModel),
}
PREFIXES = ("lora_unet_", "lycoris_", "unet.", "diffusion_model.", "")


def unet_spellings(family: str) -> tuple[int, list[str]]:
    """How many keys of ComfyUI's own map for the UNet were compared, and those that lead elsewhere."""
    kind, differences, _ = MODELS[family]
    model = kind(UNET | differences | {"context_dim": WIDTHS[family]}).get_model({}, "", torch.device("meta"))
    table = {
        key: target.removeprefix("diffusion_model.").removesuffix(".weight")
        for key, target in comfy.lora.model_lora_keys_unet(model, {}).items()
        if isinstance(target, str) and target.endswith(".weight")
    }
    known = {names.to_ldm(family, layer) for layer in names.unet_paths(family)}
    count, wrong = 0, []
    for prefix in PREFIXES:
        keys = [key for key in table if next(p for p in PREFIXES if key.startswith(p)) == prefix]
        # "class_embedding" is ComfyUI's word for a layer that SDXL's own LoRAs call add_embedding.
        keys = [key for key in keys if table[key] in known and "class_embedding" not in key]
        found, _ = layer_names({read_place(key) for key in keys}, WIDTHS[family], {})
        count += len(keys)
        expected = {layer: names.to_ldm(family, layer) for layer in names.unet_paths(family)}
        wrong += [key for key in keys if expected.get(found[read_place(key)]) != table[key]]
    return count, wrong


def text_spellings(family: str) -> tuple[int, list[str]]:
    """The same for the text encoders, beside a layer of the UNet that says which family it is."""
    model = MODELS[family][2](device="meta", dtype=torch.float16)
    places = {"clip_l": "lora_te1_" if family == "sdxl" else "lora_te_", "clip_g": "lora_te2_", "clip_h": "lora_te_"}
    hint = read_place(next(iter(names.unet_paths(family))))
    count, wrong = 0, []
    for key, target in comfy.lora.model_lora_keys_clip(model, {}).items():
        where, _, path = target.removesuffix(".weight").partition(".transformer.")
        if where not in places or ".layers." not in path or "norm" in path:
            continue
        found, _ = layer_names({read_place(key), hint}, WIDTHS[family], {})
        count += 1
        if found[read_place(key)] != places[where] + path.replace(".", "_"):
            wrong.append(f"{key} -> {found[read_place(key)]}")
    return count, wrong


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def forms(r: int = 3) -> dict[str, tuple[dict[str, torch.Tensor], tuple[int, ...]]]:
    line, kernel = (24, 40), (24, 8, 3, 3)
    hada = {"hada_w1_a": rand(24, r), "hada_w1_b": rand(r, 40), "hada_w2_a": rand(24, r), "hada_w2_b": rand(r, 40)}
    cores = {"hada_t1": rand(r, r, 3, 3), "hada_t2": rand(r, r, 3, 3)}
    ends = {"hada_w1_a": rand(r, 24), "hada_w1_b": rand(r, 8), "hada_w2_a": rand(r, 24), "hada_w2_b": rand(r, 8)}
    mid = {"lora_up.weight": rand(24, r, 1, 1), "lora_mid.weight": rand(r, r, 3, 3)}
    mid["lora_down.weight"] = rand(r, 8, 1, 1)
    low = {"lokr_w2_a": rand(6, r), "lokr_w2_b": rand(r, 8)}
    return {
        "LoRA": ({"lora_up.weight": rand(24, r), "lora_down.weight": rand(r, 40)}, line),
        "LoCon": ({"lora_up.weight": rand(24, r, 1, 1), "lora_down.weight": rand(r, 8, 3, 3)}, kernel),
        "LoCon, mid": (mid, kernel),
        "LoHa": (hada, line),
        "LoHa, Tucker": (cores | ends, kernel),
        "LoKr": ({"lokr_w1": rand(4, 5), "lokr_w2": rand(6, 8)}, line),
        "LoKr, low w2": ({"lokr_w1": rand(4, 5)} | low, line),
        "LoKr, low w1": ({"lokr_w1_a": rand(4, 2), "lokr_w1_b": rand(2, 5), "lokr_w2": rand(6, 8)}, line),
        "LoKr, both low": ({"lokr_w1_a": rand(4, 2), "lokr_w1_b": rand(2, 5)} | low, line),
        "LoKr, kernel": ({"lokr_w1": rand(4, 2), "lokr_w2": rand(6, 4, 3, 3)}, kernel),
        "LoKr, flat kernel": ({"lokr_w1": rand(4, 2), "lokr_w2_a": rand(6, r), "lokr_w2_b": rand(r, 36)}, kernel),
    }  # fmt: skip


def differences(folder: Path) -> dict[str, float]:
    """||ours - ComfyUI's|| / ||ComfyUI's|| of each form, plain and as DoRA by input channels."""
    found = {}
    for name, (parts, shape) in forms().items():
        for scaled in (False, True):
            layer = "lora_unet_down_blocks_1_resnets_0_conv1" if len(shape) == 4 else "lora_unet_x"
            tensors = {f"{layer}.{part}": t.contiguous() for part, t in parts.items()}
            tensors[f"{layer}.alpha"] = torch.tensor(2.0)
            if scaled:
                tensors[f"{layer}.dora_scale"] = torch.rand(1, shape[1], *(1,) * (len(shape) - 2)) + 0.5
            save_file(tensors, folder / "a.safetensors")
            weight = rand(*shape)
            theirs = comfys(layer, tensors, weight) - weight
            ours = dense(open_source(folder / "a.safetensors").change(layer, weight)).reshape(shape)
            found[name + (", DoRA" if scaled else "")] = float((ours - theirs).norm() / theirs.norm())
    return found


def comfys(layer: str, tensors: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    scale = tensors.get(f"{layer}.dora_scale")
    loaded = (kind.load(layer, tensors, 2.0, scale, set()) for kind in comfy.weight_adapter.adapters)
    adapter = next(found for found in loaded if found is not None)
    return adapter.calculate_weight(weight.clone(), layer, 1.0, 1.0, None, lambda t: t)


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        results = {"forms": differences(Path(folder))}
    results["unet"] = {family: unet_spellings(family) for family in MODELS}
    results["text"] = {family: text_spellings(family) for family in MODELS}
    RESULT.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
