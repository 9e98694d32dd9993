"""Checkpoints of the authors' code of Spectral Adapter (arXiv 2405.13952) as adapters that carry their frames.

For every layer they hold all of U, S, V, the base's weight and bias, and what was trained: A and B, and a vector C,
which the paper does not have. Of that, r columns are needed, which is a hundredth.

    additive  A (m, r), B (n, r), C (r,):  W' = (U_I + A)(S_I + C)(V_I + B)^T + rest
    rotation  A (r, r), B (r, r), C (r,):  W' = (U_I R(A)) (S_I C) (V_I R(B))^T + rest,  R(X) = (I - Q)(I + Q)^-1,
              Q = (X - X^T)/2

Both are exact here wherever no sigma of I is 0. Additive: C goes into A_U = (U + A)(S + C)/S - U. Rotation: C = 1 is
ours with Q' = -Q; another C stretches as well as turns, and becomes additive with A_U = U (M/S - I) and M the core
R(A) S C R(B)^T.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .adapter import Adapter, AdapterLayer
from .basis import Basis, content_hash
from .change import Change, distance, norm
from .columns import Columns, ColumnsLike
from .container import refusal
from .convert import Residual
from .converted import Converted
from .errors import SettingError
from .linalg import NULL
from .lora_keys import layer_names, read_place
from .methods import method as make_method

_TRAINED = ("spectral_A", "spectral_B", "spectral_C")
_PARTS = (*_TRAINED, "U", "S", "V")
_WEIGHT = "original_module.weight"
_ADVICE = "Take the file that the authors' training wrote"
_STILL = 1e-6  # how far C may be from 1 in a rotation that is written as one


@dataclass(frozen=True)
class _Layer:
    """One layer of such a checkpoint: name, shape of the weight, and its tensors in fp64."""

    name: str
    shape: tuple[int, ...]
    columns: tuple[int, ...]
    u: Tensor
    s: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    sigma_max: float
    fingerprint: str

    @property
    def rotates(self) -> bool:
        return self.a.shape == (len(self.columns),) * 2 and self.u.shape[0] != len(self.columns)

    @property
    def still(self) -> bool:
        """Whether a rotation leaves the singular values alone."""
        return bool((self.c - 1).abs().max() <= _STILL)

    def change(self) -> Change:
        """W' - W as the authors' code computes it: stacked factors, up (m, 2r), down (2r, n)."""
        if self.rotates:
            return self.u @ (self.core() - torch.diag(self.s)), self.v.T
        left, right = self.u + self.a, self.v + self.b
        up = torch.cat([self.a * (self.s + self.c) + self.u * self.c, left * (self.s + self.c)], 1)
        return up, torch.cat([self.v, right - self.v], 1).T

    def core(self) -> Tensor:
        return (_cayley(self.a) * (self.s * self.c)) @ _cayley(self.b).T


def is_official(content: object) -> bool:
    """Whether what a pickle holds is such a checkpoint."""
    parts = (_table(content, part) for part in ("unet", "text_encoder"))
    return any(str(key).endswith("spectral_A") for part in parts for key in part)


def from_official(content: object, path: Path, columns: ColumnsLike = None) -> Converted:
    """The adapter in a checkpoint of the authors' code, fp32, layer by layer.

    columns: those it was trained on, which no such file says; block 0, the first r, unless given. Raises
    AdapterFileError for contents that do not fit together, SettingError for columns that do not, and for a C that
    moves a singular value of 0.
    """
    layers = list(_read(content, path, columns))
    turning = all(layer.rotates and layer.still for layer in layers)
    stretched = any(layer.rotates and not layer.still for layer in layers)
    ranks = {len(layer.columns) for layer in layers}
    chosen = Columns.parse(columns if columns is not None else max(ranks))
    method = make_method("rotation" if turning else "additive", columns=chosen.text)
    made = {layer.name: _turned(layer) if turning else _added(layer) for layer in layers}
    adapter = Adapter(method, made, {}, "portable")
    return Converted(adapter, _residual(adapter, layers), tuple(_notes(content, columns, chosen, stretched)))


def _notes(content: object, given: ColumnsLike, chosen: Columns, stretched: bool) -> Iterator[str]:
    if given is None:
        yield (
            f"The file does not say which columns it was trained on; taken: {chosen.text}, block 0. A concept that was "
            "trained on another block (spectral_idx) needs --columns, such as top:8@8 for block 1."
        )
    if stretched:
        yield (
            "Its rotations also changed the singular values, which no rotation holds; written as additive, which "
            "holds both exactly."
        )
    words = [str(word) for word in _table(content, "new_concept_embedding")]
    if words:
        yield (
            f"It also trained the words {' '.join(words)}, one vector for each cross-attention layer, which no adapter "
            "holds; without them the concept answers to its class word alone."
        )


def _read(content: object, path: Path, columns: ColumnsLike) -> Iterator[_Layer]:
    found: defaultdict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    for part in ("text_encoder", "unet"):
        for key, t in _table(content, part).items():
            end = next((end for end in (*_PARTS, _WEIGHT) if str(key).endswith(f".{end}")), None)
            if end is not None and isinstance(t, Tensor) and t.is_floating_point():
                found[part, str(key)[: -len(end) - 1]][end] = t.detach()
    places = {place: read_place(f"{place[0]}.{place[1]}") for place in found}
    names = layer_names(set(places.values()), _text_width(found), {})[0]
    for place, tensors in found.items():
        yield _layer(path, names[places[place]], tensors, columns)


def _table(content: object, part: str) -> dict:
    found = content.get("params", content) if isinstance(content, dict) else {}
    found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _text_width(found: Mapping[tuple[str, str], Mapping[str, Tensor]]) -> int | None:
    keys = (t["V"] for (_, path), t in found.items() if path.endswith("attn2.to_k") and "V" in t)
    return next((v.shape[0] for v in keys if v.ndim == 2), None)


def _layer(path: Path, name: str, tensors: Mapping[str, Tensor], columns: ColumnsLike) -> _Layer:
    if missing := [part for part in _PARTS if part not in tensors]:
        raise refusal(path, f"layer {name}", f"no {missing[0]}", "A, B, C, U, S and V", _ADVICE)
    u, s, v, a, b, c = (tensors[part] for part in ("U", "S", "V", *_TRAINED))
    if [t.ndim for t in (u, s, v, a, b, c)] != [2, 1, 2, 2, 2, 1] or not all(t.numel() for t in tensors.values()):
        raise refusal(path, f"layer {name}", "tensors of other dimensions", "U, V, A, B matrices, S, C lists", _ADVICE)
    (m, n), r, k = (u.shape[0], v.shape[0]), len(c), len(s)
    shapes = {"additive": ((m, r), (n, r)), "rotation": ((r, r), (r, r))}
    if u.shape != (m, k) or v.shape != (n, k) or (tuple(a.shape), tuple(b.shape)) not in shapes.values():
        what = f"U {tuple(u.shape)}, S {tuple(s.shape)}, V {tuple(v.shape)}, A {tuple(a.shape)}, B {tuple(b.shape)}"
        raise refusal(path, f"layer {name}", what, f"those of rank {r}", _ADVICE)
    chosen = Columns.parse(columns if columns is not None else r).resolve(k)
    if len(chosen) != r:
        raise SettingError(f"{path.name}, layer {name}: found {len(chosen)} columns chosen, expected {r}, its rank")
    where = torch.tensor(chosen)
    weight = tensors.get(_WEIGHT)
    layer = _Layer(
        name,
        (m, n) if weight is None else tuple(weight.shape),
        chosen,
        *(t.double() for t in (u[:, where], s[where], v[:, where], a, b, c)),
        sigma_max=float(s.max()),
        fingerprint="" if weight is None else content_hash(weight),
    )
    _check(path, layer)
    return layer


def _check(path: Path, layer: _Layer) -> None:
    if layer.shape[0] * torch.Size(layer.shape[1:]).numel() != layer.u.shape[0] * layer.v.shape[0]:
        raise refusal(path, f"layer {layer.name}", f"a weight of shape {layer.shape}", "that of U and V", _ADVICE)
    if not all(bool(torch.isfinite(t).all()) for t in (layer.u, layer.s, layer.v, layer.a, layer.b, layer.c)):
        raise refusal(path, f"layer {layer.name}", "NaN or infinity", "finite numbers", "Take another file")
    moved = (layer.c if not layer.rotates else layer.s * (layer.c - 1)).abs() > 0
    if bool((moved & (layer.s <= NULL * layer.sigma_max)).any()):
        raise SettingError(
            f"{path.name}, layer {layer.name}: its C moves a singular value of 0, which no additive adapter can; "
            "choose the columns that were trained"
        )


def _added(layer: _Layer) -> AdapterLayer:
    """A_U takes up C: where sigma is 0 so is C, and A_U is A."""
    s = layer.s.where(layer.s > 0, 1)
    if layer.rotates:
        a_u, a_v = layer.u @ (layer.core() / s - torch.eye(len(s), dtype=s.dtype)), torch.zeros_like(layer.v)
    else:
        a_u, a_v = layer.a + (layer.u + layer.a) * (layer.c / s), layer.b
    return _made(layer, {"a_u": a_u, "a_v": a_v})


def _turned(layer: _Layer) -> AdapterLayer:
    """Ours is (I + Q)(I - Q)^-1 with the upper triangle of Q as parameter."""
    i, j = torch.triu_indices(*layer.a.shape, 1)
    return _made(layer, {name: _skew(x)[i, j].neg() for name, x in (("q_u", layer.a), ("q_v", layer.b))})


def _made(layer: _Layer, params: Mapping[str, Tensor]) -> AdapterLayer:
    frames = Basis(
        layer.s.float(),
        layer.columns,
        (layer.u.shape[0], layer.v.shape[0]),
        u=layer.u.float(),
        v=layer.v.float(),
        sigma_max=layer.sigma_max,
        fingerprint=layer.fingerprint,
    )
    return AdapterLayer(layer.name, layer.shape, {n: p.float() for n, p in params.items()}, layer.columns, frames)


def _residual(adapter: Adapter, layers: list[_Layer]) -> Residual:
    """How far the adapter is from its file, as it will be stored: frames and parameters in fp16."""
    error, whole, per_layer = 0.0, 0.0, {}
    for layer in layers:
        made = adapter.layers[layer.name]
        groups = adapter.method.groups
        params = {n: p if groups[n].exact else p.half().float() for n, p in made.params.items()}
        pair = adapter.method.factors(made.frames.half_rounded(), params)
        true = layer.change()
        num, den = distance(tuple(t.double() for t in pair), true), norm(true)
        error, whole = error + num**2, whole + den**2
        per_layer[layer.name] = num / den if den else 0.0
    return Residual(per_layer, (error / whole) ** 0.5 if whole else 0.0)


def _skew(x: Tensor) -> Tensor:
    return (x - x.T) / 2


def _cayley(x: Tensor) -> Tensor:
    """The authors' (I - Q)(I + Q)^-1 of Q = (X - X^T)/2, X (r, r) fp64."""
    q, eye = _skew(x), torch.eye(len(x), dtype=x.dtype)
    return torch.linalg.solve(eye + q, eye - q)  # both factors commute
