"""How much memory a training run will take, before it starts, and how much it took.

The estimate runs forward and backward of the real modules, adapters on, on tensors without data (torch's
FakeTensorMode) and follows every storage that comes and goes: seconds, no computation, almost no memory. Not counted:
what Python and torch's libraries hold (about 0.4 GB; on CUDA the context and cuDNN's workspaces) and what a kernel
takes and gives back within one call. benchmarks/memory.py holds estimates against measured peaks.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..spectral.basis import Basis
from ..spectral.layer import InjectedAdapter
from .base import Base, Text
from .flops import flops
from .speed import Work

_DEVICE = torch.ops.prim.device.default
ADAMW_BYTES = 8  # two moments in float32 for every parameter


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run will hold at its peak.

    parts: what is in memory during a training step. phases: {"training" | "latents" | "samples": bytes}, which follow
    each other. total: the largest phase. work: the arithmetic of one batch, forward and backward.
    """

    total: int
    parts: dict[str, int]
    phases: dict[str, int]
    work: Work

    def scaled(self, pixels: float) -> Estimate:
        """The estimate for `pixels` times as many pixels in a batch (larger pictures or more of them), at once.

        Activations grow in proportion (attention is computed without storing its scores); 5 to 10 % too high for larger
        pictures, because the text's share does not grow. Estimate anew before a run.
        """
        parts = {**self.parts, "activations": round(self.parts["activations"] * pixels)}
        held = sum(self.parts.values()) - self.parts["activations"]
        phases = {"training": sum(parts.values())}
        for name in self.phases.keys() - phases.keys():
            phases[name] = held + round((self.phases[name] - held) * pixels)
        return replace(self, total=max(phases.values()), parts=parts, phases=phases)


def estimate(
    base: Base,
    adapters: Sequence[InjectedAdapter],
    *,
    batch_size: int = 1,
    width: int,
    height: int,
    gradient_checkpointing: bool | None = None,
    autocast: torch.dtype | None = None,
    optimizer_bytes: int = ADAMW_BYTES,
    ema: bool = False,
    trains_text: bool = False,
    makes_latents: bool = True,
    sample_pictures: int = 0,
    fake: FakeTensorMode | None = None,
) -> Estimate:
    """The memory of training `adapters`, already on the parts of `base`, with batches of width x height pixels.

    base: in the dtypes and on the device of the run. gradient_checkpointing: None as the modules are set.
    optimizer_bytes: its state per parameter. trains_text: the text encoders run and are differentiated in every step
    (needs tokenizers). makes_latents: the VAE encodes pictures, one at a time, before training. sample_pictures: how
    many are made at once in between, with guidance; 0 for none. fake: the mode that base and adapters were made in,
    where they have no data. Nothing of base or adapters is changed.
    """
    trained = sum(p.numel() for adapter in adapters for p in adapter.parameters())
    bases = list(_bases(adapters))
    shape = (batch_size, base.unet.config.in_channels, height // base.scale, width // base.scale)
    with _checkpointing(base, gradient_checkpointing), _stand_ins(bases, fake) as (fake, made):
        step = _peak(fake, lambda: _step(base, adapters, shape, autocast, trains_text))
        standing = _bytes(t for t in made if t.untyped_storage()._cdata in step.touched)
        encoding = _peak(fake, lambda: _encode(base, width, height)) if makes_latents else None
        sampling = _peak(fake, lambda: _sample(base, (sample_pictures, *shape[1:]))) if sample_pictures else None
    weights = _bytes(_module_tensors(base))
    parts = {
        "base model": weights,
        "bases": _bytes([*_module_tensors(base), *_basis_tensors(bases)]) - weights + standing + step.kept,
        "adapter": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": optimizer_bytes * trained,
        "averages and last good copy": 4 * trained * (2 if ema else 1),
        "activations": step.peak - step.kept,
    }
    held = sum(parts.values()) - parts["activations"]
    phases = {"training": held + parts["activations"]}
    if encoding is not None:
        phases["latents"] = held + encoding.peak
    if sampling is not None:
        phases["samples"] = held + sampling.peak
    return Estimate(max(phases.values()), parts, phases, Work(step.flops, step.calls))


class LiveStorage(TorchDispatchMode):
    """Follows the tensors made inside: bytes that live now (`now`) and lived at most (`peak`). Views count once.

    Counts their arithmetic (`flops`) and the operations (`calls`), too.
    """

    def __init__(self, fake: FakeTensorMode | None = None):
        super().__init__()
        self.now = self.peak = 0
        self.kept = self.flops = self.calls = 0
        self.touched: set[int] = set()
        self._known: dict[int, weakref.ref] = {}
        self._fake, self._held = fake, []

    def __torch_dispatch__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):  # two thirds of all calls: not worth the whole way
            return args[0].fake_device
        if func.namespace == "prim":  # asks for a device or a layout
            return func(*args, **(kwargs or {}))
        args = tuple(self._argument(a) for a in args)
        kwargs = {name: self._argument(a) for name, a in (kwargs or {}).items()}
        out = func(*args, **kwargs)
        self.flops += flops(func, args, kwargs, out)
        self.calls += 1
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def _argument(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._argument(v) for v in value)
        return self._given(value) if isinstance(value, Tensor) else value

    def _given(self, tensor: Tensor) -> Tensor:
        """A tensor that existed before counts nothing; a real one among fakes becomes the fake that it always gets."""
        if self._fake is not None and not isinstance(tensor, FakeTensor):
            tensor = self._fake.from_tensor(tensor)
            self._held.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = weakref.ref(storage, self._forget(storage._cdata, 0))
        self.touched.add(storage._cdata)
        return tensor

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        size = storage.nbytes()
        self._known[storage._cdata] = weakref.ref(storage, self._forget(storage._cdata, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> Callable[[weakref.ref], None]:
        def gone(_: weakref.ref) -> None:
            del self._known[key]
            self.now -= size

        return gone


def _peak(fake: FakeTensorMode, work: Callable[[], object]) -> LiveStorage:
    """`work` on tensors without data. `kept`: what its end left behind, such as casts that later steps use again."""
    with fake, LiveStorage(fake) as live:
        work()
        live.kept = live.now
    return live


def _step(
    base: Base,
    adapters: Sequence[InjectedAdapter],
    shape: tuple[int, int, int, int],
    autocast: torch.dtype | None,
    trains_text: bool,
) -> None:
    """Forward and backward of one batch, its gradients given up at the end."""
    device = base.unet.device
    noisy, target = (torch.randn(shape, device=device) for _ in range(2))
    times = torch.zeros(shape[0], dtype=torch.long, device=device)
    context = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
    with torch.enable_grad(), context:
        text = base.encode([""] * shape[0]) if trains_text else _text(base, shape[0])
        loss = (base.predict(noisy, times, text).float() - target).square().mean()
    # Not backward(): the real parameters must not get gradients without data.
    trained = [p for adapter in adapters for p in adapter.parameters() if p.requires_grad]
    torch.autograd.grad(loss, trained, allow_unused=True)


def _encode(base: Base, width: int, height: int) -> None:
    with torch.no_grad():
        base.latents(torch.zeros(1, 3, height, width, device=base.vae.device))


def _sample(base: Base, shape: tuple[int, int, int, int]) -> None:
    """A guided prediction, then the decoding of the pictures."""
    with torch.no_grad():
        twice = torch.zeros(2 * shape[0], *shape[1:], device=base.unet.device)
        times = torch.zeros(twice.shape[0], dtype=torch.long, device=twice.device)
        base.predict(twice, times, _text(base, twice.shape[0]))
        latents = torch.zeros(shape, dtype=base.vae.dtype, device=base.vae.device)
        base.vae.decode(latents / base.vae.config.scaling_factor)


def _text(base: Base, batch: int) -> Text:
    """Captions as the UNet reads them, encoded before."""
    config, device = base.unet.config, base.unet.device
    pooled = None
    if len(base.text_encoders) == 2:
        pooled = torch.zeros(batch, base.text_encoders[1].config.projection_dim, device=device)
    tokens = base.text_encoder.config.max_position_embeddings
    return Text(torch.zeros(batch, tokens, config.cross_attention_dim, device=device), pooled)


def _bases(adapters: Sequence[InjectedAdapter]) -> Iterator[Basis]:
    for adapter in adapters:
        for layer in adapter.layers.values():
            if layer.frames is not None:
                yield layer.frames


@contextmanager
def _stand_ins(bases: Sequence[Basis], fake: FakeTensorMode | None) -> Iterator[tuple[FakeTensorMode, list[Tensor]]]:
    """Inside, what the bases make when first asked has a shape and no data; afterwards they are as they were.

    Gives these tensors too: a run would make, and keep, those of them that its work reads.
    """
    fake, before = fake or FakeTensorMode(allow_non_fake_inputs=True), [dict(vars(basis)) for basis in bases]
    made: list[Tensor] = []
    with fake:
        for basis in bases:
            r, (m, n) = len(basis.columns), basis.shape
            shapes = {"_u": (m, r), "_v": (n, r), "_projected": (r, n) if basis.wide else (m, r)}
            for name, shape in shapes.items():
                if getattr(basis, name) is None:
                    made.append(torch.empty(shape, device=basis.s.device))
                    setattr(basis, name, made[-1])
            basis._cast = dict(basis._cast)
    try:
        yield fake, made
    finally:
        for basis, state in zip(bases, before):
            vars(basis).clear()
            vars(basis).update(state)


@contextmanager
def _checkpointing(base: Base, wanted: bool | None) -> Iterator[None]:
    unet, before = base.unet, base.unet.is_gradient_checkpointing
    change = {True: unet.enable_gradient_checkpointing, False: unet.disable_gradient_checkpointing}
    if wanted is not None and wanted != before:
        change[wanted]()
    try:
        yield
    finally:
        if unet.is_gradient_checkpointing != before:
            change[before]()


def _module_tensors(base: Base) -> list[Tensor]:
    modules: list[nn.Module] = [base.unet, *base.text_encoders, base.vae]
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]


def _basis_tensors(bases: Iterable[Basis]) -> list[Tensor]:
    """Everything the bases hold, the weights that they keep for later among it."""
    return [t for basis in bases for t in tree_leaves(dict(vars(basis))) if isinstance(t, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes in memory, shared storages counted once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class PeakMemory:
    """The most bytes that training held on `device` since `restart`.

    CUDA: of tensors, by torch's allocator. The CPU: of the whole process, by Linux (VmHWM) or macOS (ru_maxrss, which
    cannot restart: the most since the process began). Elsewhere, as on Windows, there is no such number: None.
    """

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)

    def restart(self) -> bool:
        """Forget the past. Whether the system let us; otherwise the peak stays that of the whole process."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def bytes(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type != "cpu":
            return None
        if sys.platform == "darwin":
            import resource  # not on Windows

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return _status("VmHWM")


def resident() -> int | None:
    """Bytes that the process holds now; None where the system does not say (Linux does)."""
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None
