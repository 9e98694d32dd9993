"""Pictures as a viewer shows them, the sizes they are trained at, and how each is cut to its size.

A size is (width, height) in pixels throughout; only tensors and the size conditioning put the height first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageOps

Size = tuple[int, int]

# Sides of Stable Diffusion's buckets are multiples of this many pixels, as those it was trained on.
FULL_STEP = 64
_GAP = 3.0  # times the wanted size, down to which a picture is reduced cheaply: the result hardly differs
_LEAST_SHARE = 0.7  # of the resolution's area; smaller buckets would train a picture at too few pixels


def has_alpha(image: Image.Image) -> bool:
    """Whether the picture says of its pixels how opaque they are."""
    return any(band in ("A", "a") for band in image.getbands()) or "transparency" in image.info


def on_white(image: Image.Image) -> Image.Image:
    """RGB, transparency laid on white."""
    shown = _laid_on("white", image)
    return shown if shown.mode == "RGB" else shown.convert("RGB")


def _laid_on(colour: str, image: Image.Image) -> Image.Image:
    if not has_alpha(image):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image)


def opacity(image: Image.Image) -> Image.Image | None:
    """The transparency of a picture as a mask, white where it is opaque; None without one."""
    return image.convert("RGBA").getchannel("A") if has_alpha(image) else None


def as_mask(image: Image.Image) -> Image.Image:
    """A mask file as grey values; what is transparent in it counts as black."""
    return _laid_on("black", image).convert("L")


def bucket_sizes(resolution: int, step: int, buckets: bool = True) -> tuple[Size, ...]:
    """The sizes pictures are trained at: the square, and with `buckets` the others of about its area.

    Sides are multiples of `step`, the area is at most resolution², the aspect ratio from 1:2 to 2:1.
    """
    sizes = {(resolution, resolution)}
    if buckets:
        for width in range(step, 2 * resolution, step):
            height = min(resolution**2 // width, 2 * width) // step * step
            if width <= 2 * height and width * height >= _LEAST_SHARE * resolution**2:
                sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def nearest(sizes: tuple[Size, ...], size: Size) -> Size:
    """The size whose aspect ratio is nearest on a logarithmic scale; of equals the largest."""
    wanted = math.log(size[0] / size[1])
    return min(sizes, key=lambda s: (round(abs(math.log(s[0] / s[1]) - wanted), 9), -s[0] * s[1], s))


@dataclass(frozen=True)
class Crop:
    """How one picture is cut: scaled to `scaled`, cut at (left, top) to `size`, then mirrored when `flip`."""

    original: Size
    scaled: Size
    left: int
    top: int
    size: Size
    flip: bool = False

    @property
    def conditioning(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's size conditioning (arXiv 2307.01952, 2.2): original height, width, top, left, target height, width.

        The crop counts in pixels of the scaled picture. A mirrored sample states its left edge in the mirrored picture,
        as kohya's and diffusers' SDXL trainers do: the sample is then indistinguishable from one whose file was
        mirrored, and a crop that cut the subject's left side still says so.
        """
        left = self.scaled[0] - self.left - self.size[0] if self.flip else self.left
        return (self.original[1], self.original[0], self.top, left, self.size[1], self.size[0])

    @property
    def enlargement(self) -> float:
        """Trained pixels per original pixel along one side."""
        return max(self.size[0] / self.original[0], self.size[1] / self.original[1])

    @property
    def lost(self) -> float:
        """Share of the picture that is cut away."""
        return 1 - self.size[0] * self.size[1] / (self.scaled[0] * self.scaled[1])


def place(original: Size, size: Size, at: tuple[float, float] | None = None, flip: bool = False) -> Crop:
    """Scale to cover `size`, then cut around the centre, or `at` fractions below 1 of the way from the left and top."""
    scale = max(size[0] / original[0], size[1] / original[1])
    scaled = (max(size[0], round(original[0] * scale)), max(size[1], round(original[1] * scale)))
    spare = (scaled[0] - size[0], scaled[1] - size[1])
    left, top = (s // 2 if at is None else int(a * (s + 1)) for s, a in zip(spare, at or (0.0, 0.0)))
    return Crop(original, scaled, left, top, size, flip)


def scale(image: Image.Image, size: Size, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """The whole picture in another size; large ones are first reduced by a whole number, which is twice as fast."""
    return image if image.size == size else image.resize(size, resample, reducing_gap=_GAP)


def cut(image: Image.Image, crop: Crop, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """The picture or mask of one sample, `crop.size` large."""
    image = scale(image, crop.scaled, resample)
    image = image.crop((crop.left, crop.top, crop.left + crop.size[0], crop.top + crop.size[1]))
    return ImageOps.mirror(image) if crop.flip else image
