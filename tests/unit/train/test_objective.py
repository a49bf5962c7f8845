"""What a step learns: levels, plans on the way from dense to the preset, losses; all from seed, step and place."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fpsgen import solvers
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid
from fpsgen.presets import BF16, Phase, Preset
from fpsgen.train.objective import STAGES, Objective, VelocityModel, annealed
from fpsgen.train.settings import TrainSettings
from fpsgen.wan import plan as plans
from fpsgen.wan.config import WanConfig
from fpsgen.wan.plan import UNROUNDED, Linears, StepPlan
from tests.tools.training import PRESET, TEXT, VIDEO, TinyData

CONFIG = WanConfig(dim=64, num_heads=2, num_layers=2, ffn_dim=96, text_dim=TEXT[1], freq_dim=32)
TILES = TileGrid(CONFIG.grid(VIDEO.latent_shape), (1, 2, 2))


def objective(preset: Preset = PRESET, data: Any = None, **settings: Any) -> Objective:
    own = TrainSettings(**{"warm_up": 0, **settings})
    return Objective(own, preset, VIDEO, TILES, CONFIG, data or TinyData(), torch.device("cpu"))


# --- noise levels ------------------------------------------------------------------------------------


def test_levels_are_those_of_the_video_and_more_often_where_the_preset_is_sparse() -> None:
    made, rng = objective().levels, random.Random(0)
    visited, steps = VIDEO.noise_levels, PRESET.schedule(VIDEO.noise_levels, TILES, 2, 2)
    drawn = [made.draw(rng) for _ in range(8000)]
    nearest = Counter(min(range(len(visited)), key=lambda i: abs(visited[i] - level)) for level in drawn)
    sparse = [1 - step.density for step in steps]
    weights = [max(own, 0.1 * sum(sparse) / len(sparse)) for own in sparse]
    for own, weight in enumerate(weights):
        assert nearest[own] / len(drawn) == pytest.approx(weight / sum(weights), abs=0.02)  # 4 standard deviations
    assert 0 < min(drawn) < visited[-1] < max(drawn) <= visited[0]


def test_where_nothing_is_sparse_every_level_is_as_likely() -> None:
    made = objective(BF16).levels
    assert len(set(made.weights)) == 1
    assert made.weights[0] > 0


def test_logit_normal_levels_are_shifted() -> None:
    made, rng = objective(levels="logit-normal").levels, random.Random(0)
    drawn = torch.tensor([made.draw(rng) for _ in range(4000)])
    assert drawn.median() == pytest.approx(VIDEO.shift / (1 + VIDEO.shift), abs=0.02)  # the median of s is 1/2
    back = drawn / (VIDEO.shift - (VIDEO.shift - 1) * drawn)
    assert back.logit().std() == pytest.approx(1, abs=0.05)


# --- annealing ---------------------------------------------------------------------------------------


def mixed(tiles: TileGrid) -> StepPlan:
    windows = AttentionPlan(
        tiles, ((1, 1, 3), None, KeyTiles((1, 1, 1), rest="summary")), (0, 1, 2, 0), "fp8", "fp8", False
    )
    attention = windows, AttentionPlan(tiles, (KeyTiles(top=0.1),), (), "int8"), AttentionPlan(tiles)
    return StepPlan(attention, (Linears("fp8", "fp8"), UNROUNDED, Linears(ffn="int8")))


def test_annealing_begins_dense_and_ends_at_the_preset() -> None:
    plan = mixed(TILES)
    assert annealed(plan, 0) == plans.dense(TILES, 3)
    assert annealed(plan, STAGES) == plan


def test_annealing_grows_sparser_by_equal_factors_and_rounds_layer_after_layer() -> None:
    stages = [annealed(mixed(TILES), stage) for stage in range(STAGES + 1)]
    for layer in range(3):
        densities = [stage.attention[layer].density for stage in stages]
        assert densities == sorted(densities, reverse=True)
    shares = [own.top for stage in stages[1:] for own in stage.attention[1].key_tiles]
    assert shares == pytest.approx([0.1 ** (stage / STAGES) for stage in range(1, STAGES + 1)])
    first, second = ([stage.attention[layer].is_8bit for stage in stages] for layer in (0, 1))
    assert first == [stage > 0 for stage in range(STAGES + 1)]
    assert second == [3 * stage > STAGES for stage in range(STAGES + 1)]
    linear = [[own != UNROUNDED for _, own in stage.layers] for stage in stages]
    assert linear == [[stage > 0, False, 3 * stage > 2 * STAGES] for stage in range(STAGES + 1)]


def test_stages_are_equally_long() -> None:
    own = objective(warm_up=16)
    assert [own.stage(step) for step in range(20)] == [min(step // 2, STAGES) for step in range(20)]
    assert objective(warm_up=0).stage(0) == STAGES


# --- examples ----------------------------------------------------------------------------------------


def test_an_example_depends_on_seed_step_and_place_alone() -> None:
    own = objective()
    one, again = own.example(3, 2, 1), objective().example(3, 2, 1)
    assert (one.level, one.plan) == (again.level, again.plan)
    assert one.noise.equal(again.noise)
    assert one.text.equal(again.text)
    others = [own.example(4, 2, 1), own.example(3, 1, 1), objective(seed=1).example(3, 2, 1)]
    assert not any(one.noise.equal(other.noise) or one.level == other.level for other in others)


def test_the_plan_is_the_preset_s_at_the_example_s_level() -> None:
    own = objective()
    by_phase = PRESET.plans(TILES, 2, 2)
    for step in range(20):
        example = own.example(step, 0, 0)
        assert example.plan == by_phase[PRESET.at(example.level)]


def test_captions_are_dropped_as_often_as_asked_for() -> None:
    negative = TinyData().negative
    dropped = [objective(caption_drop=0.3).example(step, 0, 0).text.equal(negative) for step in range(400)]
    assert sum(dropped) / 400 == pytest.approx(0.3, abs=0.07)  # 3 standard deviations
    assert len({objective(caption_drop=0).example(step, 0, 0).text.sum().item() for step in range(20)}) == 2


def test_velocities_of_the_data_come_with_their_level_noise_and_caption() -> None:
    data = TinyData(taught=3)
    levels, seeds, velocities = data.sample(1).taught or pytest.fail("not taught")
    for step in range(8):
        example = objective(data=data).example(step, 0, 1)
        one = levels.tolist().index(example.level)
        assert example.noise.equal(solvers.noise(16, VIDEO.latent_shape, int(seeds[one]))[0])
        assert example.text.equal(data.sample(1).texts[0])
        assert example.velocity is not None
        assert example.velocity.equal(velocities[one].float())


def test_velocities_of_the_data_are_taken_more_often_where_the_preset_is_sparse() -> None:
    data = TinyData(taught=4)
    levels = (data.sample(0).taught or pytest.fail("not taught")).levels.tolist()
    late = replace(PRESET, phases=(Phase(sigma=(1.0, 0.6)), Phase(sigma=(0.6, 0.0), top=0.1)))
    for kind in ("preset", "logit-normal"):
        own = objective(late, data, levels=kind)
        taken = Counter(own.example(step, 0, 0).level for step in range(1000))
        visited, weights = VIDEO.noise_levels, own.levels.weights
        wanted = [weights[min(range(len(visited)), key=lambda i: abs(visited[i] - level))] for level in levels]
        wanted = [1.0] * len(levels) if kind == "logit-normal" else wanted
        assert kind == "logit-normal" or max(wanted) > 5 * min(wanted)
        for level, weight in zip(levels, wanted, strict=True):
            assert taken[level] / 1000 == pytest.approx(weight / sum(wanted), abs=0.05)  # 3 standard deviations


def test_passes_take_samples_of_one_plan_and_micro_at_the_most() -> None:
    own = objective(micro=2)
    examples = [own.example(0, place, 0) for place in range(9)]
    passes = own.passes(examples)
    assert sum(map(len, passes)) == 9
    assert all(len(each) <= 2 and len({example.plan for example in each}) == 1 for each in passes)
    assert len(passes) == sum(-(-count // 2) for count in Counter(example.plan for example in examples).values())


# --- losses ------------------------------------------------------------------------------------------


def test_losses_are_weighted_mean_squares_summed_over_the_samples() -> None:
    class Scaled:
        """Velocity 2 x; and what the teacher gives, x."""

        def __call__(self, x: Tensor, timestep: Tensor, text: Tensor, plan: StepPlan) -> Tensor:
            self.plan, self.timestep = plan, timestep
            return 2 * x

    own, student = objective(distil=2.0, flow=0.5, preset=BF16), Scaled()
    weights = [torch.rand(VIDEO.latent_shape) for _ in range(2)]
    some = [own.example(0, place, place)._replace(weight=weights[place]) for place in range(2)]
    losses = own.losses(some, student, lambda x, *rest: x).tolist()  # type: ignore[arg-type]
    distil = flow = 0.0
    for example in some:
        x = (1 - example.level) * example.latents + example.level * example.noise
        weight = example.weight / example.weight.mean()
        distil += float(((2 * x - x) ** 2 * weight).mean())
        flow += float(((2 * x - (example.noise - example.latents)) ** 2 * weight).mean())
    assert losses == pytest.approx([2 * distil + 0.5 * flow, distil, flow], rel=1e-5)
    assert student.timestep.tolist() == pytest.approx([1000 * example.level for example in some])


def test_recomputed_blocks_give_the_same_gradients() -> None:
    from fpsgen.train.loop import fresh

    found = []
    for recompute in (False, True):
        model = VelocityModel(fresh(CONFIG, 0), torch.float32, recompute)
        torch.nn.init.ones_(model.transformer.head.head.weight)
        own = objective(
            distil=0.0, flow=1.0, preset=replace(PRESET, phases=(Phase(sigma=(1.0, 0.0), window=(1, 1, 3)),))
        )
        own.losses([own.example(0, 0, 0)], model, None)[0].backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(one.equal(other) for one, other in zip(*found, strict=True) if one is not None)
    assert all(grad is not None for grad in found[1])
