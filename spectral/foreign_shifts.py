"""Spectral shifts of svdiff-pytorch (`spectral_shifts.safetensors`, `spectral_shifts_te.safetensors`) as adapters.

`<module path>.delta` (k,): W' = U diag(relu(sigma + delta)) V^T, as ours; nothing says on which base. A norm's gain w
is a matrix of one row there, so it has one number: w' = w relu(|w| + delta) / |w|, a shift of every channel in ours.
The embeddings of tokens and positions are shifted too, for which an adapter has no place; neither has ours for shifts
of directions whose sigma is 0, which no machine could repeat.

Singular values are counted on the weight rounded to fp16 here, and as loaded there; on a base in fp16 that is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .adapter import Adapter, AdapterLayer
from .basis import Progress, WeightSource, decompose, fetch
from .cache import BasisCache
from .container import refusal
from .convert import Residual
from .converted import Converted
from .errors import Cancelled, WrongBaseError
from .evidence import make_evidence
from .gains import Gain, gain_fingerprint
from .lora_keys import Place, layer_names, read_place
from .methods import method as make_method
from .tensors import TensorFile

_END = ".delta"
_EMBEDDINGS = ("token_embedding", "position_embedding")


def is_shifts(shapes: Mapping[str, object]) -> bool:
    """Whether a file with tensors of these names is one of svdiff-pytorch."""
    return bool(shapes) and all(key.endswith(_END) for key in shapes)


def from_shifts(
    files: list[TensorFile],
    weights: Mapping[str, WeightSource],
    *,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Converted:
    """The compact adapter of one or two such files (UNet, text encoder), made on the base `weights`, layer by layer.

    Raises AdapterFileError for contents that do not fit together, WrongBaseError for a base without the layers or of
    other shapes, Cancelled when cancelled() turns true.
    """
    places = [(file, key, read_place(key[: -len(_END)])) for file in files for key in file.shapes]
    names = _names(places, weights)
    layers: dict[str, AdapterLayer] = {}
    gains: dict[str, Gain] = {}
    lost: list[str] = []
    errors: dict[str, tuple[float, float]] = {}
    for i, (file, key, place) in enumerate(places, 1):
        if cancelled is not None and cancelled():
            raise Cancelled("the conversion was cancelled; nothing was written")
        name, (delta,) = names[place], file.read([key])
        if any(place[1].endswith(end) for end in _EMBEDDINGS):
            lost += [key] if bool(delta.any()) else []
        elif name not in weights:
            raise WrongBaseError(
                f"{file.path.name}: the base has no layer {name}, for {key}; choose the base it is for"
            )
        else:
            weight = fetch(weights[name])
            if weight.ndim == 1:
                gains[name] = _gain(file.path, name, weight, delta)
            else:
                layers[name], errors[name] = _layer(file.path, name, weight, delta, cache)
        if progress is not None:
            progress(i, len(places), name)
    method = make_method("svdiff", norms=True) if gains else make_method("svdiff")
    return Converted(Adapter(method, layers, {}, "compact", gains), _residual(errors), tuple(_notes(lost)))


def _names(places: list[tuple[TensorFile, str, Place]], weights: Mapping[str, WeightSource]) -> dict[Place, str]:
    """Which layer of the base each place is; the base says of which family they are."""
    wide = next((name for name in weights if name.endswith("attn2_to_k")), None)
    width = None if wide is None else fetch(weights[wide]).shape[1]
    said = {"ss_base_model_version": "sdxl"} if any(name.startswith("lora_te2_") for name in weights) else {}
    return layer_names({place for _, _, place in places}, width, said)[0]


def _layer(
    path: Path, name: str, weight: Tensor, delta: Tensor, cache: BasisCache | None
) -> tuple[AdapterLayer, tuple[float, float]]:
    """The layer, and the norms of what it cannot hold and of the whole change."""
    basis = decompose(weight, cache=cache)
    if delta.shape != basis.s.shape:
        found, expected = f"{tuple(delta.shape)} shifts", f"{len(basis.s)}, for a weight of {tuple(weight.shape)}"
        raise refusal(path, f"layer {name}", found, expected, "Choose the base it was trained on")
    s = basis.s.cpu().double()
    moved = (s + delta.double()).clamp_min(0) - s
    change = make_method("svdiff").delta(basis, {"delta": delta.to(basis.s)})
    evidence = make_evidence(name, basis, change, sketch=False)
    layer = AdapterLayer(name, tuple(weight.shape), {"delta": delta}, None, None, evidence)
    return layer, (float(moved[~basis.live.cpu()].norm()), float(moved.norm()))


def _gain(path: Path, name: str, gain: Tensor, delta: Tensor) -> Gain:
    if delta.shape != (1,):
        raise refusal(path, f"norm {name}", f"{tuple(delta.shape)} shifts", "one", "Choose the base it was trained on")
    w = gain.detach().double().cpu()
    length = w.norm()
    shift = w * ((length + delta.double()).clamp_min(0) / length - 1) if float(length) else torch.zeros_like(w)
    return Gain(name, shift.float(), gain_fingerprint(gain))


def _residual(errors: Mapping[str, tuple[float, float]]) -> Residual:
    whole = sum(size**2 for _, size in errors.values())
    lost = sum(error**2 for error, _ in errors.values())
    per_layer = {name: error / size if size else 0.0 for name, (error, size) in errors.items()}
    return Residual(per_layer, (lost / whole) ** 0.5 if whole else 0.0)


def _notes(lost: list[str]) -> Iterator[str]:
    yield "The file names no base; if this is not the one it was trained on, the adapter does something else."
    if lost:
        yield (
            f"It also shifts {' and '.join(lost)}, for which an adapter has no place; they are left out, so the text "
            "is read a little differently."
        )
