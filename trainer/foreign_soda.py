"""Lists of SODA's own code (arXiv 2405.21050, `peft_<step>.pt`) as a source of changes, and as adapters where they fit.

    {"unet": [K1, K2, K3, delta, K1, ...], "text_encoder_one": [...], "text_encoder_two": [...]}

without names: four tensors for each Linear, in the order in which its injector finds them. That is the order of
`model.modules()` for the modules of class Attention (UNet) or CLIPAttention (text encoders), and inside each the order
of `named_modules()`; in diffusers' UNets the up blocks come before the middle block, in CLIP k, v, q, out. The module
trees of the base are asked for it here.

W' = U diag(relu(sigma + delta)) V^T (K1 (x) K2 (x) K3)^T. Our soda has other sizes of K for most widths (1280 is
4 x 16 x 20 there, 8 x 10 x 16 here), so only a list whose sizes all agree becomes an adapter; any becomes a difference
or a LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..spectral.adapter import Adapter, AdapterLayer
from ..spectral.basis import Progress, WeightSource, decompose, fetch, flatten
from ..spectral.cache import BasisCache
from ..spectral.change import Change
from ..spectral.container import refusal
from ..spectral.convert import Residual
from ..spectral.converted import Converted
from ..spectral.errors import Cancelled, SettingError, UnknownLayerError, WrongBaseError
from ..spectral.evidence import make_evidence
from ..spectral.linalg import kron_factors, kron_rotate
from ..spectral.matching import check_fits
from ..spectral.methods import method as make_method
from ..spectral.names import renamer
from ..spectral.source import Source
from .base import Base, Part

_TABLES = {"unet": "unet", "text_encoder_one": "text_encoder", "text_encoder_two": "text_encoder_2"}
_PARENTS = {"unet": ("Attention", "CrossAttention"), "text_encoder": ("CLIPAttention",)}
_ADVICE = "Choose the base it was trained on, and a file of SODA's run_SODA_svd.py"


@dataclass(frozen=True)
class _Layer:
    turns: tuple[Tensor, Tensor, Tensor]
    delta: Tensor


def is_soda(content: object) -> bool:
    """Whether what a pickle holds is such a table of lists."""
    if not isinstance(content, dict) or not set(content) <= set(_TABLES) or "unet" not in content:
        return False
    return all(isinstance(found, list) for found in content.values())


class SodaList(Source):
    """The changes of such a list. Every layer needs its weight; nothing in the file says of which base."""

    kind = "SODA list"

    def __init__(self, content: dict[str, list], path: Path, base: Base):
        self.name, self.metadata, self.gains = path.stem, {}, {}
        self._layers: dict[str, _Layer] = {}
        self.shapes = {}
        parts = {part.field: part for part in base.parts()}
        for table, field in _TABLES.items():
            if not (tensors := list(_flat(content.get(table, [])))):
                continue
            if field not in parts:
                raise WrongBaseError(f"{path.name}: found a list {table}, but {base.name} has no such model; {_ADVICE}")
            for name, shape, layer in _read(path, table, tensors, parts[field], base):
                self._layers[name], self.shapes[name] = layer, shape

    def needs_weight(self, layer: str) -> bool:
        return True

    def change(self, layer: str, weight: Tensor | None = None, cache: BasisCache | None = None) -> Change:
        found = self._found(layer)
        if weight is None:
            raise WrongBaseError(f"{self.name}: layer {layer} is a shift and a rotation of the base; give the base")
        check_fits(self.name, layer, self.shapes[layer], weight)
        basis = decompose(weight, cache=cache)
        shifted = make_method("svdiff").delta(basis, {"delta": found.delta.to(basis.s)})
        plain = flatten(weight).float()
        # W' = (W + shift) K^T, by the small factors: no matrix of n x n is formed.
        return kron_rotate(plain + shifted, *(k.T.to(plain) for k in found.turns)) - plain

    def adapter(
        self,
        weights: dict[str, WeightSource],
        cache: BasisCache | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Converted:
        """The same as an adapter of our soda, layer by layer; exact.

        Raises SettingError where a K has another size than ours, or is not orthogonal.
        """
        method, layers = make_method("soda"), {}
        for name, layer in self._layers.items():
            params = dict(zip(("k1", "k2", "k3"), layer.turns)) | {"delta": layer.delta}
            sizes = tuple(len(k) for k in layer.turns)
            wrong = method.check(params, self.shapes[name], len(layer.delta))
            ours = kron_factors(self.shapes[name][1])
            if sizes != ours or wrong:
                raise SettingError(
                    f"{self.name}, layer {name}: found rotations of {' x '.join(map(str, sizes))}"
                    f"{f' ({wrong})' if wrong else ''}; an adapter of this package has {' x '.join(map(str, ours))} "
                    "there. Write a difference, which loses nothing (--to diff), or a LoRA (--to lora --rank 64)"
                )
        for i, (name, layer) in enumerate(self._layers.items(), 1):
            if cancelled is not None and cancelled():
                raise Cancelled("the conversion was cancelled; nothing was written")
            basis = decompose(fetch(weights[name]), cache=cache)
            params = dict(zip(("k1", "k2", "k3"), layer.turns)) | {"delta": layer.delta}
            change = method.delta(basis, {part: p.to(basis.s) for part, p in params.items()})
            evidence = make_evidence(name, basis, change, sketch=False)
            layers[name] = AdapterLayer(name, self.shapes[name], params, None, None, evidence)
            if progress is not None:
                progress(i, len(self._layers), name)
        return Converted(Adapter(method, layers, {}, "compact"), Residual(dict.fromkeys(layers, 0.0)))

    def _found(self, layer: str) -> _Layer:
        if layer not in self._layers:
            raise UnknownLayerError(f"{self.name} has no layer {layer!r}; it has {len(self.shapes)}")
        return self._layers[layer]


def injected(module: nn.Module, parents: Iterable[str]) -> list[str]:
    """The paths of the Linears that SODA's injector replaces, in its order."""
    wanted, paths = set(parents), []
    for outer, parent in module.named_modules():
        if type(parent).__name__ in wanted:
            inside = [name for name, m in parent.named_modules() if isinstance(m, nn.Linear)]
            paths += [f"{outer}.{name}" if outer else name for name in inside]
    return paths


def _read(
    path: Path, table: str, tensors: list[Tensor], part: Part, base: Base
) -> Iterator[tuple[str, tuple[int, ...], _Layer]]:
    parents = _PARENTS["unet" if part.field == "unet" else "text_encoder"]
    paths, rename = injected(part.module, parents), renamer(part.prefix, base.family)
    if len(tensors) != 4 * len(paths):
        expected = f"{4 * len(paths)}, four for each of the {len(paths)} layers of {base.name}"
        raise refusal(path, f"the list {table}", f"{len(tensors)} tensors", expected, _ADVICE)
    for i, name in enumerate(paths):
        *turns, delta = (t.detach().float() for t in tensors[4 * i : 4 * i + 4])
        shape = tuple(part.module.get_submodule(name).weight.shape)
        _check(path, f"{table}, layer {name}", turns, delta, shape)
        yield rename(name), shape, _Layer(tuple(turns), delta)


def _check(path: Path, what: str, turns: list[Tensor], delta: Tensor, shape: tuple[int, ...]) -> None:
    sizes = [tuple(k.shape) for k in turns]
    square = all(len(size) == 2 and size[0] == size[1] for size in sizes)
    inputs = sizes[0][0] * sizes[1][0] * sizes[2][0] if square else 0
    if inputs != shape[1] or tuple(delta.shape) != (min(shape),):
        found = f"rotations {sizes} and {tuple(delta.shape)} shifts"
        raise refusal(path, what, found, f"those of a weight of {shape}", _ADVICE)
    if not all(bool(torch.isfinite(t).all()) for t in (*turns, delta)):
        raise refusal(path, what, "NaN or infinity", "finite numbers", "Take another file")


def _flat(found: list) -> Iterator[Tensor]:
    """The tensors of a list, which may hold lists of one each."""
    for item in found:
        if isinstance(item, Tensor) and item.is_floating_point():
            yield item
        elif isinstance(item, (list, tuple)):
            yield from _flat(list(item))
