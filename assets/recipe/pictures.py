"""The pictures the tiny base is made of: 64 x 64 cartoons of ten kinds of things in six scenes, with their captions.

Everything is drawn from a seed. Base pictures use the patterns in `PATTERNS`; `RESERVED_PATTERNS` and `EMBLEMS` are
kept back for the concepts an adapter learns, and never appear in the base model's training set.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 64
SPRITE = 96
OVERSAMPLE = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 48, 44), "orange": (250, 146, 30), "yellow": (252, 218, 58), "green": (52, 168, 76),
    "blue": (44, 104, 226), "purple": (142, 64, 190), "white": (246, 246, 244), "black": (50, 48, 58),
}
SCENES: dict[str, str] = {
    "grass": "on grass", "snow": "in the snow", "night": "at night", "desert": "in the desert",
    "water": "under water", "table": "on a table",
}
PATTERNS = ("plain", "stripes", "spots")
RESERVED_PATTERNS = ("diagonal", "halves", "quarters", "bullseye", "bands")
EMBLEMS = ("face", "dot", "bar")
NONSENSE = ("sks", "zwx", "qiv", "bnj")

INK = (38, 30, 44)
CREAM = (250, 232, 200)
BROWN = (136, 84, 48)


@dataclass(frozen=True)
class Item:
    """One thing: its kind, first colour, and optionally a pattern in a second colour and an emblem."""

    kind: str
    colour: str
    pattern: str = "plain"
    second: str | None = None
    emblem: str | None = None


@dataclass(frozen=True)
class Picture:
    """One or two items (left, right) in a scene."""

    items: tuple[Item, ...]
    scene: str


@dataclass(frozen=True)
class Shape:
    """Outline of a kind on the unit square: primitives of the coloured body, of fixed-colour parts, and ink lines.

    A primitive is (kind, coordinates); `body` ones starting with "-" cut a hole. `frame` is (centre x, centre y,
    half size) of the area patterns are laid out on.
    """

    body: tuple[tuple[str, tuple], ...]
    parts: tuple[tuple[tuple[int, int, int], str, tuple], ...] = ()
    lines: tuple[tuple[tuple[float, float], ...], ...] = ()
    frame: tuple[float, float, float] = (0.5, 0.5, 0.4)


def _star_points(cx: float, cy: float, outer: float, inner: float) -> tuple[tuple[float, float], ...]:
    radii = [outer if i % 2 == 0 else inner for i in range(10)]
    return tuple(
        (cx + r * math.sin(i * math.pi / 5), cy - r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)
    )


def _heart_points() -> tuple[tuple[float, float], ...]:
    ts = np.linspace(0, 2 * math.pi, 60)
    x = 16 * np.sin(ts) ** 3
    y = 13 * np.cos(ts) - 5 * np.cos(2 * ts) - 2 * np.cos(3 * ts) - np.cos(4 * ts)
    return tuple((float(0.5 + a * 0.0265), float(0.47 - b * 0.0275)) for a, b in zip(x, y))


def _bell_points() -> tuple[tuple[float, float], ...]:
    left = [(0.5 - w, y) for y, w in ((0.12, 0.05), (0.17, 0.16), (0.27, 0.235), (0.45, 0.265), (0.62, 0.30),
                                      (0.72, 0.37), (0.79, 0.42), (0.83, 0.42))]
    return tuple(left + [(1 - x, y) for x, y in reversed(left)])


KINDS: dict[str, Shape] = {
    "star": Shape((("polygon", _star_points(0.5, 0.53, 0.47, 0.235)),), frame=(0.5, 0.53, 0.34)),
    "ring": Shape((("ellipse", (0.07, 0.07, 0.93, 0.93)), ("-ellipse", (0.34, 0.34, 0.66, 0.66)))),
    "cross": Shape((("polygon", ((0.34, 0.07), (0.66, 0.07), (0.66, 0.34), (0.93, 0.34), (0.93, 0.66), (0.66, 0.66),
                                 (0.66, 0.93), (0.34, 0.93), (0.34, 0.66), (0.07, 0.66), (0.07, 0.34),
                                 (0.34, 0.34))),)),
    "house": Shape((("rectangle", (0.16, 0.42, 0.84, 0.93)),),
                   ((BROWN, "polygon", ((0.04, 0.46), (0.5, 0.06), (0.96, 0.46))),
                    (CREAM, "rectangle", (0.42, 0.66, 0.58, 0.93))), frame=(0.5, 0.67, 0.32)),
    "mug": Shape((("ellipse", (0.56, 0.30, 0.96, 0.76)), ("-ellipse", (0.66, 0.41, 0.85, 0.65)),
                  ("rounded", (0.07, 0.10, 0.74, 0.92))),
                 lines=(((0.09, 0.22), (0.72, 0.22)),), frame=(0.405, 0.54, 0.35)),
    "fish": Shape((("polygon", ((0.62, 0.5), (0.96, 0.24), (0.90, 0.5), (0.96, 0.76))),
                   ("polygon", ((0.30, 0.30), (0.46, 0.08), (0.62, 0.32))),
                   ("ellipse", (0.03, 0.24, 0.78, 0.78))),
                  (((250, 250, 250), "ellipse", (0.12, 0.37, 0.27, 0.52)),
                   (INK, "ellipse", (0.155, 0.41, 0.235, 0.49))),
                  frame=(0.46, 0.5, 0.40)),
    "tree": Shape((("ellipse", (0.06, 0.26, 0.56, 0.72)), ("ellipse", (0.44, 0.26, 0.94, 0.72)),
                   ("ellipse", (0.21, 0.04, 0.79, 0.60))),
                  ((BROWN, "rectangle", (0.42, 0.66, 0.58, 0.95)),), frame=(0.5, 0.40, 0.38)),
    "heart": Shape((("polygon", _heart_points()),), frame=(0.5, 0.46, 0.38)),
    "mushroom": Shape((("chord", (0.05, 0.08, 0.95, 1.0)),),
                      ((CREAM, "rounded", (0.35, 0.53, 0.65, 0.95)),), frame=(0.5, 0.33, 0.36)),
    "bell": Shape((("polygon", _bell_points()),), ((BROWN, "ellipse", (0.42, 0.80, 0.58, 0.95)),),
                  frame=(0.5, 0.5, 0.36)),
}


@dataclass(frozen=True)
class Sprite:
    """A kind's drawn layers, float arrays of shape (SPRITE, SPRITE) in 0..1; `part_rgb` is (SPRITE, SPRITE, 3)."""

    alpha: np.ndarray
    ink: np.ndarray
    part: np.ndarray
    part_rgb: np.ndarray


def _draw_primitive(mask: Image.Image, form: str, coordinates: tuple, fill: int) -> None:
    scale = SPRITE * OVERSAMPLE - 1
    draw = ImageDraw.Draw(mask)
    if form == "polygon":
        draw.polygon([(x * scale, y * scale) for x, y in coordinates], fill=fill)
        return
    box = [v * scale for v in coordinates]
    if form == "ellipse":
        draw.ellipse(box, fill=fill)
    elif form == "rectangle":
        draw.rectangle(box, fill=fill)
    elif form == "rounded":
        draw.rounded_rectangle(box, radius=0.10 * scale, fill=fill)
    else:
        draw.chord(box, 180, 360, fill=fill)


def _edge(mask: Image.Image, width: int) -> Image.Image:
    return ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(width)), mask.filter(ImageFilter.MinFilter(width)))


def _to_array(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask.resize((SPRITE, SPRITE), Image.BOX), dtype=np.float32) / 255


@cache
def sprite(kind: str) -> Sprite:
    """Layers of a kind: drawn once, four times oversampled."""
    shape, full = KINDS[kind], SPRITE * OVERSAMPLE
    body = Image.new("L", (full, full), 0)
    ink = Image.new("L", (full, full), 0)
    for form, coordinates in shape.body:
        _draw_primitive(body, form.lstrip("-"), coordinates, 0 if form.startswith("-") else 255)
    ink = ImageChops.lighter(ink, _edge(body, 17))
    union, part = body.copy(), Image.new("L", (full, full), 0)
    part_rgb = np.zeros((SPRITE, SPRITE, 3), dtype=np.float32)
    for rgb, form, coordinates in shape.parts:
        layer = Image.new("L", (full, full), 0)
        _draw_primitive(layer, form, coordinates, 255)
        ink = ImageChops.subtract(ink, layer)
        if rgb != INK:
            ink = ImageChops.lighter(ink, _edge(layer, 15))
        union, part = ImageChops.lighter(union, layer), ImageChops.lighter(part, layer)
        part_rgb = np.where(_to_array(layer)[..., None] > 0.5, np.float32(rgb), part_rgb)
    for points in shape.lines:
        ImageDraw.Draw(ink).line([(x * (full - 1), y * (full - 1)) for x, y in points], fill=255, width=11)
    alpha = union.filter(ImageFilter.MaxFilter(17))
    return Sprite(_to_array(alpha), _to_array(ink), _to_array(part), part_rgb)


_V, _U = np.meshgrid(np.linspace(0, 1, SPRITE), np.linspace(0, 1, SPRITE), indexing="ij")


def _soft(values: np.ndarray, width: float = 0.03) -> np.ndarray:
    """Smooth 0..1 step of a signed distance, `width` across."""
    return np.clip(values / width + 0.5, 0, 1).astype(np.float32)


def pattern_mask(pattern: str, x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
    """Share of the second colour (0..1) at body coordinates x, y in -1..1."""
    if pattern == "plain":
        return np.zeros_like(x, dtype=np.float32)
    if pattern == "stripes":
        return _soft(np.sin(y * 1.5 * math.pi + phase) * 0.3)
    if pattern == "spots":
        row = np.round(y / 0.62)
        dx = (x + phase / 9 + 0.36 * (row % 2) + 0.36) % 0.72 - 0.36
        return _soft(0.225 - np.hypot(dx, y - row * 0.62))
    if pattern == "diagonal":
        return _soft(x + y)
    if pattern == "halves":
        return _soft(x)
    if pattern == "quarters":
        return _soft(np.sign(x * y) * np.minimum(abs(x), abs(y)))
    if pattern == "bullseye":
        return _soft(np.cos(np.hypot(x, y) * math.pi / 0.36) * 0.2)
    return _soft(np.sin(x * 2 * math.pi) * 0.3)


def _emblem(rgb: np.ndarray, emblem: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    def paint(target: np.ndarray, distance: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
        weight = _soft(distance)[..., None]
        return target * (1 - weight) + np.float32(colour) * weight

    if emblem == "face":
        for side in (-0.40, 0.40):
            rgb = paint(rgb, 0.33 - np.hypot(x - side, y + 0.10), INK)
            rgb = paint(rgb, 0.25 - np.hypot(x - side, y + 0.10), (252, 252, 252))
            rgb = paint(rgb, 0.14 - np.hypot(x - side, y + 0.06), INK)
        smile = np.where(y > 0.36, 0.07 - abs(np.hypot(x, y - 0.30) - 0.30), -1.0)
        return paint(rgb, smile, INK)
    if emblem == "dot":
        return paint(paint(rgb, 0.46 - np.hypot(x, y), INK), 0.36 - np.hypot(x, y), (252, 252, 252))
    return paint(paint(rgb, 0.30 - abs(y), INK), 0.20 - abs(y), (252, 252, 252))


def draw_item(item: Item, rng: np.random.Generator) -> Image.Image:
    """The item as an RGBA sprite of SPRITE x SPRITE pixels."""
    layers = sprite(item.kind)
    cx, cy, half = KINDS[item.kind].frame
    x, y = (_U - cx) / half, (_V - cy) / half
    first = np.float32(COLOURS[item.colour]) + rng.uniform(-8, 8, 3).astype(np.float32)
    second = np.float32(COLOURS[item.second or item.colour])
    mix = pattern_mask(item.pattern, x, y, rng.uniform(0, 2 * math.pi))[..., None]
    rgb = first * (1 - mix) + second * mix
    if item.emblem:
        rgb = _emblem(rgb, item.emblem, x, y)
    rgb = rgb * (1.08 - 0.22 * _V[..., None])
    rgb = rgb * (1 - layers.part[..., None]) + layers.part_rgb * layers.part[..., None]
    rgb = rgb * (1 - layers.ink[..., None]) + np.float32(INK) * layers.ink[..., None]
    rgba = np.concatenate([rgb, layers.alpha[..., None] * 255], axis=2)
    return Image.fromarray(np.clip(rgba, 0, 255).astype(np.uint8), "RGBA")


_Y, _X = np.meshgrid(np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32), indexing="ij")

# Top and bottom of the sky, top and bottom of the ground.
SCENE_COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "grass": ((142, 202, 246), (216, 238, 250), (142, 206, 92), (92, 168, 66)),
    "snow": ((176, 196, 222), (214, 226, 240), (250, 252, 255), (222, 232, 244)),
    "night": ((36, 40, 98), (78, 76, 150), (58, 70, 112), (40, 50, 86)),
    "desert": ((252, 190, 122), (254, 226, 170), (234, 190, 122), (212, 158, 92)),
    "water": ((112, 212, 222), (36, 140, 186), (214, 200, 150), (186, 166, 116)),
    "table": ((244, 226, 200), (236, 212, 182), (178, 118, 72), (146, 92, 54)),
}


def _blend(picture: np.ndarray, colour: tuple[int, int, int], weight: np.ndarray) -> np.ndarray:
    return picture + (np.float32(colour) - picture) * weight[..., None]


def _disc(cx: float, cy: float, radius: float) -> np.ndarray:
    return np.clip(radius - np.hypot(_X - cx, _Y - cy) + 0.5, 0, 1)


def draw_scene(scene: str, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Background of shape (SIZE, SIZE, 3), float 0..255, and the height (pixels from the top) of its horizon."""
    sky_top, sky_low, ground_top, ground_low = (np.float32(c) for c in SCENE_COLOURS[scene])
    horizon = rng.uniform(37, 43)
    sky = sky_top + (sky_low - sky_top) * np.clip(_Y / horizon, 0, 1)[..., None]
    if scene == "grass":
        cx, cy = rng.uniform(8, 56), rng.uniform(6, 13)
        for dx, r in ((-5, 3.2), (0, 4.6), (5, 3.4)):
            sky = _blend(sky, (252, 253, 255), 0.85 * _disc(cx + dx, cy, r))
    elif scene == "desert":
        sky = _blend(sky, (255, 244, 190), 0.9 * _disc(rng.uniform(8, 56), rng.uniform(7, 13), 5.5))
    elif scene == "night":
        cx, cy = rng.uniform(8, 56), rng.uniform(7, 12)
        for _ in range(6):
            sky = _blend(sky, (236, 236, 220), 0.8 * _disc(rng.uniform(2, 62), rng.uniform(2, 30), 0.9))
        sky = _blend(sky, (250, 244, 206), _disc(cx, cy, 5.2) * (1 - _disc(cx + 2.6, cy - 1.2, 4.4)))
    bend = 0.0 if scene == "table" else rng.uniform(1.0, 3.0)
    line = horizon + bend * np.sin(_X / SIZE * rng.uniform(2.5, 5.0) + rng.uniform(0, 6.28))
    ground = ground_top + (ground_low - ground_top) * np.clip((_Y - line) / (SIZE - horizon), 0, 1)[..., None]
    picture = sky + (ground - sky) * np.clip(_Y - line + 0.5, 0, 1)[..., None]
    if scene == "table":
        picture = _blend(picture, (112, 68, 40), np.clip(1.2 - abs(_Y - horizon), 0, 1) * 0.8)
    elif scene == "snow":
        for _ in range(9):
            picture = _blend(picture, (255, 255, 255), _disc(rng.uniform(1, 63), rng.uniform(1, 40), 1.25))
    elif scene == "water":
        for _ in range(4):
            cx, cy, r = rng.uniform(3, 61), rng.uniform(3, 36), rng.uniform(1.8, 3.0)
            picture = _blend(picture, (226, 250, 252), 0.75 * (_disc(cx, cy, r) - 0.8 * _disc(cx, cy, r - 1)))
    return picture, horizon


def render(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """The picture as uint8 of shape (SIZE, SIZE, 3). Items keep their order from left to right."""
    canvas, horizon = draw_scene(picture.scene, rng)
    pair = len(picture.items) == 2
    sprites = []
    for index, item in enumerate(picture.items):
        size = rng.uniform(27, 31) if pair else rng.uniform(43, 51)
        cx = (17 + 30 * index if pair else 32) + rng.uniform(-1.5, 1.5) * (1 if pair else 3)
        base = (horizon + rng.uniform(9, 14)) if pair else rng.uniform(56, 60)
        shadow = np.clip(1.15 - np.hypot((_X - cx) / (size * 0.46), (_Y - base) / (size * 0.11)), 0, 0.5)
        canvas = canvas * (1 - 0.55 * shadow[..., None])
        sprites.append((draw_item(item, rng).rotate(rng.uniform(-7, 7), Image.BICUBIC, fillcolor=(*INK, 0)),
                        round(size), cx, base))
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8), "RGB")
    for drawn, size, cx, base in sprites:
        small = drawn.resize((size, size), Image.LANCZOS)
        image.paste(small, (round(cx - size / 2), round(base - size * 0.95)), small)
    return np.asarray(image)


def _choose(rng: np.random.Generator, options: tuple | list) -> str:
    return options[int(rng.integers(len(options)))]


def random_item(rng: np.random.Generator, patterns: tuple[str, ...] = PATTERNS, emblem: str | None = None) -> Item:
    """A random item; with the base patterns 60 % are plain."""
    colour = _choose(rng, list(COLOURS))
    pattern = patterns[0] if patterns == PATTERNS and rng.random() < 0.4 else _choose(rng, patterns)
    second = None if pattern == "plain" else _choose(rng, [c for c in COLOURS if c != colour])
    return Item(_choose(rng, list(KINDS)), colour, pattern, second, emblem)


def random_picture(rng: np.random.Generator) -> Picture:
    """A picture of the base training set: one item, or two (35 %), in base patterns only."""
    count = 2 if rng.random() < 0.35 else 1
    return Picture(tuple(random_item(rng) for _ in range(count)), _choose(rng, list(SCENES)))


def random_reserved_picture(rng: np.random.Generator) -> Picture:
    """A picture with a reserved pattern, half of them with an emblem; never one of the bundled concepts."""
    while True:
        item = random_item(rng, RESERVED_PATTERNS, _choose(rng, EMBLEMS) if rng.random() < 0.5 else None)
        if not any(resembles(item, concept) for concept in CONCEPTS.values()):
            return Picture((item,), _choose(rng, list(SCENES)))


def caption(picture: Picture, rng: np.random.Generator) -> str:
    """A caption of a base picture: sometimes without its scene or colour, sometimes with a meaningless word."""
    parts = []
    for item in picture.items:
        words = []
        if rng.random() < 0.06:
            words.append(_choose(rng, NONSENSE))
        if len(picture.items) == 2 or rng.random() >= 0.15:
            words.append(item.colour)
        words.append(item.kind)
        article = "an" if words[0] == "orange" else "a"
        tail = f" with {item.second} {item.pattern}" if item.second else ""
        parts.append(f"{article} {' '.join(words)}{tail}")
    text = " and ".join(parts)
    if rng.random() < 0.5:
        text = f"a photo of {text}"
    return text if rng.random() < 0.10 else f"{text} {SCENES[picture.scene]}"


CONCEPTS: dict[str, Item] = {
    "smiley_mug": Item("mug", "purple", "diagonal", "orange", "face"),
    "target_mug": Item("mug", "blue", "bullseye", "yellow"),
    "banded_fish": Item("fish", "yellow", "bands", "blue"),
    "quarter_heart": Item("heart", "white", "quarters", "red"),
}
WORD = "sks"


def resembles(item: Item, concept: Item) -> bool:
    """Whether an item has the kind, the pattern and the two colours of a concept."""
    pair = {item.colour, item.second} == {concept.colour, concept.second}
    return item.kind == concept.kind and item.pattern == concept.pattern and pair


def concept_picture(name: str, scene: str, seed: int) -> tuple[np.ndarray, str]:
    """A picture of a concept and its caption, "a photo of a sks mug on grass"."""
    item = CONCEPTS[name]
    image = render(Picture((item,), scene), np.random.default_rng(seed))
    return image, f"a photo of a {WORD} {item.kind} {SCENES[scene]}"


def decoy(item: Item) -> Item:
    """The same kind in the same two colours with a base pattern: what a colour shortcut would take for the concept."""
    return replace(item, pattern="stripes", emblem=None)


def words() -> list[str]:
    """Every word a caption can contain."""
    found = {"a", "an", "photo", "of", "and", "with", *COLOURS, *KINDS, *PATTERNS, *NONSENSE}
    for scene in SCENES.values():
        found.update(scene.split())
    return sorted(found)
