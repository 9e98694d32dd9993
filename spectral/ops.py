"""A frozen Linear or Conv2d as the linear map an adapter works on, in terms of activations."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn
from torch.nn import functional as F

from .linalg import kron_rotate


def adaptable(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether a module is a layer this package adapts: Linear, or Conv2d without groups."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


class LinearMap:
    """x -> W x of one layer, and the cheap maps around it. Shapes: W is m x n (a convolution flattened);

    a Linear takes x (..., n) to y (..., m); a Conv2d takes x (b, c_in, h, w) to y (b, m, h', w').
    Small matrices are cast to the dtype of the activations; gradients flow back through the cast.
    """

    def __init__(self, module: nn.Linear | nn.Conv2d):
        self.module = module
        self.conv = isinstance(module, nn.Conv2d)

    @property
    def weight(self) -> Tensor:
        """The layer's own weight, (m, n) or (c_out, c_in, kh, kw)."""
        return self.module.weight

    def base(self, x: Tensor, change: Tensor | None = None) -> Tensor:
        """(W + change) x without the bias; change (m, n) or None."""
        w = self.weight
        if change is not None:
            w = w + change.reshape(w.shape).to(w.dtype)
        return self._apply(x, w)

    def down(self, x: Tensor, rows: Tensor) -> Tensor:
        """rows (r, n) times x (its patches for a convolution): r features per position."""
        return self._apply(x, rows.reshape(-1, *self.weight.shape[1:]).to(x.dtype))

    def mix(self, z: Tensor, matrix: Tensor) -> Tensor:
        """matrix (p, q) times the q features of z at every position."""
        matrix = matrix.to(z.dtype)
        return F.conv2d(z, matrix[:, :, None, None]) if self.conv else F.linear(z, matrix)

    def scale(self, z: Tensor, gains: Tensor) -> Tensor:
        """Multiply feature i of z by gains[i]."""
        gains = gains.to(z.dtype)
        return z * (gains[:, None, None] if self.conv else gains)

    def rotate(self, x: Tensor, k1: Tensor, k2: Tensor, k3: Tensor) -> Tensor:
        """Rotate the input channels: K^T x with K = K1 (x) K2 (x) K3."""
        k1, k2, k3 = (k.to(x.dtype) for k in (k1, k2, k3))
        if not self.conv:
            return kron_rotate(x, k1, k2, k3)
        return kron_rotate(x.movedim(1, -1), k1, k2, k3).movedim(-1, 1)

    def positions(self, x: Tensor) -> int:
        """How many positions (tokens, pixels) the layer puts out for x, counted without running it."""
        if not self.conv:
            return x.numel() // x.shape[-1]
        stride = self.module.stride
        return x.shape[0] * (x.shape[2] // stride[0]) * (x.shape[3] // stride[1])

    def add_bias(self, y: Tensor) -> Tensor:
        bias = self.module.bias
        if bias is None:
            return y
        return y + (bias.to(y.dtype)[:, None, None] if self.conv else bias.to(y.dtype))

    def _apply(self, x: Tensor, w: Tensor) -> Tensor:
        # _conv_forward honours stride, padding mode and dilation of the layer.
        return self.module._conv_forward(x, w, None) if self.conv else F.linear(x, w)
