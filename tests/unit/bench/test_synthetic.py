"""`--random-weights`: the true shapes, and the arithmetic from single steps to a whole video."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from fpsgen import machine
from fpsgen.attention.tiles import TileGrid
from fpsgen.bench import lineup, steps, synthetic
from fpsgen.bench.compare import CompareJob
from fpsgen.bench.contenders import VideoContender
from fpsgen.bench.dense_kernels import KERNELS
from fpsgen.bench.lineup import LineUp
from fpsgen.bench.record import Split
from fpsgen.bench.steps import ENOUGH
from fpsgen.cli import app
from fpsgen.cli.bench import agree
from fpsgen.cli.output import Output, in_flags
from fpsgen.errors import Stopped, UsageError
from fpsgen.events import Event, Run, Stage
from fpsgen.presets import BF16, Phase, Preset
from fpsgen.request import Request, resolve
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.wan import config
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.config import WanConfig
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import configs, load, models, needs
from fpsgen.weights.load import by_name
from tests.tools import golden

CPU = torch.device("cpu")
WIDTH = 24  # of the text
TWO = Preset(name="two", phases=(Phase(sigma=(1.0, 0.6)), Phase(sigma=(0.6, 0.0), window=(1, 1, 1))), tile=(2, 2, 2))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wan2.1 14B of a few thousand parameters."""
    small = WanConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=WIDTH, freq_dim=16)
    monkeypatch.setitem(config.SHAPES, "14b", small)
    monkeypatch.setitem(config.SHAPES, "2.2-14b", small)
    text = {"vocab_size": 50, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
    monkeypatch.setattr(configs, "TEXT_CONFIG", {**configs.TEXT_CONFIG, **text})
    blocks = {"dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    monkeypatch.setitem(config.SHAPES, "5b", replace(small, in_channels=48, out_channels=48, time_per_token=True))
    monkeypatch.setattr(configs, "VAE_2_2_CONFIG", {**configs.VAE_2_2_CONFIG, "base_dim": 4, "decoder_base_dim": 4})
    monkeypatch.setattr(configs, "VAE_CONFIG", {"base_dim": 4, "z_dim": 16, **blocks})


def job(frames: int = 9, guidance: float = 3.0, dtype: torch.dtype = torch.float32) -> CompareJob:
    request = Request("a cat", Settings(96, 64, frames, 8, 6, guidance, 3.0, ""), 1, Path())
    model, target = models.absent("14b"), Target(CPU, dtype, torch.bfloat16)
    two, bf16 = (resolve(replace(request, preset=preset), model, target) for preset in (TWO, BF16))
    dense = VideoContender("bf16", bf16, KERNELS["sdpa"])
    return CompareJob(LineUp((VideoContender("two", two), dense), dense), 1, ["fpsgen", "bench"])


@pytest.mark.usefixtures("tiny")
def test_a_contender_with_fewer_steps_is_extrapolated_to_its_own() -> None:
    request = Request("a cat", Settings(96, 64, 9, 8, 6, 3.0, 3.0, ""), 1, Path(), TWO)
    line_up = lineup.resolve(
        "bf16", ["bf16", "steps:4"], request, models.absent("14b"), Target(CPU, *[torch.float32] * 2)
    )
    found = measure(CompareJob(line_up, 1, []))
    (whole,), (fewer,) = (found["contenders"][number]["phases"] for number in (1, 2))
    assert (whole["first"], whole["last"], fewer["first"], fewer["last"]) == (1, 6, 1, 4)
    (run,) = found["contenders"][2]["warm"]
    assert len(run["steps"]) == 4
    assert run["denoise"] == pytest.approx(4 * fewer["step"], abs=2e-3)  # rounded to a millisecond


@pytest.mark.usefixtures("tiny")
def test_steps_of_two_experts_are_those_of_one_of_their_shapes() -> None:
    """An expert without guidance computes half, so its steps are measured apart."""
    own = Settings(96, 64, 9, 8, 6, 3.0, 3.0, "", boundary=0.8, guidance_low=1.0)
    request = Request("a cat", own, 1, Path(), BF16)
    line_up = lineup.resolve("bf16", ["bf16"], request, models.absent("2.2-14b"), Target(CPU, *[torch.float32] * 2))
    synthetic.check_memory(models.absent("2.2-14b").checkpoint, Target(CPU, *[torch.float32] * 2))
    (found, *_) = measure(CompareJob(line_up, 1, []))["contenders"]
    assert [(phase["first"], phase["last"]) for phase in found["phases"]] == [
        (1, own.high_steps),
        (own.high_steps + 1, 6),
    ]
    assert found["phases"][1]["density"] == found["phases"][0]["density"] / 2
    assert len(found["warm"][0]["steps"]) == 6


def measure(given: CompareJob) -> dict[str, Any]:
    """The record, as its file has it."""
    return json.loads(json.dumps(asdict(synthetic.measure(given, lambda _: None))))


@pytest.mark.usefixtures("tiny")
def test_the_record_holds_what_single_steps_extrapolate_to() -> None:
    told: list[Event] = []
    found = json.loads(json.dumps(asdict(synthetic.measure(job(), told.append))))
    stages = [Stage("text"), Stage("decode"), Stage("transformer")]
    assert told == [*stages, Run("two", 1, 2), Stage("denoise"), Run("bf16", 2, 2), Stage("denoise")]
    assert found["random_weights"]
    assert found["extrapolated"]
    assert found["video"]["prompt"] is found["video"]["negative"] is None
    assert found["notes"] == list(synthetic.NOTES)
    for one in found["contenders"]:
        (timing,) = one["warm"]
        assert [phase["first"] for phase in one["phases"]] == [1, one["phases"][0]["last"] + 1]
        assert one["phases"][1]["last"] == 6
        assert len(timing["steps"]) == 6
        counted = sum(phase["step"] * (phase["last"] - phase["first"] + 1) for phase in one["phases"])
        assert timing["denoise"] == pytest.approx(counted, abs=2e-3)  # rounded to milliseconds, as all times are
        parts = [timing[name] for name in ("text", "denoise", "decode")]
        assert min(parts) > 0
        assert timing["total"] == pytest.approx(sum(parts), abs=2e-3)
        for phase in one["phases"]:
            assert sum(phase["split"].values()) == pytest.approx(phase["step"], abs=1e-4)
        assert one["cold"] is one["fidelity"] is timing["load"] is timing["encode"] is one["median"]["load"] is None
        assert one["nonfinite"] == 0


@pytest.mark.usefixtures("tiny")
def test_denoising_is_steps_times_the_phases_own_median(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(_denoiser: object, latents: Tensor, _number: object, plan: StepPlan) -> Any:
        return [Split(1.5, 0.25, 0.25) if plan.attention[0].is_dense else Split(0.25, 0.25, 0.5)], latents

    monkeypatch.setattr(steps, "split", split)
    found = measure(job())
    two, dense = found["contenders"]
    first = two["phases"][0]["last"]
    assert 0 < first < 6
    assert two["median"]["denoise"] == first * 2 + (6 - first) * 1
    assert dense["median"]["denoise"] == 12
    assert two["warm"][0]["steps"] == [2.0] * first + [1.0] * (6 - first)
    # Cut where the preset's phases are, so that both can stand in one table.
    assert [phase["last"] for phase in dense["phases"]] == [first, 6]
    assert [phase["density"] for phase in dense["phases"]] == [1, 1]
    assert two["phases"][1]["density"] < 1
    assert dense["speedup"] is None
    assert two["speedup"]["denoise"] == {"median": 12 / (6 + first), "each": [12 / (6 + first)]}


@pytest.mark.usefixtures("tiny")
def test_a_long_clip_is_decoded_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def stream(_vae: object, latents: Tensor) -> Iterator[Tensor]:
        for index, seconds in enumerate((0.02, 0.04, 0.08, 10)[: latents.shape[2]]):
            decoded.append(index)
            time.sleep(seconds)
            yield torch.zeros(1, 3, 4 if index else 1, 64, 96)

    monkeypatch.setattr(wan_vae, "stream", stream)
    found = measure(job(frames=41))  # 11 latent frames
    assert decoded == [0, 1, 2] * 2  # once to warm up
    expected = 0.02 + 0.04 + 9 * 0.08
    assert expected <= found["contenders"][0]["median"]["decode"] <= 1.5 * expected


@pytest.mark.usefixtures("tiny")
def test_a_short_clip_is_decoded_whole() -> None:
    found = measure(job(frames=1, guidance=1.0))
    assert found["contenders"][0]["median"]["decode"] > 0


@pytest.mark.parametrize(("key", "parameters"), [("1.3b", 1.42e9), ("14b", 14.3e9)])
def test_components_have_the_published_number_of_parameters(key: str, parameters: float) -> None:
    found = needs.weights(true(key), Target(torch.device("cpu"), torch.float32, torch.bfloat16))
    dim, ffn_dim, layers = {"1.3b": (1536, 8960, 30), "14b": (5120, 13824, 40)}[key]
    # By lists that were written down from the original's source.
    expected = {"transformer": golden.transformer(dim, ffn_dim, layers), "text encoder": golden.text_encoder()}
    expected["VAE"] = golden.vae()
    counts = {part: sum(map(math.prod, shapes.values())) for part, shapes in expected.items()}
    assert found == {part: count * (2 if part == "text encoder" else 4) for part, count in counts.items()}
    assert found["transformer"] / 4 == pytest.approx(parameters, rel=0.01)


def true(key: str) -> Any:
    return models.absent(key).checkpoint


@pytest.mark.parametrize(
    ("key", "dtype", "free", "told", "hint"),
    [
        ("14b", torch.float32, 40e9, "the transformer takes 57", "--dtype bf16"),
        ("14b", torch.float32, 20e9, "the transformer takes 57", "--random-weights 1.3b"),
        ("14b", torch.bfloat16, 20e9, "the transformer takes 29", "--random-weights 1.3b"),
        ("1.3b", torch.bfloat16, 8e9, "the text encoder takes 11", "another --device"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_its_size(
    key: str, dtype: torch.dtype, free: float, told: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda _: int(free))
    with pytest.raises(UsageError, match=told) as error:
        synthetic.check_memory(true(key), Target(CPU, dtype, torch.bfloat16))
    assert f"{free / 1e9:.1f} GB are free" in str(error.value)
    assert hint in in_flags(error.value.marked_hint or "")


@pytest.mark.usefixtures("tiny")
def test_what_does_not_fit_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(synthetic, "randomise", lambda *_: pytest.fail("it builds"))
    result = CliRunner().invoke(app, ["bench", "--random-weights", "14b", "--res", "96x64", "--device", "cpu"])
    assert result.exit_code == 2
    assert "are free on cpu" in result.output


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("key", ["2.2-14b", "5b"])
def test_other_shapes_than_those_of_one_transformer_of_16_channels(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--res", "96x64", "--frames", "5", "--steps", "2", "--pairs", "1", "--no-report", "--device", "cpu"]
    result = CliRunner().invoke(app, ["bench", "--random-weights", key, *given, "-o", "a.json"])
    assert result.exit_code == 0, result.output
    record = json.loads(Path("a.json").read_text())
    assert record["random_weights"]
    assert min(record["contenders"][0]["median"][name] for name in ("text", "denoise", "decode")) > 0


def test_random_weights_stay_finite_through_forty_blocks_in_bf16() -> None:
    deep = WanConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=40, text_dim=WIDTH, freq_dim=16)
    with torch.device("meta"):
        empty = WanTransformer(deep)

    dtype = by_name(torch.bfloat16)
    model = synthetic.randomise(empty, CPU, dtype, seed=3)
    assert all(value.dtype == dtype(name) for name, value in model.named_parameters())
    latents = torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        context = model.embed_text(torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(1)))
        velocity = model(latents, torch.tensor([700.0]), context)
    assert velocity.isfinite().all()
    assert 0.01 < velocity.std() < 100  # near one, as latents are: neither died away nor grew by the block


@pytest.mark.usefixtures("tiny")
def test_one_seed_gives_one_set_of_weights() -> None:
    checkpoint = true("14b")

    def values(seed: int) -> Tensor:
        model = synthetic.randomise(load.empty_transformer(checkpoint), CPU, lambda _: torch.float32, seed)
        return torch.cat([value.flatten() for value in model.parameters()])

    assert values(1).equal(values(1))
    assert not values(1).equal(values(2))


# --- how long it takes on a CPU ------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_its_duration_is_that_of_its_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that does so little in a second that every step is measured once."""
    rate = 1e5
    monkeypatch.setattr(synthetic, "flops_per_second", lambda dtype: rate)
    # An embedding: 2 layers, each of 4 matrices of 24 x 24 and 3 of 24 x 32, 512 tokens. Two, and one to warm up.
    text = 3 * 2 * 512 * 2 * (4 * 24 * 24 + 3 * 24 * 32)
    # 3 x 4 x 6 tokens; each layer: 6 matrices of 48 x 48, 2 of 48 x 64, and 4 x 48 for a pair of tokens.
    linear, pairs = 2 * 72 * 2 * (6 * 48 * 48 + 2 * 48 * 64), 2 * 4 * 48 * 72**2
    sparse = pairs * TileGrid((3, 4, 6), (2, 2, 2)).density((1, 1, 1))
    steps = [linear + pairs, linear + sparse, linear + pairs]  # TWO's, then bf16's
    assert all(2 * flops / rate > ENOUGH for flops in steps)
    # Both branches, once to warm up.
    assert synthetic.least_seconds(job()) == pytest.approx((text + sum(2 * flops * 2 for flops in steps)) / rate)


def test_a_machine_has_a_speed() -> None:
    assert 1e8 < synthetic.flops_per_second(torch.float32) < 1e15


@pytest.mark.usefixtures("tiny")
def test_minutes_on_a_cpu_are_said_and_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "least_seconds", lambda _: 5000.0)
    monkeypatch.setattr(lineup, "with_fastest", lambda _: pytest.fail("it began"))
    given = ["bench", "--random-weights", "14b", "--res", "96x64", "--frames", "9", "--device", "cpu"]
    refused = CliRunner().invoke(app, given)
    said = " ".join(refused.stderr.split())
    assert refused.exit_code == 2
    assert "at least 83 min 20 s on this CPU" in said
    assert "add --yes to begin" in said
    monkeypatch.setattr(lineup, "with_fastest", lambda found: found)
    begun = CliRunner().invoke(app, [*given, "--yes", "--pairs", "1", "--no-report"])
    assert begun.exit_code == 0, begun.output
    assert "this takes at least 83 min 20 s" in " ".join(begun.stderr.split())
    monkeypatch.setattr(synthetic, "least_seconds", lambda _: 50.0)
    assert CliRunner().invoke(app, [*given, "--pairs", "1", "--no-report"]).exit_code == 0


def test_nobody_is_made_to_wait_who_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "may_ask", True)
    monkeypatch.setattr("typer.confirm", lambda question, err: "at least" not in question)
    with pytest.raises(Stopped, match="nothing was measured"):
        agree(Output(), 5000.0, yes=False)
