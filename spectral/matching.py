"""One adapted layer, and how it fits one weight.

A portable layer carries its frames and applies to any related weight as trained. A compact layer carries parameters
and evidence: its basis is decomposed here, aligned by the sketch where signs matter, and the probe says how far off
the resulting change is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from .basis import Basis, content_hash, decompose, flatten
from .cache import BasisCache
from .errors import SpectralError, WrongBaseError
from .evidence import FINGERPRINT_DIGITS, Change, Evidence, align, probe_error
from .gains import Gain, check_gain_shape, gain_fingerprint
from .methods.base import Method, matrix_shape
from .ops import LinearMap

RELATED = 0.9  # alignment of portable frames below which a remark is added
_MARGIN = 4  # extra columns on both sides, searched when the base differs: a column may have changed places
_NOISE = 1e-6  # of sigma, per entry: what rounding leaves of a change that is zero


@dataclass
class AdapterLayer:
    """One adapted weight.

    name: kohya's spelling. shape: the weight's own, (m, n) or (c_out, c_in, kh, kw). columns: which of the k singular
    directions, None for all. frames: present in portable files and fresh from training. evidence: read from a file;
    None for a layer that has its frames, whose evidence is made when it is saved.
    """

    name: str
    shape: tuple[int, ...]
    params: dict[str, Tensor]
    columns: tuple[int, ...] | None = None
    frames: Basis | None = None
    evidence: Evidence | None = None

    @property
    def matrix(self) -> tuple[int, int]:
        """(m, n) of the flattened weight."""
        return matrix_shape(self.shape)

    @property
    def indices(self) -> tuple[int, ...]:
        """The columns written out."""
        return tuple(range(min(self.matrix))) if self.columns is None else self.columns


def check_shape(layer: AdapterLayer, weight: Tensor) -> None:
    """Raises WrongBaseError unless the weight has the layer's shape; (m, n) and (m, n, 1, 1) are the same."""
    check_fits("the adapter", layer.name, layer.shape, weight)


def check_fits(who: str, layer: str, shape: tuple[int, ...], weight: Tensor) -> None:
    """Raises WrongBaseError unless the weight has this shape; (m, n) and (m, n, 1, 1) are the same."""
    if trimmed(weight.shape) != trimmed(shape):
        raise WrongBaseError(
            f"layer {layer}: the model's weight has shape {tuple(weight.shape)}, {who} was trained on "
            f"{tuple(shape)}; load the kind of model it was trained on"
        )


def trimmed(shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def find_basis(layer: AdapterLayer, method: Method, weight: Tensor | None, cache: BasisCache | None = None) -> Basis:
    """The basis in which the layer's parameters are meant.

    Its frames where it carries them; else the weight's decomposition, aligned by the sketch for sign-sensitive methods.
    Raises WrongBaseError for a compact layer without a weight.
    """
    if layer.frames is not None:
        return layer.frames
    if weight is None:
        raise WrongBaseError(
            f"layer {layer.name} comes from a compact file, which holds no frames; pass the weight of the base model"
        )
    basis = decompose(weight, layer.columns, cache=cache)
    wider = wider_columns(layer, method, basis)
    return aligned(layer, method, basis if wider is None else decompose(weight, wider, cache=cache))


def wider_columns(layer: AdapterLayer, method: Method, basis: Basis) -> tuple[int, ...] | None:
    """The columns to search on another weight than the layer's own, where signs matter; else None."""
    if not method.sign_sensitive or layer.columns is None or same_weight(_evidence(layer), basis):
        return None
    reach = range(-_MARGIN, _MARGIN + 1)
    wider = tuple(sorted({c + d for c in layer.columns for d in reach if 0 <= c + d < basis.k}))
    return wider if wider != layer.columns else None


def aligned(layer: AdapterLayer, method: Method, basis: Basis) -> Basis:
    """A fresh decomposition brought to the columns, signs and order that the layer was trained with.

    Methods that can be portable train on frames rounded to fp16, so theirs are rounded here too.
    """
    if method.sign_sensitive:
        basis = align(layer.name, _evidence(layer), basis, layer.indices)
    return basis.half_rounded() if method.portable else basis


def same_weight(evidence: Evidence, basis: Basis) -> bool:
    """Whether the basis belongs to the very weight (rounded to fp16) that the evidence was made of."""
    return bool(evidence.fingerprint) and basis.fingerprint[:FINGERPRINT_DIGITS] == evidence.fingerprint


def _evidence(layer: AdapterLayer) -> Evidence:
    if layer.evidence is None:
        raise SpectralError(f"layer {layer.name} has neither frames nor evidence; load it from a file or train it")
    return layer.evidence


def change_of(method: Method, layer: AdapterLayer, basis: Basis, params: Mapping[str, Tensor]) -> Change:
    """The layer's change in the cheapest form the probe can use: thin factors, or the map itself on activations."""
    pair = method.factors(basis, params)
    if pair is not None:
        return pair
    weight = basis.weight
    if weight is None:
        return method.delta(basis, params)
    return partial(_image, method, basis, params, _linear_map(weight, layer.shape))


def _linear_map(weight: Tensor, shape: tuple[int, ...]) -> LinearMap:
    module: nn.Linear | nn.Conv2d
    if len(shape) == 2:
        module = nn.Linear(shape[1], shape[0], bias=False, device="meta")
    else:
        module = nn.Conv2d(shape[1], shape[0], (shape[2], shape[3]), bias=False, device="meta")
    module.weight = nn.Parameter(weight.reshape(shape), requires_grad=False)
    return LinearMap(module)


def _image(method: Method, basis: Basis, params: Mapping[str, Tensor], op: LinearMap, x: Tensor) -> Tensor:
    """(W' - W) x (m, c) for x (n, c); a convolution sees every column as one patch."""
    with torch.no_grad():
        rows = x.to(op.weight).T.reshape(-1, *op.weight.shape[1:])
        y = method.apply(op, basis, params, rows) - op.base(rows)
    return y.reshape(x.shape[1], -1).T


def on_device(basis: Basis, layer: AdapterLayer) -> dict[str, Tensor]:
    return {name: p.detach().to(basis.s) for name, p in layer.params.items()}


@dataclass(frozen=True)
class LayerMatch:
    """How one layer fits one weight.

    basis: what to apply with, or None where the report does not keep it. match: 1 is perfect; compact: 1 - the probe's
    estimate of the relative error; portable: how well the frames still diagonalise this weight (information only).
    error2, change2: the probe's squared error and squared size. thin: up, down of the change at strength 1, where the
    probe has needed them.
    """

    basis: Basis | None
    match: float | None
    note: str = ""
    error2: float = 0.0
    change2: float = 0.0
    same: bool = False
    from_cache: bool = False
    thin: tuple[Tensor, Tensor] | None = None

    @property
    def verdict(self) -> LayerMatch:
        """The match without what is needed for applying."""
        return replace(self, basis=None, thin=None)


def match_frames(frames: Basis, weight: Tensor) -> LayerMatch:
    """Portable: match = 1 - ||U^T W V - Sigma|| / ||Sigma||."""
    if frames.full and frames.fingerprint and content_hash(weight).startswith(frames.fingerprint):
        # With all columns a hash is cheaper than the products, and fresh from training it is the usual case.
        return LayerMatch(frames, 1.0, same=True)
    w = flatten(weight).float()
    u, s, v = (t.to(w) for t in (frames.u, frames.s, frames.v))
    # Through the thinner product first: (W V) is m x r.
    off = u.T @ (w @ v)
    off.diagonal().sub_(s)
    match = max(0.0, 1.0 - float(off.norm() / s.norm().clamp_min(1e-30)))
    note = "" if match >= RELATED else "the model differs much from the one it was trained on"
    return LayerMatch(frames, match, note)


def match_gain(gain: Gain, weight: Tensor) -> LayerMatch:
    """A norm's gain needs its shape only. Raises WrongBaseError for another one."""
    check_gain_shape(gain, weight)
    same = bool(gain.base) and gain_fingerprint(weight) == gain.base
    return LayerMatch(None, None, "" if same else "another gain than it was trained on", same=same)


def match_probe(layer: AdapterLayer, method: Method, basis: Basis) -> LayerMatch:
    """Compact: the probe of the change in this basis against the stored one."""
    evidence = _evidence(layer)
    change = change_of(method, layer, basis, on_device(basis, layer))
    error2, change2 = probe_error(layer.name, basis.shape, evidence, change)
    same = same_weight(evidence, basis)
    floor = (_NOISE * float(evidence.sigma.norm())) ** 2 * evidence.probe.numel() if evidence.probe is not None else 0.0
    error2 = 0.0 if error2 <= floor and change2 <= floor else error2
    match = max(0.0, 1.0 - ratio(error2, change2))
    note = "" if same else "another weight than it was trained on"
    thin = change if isinstance(change, tuple) else None
    return LayerMatch(basis, match, note, error2, change2, same, basis.from_cache, thin)


def ratio(error2: float, change2: float) -> float:
    """The relative error; 0 where nothing is wrong, infinite where a change came out of none."""
    if error2 == 0:
        return 0.0
    return (error2 / change2) ** 0.5 if change2 > 0 else float("inf")
