"""Passes as CUDA graphs on a CUDA device: the same bits, memory that does not grow, and what follows a failed capture.
Neither diffusers nor ffmpeg is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fpsgen import machine
from fpsgen.attention import door, flex, hopper
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid
from fpsgen.sampling import Denoiser
from fpsgen.settings import Settings
from fpsgen.wan import transformer
from fpsgen.wan.config import WanConfig
from fpsgen.wan.graphs import Graphs, why_not
from fpsgen.wan.plan import Linears, StepPlan
from fpsgen.wan.transformer import FLOAT32_PARAMETERS, WanTransformer
from tests.gpu.hopper import another_card, tell

pytestmark = pytest.mark.gpu

CONFIG = WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=64, freq_dim=32)
SMALL = Settings(256, 192, 9, 8, steps=4, guidance=3.0, shift=5.0, negative="", solver="lightx2v")
LARGE = replace(SMALL, width=832, height=480, frames=81)
TILES = TileGrid((3, 12, 16), (3, 5, 8))  # 6 tiles, of which FlexAttention makes few more rows
DENSE = AttentionPlan(TILES)
TOP = KeyTiles(top=0.3, rest="summary")
PLANS = {
    "dense": StepPlan((DENSE,) * 2),
    "int8 linear": StepPlan((DENSE,) * 2, (Linears("int8", "int8"),) * 2),
    "fp8 linear": StepPlan((DENSE,) * 2, (Linears("fp8", "fp8"),) * 2),
    "flex": StepPlan((AttentionPlan(TILES, ((1, 1, 1), (1, 1, 2)), (0, 1)), DENSE)),
    "hopper windows": StepPlan((AttentionPlan(TILES, ((1, 1, 1),), (), "fp8", "fp8"), DENSE)),
    "hopper by content": StepPlan((AttentionPlan(TILES, (TOP, (1, 1, 2)), (0, 1), "int8", "fp8"),) * 2),
}


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def model() -> WanTransformer:
    torch.manual_seed(0)
    made = WanTransformer(CONFIG).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        in_float32 = not FLOAT32_PARAMETERS.isdisjoint(name.split("."))
        parameter.data = parameter.data.to("cuda", torch.float32 if in_float32 else torch.bfloat16)
    return made


def denoiser(own: WanTransformer, together: bool, graphs: Graphs | None, settings: Settings = SMALL) -> Denoiser:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randn(1, 16, CONFIG.text_dim, generator=generator).cuda() for _ in range(2)]
    return Denoiser(own, settings, texts, device(), together, graphs)


def latents(one: Denoiser, plans: Sequence[StepPlan], seed: int = 3) -> list[Tensor]:
    return [moment.latents for moment in one.run(one.noise(seed), plans)]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", PLANS)
def test_latents_are_the_same_bit_for_bit(name: str, together: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Both branches and one; of several videos, with all that was kept for them lost, and its memory overwritten."""
    plan, own = PLANS[name], model()
    backends = {each: door.choose(device(), each, 128) for each in plan.attention}
    if name.startswith("hopper") and another_card():
        pytest.skip("for Hopper")
    if name.startswith("fp8") and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("for compute capability 8.9 and newer")
    assert why_not(device(), True, backends) is None
    graphs = Graphs(own, device())
    plain, ours = denoiser(own, together, None), denoiser(own, together, graphs)
    plans = [plan, plan, replace(plan, guidance="reuse"), replace(plan, guidance="off")]
    for seed in range(3):
        for step, (one, other) in enumerate(zip(latents(ours, plans, seed), latents(plain, plans, seed), strict=True)):
            assert one.equal(other), (seed, step)
        for cached in (
            transformer.orders, transformer.rope_in_tile_order, hopper.device_lists, hopper.device_offsets,
            hopper.device_chosen_of, hopper.device_logs, flex.padded_rows, flex.block_mask, flex.is_token,
        ):  # fmt: skip
            cached.cache_clear()  # type: ignore[attr-defined]
        dirty = [torch.full((2**20,), torch.nan, device="cuda") for _ in range(64)]
        del dirty
    assert graphs.refused is None, graphs.refused
    assert graphs.count == 2
    tell(capsys, f"{graphs.seconds:.2f} s")


def test_memory_does_not_grow_with_videos_and_graphs_share_it(capsys: pytest.CaptureFixture[str]) -> None:
    own, tiles = model(), TileGrid.cut((21, 30, 52))
    linear = [(), (Linears("int8", "int8"),) * 2, (Linears("16bit", "int8"),) * 2]
    plans = [StepPlan((AttentionPlan(tiles),) * 2, each) for each in linear]
    reserved: list[list[int]] = []
    for _ in range(3):
        machine.release()
        graphs = Graphs(own, device())
        one = denoiser(own, True, graphs, LARGE)
        reserved.append([torch.cuda.memory_reserved()])
        for plan in plans:
            latents(one, [plan] * 4)
            machine.release()
            reserved[-1].append(torch.cuda.memory_reserved())
        assert graphs.count == 3, graphs
        del one, graphs
    tell(capsys, [[f"{value / 2**20:.0f} MiB" for value in video] for video in reserved])
    assert reserved[2] == reserved[1]
    first, second, third = (after - reserved[1][0] for after in reserved[1][1:])
    assert second < 1.6 * first  # int8 adds its numbers to what a pass holds
    assert third < 1.1 * second


def test_after_a_capture_that_fails_all_is_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current stream and the memory, too."""
    own = model()
    expected = latents(denoiser(own, True, None), [PLANS["dense"]] * 4)
    stream, real = torch.cuda.current_stream(), WanTransformer.unpatchify

    def waits(self: WanTransformer, tokens: Tensor, *more: Any) -> Tensor:
        tokens.sum().item()
        return real(self, tokens, *more)

    monkeypatch.setattr(WanTransformer, "unpatchify", waits)
    graphs = Graphs(own, device())
    for one, other in zip(latents(denoiser(own, True, graphs), [PLANS["dense"]] * 4), expected, strict=True):
        assert one.equal(other)
    assert graphs.failed
    assert graphs.count == 0
    assert torch.cuda.current_stream() == stream
    monkeypatch.undo()
    again = Graphs(own, device())
    for one, other in zip(latents(denoiser(own, True, again), [PLANS["dense"]] * 4), expected, strict=True):
        assert one.equal(other)
    assert again.count == 1, again
