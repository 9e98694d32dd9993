"""What sd-scripts is told of the parameters: groups for its optimiser, with the rates of its options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..spectral.errors import SettingError
from ..spectral.layer import InjectedAdapter
from .kohya_parts import Field, Part
from .spec import TrainSpec

TextRates = float | Sequence[float] | None
_SAID: dict[Field, str] = {"unet": "unet", "text_encoder": "text encoder", "text_encoder_2": "text encoder 2"}


def rates_of(text: TextRates, unet: float | None, default: float | None) -> dict[Field, float]:
    """The rate of every part: its own, else `--learning_rate`. One text rate counts for both encoders.

    Raises SettingError where a part has neither.
    """
    given = list(text) if isinstance(text, Sequence) else [text] * (text is not None)
    first, second = (given * 2)[:2] if given else (None, None)
    rates: dict[Field, float | None] = {"unet": unet, "text_encoder": first, "text_encoder_2": second}
    found = {field: default if rate is None else rate for field, rate in rates.items()}
    if missing := next((field for field, rate in found.items() if rate is None), None):
        raise SettingError(f"the {_SAID[missing]} has no learning rate; set learning_rate, unet_lr or text_encoder_lr")
    return {field: float(rate) for field, rate in found.items() if rate is not None}


def groups_of(
    parts: Iterable[tuple[Part, InjectedAdapter]], rates: dict[Field, float], spec: TrainSpec, *, own_decay: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """(groups, their descriptions): parameters of one part, rule, rate and decay are one group.

    A part with rate 0 has none. own_decay: the weight decay is the method's or `spec`'s, so each group carries it; else
    the optimiser's argument holds for all. Every group has its `kind`, "adamw" or "stiefel", for `SpectralOptimizer`.
    """
    groups: list[dict[str, Any]] = []
    descriptions: list[str] = []
    for part, adapter in parts:
        if rates[part.field] == 0:
            continue
        merged = _merged(_own(adapter, rates[part.field], spec, own_decay))
        said = _SAID[part.field]
        descriptions += [said if len(merged) == 1 else f"{said} {group['name']}" for group in merged]
        groups += merged
    return groups, descriptions


def _own(adapter: InjectedAdapter, rate: float, spec: TrainSpec, own_decay: bool) -> list[dict[str, Any]]:
    groups = []
    for group in adapter.param_groups(rate, spec.norm_lr):
        group["params"] = [p for p in group["params"] if p.numel()]
        if group["kind"] == "adamw" and spec.weight_decay is not None:
            group["weight_decay"] = spec.weight_decay
        if not own_decay and group["kind"] == "adamw":
            del group["weight_decay"]
        if group["params"]:
            groups.append(group)
    return groups


def _merged(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups that differ in name alone as one, named by all of them."""
    found: dict[tuple, dict[str, Any]] = {}
    for group in groups:
        rule = (group["kind"], group["lr"], group.get("weight_decay"))
        if rule in found:
            found[rule]["params"] += group["params"]
            found[rule]["name"] += f" {group['name']}"
        else:
            found[rule] = group
    return list(found.values())
