"""From any change of weights to an adapter: a LoRA, another adapter, a fine-tuned checkpoint minus its base.

Per layer the parameters of the chosen method whose change comes nearest to the one that is wanted (`Method.fit`), and
the share of its energy that they hold: 1 - ||D - D'||^2 / ||D||^2, with D' the change as the file will hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import Adapter, AdapterLayer, percent
from .basis import Basis, Progress, WeightSource, fetch
from .cache import BasisCache
from .change import Change, distance, norm
from .choose import best_columns
from .errors import SettingError, UnknownLayerError, WrongBaseError
from .evidence import make_evidence
from .gains import Gain, gain_fingerprint
from .hostmeta import WRITTEN
from .matching import change_of, check_fits, on_device
from .methods import Method
from .source import Source
from .stream import with_bases

# Of one file, its format or its base: true of what is read, not of what is made of it.
_OF_THE_FILE = {
    f"modelspec.{key}" for key in ("hash_sha256", "date", "architecture", "implementation", "sai_model_spec")
}
_DESCRIPTION = "modelspec.description"
_WORDS = "spectral.trigger_words"


@dataclass(frozen=True)
class Extracted:
    """An adapter made from another change.

    explained: {layer: share of ||D||^2 that it holds}; 1 is all of it, and 0 what no change at all would hold. total:
    the share in all. missing: layers of the source that the base does not have.
    unchanged: layers whose change is zero, left out. left_out: norms whose shift the method does not hold.
    """

    adapter: Adapter
    explained: dict[str, float]
    total: float
    missing: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What it holds and what not, in sentences."""
        worst, best = (pick(self.explained, key=self.explained.__getitem__) for pick in (min, max))
        method = self.adapter.method
        lines = [
            f"{method.name}, columns {method.columns.text}, {len(self.explained)} layers: holds {percent(self.total)} "
            "of the change's energy.",
            f"Least {percent(self.explained[worst])} in {worst}, most {percent(self.explained[best])} in {best}.",
        ]
        for names, what in (
            (self.missing, "layers are not in this base"),
            (self.unchanged, "layers are unchanged and left out"),
            (self.left_out, "norm gains are left out; svdiff with norms holds them"),
        ):
            if names:
                more = ", ..." if len(names) > 3 else ""
                lines.append(f"{len(names)} {what}: {', '.join(names[:3])}{more}.")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text


def extract(
    source: Source,
    weights: Mapping[str, WeightSource],
    method: Method,
    *,
    only: Collection[str] | None = None,
    choose: bool = False,
    base_name: str = "",
    base_hash: str = "",
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Extracted:
    """The adapter of `method` whose change comes nearest to that of `source`, on the layers that `weights` has.

    weights: {layer: the base's untouched weight}. only: the source's layers and norms to take, None for all. choose:
    take as many columns as the method has, but in each layer those that hold the change best (`best_columns`); needs
    all columns of every weight. svdiff, additive and rotation are the optimum for their columns, soda a local one.
    Parameters are rounded to fp16 as files hold them, so the numbers are those of the file. Frames are kept for methods
    with portable files; of the others the evidence is made at once, so that no more than some layers are in memory.
    base_name and base_hash go into the adapter's metadata.
    Raises WrongBaseError where no layer is shared, a shape differs or the source refuses this base; SettingError for
    columns that do not fit; Cancelled.
    """
    asked = [name for name in source.shapes if only is None or name in only]
    shared = [name for name in asked if name in weights]
    if not shared:
        raise WrongBaseError(_nothing_shared(source, weights))
    if choose and method.columns.kind == "all":
        raise SettingError(f"{method.name} with all columns leaves nothing to choose; give a rank")
    if any(source.needs_weight(name) for name in shared):
        source.check(weights, cache=cache, cancelled=cancelled)
    layers, energy = {}, {}
    bases = with_bases(shared, weights, None if choose else method.columns, cache=cache, cancelled=cancelled)
    for i, (name, weight, basis) in enumerate(bases, 1):
        wanted = _plain(source.change(name, weight, cache))
        if (size := norm(wanted) ** 2) > 0:
            layers[name], missed = _nearest(name, tuple(weight.shape), method, basis, wanted, choose)
            energy[name] = (missed, size)
        if progress is not None:
            progress(i, len(shared), name)
    if not layers:
        raise WrongBaseError(f"{source.name} changes none of the {len(shared)} layers it shares with this base")
    shifts = {name: source.gain(name) for name in source.gains if name in weights and (only is None or name in only)}
    moved = {name: shift for name, shift in shifts.items() if bool(shift.any())}
    taken = moved if method.shifts_gains else {}
    gains = {name: Gain(name, shift, gain_fingerprint(fetch(weights[name]))) for name, shift in taken.items()}
    held = 1 - sum(missed for missed, _ in energy.values()) / sum(size for _, size in energy.values())
    said = f"Extracted from {source.name} ({source.kind}): holds {percent(held)} of the energy of its change"
    base = {"spectral.base_name": base_name, "spectral.base_hash": base_hash}
    metadata = {_DESCRIPTION: said} | told_of(source) | {key: text for key, text in base.items() if text}
    return Extracted(
        Adapter(method, layers, metadata, gains=gains),
        {name: 1 - missed / size for name, (missed, size) in energy.items()},
        held,
        missing=tuple(name for name in asked if name not in weights),
        unchanged=tuple(name for name in shared if name not in layers),
        left_out=tuple(name for name in moved if name not in gains),
    )


class Difference(Source):
    """What was trained into a checkpoint: its weights minus its base's, fetched when a layer is asked for."""

    def __init__(
        self,
        tuned: Mapping[str, WeightSource],
        base: Mapping[str, WeightSource],
        shapes: Mapping[str, tuple[int, ...]],
        name: str,
        metadata: Mapping[str, str] | None = None,
    ):
        self._tuned, self._base = tuned, base
        self.name, self.kind, self.metadata = name, "difference", dict(metadata or {})
        self.shapes = {layer: shape for layer, shape in shapes.items() if len(shape) > 1}
        self.gains = {norm_: shape[0] for norm_, shape in shapes.items() if len(shape) == 1}

    def change(self, layer: str, weight: Tensor | None = None, cache: BasisCache | None = None) -> Tensor:
        self._check_layer(layer, weight)
        found = self._difference(layer).flatten(1)
        return found if weight is None else found.to(weight.device)

    def gain(self, norm: str) -> Tensor:
        return self._difference(norm).cpu() if norm in self.gains else super().gain(norm)

    def _check_layer(self, layer: str, weight: Tensor | None) -> None:
        if layer not in self.shapes:
            raise UnknownLayerError(f"{self.name} has no layer {layer!r}; it has {len(self.shapes)}")
        if weight is not None:
            check_fits(self.name, layer, self.shapes[layer], weight)

    def _difference(self, name: str) -> Tensor:
        tuned = fetch(self._tuned[name])
        return tuned.float() - fetch(self._base[name]).to(tuned.device).float()


def difference(
    tuned: Mapping[str, WeightSource],
    base: Mapping[str, WeightSource],
    name: str,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Difference:
    """The change that turns `base` into `tuned`, of every layer and norm that both have; nothing is subtracted yet.

    shapes: of the weights, where known without fetching them. Raises WrongBaseError where nothing is shared, or the
    models differ in shape.
    """
    shared = [layer for layer in tuned if layer in base]
    if not shared:
        raise WrongBaseError(
            f"{name} and the base share no layer: found layers such as {next(iter(tuned), 'none at all')!r}, expected "
            f"layers such as {next(iter(base), 'none at all')!r}; give the model that it was trained from"
        )
    known = shapes or {}
    found = {layer: tuple(known.get(layer) or fetch(tuned[layer]).shape) for layer in shared}
    for layer, shape in found.items():
        theirs = base[layer].shape if isinstance(base[layer], Tensor) else shape
        if tuple(theirs) != shape:
            raise WrongBaseError(
                f"layer {layer}: {name} has a weight of shape {shape}, the base one of {tuple(theirs)}; give the model "
                "that it was trained from"
            )
    return Difference(tuned, base, found, name, metadata)


def _nearest(
    name: str, shape: tuple[int, ...], method: Method, basis: Basis, wanted: Change, choose: bool
) -> tuple[AdapterLayer, float]:
    """The layer, and ||D - D'||^2."""
    with torch.no_grad():
        if choose:
            rank = len(method.columns.resolve(basis.k))
            basis = basis.select(best_columns(method, shape, basis, wanted, rank))
        basis = basis.half_rounded() if method.portable else basis
        fitted = method.fit(shape, basis, wanted)
        params = {part: _as_stored(p, exact=method.groups[part].exact) for part, p in fitted.items()}
        columns = None if basis.full else basis.columns
        layer = AdapterLayer(name, shape, params, columns)
        here = on_device(basis, layer)
        pair = method.factors(basis, here)
        missed = distance(wanted, method.delta(basis, here) if pair is None else pair) ** 2
        if method.portable:
            layer.frames = basis.fetched_from(None).to("cpu")
        else:
            change = change_of(method, layer, basis, here)
            layer.evidence = make_evidence(name, basis, change, sketch=method.sign_sensitive)
    return layer, missed


def _as_stored(p: Tensor, *, exact: bool) -> Tensor:
    """As a file of fp16 holds it; unrounded where fp16 ends, which `save` then says."""
    plain = p.detach().to("cpu", torch.float32)
    half = plain.half().float()
    return plain if exact or not bool(torch.isfinite(half).all()) else half


def _plain(change: Change) -> Change:
    return change.detach().float() if isinstance(change, Tensor) else (change[0].detach(), change[1].detach())


def told_of(source: Source) -> dict[str, str]:
    """What the source's metadata says to people, and its trigger words; nothing of its base or of its file."""
    kept = {key: text for key, text in source.metadata.items() if key.startswith("modelspec.") or key == _WORDS}
    if kept.get(_DESCRIPTION, "").startswith(WRITTEN):
        del kept[_DESCRIPTION]
    return {key: text for key, text in kept.items() if key not in _OF_THE_FILE}


def _nothing_shared(source: Source, weights: Mapping[str, WeightSource]) -> str:
    theirs = next(iter(weights), "none at all")
    return (
        f"none of the {len(source.shapes)} layers of {source.name} is in this base: found layers such as "
        f"{next(iter(source.shapes), 'none at all')!r}, expected layers such as {theirs!r}; give the kind of model "
        "(SD1.5, SD2 or SDXL) that it was made for"
    )
