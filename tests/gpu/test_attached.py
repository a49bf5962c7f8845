"""Our attention in diffusers' transformer on a CUDA device: what the same preset gives on a CPU. It needs diffusers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fpsgen.presets import Phase, Preset

pytestmark = pytest.mark.gpu

PRESET = Preset(
    name="own", tile=(3, 5, 8),
    phases=(Phase(sigma=(1.0, 0.5), top=0.3, rest="summary", qk="int8", pv="fp8"), Phase(sigma=(0.5, 0.0))),
)  # fmt: skip


@dataclass(eq=False)
class Pipe:
    """As much of a pipeline as `attach` looks at."""

    transformer: Any


def velocity(transformer: Any, timestep: float, preset: Preset | None) -> torch.Tensor:
    from fpsgen.attached import attach  # collected where diffusers is not

    pipe = Pipe(transformer)
    if preset:
        attach(pipe, preset)
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 16, 3, 24, 32, generator=generator), torch.randn(1, 16, 24, generator=generator)
    given = (each.to(transformer.device, transformer.dtype) for each in (latents, torch.tensor([timestep]), text))
    with torch.inference_mode():
        return transformer(*given, return_dict=False)[0].float().cpu()


def test_a_preset_gives_what_it_gives_on_a_cpu() -> None:
    """In bfloat16, by whatever backend runs there; a dense phase is diffusers' own, to the last bit."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    there = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=128, text_dim=24, freq_dim=32, ffn_dim=96, num_layers=2
    ).eval()
    for parameter in there.parameters():  # else attention says little
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    here = copy.deepcopy(there).to("cuda", torch.bfloat16)
    expected, found = velocity(there, 900.0, PRESET), velocity(here, 900.0, PRESET)
    # bfloat16 keeps 8 bits: 4e-3 at each rounding, of which two layers have some twenty.
    assert (found - expected).norm() <= 3e-2 * expected.norm()
    plain = copy.deepcopy(there).to("cuda", torch.bfloat16)
    assert torch.equal(velocity(here, 300.0, PRESET), velocity(plain, 300.0, None))
