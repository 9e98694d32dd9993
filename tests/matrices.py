"""Matrices with prescribed spectra, shared by the tests of the mathematics."""

import torch
from torch import Tensor

SHAPES = [(48, 96), (64, 64), (96, 48), (40, 360), (320, 36)]


def spectrum(name: str, k: int) -> Tensor:
    """k singular values: flat, decaying like a trained layer's, half of them zero, or in clusters of five."""
    i = torch.arange(1, k + 1, dtype=torch.float64)
    return {
        "flat": torch.ones(k, dtype=torch.float64),
        "decaying": i**-0.7,
        "steep": torch.exp(-i / 6),
        "rank-deficient": torch.where(i <= k // 2, 1 / i, 0),
        "clustered": torch.ceil(i / 5) ** -1.0,
    }[name]


SPECTRA = ["flat", "decaying", "steep", "rank-deficient", "clustered"]


def matrix(m: int, n: int, sigma: Tensor | str = "decaying", seed: int = 0) -> Tensor:
    """A random m x n fp32 matrix with these singular values and random singular vectors, not rounded."""
    k, gen = min(m, n), torch.Generator().manual_seed(seed)
    sigma = spectrum(sigma, k) if isinstance(sigma, str) else sigma
    u = torch.linalg.qr(torch.randn(m, k, generator=gen, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(n, k, generator=gen, dtype=torch.float64)).Q
    return ((u * sigma) @ v.T).float()


def random_params(method, weight, basis, scale: float = 0.05, seed: int = 1) -> dict[str, Tensor]:
    """Parameters of a trained look: identity plus noise, orthogonal factors kept orthogonal."""
    gen = torch.Generator().manual_seed(seed)
    params = {}
    for name, p in method.init(weight, basis).items():
        noise = torch.randn(p.shape, generator=gen)
        if method.groups[name].kind == "stiefel":
            params[name] = torch.matrix_exp(scale * (noise - noise.T))
        else:
            params[name] = p + scale * noise * (basis.s if name == "delta" else 1)
    return params
