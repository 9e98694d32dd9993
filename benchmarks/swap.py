"""How long it takes to change one of three adapters on a model that is in use, beside loading all three anew.

    python benchmarks/swap.py [--rounds N] [--rank 8]

The UNet has SD1.5's full architecture, fp32 on the CPU; its 128 attention matrices have decaying spectra and fp16
values. "Anew": read and check three files, bases from the disk cache where the files hold none, changes, one writing
of the weights; giving the weights back first is not counted. "strength": one of the three moved. "swap": one exchanged
for a fourth that was used before; "file": for a fourth that must be read. "off": all taken off, bit for bit. The
operations take turns, `rounds` times; the medians of the process's CPU time are compared, which other work on the
machine disturbs less than the clock. Files and bases are in the system's page cache. $SPECTRAL_ADAPTERS_CACHE, where
set, keeps the bases for the next run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("a", "b", "c", "d")


def attention(unet) -> dict:
    """{layer name: weight} of the 128 attention matrices."""
    from spectral_adapters.spectral.targets import select

    return {
        f"lora_unet_{path.replace('.', '_')}": unet.get_submodule(path).weight for path in select(unet, "attention")
    }


def model():
    """SD1.5's UNet; of its weights only those of the attention are filled."""
    import torch
    from common import decaying, sd15_empty

    unet = sd15_empty()
    with torch.no_grad():
        for seed, weight in enumerate(attention(unet).values()):
            weight.copy_(decaying(tuple(weight.shape), seed).half())
    return unet


def write_adapters(folder: Path, weights: Mapping, method, cache) -> dict[str, Path]:
    """Four files of random parameters; methods with limited columns get four blocks of them."""
    import torch

    import spectral_adapters as sa

    files = {}
    for i, name in enumerate(NAMES):
        method_i = method(i)
        random = torch.Generator().manual_seed(i)
        layers = {}
        for layer, weight in weights.items():
            basis = sa.decompose(weight.detach(), method_i.columns, cache=cache)
            basis = basis.half_rounded() if method_i.portable else basis
            start = method_i.init(weight, basis)
            params = {
                part: p
                if method_i.groups[part].kind == "stiefel"
                else p + 0.01 * torch.randn(p.shape, generator=random)
                for part, p in start.items()
            }
            columns = None if basis.full else basis.columns
            layers[layer] = sa.AdapterLayer(layer, tuple(weight.shape), params, columns, basis)
        files[name] = sa.save(sa.Adapter(method_i, layers), folder / f"{name}.safetensors")
    return files


def write_loras(folder: Path, weights: Mapping, rank: int) -> dict[str, Path]:
    import torch
    from safetensors.torch import save_file

    files = {}
    for i, name in enumerate(NAMES):
        random, tensors = torch.Generator().manual_seed(i), {}
        for layer, weight in weights.items():
            tensors[f"{layer}.lora_up.weight"] = 0.01 * torch.randn(weight.shape[0], rank, generator=random).half()
            tensors[f"{layer}.lora_down.weight"] = 0.01 * torch.randn(rank, weight.shape[1], generator=random).half()
            tensors[f"{layer}.alpha"] = torch.tensor(float(rank))
        files[name] = folder / f"{name}.safetensors"
        save_file(tensors, files[name])
    return files


def kinds(rank: int) -> dict[str, Callable]:
    """{name: i -> method of adapter i}."""
    import spectral_adapters as sa

    return {
        f"additive, rank {rank}": lambda i: sa.method("additive", columns=f"top:{rank}@{rank * i}"),
        f"rotation, rank {rank}": lambda i: sa.method("rotation", columns=f"top:{rank}@{rank * i}"),
        "svdiff, all columns": lambda i: sa.method("svdiff"),
        "svdiff, 64 columns": lambda i: sa.method("svdiff", columns=f"top:64@{64 * i}"),
        "soda": lambda i: sa.method("soda"),
    }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def anew(live, files: Mapping[str, Path]) -> None:
    """Three adapters from their files to the weights, which are written once."""
    for name in NAMES[:3]:
        live.set(name, files[name], 0.0)
    live.move(dict.fromkeys(NAMES[:3], 1.0))


def measure(unet, files: Mapping[str, Path], cache, rounds: int) -> dict[str, object]:
    """Median seconds of each operation, wall and CPU, and how many times the CPU time loading anew takes."""
    from spectral_adapters.spectral.live import Live

    times: dict[str, list[tuple[float, float]]] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        times.setdefault(name, []).append(timed(work))

    for _ in range(rounds):
        live = Live(unet, "lora_unet_", cache=cache)
        note("anew", partial(anew, live, files))
        note("strength", partial(live.move, {"b": 0.5}))
        note("file", partial(live.set, "b", files["d"], 1.0))
        live.set("d", files["d"], 0.0)
        live.set("b", files["b"], 1.0)
        note("swap", partial(live.move, {"b": 0.0, "d": 1.0}))
        note("off", live.clear)
    wall, cpu = ({name: statistics.median(t[i] for t in found) for name, found in times.items()} for i in (0, 1))
    seconds = {name: {"wall_s": round(wall[name], 3), "cpu_s": round(cpu[name], 3)} for name in times}
    ratios = {f"anew / {name}": round(cpu["anew"] / s, 1) for name, s in cpu.items() if name != "anew"}
    return seconds | ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    args = parser.parse_args()
    from common import write

    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("SPECTRAL_ADAPTERS_CACHE", str(Path(folder) / "cache"))
        from spectral_adapters import BasisCache

        cache, unet = BasisCache(), model()
        weights = attention(unet)
        own = {name: weight.detach().clone() for name, weight in weights.items()}
        result: dict[str, object] = {"matrices": len(weights), "adapters": 3}
        jobs = {name: ("adapter", method) for name, method in kinds(args.rank).items()}
        jobs["LoRA, rank 32"] = ("lora", 32)
        for name, (what, how) in jobs.items():
            place = Path(folder) / name.replace(", ", "-").replace(" ", "-")
            place.mkdir()
            files = write_adapters(place, own, how, cache) if what == "adapter" else write_loras(place, own, how)
            result[name] = measure(unet, files, cache, args.rounds)
            print(name, result[name], file=sys.stderr)
            if not all(bool((weights[layer] == own[layer]).all()) for layer in own):
                raise SystemExit(f"{name}: the weights did not come back")
        write("swap", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
