"""What is between products on a Hopper card: against PyTorch on a CPU, exact results, and the CPU machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fpsgen.attention.quantize import Format
from fpsgen.wan import elementwise
from fpsgen.wan.linear import Rounded
from fpsgen.wan.plan import LinearPrecision
from tests.gpu.hopper import another_card
from tests.kernels import host
from tests.kernels.rows import BITS_8, assert_gelu, assert_normed, assert_rounded, given

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("another_card()", reason="for Hopper")]
assert another_card  # the mark's string names it

PRECISIONS: tuple[LinearPrecision, ...] = ("16bit", *BITS_8)
# Tokens of a batch entry, channels: few and odd ones, then Wan2.1's widths.
SIZES = [(1, 384), (7, 8), (8193, 1536), (32_760, 5120)]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def here(x: Tensor | Rounded) -> list[Tensor]:
    return [x.of.numbers.float().cpu(), x.of.scale.cpu()] if isinstance(x, Rounded) else [x.cpu()]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("own_weights", [False, True], ids=["modulated", "own weights"])
def test_sum_and_norm(size: tuple[int, int], own_weights: bool) -> None:
    """Sums bit for bit; codes bit for bit those of the norm in bfloat16."""
    there = given(2 if size[0] < 9000 else 1, *size, own_weights)
    card = there.to("cuda")
    sums, out = card.made("16bit")
    for kind in BITS_8:
        again, made = card.made(kind)
        assert torch.equal(again, sums)
        numbers, scale = here(made)
        rows = torch.arange(0, size[0], max(1, size[0] // 64))
        assert isinstance(made, Rounded)
        few = Rounded(type(made.of)(numbers[:, rows], scale[:, rows]), kind, torch.bfloat16)
        assert_rounded(few, out[:, rows.cuda()].cpu(), kind)
    assert_normed((sums.cpu(), out.cpu()), there)


@pytest.mark.parametrize("channels", [8, 256, 8960, 13_824])
@pytest.mark.parametrize("kind", BITS_8)
def test_rows(kind: Format, channels: int) -> None:
    """Of all sizes; zeros; ties."""
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(1, 65, channels, generator=generator) * torch.logspace(-44, 37, 65)[:, None]
    x[0, 3] = 0
    x[0, 6] = torch.randint(-254, 255, (channels,), generator=generator) / 2
    x[0, 6, 0] = 127 if kind == "int8" else 448
    x[0, 7:20] = torch.randn(13, channels, generator=generator) * 3
    x = x.bfloat16()
    for run, check in ((elementwise.rounded, assert_rounded), (elementwise.gelu, assert_gelu)):
        made = run(x.cuda(), kind)
        numbers, scale = here(made)
        assert isinstance(made, Rounded)
        check(Rounded(type(made.of)(numbers, scale), kind, torch.bfloat16), x, kind)


@pytest.mark.parametrize("kind", BITS_8)
def test_damage_stays_in_its_row_and_shows(kind: Format) -> None:
    card = given(1, 5, 384).to("cuda")
    card.y[0, 2, 100] = torch.nan
    _, made = card.made(kind)
    for one in (made, elementwise.rounded(card.y, kind), elementwise.gelu(card.y, kind)):
        assert here(one)[1].isnan()[0, :, 0].tolist() == [False, False, True, False, False]


@pytest.mark.skipif(not shutil.which("g++"), reason="the CPU machine is compiled by g++")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_are_the_cpu_machine_s(precision: LinearPrecision) -> None:
    """All of a norm's: sums are in one order, and no product is merged with a sum that is not on the CPU machine."""
    there = given(2, 65, 1536)
    sums, out = there.to("cuda").made(precision)
    with host.on_this_machine():
        twin, expected = there.made(precision)
    assert torch.equal(sums.cpu(), twin)
    assert all(torch.equal(*both) for both in zip(here(out), here(expected), strict=True))


def test_a_thousand_launches_give_the_same_bits() -> None:
    card, generator = given(1, 4096, 5120).to("cuda"), torch.Generator("cuda").manual_seed(1)
    wide = torch.randn(1, 4096, 13_824, device="cuda", generator=generator).bfloat16()

    def made() -> list[Tensor]:
        both = card.made("fp8")[1], elementwise.gelu(wide, "fp8")
        return [part for one in both for part in (one.of.scale, one.of.numbers.view(torch.uint8))]

    first, different = made(), torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        different += sum((again != before).any() for again, before in zip(made(), first, strict=True))
    assert int(different) == 0
