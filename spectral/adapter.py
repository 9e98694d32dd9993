"""An adapter in memory: many layers of one method, and the check of all of them against a model."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from .basis import Basis, Progress, WeightSource, decompose_all, fetch
from .cache import BasisCache
from .errors import Cancelled, SettingError, UnknownLayerError, WrongBaseError
from .gains import Gain, check_gain_shape
from .matching import (
    RELATED,
    AdapterLayer,
    LayerMatch,
    aligned,
    check_shape,
    find_basis,
    match_frames,
    match_gain,
    match_probe,
    on_device,
    ratio,
    wider_columns,
)
from .methods.base import Method, Mode
from .threads import single_threaded

Profile = Literal["portable", "compact"]
OnMismatch = Literal["refuse", "force"]
LIMIT = 0.10  # estimated relative error of the change above which a compact adapter is refused
_CHUNK = 16  # layers decomposed at once; the full bases of a whole UNet would need 1 GB


@dataclass
class Adapter:
    """Layers of one method.

    metadata: strings for people and hosts; `spectral.*` and the hashes are rewritten at saving. profile: how it was
    read or will be saved; the method's own where None. gains: shifted norms, of a method that shifts them.
    """

    method: Method
    layers: dict[str, AdapterLayer]
    metadata: dict[str, str] = field(default_factory=dict)
    profile: Profile | None = None
    gains: dict[str, Gain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.profile is None:
            self.profile = "portable" if self.method.portable else "compact"

    def delta(
        self,
        layer: str,
        weight: Tensor,
        strength: float = 1.0,
        mode: Mode = "linear",
        cache: BasisCache | None = None,
    ) -> Tensor:
        """The change of one weight (of a gain, where `layer` is a norm), in its shape, fp32, on its device.

        Of a compact adapter the base is not judged here: `check_layers` does that for all layers together.
        Raises UnknownLayerError, WrongBaseError (another shape).
        """
        if (gain := self.gains.get(layer)) is not None:
            check_gain_shape(gain, weight)
            return gain.change(strength).to(weight.device)
        found = self._layer(layer)
        check_shape(found, weight)
        basis = find_basis(found, self.method, weight, cache).to(weight.device)
        return self.method.delta(basis, on_device(basis, found), strength, mode).reshape(weight.shape)

    def factors(
        self,
        layer: str,
        weight: Tensor | None = None,
        strength: float = 1.0,
        mode: Mode = "linear",
        cache: BasisCache | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """The change as up (m, R) @ down (R, n), or None where it has full rank.

        A compact layer needs `weight`. Raises UnknownLayerError, WrongBaseError (no weight, or another shape).
        """
        found = self._layer(layer)
        if weight is not None:
            check_shape(found, weight)
        basis = find_basis(found, self.method, weight, cache)
        if weight is not None:
            basis = basis.to(weight.device)
        return self.method.factors(basis, on_device(basis, found), strength, mode)

    def change(
        self,
        layer: str,
        match: LayerMatch,
        strength: float = 1.0,
        mode: Mode = "linear",
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """The change of one layer in the basis that a check has found for it (`check_layers`, on_match).

        up (m, R), down (R, n), or dense (m, n) where the change has full rank, (c,) for a norm; fp32, on the basis'
        device. columns (r,): a factor for each of the layer's columns (`Method.factors`); a norm has none.
        """
        if (gain := self.gains.get(layer)) is not None:
            return gain.change(strength)
        if match.thin is not None and mode == "linear" and columns is None:
            return match.thin[0] * strength, match.thin[1]
        if match.basis is None:
            raise ValueError(f"the match of layer {layer!r} is a verdict only; use it while on_match sees it")
        params = on_device(match.basis, self._layer(layer))
        columns = None if columns is None else columns.to(match.basis.s)
        pair = self.method.factors(match.basis, params, strength, mode, columns)
        return self.method.delta(match.basis, params, strength, mode, columns) if pair is None else pair

    @property
    def parameter_count(self) -> int:
        """Trained numbers, norms included."""
        of_layers = sum(p.numel() for layer in self.layers.values() for p in layer.params.values())
        return of_layers + sum(gain.shift.numel() for gain in self.gains.values())

    @property
    def trigger_words(self) -> list[str]:
        """The words that call the concept, as stored by `save`, else from ModelSpec's trigger phrase."""
        stored = self.metadata.get("spectral.trigger_words")
        if stored:
            return [str(word) for word in json.loads(stored)]
        phrase = self.metadata.get("modelspec.trigger_phrase", "")
        return [word.strip() for word in phrase.split(",") if word.strip()]

    @property
    def base_name(self) -> str:
        """The base model it was trained on, or ""."""
        return self.metadata.get("spectral.base_name", "")

    @property
    def title(self) -> str:
        """The name to show, or ""."""
        return self.metadata.get("modelspec.title", "")

    def _layer(self, name: str) -> AdapterLayer:
        if name not in self.layers:
            some = ", ".join(list(self.layers)[:3])
            raise UnknownLayerError(f"the adapter has no layer {name!r}; it has {len(self.layers)}, such as {some}")
        return self.layers[name]


def join(adapters: Iterable[Adapter]) -> Adapter:
    """One adapter of the layers of several, such as those of a UNet and its text encoders; parameters are shared.

    Method, metadata and profile are the first one's. Raises SettingError for different methods or settings, and where
    two have a layer of one name.
    """
    first, *rest = adapters
    joined = Adapter(first.method, dict(first.layers), dict(first.metadata), first.profile, dict(first.gains))
    for other in rest:
        if (other.method.name, other.method.settings) != (first.method.name, first.method.settings):
            found, expected = (f"{a.method.name} {a.method.settings}" for a in (other, first))
            raise SettingError(f"one file holds one method: found {found} beside {expected}")
        if twice := (joined.layers.keys() | joined.gains.keys()) & (other.layers.keys() | other.gains.keys()):
            raise SettingError(f"two of the adapters to join have a layer {min(twice)!r}; give them different prefixes")
        joined.layers |= other.layers
        joined.gains |= other.gains
    return joined


@dataclass(frozen=True)
class MatchReport:
    """How an adapter fits a model.

    layers: every layer that was checked; gains: every norm. unused: layers and norms of the file that the model does
    not have. misfits: those left out under "force" because their shape differs. error: the probe's estimate over all
    layers (compact), else None. alignment: mean over layers (portable), else None. seconds: decomposition and checks.
    """

    layers: dict[str, LayerMatch]
    unused: tuple[str, ...]
    misfits: tuple[str, ...]
    error: float | None
    alignment: float | None
    seconds: float
    summary: str
    gains: dict[str, LayerMatch] = field(default_factory=dict)

    @property
    def from_cache(self) -> int:
        return sum(m.from_cache for m in self.layers.values())

    @property
    def same(self) -> int:
        """Layers whose weight is, rounded to fp16, the very one it was trained on (compact)."""
        return sum(m.same for m in self.layers.values())

    @property
    def match(self) -> float | None:
        """1 - error for compact, the alignment for portable; 1 is perfect."""
        return self.alignment if self.error is None else max(0.0, 1.0 - self.error)

    def __str__(self) -> str:
        return self.summary


def check_layers(
    adapter: Adapter,
    weights: Mapping[str, WeightSource],
    *,
    on_mismatch: OnMismatch = "refuse",
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    model_name: str = "this model",
    on_match: Callable[[str, LayerMatch], None] | None = None,
    spot_checks: int | None = None,
) -> MatchReport:
    """Compare an adapter with a model's weights: {layer name: weight, or a function that fetches it}.

    Only the layers and norms they share are fetched. A compact adapter's bases are decomposed (in parallel, through
    `cache`). A norm only has to have the shape: its shift is added to any gain.
    on_match(layer, match) sees each match with its basis as it is made, to be used at once (`Adapter.change`): all the
    bases of an SD1.5 UNet would need 1 GB, so the report holds verdicts only. spot_checks judges only about so many
    layers with frames, evenly spread: their match is information, and costs as much as applying them.
    Raises WrongBaseError where no layer is shared, where shapes differ, and where the change of a compact adapter would
    be off by more than 10 %; on_mismatch="force" leaves out layers of another shape and applies the rest as it comes.
    Raises Cancelled when cancelled() turns true.
    """
    start = time.perf_counter()
    shared = [name for name in adapter.layers if name in weights]
    if not shared:
        raise WrongBaseError(_nothing_shared(adapter, weights, model_name))
    norms = [name for name in adapter.gains if name in weights]
    matches: dict[str, LayerMatch] = {}
    gains: dict[str, LayerMatch] = {}
    misfits: dict[str, str] = {}
    unjudged = _unjudged(adapter, shared, spot_checks)
    for name, match in itertools.chain(
        _matches(adapter, weights, shared, unjudged, cache, cancelled),
        _gain_matches(adapter, weights, norms),
    ):
        if isinstance(match, LayerMatch):
            if on_match is not None:
                on_match(name, match)
            (gains if name in adapter.gains else matches)[name] = match.verdict
        else:
            misfits[name] = match
        if progress is not None:
            progress(len(matches) + len(gains) + len(misfits), len(shared) + len(norms), name)
    if misfits and (on_mismatch == "refuse" or not matches):
        first = next(iter(misfits.values()))
        raise WrongBaseError(f"{len(misfits)} of {len(shared) + len(norms)} layers do not fit {model_name}. {first}")
    report = _report(adapter, matches, gains, misfits, time.perf_counter() - start)
    if report.error is not None and not report.error <= LIMIT and on_mismatch == "refuse":
        raise WrongBaseError(_too_far(adapter, report, model_name))
    return report


def _matches(
    adapter: Adapter,
    weights: Mapping[str, WeightSource],
    names: list[str],
    unjudged: set[str],
    cache: BasisCache | None,
    cancelled: Callable[[], bool] | None,
) -> Iterator[tuple[str, LayerMatch | str]]:
    """Layer by layer its match, or the sentence on its shape."""
    for i in range(0, len(names), _CHUNK):
        if cancelled is not None and cancelled():
            raise Cancelled("checking the adapter was cancelled; the model is unchanged")
        fetched: dict[str, Tensor] = {}
        for name in names[i : i + _CHUNK]:
            weight = fetch(weights[name])
            try:
                check_shape(adapter.layers[name], weight)
                fetched[name] = weight
            except WrongBaseError as e:
                yield name, str(e)
        bases = _decomposed(adapter, fetched, cache, cancelled)
        with single_threaded():
            matched = {
                name: LayerMatch(adapter.layers[name].frames, None)
                if name in unjudged
                else _match(adapter, name, weight, bases)
                for name, weight in fetched.items()
            }
        yield from matched.items()


def _gain_matches(
    adapter: Adapter, weights: Mapping[str, WeightSource], names: list[str]
) -> Iterator[tuple[str, LayerMatch | str]]:
    for name in names:
        try:
            yield name, match_gain(adapter.gains[name], fetch(weights[name]))
        except WrongBaseError as e:
            yield name, str(e)


def _unjudged(adapter: Adapter, names: list[str], spot_checks: int | None) -> set[str]:
    framed = [name for name in names if adapter.layers[name].frames is not None]
    every = 1 if spot_checks is None else max(1, len(framed) // spot_checks)
    return set(framed) - set(framed[::every])


def _match(adapter: Adapter, name: str, weight: Tensor, bases: dict[str, Basis]) -> LayerMatch:
    layer = adapter.layers[name]
    if layer.frames is not None:
        return match_frames(layer.frames, weight)
    return match_probe(layer, adapter.method, aligned(layer, adapter.method, bases.pop(name)))


def _decomposed(
    adapter: Adapter, weights: Mapping[str, Tensor], cache: BasisCache | None, cancelled: Callable[[], bool] | None
) -> dict[str, Basis]:
    """The bases of the layers that carry none; with more columns where these must be searched for."""
    bare = {name: adapter.layers[name].columns for name in weights if adapter.layers[name].frames is None}
    bases = _of_columns(bare, weights, cache, cancelled)
    wider = {name: wider_columns(adapter.layers[name], adapter.method, basis) for name, basis in bases.items()}
    return bases | _of_columns({n: c for n, c in wider.items() if c is not None}, weights, cache, cancelled)


def _of_columns(
    wanted: Mapping[str, tuple[int, ...] | None],
    weights: Mapping[str, Tensor],
    cache: BasisCache | None,
    cancelled: Callable[[], bool] | None,
) -> dict[str, Basis]:
    return decompose_all({name: weights[name] for name in wanted}, wanted, cache=cache, cancelled=cancelled)


def _report(
    adapter: Adapter,
    matches: dict[str, LayerMatch],
    gains: dict[str, LayerMatch],
    misfits: Mapping[str, str],
    seconds: float,
) -> MatchReport:
    probed = [m for name, m in matches.items() if adapter.layers[name].frames is None]
    framed = [m.match for name, m in matches.items() if adapter.layers[name].frames is not None and m.match is not None]
    error = ratio(sum(m.error2 for m in probed), sum(m.change2 for m in probed)) if probed else None
    alignment = sum(framed) / len(framed) if framed else None
    seen = matches.keys() | gains.keys() | misfits.keys()
    lost = tuple(name for name in (*adapter.layers, *adapter.gains) if name not in seen)
    report = MatchReport(matches, lost, tuple(misfits), error, alignment, seconds, summary="", gains=gains)
    return replace(report, summary=_summary(adapter, report))


def _summary(adapter: Adapter, report: MatchReport) -> str:
    lines = [f"{adapter.method.name}: {len(report.layers)} of {len(adapter.layers)} layers fit this model."]
    if report.error is not None:
        lines.append(f"The change matches what was trained to {percent(1 - report.error)}.")
        lines.append(f"{report.same} of {len(report.layers)} weights are the ones it was trained on.")
        lines.append(f"{report.from_cache} bases came from the cache.")
    if adapter.gains:
        same = sum(m.same for m in report.gains.values())
        lines.append(f"{len(report.gains)} of {len(adapter.gains)} norm gains fit, {same} are those it was trained on.")
    if report.alignment is not None:
        lines.append(f"Applied as trained; its directions agree with this model to {percent(report.alignment)}.")
        if report.alignment < RELATED:
            lines.append("This model differs much from the one it was trained on, so the effect may differ.")
    for names, what in ((report.unused, "not in this model"), (report.misfits, "left out, of another shape")):
        if names:
            more = ", ..." if len(names) > 3 else ""
            lines.append(f"{len(names)} layers are {what}: {', '.join(names[:3])}{more}.")
    lines.append(f"Checked in {report.seconds:.2f} s.")
    return "\n".join(lines)


def percent(fraction: float) -> str:
    """One decimal, never rounded up to 100."""
    value = max(0.0, fraction) * 100
    return f"{min(value, 99.9) if value < 99.995 else 100:.1f} %"


def _nothing_shared(adapter: Adapter, weights: Mapping[str, WeightSource], model_name: str) -> str:
    base = f" (trained on {adapter.base_name!r})" if adapter.base_name else ""
    theirs = next(iter(weights), "none at all")
    return (
        f"none of the adapter's {len(adapter.layers)} layers{base} is in {model_name}: found layers such as "
        f"{next(iter(adapter.layers), 'none at all')!r}, expected layers such as {theirs!r}; load the kind of model it "
        "was trained on (SD1.5, SD2 or SDXL) or another adapter"
    )


def _too_far(adapter: Adapter, report: MatchReport, model_name: str) -> str:
    error = report.error if report.error is not None else float("inf")
    base = adapter.base_name or "an unnamed base"
    off = f"about {error * 100:.0f} %" if error < 10 else "more than 1000 %"
    return (
        f"this compact {adapter.method.name} adapter was trained on {base!r}; on {model_name!r} its change would be "
        f"off by {off} (expected at most {LIMIT * 100:.0f} %; {report.same} of {len(report.layers)} weights are the "
        "ones it was trained on). Load the base it was trained on, ask for a portable file or a LoRA export, or choose "
        '"force" to apply it anyway'
    )


__all__ = [
    "Adapter",
    "AdapterLayer",
    "LayerMatch",
    "MatchReport",
    "OnMismatch",
    "Profile",
    "check_layers",
    "join",
    "percent",
]
