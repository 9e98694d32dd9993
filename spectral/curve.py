"""A strength that changes in the course of sampling, cut into levels that a sampler can hold.

The course runs from 0 (noise) to 1 (picture), as in ComfyUI's start and end percent: a share of the model's timesteps,
whatever the sampler's own steps are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import SettingError

Easing = Literal["linear", "ease in", "ease out", "smooth", "step", "between", "constant"]
EASINGS: tuple[Easing, ...] = get_args(Easing)
MOST_LEVELS = 200
# A sampler's step that falls on a border belongs to what follows; rounding may put it a hair before.
_HAIR = 1e-5

# The share of the way from start to end that is done at a place between begin and finish, 0 to 1. The page's curve.js
# draws the same.
_SLOPES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "ease in": lambda x: x * x,
    "ease out": lambda x: 1 - (1 - x) ** 2,
    "smooth": lambda x: x * x * (3 - 2 * x),
}


@dataclass(frozen=True)
class Curve:
    """start: the strength up to `begin`; end: that from `finish` on. easing: the way between them.

    step jumps half-way between begin and finish. between is `end` from begin to finish and `start` elsewhere.
    constant is `start` throughout.
    Raises SettingError for shares outside 0 to 1 or in the wrong order, and for strengths that are no numbers.
    """

    start: float = 1.0
    end: float = 0.0
    begin: float = 0.0
    finish: float = 1.0
    easing: Easing = "linear"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise SettingError(f"curve: found the strengths {self.start} and {self.end}, expected finite numbers")
        if not 0 <= self.begin <= self.finish <= 1:
            found = f"{100 * self.begin:g} % and {100 * self.finish:g} %"
            raise SettingError(
                f"curve: it begins and ends at {found}; expected the first not after the second, 0 to 100"
            )
        if self.easing not in EASINGS:
            raise SettingError(f"curve: easing {self.easing!r} is unknown; expected one of {', '.join(EASINGS)}")

    def at(self, share: float) -> float:
        """The strength at a share of the course, 0 to 1."""
        if slope := _SLOPES.get(self.easing):
            if share < self.begin or share >= self.finish:
                return self.start if share < self.begin else self.end
            return self._on_the_way(slope((share - self.begin) / (self.finish - self.begin)))
        return [strength for border, strength in [(0.0, self.start), *self._jumps()] if border <= share][-1]

    def keyframes(self, levels: int = 20) -> list[tuple[float, float]]:
        """(share, strength) from which on a strength holds, the first at 0; no two neighbours alike.

        levels: into how many equal parts a slope is cut. Each level holds where it is nearest to the curve, so both
        ends are exact and the error is at most half a level's rise.
        Raises SettingError for fewer than one or more than 200 levels.
        """
        if not 1 <= levels <= MOST_LEVELS:
            raise SettingError(f"curve: found {levels} levels, expected 1 to {MOST_LEVELS}")
        found = [(0.0, self.start)]
        for border, strength in self._slope(levels) if self.easing in _SLOPES else self._jumps():
            if border - _HAIR <= 0:
                found = [(0.0, strength)]
            elif border < 1 and strength != found[-1][1]:
                found.append((border - _HAIR, strength))
        return found

    @property
    def text(self) -> str:
        """In words, for the node that shows it."""
        if self.easing == "constant" or self.start == self.end:
            return f"Strength {self.start:g} throughout"
        span = f"{100 * self.begin:g} % to {100 * self.finish:g} %"
        if self.easing == "between":
            return f"Strength {self.end:g} from {span}, else {self.start:g}"
        return f"Strength {self.start:g} to {self.end:g}, from {span}, {self.easing}"

    def _slope(self, levels: int) -> list[tuple[float, float]]:
        """Where each level begins, and its strength."""
        width = self.finish - self.begin
        if width == 0:
            return [(self.begin, self.end)]
        done = [_SLOPES[self.easing](i / levels) for i in range(levels + 1)]
        return [(self.begin + (i - 0.5) / levels * width, self._on_the_way(x)) for i, x in enumerate(done)]

    def _on_the_way(self, done: float) -> float:
        # Exact at both ends, and level where they are equal.
        return self.end if self.start == self.end else (1 - done) * self.start + done * self.end

    def _jumps(self) -> list[tuple[float, float]]:
        """Where the strength jumps, and to what."""
        if self.easing == "step":
            return [((self.begin + self.finish) / 2, self.end)]
        if self.easing == "between" and self.begin < self.finish:
            return [(self.begin, self.end), (self.finish, self.start)]
        return []
