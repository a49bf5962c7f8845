"""Data that a model makes itself, or that is made of videos; a run that was stopped goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fpsgen import pipeline, solvers, texts
from fpsgen.errors import RenderError, UsageError
from fpsgen.events import Denoised, Done, Event, Watch
from fpsgen.presets import BF16
from fpsgen.request import Request
from fpsgen.sampling import Denoiser
from fpsgen.target import Target
from fpsgen.train import clips, data
from fpsgen.train.data import Data, Origin
from fpsgen.train.prepare import Preparation
from fpsgen.wan import vae as wan_vae
from fpsgen.weights.load import load_transformer, load_vae
from fpsgen.weights.models import Model, open_folder
from tests.tools.calibration import CPU, Recorder
from tests.tools.training_data import film, tree

TARGET = Target(CPU, torch.float32, torch.bfloat16)
PROMPTS = ("a cat surfing", "the sea", "red dog")


@pytest.fixture
def model(pocket_folder: Path) -> Model:
    """Renders 9 frames of 96x64 in 2 steps with guidance."""
    return open_folder(pocket_folder, "small")


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two clips side by side; two samples in each shard."""
    monkeypatch.setattr(data, "_MOST", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def prepared(model: Model, folder: Path, count: int = 5, teacher: int = 0, seed: int = 7, watch: Any = None) -> Data:
    Preparation(model, model.defaults, TARGET, folder, watch or Recorder()).from_model(PROMPTS, count, seed, teacher)
    return Data.open(folder)


@pytest.mark.parametrize("solver", ["unipc", "fastwan"])
def test_the_latents_are_those_of_generate(model: Model, tmp_path: Path, solver: str) -> None:
    """Also by a solver that adds noise between steps."""
    model = replace(model, defaults=model.defaults.override(solver=solver))
    found = prepared(model, tmp_path / "data", count=4)
    found.check(model)
    assert found.index.origins == [Origin(PROMPTS[i % 3], 7 + i) for i in range(4)]
    for number in (1, 3):
        own = found.index.origins[number]
        assert own.seed is not None
        request = Request(own.prompt, model.defaults, own.seed, tmp_path / "v.mp4", BF16)
        (latents,) = [e.latents for e in pipeline.generate([request], model, TARGET) if isinstance(e, Denoised)]
        # In float32; there both guidance branches run in one batch.
        assert torch.allclose(found.sample(number).latents, latents[0], atol=1e-4)
    texts = [found.sample(number).texts[0] for number in (0, 3)]
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], found.negative)


def test_the_teacher_s_velocities(model: Model, tmp_path: Path) -> None:
    """At noise levels within reach of the video's, of the dense model without guidance."""
    found = prepared(model, tmp_path / "data", count=2, teacher=3)
    transformer = load_transformer(model.checkpoint, CPU, torch.float32)
    first, second = model.defaults.noise_levels
    for number in range(2):
        own = found.sample(number)
        assert own.taught is not None
        context = transformer.embed_text(own.texts[0][None])
        for level, seed, velocity in zip(*own.taught, strict=True):
            assert second / 2 <= level <= first
            noise = solvers.noise(16, model.defaults.latent_shape, int(seed))[0]
            x = (1 - level) * own.latents + level * noise
            exact = transformer(x[None], 1000 * level[None], context)[0]
            assert torch.allclose(velocity.float(), exact, rtol=2**-7, atol=1e-5)  # bfloat16's rounding
    levels = torch.cat([found.sample(number).taught.levels for number in range(2)])  # type: ignore[union-attr]
    assert len(levels.unique()) == 6


@pytest.mark.parametrize("stop", [1, 6, 13])
def test_a_stopped_run_gives_the_same_bytes(model: Model, tmp_path: Path, stop: int) -> None:
    prepared(model, tmp_path / "whole", teacher=1)
    heard = 0

    def stopped(event: Event) -> None:
        nonlocal heard
        heard += isinstance(event, Done) and event.work > 0
        if heard == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(model, tmp_path / "stopped", teacher=1, watch=stopped)
    again = Recorder()
    prepared(model, tmp_path / "stopped", teacher=1, watch=again)
    assert again.done == again.wanted == 5 * 2.5
    assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")


def test_a_complete_folder_loads_nothing(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(model, tmp_path / "data", count=3)
    before = tree(tmp_path / "data")
    monkeypatch.setattr(texts, "load_text_encoder", lambda *args: pytest.fail("it loads"))
    assert len(prepared(model, tmp_path / "data", count=3)) == 3
    with pytest.raises(UsageError):
        prepared(model, tmp_path / "data", count=3, seed=8)
    with pytest.raises(UsageError):
        prepared(model, tmp_path / "data", count=3, teacher=1)
    assert tree(tmp_path / "data") == before


def test_values_that_are_not_finite_end_it(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    velocity = Denoiser.velocity
    monkeypatch.setattr(Denoiser, "velocity", lambda *args: velocity(*args) * float("nan"))
    with pytest.raises(RenderError):
        prepared(model, tmp_path / "data")
    assert tree(tmp_path / "data") == {}


# --- videos ----------------------------------------------------------------------------------------------


def filmed(folder: Path) -> Path:
    """Four films that can be used, one that is too short, one that is none, one without a caption."""
    folder.mkdir()
    for number in range(4):
        film(folder / f"{number}.mp4", frames=24, red=0.1 * number)
    film(folder / "1 short.mp4", frames=6)
    (folder / "2 none.mp4").write_text("nothing")
    for path in list(folder.glob("*.mp4")):
        path.with_suffix(".txt").write_text(f"a cat {path.stem}")
    film(folder / "3 silent.mp4", frames=24)
    return folder


def from_videos(model: Model, videos: Path, folder: Path, watch: Watch) -> Data:
    Preparation(model, model.defaults, TARGET, folder, watch).from_videos(clips.find(videos))
    return Data.open(folder)


def test_videos_become_latents(model: Model, tmp_path: Path) -> None:
    watch = Recorder()
    found = from_videos(model, filmed(tmp_path / "videos"), tmp_path / "data", watch)
    assert found.index.origins == [Origin(f"a cat {i}", source=f"{i}.mp4") for i in range(4)]
    assert watch.done == watch.wanted == 7
    assert [note.split(" is")[0] for note in watch.warnings if "skipped" in note] == [
        "1 short.mp4", "2 none.mp4", "3 silent.mp4",
    ]  # fmt: skip
    vae = load_vae(model.checkpoint, CPU)
    for number, video in enumerate(clips.find(tmp_path / "videos")[i] for i in (0, 2, 4, 6)):
        frames = clips.frames(video, model.defaults, tmp_path)
        assert torch.equal(found.sample(number).latents, wan_vae.encode(vae, frames)[0])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "index.json", "shard-00000.safetensors", "shard-00001.safetensors",
    ]  # fmt: skip


def test_stopped_among_videos(model: Model, tmp_path: Path) -> None:
    videos, left = filmed(tmp_path / "videos"), 5
    from_videos(model, videos, tmp_path / "whole", Recorder())

    def stopped(event: Event) -> None:
        nonlocal left
        left -= isinstance(event, Done)
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        from_videos(model, videos, tmp_path / "stopped", stopped)
    again = Recorder()
    from_videos(model, videos, tmp_path / "stopped", again)
    assert again.done == again.wanted
    assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")


def test_no_video_that_can_be_used(model: Model, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("nothing")
    (tmp_path / "videos" / "a.txt").write_text("a cat")
    with pytest.raises(UsageError, match="no video"):
        from_videos(model, tmp_path / "videos", tmp_path / "data", Recorder())
