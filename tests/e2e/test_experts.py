"""Models of two experts: against diffusers' WanPipeline of two transformers, and through the command line."""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from fpsgen import experts as module
from fpsgen import machine, pipeline, solvers
from fpsgen.bench import by_diffusers
from fpsgen.cli import app
from fpsgen.errors import ModelError
from fpsgen.events import Denoised, Notice, Stage, Step, finish
from fpsgen.presets import Phase, Preset
from fpsgen.request import Request, resolve
from fpsgen.sampling import Denoiser
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.texts import encode_prompts
from fpsgen.wan import sizes
from fpsgen.weights import load, models
from fpsgen.weights.known import Given
from tests.tools import quantised
from tests.tools.cli import invoke, told

CPU = torch.device("cpu")
PARTS = ("transformer", "transformer_2")
TARGET = Target(CPU, torch.float32, torch.float32)
STEPS, SHIFT, HIGH, LOW = 6, 3.0, 4.0, 3.0
PROMPT, NEGATIVE = "a cat surfing on the sea", "blurry"
WIDTH, HEIGHT, FRAMES = 48, 32, 5

OWN = Settings(
    WIDTH, HEIGHT, FRAMES, 16, STEPS, HIGH, SHIFT, NEGATIVE, sigmas="diffusers", boundary=0.875, guidance_low=LOW
)


def latents_of(model: models.Model, requests: Sequence[Request]) -> list[Tensor]:
    events = pipeline.generate(requests, model, TARGET)
    found = []
    for event in events:
        if isinstance(event, Denoised):
            found.append(event.latents)
            if len(found) == len(requests):
                events.close()
                return found
    raise AssertionError("too few videos")


def request(settings: Settings = OWN, seed: int = 3, prompt: str = PROMPT) -> Request:
    return Request(prompt, settings, seed, Path(f"unused-{seed}.mp4"))


def oracle(pipe: WanPipeline, settings: Settings, boundary: float, seed: int = 3, prompt: str = PROMPT) -> Tensor:
    noise = solvers.noise(16, sizes.latent_shape(FRAMES, HEIGHT, WIDTH), seed)
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(boundary_ratio=boundary)
    try:
        return pipe(
            prompt, NEGATIVE, height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=STEPS,
            guidance_scale=settings.guidance, guidance_scale_2=settings.guidance_low, latents=noise.clone(),
            output_type="latent",
        ).frames  # fmt: skip
    finally:
        pipe.register_to_config(boundary_ratio=0.875)


@pytest.mark.parametrize(
    ("boundary", "high", "guidance", "guidance_low"),
    [
        (0.875, 2, HIGH, LOW),
        (0.7, 4, HIGH, None),
        (0.875, 2, HIGH, 1.0),  # guidance of one expert alone
        (0.875, 2, 1.0, 1.0),
        (0.05, 6, HIGH, LOW),  # all steps are one expert's, or the other's
        (0.9999, 0, HIGH, LOW),
    ],
)
def test_latents_equal_diffusers(
    experts_pipeline: WanPipeline, experts: dict[str, Path], boundary: float, high: int, guidance: float,
    guidance_low: float | None,
) -> None:  # fmt: skip
    settings = replace(OWN, boundary=boundary, guidance=guidance, guidance_low=guidance_low)
    assert settings.high_steps == high
    wanted = oracle(experts_pipeline, settings, boundary)
    (latents,) = latents_of(models.find(str(experts["diffusers"])), [request(settings)])
    # As test_parity: float32 through 6 steps of 2 branches.
    assert (latents - wanted).norm() <= 1e-3 * wanted.norm()


def test_several_videos_share_the_loads_and_both_formats_give_the_same_bits(
    experts_pipeline: WanPipeline, experts: dict[str, Path]
) -> None:
    wanted = [(3, PROMPT), (4, "a dog on the sea")]
    found = {
        form: latents_of(models.find(str(folder)), [request(seed=seed, prompt=prompt) for seed, prompt in wanted])
        for form, folder in experts.items()
    }
    for ours, theirs, (seed, prompt) in zip(found["diffusers"], found["original"], wanted, strict=True):
        assert ours.equal(theirs)
        exact = oracle(experts_pipeline, OWN, 0.875, seed, prompt)
        assert (ours - exact).norm() <= 1e-3 * exact.norm()
    (alone,) = latents_of(models.find(str(experts["original"])), [request(seed=4, prompt=wanted[1][1])])
    assert alone.equal(found["original"][1])


@pytest.mark.parametrize(("free", "way"), [(2**40, "read"), (1, "nothing")])
def test_one_expert_is_in_memory_at_a_time_and_a_notice_says_how_the_other_is_read(
    experts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, free: int, way: str
) -> None:
    real, loaded, alive = module.load_transformer, [], []

    def watched(*args: Any) -> Any:
        alive.append((args[4], sum(one() is not None for one in loaded)))
        transformer = real(*args)
        loaded.append(weakref.ref(transformer))
        return transformer

    monkeypatch.setattr(module, "load_transformer", watched)
    monkeypatch.setattr(machine, "free_bytes", lambda device: free)
    model, told = models.find(str(experts["original"])), []
    for event in pipeline.generate([request(), request(seed=4)], model, TARGET):
        told += [event.text] if isinstance(event, Notice) and "low-noise" in event.text else []
        if isinstance(event, Stage) and event.what == "VAE":
            break
    assert alive == [("transformer", 0), ("transformer_2", 0)]
    assert len(told) == 1
    assert ("files" in told[0]) == (way == "read")


def test_an_expert_that_a_thread_loads_gives_the_same_bits(
    experts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.find(str(experts["original"]))
    (wanted,) = latents_of(model, [request()])
    monkeypatch.setattr(module, "way_ahead", lambda *_: "load")
    (found,) = latents_of(model, [request()])
    assert found.equal(wanted)


def test_an_error_of_the_thread_is_an_error_of_the_video(
    experts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that is cut while the first expert runs, say."""
    folder = Path(shutil.copytree(experts["original"], tmp_path / "m"))
    model = models.find(str(folder))
    low = folder / "low_noise_model" / "diffusion_pytorch_model.safetensors"
    for way in ("load", "read", "nothing"):
        monkeypatch.setattr(module, "way_ahead", lambda *_, way=way: way)
        content = low.read_bytes()
        low.write_bytes(content[:-100])
        with pytest.raises(ModelError, match=r"low_noise_model.*is damaged"):
            latents_of(model, [request()])
        low.write_bytes(content)


def test_an_expert_that_found_no_room_is_loaded_when_the_other_is_gone(
    experts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.find(str(experts["original"]))
    (wanted,) = latents_of(model, [request()])
    real, loads = module.load_transformer, []

    def full_at_first(*args: Any) -> Any:
        loads.append(args[4])
        if loads.count("transformer_2") == 1 and args[4] == "transformer_2":
            raise torch.OutOfMemoryError
        return real(*args)

    monkeypatch.setattr(module, "load_transformer", full_at_first)
    monkeypatch.setattr(module, "way_ahead", lambda *_: "load")
    (found,) = latents_of(model, [request()])
    assert found.equal(wanted)
    assert loads == ["transformer", "transformer_2", "transformer_2"]


def test_a_video_that_is_given_up_ends_the_thread(experts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()
    real = module.load_transformer

    def endless(*args: Any) -> Any:
        if args[4] == "transformer":
            return real(*args)
        try:
            begun.set()
            while True:  # a large file
                args[5]()
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(module, "load_transformer", endless)
    monkeypatch.setattr(module, "way_ahead", lambda *_: "load")
    events = pipeline.generate([request()], models.find(str(experts["original"])), TARGET)
    assert any(isinstance(event, Step) for event in events)
    assert begun.is_set()
    assert not ended.is_set()
    events.close()
    assert ended.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("expert")]


def test_a_video_of_one_expert_loads_only_that(experts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real, loaded = module.load_transformer, []
    monkeypatch.setattr(module, "load_transformer", lambda *args: loaded.append(args[4]) or real(*args))
    model = models.find(str(experts["original"]))
    latents_of(model, [request(replace(OWN, boundary=0.05))])
    latents_of(model, [request(replace(OWN, boundary=0.9999))])
    assert loaded == ["transformer", "transformer_2"]


def test_steps_reuse_nothing_of_the_other_expert(experts: dict[str, Path]) -> None:
    """Which computes its first step, both branches, whatever the preset says."""
    phases = (Phase(sigma=(1.0, 0.95)), Phase(sigma=(0.95, 0.0), compute="reuse"))
    again = (Phase(sigma=(1.0, 0.95)), Phase(sigma=(0.95, 0.0), guidance="reuse"))
    model = models.find(str(experts["original"]))
    for own, wanted in ((phases, "frfrrr"), (again, "fgfggg")):
        preset = Preset(name="p", phases=own)
        plan = resolve(Request(PROMPT, OWN, 3, Path("unused.mp4"), preset), model, TARGET)
        letters = {("full", "full"): "f", ("full", "reuse"): "r", ("reuse", "full"): "g"}
        assert "".join(letters[step.guidance, step.compute] for step in plan.steps) == wanted
        (latents,) = latents_of(model, [Request(PROMPT, OWN, 3, Path("unused.mp4"), preset)])
        high, low = (load.load_transformer(model.checkpoint, CPU, torch.float32, (), part) for part in PARTS)
        texts = finish(encode_prompts([PROMPT], [NEGATIVE], model, TARGET), lambda _: None)
        both = Denoiser(high, OWN, texts, CPU, low=low)
        *_, last = both.run(both.noise(3), plan.steps)
        assert last.latents.equal(latents)


def test_guidance_of_one_expert_alone_halves_its_cost(experts: dict[str, Path]) -> None:
    model = models.find(str(experts["original"]))
    plan = resolve(request(replace(OWN, guidance_low=1.0)), model, TARGET)
    assert [step.guidance for step in plan.steps] == ["full"] * 2 + ["off"] * 4
    assert plan.density == pytest.approx((2 + 4 / 2) / 6)


def test_weights_of_both_experts_are_told_apart(experts: dict[str, Path], tmp_path: Path) -> None:
    """Whichever of them is in memory."""
    prints = []
    for part in ("high_noise_model", "low_noise_model"):
        folder = Path(shutil.copytree(experts["original"], tmp_path / f"changed-{part}"))
        path = folder / part / "diffusion_pytorch_model.safetensors"
        state = load_file(path)
        state["head.head.bias"][0] += 1
        save_file(state, path)
        prints.append(weights_of(models.find(str(folder))))
    prints += [weights_of(models.find(str(folder))) for folder in experts.values()]
    assert prints[2] == prints[3]
    assert len(set(prints)) == 3


def weights_of(model: models.Model) -> str:
    found = {
        load.fingerprint(model.checkpoint, load.load_transformer(model.checkpoint, CPU, torch.float32, (), part))
        for part in PARTS
    }
    assert len(found) == 1
    return found.pop()


def test_the_command_line_tells_both_experts(experts: dict[str, Path], tmp_path: Path) -> None:
    given = ("a cat", "--model", experts["diffusers"], "--res", "32x32", "--frames", 1, "--steps", 5, "--seed", 1)
    shown = invoke(*given, "--guidance-low", 2, "--verbose", "-o", tmp_path / "a.mp4")
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.stderr.split())
    assert "the high-noise expert computes 4 of them, the low-noise expert 1, with guidance 2; boundary 0.875" in text
    made = told(invoke(*given, "--guidance", 3, "--json", "-o", tmp_path / "b.mp4"), "generate")
    assert made["experts"] == {"high": 4, "low": 1}
    assert (made["guidance"], made["guidance_low"], made["boundary"], made["shift"]) == (3, None, 0.875, 12)
    assert len(made["timings"]["steps"]) == 5


def test_guidance_low_of_a_model_of_one_transformer_is_refused() -> None:
    result = invoke("a cat", "--model", "pocket", "--guidance-low", 3)
    assert result.exit_code == 2
    assert "one transformer" in result.stderr
    assert invoke("a cat", "--model", "pocket", "--guidance-low", -3).exit_code == 2


def test_diffusers_in_the_bench_has_the_same_boundary_and_guidance(experts: dict[str, Path]) -> None:
    own = replace(OWN, boundary=0.7, sigmas="original")
    model = models.find(str(experts["diffusers"]))
    plan = resolve(request(own), model, TARGET)
    with torch.inference_mode():
        pipe = by_diffusers.load(plan)
        theirs, _ = by_diffusers.denoise(pipe, plan, by_diffusers.encode(pipe, plan))
    (ours,) = latents_of(model, [request(own)])
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
    contender = by_diffusers.Diffusers("diffusers", plan)
    assert contender.refusal() is None
    high_alone = resolve(request(replace(own, guidance=1.0)), model, TARGET)
    assert "low-noise expert alone" in (by_diffusers.Diffusers("diffusers", high_alone).refusal() or "")


def test_diffusers_is_refused_where_it_would_read_something_else(experts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(experts["diffusers"], tmp_path / "mixed"))
    file = folder / "transformer_2" / "diffusion_pytorch_model.safetensors"
    save_file(quantised.split(load_file(file), torch.float8_e4m3fn, True, "weight_scale"), file)
    plan = resolve(request(OWN), models.find(str(folder)), TARGET)
    assert by_diffusers.Diffusers("diffusers", plan).refusal() == "it reads no weights in F8_E4M3"
    named = models.find(str(experts["diffusers"]), Given(vae=experts["original"] / "Wan2.1_VAE.pth"))
    other = by_diffusers.Diffusers("diffusers", resolve(request(OWN), named, TARGET))
    assert other.refusal() == "it reads the model's own parts, not those that are named"


def test_training_refuses_two_experts(experts: dict[str, Path], tmp_path: Path) -> None:
    for more in (["--data", "data", "-o", "out"], ["--dry-run"]):
        result = CliRunner().invoke(app, ["train", str(experts["original"]), *more])
        assert result.exit_code == 2
        assert "has two experts, and training learns one transformer" in " ".join(result.stderr.split())
