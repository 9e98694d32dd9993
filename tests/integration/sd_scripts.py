"""A real sd-scripts with this package's network module: what its tests train on, and the commands they run.

SPECTRAL_SD_SCRIPTS_DIR is a checkout of kohya's sd-scripts, SPECTRAL_SD_SCRIPTS_PYTHON the Python it runs with.
SPECTRAL_SD_SCRIPTS_TOKENIZERS: a folder for its --tokenizer_cache_dir, for a machine without network.
SPECTRAL_SD_SCRIPTS_BASE: an SD1.5 checkpoint in one file; a random one (2.1 GB) is written where it is not given.
SPECTRAL_SD_SCRIPTS_SDXL: an SDXL checkpoint; without it no SDXL is trained.
"""

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
MODULE = "spectral_adapters.trainer.kohya"
OPTIMIZER = "spectral_adapters.trainer.kohya_optimizer.SpectralOptimizer"
SIZE = 128
COLOURS = {"green": (20, 140, 60), "red": (150, 30, 30), "blue": (20, 40, 150)}
CAPTIONS = tuple(f"a sks mug, {name} background" for name in COLOURS)
REAL = {"script": "train_network", "narrow": None}
# A few small layers of the UNet and of the text encoder: decomposing all of them would take longer than the tests.
FEW = r"mid_block.*attn2|up_blocks\.1\.attentions\.0\..*attn2"
FEW_TEXT = r"layers\.(10|11)\.self_attn"


WITHOUT = "SPECTRAL_SD_SCRIPTS_DIR and SPECTRAL_SD_SCRIPTS_PYTHON name no sd-scripts to test against"


def given(name: str) -> str:
    """What the environment says for SPECTRAL_SD_SCRIPTS_<name>; "" without it."""
    return os.environ.get(f"SPECTRAL_SD_SCRIPTS_{name}", "")


def is_there() -> bool:
    return bool(given("DIR") and given("PYTHON"))


def tokenizer() -> str | None:
    """The folder of CLIP-L's tokenizer, where the environment names some."""
    folder = given("TOKENIZERS")
    return str(Path(folder) / "openai_clip-vit-large-patch14") if folder else None


def write_pictures(folder: Path) -> Path:
    """A folder as kohya's tools want it: `1_sks mug` with three captioned pictures of the training size."""
    inner = folder / "1_sks mug"
    inner.mkdir(parents=True)
    for i, ((name, colour), caption) in enumerate(zip(COLOURS.items(), CAPTIONS)):
        image = Image.new("RGB", (SIZE, SIZE), colour)
        image.paste((230, 200, 40), (40 + 8 * i, 24, 104, 96))
        image.save(inner / f"{name}.png")
        (inner / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")
    return folder


def write_masks(folder: Path, value: int) -> Path:
    """Masks of one value for the pictures: 255 trains on all of a picture, 0 on nothing."""
    folder.mkdir(parents=True)
    for name in COLOURS:
        Image.new("RGB", (SIZE, SIZE), (value,) * 3).save(folder / f"{name}.png")
    return folder


def write_draws(path: Path, steps: int) -> Path:
    """Noise and timesteps for every picture and step, for `sd_scripts_inside`."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(steps, len(CAPTIONS), 4, SIZE // 8, SIZE // 8, generator=generator)
    timesteps = torch.randint(1000, (steps, len(CAPTIONS)), generator=generator)
    save_file({"noise": noise, "timesteps": timesteps}, path)
    return path


def is_rotation(key: str, value: Tensor) -> bool:
    """Whether a file's tensor is one of SODA's orthogonal matrices (trained as such, not by their skew parameters)."""
    return key.rpartition(".")[2] in ("k1", "k2", "k3") and value.ndim == 2


def beginning(key: str, value: Tensor) -> Tensor:
    """Where the training of a parameter starts: rotations at the identity, everything else at zero."""
    return torch.eye(len(value)) if is_rotation(key, value) else torch.zeros_like(value)


def moved(params: dict[str, Tensor]) -> float:
    """How far a layer's parameters came at most."""
    return max(float((p - beginning(part, p)).abs().max()) for part, p in params.items() if p.numel())


def orthogonality(path: Path) -> float:
    """The largest entry of |K^T K - 1| of a file's rotations."""
    factors = [value for key, value in load_file(path).items() if is_rotation(key, value)]
    assert factors
    return max(float((k.float().T @ k.float() - torch.eye(len(k))).abs().max()) for k in factors)


@dataclass(frozen=True)
class Draws:
    """Noise and timesteps for a run, of a file of `write_draws`. seen: a file to write; see `sd_scripts_inside`."""

    file: Path
    seen: Path
    first: int = 0
    captions: tuple[str, ...] = CAPTIONS


@dataclass(frozen=True)
class SdScripts:
    """Commands of one checkout. site: a folder in which `spectral_adapters` can be imported; cache: decompositions;
    narrow: of a narrow base, what `sd_scripts_narrow.plan` says."""

    folder: Path
    python: str
    base: Path
    site: Path
    cache: Path
    narrow: dict | None = None

    @classmethod
    def at(cls, work: Path, base: Path, narrow: dict | None = None) -> "SdScripts":
        """The checkout of the environment, with `work` for what its runs need."""
        if not (work / "site").is_dir():
            (work / "site").mkdir()
            (work / "site" / "spectral_adapters").symlink_to(PACK, target_is_directory=True)
        return cls(Path(given("DIR")), given("PYTHON"), base, work / "site", work / "cache", narrow)

    def train(
        self,
        pictures: Path,
        out: Path,
        *arguments: str,
        script: str | Path = "train_network.py",
        before: tuple[str, ...] = (),
    ) -> str:
        """Train `out` on the pictures; what the run printed. More `arguments` go over the usual ones."""
        done = self.run(str(self.folder / script), *before, *self.usual(pictures, out), *arguments)
        text = done.stdout + done.stderr
        assert done.returncode == 0 and out.is_file(), f"sd-scripts ended with {done.returncode}:\n{text[-6000:]}"
        return text

    def refused(self, pictures: Path, out: Path, *arguments: str) -> str:
        """What a run prints that must not come to training."""
        done = self.run(str(self.folder / "train_network.py"), *self.usual(pictures, out), *arguments)
        assert done.returncode != 0 and not out.exists(), "it trained although it should have been refused"
        return done.stdout + done.stderr

    def train_inside(self, pictures: Path, out: Path, *arguments: str, draws: Draws | None = None) -> str:
        """`train` by `sd_scripts_inside`: the narrow model, where this is one, and given draws."""
        out.parent.mkdir(exist_ok=True)
        written = out.with_suffix(".plan.json")
        plan = {**REAL, **(self.narrow or {}), "draws": None if draws is None else asdict(draws)}
        written.write_text(json.dumps(plan, default=str), encoding="utf-8")
        return self.train(pictures, out, *arguments, script=HERE / "sd_scripts_inside.py", before=(str(written),))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A program of the checkout in its own Python."""
        environment = os.environ | {
            "PYTHONPATH": str(self.site),
            "SPECTRAL_ADAPTERS_CACHE": str(self.cache),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        }
        return subprocess.run(
            [self.python, *command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=1500
        )

    def usual(self, pictures: Path, out: Path) -> list[str]:
        """What every run here is told."""
        tokenizers = given("TOKENIZERS")
        return [
            f"--pretrained_model_name_or_path={self.base}",
            *([f"--tokenizer_cache_dir={tokenizers}"] if tokenizers else []),
            f"--train_data_dir={pictures}",
            f"--output_dir={out.parent}",
            f"--output_name={out.stem}",
            f"--network_module={MODULE}",
            f"--resolution={SIZE}",
            "--caption_extension=.txt",
            "--train_batch_size=1",
            "--max_data_loader_n_workers=0",
            "--cache_latents",
            "--mixed_precision=no",
            "--no_half_vae",
            "--sdpa",
            "--seed=1",
            "--max_train_steps=2",
            "--learning_rate=1e-3",
            "--optimizer_type=AdamW",
        ]
