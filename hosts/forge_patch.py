"""A change as the hosts of Forge's family carry it: a tuple of tensors, which they move to where they work."""

from __future__ import annotations

from torch import Tensor

from .changes import Dense, Kept, Thin

Parts = tuple[Tensor, Tensor] | tuple[Tensor, float]


def parts(kept: Kept) -> Parts:
    """up (m, r) and down (r, n) of a thin change; matrix (m, n), or (c,) of a norm, and scale of a dense one.

    The sides of a thin change get one size: where the host patches at each forward, it turns them into fp16.
    """
    if isinstance(kept, Dense):
        return kept.matrix, kept.scale
    up, down = float(kept.up.abs().max()), float(kept.down.abs().max())
    even = (down / up) ** 0.5 if up and down else 1.0
    return kept.up * even, kept.down / even


def change_of(given: Parts, like: Tensor) -> Tensor:
    """The change at strength 1 in the shape of a weight, fp32, on its device.

    In fp32 whatever type the host has turned the parts into: a product in fp16 would lose small changes.
    Raises ValueError for a weight of another size.
    """
    first, second = given
    kept = Thin(first.float(), second.float()) if isinstance(second, Tensor) else Dense(first, second)
    change = kept.dense(like.device)
    if change.numel() != like.numel():
        raise ValueError(
            f"a spectral adapter's change has shape {tuple(change.shape)}, the weight {tuple(like.shape)}; load the "
            "checkpoint again, so that the adapter is prepared for it"
        )
    return change.reshape(like.shape)


def added(weight: Tensor, strength: float, given: Parts) -> Tensor:
    """weight + strength * change, in place, as the hosts' own patches do to the copy that they work on."""
    if strength != 0:
        weight += (change_of(given, weight) * strength).to(weight.dtype)
    return weight
