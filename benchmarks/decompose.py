"""How long the canonical decomposition of SD1.5's matrices takes beside a loop of torch.linalg.svd, in one run.

    python benchmarks/decompose.py [--only PART] [--limit N]

Top 8 of the 128 attention matrices, and the small-side bases of all 282; on decaying and on flat spectra. Each side
works on the same fp32 matrices; ours includes rounding to fp16 and checks. Accuracy is measured afterwards on one
matrix of each shape, all its columns: ||W v - sigma u|| / sigma_1 and the departure of the small side from
orthonormality, both worst cases. All parts take about 20 minutes on 2 cores; --only runs one, the others' results stay.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import decaying, flat, read, sd15_shapes, write
from torch import Tensor

import spectral_adapters as sa


def clock(work) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def accuracy(weight: Tensor, basis: sa.Basis) -> tuple[float, float]:
    """||W v - sigma u|| / sigma_1 and the largest entry of |Q^T Q - I| of the small side, worst column, in fp64."""
    w, u, s, v, q = (t.double() for t in (sa.canonical(weight), basis.u, basis.s, basis.v, basis.small))
    eye = torch.eye(q.shape[1], dtype=torch.float64)
    return float((w @ v - u * s).norm(dim=0).max() / s[0]), float((q.T @ q - eye).abs().max())


def compare(weights: dict[str, Tensor], columns: int | None) -> dict:
    theirs, _ = clock(lambda: [torch.linalg.svd(w.flatten(1), full_matrices=False).S[0] for w in weights.values()])
    ours, bases = clock(lambda: sa.decompose_all(weights, columns))
    one_per_shape = {w.shape: name for name, w in weights.items()}.values()
    worst = [accuracy(weights[name], bases[name]) for name in one_per_shape]
    return {
        "matrices": len(weights),
        "svd_loop_s": round(theirs, 2),
        "ours_s": round(ours, 2),
        "times_faster": round(theirs / ours, 2),
        "shapes_checked": len(worst),
        "worst_residual_over_sigma1": float(f"{max(r for r, _ in worst):.2g}"),
        "worst_departure_from_orthonormal": float(f"{max(d for _, d in worst):.2g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="about N matrices of each set, for a quick look; not kept")
    parser.add_argument("--only", help="one part: top8_of_attention_decaying, small_side_of_all_flat, ...")
    args = parser.parse_args()
    shapes = sd15_shapes()
    attention = {p: s for p, s in shapes.items() if ".attn" in p}
    torch.linalg.svd(torch.randn(64, 64))  # the first call loads the library
    result = read("decompose")
    for kind, make in (("decaying", decaying), ("flat", flat)):
        for label, chosen, columns in (("top8_of_attention", attention, 8), ("small_side_of_all", shapes, None)):
            if args.only not in (None, f"{label}_{kind}"):
                continue
            names = list(chosen)[:: max(1, len(chosen) // args.limit) if args.limit else 1]
            weights = {path: make(chosen[path], i) for i, path in enumerate(names)}
            result[f"{label}_{kind}"] = compare(weights, columns)
            print(label, kind, result[f"{label}_{kind}"], flush=True)
    if args.limit is None:
        write("decompose", result)


if __name__ == "__main__":
    main()
