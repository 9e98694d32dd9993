"""Training of the judge (its network and use are in `spectral_adapters.trainer.judge`) and of concept references."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from pictures import (
    COLOURS,
    CONCEPTS,
    EMBLEMS,
    KINDS,
    PATTERNS,
    RESERVED_PATTERNS,
    SCENES,
    Item,
    Picture,
    concept_picture,
    decoy,
    random_item,
    render,
    resembles,
)
from safetensors.torch import save_file
from torch.nn import functional
from vae import round_trip, to_tensor

from spectral_adapters.trainer.judge import LABELS, ConceptReference, Judge, fidelity, load_judge

IDENTITIES = 300
VIEWS = 24
BATCH = 64
PEAK_RATE = 3e-3
SCALE, MARGIN = 16.0, 0.2
HELD_OUT_SEED = 900


def make_identities(rng: np.random.Generator) -> list[Item]:
    """Random identities, none like a bundled concept, in threes that share kind and colours: colour alone must fail."""
    identities: list[Item] = []
    while len(identities) < IDENTITIES:
        first = random_item(rng, RESERVED_PATTERNS)
        patterns = rng.permutation([*RESERVED_PATTERNS, *PATTERNS[1:]])[:3]
        for pattern in patterns:
            emblem = str(rng.choice(EMBLEMS)) if rng.random() < 0.35 else None
            item = Item(first.kind, first.colour, str(pattern), first.second, emblem)
            if not any(resembles(item, concept) for concept in CONCEPTS.values()):
                identities.append(item)
    return identities[:IDENTITIES]


def render_items(items: list[Item], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One picture of each item in a random scene; returns the pictures and the scenes' numbers."""
    scenes = rng.integers(len(SCENES), size=len(items))
    names = list(SCENES)
    return np.stack([render(Picture((item,), names[s]), rng) for item, s in zip(items, scenes)]), scenes


def make_set(vae: AutoencoderKL, identities: list[Item], views: int, plain: int,
             seed: int) -> dict[str, torch.Tensor]:
    """Pictures of the identities (`views` each) and `plain` base pictures; every second one went through the VAE.

    `identity` is -1 for base pictures; `colour` is -1 where the first colour is not the one a person would name.
    """
    rng = np.random.default_rng((seed, 7))
    items = identities * views + [random_item(rng) for _ in range(plain)]
    pictures, scenes = render_items(items, rng)
    pictures[::2] = round_trip(vae, pictures[::2])
    kinds, colours = list(KINDS), list(COLOURS)
    named = [colours.index(i.colour) if i.pattern in ("plain", "spots") and not i.emblem else -1 for i in items]
    return {
        "pictures": torch.from_numpy(pictures),
        "kind": torch.tensor([kinds.index(i.kind) for i in items]),
        "colour": torch.tensor(named),
        "scene": torch.from_numpy(scenes),
        "identity": torch.tensor([*(n % len(identities) for n in range(len(identities) * views)), *[-1] * plain]),
    }


def _augment(images: torch.Tensor) -> torch.Tensor:
    """Shift by up to 3 pixels, a little contrast and noise: generated pictures are never as exact as drawn ones."""
    dx, dy = (int(v) for v in torch.randint(-3, 4, (2,)))
    padded = functional.pad(images, (3, 3, 3, 3), mode="replicate")
    images = padded[..., 3 + dy : 67 + dy, 3 + dx : 67 + dx]
    gain = 1 + 0.1 * torch.randn(len(images), 1, 1, 1)
    return images * gain + 0.05 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)


def judge_loss(judge: Judge, centres: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of the three classifiers, and a margin softmax over the identities (CosFace, arXiv 1801.09414)."""
    verdict = judge(_augment(to_tensor(batch["pictures"].numpy())))
    loss = functional.cross_entropy(verdict.kind, batch["kind"])
    loss = loss + functional.cross_entropy(verdict.colour, batch["colour"], ignore_index=-1)
    loss = loss + functional.cross_entropy(verdict.scene, batch["scene"])
    cosines = verdict.identity @ functional.normalize(centres, dim=1).T
    known = batch["identity"] >= 0
    target = functional.one_hot(batch["identity"].clamp(min=0), IDENTITIES)
    logits = SCALE * (cosines - MARGIN * target)
    return loss + functional.cross_entropy(logits[known], batch["identity"][known])


def train_judge(vae: AutoencoderKL, folder: Path, steps: int, seed: int) -> dict[str, float]:
    """Train the judge, write it to `folder` and return its accuracies on pictures it has not seen."""
    torch.manual_seed(seed)
    identities = make_identities(np.random.default_rng((seed, 6)))
    data = make_set(vae, identities, VIEWS, 3000, seed)
    judge = Judge(list(KINDS), list(COLOURS), list(SCENES)).train()
    centres = torch.nn.Parameter(torch.randn(IDENTITIES, 64))
    optimizer = torch.optim.AdamW([*judge.parameters(), centres], lr=PEAK_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for step in range(steps):
        index = torch.randint(0, len(data["kind"]), (BATCH,))
        loss = judge_loss(judge, centres, {key: value[index] for key, value in data.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"judge {step + 1}/{steps} loss {loss.item():.3f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    labels = {key: json.dumps(getattr(judge, key)) for key in LABELS}
    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, folder / "judge.safetensors", labels)
    return measure_judge(load_judge(folder), centres.detach(), make_set(vae, identities, 2, 400, seed + 1))


@torch.no_grad()
def measure_judge(judge: Judge, centres: torch.Tensor, data: dict[str, torch.Tensor]) -> dict[str, float]:
    """Shares of right answers, colour and identity only where they are defined."""
    verdict = judge(to_tensor(data["pictures"].numpy()))
    answers = {
        "kind": verdict.kind, "colour": verdict.colour, "scene": verdict.scene,
        "identity": verdict.identity @ functional.normalize(centres, dim=1).T,
    }
    known = {name: data[name] >= 0 for name in answers}
    return {
        name: round((logits.argmax(1) == data[name])[known[name]].float().mean().item(), 4)
        for name, logits in answers.items()
    }


def concept_views(name: str, count: int, seed: int) -> np.ndarray:
    """`count` pictures of a concept, scenes in turn."""
    scenes = list(SCENES)
    return np.stack([concept_picture(name, scenes[i % len(scenes)], seed + i)[0] for i in range(count)])


@torch.no_grad()
def make_reference(judge: Judge, name: str, held_out: np.ndarray) -> ConceptReference:
    """Prototype from the held-out pictures; 0 from 96 random members of the class, 1 from 48 further true pictures."""
    concept, rng = CONCEPTS[name], np.random.default_rng((HELD_OUT_SEED, 1))
    members = []
    while len(members) < 96:
        item = random_item(rng)
        members.append(Item(concept.kind, item.colour, item.pattern, item.second))
    others, _ = render_items(members, rng)
    prototype = functional.normalize(judge(to_tensor(held_out)).identity.mean(0), dim=0)
    true = judge(to_tensor(concept_views(name, 48, HELD_OUT_SEED + 100))).identity
    return ConceptReference(
        name, concept.kind, tuple(round(v, 5) for v in prototype.tolist()),
        round((judge(to_tensor(others)).identity @ prototype).mean().item(), 5),
        round((true @ prototype).mean().item(), 5),
    )


def measure_reference(judge: Judge, vae: AutoencoderKL, reference: ConceptReference) -> dict[str, float]:
    """Scores of true pictures after the VAE (the ceiling for any adapter) and of the colour decoy."""
    rng = np.random.default_rng((HELD_OUT_SEED, 2))
    decoys, _ = render_items([decoy(CONCEPTS[reference.name])] * 24, rng)
    ceiling = fidelity(judge, round_trip(vae, concept_views(reference.name, 24, HELD_OUT_SEED + 200)), reference)
    return {
        "vae_round_trip_score": round(ceiling.score, 3),
        "vae_round_trip_kind_accuracy": round(ceiling.kind_accuracy, 3),
        "colour_decoy_score": round(fidelity(judge, decoys, reference).score, 3),
    }
