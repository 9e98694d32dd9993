"""What every program says of an adapter on a model: that it is another model's, or how much of it is applied.

For ComfyUI's nodes and the web UIs alike:
    FAMILY_NAMES: dict[Family, str]
    refuse_another_model(source, wanted, known, model_name) -> None, raises WrongBaseError
    fit_text(placed, layers, gains, report) -> "264 of 264 layers applied, 0 unused. Match 99.9 %"
    applied_text(placed, layers, gains), match_text(report): its two halves
"""

from __future__ import annotations

from collections.abc import Collection, Container

from .adapter import MatchReport, percent
from .errors import WrongBaseError
from .names import Family
from .source import AdapterSource, Source

FAMILY_NAMES: dict[Family, str] = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}


def refuse_another_model(source: Source, wanted: Collection[str], known: Container[str], model_name: str) -> None:
    """Raises WrongBaseError where the source belongs to another kind of model than the one it is to be put on.

    wanted: the layers and norms of the source that are to be applied. known: the names that the model has (kohya's
    spelling). model_name: one of FAMILY_NAMES, or what else the model is called.
    A part of the names may fit by chance (SD1.x and SDXL share some, with equal shapes), so all must. Of files of
    other kinds only the family: they often hold layers that hosts themselves leave out.
    """
    base_name = source.metadata.get("spectral.base_name", "")
    base = f" ({base_name})" if base_name else ""
    if source.family and FAMILY_NAMES[source.family] != model_name:
        family = FAMILY_NAMES[source.family]
        raise WrongBaseError(
            f"this adapter was trained on {family}{base}, the model here is {model_name}. "
            f"Load a checkpoint of {family}, or choose another adapter."
        )
    missing = [name for name in wanted if name not in known]
    if not missing or (len(missing) < len(wanted) and not isinstance(source, AdapterSource)):
        return
    if len(missing) == len(wanted) and isinstance(source, AdapterSource):
        return  # `check_layers` says it better
    raise WrongBaseError(
        f"{len(missing)} of the adapter's {len(wanted)} layers are not in the model here ({model_name}), such as "
        f"{missing[0]!r}; expected all. Load the kind of model it was trained on{base}, or set what to do on a "
        "mismatch to force, which applies the layers that are there."
    )


def fit_text(
    placed: Collection[str], layers: Collection[str], gains: Collection[str], report: MatchReport | None
) -> str:
    """How much of an adapter is applied and how well it matches, in a line: `applied_text` and `match_text`."""
    return f"{applied_text(placed, layers, gains)} {match_text(report)}".rstrip()


def applied_text(placed: Collection[str], layers: Collection[str], gains: Collection[str]) -> str:
    """How many of the layers and norms of an adapter are among those that were placed in the model."""
    applied, total = sum(name in placed for name in layers), len(layers)
    norms = f", {sum(name in placed for name in gains)} of {len(gains)} norms" if gains else ""
    return f"{applied} of {total} layers applied, {total - applied} unused{norms}."


def match_text(report: MatchReport | None) -> str:
    """How near the change is to the one that was trained; empty for sources that fit by shape alone."""
    return "" if report is None or report.match is None else f"Match {percent(report.match)}"
