"""How good the tiny base is: VAE sharpness, and whether pictures show what the prompt asked for."""
from __future__ import annotations

from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL, StableDiffusionPipeline
from pictures import COLOURS, KINDS, SCENES, random_picture, random_reserved_picture, render
from pipeline import sample
from vae import psnr, round_trip

from spectral_adapters.trainer.judge import Judge, describe

HELD_OUT = 5_000_000


def _fresh(draw: object, count: int) -> np.ndarray:
    pictures = []
    for index in range(count):
        rng = np.random.default_rng(HELD_OUT + index)
        pictures.append(render(draw(rng), rng))
    return np.stack(pictures)


def measure_vae(vae: AutoencoderKL, concept_views: dict[str, np.ndarray]) -> dict[str, float]:
    """PSNR in dB of round trips of pictures nothing was trained on."""
    base, reserved = _fresh(random_picture, 200), _fresh(random_reserved_picture, 200)
    result = {"base_patterns": psnr(round_trip(vae, base), base),
              "reserved_patterns": psnr(round_trip(vae, reserved), reserved)}
    result |= {f"concept_{name}": psnr(round_trip(vae, views), views) for name, views in concept_views.items()}
    return {name: round(value, 2) for name, value in result.items()}


def prompt_grid() -> list[tuple[str, str, str, str]]:
    """(prompt, kind, colour, scene): every kind in every colour, scenes in turn."""
    grid = []
    scenes = list(SCENES)
    for k, kind in enumerate(KINDS):
        for c, colour in enumerate(COLOURS):
            scene = scenes[(k + c) % len(scenes)]
            article = "an" if colour == "orange" else "a"
            grid.append((f"a photo of {article} {colour} {kind} {SCENES[scene]}", kind, colour, scene))
    return grid


def measure_prompts(pipeline: StableDiffusionPipeline, judge: Judge, seeds: tuple[int, ...]) -> dict[str, float]:
    """Share of pictures on which the judge sees the kind, colour and scene that the prompt named."""
    grid = prompt_grid() * len(seeds)
    chosen = [seed * 1000 + i for seed in seeds for i in range(len(grid) // len(seeds))]
    seen = describe(judge, sample(pipeline, [row[0] for row in grid], chosen))
    hits = np.array([[a == b for a, b in zip(answer, row[1:])] for answer, row in zip(seen, grid)])
    shares = dict(zip(("kind", "colour", "scene"), (round(float(v), 4) for v in hits.mean(0))))
    return {**shares, "all_three": round(float(hits.all(1).mean()), 4), "pictures": len(grid)}


def folder_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each part of the model folder and their sum."""
    parts = {p.name: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in folder.iterdir() if p.is_dir()}
    loose = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    return {**parts, "other": loose, "all": sum(parts.values()) + loose}


