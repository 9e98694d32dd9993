"""How long the canonical decomposition of SD1.5's matrices takes beside a loop of torch.linalg.svd, in one run.

    python benchmarks/decompose.py [--limit N]

Top 8 of the 128 attention matrices, and the small-side bases of all 282; on decaying and on flat spectra. Each side
works on the same fp32 matrices; ours includes rounding to fp16 and checks. The accuracy of every triple is measured
afterwards: ||W v - sigma u|| / sigma_1 and the departure of the small side from orthonormality, both worst cases.
"""

from __future__ import annotations

import argparse
import time

import spectral_adapters as sa
import torch
from common import decaying, flat, sd15_shapes, write
from torch import Tensor


def clock(work) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def accuracy(weight: Tensor, basis: sa.Basis) -> tuple[float, float]:
    """Worst residual over sigma_1, and worst entry of |Q^T Q - I| of the small side, in fp64."""
    w, q, s = sa.canonical(weight).double(), basis.small.double(), basis.s.double()
    if basis.full:
        # W v - sigma u with v = W^T u / sigma has the norm of (W W^T u - sigma^2 u) / sigma on live directions.
        a = w if basis.wide else w.T
        residual = ((a @ (a.T @ q) - q * s.square()) / s.clamp_min(1e-5 * s[0])).norm(dim=0).max()
    else:
        residual = (w @ basis.v.double() - basis.u.double() * s).norm(dim=0).max()
    eye = torch.eye(q.shape[1], dtype=torch.float64)
    return float(residual / s[0]), float((q.T @ q - eye).abs().max())


def compare(weights: dict[str, Tensor], columns: int | None) -> dict:
    theirs, _ = clock(lambda: [torch.linalg.svd(w.flatten(1), full_matrices=False).S[0] for w in weights.values()])
    ours, bases = clock(lambda: sa.decompose_all(weights, columns))
    worst = [accuracy(w, bases[name]) for name, w in weights.items()]
    return {
        "matrices": len(weights),
        "svd_loop_s": round(theirs, 2),
        "ours_s": round(ours, 2),
        "times_faster": round(theirs / ours, 2),
        "worst_residual_over_sigma1": max(r for r, _ in worst),
        "worst_departure_from_orthonormal": max(d for _, d in worst),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="about N matrices of each set, for a quick look; not kept")
    args = parser.parse_args()
    shapes = sd15_shapes()
    attention = {p: s for p, s in shapes.items() if ".attn" in p}
    torch.linalg.svd(torch.randn(64, 64))  # the first call loads the library
    result = {}
    for kind, make in (("decaying", decaying), ("flat", flat)):
        for label, chosen, columns in (("top8_of_attention", attention, 8), ("small_side_of_all", shapes, None)):
            names = list(chosen)[:: max(1, len(chosen) // args.limit) if args.limit else 1]
            weights = {path: make(chosen[path], i) for i, path in enumerate(names)}
            result[f"{label}_{kind}"] = compare(weights, columns)
            print(label, kind, result[f"{label}_{kind}"], flush=True)
    if args.limit is None:
        write("decompose", result)


if __name__ == "__main__":
    main()
