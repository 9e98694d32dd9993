"""What a compact file keeps of the base it was trained on, and what a loader can conclude from it.

Three kinds of evidence per layer: a fingerprint and the singular values (is this the same weight?), a +-1 sketch of the
frames (which sign and order had the columns, and how were close ones mixed?), and the probe: a +-1 sketch of the
trained change, from which the loader estimates |change here - change trained| / |change trained|, whatever went wrong.
All +-1 numbers come from SHA-256 in counter mode, so they are the same on every machine and in every language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .basis import Basis

SKETCH_ROWS = 16
PROBE_OUT, PROBE_IN = 16, 8
FINGERPRINT_DIGITS = 16
_FORMAT = 1  # part of every label
_CLUSTER = 12  # columns mixed by one Procrustes; the two sketches give 32 equations per column
_CLOSE = 1e-4  # of sigma_1: a gap below which two LAPACKs may mix a pair of columns

# A change of a layer: dense (m, n), thin factors (m, R) and (R, n), or the linear map itself: (n, c) -> (m, c).
Change = Tensor | tuple[Tensor, Tensor] | Callable[[Tensor], Tensor]


def rademacher(label: str, rows: int, cols: int) -> Tensor:
    """A (rows, cols) fp32 matrix of +-1 fixed by `label`: the bits of SHA-256(label | counter), row by row.

    The counter has 8 bytes, big-endian, from 0; bits are taken from each digest's first byte on, highest bit first;
    1 means +1.
    """
    bits = np.unpackbits(np.frombuffer(_digests(label, -(-rows * cols // 256)), dtype=np.uint8))[: rows * cols]
    return torch.from_numpy(bits.astype(np.float32).reshape(rows, cols)).mul_(2).sub_(1)


@lru_cache(maxsize=4096)  # about 2 KB each; the four of every layer of SDXL
def _digests(label: str, blocks: int) -> bytes:
    prefix = label.encode("utf-8") + b"\x00"
    return b"".join([hashlib.sha256(prefix + i.to_bytes(8, "big")).digest() for i in range(blocks)])


def _signs(role: str, layer: str, rows: int, cols: int) -> Tensor:
    return rademacher(f"spectral/{_FORMAT}/{role}/{layer}/{rows}x{cols}", rows, cols)


@dataclass(frozen=True)
class Evidence:
    """fingerprint: 16 hex digits; sigma (r,); sketch_u, sketch_v (16, r); probe (16, 8); fp32 on the CPU.

    The sketches are kept for methods that depend on the columns' signs, the probe for compact files; else None.
    """

    fingerprint: str
    sigma: Tensor
    sketch_u: Tensor | None = None
    sketch_v: Tensor | None = None
    probe: Tensor | None = None


def make_evidence(layer: str, basis: Basis, change: Change | None, *, sketch: bool) -> Evidence:
    """The evidence of one layer. `change` None leaves out the probe; `sketch` asks for the sketches of the frames."""
    evidence = Evidence(basis.fingerprint[:FINGERPRINT_DIGITS], _plain(basis.s))
    if sketch:
        su, sv = _sketches(layer, basis)
        evidence = replace(evidence, sketch_u=su.half().float(), sketch_v=sv.half().float())
    if change is not None:
        evidence = replace(evidence, probe=probe_response(layer, basis.shape, change))
    return evidence


def _plain(t: Tensor) -> Tensor:
    return t.detach().to("cpu", torch.float32)


def _sketches(layer: str, basis: Basis) -> tuple[Tensor, Tensor]:
    m, n = basis.shape
    gu, gv = _signs("frame_u", layer, SKETCH_ROWS, m), _signs("frame_v", layer, SKETCH_ROWS, n)
    return gu @ _plain(basis.u), gv @ _plain(basis.v)


def probe_response(layer: str, shape: tuple[int, int], change: Change) -> Tensor:
    """S D P (16, 8) for the change D (m, n), with S (16, m) and P (n, 8) of +-1 fixed by the layer's name and m x n.

    E ||S D P||^2 = 128 ||D||^2 (Frobenius). Thin factors are never multiplied out.
    """
    m, n = shape
    s, p = _signs("probe_out", layer, PROBE_OUT, m), _signs("probe_in", layer, n, PROBE_IN)
    if isinstance(change, tuple):
        up, down = change
        return _plain((s.to(up) @ up) @ (down @ p.to(down)))
    image = change @ p.to(change) if isinstance(change, Tensor) else change(p)
    return _plain(s.to(image) @ image)


def probe_error(layer: str, shape: tuple[int, int], evidence: Evidence, change: Change) -> tuple[float, float]:
    """(|probe here - probe stored|^2, |probe stored|^2).

    Summed over the layers of an adapter, the root of their quotient estimates the relative error of the change.
    Raises ValueError where the evidence holds no probe.
    """
    if evidence.probe is None:
        raise ValueError(f"layer {layer!r} has no probe; only compact files carry one")
    stored = evidence.probe.double()
    here = probe_response(layer, shape, change).double()
    return float((here - stored).square().sum()), float(stored.square().sum())


def align(layer: str, evidence: Evidence, candidate: Basis, columns: Sequence[int]) -> Basis:
    """The candidate's columns in the order, with the signs and the mixing that the sketches record.

    candidate: at least as many columns as the evidence; more let a column be found that left its place. Inside a
    cluster of close singular values, where single vectors are arbitrary, the orthogonal Procrustes rotation that brings
    the candidate's sketch nearest to the stored one is applied to u and v alike. sigma is the stored one, so that the
    change comes out as trained. Raises ValueError where the evidence holds no sketches.
    """
    if evidence.sketch_u is None or evidence.sketch_v is None:
        raise ValueError(f"layer {layer!r} has no sketches of its frames")
    stored = torch.cat((evidence.sketch_u, evidence.sketch_v)).double()
    seen = torch.cat(_sketches(layer, candidate)).double()
    sigma, found = evidence.sigma.double(), _plain(candidate.s).double()
    order, signs = _match(stored, seen, sigma, found)
    seen, found = seen[:, order] * signs, found[order]
    device = candidate.u.device
    pick, flip = order.to(device), signs.to(candidate.u)
    u, v = candidate.u.index_select(1, pick) * flip, candidate.v.index_select(1, pick) * flip
    for cluster in _clusters(sigma, found):
        rotation = _procrustes(seen[:, cluster], stored[:, cluster]).to(u)
        u[:, cluster], v[:, cluster] = u[:, cluster] @ rotation, v[:, cluster] @ rotation
    return Basis(
        evidence.sigma.to(device),
        columns,
        candidate.shape,
        u=u,
        v=v,
        sigma_max=candidate.sigma_max,
        fingerprint=candidate.fingerprint,
        from_cache=candidate.from_cache,
    )


def _match(stored: Tensor, seen: Tensor, sigma: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """For each stored column the candidate's column (r,) and its sign (r,): greedily by likeness of the sketches."""
    likeness = (stored / stored.norm(dim=0)).T @ (seen / seen.norm(dim=0).clamp_min(1e-30))
    # Unlike singular values cannot be the same column; with 32 rows a chance likeness of 0.5 does happen.
    apart = (sigma[:, None] - found[None, :]).abs() > 0.2 * sigma[:, None] + 1e-3 * sigma.max()
    score = (likeness.abs() - 2 * apart).numpy()
    order = np.full(len(sigma), -1)
    taken = np.zeros(len(found), dtype=bool)
    left = len(sigma)
    for flat in np.argsort(-score, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(found))
        if order[i] < 0 and not taken[j]:
            order[i], taken[j], left = j, True, left - 1
            if not left:
                break
    index = torch.from_numpy(order)
    signs = torch.sign(likeness.gather(1, index[:, None]).squeeze(1))
    return index, torch.where(signs == 0, torch.ones_like(signs), signs)


def _clusters(sigma: Tensor, found: Tensor) -> list[list[int]]:
    """Runs of at least two columns whose singular values lie so close that this much drift mixes them."""
    drift = found - sigma
    # A perturbation E moves sigma_i by u_i E v_i and mixes i and j by about that over their gap.
    close = max(8.0 * float((drift - drift.median()).square().mean().sqrt()), _CLOSE * float(sigma.max()))
    runs, run = [], [0]
    for i in range(1, len(sigma)):
        if float(sigma[i - 1] - sigma[i]) <= close and len(run) < _CLUSTER:
            run.append(i)
        else:
            runs.append(run)
            run = [i]
    return [r for r in [*runs, run] if len(r) > 1]


def _procrustes(seen: Tensor, stored: Tensor) -> Tensor:
    """The orthogonal R (c, c) that minimises ||seen R - stored|| (Frobenius)."""
    a, _, bt = torch.linalg.svd(seen.T @ stored)
    return a @ bt
