"""Going through the layers of a model with their bases, without holding more than some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .basis import Basis, WeightSource, decompose_all, fetch
from .cache import BasisCache
from .columns import ColumnsLike
from .errors import Cancelled


def with_bases(
    names: Sequence[str],
    weights: Mapping[str, WeightSource],
    columns: ColumnsLike | Mapping[str, ColumnsLike],
    *,
    cache: BasisCache | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[tuple[str, Tensor, Basis]]:
    """Name, weight and basis of each layer in turn; as many at once as there are threads.

    columns: one choice for all, or {name: choice}. Raises Cancelled when cancelled() turns true.
    """
    at_once = max(1, torch.get_num_threads())
    for i in range(0, len(names), at_once):
        if cancelled is not None and cancelled():
            raise Cancelled("the work was cancelled; nothing was written")
        fetched = {name: fetch(weights[name]).detach() for name in names[i : i + at_once]}
        # Apple's GPUs have no fp64, which small cores are computed in.
        fetched = {name: w.cpu() if w.device.type == "mps" else w for name, w in fetched.items()}
        bases = decompose_all(fetched, columns, cache=cache, cancelled=cancelled)
        for name in list(fetched):
            yield name, fetched.pop(name), bases.pop(name)
