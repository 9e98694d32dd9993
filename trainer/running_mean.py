"""The smoothed loss that people are shown."""

from __future__ import annotations

import math


class RunningMean:
    """Mean of what was added, recent values counting more: with weights that halve about every 35 values.

    Values that are no finite numbers count for nothing.
    """

    def __init__(self, decay: float = 0.98) -> None:
        self._decay, self._total, self._weight = decay, 0.0, 0.0

    def add(self, value: float) -> float:
        if math.isfinite(value):
            self._total = self._decay * self._total + value
            self._weight = self._decay * self._weight + 1
        return self.value

    @property
    def value(self) -> float:
        """The mean; NaN where nothing was added."""
        return self._total / self._weight if self._weight else math.nan
