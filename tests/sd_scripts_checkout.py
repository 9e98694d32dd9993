"""A checkout of sd-scripts for tests: our own small program with its files, options, words and order of things.

It trains nothing. It reads the two TOML files, walks through the pictures, asks its trainer for a loss per micro-batch,
and writes states, adapters and samples when and where sd-scripts does. `behave` makes it go wrong.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from adapters import adapter_of
from PIL import Image

from spectral_adapters.spectral.file import save
from spectral_adapters.trainer.sd_scripts.checkout import Checkout, open_checkout

_PACKAGES = ("toml", "voluptuous", "imagesize", "cv2")  # that sd-scripts' Python has, and ours need not

_OPTIONS = """
import argparse

try:
    import tomllib
except ImportError:
    import tomli as tomllib


def verify_command_line_training_args(args):
    pass


def read_config_from_file(args, parser):
    with open(args.config_file, "rb") as file:
        tables = tomllib.load(file)
    flat = {name: value for table in tables.values() for name, value in table.items()}
    return parser.parse_args(namespace=argparse.Namespace(**flat))


def save_and_remove_state_stepwise(args, accelerator, step_no):
    accelerator.save_state(args, f"{args.output_dir}/{args.output_name}-step{step_no:08d}-state")
"""

_TRAINER = """
import argparse
import json
import math
import os
import random
import shutil
import time
from pathlib import Path

from library import train_util
from spectral_adapters.trainer.events import Progress
from spectral_adapters.trainer.kohya_say import tell

HERE = Path(__file__).parent


class Loss(float):
    def detach(self):
        return self


class Parameter:
    def numel(self):
        return 3

    def element_size(self):
        return 4


class Network:
    def on_epoch_start(self, text_encoder, unet):
        pass

    def named_parameters(self):
        return [("lora_unet_one.delta", Parameter()), ("lora_te_two.delta", Parameter())]


class Accelerator:
    device = "cpu"
    sync_gradients = False

    def __init__(self, args):
        self.scheduler_step = 0
        self._optimizers = [argparse.Namespace(param_groups=[{"lr": args.unet_lr}])]

    def unwrap_model(self, model):
        return model

    def save_state(self, args, folder):
        os.makedirs(folder)
        state = {"current_epoch": 1, "current_step": self.label}
        (Path(folder) / "train_state.json").write_text(json.dumps(state))
        (Path(folder) / "optimizer.bin").write_bytes(b"moments" * 10)


def setup_parser():
    parser = argparse.ArgumentParser()
    for name in ("config_file", "resume", "save_every_n_steps", "sample_every_n_steps", "validate_every_n_steps"):
        parser.add_argument(f"--{name}", default=None)
    for name in ("save_state", "sample_at_first", "skip_until_initial_step", "cache_latents"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser


class NetworkTrainer:
    def process_batch(
        self, batch, text_encoders, unet, network, vae, noise_scheduler, vae_dtype, weight_dtype, accelerator, args,
        text_encoding_strategy, tokenize_strategy, is_train=True, train_text_encoder=True, train_unet=True,
    ):
        behave = json.loads((HERE / "behave.json").read_text())
        self.calls = getattr(self, "calls", 0) + is_train
        if is_train:
            self.note({"forward": random.random()})
        time.sleep(behave.get("seconds", 0))
        if is_train and self.calls == behave.get("fail_at"):
            raise ValueError(behave["error"])
        if is_train and self.calls == behave.get("full_at"):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if is_train and self.calls >= behave.get("nan_from", 1 << 30):
            return Loss(math.nan)
        losses = behave.get("held_out", [0.5])
        return Loss(1 / self.calls if is_train else losses[min(self.validations, len(losses) - 1)])

    def post_process_network(self, args, accelerator, network, text_encoders, unet):
        pass

    def get_tokenize_strategy(self, args):
        if json.loads((HERE / "behave.json").read_text()).get("no_tokenizer"):
            raise TypeError("expected str, bytes or os.PathLike object, not NoneType")

    def train(self, args):
        self.get_tokenize_strategy(args)
        print("INFO     prepare images.", flush=True)
        config = train_util.tomllib.loads(Path(args.dataset_config).read_text())
        pictures, held = self.load(config["datasets"])
        time.sleep(json.loads((HERE / "behave.json").read_text()).get("load", 0))
        print("INFO     loading u-net: <All keys matched successfully>", flush=True)
        print("INFO     caching latents.", flush=True)
        for done in range(len(pictures) + 1):
            print(f"\\r {done * 100 // len(pictures)}%|##  | {done}/{len(pictures)} [00:00<00:00]", end="", flush=True)
        print(f"\\nimport network module: {args.network_module}", flush=True)
        tell(Progress(2, 2, "lora_unet_one"))  # as the network module does
        self.network, self.accelerator, self.validations = Network(), Accelerator(args), 0
        self.post_process_network(args, self.accelerator, self.network, [], None)
        offset = 0
        if args.resume:
            assert (Path(args.resume) / "optimizer.bin").is_file()
            state = json.loads((Path(args.resume) / "train_state.json").read_text())
            assert args.max_train_steps > state["current_step"]
            self.note({"resumed": state["current_step"]})
            offset = state["current_step"]
        self.loop(args, pictures, held, offset)

    def load(self, datasets):
        pictures, held = [], []
        for dataset in datasets:
            for subset in dataset["subsets"]:
                found = sorted(p for p in Path(subset["image_dir"]).iterdir() if p.suffix in (".png", ".jpg"))
                captions = [p.with_suffix(".txt").read_text().strip() for p in found]
                self.note({"subset": subset, "captions": captions})
                into = held if dataset["validation_split"] == 1.0 else pictures
                into.extend(found * (1 if into is held else subset["num_repeats"]))
        return pictures, held

    def note(self, what):
        with open(HERE / "noted.jsonl", "a") as file:
            file.write(json.dumps(what) + "\\n")

    def loop(self, args, pictures, held, offset):
        share = args.gradient_accumulation_steps
        batches = math.ceil(len(pictures) / args.train_batch_size)
        steps_per_epoch = math.ceil(batches / share)
        epochs, first, skip = math.ceil(args.max_train_steps / steps_per_epoch), offset // steps_per_epoch, 0
        if offset and args.skip_until_initial_step:
            skip = offset - first * batches
        label = skip
        if args.sample_at_first:
            self.sample(args, 0, "e000000")
        for epoch in range(first, epochs):
            self.network.on_epoch_start(None, None)
            self.note({"epoch": epoch, "drawn": random.random()})
            for batch in range(skip if epoch == first else 0, batches):
                self.accelerator.sync_gradients = (batch + 1) % share == 0 or batch == batches - 1
                self.forward(args, True)
                if not self.accelerator.sync_gradients:
                    continue
                label += 1
                self.accelerator.label = label
                if args.sample_every_n_steps is not None and label % args.sample_every_n_steps == 0:
                    self.sample(args, label, f"{label:06d}")
                if args.save_every_n_steps is not None and label % args.save_every_n_steps == 0:
                    self.save(args, f"{args.output_name}-step{label:08d}.safetensors")
                    if args.save_state:
                        train_util.save_and_remove_state_stepwise(args, self.accelerator, label)
                if args.validate_every_n_steps is not None and label % args.validate_every_n_steps == 0:
                    for _ in held:
                        self.forward(args, False)
                    self.validations += 1
                if label >= args.max_train_steps:
                    break
        if args.save_state:
            self.accelerator.save_state(args, f"{args.output_dir}/{args.output_name}-state")
        self.save(args, f"{args.output_name}.safetensors")

    def forward(self, args, learns):
        self.process_batch(
            {}, [], None, self.network, None, None, None, None, self.accelerator, args, None, None, is_train=learns,
        )

    def save(self, args, name):
        os.makedirs(args.output_dir, exist_ok=True)
        print(f"\\nsaving checkpoint: {args.output_dir}/{name}", flush=True)
        shutil.copyfile(HERE / "adapter.safetensors", f"{args.output_dir}/{name}")

    def sample(self, args, step, label):
        print(f"INFO     generating sample images at step / : {step}", flush=True)
        folder = Path(args.output_dir) / "sample"
        folder.mkdir(parents=True, exist_ok=True)
        for number, prompt in enumerate(json.loads(Path(args.sample_prompts).read_text())):
            stamp = time.strftime("%Y%m%d%H%M%S")
            name = f"{args.output_name}_{label}_{number:02d}_{stamp}_{prompt['seed']}.png"
            shutil.copyfile(HERE / "picture.png", folder / name)
"""

_SDXL = """
import train_network


class SdxlNetworkTrainer(train_network.NetworkTrainer):
    pass


def setup_parser():
    return train_network.setup_parser()
"""


def make_checkout(folder: Path) -> Checkout:
    """A checkout in a new folder, with a Python of its own that is the one of the tests with a few packages more."""
    (folder / "library").mkdir(parents=True)
    (folder / "README.md").write_text("- **Version 0.10.1 (2026-02-13):**\n- **Version 0.9.1:**\n")
    (folder / "requirements.txt").write_text("toml\n")
    (folder / "library" / "__init__.py").touch()
    (folder / "library" / "train_util.py").write_text(_OPTIONS)
    (folder / "train_network.py").write_text(_TRAINER)
    (folder / "sdxl_train_network.py").write_text(_SDXL)
    save(adapter_of("svdiff", {})[0], folder / "adapter.safetensors")
    Image.new("RGB", (64, 64), "teal").save(folder / "picture.png")
    behave(folder)
    return open_checkout(folder, make_python(folder / "bin"))


def make_python(folder: Path) -> Path:
    """A program that runs the tests' Python with the packages that sd-scripts has besides."""
    extra = folder / "packages"
    extra.mkdir(parents=True)
    for name in _PACKAGES:
        (extra / f"{name}.py").touch()
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{extra}" exec "{sys.executable}" "$@"\n')
    os.chmod(program, 0o755)
    return program


def behave(folder: Path, **how: object) -> None:
    """How the next training goes. seconds: per forward; load: before the base is there. fail_at, error: an exception at
    that micro-batch; full_at: out of memory; nan_from: losses that are no numbers. held_out: validation losses."""
    (folder / "behave.json").write_text(json.dumps(how))


def noted(folder: Path) -> list[dict]:
    """What the program has seen: its subsets with their captions, and the step that it resumed from."""
    path = folder / "noted.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
