"""Training: put an adapter on the layers of a module, on activations, and take it off again.

The forward of each chosen layer is replaced on the instance; the module tree, its parameter names and its state dict
stay as they were. No weight is ever rebuilt unless counting multiplications says that this is cheapest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapter import Adapter, AdapterLayer
from .basis import Basis, Progress, decompose_all
from .cache import BasisCache
from .errors import SettingError
from .methods import Method
from .methods import method as make_method
from .names import UNET_PREFIX, module_family, renamer
from .ops import LinearMap
from .targets import Targets, select


class InjectedAdapter(Adapter):
    """An adapter whose parameters are live `nn.Parameter`s inside a module's forward.

    `enabled` False, or `strength` 0, gives the base exactly (its own forward runs). A strength other than 0 and 1 is
    linear in the layer's output change. `save`, `merge` and `to_lora` take it like any other adapter.
    """

    enabled: bool = True
    strength: float = 1.0

    def attach(self, module: nn.Module, patches: Sequence[_Patch]) -> None:
        self._module, self._patches = module, list(patches)
        self._trained_flags = {name: p.requires_grad for name, p in module.named_parameters()}
        module.requires_grad_(False)
        for patch in self._patches:
            patch.put_on()

    def remove(self) -> None:
        """Give the module its own forward and its requires_grad flags back. The adapter keeps its parameters."""
        for patch in self._patches:
            patch.take_off()
        for name, p in self._module.named_parameters():
            p.requires_grad_(self._trained_flags.get(name, p.requires_grad))
        self._patches.clear()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters, layer by layer."""
        for layer in self.layers.values():
            yield from layer.params.values()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """("<layer>.<parameter>", parameter), as in the file."""
        for name, layer in self.layers.items():
            for part, p in layer.params.items():
                yield f"{name}.{part}", p

    def param_groups(self, lr: float | None = None) -> list[dict]:
        """Optimiser groups {"params", "lr", "weight_decay", "kind": "adamw" | "stiefel", "name"}, one per parameter.

        lr: the method's own rate where None. Groups of kind "stiefel" belong to StiefelAdam, the others to AdamW.
        """
        rate = self.method.lr if lr is None else lr
        return [
            {
                "params": [layer.params[name] for layer in self.layers.values()],
                "lr": rate * group.lr_scale,
                "weight_decay": group.weight_decay,
                "kind": group.kind,
                "name": name,
            }
            for name, group in self.method.groups.items()
        ]


@dataclass
class _Patch:
    """One layer's replaced forward."""

    op: LinearMap
    basis: Basis
    layer: AdapterLayer
    adapter: InjectedAdapter

    def put_on(self) -> None:
        self._own: Callable[[Tensor], Tensor] = self.op.module.forward
        self.op.module.forward = self.forward

    def take_off(self) -> None:
        del self.op.module.__dict__["forward"]

    def forward(self, x: Tensor) -> Tensor:
        strength = self.adapter.strength if self.adapter.enabled else 0.0
        if strength == 0:
            return self._own(x)
        y = self.op.add_bias(self.adapter.method.apply(self.op, self.basis, self.layer.params, x))
        return y if strength == 1 else torch.lerp(self._own(x), y, strength)


def inject(
    module: nn.Module,
    method: Method | str,
    targets: Targets = "attention",
    *,
    prefix: str = "",
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[nn.Module, InjectedAdapter]:
    """Make a module trainable through a spectral adapter: (the same module, the adapter).

    module: anything with Linear or Conv2d layers, already on its device. targets: see `targets.select`.
    prefix: "lora_unet_", "lora_te_", ... for the parts of Stable Diffusion, so that the file uses kohya's layer names;
    "" for any other module. The base is frozen; the adapter's parameters are fp32 and start at identity.
    Raises SettingError for targets or columns that do not fit; the module is then unchanged.
    """
    method = make_method(method) if isinstance(method, str) else method
    layers = _named_layers(module, prefix, select(module, targets))
    if busy := next((name for name, layer in layers.items() if "forward" in layer.__dict__), None):
        raise SettingError(f"the forward of layer {busy} is already replaced; remove the other adapter first")
    bases = decompose_all(
        {name: layer.weight for name, layer in layers.items()},
        method.columns,
        cache=cache,
        progress=progress,
        cancelled=cancelled,
    )
    adapter = InjectedAdapter(method=method, layers={}, metadata={})
    patches = []
    for name, layer in layers.items():
        basis = bases[name].half_rounded() if method.portable else bases[name]
        params = {part: nn.Parameter(p) for part, p in method.init(layer.weight, basis).items()}
        adapter.layers[name] = AdapterLayer(name, tuple(layer.weight.shape), params, basis.columns, basis)
        patches.append(_Patch(LinearMap(layer), basis, adapter.layers[name], adapter))
    adapter.attach(module, patches)
    return module, adapter


def _named_layers(module: nn.Module, prefix: str, paths: Sequence[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    """{layer name in the file: layer}; refuses two paths that the file could not tell apart."""
    rename = renamer(prefix, module_family(module) if prefix == UNET_PREFIX else None)
    taken: dict[str, str] = {}
    for path in paths:
        if (other := taken.setdefault(rename(path), path)) != path:
            raise SettingError(
                f"the layers {other} and {path} would both be called {rename(path)} in the file; inject them separately"
            )
    return {name: module.get_submodule(path) for name, path in taken.items()}
