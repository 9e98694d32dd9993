"""How much arithmetic a torch operation is: by torch's formulas, from the shapes of what goes in and comes out."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

# torch counts attention by the kernels of GPUs; these are the CPU's.
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_ATTENTION_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"


def flops(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Multiplications and additions, each as one, of products, convolutions and attention; 0 for all else."""
    packet = func._overloadpacket
    if (formula := flop_registry.get(packet)) is not None:
        return formula(*args, **kwargs, out_val=out)
    name = packet.__name__
    if name == _ATTENTION:
        return sdpa_flop_count(*(t.shape for t in args[:3]))
    if name == _ATTENTION_BACKWARD:
        return sdpa_backward_flop_count(*(t.shape for t in args[:4]))
    return 0
