"""Videos from images against diffusers' WanImageToVideoPipeline: same weights, same noise, same levels."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from fpsgen import pipeline, solvers
from fpsgen.events import Denoised, Written
from fpsgen.request import Request
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.wan import sizes
from fpsgen.weights import models
from fpsgen.weights.load import load_image_encoder
from tests.tools.image_pipeline import make_image_pipeline, save_image_original
from tests.tools.videos import metadata

CPU = torch.device("cpu")
TARGET = Target(CPU, torch.float32, torch.float32)
WIDTH, HEIGHT, FRAMES, STEPS, SHIFT, GUIDANCE, SEED = 48, 32, 5, 5, 3.0, 4.0, 3
PROMPT, NEGATIVE = "a cat surfing on the sea", "blurry"
KINDS = {"i2v-14b": 1, "flf2v-14b": 2, "2.2-i2v": 1, "2.2-i2v last": 2}  # and how many images each is given


def pictures(folder: Path, count: int) -> list[Path]:
    """Of the video's size, so that neither side scales them."""
    random, paths = np.random.default_rng(count), []
    for n in range(count):
        paths.append(folder / f"{n}.png")
        Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def ours(folder: Path, paths: list[Path], output: Path) -> tuple[torch.Tensor, dict]:
    """The final latents, and what the video says of itself."""
    model = models.find(str(folder))
    boundary = 0.9 if model.checkpoint.transformer_2 else None
    settings = Settings(
        WIDTH, HEIGHT, FRAMES, 16, STEPS, GUIDANCE, SHIFT, NEGATIVE, sigmas="diffusers", boundary=boundary
    )
    last = paths[1] if len(paths) > 1 else None
    request = Request(PROMPT, settings, SEED, output, image=paths[0], last_image=last)
    events = list(pipeline.generate([request], model, TARGET))
    (latents,) = (event.latents for event in events if isinstance(event, Denoised))
    assert isinstance(events[-1], Written)
    return latents, metadata(output)


def theirs(own: WanImageToVideoPipeline, folder: Path, paths: list[Path]) -> torch.Tensor:
    """With CLIP's states of images as Wan2.1's own code prepares them; diffusers crops them to a square."""
    images = [Image.open(path) for path in paths]
    given = {"last_image": images[1]} if len(images) > 1 else {}
    if own.image_encoder is not None:
        seen = load_image_encoder(models.find(str(folder)).checkpoint, CPU).states([*map(np.array, images)])
        own.encode_image = lambda *_: seen.unflatten(1, (len(images), -1))[0]  # its call takes an image or its states
    noise = solvers.noise(16, sizes.latent_shape(FRAMES, HEIGHT, WIDTH), SEED)
    own.set_progress_bar_config(disable=True)
    return own(
        images[0], PROMPT, NEGATIVE, height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, latents=noise, output_type="latent", **given,
    ).frames  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_latents_equal_diffusers_and_formats_are_alike(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # between the stages: a second each with libraries of this size
    own = make_image_pipeline(case.removesuffix(" last"))
    folders = [tmp_path / "diffusers", tmp_path / "original"]
    folders[1].mkdir()
    own.save_pretrained(folders[0])
    save_image_original(own, folders[1])
    paths = pictures(tmp_path, KINDS[case])
    expected = theirs(own, folders[0], paths)
    (latents, about), (again, _) = (ours(each, paths, tmp_path / f"{each.name}.mp4") for each in folders)
    assert (latents - expected).norm() <= 1e-3 * expected.norm()  # what the README promises of every model
    assert torch.equal(latents, again)
    assert about["image"]["name"] == "0.png"
    assert (about["last_image"] is None) == (len(paths) == 1)
    assert json.dumps(about)
