"""What a step is made of: injected waits show up where they belong."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fpsgen.bench import steps
from fpsgen.bench.record import Split
from fpsgen.presets import BF16, Phase, Preset
from fpsgen.request import Request, VideoPlan
from fpsgen.sampling import Denoiser
from fpsgen.target import Target
from fpsgen.wan import transformer as wan
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights.models import absent
from tests.tools.calibration import CPU, TILES, VIDEO, small_transformer

LAYERS = 2
WAIT = 0.03  # seconds; an undisturbed step takes a few milliseconds
TWO = Preset(name="two", phases=(Phase(sigma=(1.0, 0.6)), Phase(sigma=(0.6, 0.0), window=(1, 1, 1))))
SETTINGS = replace(VIDEO, steps=6)
SIGMAS = [*SETTINGS.noise_levels, 0.0]


def planned(transformer: WanTransformer, preset: Preset) -> VideoPlan:
    """What a video of SETTINGS comes to."""
    config = transformer.config
    steps = preset.schedule(SETTINGS.noise_levels, TILES, config.num_layers, config.num_heads)
    request, model = Request("", SETTINGS, 1, Path(), preset), replace(absent("1.3b"), pocket={"version": 0})
    return VideoPlan(request, model, Target(CPU, torch.float32, torch.float32), tuple(steps))


def text(seed: int) -> Tensor:
    return torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed))


def measured(transformer: WanTransformer, guidance: float = 1.0) -> list[Split]:
    settings = replace(SETTINGS, guidance=guidance)
    texts = [text(seed) for seed in range(settings.branches)]
    denoiser = Denoiser(transformer, settings, texts, CPU, together=False)
    return steps.split(denoiser, denoiser.noise(0), 0, planned(transformer, BF16).steps[0])[0]


def late(function: Callable[..., Any]) -> Callable[..., Any]:
    def waiting(*args: Any, **kwargs: Any) -> Any:
        time.sleep(WAIT)
        return function(*args, **kwargs)

    return waiting


def hooks(transformer: WanTransformer) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in transformer.modules())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blocks.0.self_attn.q", "linear"),
        ("blocks.1.self_attn.o", "linear"),
        ("blocks.0.cross_attn.q", "linear"),
        ("blocks.1.ffn.2", "linear"),
        ("time_projection.1", "linear"),
        ("head.head", "linear"),
        ("blocks.0.norm1", "rest"),
        ("blocks.1.cross_attn.norm_q", "rest"),
        ("head.norm", "rest"),
    ],
)
def test_a_wait_in_a_module_is_in_its_part_and_in_no_other(name: str, part: str) -> None:
    transformer = small_transformer()
    module = transformer.get_submodule(name)
    module.forward = late(module.forward)
    splits = measured(transformer)
    for other in ("attention", "linear", "rest"):
        least = min(getattr(split, other) for split in splits)
        assert (least >= WAIT) == (other == part)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_wait_in_attend_is_attention_of_every_layer_and_branch(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wan, "attend", late(wan.attend))
    splits = measured(small_transformer(), guidance=guidance)
    branches = 1 if guidance == 1 else 2
    assert min(split.attention for split in splits) >= branches * LAYERS * WAIT
    assert max(min(split.linear for split in splits), min(split.rest for split in splits)) < WAIT


def test_the_parts_sum_to_the_steps_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan, "attend", late(wan.attend))
    seconds = []
    compute = Denoiser.velocity

    def timed(*args: Any) -> Tensor:
        begin = time.perf_counter()
        velocity = compute(*args)
        seconds.append(time.perf_counter() - begin)
        return velocity

    monkeypatch.setattr(Denoiser, "velocity", timed)
    splits = measured(small_transformer())
    assert len(seconds) == 1 + 3  # one warms up
    for split, own in zip(splits, seconds[1:], strict=True):
        assert own <= split.total <= own + 0.01  # a call and two looks at the clock lie between
        assert min(split.attention, split.linear, split.rest) > 0


def test_hooks_are_gone_after_a_step_and_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = small_transformer()
    seen = []
    attend = wan.attend

    def failing(*args: Any) -> Tensor:
        seen.append(hooks(transformer))
        if seen[-1]:
            raise RuntimeError("in the middle of a timed step")
        return attend(*args)

    measured(transformer)
    assert hooks(transformer) == 0
    monkeypatch.setattr(wan, "attend", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        measured(transformer)
    assert seen[-1] > 0
    assert hooks(transformer) == 0


def phases(transformer: WanTransformer, plan: VideoPlan, cut: list[steps.StepSpan]) -> list[steps.StepParts]:
    return steps.by_span(plan, Denoiser(transformer, SETTINGS, [text(0), text(1)], CPU), cut)


def test_each_phase_is_measured_at_its_first_step_under_its_own_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = small_transformer()
    plan = planned(transformer, TWO)
    cut = steps.spans([plan.steps], SIGMAS)
    seen: list[tuple[float, float]] = []
    compute = WanTransformer.forward

    def watched(model: WanTransformer, latents: Tensor, timestep: Tensor, context: Any, step: StepPlan) -> Tensor:
        seen.append((float(timestep[0]), step.density))
        return compute(model, latents, timestep, context, step)

    monkeypatch.setattr(WanTransformer, "forward", watched)
    found = phases(transformer, plan, cut)
    assert len(found) == len(cut) == 2
    expected = [(float(int(1000 * SIGMAS[span.first])), plan.steps[span.first].density) for span in cut]
    assert list(dict.fromkeys(seen)) == expected
    assert len(seen) == 2 * (1 + 3)
    assert all(one.nonfinite == 0 for one in found)


def test_the_median_step_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = small_transformer()
    splits = [Split(0.1, 0.2, total - 0.3) for total in (3.0, 1.0, 2.0)]
    monkeypatch.setattr(steps, "split", lambda *_: (splits, torch.tensor([1.0, torch.nan, torch.inf])))
    plan = planned(transformer, BF16)
    (found,) = phases(transformer, plan, steps.spans([plan.steps], SIGMAS))
    assert found.split == splits[2]
    assert found.nonfinite == 2


def test_a_long_step_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "ENOUGH", 0.0)
    assert len(measured(small_transformer())) == 1


def test_spans_with_the_same_plans_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = small_transformer()
    plan = planned(transformer, BF16)
    cut = steps.spans([planned(transformer, TWO).steps], SIGMAS)
    calls = []
    split = steps.split
    monkeypatch.setattr(steps, "split", lambda *args: calls.append(args) or split(*args))
    first, second = phases(transformer, plan, cut)
    assert len(calls) == 1
    assert first.split == second.split


def test_values_that_are_not_finite_are_counted() -> None:
    transformer = small_transformer()
    transformer.head.head.bias.data[0] = torch.nan
    plan = planned(transformer, BF16)
    (found,) = phases(transformer, plan, steps.spans([plan.steps], SIGMAS))
    t, h, w = SETTINGS.latent_shape
    assert found.nonfinite == t * h * w // 4  # one value of each token's patch
