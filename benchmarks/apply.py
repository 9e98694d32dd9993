"""How long an adapter takes to apply in ComfyUI beside core's LoraLoader with the same rank, in one run.

    COMFYUI_DIR=... COMFYUI_PYTHON=... python benchmarks/apply.py [--rounds N]

The UNet has SD1.5's full architecture; its 128 attention matrices have decaying spectra. "Apply" is everything between
the file on disk and a model ready to sample: reading and checking the file, making the patches, patching the weights.
The loaders take turns, `rounds` times; the best of each are compared, of wall time and of the process's CPU time, which
other work on the machine disturbs less. "again" is a moved strength: the same file once more.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PACK = HERE.parent
RANK = 8
UNET = {
    "in_channels": 4, "out_channels": 4, "model_channels": 320, "context_dim": 768, "image_size": 32,
    "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "num_heads": 8, "num_head_channels": -1,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None,
    "use_checkpoint": False, "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip


def enter_comfyui(root: Path) -> None:
    """Makes this process see what a node pack sees: ComfyUI's modules on the path, the pack as a package."""
    sys.path[:] = [str(root), str(HERE), *(p for p in sys.path if Path(p or ".").resolve() not in (HERE, PACK))]
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location(
        "spectral_adapters", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    sys.modules["spectral_adapters"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["spectral_adapters"])


def attention_keys(patcher) -> dict[str, str]:
    """Kohya layer name -> model key of the attention matrices."""
    import comfy.lora

    from spectral_adapters.spectral import names

    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    return {name: keys[name] for name in names.unet_paths("sd1") if "_attn" in name}


def sd15():
    """SD1.5's UNet in a ModelPatcher, in the dtype ComfyUI uses on the CPU."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils
    import torch
    from common import decaying

    config = comfy.supported_models.SD15(dict(UNET))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", torch.device("cpu"))
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for seed, key in enumerate(attention_keys(patcher).values()):
            weight = comfy.utils.get_attr(model, key)
            weight.copy_(decaying(tuple(weight.shape), seed).half())
    return patcher


def write_files(folder: Path, patcher) -> dict[str, Path]:
    """The adapters, with random parameters, and a random LoRA of the same rank on the same matrices."""
    import comfy.utils
    import torch
    from safetensors.torch import save_file

    import spectral_adapters as sa

    random = torch.Generator().manual_seed(0)
    weights = {name: comfy.utils.get_attr(patcher.model, key) for name, key in attention_keys(patcher).items()}
    lora = {}
    for name, weight in weights.items():
        lora[f"{name}.lora_up.weight"] = 0.01 * torch.randn(weight.shape[0], RANK, generator=random).half()
        lora[f"{name}.lora_down.weight"] = 0.01 * torch.randn(RANK, weight.shape[1], generator=random).half()
        lora[f"{name}.alpha"] = torch.tensor(float(RANK))
    save_file(lora, folder / "lora.safetensors")
    bases = {None: sa.decompose_all(weights), RANK: sa.decompose_all(weights, RANK)}
    for name, profile, rank in (
        ("rotation", "portable", RANK), ("additive", "portable", RANK), ("svdiff", "portable", RANK),
        ("rotation", "compact", RANK), ("svdiff", "compact", None),
    ):  # fmt: skip
        method = sa.method(name) if rank is None else sa.method(name, rank=rank)
        layers = {}
        for layer, weight in weights.items():
            basis = bases[rank][layer].half_rounded() if method.portable else bases[rank][layer]
            params = {
                k: p + 0.01 * torch.randn(p.shape, generator=random) for k, p in method.init(weight, basis).items()
            }
            layers[layer] = sa.AdapterLayer(layer, tuple(weight.shape), params, basis.columns, basis)
        sa.save(sa.Adapter(method, layers), folder / f"{name}-{profile}.safetensors", profile=profile)
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def core_lora(path: Path, patcher, strength: float):
    import comfy.sd
    import comfy.utils

    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0.0)[0]


def ours(path: Path, patcher, strength: float):
    from spectral_adapters.nodes.apply import Strength, apply

    return apply(str(path), patcher, None, Strength(strength, 0.0), "refuse").model


class Times(NamedTuple):
    """Seconds: for the node, for patching the weights, and of CPU time for both."""

    node: float
    patching: float
    cpu: float


def apply_once(load: Callable, path: Path, patcher, strength: float) -> Times:
    """Applies a file; the weights are restored afterwards, off the clock."""
    import torch

    cpu = torch.device("cpu")
    start, cpu_start = time.perf_counter(), time.process_time()
    adapted = load(path, patcher, strength)
    made = time.perf_counter()
    adapted.patch_model(cpu)
    times = Times(made - start, time.perf_counter() - made, time.process_time() - cpu_start)
    adapted.unpatch_model(cpu)
    return times


def measure(rounds: int) -> dict:
    import torch

    from spectral_adapters.nodes import prepared

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        os.environ["SPECTRAL_ADAPTERS_CACHE"] = str(Path(folder) / "cache")
        (Path(folder) / "files").mkdir()
        patcher = sd15()
        files = write_files(Path(folder) / "files", patcher)
        times: dict[str, list[Times]] = {}
        for turn in range(rounds + 1):
            for name, path in files.items():
                prepared.forget()
                load = core_lora if name == "lora" else ours
                first = apply_once(load, path, patcher, 1.0)
                again = apply_once(load, path, patcher, 0.8)
                if turn:  # the first turn fills the caches
                    times.setdefault(name, []).append(first)
                    times.setdefault(f"{name}, again", []).append(again)
                elif "compact" in name:
                    times[f"{name}, cold cache"] = [first]
    return summary(times)


def summary(times: dict[str, list[Times]]) -> dict:
    wall = {name: min(t.node + t.patching for t in runs) for name, runs in times.items()}
    cpu = {name: min(t.cpu for t in runs) for name, runs in times.items()}
    result = {}
    for name, runs in times.items():
        core = "lora, again" if name.endswith("again") else "lora"
        result[name] = {
            "node_s": round(min(t.node for t in runs), 3),
            "patching_s": round(min(t.patching for t in runs), 3),
            "total_s": round(wall[name], 3),
            "cpu_s": round(cpu[name], 3),
            "times_core_lora": round(wall[name] / wall[core], 2),
            "times_core_lora_cpu": round(cpu[name] / cpu[core], 2),
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    root = os.environ.get("COMFYUI_DIR")
    if not root or not (Path(root) / "comfy").is_dir():
        parser.error("set COMFYUI_DIR to ComfyUI's folder (and COMFYUI_PYTHON to its interpreter)")
    if not args.inside:
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        return subprocess.run([python, __file__, "--inside", "--rounds", str(args.rounds)], check=False).returncode
    enter_comfyui(Path(root))
    from comfyui_version import __version__
    from common import write

    write("apply", {"comfyui": __version__, "rank": RANK, "matrices": 128, **measure(args.rounds)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
