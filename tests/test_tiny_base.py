"""The bundled tiny base, its renderer, its judge and the demo's pictures."""
from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from spectral_adapters.spectral.errors import SpectralError
from spectral_adapters.trainer.judge import describe, fidelity, load_judge, load_reference

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BASE = ASSETS / "tiny_base"
REFERENCES = sorted((ASSETS / "demo").glob("*.json"))
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    """The renderer, loaded by path: the recipe is no part of the installed package."""
    spec = importlib.util.spec_from_file_location("tiny_base_pictures", ASSETS / "recipe" / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(str(BASE), safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def read_pngs(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_everything_in_the_folder_fits_in_eight_megabytes() -> None:
    sizes = {path: path.stat().st_size for path in BASE.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 8 * MEGABYTE, sizes
    assert (ASSETS / "judge" / "judge.safetensors").stat().st_size <= 0.4 * MEGABYTE


def test_stored_weights_are_half_precision_and_finite() -> None:
    files = sorted(BASE.rglob("*.safetensors"))
    assert [path.parent.name for path in files] == ["text_encoder", "unet", "vae"]
    for path in files:
        with safe_open(path, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - a safetensors handle is no dict
                tensor = handle.get_tensor(key)
                assert tensor.dtype == torch.float16 and torch.isfinite(tensor).all(), (path, key)


def test_pipeline_loads_in_float32_with_every_weight_from_the_file(pipeline: StableDiffusionPipeline) -> None:
    files = {"unet": "unet/diffusion_pytorch_model", "vae": "vae/diffusion_pytorch_model",
             "text_encoder": "text_encoder/model"}
    for name, file in files.items():
        state = {key.removeprefix("text_model."): value for key, value in getattr(pipeline, name).state_dict().items()}
        with safe_open(BASE / f"{file}.safetensors", framework="pt") as handle:
            stored = {key.removeprefix("text_model."): handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        assert {key for key in state if "position_ids" not in key} == set(stored)
        assert all(torch.equal(state[key], value.float()) for key, value in stored.items()), name


def test_every_caption_word_is_one_token(pipeline: StableDiffusionPipeline, pictures: ModuleType) -> None:
    split = {word: pipeline.tokenizer.tokenize(word) for word in pictures.words()}
    assert all(len(tokens) == 1 for tokens in split.values()), split
    text = "a photo of a sks mug on grass"
    assert pipeline.tokenizer.decode(pipeline.tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_pictures_show_the_kind_colour_and_scene_of_the_prompt(pipeline: StableDiffusionPipeline) -> None:
    asked = [("star", "red", "grass", "on grass"), ("mug", "yellow", "table", "on a table"),
             ("fish", "blue", "water", "under water"), ("house", "green", "snow", "in the snow"),
             ("heart", "purple", "desert", "in the desert"), ("bell", "orange", "night", "at night"),
             ("mug", "red", "grass", "on grass"), ("tree", "white", "desert", "in the desert")]
    prompts = [f"a photo of {'an' if colour == 'orange' else 'a'} {colour} {kind} {place}"
               for kind, colour, _, place in asked]
    generators = [torch.Generator().manual_seed(40 + i) for i in range(len(prompts))]
    images = pipeline(prompts, num_inference_steps=20, guidance_scale=4.0, generator=generators).images
    assert {image.size for image in images} == {(64, 64)}
    seen = describe(load_judge(), images)
    hits = [[a == b for a, b in zip(answer, row[:3])] for answer, row in zip(seen, asked)]
    assert np.sum(hits, axis=0).min() >= 7, list(zip(asked, seen))


def test_renderer_gives_the_same_picture_for_the_same_seed(pictures: ModuleType) -> None:
    def draw(seed: int) -> tuple[np.ndarray, str]:
        rng = np.random.default_rng(seed)
        picture = pictures.random_picture(rng)
        return pictures.render(picture, rng), pictures.caption(picture, rng)

    for seed in range(6):
        (first, text), (second, again) = draw(seed), draw(seed)
        assert np.array_equal(first, second) and text == again
        assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert not np.array_equal(draw(0)[0], draw(1)[0])


def test_base_pictures_never_use_what_is_reserved_for_concepts(pictures: ModuleType) -> None:
    assert not set(pictures.PATTERNS) & set(pictures.RESERVED_PATTERNS)
    rng = np.random.default_rng(0)
    drawn = [item for _ in range(4000) for item in pictures.random_picture(rng).items]
    assert {item.pattern for item in drawn} == set(pictures.PATTERNS)
    assert {item.emblem for item in drawn} == {None}
    assert all(concept.pattern in pictures.RESERVED_PATTERNS for concept in pictures.CONCEPTS.values())
    captions = {pictures.caption(pictures.random_picture(rng), rng) for _ in range(2000)}
    assert {word for text in captions for word in text.split()} <= set(pictures.words())


def test_reserved_pictures_keep_clear_of_the_bundled_concepts(pictures: ModuleType) -> None:
    rng = np.random.default_rng(1)
    items = [pictures.random_reserved_picture(rng).items[0] for _ in range(4000)]
    assert not [i for i in items if any(pictures.resembles(i, c) for c in pictures.CONCEPTS.values())]


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_demo_folder_is_what_the_renderer_draws(path: Path, pictures: ModuleType) -> None:
    folder = path.with_suffix("")
    training, held_out = read_pngs(folder), read_pngs(folder.with_name(f"{folder.name}_heldout"))
    captions = [text.read_text().strip() for text in sorted(folder.glob("*.txt"))]
    assert len(training) == len(captions) == 5 and len(held_out) == 8
    assert all(picture.shape == (64, 64, 3) for picture in training + held_out)
    kind = pictures.CONCEPTS[path.stem].kind
    assert all(text.startswith(f"a photo of a sks {kind} ") for text in captions)
    assert not [1 for a in training for b in held_out if np.array_equal(a, b)]


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_fidelity_tells_the_concept_from_its_class_and_from_its_colours(path: Path, pictures: ModuleType) -> None:
    judge, reference = load_judge(), load_reference(path)
    concept = pictures.CONCEPTS[path.stem]
    rng = np.random.default_rng(77)
    true = [pictures.concept_picture(path.stem, scene, 7000 + i)[0] for i, scene in enumerate(pictures.SCENES)]
    plain = [pictures.render(pictures.Picture((pictures.Item(concept.kind, colour),), "grass"), rng)
             for colour in pictures.COLOURS]
    decoys = [pictures.render(pictures.Picture((pictures.decoy(concept),), scene), rng) for scene in pictures.SCENES]
    same = fidelity(judge, true, reference)
    assert same.score == pytest.approx(1, abs=0.1) and same.kind_accuracy == 1
    assert fidelity(judge, plain, reference).score == pytest.approx(0, abs=0.25)
    assert fidelity(judge, decoys, reference).score < 0.5


def test_fidelity_accepts_pil_images_of_any_size() -> None:
    judge, reference = load_judge(), load_reference(REFERENCES[0])
    folder = REFERENCES[0].with_suffix("")
    small = [Image.open(path) for path in sorted(folder.glob("*.png"))]
    large = [image.resize((128, 128), Image.Resampling.BICUBIC) for image in small]
    scores = [fidelity(judge, images, reference).score for images in (small, read_pngs(folder), large)]
    assert scores[0] == scores[1]
    assert scores[2] == pytest.approx(scores[0], abs=0.1)


def test_judge_errors_name_the_file_and_the_way_out(tmp_path: Path) -> None:
    judge, reference = load_judge(), load_reference(REFERENCES[0])
    with pytest.raises(SpectralError, match="no picture to judge"):
        fidelity(judge, [], reference)
    with pytest.raises(SpectralError, match=r"judge\.safetensors.*rebuild"):
        load_judge(tmp_path)
    (tmp_path / "judge.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(SpectralError, match="no usable judge"):
        load_judge(tmp_path)
    fields = json.loads(REFERENCES[0].read_text())
    (tmp_path / "short.json").write_text(json.dumps({**fields, "prototype": fields["prototype"][:5]}))
    with pytest.raises(SpectralError, match="prototype has 5 numbers, expected 64"):
        load_reference(tmp_path / "short.json")
    del fields["class_cosine"]
    (tmp_path / "lacking.json").write_text(json.dumps(fields))
    with pytest.raises(SpectralError, match=r"lacking\.json.*class_cosine"):
        load_reference(tmp_path / "lacking.json")


def test_quality_report_belongs_to_these_files_and_meets_the_bar() -> None:
    quality = json.loads((BASE / "quality.json").read_text())
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        size = sum(path.stat().st_size for path in (BASE / part).rglob("*") if path.is_file())
        assert quality["bytes"][part] == size, part
    assert quality["vae_psnr_db"]["base_patterns"] >= 27
    assert quality["prompt_following"]["kind"] >= 0.95
    assert quality["prompt_following"]["colour"] >= 0.9
