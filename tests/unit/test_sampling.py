"""The loop from noise to latents, step by step by hand, and what it decides on the way."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fpsgen import machine, sampling
from fpsgen.attention.plan import AttentionPlan
from fpsgen.sampling import Denoiser
from fpsgen.solvers import SolverName, noise
from fpsgen.wan.plan import StepPlan
from tests.tools.calibration import CONFIG, CPU, TILES, VIDEO, small_transformer, text

SETTINGS = VIDEO.override(steps=3)
PLANS = [
    StepPlan((AttentionPlan(TILES),) * 2),
    StepPlan((AttentionPlan(TILES, ((1, 1, 1),)), AttentionPlan(TILES))),
    StepPlan((AttentionPlan(TILES), AttentionPlan(TILES, ((1, 1, 1),), (), "int8", "fp8"))),
]


def final(plans: list[StepPlan], texts: list[Tensor], **more: Any) -> Tensor:
    denoiser = Denoiser(small_transformer(), SETTINGS, texts, CPU, **more)
    return list(denoiser.run(denoiser.noise(7), plans))[-1].latents


@pytest.mark.parametrize("together", [True, False])
def test_each_step_is_guided_away_from_the_negative_prompt_with_its_own_plans(together: bool) -> None:
    transformer = small_transformer()
    found = final(PLANS, [text(1), text(2)], together=together)
    with torch.inference_mode():
        solver, latents = SETTINGS.new_solver(), noise(16, (3, 8, 12), seed=7)
        for timestep, plan in zip(solver.timesteps, PLANS, strict=True):
            wanted, unwanted = (
                transformer(latents, timestep.expand(1), transformer.embed_text(words), plan)
                for words in (text(1), text(2))
            )
            latents = solver.step(unwanted + 3 * (wanted - unwanted), latents)
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-3)  # a batch of two sums in another order, then rounds


def test_the_plans_above_matter() -> None:
    """Else the test above could not tell one step's from another's."""
    turned = [StepPlan(tuple(reversed(plan.attention))) for plan in PLANS]
    ends = [final(plans, [text(1), text(2)]) for plans in (PLANS, PLANS[::-1], turned)]
    assert min(float((ends[0] - other).abs().max()) for other in ends[1:]) > 1e-2


def test_one_prompt_has_one_branch() -> None:
    """Guidance of 1 is the conditional velocity itself."""
    transformer = small_transformer()
    found = final(PLANS, [text(1)])
    with torch.inference_mode():
        solver, latents = SETTINGS.new_solver(), noise(16, (3, 8, 12), seed=7)
        for timestep, plan in zip(solver.timesteps, PLANS, strict=True):
            velocity = transformer(latents, timestep.expand(1), transformer.embed_text(text(1)), plan)
            latents = solver.step(velocity, latents)
    torch.testing.assert_close(found, latents, rtol=0, atol=0)


def test_clips_in_one_batch_are_what_each_is_alone() -> None:
    """As the pocket's recipe renders them."""
    texts = [[text(1), text(2)], [text(3), text(2)]]
    both = [torch.cat([own[branch] for own in texts]) for branch in (0, 1)]
    denoiser = Denoiser(small_transformer(), SETTINGS, both, CPU, together=True)
    found = list(denoiser.run(denoiser.noise(7).repeat(2, 1, 1, 1, 1), PLANS))[-1].latents
    for ours, own in zip(found.split(1), texts, strict=True):
        torch.testing.assert_close(ours, final(PLANS, own), rtol=0, atol=1e-3)  # as above


REUSING = [
    StepPlan(PLANS[0].attention, guidance=guidance, compute=compute)
    for guidance, compute in (
        ("full", "full"), ("reuse", "full"), ("full", "reuse"), ("reuse", "full"), ("full", "full"), ("off", "full"),
        ("reuse", "full"), ("reuse", "reuse"),
    )
]  # fmt: skip


@pytest.mark.parametrize("together", [True, False])
def test_what_a_step_uses_again_is_that_of_the_latest_step_that_computed_it(together: bool) -> None:
    transformer, settings = small_transformer(), VIDEO.override(steps=len(REUSING))
    denoiser = Denoiser(transformer, settings, [text(1), text(2)], CPU, together=together)
    found = list(denoiser.run(denoiser.noise(7), REUSING))[-1].latents
    with torch.inference_mode():
        solver, latents = settings.new_solver(), noise(16, (3, 8, 12), seed=7)
        difference, computed = torch.zeros_like(latents), []
        for timestep, level, plan in zip(solver.timesteps, solver.sigmas.tolist(), REUSING, strict=False):
            wanted, unwanted = (
                transformer(latents, timestep.expand(1), transformer.embed_text(words), plan)
                for words in (text(1), text(2))
            )
            if plan.compute == "full":
                difference = wanted - unwanted if plan.guidance == "full" else difference
                velocity = wanted if plan.guidance == "off" else wanted + 2 * difference
                computed.append((level, velocity))
            else:
                (first, old), (second, new) = computed[-2:]
                velocity = old + (new - old) * (level - first) / (second - first)
            latents = solver.step(velocity, latents)
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-3)  # as above


def test_with_one_velocity_before_it_a_step_takes_that() -> None:
    denoiser = Denoiser(small_transformer(), SETTINGS, [text(1)], CPU)
    plans = [PLANS[0], StepPlan(PLANS[0].attention, compute="reuse"), PLANS[0]]
    first, second, _ = denoiser.run(denoiser.noise(7), plans)
    assert second.velocity.equal(first.velocity)


def test_a_stopped_run_finds_what_it_uses_again() -> None:
    settings = VIDEO.override(steps=len(REUSING))
    denoiser = Denoiser(small_transformer(), settings, [text(1), text(2)], CPU)
    whole = list(denoiser.run(denoiser.noise(7), REUSING))
    for known in range(len(REUSING)):
        kept = Kept({moment.step: moment.velocity for moment in whole[:known]})
        *_, last = denoiser.run(denoiser.noise(7), REUSING, kept)
        assert last.latents.equal(whole[-1].latents), known


def test_a_step_that_reuses_computes_nothing_and_one_branch_is_half() -> None:
    transformer, counted = small_transformer(), []
    transformer.register_forward_pre_hook(lambda _, args: counted.append(len(args[0])))
    denoiser = Denoiser(transformer, VIDEO.override(steps=len(REUSING)), [text(1), text(2)], CPU, together=True)
    branches = []
    for _ in denoiser.run(denoiser.noise(7), REUSING):
        branches.append(sum(counted))
        counted.clear()
    assert branches == [2, 1, 0, 1, 2, 1, 1, 0] == [2 * plan.share(2) for plan in REUSING]


class Kept(dict[int, Tensor]):
    """Velocities in memory."""

    def put(self, step: int, velocity: Tensor) -> Tensor:
        self[step] = velocity
        return velocity


def test_a_stopped_run_goes_on_from_its_velocities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, and computes only what is not known; the hook sees these steps before they run, and no others."""
    denoiser = Denoiser(small_transformer(), SETTINGS, [text(1), text(2)], CPU)
    whole = list(denoiser.run(denoiser.noise(7), PLANS))
    kept = Kept()
    stopped = denoiser.run(denoiser.noise(7), PLANS, kept)
    next(stopped), next(stopped)
    stopped.close()
    assert list(kept) == [0, 1]
    seen: list[tuple[int, Tensor]] = []
    again = list(denoiser.run(denoiser.noise(7), PLANS, kept, lambda *step: seen.append(step)))
    assert [number for number, _ in seen] == [2]
    assert seen[0][1].equal(whole[1].latents)
    for ours, own in zip(again, whole, strict=True):
        assert ours.latents.equal(own.latents)
        assert ours.velocity.equal(own.velocity)


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler", "turbowan"])
def test_a_state_goes_elsewhere_whole_and_a_last_one_keeps_its_latents_alone(solver: SolverName) -> None:
    settings = VIDEO.override(steps=4, solver=solver)
    denoiser = Denoiser(small_transformer(), settings, [text(1), text(2)][: settings.branches], CPU, together=False)
    plans = [REUSING[0], REUSING[2], REUSING[0], REUSING[0]]
    begun = partial(denoiser.begin, denoiser.noise(7), partial(denoiser.noise, 7))
    *_, whole = denoiser.go_on(begun(), plans)
    state = begun()
    for end in (1, 3, 4):
        list(denoiser.go_on(state, plans, end=end))
        state.set_aside(4)
        elsewhere = copy.deepcopy(state)
        elsewhere.to(torch.device("meta"))
        moved = [elsewhere.latents, *elsewhere.solver.left, *(each for _, each in elsewhere.carried.velocities)]
        moved += [
            own for own in (elsewhere.carried.difference, *(elsewhere.carried.source or ())[:1]) if own is not None
        ]
        assert all(each.is_meta for each in moved)
        assert (len(moved) == 1) is (end == 4)
    assert state.latents.equal(whole.latents)


def test_what_the_hook_computed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Denoiser(small_transformer(), SETTINGS, [text(1)], CPU)
    monkeypatch.setattr(Denoiser, "velocity", lambda *_: pytest.fail("it is computed again"))
    moments = list(denoiser.run(denoiser.noise(7), PLANS, look=lambda _, latents: torch.zeros_like(latents)))
    assert moments[-1].latents.isfinite().all()
    assert all(not moment.velocity.any() for moment in moments)


def test_a_step_says_whether_its_latents_are_numbers_and_ends_nothing() -> None:
    transformer = small_transformer()
    transformer.head.head.bias.data[0] = torch.nan
    denoiser = Denoiser(transformer, SETTINGS, [text(1)], CPU)
    assert [moment.finite for moment in denoiser.run(denoiser.noise(7), PLANS)] == [False] * 3


@pytest.mark.parametrize(
    ("dtype", "bytes_"),
    # 72 tokens twice: 16 of 48 channels, and of each in the weights' dtype 4 of 48 channels and 2 of 64 hidden ones.
    [(torch.float32, 2 * 72 * (16 * 48 + 4 * (4 * 48 + 2 * 64))), (torch.bfloat16, 2 * 72 * (768 + 2 * 320))],
)
def test_both_branches_run_at_once_where_a_fifth_of_the_memory_stays_free(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bytes_: int
) -> None:
    model: Any = SimpleNamespace(config=CONFIG, dtype=dtype)
    for free, fits in ((bytes_ / 0.8 + 2, True), (bytes_ / 0.8 - 2, False), (bytes_ + 2, False)):
        monkeypatch.setattr(machine, "free_bytes", lambda device, free=free: int(free))
        assert sampling.both_fit(model, SETTINGS, CPU) is fits


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ("blocks.1.ffn.2.weight", "in the FFN of layer 1"),
        ("blocks.0.self_attn.o.bias", "in self-attention of layer 0"),
        ("blocks.1.cross_attn.o.weight", "in cross-attention of layer 1"),
        ("blocks.0.modulation", "in self-attention of layer 0"),
        ("patch_embedding.bias", "before layer 0"),
        ("head.head.bias", "after the last layer"),
        (None, "in no layer when it is computed again"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_where_values_are_not_finite(broken: str | None, found: str, together: bool) -> None:
    transformer = small_transformer()
    if broken:
        transformer.get_parameter(broken).data[..., 0] = torch.nan
    denoiser = Denoiser(transformer, SETTINGS, [text(1), text(2)], CPU, together)
    assert denoiser.where_not_finite(denoiser.noise(7), 1, PLANS[1]) == found
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in transformer.modules())


def test_a_step_that_continues_velocities_has_no_layer_to_blame() -> None:
    denoiser = Denoiser(small_transformer(), SETTINGS, [text(1)], CPU)
    reusing = StepPlan(PLANS[0].attention, compute="reuse")
    assert "which it continues" in denoiser.where_not_finite(denoiser.noise(7), 1, reusing)
