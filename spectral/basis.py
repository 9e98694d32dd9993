"""The canonical decomposition of a weight: the same on every machine that has the same weight.

W (m x n, convolutions flattened to c_out x (c_in kh kw)) is rounded to fp16 and back before anything else, so that
fp16 and fp32 copies of one checkpoint give the same bits. Thin, sigma descending; in every column of the small side
(U where m <= n, else V) the entry of largest magnitude is positive.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .cache import BasisCache
from .columns import Columns, ColumnsLike
from .errors import Cancelled, SpectralError
from .linalg import NULL, TAIL, leading, other_side, small_side

Progress = Callable[[int, int, str], None]
WeightSource = Tensor | Callable[[], Tensor]


def fetch(source: WeightSource) -> Tensor:
    """The weight itself, or what the function that stands for it brings."""
    return source if isinstance(source, Tensor) else source()


def flatten(weight: Tensor) -> Tensor:
    """A linear (m, n) or convolution (c_out, c_in, kh, kw) weight as m x n."""
    if weight.ndim < 2 or 0 in weight.shape:
        raise SpectralError(
            f"a weight of shape {tuple(weight.shape)} has no singular basis; expected (outputs, inputs) or "
            "(c_out, c_in, kh, kw) with at least one entry"
        )
    return weight.detach().reshape(weight.shape[0], -1)


def canonical(weight: Tensor) -> Tensor:
    """The weight as (m, n) fp32 after rounding to fp16, on its own device. Raises SpectralError on NaN or overflow."""
    w = flatten(weight).to(torch.float16)
    if not bool(torch.isfinite(w).all()):
        raise SpectralError(
            f"a weight of shape {tuple(weight.shape)} holds NaN, infinity or values beyond +-65504; "
            "the checkpoint is damaged or not an fp16-range model"
        )
    return w.float()


def content_hash(weight: Tensor) -> str:
    """SHA-256 (64 hex digits) of the row-major little-endian fp16 bytes of the weight and its m x n."""
    w = flatten(weight).to(torch.float16).cpu().contiguous()
    h = hashlib.sha256(f"{w.shape[0]}x{w.shape[1]}:".encode())
    h.update(w.view(torch.int16).numpy().astype("<i2", copy=False))
    return h.hexdigest()


class Basis:
    """Singular triples of one weight: u (m, r), s (r,), v (n, r), fp32, for the columns `columns` of k.

    A decomposition of the whole small side holds only its k x k square; the other side is computed from the weight
    when it is asked for. `weight` is the canonical (m, n) matrix, or None for frames that came without one.
    """

    def __init__(
        self,
        s: Tensor,
        columns: Sequence[int],
        shape: tuple[int, int],
        *,
        u: Tensor | None = None,
        v: Tensor | None = None,
        source: WeightSource | None = None,
        sigma_max: float | None = None,
        fingerprint: str | None = None,
        from_cache: bool = False,
    ):
        self.s, self.columns, self.shape = s, tuple(columns), shape
        self._u, self._v, self._source, self._fingerprint = u, v, source, fingerprint
        self.sigma_max = float(s.max()) if sigma_max is None else sigma_max
        self.from_cache = from_cache
        self._projected: Tensor | None = None
        self._inverse: Tensor | None = None
        self._cast: dict[torch.dtype, Tensor] = {}

    @property
    def k(self) -> int:
        """How many singular values the weight has."""
        return min(self.shape)

    @property
    def full(self) -> bool:
        """Whether all k columns are present."""
        return len(self.columns) == self.k

    @property
    def wide(self) -> bool:
        """m <= n: the small side is U."""
        return self.shape[0] <= self.shape[1]

    @property
    def small(self) -> Tensor:
        """The kept columns of the small side, (k, r)."""
        return self.u if self.wide else self.v

    @property
    def u(self) -> Tensor:
        if self._u is None:
            with torch.inference_mode(False):  # what is kept may be needed for a backward later
                self._u = other_side(self._need_weight(), self.v, self.s, self.sigma_max)
        return self._u

    @property
    def v(self) -> Tensor:
        if self._v is None:
            with torch.inference_mode(False):  # what is kept may be needed for a backward later
                self._v = other_side(self._need_weight(), self.u, self.s, self.sigma_max)
        return self._v

    @property
    def weight(self) -> Tensor | None:
        """The canonical weight (m, n) fp32, made at each call: a copy per layer would cost a second model.

        Raises SpectralError where the function that fetches it (`fetched_from`) brings another one.
        """
        if self._source is None:
            return None
        weight = fetch(self._source)
        if not isinstance(self._source, Tensor) and content_hash(weight) != self.fingerprint:
            raise SpectralError(
                f"the weight of shape {tuple(weight.shape)} that was read again is not the one that was decomposed; "
                "the base model's file has been changed or exchanged meanwhile"
            )
        return canonical(weight).to(self.s.device)

    @property
    def fingerprint(self) -> str:
        """`content_hash` of the weight, or "" for frames that came without one."""
        if self._fingerprint is None:
            self._fingerprint = "" if self._source is None else content_hash(fetch(self._source))
        return self._fingerprint

    @property
    def live(self) -> Tensor:
        """(r,) bool: sigma_i > 1e-5 sigma_1. Below that a direction carries no signal and no machine can repeat it."""
        return self.s > NULL * self.sigma_max

    @property
    def two_sided(self) -> bool:
        """Whether u and v are both at hand without another product."""
        return self._u is not None and self._v is not None

    @property
    def has_weight(self) -> bool:
        """Whether `weight` brings one."""
        return self._source is not None

    @property
    def inverse(self) -> Tensor:
        """(r,) 1 / sigma, 0 where sigma carries no signal; kept once asked for."""
        if self._inverse is None:
            with torch.inference_mode(False):  # what is kept may be needed for a backward later
                self._inverse = torch.where(self.live, 1 / self.s, torch.zeros_like(self.s))
        return self._inverse

    def small_as(self, dtype: torch.dtype) -> Tensor:
        """`small` in another dtype; kept, because a training step holds the casts of all layers anyway."""
        if dtype == self.small.dtype:
            return self.small
        if dtype not in self._cast:
            with torch.inference_mode(False):
                self._cast[dtype] = self.small.to(dtype)
        return self._cast[dtype]

    def projected(self) -> Tensor:
        """The weight seen from the small side, U^T W (r, n), or W V (m, r) where m > n; kept once asked for.

        U diag(g) V^T = U diag(g / sigma) projected, so V is never needed: for a caller that comes back every step.
        """
        if self._projected is None:
            with torch.inference_mode(False):
                weight = self._need_weight()
                self._projected = self.small.T @ weight if self.wide else weight @ self.small
        return self._projected

    def _complete(self) -> None:
        self._u, self._v = self.u, self.v

    def _need_weight(self) -> Tensor:
        weight = self.weight
        if weight is None:
            raise SpectralError("this basis holds one side only and no weight; decompose the weight again")
        return weight

    def select(self, columns: Sequence[int]) -> Basis:
        """The basis restricted to `columns` (indices among all k), which must be present."""
        if tuple(columns) == self.columns:
            return self
        where = {c: i for i, c in enumerate(self.columns)}
        index = torch.tensor([where[c] for c in columns], device=self.s.device)
        s = self.s.index_select(0, index)
        if float(s.min()) <= TAIL * self.sigma_max:
            self._complete()  # a column of the tail needs all those above it, which the selection may not have
        pick = {
            name: None if side is None else side.index_select(1, index)
            for name, side in (("u", self._u), ("v", self._v))
        }
        return self._like(s, columns, **pick)

    def to(self, device: torch.device | str) -> Basis:
        """The basis on another device."""
        sides = {n: None if t is None else t.to(device) for n, t in (("u", self._u), ("v", self._v))}
        return self._like(self.s.to(device), self.columns, **sides)

    def fetched_from(self, source: Callable[[], Tensor] | None) -> Basis:
        """The basis without its hold on the weight's memory: where the weight is needed again, `source` brings it.

        None: it never is (both sides are at hand). The fingerprint is that of the weight as it is now.
        """
        basis = self._like(self.s, self.columns, u=self._u, v=self._v)
        basis._fingerprint, basis._source = self.fingerprint, source
        return basis

    def half_rounded(self) -> Basis:
        """u and v rounded to fp16 and back, as portable files store them: what is trained is what is saved."""
        return self._like(self.s, self.columns, u=self.u.half().float(), v=self.v.half().float())

    def _like(self, s: Tensor, columns: Sequence[int], *, u: Tensor | None, v: Tensor | None) -> Basis:
        return Basis(
            s,
            columns,
            self.shape,
            u=u,
            v=v,
            source=self._source,
            sigma_max=self.sigma_max,
            fingerprint=self._fingerprint,
            from_cache=self.from_cache,
        )


def decompose(weight: Tensor, columns: ColumnsLike = None, *, cache: BasisCache | None = None) -> Basis:
    """Canonical singular triples of a weight, on the weight's device.

    weight: (m, n) or (c_out, c_in, kh, kw), any floating dtype. columns: see `Columns.parse`; None keeps all
    k = min(m, n). Every triple satisfies ||W v - sigma u|| <= 1e-5 sigma_1, and U, V are orthonormal to 1e-5.
    Raises SpectralError for a weight that is not a matrix or not finite, SettingError for columns that do not fit.
    """
    shape = (weight.shape[0], flatten(weight).shape[1])
    wanted = Columns.parse(columns).resolve(min(shape))
    source = weight.detach()
    fingerprint = content_hash(source) if cache is not None else None
    part = _part(wanted, min(shape))
    stored = cache.get(fingerprint, part) if cache is not None and fingerprint is not None else None
    tensors = {n: t.to(weight.device) for n, t in stored.items()} if stored else None
    if tensors is None or not _plausible(tensors, shape):
        # Row-major, as a cache gives them back: another layout rounds differently in later products.
        tensors, stored = {n: t.contiguous() for n, t in _compute(canonical(source), part).items()}, None
        if cache is not None and fingerprint is not None:
            cache.put(fingerprint, part, tensors)
    return _basis(tensors, shape, source, fingerprint, from_cache=stored is not None).select(wanted)


def basis_of_shape(weight: Tensor, columns: ColumnsLike, *, two_sided: bool, source: WeightSource) -> Basis:
    """What `decompose` gives for a weight, by its shapes alone, with whatever is in memory for numbers.

    For tensors without data (torch's FakeTensorMode), in estimates. two_sided: u and v are at hand and the weight is
    let go of, as for files with frames; else `source` stands for the weight.
    """
    m, n = weight.shape[0], flatten(weight).shape[1]
    k = min(m, n)
    wanted = Columns.parse(columns).resolve(k)
    r, both = len(wanted), two_sided or _part(wanted, k) != "small"
    u = weight.new_empty((m, r), dtype=torch.float32) if both or m <= n else None
    v = weight.new_empty((n, r), dtype=torch.float32) if both or m > n else None
    s = weight.new_empty(r, dtype=torch.float32)
    held = None if two_sided else source
    return Basis(s, wanted, (m, n), u=u, v=v, source=held, sigma_max=1.0, fingerprint="0" * 64)


def _part(columns: Sequence[int], k: int) -> str:
    """Which decomposition serves these columns: "top24" where a leading block reaches far enough, else "small"."""
    reach = columns[-1] + 1
    return f"top{-(-reach // 8) * 8}" if reach <= k // 8 else "small"


def _compute(w: Tensor, part: str) -> dict[str, Tensor]:
    if w.device.type == "mps":  # has no fp64
        return {name: t.to(w.device) for name, t in _compute(w.cpu(), part).items()}
    if part == "small":
        return dict(zip("qs", small_side(w)))
    return dict(zip("usv", leading(w, int(part[3:]))))


def _plausible(tensors: dict[str, Tensor], shape: tuple[int, int]) -> bool:
    """A cache entry that passed its digest but holds another layout is treated like a damaged one."""
    m, n = shape
    k, r = min(shape), tensors["s"].shape[0] if "s" in tensors else -1
    expected = {"q": (k, k), "s": (k,)} if "q" in tensors else {"u": (m, r), "s": (r,), "v": (n, r)}
    return {name: tuple(t.shape) for name, t in tensors.items()} == expected


def _basis(
    tensors: dict[str, Tensor], shape: tuple[int, int], source: Tensor, fingerprint: str | None, *, from_cache: bool
) -> Basis:
    s, wide = tensors["s"], shape[0] <= shape[1]
    u, v = (tensors.get("u"), tensors.get("v"))
    if "q" in tensors:
        u, v = (tensors["q"], None) if wide else (None, tensors["q"])
    return Basis(s, range(len(s)), shape, u=u, v=v, source=source, fingerprint=fingerprint, from_cache=from_cache)


def decompose_all(
    weights: Mapping[str, WeightSource],
    columns: ColumnsLike | Mapping[str, ColumnsLike] = None,
    *,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Basis]:
    """Decompose many weights: {name: weight or a function that fetches it} -> {name: Basis}.

    columns: one choice for all, or {name: choice}.
    On the CPU one single-threaded decomposition per core: the tridiagonal reduction inside is bound by memory and gains
    little from more threads. progress(done, total, name) is called from the calling thread; when cancelled() turns
    true, Cancelled is raised and nothing but finished cache entries is left behind.
    """
    done: dict[str, Basis] = {}
    for i, (name, basis) in enumerate(_results(weights, columns, cache, cancelled)):
        done[name] = basis
        if progress is not None:
            progress(i + 1, len(weights), name)
    return done


def _results(
    weights: Mapping[str, WeightSource],
    columns: ColumnsLike | Mapping[str, ColumnsLike],
    cache: BasisCache | None,
    cancelled: Callable[[], bool] | None,
) -> Iterator[tuple[str, Basis]]:
    def one(name: str) -> Basis:
        if cancelled is not None and cancelled():
            raise Cancelled("the decomposition was cancelled; the model is unchanged")
        wanted = columns[name] if isinstance(columns, Mapping) else columns
        return decompose(fetch(weights[name]), wanted, cache=cache)

    threads = torch.get_num_threads()
    workers = min(threads, os.cpu_count() or 1, len(weights))
    if workers < 2 or _on_accelerator(weights):
        yield from ((name, one(name)) for name in weights)
        return
    inference = torch.is_inference_mode_enabled()  # a property of the thread, so workers must be told

    def worker(name: str) -> Basis:
        torch.set_num_threads(1)
        with torch.inference_mode(inference):
            return one(name)

    with ThreadPoolExecutor(workers) as pool:
        futures = {name: pool.submit(worker, name) for name in weights}
        try:
            yield from ((name, future.result()) for name, future in futures.items())
        finally:
            for future in futures.values():
                future.cancel()
            torch.set_num_threads(threads)


def _on_accelerator(weights: Mapping[str, WeightSource]) -> bool:
    return any(isinstance(w, Tensor) and w.device.type != "cpu" for w in weights.values())
