"""GPUs that share one video, by NCCL: each has the latents of one. On one GPU: attention of what is normed already."""

from __future__ import annotations

import json

import pytest
import torch

from fpsgen.attention import hopper
from fpsgen.attention.qk import prepared, unchanging
from tests.gpu.hopper import another_card
from tests.kernels import cases
from tests.kernels.cases import RAGGED, error, moved, plan_for

pytestmark = pytest.mark.gpu

# float32; products of fewer rows are summed in another order, and by other kernels.
TOLERANCE = 1e-4
OF_8_BITS = 1e-2  # such a last bit may round a number to the next one of 8 bits


@pytest.mark.parametrize("world", [2, 4])
def test_several_gpus_have_the_latents_of_one(world: int) -> None:
    if (count := torch.cuda.device_count()) < world:
        pytest.skip(f"{count} GPUs")
    from tests.tools.parallel import started  # collected where safetensors is not

    first, *others = started(world, "cuda")
    told, fault = first.communicate(timeout=300)
    assert first.returncode == 0, fault
    far = json.loads(told)
    assert {name: how for name, how in far.items() if how > (OF_8_BITS if "8" in name else TOLERANCE)} == {}
    assert [other.wait(60) for other in others] == [0] * len(others)


@pytest.mark.skipif("another_card()", reason="for Hopper")
def test_what_is_normed_and_rotated_already() -> None:
    q, k, v, transform = moved(cases.inputs(RAGGED, 2, 1, 0), "cuda")
    plan = plan_for("fp8-fp16", RAGGED)
    ready = prepared(q, k, torch.bfloat16, transform)
    found = hopper.attention(*ready, v, unchanging(q.shape, q.device), plan, "fp8-fp16")
    # q and k are rounded to 8 bits of bfloat16 before they are to 4 of E4M3.
    assert error(found, hopper.attention(q, k, v, transform, plan, "fp8-fp16")) < 0.02


assert another_card  # the mark's string names it
