"""The forms in which files of the LoRA family hold the change of one layer, each as one change at strength 1.

Sources: LoRA arXiv 2106.09685, LoHa 2108.06098, LoKr and the Tucker forms 2309.14859 (LyCORIS), DoRA 2402.09353. All
give a change of the flattened weight (m, n): thin, up (m, R) and down (R, n), while that takes fewer numbers, or dense.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .change import Change, Thin, dense, scaled
from .lora_keys import Part

Parts = Mapping[Part, Tensor]
Shape = tuple[int, ...]


def lora(parts: Parts) -> tuple[Shape, Thin, int]:
    """up (m, r[, 1, 1]) @ down (r, n) or (r, c, kh, kw), with `mid` (r, r, kh, kw) between (LoCon).

    Shape of the weight, the change, and the rank that alpha is divided by. Raises ValueError for shapes that do not
    fit together, as all functions here.
    """
    up, down, mid = _part(parts, "up"), _part(parts, "down"), parts.get("mid")
    if up.ndim not in (2, 4) or (up.ndim == 4 and up.shape[2:] != (1, 1)) or down.ndim not in (2, 4):
        raise ValueError(f"up {_size(up)}, down {_size(down)}; expected (m, r) and (r, n), or those of a convolution")
    rank = down.shape[0]
    up = up.flatten(1)
    if mid is not None:
        if down.flatten(1).shape[1] != down.shape[1] or mid.ndim != 4 or mid.shape[1] != rank:
            raise ValueError(f"mid {_size(mid)}, down {_size(down)}; expected (r, r, kh, kw) and (r, c, 1, 1)")
        down = torch.einsum("rsxy,sc->rcxy", mid, down.flatten(1))
    if up.shape[1] != down.shape[0]:
        raise ValueError(f"up {_size(up)} and {_size(down)} below it; expected one rank")
    return (up.shape[0], *down.shape[1:]), (up, down.flatten(1)), rank


def loha(parts: Parts) -> tuple[Shape, Change, int]:
    """(A1 B1) * (A2 B2), entry by entry; with t1, t2 (r, r, kh, kw) both factors are Tucker products.

    Without them the kernel of a convolution is not in the file: the shape is (m, n) then.
    """
    if ("hada_t1" in parts) != ("hada_t2" in parts):
        raise ValueError("only one of hada_t1 and hada_t2; expected both or none")
    a1, b1, a2, b2 = (_part(parts, name) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
    if "hada_t1" in parts:
        first, second = tucker(parts["hada_t1"], a1, b1), tucker(parts["hada_t2"], a2, b2)
        if first.shape != second.shape:
            raise ValueError(f"factors of {_size(first)} and {_size(second)}; expected one shape")
        return tuple(first.shape), (first * second).flatten(1), b1.shape[0]
    (m, n), (m2, n2) = _product(a1, b1), _product(a2, b2)
    if (m, n) != (m2, n2):
        raise ValueError(f"factors of ({m}, {n}) and ({m2}, {n2}); expected one shape")
    r1, r2 = a1.shape[1], a2.shape[1]
    if r1 * r2 * (m + n) < m * n:
        # (A1 B1) * (A2 B2) is one product of the factors' products, row by row and column by column.
        up = (a1[:, :, None] * a2[:, None, :]).reshape(m, r1 * r2)
        return (m, n), (up, (b1[:, None, :] * b2[None, :, :]).reshape(r1 * r2, n)), b1.shape[0]
    return (m, n), (a1 @ b1) * (a2 @ b2), b1.shape[0]


def lokr(parts: Parts) -> tuple[Shape, Change, int | None]:
    """W1 kron W2, each whole or a product of two (`lokr_w2` also a Tucker product).

    Rank None where both are whole: then alpha has no meaning. A convolution's kernel is known only from a whole or
    Tucker W2.
    """
    for whole, *factors in (("lokr_w1", "lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")):
        if whole in parts and (beside := [part for part in factors if part in parts]):
            raise ValueError(f"{whole} beside {beside[0]}; expected one of them")
    w1 = _either(parts, "lokr_w1", "lokr_w1_a", "lokr_w1_b")
    if "lokr_t2" in parts:
        w2 = tucker(parts["lokr_t2"], _part(parts, "lokr_w2_a"), _part(parts, "lokr_w2_b"))
    else:
        w2 = _either(parts, "lokr_w2", "lokr_w2_a", "lokr_w2_b")
    if w1.ndim != 2 or w2.ndim not in (2, 4):
        raise ValueError(f"w1 {_size(w1)}, w2 {_size(w2)}; expected a matrix, and a matrix or a kernel")
    shape = (w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1], *w2.shape[2:])
    thin = "lokr_w2_b" in parts and "lokr_t2" not in parts
    change = _thin_kron(w1, parts["lokr_w2_a"], parts["lokr_w2_b"]) if thin else None
    # Channels before kernel, in W1 kron W2 as in W2, so flattening and the product may change places.
    change = torch.kron(w1, w2.flatten(1)) if change is None else change
    rank = next((parts[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts), None)
    return shape, change, rank


def _thin_kron(w1: Tensor, a: Tensor, b: Tensor) -> Thin | None:
    """W1 kron (A B) = (W1 kron A)(I kron B) or (I kron A)(W1 kron B), where that takes fewer numbers than the whole."""
    (p, q), (m, n), r = w1.shape, _product(a, b), a.shape[1]
    if min(p, q) * r * (p * m + q * n) >= p * m * q * n:
        return None
    if q <= p:
        return torch.kron(w1, a), torch.kron(torch.eye(q, device=w1.device), b)
    return torch.kron(torch.eye(p, device=w1.device), a), torch.kron(w1, b)


def dora(weight: Tensor, change: Change, magnitude: Tensor, *, outputs: bool) -> Tensor:
    """scale * (W + D) / ||W + D|| - W (m, n), by row (outputs) or by input channel, as DoRA is trained.

    (ComfyUI's own loader divides rows by the norm of W in place of that of W + D.)

    weight (m, n) or (m, c, kh, kw); magnitude: one number for each row or input channel.
    """
    merged = weight.float() + dense(change).reshape(weight.shape)
    over = tuple(range(1, weight.ndim)) if outputs else (0, *range(2, weight.ndim))
    norm = merged.square().sum(over, keepdim=True).sqrt() + torch.finfo(torch.float32).eps
    if magnitude.numel() != norm.numel():
        raise ValueError(f"{magnitude.numel()} magnitudes for {norm.numel()} {'rows' if outputs else 'inputs'}")
    return (merged * (magnitude.to(merged).reshape(norm.shape) / norm) - weight.float()).flatten(1)


def tucker(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sum_ij t_ij(x, y) a_ip b_jc, as (p, c, kh, kw), of t (r, s, kh, kw), a (r, p), b (s, c)."""
    if t.ndim != 4 or a.ndim != 2 or b.ndim != 2 or t.shape[:2] != (a.shape[0], b.shape[0]):
        raise ValueError(f"core {_size(t)} with {_size(a)} and {_size(b)}; expected (r, s, kh, kw), (r, m), (s, n)")
    return torch.einsum("ijxy,ip,jc->pcxy", t, a, b)


def with_alpha(change: Change, alpha: float | None, rank: int | None) -> Change:
    """alpha / rank times the change; unscaled where one of them is not given."""
    return change if alpha is None or rank is None else scaled(change, alpha / rank)


def _either(parts: Parts, whole: Part, a: Part, b: Part) -> Tensor:
    if whole in parts:
        return parts[whole]
    a, b = _part(parts, a), _part(parts, b)
    _product(a, b)
    return a @ b


def _part(parts: Parts, name: Part) -> Tensor:
    if name not in parts:
        raise ValueError(f"no {name}")
    return parts[name]


def _product(a: Tensor, b: Tensor) -> tuple[int, int]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"factors {_size(a)} and {_size(b)}; expected (m, r) and (r, n)")
    return a.shape[0], b.shape[1]


def _size(t: Tensor) -> str:
    return " x ".join(map(str, t.shape)) or "a single number"
