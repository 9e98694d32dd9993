"""Builds the tiny base, its judge and the demo's pictures from nothing but a seed: python assets/recipe/train.py

Stages, each skipped or gone on with if the work folder has its result: render the pictures; train the VAE; encode the
pictures; train text encoder and UNet together; write the diffusers folder; train the judge; write the demo's pictures
and reference; measure. About 75 minutes on two cores. `--snapshot FOLDER` only writes the model as trained so far.
"""
from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from data import render_set, set_hash
from diffusers import AutoencoderKL
from judge import HELD_OUT_SEED, concept_views, make_reference, measure_reference, train_judge
from measure import folder_bytes, measure_prompts, measure_vae
from parallel import launch, load_checkpoint
from pictures import CONCEPTS, SCENES, concept_picture
from PIL import Image
from pipeline import load_pipeline, write_pipeline
from text_unet import averaged_modules, build_scheduler, encode_captions, train_text_unet, write_tokenizer
from transformers import CLIPTokenizer
from vae import build_vae, to_tensor, train_vae

from spectral_adapters.trainer.judge import load_judge

ASSETS = Path(__file__).resolve().parent.parent
SEED = 2024
VAE_PICTURES, BASE_PICTURES = 12_000, 36_000
VAE_STEPS, UNET_STEPS, JUDGE_STEPS = 2_500, 4_200, 900
DEMO_CONCEPT = "banded_fish"
TRAIN_SCENES = ("water", "grass", "snow", "night", "table")
TRAIN_SEED = 500


def finished_vae(work: Path) -> AutoencoderKL:
    """The trained VAE with the weights rounded to float16, as it is stored: latents must match what users decode."""
    encoded = work / "latents.pt"
    factor = torch.load(encoded, weights_only=True)["scaling_factor"] if encoded.exists() else 1.0
    vae = build_vae(factor).eval().requires_grad_(False)
    vae.load_state_dict({k: v.half().float() for k, v in load_checkpoint(work / "vae.pt")["vae"].items()})
    return vae


@torch.no_grad()
def encode_part(rank: int, world: int, work: Path, bf16: bool) -> None:
    """Encode this process's share of the base pictures to `work`/latents.<rank>.pt."""
    vae, pictures = finished_vae(work), np.load(work / "base_pictures.npy", mmap_mode="r")[rank::world]
    parts = []
    for start in range(0, len(pictures), 48):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            parts.append(vae.encode(to_tensor(pictures[start : start + 48])).latent_dist.mode().float())
    torch.save(torch.cat(parts), work / f"latents.{rank}.pt")


def encode_base_set(work: Path, world: int, bf16: bool) -> None:
    """Write `work`/latents.pt: scaled latents (float16), caption tokens and the scaling factor."""
    if (work / "latents.pt").exists():
        return
    launch(encode_part, (work, bf16), world)
    parts = [torch.load(work / f"latents.{rank}.pt", weights_only=True) for rank in range(world)]
    latents = torch.empty(sum(map(len, parts)), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        latents[rank::world] = part
    factor = round(1 / latents.std().item(), 4)
    tokenizer = CLIPTokenizer.from_pretrained(str(work / "tokenizer"))
    tokens = encode_captions(tokenizer, json.loads((work / "base_captions.json").read_text()))
    torch.save({"latents": (latents * factor).half(), "tokens": tokens, "scaling_factor": factor}, work / "latents.pt")


def write_model(work: Path, folder: Path) -> None:
    """Write the model as trained so far."""
    unet, text_encoder = averaged_modules(work)
    write_pipeline(folder, finished_vae(work), text_encoder, unet, build_scheduler(), work / "tokenizer")


def write_demo(folder: Path, name: str) -> None:
    """Five training pictures with captions, and eight held-out pictures, of one concept."""
    for part in (folder / name, folder / f"{name}_heldout"):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    for index, scene in enumerate(TRAIN_SCENES):
        picture, text = concept_picture(name, scene, TRAIN_SEED + index)
        Image.fromarray(picture).save(folder / name / f"{index + 1}.png", optimize=True)
        (folder / name / f"{index + 1}.txt").write_text(text + "\n")
    scenes = list(SCENES)
    for index, picture in enumerate(concept_views(name, 8, HELD_OUT_SEED)):
        label = f"{index + 1}_{scenes[index % len(scenes)]}.png"
        Image.fromarray(picture).save(folder / f"{name}_heldout" / label, optimize=True)


def write_reference(assets: Path, vae: AutoencoderKL, name: str) -> dict[str, float]:
    """Write the concept's reference for the fidelity score; returns its ceiling and its colour decoy's score."""
    judge = load_judge(assets / "judge")
    files = sorted((assets / "demo" / f"{name}_heldout").glob("*.png"))
    reference = make_reference(judge, name, np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files]))
    fields = {"name": name, "kind": reference.kind, "word": "sks", "class_cosine": reference.class_cosine,
              "concept_cosine": reference.concept_cosine, "prototype": reference.prototype}
    (assets / "demo" / f"{name}.json").write_text(json.dumps(fields) + "\n")
    return measure_reference(judge, vae, reference)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("output/tiny_base"), help="folder for data and checkpoints")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder that gets tiny_base/, judge/ and demo/")
    parser.add_argument("--processes", type=int, default=2, help="training processes of one thread each")
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--unet-steps", type=int, default=UNET_STEPS)
    parser.add_argument("--judge-steps", type=int, default=JUDGE_STEPS)
    parser.add_argument("--bf16", action="store_true",
                        help="train the VAE in bfloat16: 1.8 times as fast on CPUs with AVX512-BF16")
    parser.add_argument("--snapshot", type=Path, help="write the model as trained so far to this folder and stop")
    return parser.parse_args()


def train_model(arguments: argparse.Namespace) -> None:
    """Every stage up to the trained UNet."""
    work, world = arguments.work, arguments.processes
    render_set(work, "vae", VAE_PICTURES, SEED, world)
    launch(train_vae, (work, arguments.vae_steps, SEED, arguments.bf16), world)
    render_set(work, "base", BASE_PICTURES, SEED, world)
    write_tokenizer(work / "tokenizer")
    encode_base_set(work, world, arguments.bf16)
    launch(train_text_unet, (work, arguments.unet_steps, SEED), world)


def judge_accuracy(arguments: argparse.Namespace, vae: AutoencoderKL) -> dict[str, float]:
    """Train the judge unless the work folder says it was done; returns its accuracies."""
    report = arguments.work / "judge.json"
    if not report.exists():
        report.write_text(json.dumps(train_judge(vae, arguments.out / "judge", arguments.judge_steps, SEED)))
    return json.loads(report.read_text())


def measure(arguments: argparse.Namespace, judge_report: dict[str, float], concept: dict[str, float]) -> dict:
    """What quality.json holds."""
    folder, work = arguments.out / "tiny_base", arguments.work
    trained = {name: load_checkpoint(work / f"{name}.pt") for name in ("vae", "unet")}
    pipeline, judge = load_pipeline(folder), load_judge(arguments.out / "judge")
    views = {name: concept_views(name, 24, HELD_OUT_SEED + 300) for name in CONCEPTS}
    return {
        "vae_psnr_db": measure_vae(pipeline.vae, views),
        "prompt_following": measure_prompts(pipeline, judge, (1, 2)),
        "judge_accuracy": judge_report,
        "demo_concept": {"name": DEMO_CONCEPT, **concept},
        "bytes": folder_bytes(folder),
        "parameters": {name: sum(p.numel() for p in getattr(pipeline, name).parameters())
                       for name in ("unet", "text_encoder", "vae")},
        "seed": SEED,
        "steps": {**{name: state["step"] for name, state in trained.items()}, "judge": arguments.judge_steps},
        "training_seconds": {name: round(state["seconds"]) for name, state in trained.items()},
        "pictures": {"vae": VAE_PICTURES, "base": BASE_PICTURES},
        "data_sha256": {kind: set_hash(work, kind) for kind in ("vae", "base")},
        "processes": arguments.processes, "threads_per_process": 1, "vae_in_bf16": arguments.bf16,
        "torch": torch.__version__,
    }


def main() -> None:
    """Run the stages the command line asks for."""
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.snapshot:
        write_model(arguments.work, arguments.snapshot)
        return
    train_model(arguments)
    write_model(arguments.work, arguments.out / "tiny_base")
    vae = finished_vae(arguments.work)
    judge_report = judge_accuracy(arguments, vae)
    write_demo(arguments.out / "demo", DEMO_CONCEPT)
    concept = write_reference(arguments.out, vae, DEMO_CONCEPT)
    quality = measure(arguments, judge_report, concept)
    (arguments.out / "tiny_base" / "quality.json").write_text(json.dumps(quality, indent=2) + "\n")
    print(json.dumps(quality, indent=2))


if __name__ == "__main__":
    main()
