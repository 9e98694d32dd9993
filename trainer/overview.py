"""A run at a glance: loss.png from its events, sheet.png from its samples. Made at the end, or again at any time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..spectral.errors import SettingError
from .event_log import read_events
from .jobs.course import History
from .plot import plot_losses
from .sample_files import save_png
from .sheet import contact_sheet

LOSS, SHEET = "loss.png", "sheet.png"


def history(events: Iterable[Mapping[str, Any]]) -> History:
    """The course of a run from the events of its log, oldest first."""
    found = History()
    for event in events:
        found.take(event)
    return found


def loss_plot(events: Path, title: str = "") -> Image.Image:
    """The loss plot of an event log."""
    found = history(read_events(events))
    return plot_losses(
        sorted(found.losses.items()),
        sorted(found.validations.items()),
        best=found.best,
        checkpoints=sorted(found.checkpoints),
        rates=sorted(found.rates.items()),
        title=title,
    )


def draw(run: Path, title: str = "") -> tuple[Path, ...]:
    """Write loss.png, and sheet.png where there are samples, into a run's folder; the paths written.

    Raises SettingError for a folder without events, SpectralError where a picture cannot be written.
    """
    events = run / "events.jsonl"
    if not events.is_file():
        raise SettingError(f"{run}: found no events.jsonl; expected the folder of a training run")
    made = {LOSS: loss_plot(events, title or run.name.removesuffix(".training"))}
    sheet = contact_sheet(run / "samples")
    if sheet is not None:
        made[SHEET] = sheet
    for name, picture in made.items():
        save_png(run / name, picture)
    return tuple(run / name for name in made)
