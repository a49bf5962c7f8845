"""Clips that are rendered side by side: the same as one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from fpsgen.calibrate.trajectory import Renderer
from fpsgen.events import Done
from fpsgen.journal import Journal
from fpsgen.sampling import Denoiser
from tests.tools.calibration import CPU, TILES, VIDEO, clips, small_renderer, small_transformer, text


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_clips_side_by_side_are_those_one_after_the_other(tmp_path: Path, two_threads: None) -> None:
    done, meeting = [], threading.Barrier(2, timeout=60)  # passed by nobody who is alone
    renderer = small_renderer(tmp_path, lambda event: done.append(event))
    steps = [renderer.dense] * renderer.settings.steps

    def render(number: int) -> torch.Tensor:
        if number < 2:
            meeting.wait()
            assert torch.get_num_threads() == 1
        return renderer.render(clips(3)[number], f"together{number}", steps)[1]

    with torch.inference_mode():
        together = renderer.side_by_side(render, range(3))
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)  # on which the last bits depend
        alone = [renderer.render(clip, f"alone{clip.seed}", steps)[1] for clip in clips(3)]
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))
    assert sum(event.work for event in done if isinstance(event, Done)) == 2 * 3 * len(steps)


def test_steps_that_add_noise_are_those_of_a_video(tmp_path: Path) -> None:
    own, (clip,) = VIDEO.override(solver="turbowan"), clips(1)
    renderer = Renderer(small_transformer(), TILES, own, text(99), CPU, Journal(tmp_path, {}), lambda event: None)
    steps = [renderer.dense] * own.steps
    velocities, latents = renderer.render(clip, "one", steps)
    denoiser = Denoiser(renderer.transformer, own, [clip.text], CPU)
    *_, last = denoiser.run(denoiser.noise(clip.seed), steps, fresh=partial(denoiser.noise, clip.seed))
    assert torch.equal(latents, last.latents)
    before = [found for _, found in renderer.replay(clip, velocities)]
    assert len(before) == own.steps


def test_an_error_ends_all_clips_at_their_next_step(tmp_path: Path, two_threads: None) -> None:
    failed = threading.Event()
    renderer = small_renderer(tmp_path)
    watch, begun = renderer.watch, []

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            failed.set()
            raise ValueError("the second")
        assert failed.wait(60)
        while True:  # a clip without an end
            renderer.watch(Done(0))

    with pytest.raises(ValueError, match="the second"):
        renderer.side_by_side(work, range(8))
    assert len(begun) < 8
    assert renderer.watch is watch
