"""The same folder of pictures trains the same adapter in sd-scripts and in this package's own loop.

Both get one noise and one timestep for each picture and step; everything else is each trainer's own: reading the
folder, latents, tokens, text states, the UNet, the loss and its weights, clipping, the optimiser, the file. SD1.5 in
its real size; SD1, SD2 and SDXL in their real structure with narrow layers.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import random_checkpoints
import sd_scripts
import sd_scripts_narrow
import torch
from safetensors.torch import load_file
from sd_scripts import CAPTIONS, FEW, FEW_TEXT, OPTIMIZER, SIZE, Draws, SdScripts
from torch import Tensor

import spectral_adapters as sa
from spectral_adapters.trainer import run
from spectral_adapters.trainer.loop import train
from spectral_adapters.trainer.losses import Draw
from spectral_adapters.trainer.spec import TrainSpec

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sd_scripts.is_there(), reason=sd_scripts.WITHOUT)]
STEPS = 6
LR, TEXT_LR = 2e-3, 5e-4
# Of a tensor, relative to how far it came. A file's fp16 rounds by up to 5e-4; where the gradient is rounding noise,
# AdamW makes whole steps of it.
TOLERANCE, MEAN = 2e-2, 2e-4


@dataclass(frozen=True)
class Case:
    """One training. settings: of the adapter, by the names that both trainers have; options: more for sd-scripts."""

    method: str
    settings: dict
    options: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("equal")
    sd_scripts.write_pictures(folder / "pictures")
    sd_scripts.write_draws(folder / "draws.safetensors", STEPS)
    return folder


def in_sd_scripts(scripts: SdScripts, case: Case, work: Path, out: Path) -> dict[str, Tensor]:
    """Train `out` in sd-scripts; the latents and losses that it had."""
    draws = Draws(work / "draws.safetensors", out.with_suffix(".seen"))
    told = {"method": case.method, **case.settings}
    scripts.train_inside(
        work / "pictures",
        out,
        *case.options,
        f"--train_batch_size={len(CAPTIONS)}",
        f"--max_train_steps={STEPS}",
        f"--unet_lr={LR}",
        f"--text_encoder_lr={TEXT_LR}",
        f"--optimizer_type={OPTIMIZER}",
        "--min_snr_gamma=5",
        "--network_args",
        *(f"{name}={value}" for name, value in told.items()),
        draws=draws,
    )
    return load_file(draws.seen)


def nearest_draws(work: Path, latents: Tensor, distances: list[float]) -> Callable[..., Draw]:
    """Draws for this package's loop: a sample is the picture whose latents in sd-scripts are nearest to its own."""
    table = load_file(work / "draws.safetensors")

    def draw(_seed: int, index: int, like: Tensor, *_others: object) -> Draw:
        if not like.any():  # the plan measures a step on empty pictures
            return Draw(torch.randn_like(like), torch.zeros(like.shape[0], dtype=torch.long))
        gaps = (like[:, None] - latents[None]).flatten(2).norm(dim=2) / latents.flatten(1).norm(dim=1)
        distances.extend(gaps.min(dim=1).values.tolist())
        pictures = gaps.argmin(dim=1)
        assert len(set(pictures.tolist())) == len(CAPTIONS), "a batch holds each picture once"
        return Draw(table["noise"][index, pictures], table["timesteps"][index, pictures])

    return draw


def in_own_loop(base: Path, case: Case, work: Path, out: Path, draw: Callable[..., Draw]) -> list[float]:
    """Train `out` in this package's loop; its losses."""
    text_lr = TEXT_LR if "text_targets" in case.settings else None
    spec = TrainSpec(
        base=str(base), images=work / "pictures", out=out, tokenizer=sd_scripts.tokenizer(), device="cpu",
        method=case.method, resolution=SIZE, batch_size=len(CAPTIONS), steps=STEPS, lr=LR, text_lr=text_lr,
        checkpoint_every=0, **case.settings,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "draw", draw)
        return train(spec).losses


def differences(ours: Path, theirs: Path) -> dict[str, float]:
    """||a - b|| / ||b|| of every trained tensor, b counted from where training began."""
    a, b = sa.load(ours), sa.load(theirs)
    assert a.layers.keys() == b.layers.keys() and a.gains.keys() == b.gains.keys() and a.method.name == b.method.name
    pairs = {name: (a.gains[name].shift, gain.shift) for name, gain in b.gains.items()}
    for name, layer in b.layers.items():
        assert layer.indices == a.layers[name].indices
        pairs |= {f"{name}.{part}": (a.layers[name].params[part], p) for part, p in layer.params.items()}
    begun = {key: sd_scripts.beginning(key, y) for key, (_, y) in pairs.items()}
    # A text encoder's last layer is not read by SDXL, so it stays where it was: 0 of 0.
    return {k: float((x - y).norm() / (y - begun[k]).norm().clamp_min(1e-9)) for k, (x, y) in pairs.items()}


def compare(scripts: SdScripts, case: Case, work: Path, name: str) -> None:
    """Train in both: the latents, the losses and the adapters must be the same."""
    theirs, ours = work / f"{name}-theirs.safetensors", work / f"{name}-ours.safetensors"
    seen, distances = in_sd_scripts(scripts, case, work, theirs), []
    own_losses = in_own_loop(scripts.base, case, work, ours, nearest_draws(work, seen["latents"], distances))
    found = differences(ours, theirs)
    worst = max(found, key=found.get)
    mean = statistics.fmean(found.values())
    print(f"\n{name}: {len(found)} tensors differ by {mean:.1e}, at most {found[worst]:.1e} ({worst})")
    assert max(distances) < 1e-5
    assert found[worst] < TOLERANCE and mean < MEAN
    assert own_losses == pytest.approx(seen["losses"].tolist(), rel=1e-5)


NARROW = {
    "sd1-additive": {"rank": 4, "targets": "all", "text_targets": "attention+ff"},
    "sd2-svdiff": {"targets": "attention", "text_targets": "attention"},
    "sdxl-svdiff": {
        "targets": "attention+ff",
        "text_targets": "attention",
        "text_targets_2": "attention",
        "norms": True,
    },
    "sdxl-additive": {"rank": 4, "targets": "attention", "text_targets": "attention", "text_targets_2": "attention+ff"},
    "sdxl-rotation": {"columns": "top:8@2", "targets": "all"},
    "sdxl-soda": {"rotation": "stiefel", "targets": "cross-attention", "text_targets": "attention+ff"},
}


@pytest.mark.parametrize("name", NARROW)
def test_narrow_models_in_their_real_structure(name, work, tmp_path):
    family, _, method = name.partition("-")
    base = sd_scripts_narrow.write(family, tmp_path / "base.safetensors")
    scripts = SdScripts.at(work, base, sd_scripts_narrow.plan(family))
    with sd_scripts_narrow.readable(family, tmp_path):
        compare(scripts, Case(method, NARROW[name], sd_scripts_narrow.MODELS[family].arguments), work, name)


def test_sd15_in_its_real_size(work, tmp_path):
    base = Path(sd_scripts.given("BASE") or random_checkpoints.write(tmp_path / "sd15.safetensors"))
    case = Case("additive", {"rank": 4, "targets": FEW, "text_targets": FEW_TEXT})
    compare(SdScripts.at(work, base), case, work, "sd15")
