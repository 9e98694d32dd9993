"""Bytes of adapter files for the SD1.5 UNet: every method saved for real, on the layers people train.

    python benchmarks/sizes.py

The weights are random with trained-looking spectra and the parameters are random; a file's size depends on neither.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from common import sd15_unet, write

import spectral_adapters as sa

CASES = [
    ("svdiff", {}, "attention", "compact"),
    ("svdiff", {}, "all", "compact"),
    ("svdiff", {"rank": 8}, "attention", "portable"),
    ("additive", {"rank": 8}, "attention", "portable"),
    ("rotation", {"rank": 8}, "attention", "portable"),
    ("rotation", {"rank": 8}, "attention", "compact"),
    ("rotation", {"rank": 24}, "attention", "compact"),
    ("soda", {}, "attention", "compact"),
]


def main() -> None:
    unet, cache, rows = sd15_unet(), sa.BasisCache(), []
    for name, settings, targets, profile in CASES:
        _, adapter = sa.inject(unet, sa.method(name, **settings), targets, prefix="lora_unet_", cache=cache)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            for key, p in adapter.named_parameters():
                if not key.endswith((".k1", ".k2", ".k3")):
                    p.normal_(std=1e-3)
            path = sa.save(adapter, Path(folder) / "a.safetensors", profile=profile)
            row = {
                "method": name,
                **settings,
                "targets": targets,
                "profile": profile,
                "layers": len(adapter.layers),
                "parameters": sum(p.numel() for p in adapter.parameters()),
                "bytes": path.stat().st_size,
            }
        adapter.remove()
        rows.append(row)
        print(row, flush=True)
    write("sizes", {"files": rows})


if __name__ == "__main__":
    main()
