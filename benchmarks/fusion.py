"""Three concepts in one model: adapters on blocks of columns of their own, on the same block, and LoRAs, summed.

    python benchmarks/fusion.py [--seeds 3] [--steps 200] [--work output/fusion] [--only-train]

On the tiny base. Three concepts (assets/recipe/pictures.py) are each trained by one loop, on five pictures of the
concept and ten on which it stands beside another thing: as `additive` of rank 8 on columns 0-7, 8-15 and 16-23, as
`additive` all on columns 0-7, and as PEFT's LoRA of rank 8, which has the same number of parameters. The three of a
kind are fused: added at full weight, averaged, and (first seed only) by gradient fusion with inputs recorded while each
adapter samples four pictures of its concept. The judge then scores pictures of each concept by itself, made with its
adapter alone and with the fusion: fidelity (0: any thing of the kind, 1: the concept) counts only where a picture shows
the right kind of thing. Trained files stay in --work and are not trained again.

One base model of 8 MB, three concepts: this says how the sum behaves here, not how methods rank on Stable Diffusion.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import write
from peft import LoraConfig
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import spectral_adapters as sa
from spectral_adapters.spectral import names
from spectral_adapters.spectral.change import norm
from spectral_adapters.spectral.fusion import FusionMode, Ingredient, fuse
from spectral_adapters.spectral.merge import merge
from spectral_adapters.spectral.methods.base import matrix_shape
from spectral_adapters.spectral.moments import Recorder, by_layer
from spectral_adapters.spectral.open import open_source
from spectral_adapters.spectral.source import Source
from spectral_adapters.spectral.targets import select
from spectral_adapters.trainer.demo import OTHERS
from spectral_adapters.trainer.judge import ASSETS, Judge, describe, fidelity, load_judge
from spectral_adapters.trainer.models import TINY, Base, load_base
from spectral_adapters.trainer.samples import Look, Shot, sample
from spectral_adapters.trainer.sheet import Row, sheet

sys.path.insert(0, str(ASSETS / "recipe"))
import judge as recipe_judge
from pictures import CONCEPTS, NONSENSE, SCENES, Picture, concept_picture, random_item, render

WORDS = dict(zip(("banded_fish", "target_mug", "quarter_heart"), NONSENSE))
RANK = 8
RATES = {"additive": 1e-3, "lora": 2e-3}  # of equal drift on this base
PACES = {"as in the demo": 1.0, "gently": 0.5}  # times these rates
ALONE, BESIDE = 5, 10  # pictures to train on
BATCH, WARMUP = 8, 20
ROUNDS = 2  # pictures of each concept in each of six scenes
RECORDED = 4  # pictures of each concept that gradient fusion records
LOOK = Look((64, 64), 25, 4.0)
MODES: tuple[FusionMode, ...] = ("sum", "mean")
SLOW: FusionMode = "gradient"  # of the first seed at the demo's rate only: it takes a hundred times as long
SHOWN = (0, 3)  # of the twelve pictures of a concept
PAIRS = (("banded_fish", "target_mug", "on grass"), ("quarter_heart", "banded_fish", "in the snow"))
DRAWN = ("each adapter alone", "sum", "gradient")
PREFIX = names.UNET_PREFIX


@dataclass(frozen=True)
class Kind:
    """How the three adapters of a fusion are trained: `blocks` are their columns' first ones, None for a LoRA."""

    name: str
    blocks: tuple[int, int, int] | None

    def file(self, concept: str, seed: int, pace: float) -> str:
        at = "lora" if self.blocks is None else f"columns{self.blocks[list(WORDS).index(concept)]}"
        return f"{concept}-{at}-{seed}-{pace:g}.safetensors"


KINDS = (
    Kind("columns of their own", (0, RANK, 2 * RANK)),
    Kind("the same columns", (0, 0, 0)),
    Kind("LoRA", None),
)


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def training_set(concept: str, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Pictures and captions: the concept alone, and left or right of random things in base colours and patterns."""
    rng, item, word = np.random.default_rng((seed, 7)), CONCEPTS[concept], WORDS[concept]
    pictures, captions = [], []
    for i, scene in enumerate(list(SCENES)[:ALONE]):
        picture, _ = concept_picture(concept, scene, 100 + i)
        pictures.append(picture)
        captions.append(f"a photo of a {word} {item.kind} {SCENES[scene]}")
    for i in range(BESIDE):
        other, scene = random_item(rng), list(SCENES)[i % len(SCENES)]
        pair = (item, other) if i % 2 else (other, item)
        tail = f" with {other.second} {other.pattern}" if other.second else ""
        said = {item: f"a {word} {item.kind}", other: f"{article(f'{other.colour} {other.kind}')}{tail}"}
        pictures.append(render(Picture(pair, scene), rng))
        captions.append(f"{said[pair[0]]} and {said[pair[1]]} {SCENES[scene]}")
    return pictures, captions


def train(base: Base, parameters: list[nn.Parameter], concept: str, lr: float, steps: int, seed: int) -> None:
    """Noise prediction on the UNet's new parameters; the same pictures, noise and timesteps for every kind."""
    pictures, captions = training_set(concept, seed)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents, text = base.latents(pixels), base.encode(captions)
    gen = torch.Generator().manual_seed(seed)
    # Pictures of the concept alone come as often as those beside others.
    weights = torch.tensor([BESIDE / ALONE] * ALONE + [1.0] * BESIDE)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / WARMUP, (steps - i) / steps))
    for _ in range(steps):
        chosen = torch.multinomial(weights, BATCH, generator=gen)
        noise = torch.randn(latents[chosen].shape, generator=gen)
        times = torch.randint(base.noise.config.num_train_timesteps, (BATCH,), generator=gen)
        found = base.predict(base.noise.add_noise(latents[chosen], noise, times), times, text[chosen])
        optimizer.zero_grad()
        nn.functional.mse_loss(found, noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()


def targets(unet: nn.Module) -> list[str]:
    """The layers that have room for three blocks: all but the first and the last convolution."""
    return [
        path for path in select(unet, "all") if min(matrix_shape(unet.get_submodule(path).weight.shape)) >= 3 * RANK
    ]


def train_additive(concept: str, block: int, lr: float, steps: int, seed: int, path: Path) -> None:
    base = load_base(TINY)
    method = sa.method("additive", columns=f"top:{RANK}@{block}")
    _, adapter = sa.inject(base.unet, method, targets(base.unet), prefix=PREFIX)
    train(base, list(adapter.parameters()), concept, lr, steps, seed)
    sa.save(adapter, path, trigger_words=[WORDS[concept]], dtype=torch.float32)


def train_lora(concept: str, lr: float, steps: int, seed: int, path: Path) -> None:
    torch.manual_seed(seed)
    base = load_base(TINY)
    chosen = targets(base.unet)
    base.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=chosen))
    train(base, [p for p in base.unet.parameters() if p.requires_grad], concept, lr, steps, seed)
    save_file(_kohya(base.unet, chosen), path)


def _kohya(unet: nn.Module, paths: list[str]) -> dict[str, Tensor]:
    """PEFT's factors under kohya's names; alpha is the rank."""
    tensors = {}
    for path in paths:
        layer, name = unet.get_submodule(path), PREFIX + path.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = layer.lora_A["default"].weight.detach().contiguous()
        tensors[f"{name}.lora_up.weight"] = layer.lora_B["default"].weight.detach().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    return tensors


def train_all(work: Path, seeds: int, steps: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for pace, seed, kind, concept in itertools.product(PACES.values(), range(seeds), KINDS, WORDS):
        path, start = work / kind.file(concept, seed, pace), time.perf_counter()
        if path.exists():
            continue
        if kind.blocks is None:
            train_lora(concept, RATES["lora"] * pace, steps, seed, path)
        else:
            block = kind.blocks[list(WORDS).index(concept)]
            train_additive(concept, block, RATES["additive"] * pace, steps, seed, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


def shots(concept: str, seed: int) -> list[Shot]:
    prompts = [f"a photo of a {WORDS[concept]} {CONCEPTS[concept].kind} {s}" for s in SCENES.values()] * ROUNDS
    return [Shot(prompt, 1000 * (seed + 1) + i) for i, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class Scored:
    """score: mean over pictures of fidelity where the kind is right, else 0; kind: share of the right kind."""

    score: float
    kind: float
    pictures: list[Image.Image]


class Bench:
    """The base, the judge and what it holds the concepts against."""

    def __init__(self) -> None:
        self.judge: Judge = load_judge()
        self.references = {
            name: recipe_judge.make_reference(
                self.judge, name, recipe_judge.concept_views(name, 8, recipe_judge.HELD_OUT_SEED)
            )
            for name in WORDS
        }

    def with_source(self, source: Source | None) -> Base:
        base = load_base(TINY)
        if source is not None:
            merge(source, base.unet, prefix=PREFIX)
        return base

    def score(self, base: Base, concept: str, seed: int) -> Scored:
        pictures = sample(base, shots(concept, seed), LOOK, batch=12)
        reference = self.references[concept]
        found = fidelity(self.judge, pictures, reference)
        right = [seen[0] == reference.kind for seen in describe(self.judge, pictures)]
        return Scored(statistics.mean(s * r for s, r in zip(found.scores, right)), found.kind_accuracy, pictures)

    def others(self, base: Base, seed: int) -> float:
        """Share of prompts of other things whose kind and colour the pictures show."""
        wanted = [Shot(prompt, 2000 * (seed + 1) + i) for i, (prompt, _, _) in enumerate(OTHERS)]
        seen = describe(self.judge, sample(base, wanted, LOOK, batch=len(wanted)))
        return sum((kind, colour) == found[:2] for (_, kind, colour), found in zip(OTHERS, seen)) / len(OTHERS)


def relative_change(source: Source, base: Base) -> float:
    """||dW|| / ||W|| over the layers that the source changes."""
    weights = base.weights()
    squares = [(norm(source.change(name)) ** 2, float(weights[name].square().sum())) for name in source.shapes]
    return (sum(a for a, _ in squares) / sum(b for _, b in squares)) ** 0.5


def moments(bench: Bench, sources: dict[str, Source], seed: int) -> dict[str, tuple[Tensor, ...]]:
    """Second moments of every layer's inputs while each adapter alone makes pictures of its concept."""
    recordings = []
    for concept, source in sources.items():
        base = bench.with_source(source)
        paths = names.layer_names(base.unet, PREFIX)
        with Recorder({layer: base.unet.get_submodule(paths[layer]) for layer in source.shapes}) as recorder:
            sample(base, shots(concept, seed + 100)[:RECORDED], LOOK, batch=RECORDED)
        recordings.append(recorder.moments)
    return by_layer(recordings)


def fused(bench: Bench, sources: dict[str, Source], mode: str, seed: int) -> tuple[Base, float]:
    """The base with the fusion of the sources, and the seconds that fusing took."""
    start = time.perf_counter()
    seen = moments(bench, sources, seed) if mode == SLOW else None
    made = bench.with_source(fuse([Ingredient(source) for source in sources.values()], mode, moments=seen))
    return made, time.perf_counter() - start


def pairs(base: Base, seed: int) -> list[Image.Image]:
    said = {concept: f"a {WORDS[concept]} {CONCEPTS[concept].kind}" for concept in WORDS}
    prompts = [f"{said[a]} and {said[b]} {scene}" for a, b, scene in PAIRS]
    return sample(base, [Shot(p, 3000 * (seed + 1) + i) for i, p in enumerate(prompts)], LOOK, batch=len(prompts))


def measure(bench: Bench, work: Path, kind: Kind, seed: int, pace: float, shown: dict[str, list[Image.Image]]) -> dict:
    """Scores of the three alone and in every fusion. `shown` gets two pictures of each concept, and the pairs."""
    sources = {concept: open_source(work / kind.file(concept, seed, pace)) for concept in WORDS}
    plain = load_base(TINY)
    alone = {c: bench.score(bench.with_source(source), c, seed) for c, source in sources.items()}
    shown["each adapter alone"] = [alone[c].pictures[i] for c in WORDS for i in SHOWN]
    facts = {"alone": _plain(alone), "relative_change": {}, "others_followed": {}, "fusing_seconds": {}}
    for c, source in sources.items():
        facts["relative_change"][c] = round(relative_change(source, plain), 4)
    for mode in (*MODES, SLOW) if seed == 0 and pace == 1 else MODES:
        base, seconds = fused(bench, sources, mode, seed)
        found = {c: bench.score(base, c, seed) for c in WORDS}
        facts[mode] = _plain(found)
        facts["others_followed"][mode] = round(bench.others(base, seed), 3)
        facts["fusing_seconds"][mode] = round(seconds, 2)
        shown[mode] = [found[c].pictures[i] for c in WORDS for i in SHOWN] + pairs(base, seed)
    return facts


def _plain(found: dict[str, Scored]) -> dict[str, float]:
    return {concept: round(each.score, 3) for concept, each in found.items()}


def summary(rows: list[dict]) -> dict:
    """Means over concepts and seeds, the spread of the seeds' means, and the share of "alone" that fusing kept."""
    means = {part: [statistics.mean(row[part].values()) for row in rows] for part in ("alone", *MODES)}
    made = {part: {"mean": statistics.mean(v), "sd": statistics.stdev(v)} for part, v in means.items()}
    for mode in MODES:
        made[mode]["kept"] = statistics.mean(b / a for a, b in zip(means["alone"], means[mode]))
        made[mode]["others_followed"] = statistics.mean(row["others_followed"][mode] for row in rows)
        made[mode]["fusing_seconds"] = statistics.mean(row["fusing_seconds"][mode] for row in rows)
    change = statistics.mean(v for row in rows for v in row["relative_change"].values())
    return {
        **{part: {k: round(v, 3) for k, v in found.items()} for part, found in made.items()},
        "relative_change": round(change, 3),
    }


def draw(shown: dict[str, dict[str, list[Image.Image]]], path: Path) -> None:
    """Two pictures of each concept by its adapter alone and by the fusions, with pairs by the fusions; first seed."""
    scenes = list(SCENES.values())
    captions = [f"{WORDS[c]} {CONCEPTS[c].kind} {scenes[i % len(scenes)]}" for c in WORDS for i in SHOWN]
    captions += [f"{CONCEPTS[a].kind} and {CONCEPTS[b].kind}" for a, b, _ in PAIRS]
    rows = [
        Row(f"{kind}: {part}", pictures, captions)
        for kind, found in shown.items()
        for part, pictures in found.items()
        if part in DRAWN
    ]
    sheet(rows, cell=128).save(path)


def measure_kind(
    bench: Bench, args: argparse.Namespace, kind: Kind, pace: float, shown: dict[str, dict[str, list[Image.Image]]]
) -> dict:
    """All seeds of one kind; `shown` gets the first one's pictures."""
    rows = []
    for seed in range(args.seeds):
        pictures: dict[str, list[Image.Image]] = {}
        rows.append(measure(bench, args.work, kind, seed, pace, pictures))
        shown.setdefault(kind.name, pictures)
        print(kind.name, pace, seed, rows[-1], flush=True)
    return {**summary(rows), "seeds": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("output/fusion"))
    parser.add_argument("--only-train", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train_all(args.work, args.seeds, args.steps)
    if args.only_train:
        return
    bench, result = Bench(), {}
    for name, pace in PACES.items():
        shown: dict[str, dict[str, list[Image.Image]]] = {}
        result[name] = {kind.name: measure_kind(bench, args, kind, pace, shown) for kind in KINDS}
        draw(shown, args.work / f"fusion-{pace:g}.png")
        write("fusion", {"steps": args.steps, "rank": RANK, "rates": RATES, "concepts": WORDS, "trained": result})


if __name__ == "__main__":
    main()
