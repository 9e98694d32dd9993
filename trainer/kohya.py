"""The network module for kohya's sd-scripts: `--network_module spectral_adapters.trainer.kohya`.

sd-scripts loads this module by its name, asks `create_network` for a network, puts it on its models with `apply_to`,
trains the network's parameters with its own optimiser and has `save_weights` write the file. The layers, the parameters
and the file are those of this package's own training; what to train is said by `--network_args` (see `kohya_args`).
Nothing of sd-scripts is imported: its models are taken as modules with layers.
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..spectral.adapter import Adapter, join
from ..spectral.beginning import check_covered
from ..spectral.cache import BasisCache
from ..spectral.errors import SettingError
from ..spectral.evidence import FINGERPRINT_DIGITS
from ..spectral.file import load, save
from ..spectral.layer import InjectedAdapter, inject, put_on_all
from ..spectral.merge import merge
from ..spectral.methods import Method
from ..spectral.occupied import occupied
from . import kohya_label as label
from .events import Phase, Progress
from .kohya_args import OF_FILE, read_arguments
from .kohya_base import Originals, base_file, decompose_ahead
from .kohya_groups import TextRates, groups_of, rates_of
from .kohya_parts import Part, TextEncoders, chosen_parts, parts_of, parts_of_file, trained_parts
from .kohya_say import notice, tell
from .spec import TrainSpec

STIEFEL_OPTIMIZER = "SpectralOptimizer"
_SUFFIX = "safetensors"


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: nn.Module | None,
    text_encoder: TextEncoders,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    dropout: float | None = None,
    **arguments: str,
) -> SpectralNetwork:
    """The network that `--network_dim` (the rank) and `--network_args` describe; it is put on by `apply_to`.

    text_encoder: one model, or for SDXL a list of two. network_alpha means nothing here: strength 1 is the adapter as
    it was trained. Raises SettingError for arguments that are unknown, do not fit together or do not fit the model.
    """
    for name, value in (("network_dropout", neuron_dropout), ("dropout", dropout)):
        if value:
            raise SettingError(f"{name}={value}: spectral adapters have no dropout; leave it out")
    spec = read_arguments(network_dim, arguments)
    if network_alpha not in (None, 0, 1, network_dim):
        notice(f"network_alpha={network_alpha} is not used; strength 1 is the adapter as it is trained.")
    start = None if spec.start_from is None else load(spec.start_from)
    return SpectralNetwork(spec, spec.build_method(), chosen_parts(spec, text_encoder, unet), start, multiplier)


def create_network_from_weights(
    multiplier: float,
    file: str | None,
    vae: nn.Module | None,
    text_encoder: TextEncoders,
    unet: nn.Module,
    weights_sd: Mapping[str, Tensor] | None = None,
    for_inference: bool = False,
    **arguments: str,
) -> tuple[SpectralNetwork, dict[str, Tensor]]:
    """(the network of an adapter file, with the file's method, columns and layers, and its parameters).

    Raises AdapterFileError for a file that is none, SettingError for arguments that the file decides, and
    WrongBaseError for layers of another kind of model.
    """
    if file is None:
        raise SettingError("dim_from_weights reads the adapter's layout from a file; name it with network_weights")
    if decided := next((name for name in arguments if name in OF_FILE), None):
        raise SettingError(f"network_args: {decided} is decided by {file}; leave it out, or leave out dim_from_weights")
    adapter = load(file)
    network = SpectralNetwork(
        read_arguments(None, arguments),
        adapter.method,
        parts_of_file(adapter, text_encoder, unet),
        adapter,
        multiplier,
    )
    network.started_from = Path(file)
    return network, {f"{name}.{part}": p for name, layer in adapter.layers.items() for part, p in layer.params.items()}


class SpectralNetwork(nn.Module):
    """A spectral adapter as sd-scripts trains it: its state holds the trained parameters, named as in the file.

    The parameters stay fp32 whatever the network is cast to (`--full_bf16`): a core is a difference of nearly equal
    matrices. Bases are no part of the state; they are decomposed when the network is put on, and follow the model to
    its device.
    """

    train_t5xxl = False  # trainers of models with a T5 read it

    def __init__(
        self, spec: TrainSpec, method: Method, parts: list[Part], start: Adapter | None, multiplier: float
    ) -> None:
        super().__init__()
        self.spec, self.method, self.parts, self.multiplier = spec, method, parts, multiplier
        self.start = start
        self.started_from: Path | None = None if start is None else spec.start_from
        self.injected: list[tuple[Part, InjectedAdapter]] = []
        self.adapter: Adapter | None = None
        self._args: Namespace | None = None
        self._own_decay = True
        self._frozen: set[str] = set()

    # --- before the training

    def prepare_network(self, args: Namespace) -> None:
        """Look at sd-scripts' own options. Raises SettingError for those that cannot be honoured."""
        kind = getattr(args, "save_model_as", None)
        if kind not in (None, _SUFFIX):
            raise SettingError(f"save_model_as={kind}: adapters are safetensors files; leave it out")
        optimizer = str(getattr(args, "optimizer_type", None) or "")
        groups = self.method.groups.values()
        if any(g.kind == "stiefel" for g in groups) and optimizer.rpartition(".")[2] != STIEFEL_OPTIMIZER:
            raise SettingError(
                f"optimizer_type={optimizer or 'AdamW'} does not keep rotations orthogonal; choose "
                f"spectral_adapters.trainer.kohya_optimizer.{STIEFEL_OPTIMIZER}, or the network_args rotation=cayley"
            )
        self._own_decay = not any(
            str(each).startswith("weight_decay=") for each in getattr(args, "optimizer_args", None) or ()
        )
        self._args = args
        weights = getattr(args, "network_weights", None)
        if weights is not None and self.start is None:
            self.start, self.started_from = load(weights), Path(weights)

    def apply_to(
        self,
        text_encoder: TextEncoders,
        unet: nn.Module,
        apply_text_encoder: bool = True,
        apply_unet: bool = True,
    ) -> None:
        """Decompose the chosen layers and put the adapter on them; on failure the model is as it was.

        Raises SpectralError for columns, adapters or weights that do not fit.
        """
        self._put_on(trained_parts(self.parts, parts_of(text_encoder, unet), apply_text_encoder, apply_unet))
        layers, numbers = len(self._adapter.layers), self._adapter.parameter_count
        notice(
            f"{self.method.name}, columns {self.method.columns.text}: {layers} layers, {numbers:,} numbers to train."
        )

    def load_weights(self, file: str) -> str:
        """Go on from an adapter file of the same method, columns and layers; a sentence on it.

        Raises AdapterFileError, SettingError or WrongBaseError for a file that does not fit.
        """
        if self.started_from != Path(file):
            self.start, self.started_from = load(file), Path(file)
            self.remove()
            self._put_on([part for part, _ in self.injected])
        return f"{len(self._adapter.layers)} layers of {self.method.name}"

    def remove(self) -> None:
        """Give the model its own forwards back."""
        for _, adapter in self.injected:
            adapter.remove()

    def prepare_optimizer_params(
        self, text_encoder_lr: TextRates, unet_lr: float | None, default_lr: float | None = None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """(parameter groups, their descriptions); a part with rate 0 is not trained."""
        rates = rates_of(text_encoder_lr, unet_lr, default_lr)
        groups, descriptions = groups_of(self.injected, rates, self.spec, own_decay=self._own_decay)
        if not groups:
            raise SettingError("every learning rate is 0, so there is nothing to train")
        trained = {id(p) for group in groups for p in group["params"]}
        self._frozen = {name for name, p in self.named_parameters() if id(p) not in trained}
        said = ", ".join(f"{text} {group['lr']:g}" for text, group in zip(descriptions, groups))
        notice(f"learning rates: {said} ({self.method.name}'s own is {self.method.lr:g}).")
        return groups, descriptions

    prepare_optimizer_params_with_multiple_te_lrs = prepare_optimizer_params

    def enable_gradient_checkpointing(self) -> None:
        """Nothing to do: a layer's own forward is replaced, so the model's checkpoints hold it."""

    # --- during the training

    def prepare_grad_etc(self, *_models: object) -> None:
        """Called when everything is on its device."""
        for name, p in self.named_parameters():
            p.requires_grad_(name not in self._frozen)
        self.train()
        self._follow()

    def on_epoch_start(self, *_models: object) -> None:
        self.train()

    def on_step_start(self, *_models: object) -> None:
        self._follow()

    def get_trainable_params(self) -> list[nn.Parameter]:
        """What `--max_grad_norm` clips together."""
        return [p for p in self.parameters() if p.requires_grad]

    def set_multiplier(self, multiplier: float) -> None:
        """The strength; 0 gives the base exactly, 1 the adapter."""
        self.multiplier = multiplier
        for _, adapter in self.injected:
            adapter.strength = multiplier

    def save_weights(self, file: str, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
        """Write the adapter file, whole or not at all, with sd-scripts' metadata and the hashes.

        Like all that sd-scripts writes it takes the place of a file of that name. dtype: of the parameters, fp16 where
        None; rotations stay fp32. Raises AdapterFileError.
        """
        known = label.metadata_of(metadata)
        save(
            self._adapter,
            file,
            base_name=label.base_name(known, getattr(self._args, "pretrained_model_name_or_path", None)),
            base_hash=label.base_hash(known),
            trigger_words=label.trigger_words(known),
            dtype=dtype,
            overwrite=True,
            metadata=known,
        )

    def get_extra_state(self) -> Tensor:
        """What the parameters belong to, so that a state is not taken up on another base or by another method."""
        layers = {n: (layer.indices, self._fingerprint(n)) for n, layer in self._adapter.layers.items()}
        facts = json.dumps([self.method.name, self.method.settings, layers], sort_keys=True)
        return torch.tensor(list(hashlib.sha256(facts.encode()).digest()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises SettingError for the state of another adapter."""
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise SettingError(
                "the state to resume belongs to another adapter: its base, method, columns or layers differ from those "
                "given now; give the same ones, or begin without resume"
            )

    # --- use without training

    def is_mergeable(self) -> bool:
        return True

    def merge_to(
        self,
        text_encoder: TextEncoders,
        unet: nn.Module,
        weights_sd: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Add the adapter file's change, times the multiplier, to the model's weights: `--base_weights`.

        Raises SettingError for a network that is not made of a file, WrongBaseError for another base.
        """
        if self.start is None:
            raise SettingError("only an adapter file can be merged; this network is a new one")
        names = (*self.start.layers, *self.start.gains)
        for module, prefix in parts_of(text_encoder, unet).values():
            if any(name.startswith(prefix) for name in names):
                merge(self.start, module, self.multiplier, prefix=prefix)

    # --- small things

    @property
    def _adapter(self) -> Adapter:
        if self.adapter is None:
            raise SettingError("the network is not on a model yet; call apply_to first")
        return self.adapter

    def _fingerprint(self, layer: str) -> str:
        frames = self._adapter.layers[layer].frames
        return "" if frames is None else frames.fingerprint[:FINGERPRINT_DIGITS]

    def _put_on(self, parts: list[Part]) -> None:
        self.injected = put_on_all(self._inject(parts))
        self.adapter = join(adapter for _, adapter in self.injected)
        self.set_multiplier(self.multiplier)
        self._register()

    def _inject(self, parts: list[Part]) -> Iterator[tuple[Part, InjectedAdapter]]:
        """Puts an adapter on every part, one after the other."""
        if self.start is not None:
            check_covered(self.start, tuple(part.prefix for part in parts))
        avoid = occupied({path.name: load(path) for path in self.spec.avoid}) if self.spec.avoid else None
        file, cache = base_file(self._args, parts), BasisCache()
        tell(Phase("decomposing the base's weights"))
        for part in parts:
            originals = None if file is None else Originals(file, part)
            if torch.cuda.is_available() and self.start is None and avoid is None:
                decompose_ahead(part, self.method, originals, cache, torch.device("cuda"))
            _, adapter = inject(
                part.module,
                self.method,
                part.targets,
                prefix=part.prefix,
                start=self.start,
                avoid=avoid,
                originals=originals,
                cache=cache,
                progress=lambda *at: tell(Progress(*at)),
            )
            yield part, adapter

    def _register(self) -> None:
        """The adapters' parameters as this module's own, "<layer>.<parameter>"."""
        self._modules.clear()
        for _, adapter in self.injected:
            for name, p in adapter.named_parameters():
                layer, _, part = name.rpartition(".")
                if p.numel():
                    if layer not in self._modules:
                        self.add_module(layer, nn.Module())
                    self._modules[layer].register_parameter(part, p)

    def _follow(self) -> None:
        for _, adapter in self.injected:
            adapter.follow()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpectralNetwork:
        """As torch's, but a cast is undone: parameters move between devices and stay fp32."""
        exact = [p.detach() for p in self.parameters()]
        super()._apply(fn, recurse)
        for p, value in zip(self.parameters(), exact):
            if p.dtype != value.dtype:
                p.data = value.to(p.device)
        self._follow()
        return self
