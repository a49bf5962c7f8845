"""The loop from noise to latents, step by step by hand, and what it decides on the way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fpsgen import machine, pipeline, solvers
from fpsgen.attention.plan import AttentionPlan
from fpsgen.timing import Timings
from tests.tools.calibration import CONFIG, CPU, TILES, small_transformer, text

REQUEST = pipeline.Request(
    prompt="a cat", negative="", width=96, height=64, frames=9, fps=8, steps=3, guidance=3.0, shift=3.0, seed=7,
    output=Path("cat.mp4"),
)  # fmt: skip
PLANS = [
    (AttentionPlan(TILES),) * 2,
    (AttentionPlan(TILES, ((1, 1, 1),)), AttentionPlan(TILES)),
    (AttentionPlan(TILES), AttentionPlan(TILES, ((1, 1, 1),), (), "int8", "fp8")),
]


@pytest.mark.parametrize("together", [True, False])
def test_each_step_is_guided_away_from_the_negative_prompt_with_its_own_plans(
    monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    monkeypatch.setattr(pipeline, "both_fit", lambda *_: together)
    transformer = small_transformer()
    events: list[Any] = []
    run = pipeline.denoise(REQUEST, transformer, PLANS, [text(1), text(2)], CPU, Timings())
    found = pipeline.finish(run, events.append)
    with torch.inference_mode():
        solver, latents = REQUEST.new_solver(), solvers.noise(16, (3, 8, 12), seed=7)
        for timestep, plans in zip(solver.timesteps, PLANS, strict=True):
            wanted, unwanted = (
                transformer(latents, timestep.expand(1), transformer.embed_text(words), plans)
                for words in (text(1), text(2))
            )
            latents = solver.step(unwanted + 3 * (wanted - unwanted), latents)
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-3)  # a batch of two sums in another order, then rounds
    assert [event for event in events if isinstance(event, pipeline.Branches)] == [pipeline.Branches(together)]
    assert [(event.done, event.total) for event in events if isinstance(event, pipeline.Step)] == [
        (1, 3), (2, 3), (3, 3)
    ]  # fmt: skip


def test_the_plans_above_matter() -> None:
    """Else the test above could not tell one step's from another's."""
    transformer = small_transformer()
    ends = [
        pipeline.finish(
            pipeline.denoise(REQUEST, transformer, plans, [text(1), text(2)], CPU, Timings()), lambda _: None
        )
        for plans in (PLANS, PLANS[::-1], [tuple(reversed(layers)) for layers in PLANS])
    ]
    assert min(float((ends[0] - other).abs().max()) for other in ends[1:]) > 1e-2


def test_one_prompt_has_one_branch() -> None:
    """Guidance of 1 is the conditional velocity itself."""
    transformer = small_transformer()
    events: list[Any] = []
    run = pipeline.denoise(REQUEST, transformer, PLANS, [text(1)], CPU, Timings())
    found = pipeline.finish(run, events.append)
    with torch.inference_mode():
        solver, latents = REQUEST.new_solver(), solvers.noise(16, (3, 8, 12), seed=7)
        for timestep, plans in zip(solver.timesteps, PLANS, strict=True):
            velocity = transformer(latents, timestep.expand(1), transformer.embed_text(text(1)), plans)
            latents = solver.step(velocity, latents)
    torch.testing.assert_close(found, latents, rtol=0, atol=0)
    assert not any(isinstance(event, pipeline.Branches) for event in events)


@pytest.mark.parametrize(
    ("dtype", "bytes_"),
    # 100 tokens twice: 16 of 48 channels, and of each in the weights' dtype 4 of 48 channels and 2 of 64 hidden ones.
    [(torch.float32, 2 * 100 * (16 * 48 + 4 * (4 * 48 + 2 * 64))), (torch.bfloat16, 2 * 100 * (768 + 2 * 320))],
)
def test_both_branches_run_at_once_where_a_fifth_of_the_memory_stays_free(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bytes_: int
) -> None:
    model: Any = SimpleNamespace(config=CONFIG, dtype=dtype)
    for free, fits in ((bytes_ / 0.8 + 2, True), (bytes_ / 0.8 - 2, False), (bytes_ + 2, False)):
        monkeypatch.setattr(machine, "free_bytes", lambda device, free=free: int(free))
        assert pipeline.both_fit(model, 100, CPU) is fits


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        (["a"], ["prompt"]),
        (["a", "b"], ["prompt", "negative prompt"]),
        (["a", "b", "c"], ["prompt 1", "prompt 2", "negative prompt"]),
    ],
)
def test_texts_are_in_the_order_of_their_prompts_and_named_so(
    monkeypatch: pytest.MonkeyPatch, prompts: list[str], named: list[str]
) -> None:
    class Encoder:
        def __init__(self, *_: object) -> None:
            self.tokenizer = SimpleNamespace(length=512)

        def encode(self, prompt: str) -> SimpleNamespace:
            return SimpleNamespace(text=torch.full((1, 2, 3), float(ord(prompt))), unknown=(), cut=True)

    monkeypatch.setattr(pipeline, "TextEncoder", Encoder)
    model: Any = SimpleNamespace(checkpoint=None, card=None)
    events: list[Any] = []
    texts: list[Tensor] = pipeline.finish(
        pipeline.encode_prompts(prompts, model, CPU, torch.float32, Timings()), events.append
    )
    assert [chr(int(own[0, 0, 0])) for own in texts] == prompts
    told = [event.text for event in events if isinstance(event, pipeline.Notice)]
    assert [one.split(" is longer")[0] for one in told] == [f"the {name}" for name in named]
