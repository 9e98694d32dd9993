"""What to train: one dataclass, checked as a whole before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..spectral.errors import SettingError
from ..spectral.methods import Method, method

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class TrainSpec:
    """A training run.

    base: "tiny", a diffusers folder, or a single-file SD1.x .safetensors.
    images: a folder of pictures, captions beside them as .txt. out: the adapter file to write; must not exist.
    method, rank, columns, rotation: see `spectral.methods`; None is the method's own choice.
    targets: "attention", "cross-attention", "attention+ff", "all" or a regular expression on module paths.
    lr: learning rate; None takes the method's own, which suits full-size Stable Diffusion.
    text_encoder: also train the text encoder, at text_encoder_lr (None: a tenth of lr).
    resolution: pixels of the square training pictures; None is the base's own size.
    trigger: the word that calls the concept up; the caption of pictures that have none.
    schedule: how the rate goes after `warmup` steps: constant, or down to 0 linearly or as a cosine.
    min_snr_gamma: cap of the signal-to-noise weight (Min-SNR, arXiv 2303.09556); None weights all noise levels alike.
    clip: largest norm of the whole gradient.
    seed: fixes picture order, noise and timesteps. device: "cpu", or None for what accelerate finds.
    """

    base: str
    images: Path
    out: Path
    method: str = "additive"
    rank: int | None = None
    columns: str | None = None
    rotation: str | None = None
    targets: str = "attention"
    steps: int = 1000
    batch_size: int = 1
    lr: float | None = None
    text_encoder: bool = False
    text_encoder_lr: float | None = None
    resolution: int | None = None
    trigger: str = ""
    schedule: Schedule = "constant"
    warmup: int = 0
    min_snr_gamma: float | None = 5.0
    clip: float = 1.0
    seed: int = 0
    tokenizer: str | None = None
    device: Literal["cpu"] | None = None

    def build_method(self) -> Method:
        """The method with this run's settings. Raises SettingError."""
        settings = {"rotation": self.rotation} if self.rotation is not None else {}
        return method(self.method, rank=self.rank, columns=self.columns, **settings)

    def rates(self, chosen: Method) -> tuple[float, float]:
        """Learning rates of the UNet and of the text encoder."""
        unet = chosen.lr if self.lr is None else self.lr
        return unet, unet * 0.1 if self.text_encoder_lr is None else self.text_encoder_lr

    def check(self) -> None:
        """Raise SettingError for the first setting that cannot be honoured."""
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)}; expected at least 1")
        for name in ("lr", "text_encoder_lr", "min_snr_gamma", "clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingError(f"{name}={value}; expected a positive number")
        if self.warmup < 0:
            raise SettingError(f"warmup={self.warmup}; expected 0 or more steps")
        if self.schedule not in get_args(Schedule):
            raise SettingError(f"schedule={self.schedule!r}; expected one of {', '.join(get_args(Schedule))}")
        if self.text_encoder_lr is not None and not self.text_encoder:
            raise SettingError("text_encoder_lr is given but the text encoder is not trained; add --text-encoder")
        self._check_out()
        self.build_method()

    def _check_out(self) -> None:
        if self.out.suffix != ".safetensors":
            raise SettingError(f"the adapter file {self.out} must end in .safetensors")
        if self.out.exists():
            raise SettingError(f"{self.out} exists already and is never overwritten; choose another name with --out")
        if not self.out.absolute().parent.is_dir():
            raise SettingError(f"the folder {self.out.absolute().parent} does not exist; make it first")

    def pixels(self, own: int, multiple: int) -> int:
        """The training resolution on a base of `own` size whose pictures' sides are multiples of `multiple`."""
        chosen = own if self.resolution is None else self.resolution
        if chosen < multiple or chosen % multiple:
            raise SettingError(f"resolution={chosen}; this base takes multiples of {multiple} pixels")
        return chosen


@dataclass(frozen=True)
class Recipe:
    """What to use for a method on a base where nothing is asked for. lr, rank None: the method's own."""

    steps: int
    lr: float | None = None
    rank: int | None = None
    targets: str = "attention"
    batch_size: int = 1
    warmup: int = 0


# Found by trying (docs/training.md): the tiny base has large weights and short runs, so its rates are far above
# Stable Diffusion's.
TINY_RECIPES: dict[str, Recipe] = {
    "svdiff": Recipe(200, 2e-2, targets="all", batch_size=8, warmup=20),
    "additive": Recipe(200, 1e-3, targets="all", batch_size=8, warmup=20),
    "rotation": Recipe(200, 2e-3, rank=16, targets="all", batch_size=8, warmup=20),
    "soda": Recipe(200, 1.2e-2, targets="all", batch_size=8, warmup=20),
}


def recipe(base: str, method_name: str) -> Recipe:
    """The tiny base's tried settings of a method; elsewhere 1000 steps at the method's own rate."""
    return TINY_RECIPES.get(method_name, Recipe(1000)) if base == "tiny" else Recipe(1000)
