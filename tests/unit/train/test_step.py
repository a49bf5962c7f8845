"""Steps of training against the same steps written by hand: losses, clipping, AdamW, the average, adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fpsgen.presets import BF16, Preset
from fpsgen.ranks import Ranks
from fpsgen.train.loop import Training
from fpsgen.train.objective import Example
from fpsgen.wan.plan import Linears
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights.load import load_transformer
from tests.tools.training import PRESET
from tests.tools.training import job as tiny_job

LR, DECAY, CLIP, EMA, EPS = 1e-3, 0.1, 1e-3, 0.15, 1e-6
GUIDANCE = 3.0
# Linear layers of some levels in 8 bits, too.
EXACT, ROUGH, LATE = PRESET.phases
ROUNDED = replace(PRESET, phases=(EXACT, replace(ROUGH, linear=Linears("int8", "fp8")), LATE))


class Plain(nn.Module):
    """From an example to the velocity through a preset, by a transformer as inference has it."""

    def __init__(self, own: WanTransformer):
        super().__init__()
        self.own = own

    def forward(self, one: Example, preset: Preset, text: Tensor | None = None) -> Tensor:
        x = (1 - one.level) * one.latents + one.level * one.noise
        config = self.own.config
        (plan,) = preset.schedule([one.level], one.plan.tiles, config.num_layers, config.num_heads)
        timestep = torch.tensor([1000 * one.level])
        text = one.text if text is None else text
        return self.own(x[None], timestep, self.own.embed_text(text[None].float()), plan)[0]


def merged(base: dict[str, Tensor], learned: dict[str, Tensor]) -> dict[str, Tensor]:
    """All weights: what is learned in the place of the base's, B A added to it where that are adapters."""
    whole = base | {name: own for name, own in learned.items() if "lora_" not in name}
    for name in (name for name in learned if "lora_A" in name):
        a, b = learned[name], learned[name.replace("lora_A", "lora_B")]
        layer = name.replace(".lora_A", "")
        whole[layer] = whole[layer] + b @ a
    return {f"own.{name}": own for name, own in whole.items()}


@pytest.mark.parametrize("lora", [None, 3])
@pytest.mark.parametrize(
    ("distil", "flow", "guided", "preset"),
    [(1.0, 0.0, False, PRESET), (0.0, 1.0, False, PRESET), (1.0, 0.0, True, PRESET), (1.0, 0.0, False, ROUNDED)],
    ids=["distil", "flow", "guided", "rounded"],
)
def test_steps_are_those_written_by_hand(
    wan_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lora: int | None,
    distil: float,
    flow: float,
    guided: bool,
    preset: Preset,
) -> None:
    settings: dict[str, Any] = {
        "distil": distil, "flow": flow, "lora": lora, "lr": LR, "weight_decay": DECAY, "clip": CLIP, "ema": EMA,
        "adam_eps": EPS, "warm_up": 0, "batch": 3, "micro": 1, "guided": guided, "caption_drop": 0.0,
    }  # fmt: skip
    job = tiny_job(wan_folder, tmp_path, settings=settings, preset=preset)
    job = replace(job, video=replace(job.video, guidance=GUIDANCE))
    negative, slack = job.data.negative, 2 * GUIDANCE - 1 if guided else 1.0  # c and u count 3 and 2 times
    run = Training(job, lambda event: None, Ranks())
    examples: list[Example] = []
    draw = run.objective.example
    monkeypatch.setattr(run.objective, "example", lambda *place: (examples.append(draw(*place)), examples[-1])[1])
    plain = Plain(load_transformer(job.model.checkpoint, torch.device("cpu"), torch.float32))
    base = {name.removeprefix("own."): p.clone() for name, p in plain.named_parameters()}
    learned = {name: p.detach().clone() for name, p in run.named.items()}
    average = {name: p.clone() for name, p in learned.items()}
    first, second = ({name: torch.zeros_like(p) for name, p in learned.items()} for _ in range(2))
    for step in (1, 2):
        examples.clear()
        told = run.learn()
        variables = {name: own.clone().requires_grad_() for name, own in learned.items()}
        losses = []
        for one in examples:
            velocity = functional_call(plain, merged(base, variables), (one, preset))
            with torch.no_grad():
                dense = functional_call(plain, merged(base, {}), (one, BF16))
            from_flow = (velocity - (one.noise - one.latents)).square().mean()
            if guided:
                apart = functional_call(plain, merged(base, variables), (one, preset, negative))
                with torch.no_grad():
                    dense_apart = functional_call(plain, merged(base, {}), (one, BF16, negative))
                velocity = apart + GUIDANCE * (velocity - apart)
                dense = dense_apart + GUIDANCE * (dense - dense_apart)
            losses.append(distil * (velocity - dense).square().mean() + flow * from_flow)
        loss = torch.stack(losses).mean()
        gradients = dict(zip(variables, torch.autograd.grad(loss, list(variables.values())), strict=True))
        norm = torch.cat([own.flatten() for own in gradients.values()]).norm()
        assert norm > CLIP
        if preset is ROUNDED:  # sums in another order turn some rounded inputs of linear layers to their neighbours
            assert [told["loss"], told["norm"]] == pytest.approx([loss.item(), norm.item()], rel=3e-3)
            return
        assert [told["loss"], told["norm"]] == pytest.approx([loss.item(), norm.item()], rel=1e-4 * slack)
        for name, own in gradients.items():
            gradient = own * CLIP / norm
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient.square()
            moved = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.999**step)).sqrt() + EPS)
            learned[name] = learned[name] - LR * DECAY * learned[name] - LR * moved
            decay = min(EMA, step / (step + 9))
            average[name] = decay * average[name] + (1 - decay) * learned[name]
    for name, own in run.result():
        assert (own - average[name]).abs().max() < 0.01 * LR * slack, name  # sums of float32 in another order
