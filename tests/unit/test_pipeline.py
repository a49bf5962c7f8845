"""What is encoded, and several videos in one load."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fpsgen import experts, machine, pipeline, residence, texts
from fpsgen.errors import RenderError, UsageError
from fpsgen.events import Denoised, Event, Notice, Run, VideoFailed, Written, finish
from fpsgen.ranks import Ranks
from fpsgen.request import Request, VideoPlan
from fpsgen.sampling import Denoiser, State
from fpsgen.target import Target
from fpsgen.texts import encode_prompts
from fpsgen.timing import Timings
from fpsgen.wan import graphs
from fpsgen.wan.graphs import Graphs
from fpsgen.weights import models
from tests.tools.calibration import CPU
from tests.tools.graphs import Recorder

TARGET = Target(CPU, torch.float32, torch.float32)
LOADS = ((texts, "load_text_encoder"), (experts, "load_transformer"), (pipeline, "load_vae"))


@pytest.mark.parametrize(
    ("prompts", "negatives", "named"),
    [
        (["a"], [], ["prompt"]),
        (["a"], ["b"], ["prompt", "negative prompt"]),
        (["a", "b"], ["c"], ["prompt 1", "prompt 2", "negative prompt"]),
    ],
)
def test_texts_are_in_the_order_of_their_prompts_and_named_so(
    monkeypatch: pytest.MonkeyPatch, prompts: list[str], negatives: list[str], named: list[str]
) -> None:
    class Encoder:
        def __init__(self, *_: object) -> None:
            self.tokenizer, self.is_loaded = SimpleNamespace(length=512), True

        def make_ready(self, prompt: str) -> None: ...

        def encode(self, prompt: str) -> SimpleNamespace:
            return SimpleNamespace(text=torch.full((1, 2, 3), float(ord(prompt))), unknown=(), cut=True)

    monkeypatch.setattr(texts, "load_text_encoder", Encoder)
    monkeypatch.setattr(residence, "of_text_encoder", lambda *_: "device")
    model: Any = SimpleNamespace(checkpoint=None, pocket=None)
    events: list[Event] = []
    found: list[Tensor] = finish(encode_prompts(prompts, negatives, model, TARGET), events.append)
    assert [chr(int(own[0, 0, 0])) for own in found] == [*prompts, *negatives]
    told = [event.text for event in events if isinstance(event, Notice)]
    assert [one.split(" is longer")[0] for one in told] == [f"the {name}" for name in named]


def test_several_videos_share_each_load_and_are_what_each_is_alone(
    pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.open_folder(pocket_folder, "pocket")
    own = model.defaults.override(steps=2)
    requests = [
        Request("a cat surfing", own, 1, tmp_path / "one.mp4"),
        Request("red dog", own.override(guidance=1.0), 2, tmp_path / "two.mp4"),
        Request("a cat surfing", own.override(steps=3), 3, tmp_path / "three.mp4"),
    ]
    loads: list[str] = []
    for module, name in LOADS:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, real=real, name=name: loads.append(name) or real(*args))
    timings = [Timings() for _ in requests]
    events = list(pipeline.generate(requests, model, TARGET, timings))
    assert loads == ["load_text_encoder", "load_transformer", "load_vae"]
    assert [event.number for event in events if isinstance(event, Run)] == [1, 2, 3]
    written = [event for event in events if isinstance(event, Written)]
    assert [event.path for event in written] == [request.output for request in requests]
    for request, event, times in zip(requests, written, timings, strict=True):
        assert len(times.steps) == request.settings.steps
        assert sum(times.seconds.values()) <= times.total + 1e-3
        together = request.output.read_bytes()
        (alone,) = [one for one in pipeline.generate([request], model, TARGET) if isinstance(one, Written)]
        assert alone.about | {"timings": None} == event.about | {"timings": None}
        assert frames_of(together) == frames_of(request.output.read_bytes())


@pytest.mark.parametrize("fits", [False, True])
def test_one_component_is_in_memory_at_a_time_unless_the_vae_fits_beside_the_transformer(
    pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """Each of the large ones may need all the memory there is; where they do not, no video waits for all others."""
    monkeypatch.setattr(residence, "vae_fits_beside", lambda *_: fits)
    loaded: list[weakref.ref[Any]] = []
    alive: list[tuple[str, int]] = []
    for module, name in LOADS:
        real = getattr(module, name)

        def load(*args: Any, real: Any = real) -> Any:
            alive.append((real.__name__, sum(one() is not None for one in loaded)))
            component = real(*args)
            loaded.append(weakref.ref(component))
            return component

        monkeypatch.setattr(module, name, load)
    model = models.open_folder(pocket_folder, "pocket")
    requests = [Request("a cat", model.defaults.override(steps=1), seed, tmp_path / f"{seed}.mp4") for seed in (1, 2)]
    events = list(pipeline.generate(requests, model, TARGET))
    assert alive == [("load_text_encoder", 0), ("load_transformer", 0), ("load_vae", int(fits))]
    order = [type(event) for event in events if isinstance(event, (Run, Written))]
    assert order == ([Run, Written] * 2 if fits else [Run, Run, Run, Written, Written])  # whose frames come now


def test_a_larger_video_is_decoded_whole_after_all_where_the_vae_is_there_already(
    pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, released = [], []
    real = machine.release
    monkeypatch.setattr(machine, "release", lambda: released.append(len(asked)) or real())

    def fits(plan: VideoPlan, copies: int) -> bool:
        assert released[-1] == len(asked)  # what steps have left counts as free
        asked.append((plan.request.settings.frames, copies))
        return plan.request.settings.frames == 1

    aside, put = [], State.set_aside
    monkeypatch.setattr(State, "set_aside", lambda own, steps: aside.append(own.step) or put(own, steps))
    monkeypatch.setattr(residence, "vae_fits_beside", fits)
    model = models.open_folder(pocket_folder, "pocket")
    requests = [
        Request("a cat", model.defaults.override(steps=1, frames=frames), 1, tmp_path / f"{frames}.mp4")
        for frames in (1, 9, 5)
    ]
    events = list(pipeline.generate(requests, model, TARGET))
    assert asked == [(1, 1), (9, 0)]
    assert aside == [1, 1, 1]
    assert [event.path.stem for event in events if isinstance(event, Written)] == ["1", "9", "5"]
    kinds = [type(event) for event in events if isinstance(event, (Denoised, Written))]
    assert kinds == [Denoised, Written, Denoised, Denoised, Written, Written]


def test_of_several_videos_one_that_fails_does_not_end_the_others(
    pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.open_folder(pocket_folder, "pocket")
    one = model.defaults.override(steps=1, frames=5)
    requests = [Request("a cat", one, seed, tmp_path / f"{seed}.mp4") for seed in (1, 2, 3)]
    real = Denoiser.velocity

    def broken(self: Denoiser, latents: Tensor, *rest: Any) -> Tensor:
        return real(self, latents, *rest) * (float("nan") if torch.equal(latents, self.noise(2)) else 1)

    monkeypatch.setattr(Denoiser, "velocity", broken)
    events = list(pipeline.generate(requests, model, TARGET))
    (failed,) = [event for event in events if isinstance(event, VideoFailed)]
    assert (failed.number, "not finite" in f"{failed.fault}") == (2, True)
    assert [event.path.stem for event in events if isinstance(event, Written)] == ["1", "3"]
    with pytest.raises(RenderError, match="not finite"):
        list(pipeline.generate(requests[1:2], model, TARGET))


@pytest.mark.parametrize(("world", "ends"), [(1, False), (2, True)])
def test_a_full_gpu_of_several_that_share_a_video_ends_all(world: int, ends: bool) -> None:
    """Whoever goes on with the next video would send that to processes that wait for this one."""

    def full() -> Iterator[Event]:
        raise torch.OutOfMemoryError
        yield

    video = cast(pipeline.Rendering, SimpleNamespace(number=0, group=Ranks(1, world), state=None, fault=None))
    with pytest.raises(torch.OutOfMemoryError) if ends else contextlib.nullcontext():
        assert [type(event) for event in pipeline._or_failed(full(), video, [video, video])] == [VideoFailed]


def test_graphs_are_gone_before_the_next_video_and_before_decoding(
    pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They keep the memory of a step, which is free when the next video asks how much there is."""
    made: list[Any] = []
    released: list[int] = []

    class Watched(Graphs):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(weakref.ref(self))

    def release() -> None:
        released.append(sum(one() is not None for one in made))
        assert not released[-1]

    monkeypatch.setattr(pipeline, "Graphs", Watched)
    monkeypatch.setattr(pipeline, "why_not", lambda *_: None)
    monkeypatch.setattr(graphs, "on_cuda", Recorder())
    monkeypatch.setattr(machine, "release", release)
    model = models.open_folder(pocket_folder, "pocket")
    requests = [Request("a cat", model.defaults.override(steps=3), seed, tmp_path / f"{seed}.mp4") for seed in (1, 2)]
    told = [event.about for event in pipeline.generate(requests, model, TARGET) if isinstance(event, Written)]
    assert [about["graphs"]["captured"] for about in told] == [1, 1]
    assert len(made) == 2
    assert len(released) == 6  # text encoder, before each video, transformer, before each decoding


def frames_of(video: bytes) -> bytes:
    """The coded pictures of an mp4, without its comment, in which times differ."""
    start = video.index(b"mdat")
    size = int.from_bytes(video[start - 4 : start], "big")
    return video[start : start - 4 + size]


def test_latents_that_are_not_finite_end_a_run_unless_they_are_accepted(
    pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.open_folder(pocket_folder, "pocket")
    request = Request("a cat", model.defaults.override(steps=2), 1, tmp_path / "one.mp4")
    monkeypatch.setattr(Denoiser, "velocity", lambda denoiser, latents, *_: latents * float("nan"))
    with pytest.raises(RenderError, match="step 1"):
        list(pipeline.generate([request], model, TARGET))
    assert not request.output.exists()
    events = list(pipeline.generate([request], model, TARGET, accept=True))
    assert isinstance(events[-1], Written)


def test_outputs_of_several_videos_are_checked_before_the_work(pocket_folder: Path, tmp_path: Path) -> None:
    model = models.open_folder(pocket_folder, "pocket")
    requests = [Request("a cat", model.defaults, 1, tmp_path / name) for name in ("one.mp4", "two.avi")]
    with pytest.raises(UsageError, match=r"two\.avi"):
        list(pipeline.generate(requests, model, TARGET))
    assert not list(tmp_path.iterdir())
    assert list(pipeline.generate([], model, TARGET)) == []
