"""Training: put an adapter on the layers of a module, on activations, and take it off again.

The forward of each chosen layer is replaced on the instance; the module tree, its parameter names and its state dict
stay as they were. No weight is ever rebuilt unless counting multiplications says that this is cheapest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from .adapter import Adapter, AdapterLayer
from .basis import Basis, Progress, WeightSource, basis_of_shape, fetch
from .beginning import check_avoided, first_bases, part_of_start
from .cache import BasisCache
from .columns import Columns
from .errors import SettingError, SpectralError, WrongBaseError
from .gains import Gain, Norm, gain_fingerprint, normalise
from .methods import GAIN, Method
from .methods import method as make_method
from .names import UNET_PREFIX, module_family, modules_of, renamer
from .occupied import Occupied
from .ops import LinearMap
from .targets import Targets, select, select_norms

Originals = Callable[[str], Tensor]
Key = TypeVar("Key")
_EXACT = (torch.float32, torch.float16, torch.bfloat16)  # fp32 holds all of their values


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

    def follow(self) -> None:
        """Bring the bases to where the layers are now: for a host that moves the module after `inject`."""
        for patch in self._patches:
            if isinstance(patch, _LayerPatch):
                patch.follow()

    def remove(self) -> None:
        """Give the module its own forward and its requires_grad flags back. The adapter keeps its parameters."""
        for patch in self._patches:
            patch.take_off()
        for name, p in self._module.named_parameters():
            p.requires_grad_(self._trained_flags.get(name, p.requires_grad))
        self._patches.clear()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters, layer by layer, then the norms'."""
        for _, p in self.named_parameters():
            yield p

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """("<layer>.<parameter>", parameter), as in the file."""
        for name, layer in self.layers.items():
            for part, p in layer.params.items():
                yield f"{name}.{part}", p
        for name, gain in self.gains.items():
            yield f"{name}.{GAIN}", gain.shift

    @torch.no_grad()
    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Give every parameter the value of its name in `named_parameters`, exactly; for resuming a training.

        Raises SettingError, with nothing changed, for a missing or unknown name, another shape, or a dtype that fp32
        does not hold exactly.
        """
        own = dict(self.named_parameters())
        for name in sorted(own.keys() ^ values.keys()):
            found, expected = ("none", "a value") if name in own else ("a value", "none")
            raise SettingError(f"parameter {name!r}: found {found}, expected {expected}; it is another's state")
        for name, p in own.items():
            value = values[name]
            if value.shape != p.shape or value.dtype not in _EXACT:
                raise SettingError(
                    f"parameter {name!r}: found {value.dtype} {tuple(value.shape)}, expected {p.dtype} {tuple(p.shape)}"
                )
        for name, p in own.items():
            p.copy_(values[name])

    def param_groups(self, lr: float | None = None, norm_lr: float | None = None) -> list[dict]:
        """Optimiser groups {"params", "lr", "weight_decay", "kind": "adamw" | "stiefel", "name"}, one per parameter.

        lr: the method's own rate where None. norm_lr: of the group named "gain" (shifted norms), the method's share of
        lr where None. Groups of kind "stiefel" belong to StiefelAdam, the others to AdamW.
        """
        rate = self.method.lr if lr is None else lr
        return [
            {
                "params": self._of_group(name),
                "lr": norm_lr if name == GAIN and norm_lr is not None else rate * group.lr_scale,
                "weight_decay": group.weight_decay,
                "kind": group.kind,
                "name": name,
            }
            for name, group in self.method.groups.items()
        ]

    def _of_group(self, name: str) -> list[nn.Parameter]:
        if name == GAIN:
            return [gain.shift for gain in self.gains.values()]
        return [layer.params[name] for layer in self.layers.values()]


@dataclass
class _Patch(ABC):
    """One replaced forward."""

    module: nn.Module
    adapter: InjectedAdapter

    def put_on(self) -> None:
        self._own: Callable[[Tensor], Tensor] = self.module.forward
        self.module.forward = self.forward

    def take_off(self) -> None:
        del self.module.__dict__["forward"]

    def forward(self, x: Tensor) -> Tensor:
        strength = self.adapter.strength if self.adapter.enabled else 0.0
        return self._own(x) if strength == 0 else self.adapted(x, strength)

    @abstractmethod
    def adapted(self, x: Tensor, strength: float) -> Tensor:
        """The output at a strength that is not 0."""


@dataclass
class _LayerPatch(_Patch):
    op: LinearMap
    basis: Basis
    layer: AdapterLayer

    def follow(self) -> None:
        device = self.module.weight.device
        if self.basis.s.device != device:
            self.basis = self.layer.frames = self.basis.to(device)

    def adapted(self, x: Tensor, strength: float) -> Tensor:
        y = self.op.add_bias(self.adapter.method.apply(self.op, self.basis, self.layer.params, x))
        return y if strength == 1 else torch.lerp(self._own(x), y, strength)


@dataclass
class _GainPatch(_Patch):
    gain: Gain

    def adapted(self, x: Tensor, strength: float) -> Tensor:
        return normalise(self.module, x, self.gain.shift * strength)


def inject(
    module: nn.Module,
    method: Method | str,
    targets: Targets = "attention",
    *,
    prefix: str = "",
    start: Adapter | None = None,
    avoid: Occupied | None = None,
    originals: Originals | None = None,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[nn.Module, InjectedAdapter]:
    """Make a module trainable through a spectral adapter: (the same module, the adapter).

    module: anything with Linear or Conv2d layers, already on its device. targets: see `targets.select`; a method that
    shifts norms takes those of `targets.select_norms`. "none" gives an adapter without layers.
    prefix: "lora_unet_", "lora_te_", ... for the parts of Stable Diffusion, so that the file uses kohya's layer names;
    "" for any other module. The base is frozen; the adapter's parameters are fp32 and start at identity.

    start: an adapter of the same method and settings to go on from, with exactly its parameters, columns and, where it
    carries them, its frames; saved, it has the same profile. Layers that it lacks start at identity; of this part of
    the model (`prefix`) it may have none that `targets` leaves out. A compact one must fit the weights as for
    `check_layers`.
    avoid: columns in use by other adapters (`occupied`); each layer takes its first free block.
    originals: brings a layer's weight, by its name in the file, as the base's file has it. The weights are then read
    from there, so the module may be in another dtype or be cast later, and no second copy of them stays in memory. At
    saving the weight is read again. Without it the adapter describes the weights that the module has now, and where
    the module is cast later, those it was made of stay in memory beside the cast ones.

    Raises SettingError for targets, columns, start or avoid that do not fit, and WrongBaseError for a start that
    belongs to another base; the module is then unchanged.
    """
    method = make_method(method) if isinstance(method, str) else method
    layers, norms, begun = _chosen(module, method, targets, prefix, start, avoid)
    sources = {name: _source(name, m.weight, originals) for name, m in (layers | norms).items()}
    bases = first_bases(
        method, layers, sources, start=begun, avoid=avoid, cache=cache, progress=progress, cancelled=cancelled
    )
    prints = {name: gain_fingerprint(fetch(sources[name])) for name in norms}
    return module, _put_on(module, method, layers, norms, bases, prints, begun)


def put_on_all(adapters: Iterable[tuple[Key, InjectedAdapter]]) -> list[tuple[Key, InjectedAdapter]]:
    """All that `adapters` puts on as it is iterated, each with what it is known by; all of them, or none.

    Where one raises SpectralError, those before it are taken off again.
    """
    done: list[tuple[Key, InjectedAdapter]] = []
    try:
        for each in adapters:
            done.append(each)
    except SpectralError:
        for _, adapter in done:
            adapter.remove()
        raise
    return done


def inject_shapes(
    module: nn.Module,
    method: Method,
    targets: Targets,
    *,
    prefix: str = "",
    start: Adapter | None = None,
    avoid: Occupied | None = None,
    rereads: bool = False,
) -> InjectedAdapter:
    """`inject` for a module whose weights have shapes and no data: the adapter likewise, for estimates.

    To be called where tensors are made without data (torch's FakeTensorMode). rereads: as with `originals`, so that
    bases hold no weight. Raises what `inject` does for settings, start and avoid.
    """
    layers, norms, begun = _chosen(module, method, targets, prefix, start, avoid)
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    columns = dict.fromkeys(layers, method.columns) if avoid is None else avoid.free_blocks(method.columns, shapes)
    bases = {}
    for name, layer in layers.items():
        source = partial(fetch, layer.weight) if rereads else layer.weight
        if begun is not None and name in begun.layers:
            columns[name] = Columns.parse(begun.layers[name].indices)
        bases[name] = basis_of_shape(layer.weight, columns[name], two_sided=method.portable, source=source)
    return _put_on(module, method, layers, norms, bases, dict.fromkeys(norms, ""), begun)


def _chosen(
    module: nn.Module,
    method: Method,
    targets: Targets,
    prefix: str,
    start: Adapter | None,
    avoid: Occupied | None,
) -> tuple[dict[str, nn.Module], dict[str, nn.Module], Adapter | None]:
    """Layers and norms by their names in the file, and the part of `start` that belongs to them."""
    paths = select(module, targets)
    layers = _named(module, prefix, paths)
    norms = _named(module, prefix, select_norms(module, targets, paths)) if method.shifts_gains else {}
    if busy := next((name for name, m in (layers | norms).items() if "forward" in m.__dict__), None):
        raise SettingError(f"the forward of layer {busy} is already replaced; remove the other adapter first")
    begun = part_of_start(start, method, module, prefix, layers | norms)
    if avoid is not None:
        if begun is not None:
            raise SettingError("an adapter to start from has its columns already; give start or avoid, not both")
        check_avoided(avoid, module, prefix)
    return layers, norms, begun


def _put_on(
    module: nn.Module,
    method: Method,
    layers: Mapping[str, nn.Module],
    norms: Mapping[str, nn.Module],
    bases: Mapping[str, Basis],
    prints: Mapping[str, str],
    begun: Adapter | None,
) -> InjectedAdapter:
    """The adapter on its layers and norms; `prints` are the fingerprints of the norms' gains."""
    adapter = InjectedAdapter(method=method, layers={}, metadata={}, profile=begun.profile if begun else None)
    patches: list[_Patch] = []
    for name, layer in layers.items():
        basis = bases[name]
        params = _parameters(method, layer, basis, begun.layers.get(name) if begun else None)
        adapter.layers[name] = AdapterLayer(name, tuple(layer.weight.shape), params, basis.columns, basis)
        patches.append(_LayerPatch(layer, adapter, LinearMap(layer), basis, adapter.layers[name]))
    for name, norm in norms.items():
        adapter.gains[name] = _gain(name, norm, prints[name], begun.gains.get(name) if begun else None)
        patches.append(_GainPatch(norm, adapter, adapter.gains[name]))
    adapter.attach(module, patches)
    return adapter


def _named(module: nn.Module, prefix: str, paths: Sequence[str]) -> dict[str, nn.Module]:
    """{layer name in the file: module}; refuses two paths that the file could not tell apart."""
    rename = renamer(prefix, module_family(module) if prefix == UNET_PREFIX else None)
    taken: dict[str, str] = {}
    for path in paths:
        if (other := taken.setdefault(rename(path), path)) != path:
            raise SettingError(
                f"the layers {other} and {path} would both be called {rename(path)} in the file; inject them separately"
            )
    modules = modules_of(module)
    return {name: modules[path] for name, path in taken.items()}


def _source(name: str, live: nn.Parameter, originals: Originals | None) -> WeightSource:
    return live if originals is None else partial(_original, name, originals, live.shape, live.device)


def _original(name: str, originals: Originals, shape: torch.Size, device: torch.device) -> Tensor:
    weight = originals(name)
    if weight.shape != shape:
        raise WrongBaseError(
            f"layer {name}: the weight read from the base's file has shape {tuple(weight.shape)}, the module's has "
            f"{tuple(shape)}; give the file that the module was loaded from"
        )
    return weight.to(device)


def _parameters(method: Method, layer: nn.Module, basis: Basis, begun: AdapterLayer | None) -> dict[str, nn.Parameter]:
    values = method.init(layer.weight, basis) if begun is None else begun.params
    return {part: _parameter(value, layer.weight.device) for part, value in values.items()}


def _gain(name: str, norm: Norm, base: str, begun: Gain | None) -> Gain:
    shift = torch.zeros(norm.weight.shape, dtype=torch.float32) if begun is None else begun.shift
    return Gain(name, _parameter(shift, norm.weight.device), base)


def _parameter(value: Tensor, device: torch.device) -> nn.Parameter:
    return nn.Parameter(value.detach().to(device, torch.float32, copy=True))
