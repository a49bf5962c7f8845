"""Wan2.2's 5B against diffusers' pipelines: same weights, same noise, same levels; both formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image

from fpsgen import images, pipeline, solvers
from fpsgen.events import Denoised, Frames
from fpsgen.request import Request, resolve
from fpsgen.sampling import Denoiser
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.texts import encode_prompts
from fpsgen.timing import Timings
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.conditions import Conditions
from fpsgen.weights import models
from fpsgen.weights.load import load_transformer, load_vae
from tests.e2e.test_parity import finish
from tests.tools.videos import read
from tests.tools.wan_pipeline import make_plain_pipeline, save_original

CPU = torch.device("cpu")
TARGET = Target(CPU, torch.float32, torch.float32)
SIZE, FRAMES, STEPS, SEED = (96, 64), 9, 4, 3
PROMPT, NEGATIVE = "a cat surfing on the sea", "blurry"
SETTINGS = Settings(*SIZE, FRAMES, 24, STEPS, 4.0, 3.0, NEGATIVE, sigmas="diffusers", stride=16)
CALL = {"height": SIZE[1], "width": SIZE[0], "num_frames": FRAMES, "num_inference_steps": STEPS, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def theirs() -> WanPipeline:
    made = make_plain_pipeline(5, channels=48)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folders(theirs: WanPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {form: tmp_path_factory.mktemp(form) for form in ("diffusers", "original")}
    theirs.save_pretrained(found["diffusers"])
    save_original(theirs, found["original"])
    return found


def latents_of(folder: Path, image: np.ndarray | None = None) -> torch.Tensor:
    model = models.find(str(folder))
    assert (model.family, model.defaults.fps, model.defaults.stride) == ("5b", 24, 16)
    plan = resolve(Request(PROMPT, SETTINGS, SEED, Path("unused.mp4")), model, TARGET)
    texts = finish(encode_prompts([PROMPT], [NEGATIVE], model, TARGET))
    given = None
    if image is not None:
        given = Conditions(first=wan_vae.encode(load_vae(model.checkpoint, CPU), image[None]))
    denoiser = Denoiser(load_transformer(model.checkpoint, CPU, torch.float32), SETTINGS, texts, CPU, image=given)
    state = denoiser.begin(denoiser.noise(SEED))
    list(pipeline.denoise(plan, denoiser, Timings(), False, state))
    return state.latents


def test_text_to_video_equals_diffusers(theirs: WanPipeline, folders: dict[str, Path]) -> None:
    noise = solvers.noise(48, SETTINGS.latent_shape, SEED)
    oracle = {
        kind: theirs(PROMPT, NEGATIVE, **CALL, latents=noise.clone(), output_type=kind).frames
        for kind in ("latent", "np")
    }
    latents, again = (latents_of(folder) for folder in folders.values())
    assert latents.shape == noise.shape == (1, 48, 3, 4, 6)
    assert torch.equal(latents, again)
    # float32 through 4 steps of 2 branches; the bound is what the README promises, rounding stays far below it.
    assert (latents - oracle["latent"]).norm() <= 1e-3 * oracle["latent"].norm()
    for folder in folders.values():
        vae = load_vae(models.find(str(folder)).checkpoint, CPU)
        got = np.concatenate([*wan_vae.frames_of(vae, latents)]).astype(np.float64) / 255
        assert got.shape == oracle["np"][0].shape == (FRAMES, SIZE[1], SIZE[0], 3)
        assert -10 * np.log10(np.square(got - oracle["np"][0]).mean()) >= 50


def test_image_to_video_equals_diffusers(theirs: WanPipeline, folders: dict[str, Path]) -> None:
    """Whose solver is given a noisy first frame, as ours and the original's are not: it changes no other frame."""
    image = np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    parts = {name: getattr(theirs, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}
    oracle = WanImageToVideoPipeline(**parts, image_encoder=None, image_processor=None, expand_timesteps=True)
    oracle.set_progress_bar_config(disable=True)
    noise = solvers.noise(48, SETTINGS.latent_shape, SEED)
    expected = oracle(
        Image.fromarray(image), PROMPT, NEGATIVE, **CALL, latents=noise.clone(), output_type="latent"
    ).frames  # fmt: skip
    latents, again = (latents_of(folder, image) for folder in folders.values())
    assert torch.equal(latents, again)
    assert (latents - expected).norm() <= 1e-3 * expected.norm()
    assert (latents[:, :, :1] - expected[:, :, :1]).norm() <= 1e-5 * expected[:, :, :1].norm()


def test_a_video_begins_with_the_image(folders: dict[str, Path], tmp_path: Path) -> None:
    """Cropped to the video's proportions. Its frame 0 is what the VAE makes of it."""
    photo, output = tmp_path / "photo.png", tmp_path / "a.mp4"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(photo)
    model = models.find(str(folders["original"]))
    request = Request(PROMPT, SETTINGS, SEED, output, image=photo)
    events = list(pipeline.generate([request], model, TARGET))
    (latents,) = (event.latents for event in events if isinstance(event, Denoised))
    vae = load_vae(model.checkpoint, CPU)
    first = wan_vae.encode(vae, images.fitted(images.read(photo), *SIZE)[None])
    assert torch.equal(latents[:, :, :1], first)
    own = np.concatenate([event.pixels for event in events if isinstance(event, Frames)])
    assert np.array_equal(own[:1], np.concatenate([*wan_vae.frames_of(vae, first)]))
    meta, frames = read(output)
    assert (meta["fps"], frames.shape) == (24, (FRAMES, SIZE[1], SIZE[0], 3))
