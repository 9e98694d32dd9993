"""The demo: learn a concept from five pictures on the tiny base, and show, and measure, what changed.

The adapter is trained, written, read back from its file and merged into a freshly loaded base: what the pictures show
is what somebody else would get from the file. Everything is made in a folder of its own and moved into place at the
end; the files of an earlier run move to `earlier-N` beside the new ones, so nothing is ever lost.
"""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from .. import __version__
from ..spectral.adapter import Adapter, MatchReport
from ..spectral.errors import Cancelled, SpectralError
from ..spectral.file import load
from ..spectral.merge import merge
from ..spectral.names import UNET_PREFIX
from ..spectral.threads import single_threaded
from .events import Checkpointed, Listener, Phase, Saved, silent
from .judge import Fidelity, Judge, describe, fidelity, load_judge, load_reference
from .loop import Outcome, train
from .models import ASSETS, TINY, Base, load_base
from .presets import preset_values
from .samples import Look, Shot, sample
from .sheet import Row, sheet
from .spec import TrainSpec
from .words import size_text

CONCEPT = "banded_fish"
REFERENCE = ASSETS / "demo" / f"{CONCEPT}.json"
DEFAULT_METHOD = "additive"
SCENES = ("on grass", "in the snow", "at night", "in the desert", "under water", "on a table")
# Things the base knows and the adapter should leave alone: prompt, kind, colour.
OTHERS = (
    ("a photo of a red house on grass", "house", "red"),
    ("a photo of a blue fish under water", "fish", "blue"),
    ("a photo of a green mug in the snow", "mug", "green"),
    ("a photo of a yellow star at night", "star", "yellow"),
    ("a photo of a white bell in the desert", "bell", "white"),
    ("a photo of a red tree on a table", "tree", "red"),
)
ROUNDS = 2  # pictures per scene that the fidelity is the mean of
SAMPLING_STEPS, GUIDANCE = 25, 4.0
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
FILES = ("before_after.png", "result.json")
RUN = "training"  # folder of the run's checkpoints, events and loss curve
HOW = (
    "cosine of the judge network's identity embedding of generated pictures of the concept (every scene, {n} pictures) "
    "to the mean embedding of {held_out} pictures of the concept that were not trained on; on this scale other things "
    "of the same kind give 0 and further true pictures give 1"
)


@dataclass(frozen=True)
class Pictures:
    """What one state of the model makes: the concept in every scene (ROUNDS times), and the other things."""

    concept: list[Image.Image]
    others: list[Image.Image]


@dataclass(frozen=True)
class DemoResult:
    """Where the demo wrote its files, what result.json holds, and a few lines for people."""

    folder: Path
    facts: dict[str, object]

    def __str__(self) -> str:
        f = self.facts
        score, others = f["fidelity"], f["other_prompts_followed"]
        return (
            f"{f['method']}: fidelity {score['before']:.2f} before, {score['after']:.2f} after "
            f"(0: any {f['concept_kind']}, 1: the concept itself); other prompts followed "
            f"{others['before']:.0%} before, {others['after']:.0%} after.\n"
            f"Look at {self.folder / FILES[0]}; the numbers are in {self.folder / FILES[1]}."
        )


def run_demo(
    out: Path,
    *,
    method: str | None = None,
    steps: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    listen: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
) -> DemoResult:
    """Train on the bundled pictures, and write adapter, before_after.png and result.json to the folder `out`.

    None takes the method's recipe for the tiny base. Raises SpectralError or Cancelled, and `out` is untouched then.
    """
    # The tiny base's products are small: a second thread gains little, and beside other work its barriers made a step
    # up to a hundred times slower than one thread alone.
    with single_threaded():
        return _run(out, demo_spec(method or DEFAULT_METHOD, steps, lr, seed), listen, stop)


def _run(out: Path, spec: TrainSpec, listen: Listener, stop: Callable[[], bool]) -> DemoResult:
    started, seed = time.perf_counter(), spec.seed
    spec.build_method()
    judge = load_judge()
    base = load_base(TINY)
    listen(Phase("sampling before"))
    before = make_pictures(base, seed)
    work = _work_folder(out)
    try:
        spec = demo_spec(spec.method, spec.steps, spec.lr, seed, work / f"{CONCEPT}-{spec.method}.safetensors")
        # The files are not yet where they will stay, so their places are not announced.
        outcome = train(spec, _without_places(listen), base=base, stop=stop)
        if outcome.reason != "finished":
            raise Cancelled(f"the demo ended before its training was done ({outcome.reason}); nothing was written")
        adapter = load(outcome.path)
        fresh = load_base(TINY)
        report = merge(adapter, fresh.unet, prefix=UNET_PREFIX)
        listen(Phase("sampling after"))
        after = make_pictures(fresh, seed)
        facts = _facts(spec, adapter, outcome, report, _scores(judge, before), _scores(judge, after))
        facts["seconds"] = {"training": round(outcome.seconds, 1), "all": round(time.perf_counter() - started, 1)}
        (work / FILES[1]).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        _before_after(before, after, facts).save(work / FILES[0])
        _move_into_place(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return DemoResult(out, facts)


def _without_places(listen: Listener) -> Listener:
    return lambda event: None if isinstance(event, (Saved, Checkpointed)) else listen(event)


def demo_spec(method: str, steps: int | None, lr: float | None, seed: int, out: Path = Path("unused")) -> TrainSpec:
    """The demo's training run; None takes the recipe's value."""
    asked = {"steps": steps, "lr": lr}
    return TrainSpec.from_mapping(
        {
            **preset_values("subject", method, "tiny"),
            **{name: value for name, value in asked.items() if value is not None},
            "base": TINY,
            "images": ASSETS / "demo" / CONCEPT,
            "out": out,
            "method": method,
            "trigger": concept_word(),
            "seed": seed,
            "run": out.with_name(RUN),
        }
    )


def concept_word() -> str:
    """The word that stands for the concept in the captions."""
    load_reference(REFERENCE)
    return json.loads(REFERENCE.read_text(encoding="utf-8"))["word"]


def make_pictures(base: Base, seed: int) -> Pictures:
    """The demo's prompts on a model; the same seeds each time, so that only the model differs."""
    kind = load_reference(REFERENCE).kind
    prompts = [f"a photo of a {concept_word()} {kind} {scene}" for _ in range(ROUNDS) for scene in SCENES]
    look = Look((base.resolution, base.resolution), SAMPLING_STEPS, GUIDANCE)
    concept = [Shot(prompt, 1000 + seed + i) for i, prompt in enumerate(prompts)]
    others = [Shot(prompt, 2000 + seed + i) for i, (prompt, _, _) in enumerate(OTHERS)]
    return Pictures(sample(base, concept, look, batch=len(concept)), sample(base, others, look, batch=len(others)))


@dataclass(frozen=True)
class _Scores:
    fidelity: Fidelity
    others: float


def _scores(judge: Judge, pictures: Pictures) -> _Scores:
    reference = load_reference(REFERENCE)
    seen = describe(judge, pictures.others)
    right = sum((kind, colour) == found[:2] for (_, kind, colour), found in zip(OTHERS, seen))
    return _Scores(fidelity(judge, pictures.concept, reference), right / len(OTHERS))


def _facts(
    spec: TrainSpec, adapter: Adapter, outcome: Outcome, report: MatchReport, before: _Scores, after: _Scores
) -> dict[str, object]:
    held_out = len(list((ASSETS / "demo" / f"{CONCEPT}_heldout").glob("*.png")))
    reference = load_reference(REFERENCE)
    return {
        "method": adapter.method.name,
        "settings": adapter.method.settings,
        "concept": CONCEPT,
        "concept_kind": reference.kind,
        "trainable_parameters": outcome.parameters,
        "layers": len(adapter.layers),
        "file": outcome.path.name,
        "file_bytes": outcome.file_bytes,
        "fidelity": {
            "before": round(before.fidelity.score, 4),
            "after": round(after.fidelity.score, 4),
            "kind_accuracy_before": round(before.fidelity.kind_accuracy, 4),
            "kind_accuracy_after": round(after.fidelity.kind_accuracy, 4),
            "how": HOW.format(n=len(after.fidelity.scores), held_out=held_out),
        },
        "other_prompts_followed": {"before": round(before.others, 4), "after": round(after.others, 4)},
        "loss": {"first_tenth": _mean(outcome.losses, last=False), "last_tenth": _mean(outcome.losses, last=True)},
        "training": {"steps": outcome.steps, "batch_size": spec.batch_size, "lr": spec.rates(adapter.method)[0]},
        "seed": spec.seed,
        "match": report.summary,
        "versions": {
            "spectral_adapters": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def _mean(losses: list[float], *, last: bool) -> float:
    share = max(1, len(losses) // 10)
    part = losses[-share:] if last else losses[:share]
    return round(sum(part) / len(part), 5)


def _before_after(before: Pictures, after: Pictures, facts: dict[str, object]) -> Image.Image:
    paths = sorted((ASSETS / "demo" / CONCEPT).glob("*.png"))
    trained = [Image.open(path) for path in paths]
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
    prompts = [f"… {concept_word()} {facts['concept_kind']} {scene}" for scene in SCENES]
    score = facts["fidelity"]
    size = size_text(int(facts["file_bytes"]))
    kept = [prompt.removeprefix("a photo of ") for prompt, _, _ in OTHERS]
    first = slice(0, len(SCENES))
    return sheet(
        [
            Row("Five pictures to learn from", trained, captions),
            Row(f"Before: the base alone (fidelity {score['before']:.2f})", before.concept[first], prompts),
            Row(
                f"After: {facts['method']}, {facts['trainable_parameters']:,} parameters, {size} "
                f"(fidelity {score['after']:.2f})",
                after.concept[first],
                prompts,
            ),
            Row("Other prompts before", before.others, kept),
            Row("Other prompts after", after.others, kept),
        ],
        cell=192,
    )


def _work_folder(out: Path) -> Path:
    """A new hidden folder inside `out`, where everything is made before it is shown."""
    if out.exists() and not out.is_dir():
        raise SpectralError(f"{out} is a file; give a folder for the demo's results with --out")
    work = out / f".new-{secrets.token_hex(4)}"
    work.mkdir(parents=True)
    return work


def _move_into_place(work: Path, out: Path) -> None:
    """Move an earlier run's files to `earlier-N`, then the new ones to where they belong."""
    names = {*FILES, RUN, *(path.name for path in out.glob(f"{CONCEPT}-*.safetensors"))}
    old = [out / name for name in sorted(names) if (out / name).exists()]
    if old:
        number = 1
        while (out / f"earlier-{number}").exists():
            number += 1
        (out / f"earlier-{number}").mkdir()
        for path in old:
            path.rename(out / f"earlier-{number}" / path.name)
    for path in sorted(work.iterdir()):
        path.rename(out / path.name)
