"""What processes that share one video compute, beside what this process computes alone.

python -m tests.tools.parallel cpu, or cuda, in each process, with the variables of torchrun: the first prints JSON, the
largest difference of each case.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.conditioning import Shown
from fpsgen.ranks import Ranks, joined, own_device
from fpsgen.request import VideoPlan
from fpsgen.sampling import Denoiser
from fpsgen.several_gpus import handed
from fpsgen.wan.conditions import Conditions
from fpsgen.wan.parallel import layout, parallel
from fpsgen.wan.plan import Guidance, Linears, StepPlan
from fpsgen.wan.transformer import WanTransformer
from tests.tools.calibration import CONFIG, TILES, VIDEO, text

ROOT = Path(__file__).parents[2]
HEADS, LAYERS = 4, 2
DENSE, WINDOW, TOP = AttentionPlan(TILES), (1, 1, 3), KeyTiles(top=0.3)
WITH_SUMMARY = KeyTiles(top=0.2, rest="summary")
GUIDANCE: tuple[Guidance, ...] = ("full", "reuse", "off", "reuse")
# Of each layer; heads of one process see other key tiles than those of another.
PLANS = {
    "dense": (DENSE, DENSE),
    "windows": (AttentionPlan(TILES, (WINDOW,)), AttentionPlan(TILES, (None, WINDOW, (1, 1, 1)), (0, 1, 1, 2))),
    "top": (AttentionPlan(TILES, (TOP,)), AttentionPlan(TILES, (WITH_SUMMARY, TOP, None), (2, 0, 1, 0))),
    "8 bits": (AttentionPlan(TILES, (TOP, WINDOW), (0, 1, 0, 0), "int8"), AttentionPlan(TILES, qk="fp8", pv="fp8")),
}


def started(world: int, device: str = "cpu") -> list[subprocess.Popen[str]]:
    """So many processes, which find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"WORLD_SIZE": f"{world}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.tools.parallel", device]
    return [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **own, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
        )
        for rank in range(world)
    ]  # fmt: skip


def transformer(device: torch.device, **more: Any) -> WanTransformer:
    """Random weights that attend to something."""
    torch.manual_seed(0)
    made = WanTransformer(replace(CONFIG, num_heads=HEADS, num_layers=LAYERS, **more)).eval()
    for block in made.layers():
        for norm in (block.self_attn.norm_q, block.self_attn.norm_k):
            norm.weight.data.uniform_(0.5, 2.0)
    return made.requires_grad_(False).to(device)


def steps(plans: tuple[AttentionPlan, ...], **more: Any) -> list[StepPlan]:
    return [StepPlan(plans, **more)] * VIDEO.steps


def rendered(model: WanTransformer, plans: list[StepPlan], branches: int, group: Ranks) -> Tensor:
    device = group.device
    own = parallel(layout(group.world, HEADS, branches), device.type) if group.world > 1 else None
    settings = VIDEO if branches > 1 else VIDEO.override(guidance=1.0)
    denoiser = Denoiser(
        model, settings, [text(1).to(device), text(2).to(device)][:branches], device, together=False, parallel=own
    )
    return list(denoiser.run(denoiser.noise(7), plans))[-1].latents


def where_not_finite(model: WanTransformer, group: Ranks) -> Tensor:
    """The words for a token that is not finite, which only the last process has before attention."""
    device = group.device
    own = parallel(layout(group.world, HEADS, 1), device.type) if group.world > 1 else None
    denoiser = Denoiser(model, VIDEO.override(guidance=1.0), [text(1).to(device)], device, parallel=own)
    latents, plan = denoiser.noise(7), StepPlan(PLANS["dense"])
    latents[0, 0, -1, -1, -1] = torch.nan
    denoiser.velocity(latents, 0, plan)
    words = denoiser.where_not_finite(latents, 0, plan)
    return torch.tensor([*words.encode()], dtype=torch.float32, device=device)


def cases(group: Ranks) -> Iterator[tuple[str, Tensor]]:
    """By name, the final latents, or a velocity."""
    device = group.device
    model, gated = transformer(device), transformer(device, gated=True)
    for name, plans in PLANS.items():
        for branches in (1, 2):
            yield f"{name}, {branches}", rendered(model, steps(plans), branches, group)
    yield "gates", rendered(gated, steps(PLANS["windows"]), 1, group)
    linear = (Linears("fp8", "int8"), Linears("int8", "fp8"))
    yield "8-bit linear layers", rendered(model, steps(PLANS["dense"], linear=linear), 1, group)
    reusing = [replace(own, guidance=how) for own, how in zip(steps(PLANS["top"]), GUIDANCE, strict=True)]
    rows = list[int]()
    hook = model.blocks[0].register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[1]))
    yield "reused guidance", rendered(model, reusing, 2, group)
    hook.remove()
    # Of a step with one branch, by all processes together: no token is computed twice.
    yield "tokens of one branch", group.sums(torch.tensor([rows[-1] / TILES.tokens], device=device))
    yield "where values are not finite", where_not_finite(model, group)
    model.sequence = parallel(layout(group.world, HEADS, 1), device.type).sequence if group.world > 1 else None
    with torch.inference_mode():
        latents = torch.randn(2, 16, 3, 8, 12, generator=torch.Generator().manual_seed(1)).to(device)
        context, times = model.embed_text(text(1).to(device)), torch.tensor([[0.0, 700.0], [0.0, 31.0]])
        velocity = model(latents, times, context, StepPlan(PLANS["top"]))
    yield "two clips, whose first frame has a time of its own", velocity


def handed_on(group: Ranks) -> Tensor:
    """What the first process made of texts and images, as one tensor; the others bring nothing."""
    plan = cast(VideoPlan, SimpleNamespace(request=SimpleNamespace(settings=VIDEO)))
    given: tuple[list[list[Tensor]], dict[str, Conditions]] = [[]], {}
    if group.is_first:
        given = [[text(1), text(2)]], {"image": Conditions(torch.ones(1, 2).bfloat16(), None, torch.zeros(1, 3))}
    texts, seen = handed(group, [plan], given[0], cast(list[Shown], ["image"]), cast(dict[Shown, Conditions], given[1]))
    image = seen[cast(Shown, "image")]
    assert image.states is None
    assert image.channels is not None
    assert image.channels.dtype == torch.bfloat16
    return torch.cat([x.cpu().flatten().float() for x in (*texts[0], image.channels, image.first) if x is not None])


def main(device: torch.device) -> None:
    with joined(device) as group:
        names, shared = zip(*cases(group), strict=True)
        alone = group.handed("alone", [own for _, own in cases(Ranks(device=device))] if group.is_first else [])
        names, shared = (*names, "handed on"), (*shared, handed_on(group))
        alone += group.handed("texts alone", [shared[-1]])
        pairs = [(own, other) for own, other in zip(alone, shared, strict=True) if own is not None]
        far = torch.stack([(own - other.cpu()).abs().max() for own, other in pairs]).to(device)
        torch.distributed.all_reduce(far, torch.distributed.ReduceOp.MAX)
        if group.is_first:
            print(json.dumps(dict(zip(names, far.tolist(), strict=True))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(own_device(torch.device(sys.argv[1])))
