"""Streamed blocks on a CUDA device: the same bits as resident ones, from pinned memory and from files, in less memory.
Neither diffusers nor ffmpeg is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from fpsgen import machine
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.wan.offload import Home
from fpsgen.wan.plan import Linears, StepPlan
from fpsgen.wan.transformer import WanTransformer

pytestmark = pytest.mark.gpu

if TYPE_CHECKING:
    from fpsgen.weights.models import Model

LATENTS = (3, 12, 20)
PASSES = 5  # a block that is overwritten too early, or used too early, shows in some of them


def pocket() -> Model:
    from fpsgen.weights import models  # collected where safetensors is not

    return models.find("pocket")


@torch.inference_mode()
def velocities(transformer: WanTransformer, plan: StepPlan) -> list[Tensor]:
    generator, config = torch.Generator().manual_seed(7), transformer.config
    x = torch.randn(1, config.in_channels, *LATENTS, generator=generator).cuda()
    context = transformer.embed_text(torch.randn(1, 9, config.text_dim, generator=generator).cuda())
    return [transformer(x, torch.tensor([700.0 - number]), context, plan) for number in range(PASSES)]


@pytest.mark.parametrize("home", ["host memory", "files"])
@pytest.mark.parametrize("linear", [Linears(), Linears("fp8", "int8")], ids=str)
def test_the_same_bits_as_resident_blocks(home: Home, linear: Linears) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    model = pocket()
    layers = model.config.num_layers
    plan = StepPlan((AttentionPlan(TileGrid.cut(model.config.grid(LATENTS))),) * layers, (linear,) * layers)
    from fpsgen.weights.load import load_transformer

    resident, streamed = (
        load_transformer(model.checkpoint, device, torch.bfloat16, (plan,), home=own) for own in ("device", home)
    )
    assert streamed.fingerprint() == resident.fingerprint()
    for own, other in zip(velocities(streamed, plan), velocities(resident, plan), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("home", ["host memory", "files"])
def test_a_block_stays_until_the_gpu_has_computed_with_it(home: Home) -> None:
    """However far the computation is behind: its memory is for nothing else meanwhile."""
    device = torch.device("cuda", torch.cuda.current_device())
    model = pocket()
    plan = StepPlan((AttentionPlan(TileGrid.cut(model.config.grid(LATENTS))),) * model.config.num_layers)
    from fpsgen.weights.load import load_transformer

    def seen(own: Home) -> list[Tensor]:
        found = []
        for block in load_transformer(model.checkpoint, device, torch.bfloat16, (plan,), home=own).layers():
            torch.cuda._sleep(200_000_000)  # clock cycles, a tenth of a second: the next block is there before
            found += [parameter.double().sum() for parameter in block.parameters()]
        return found

    assert torch.equal(torch.stack(seen(home)), torch.stack(seen("device")))


@pytest.mark.parametrize("home", ["host memory", "files"])
def test_less_memory_is_taken(home: Home) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    model = pocket()
    plan = StepPlan((AttentionPlan(TileGrid.cut(model.config.grid(LATENTS))),) * model.config.num_layers)
    from fpsgen.weights.load import load_transformer

    taken = []
    for own in ("device", home):
        machine.release()
        before = torch.cuda.memory_allocated(device)
        transformer = load_transformer(model.checkpoint, device, torch.bfloat16, (plan,), home=own)
        taken.append(torch.cuda.memory_allocated(device) - before)
        del transformer
    assert taken[1] < taken[0]
