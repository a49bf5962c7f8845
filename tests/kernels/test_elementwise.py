"""sm90_elementwise.cu, run on a CPU, against PyTorch and exact results; then a block of a trained model with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen.attention import hopper
from fpsgen.attention.quantize import Format
from fpsgen.kernels.sm90_elementwise import MOST_NORMED, MOST_ROUNDED, VARIANTS, traffic
from fpsgen.wan import elementwise, linear
from fpsgen.wan.linear import Rounded
from fpsgen.wan.plan import LinearPrecision
from tests.kernels import host
from tests.kernels.host import Schedule
from tests.kernels.rows import BITS_8, Given, assert_gelu, assert_normed, assert_rounded, given

PLAIN = Schedule()
# Wan2.1's 1.3B and 14B, the pocket model's, and one that leaves most threads without a channel.
DIMS, WIDE = (1536, 5120, 384, 8), (8960, 13824, 256, 8)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def by_kernels(given: Given, precision: LinearPrecision, schedule: Schedule = PLAIN) -> tuple[Tensor, Tensor]:
    """x plus y, and its norm. In 8 bits, that is checked to be the norm in bfloat16, rounded by PyTorch."""
    with host.on_this_machine(schedule):
        sums, out = given.made("16bit")
        if precision != "16bit":
            again, in_8_bits = given.made(precision)
            assert torch.equal(again, sums)
            assert_rounded(in_8_bits, out, precision)
    return sums, out


def rounded(x: Tensor, kind: Format) -> Rounded:
    with host.on_this_machine():
        made = elementwise.rounded(x, kind)
    assert isinstance(made, Rounded)
    return made


def after_gelu(x: Tensor, kind: Format) -> Rounded:
    with host.on_this_machine():
        made = elementwise.gelu(x, kind)
    assert isinstance(made, Rounded)
    return made


@pytest.mark.parametrize("channels", DIMS)
@pytest.mark.parametrize("own_weights", [False, True], ids=["modulated", "own weights"])
@pytest.mark.parametrize("precision", VARIANTS)
def test_sum_and_norm(channels: int, own_weights: bool, precision: LinearPrecision) -> None:
    """An odd number of tokens, in two batch entries with vectors of their own."""
    own = given(2, 7, channels, own_weights)
    assert_normed(by_kernels(own, precision), own)


@pytest.mark.parametrize("tokens", [1, 2])
def test_few_tokens(tokens: int) -> None:
    own = given(1, tokens, 384)
    assert_normed(by_kernels(own, "fp8"), own)


@pytest.mark.parametrize("precision", VARIANTS)
def test_a_norm_of_what_is_there(precision: LinearPrecision) -> None:
    """Nothing is added before a block's first norm: its result is the one after zeros were added."""
    own = given(2, 5, 1536)
    rest = own.layer, torch.bfloat16, own.modulation, precision
    with host.on_this_machine():
        found = elementwise.norm(own.x, *rest)
        _, expected = elementwise.add_and_norm(own.x, own.y * 0, own.gate, *rest)
    ours, theirs = ([x.of.numbers.float(), x.of.scale] if isinstance(x, Rounded) else [x] for x in (found, expected))
    assert all(torch.equal(*both) for both in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("gated", [True, False])
def test_the_residual_stream_is_pytorch_s(gated: bool) -> None:
    own = given(2, 5, 5120)
    gate = own.gate if gated else None
    expected = elementwise.add(own.x, own.y, gate)
    with host.on_this_machine():
        assert torch.equal(elementwise.add(own.x, own.y, gate), expected)


@pytest.mark.parametrize("channels", WIDE)
@pytest.mark.parametrize("kind", BITS_8)
def test_gelu_and_rounding(channels: int, kind: Format) -> None:
    """Rows of all sizes, so that 1 + tanh loses everything in some; and zeros."""
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(1, 9, channels, generator=generator) * torch.logspace(-6, 3, 9)[:, None]
    x[0, 4] = 0
    assert_gelu(after_gelu(x.bfloat16(), kind), x.bfloat16(), kind)


@pytest.mark.parametrize("channels", WIDE)
@pytest.mark.parametrize("kind", BITS_8)
def test_rounding_is_pytorch_s(channels: int, kind: Format) -> None:
    """Of rows from the least to the largest numbers; zeros; ties, which are many where the largest is the format's."""
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(1, 11, channels, generator=generator) * torch.logspace(-44, 37, 11)[:, None]
    x[0, 3] = 0
    x[0, 6] = torch.randint(-254, 255, (channels,), generator=generator) / 2
    x[0, 6, 0] = 127 if kind == "int8" else 448
    x = x.bfloat16()
    assert_rounded(rounded(x, kind), x, kind)


def test_every_number_has_pytorch_s_code() -> None:
    """All of bfloat16 that is finite, but the largest of each row, which decides the others' scale."""
    every = torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16)
    x = torch.stack([every, -every])
    for kind in BITS_8:
        for rows in (x.unflatten(1, (-1, 128)), x.mT.contiguous().view(1, -1, 16)):
            assert_rounded(rounded(rows, kind), rows, kind)


@pytest.mark.parametrize("precision", VARIANTS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-18, 1e15])
def test_rows_of_any_size(precision: LinearPrecision, size: float) -> None:
    """Zeros, and rows whose squares vanish, are nothing beside eps: what is left is the shift."""
    own = given(1, 3, 384, size=size)
    assert_normed(by_kernels(own, precision), own)
    if size < 1e-9:
        assert own.modulation
        assert torch.allclose(by_kernels(own, "16bit")[1].float(), own.modulation[0], rtol=2**-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", BITS_8)
def test_damage_stays_in_its_row_and_shows(kind: Format, value: float) -> None:
    """By the scale, which makes all of the row's products NaN, even INT8's."""
    own = given(1, 5, 384)
    own.y[0, 2, 100] = value
    damaged = torch.arange(5) == 2
    with host.on_this_machine():
        sums, made = own.made(kind)
        _, out = own.made("16bit")
        rows = [made, elementwise.rounded(own.y, kind), elementwise.gelu(own.y.clamp(min=0), kind)]
    assert torch.equal(~sums.isfinite().all(-1)[0], damaged)
    assert torch.equal(out.isnan().all(-1)[0], damaged)
    for one in rows[: 3 if value > 0 or value != value else 2]:  # GELU of minus infinity is clamped away
        assert torch.equal(one.of.scale.isnan()[0, :, 0], damaged)
    layer = linear.Linear(384, 32).bfloat16()
    assert torch.equal(layer(made).isnan().all(-1)[0], damaged)


@pytest.mark.parametrize("precision", VARIANTS)
def test_the_order_of_threads_does_not_matter(precision: LinearPrecision) -> None:
    own = given(1, 3, 1536)
    one, other = (by_kernels(own, precision, Schedule(seed)) for seed in (1, 2))
    assert all(torch.equal(*both) for both in zip(one, other, strict=True))


@pytest.mark.parametrize("precision", VARIANTS)
def test_traffic_is_that_of_the_tensors(precision: LinearPrecision) -> None:
    own, moved = given(2, 5, 384), traffic(VARIANTS[precision], 10, 384, 256)
    with host.on_this_machine():
        sums, out = own.made(precision)
        results = [out] if isinstance(out, Tensor) else [out.of.numbers, out.of.scale]
        assert moved["fps_norm"] == (own.x.nbytes + own.y.nbytes, sums.nbytes + sum(x.nbytes for x in results))
        alone = traffic(VARIANTS[precision], 10, 384, 256, adds=False)["fps_norm"]
        assert alone == (own.x.nbytes, sum(x.nbytes for x in results))
        if precision == "16bit":
            assert moved["fps_residual"] == (own.x.nbytes + own.y.nbytes, own.x.nbytes)
            return
        wide = own.y[..., :256].contiguous()
        rounded_rows = {
            "fps_round": elementwise.rounded(own.y, precision),
            "fps_gelu": elementwise.gelu(wide, precision),
        }
    for entry, made in rounded_rows.items():
        assert isinstance(made, Rounded)
        given_bytes = 2 * made.of.numbers.nbytes
        assert moved[entry] == (given_bytes, made.of.numbers.nbytes + made.of.scale.nbytes)


def launched(run: str, own: Given, precision: LinearPrecision = "fp8") -> list[str]:
    """The entry functions that one operation launches."""
    names: list[str] = []
    with host.on_this_machine(), mock.patch.object(elementwise, "launch", lambda _, name, *rest: names.append(name)):
        if run == "norm":
            elementwise.norm(own.x, own.layer, own.y.dtype, own.modulation, precision)
        elif run == "add and norm":
            elementwise.add_and_norm(own.x, own.y, own.gate, own.layer, own.y.dtype, own.modulation, precision)
        elif run == "add":
            elementwise.add(own.x, own.y, own.gate)
        else:
            getattr(elementwise, run)(own.y, precision)
    return names


@pytest.mark.parametrize(
    ("run", "name"),
    [("norm", "fps_norm"), ("add and norm", "fps_norm"), ("add", "fps_residual"), ("rounded", "fps_round"),
     ("gelu", "fps_gelu")],
)  # fmt: skip
def test_where_kernels_run(run: str, name: str) -> None:
    """In inference, in bfloat16, where a row has room; else PyTorch does."""
    own = given(1, 3, 384)
    assert launched(run, own) == [name]
    most = MOST_NORMED if name in ("fps_norm", "fps_residual") else MOST_ROUNDED
    assert launched(run, given(1, 1, most)) == [name]
    others = [given(1, 1, most + 8), given(1, 1, 388)]
    others.append(Given(own.x, own.y.half(), own.gate, own.layer, own.modulation))
    assert [launched(run, one) for one in others] == [[]] * 3
    with torch.inference_mode(False), torch.enable_grad():
        assert launched(run, given(1, 3, 384)) == []
    with torch.autocast("cpu", torch.bfloat16):
        assert launched(run, own) == []


def test_16_bits_are_pytorch_s_own_gelu() -> None:
    x = given(1, 3, 384).y
    assert launched("gelu", given(1, 3, 384), "16bit") == launched("rounded", given(1, 3, 384), "16bit") == []
    made = elementwise.gelu(x, "16bit")
    assert isinstance(made, Tensor)
    assert torch.equal(made, F.gelu(x, approximate="tanh"))


@pytest.mark.parametrize("change", ["y", "half of y", "x", "gate", "shift"])
def test_what_a_kernel_would_read_beyond(change: str) -> None:
    own, short = given(2, 3, 384), torch.zeros(2, 1, 376)
    assert own.modulation
    wrong = {
        "y": Given(own.x, own.y[:, :2], own.gate, own.layer, own.modulation),
        "half of y": Given(own.x, own.y.half(), own.gate, own.layer, own.modulation),
        "x": Given(own.x.bfloat16(), own.y, own.gate, own.layer, own.modulation),
        "gate": Given(own.x, own.y, short, own.layer, own.modulation),
        "shift": Given(own.x, own.y, own.gate, own.layer, (short, own.modulation[1])),
    }
    with host.on_this_machine(), pytest.raises(ValueError, match="are wanted"):
        wrong[change].made("16bit")


def test_what_a_model_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path))
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(hopper, "why_not_here", lambda device: None if device == cuda else "it is for CUDA GPUs")
    half = torch.bfloat16
    made = [built.options[-1] for built in elementwise.make_ready(cuda, half, ["int8"])]
    assert made == ["-DFORMAT=0", "-DFORMAT=2"]
    assert not any(built.fresh for built in elementwise.make_ready(cuda, half, ["int8"]))
    assert elementwise.make_ready(cuda, torch.float32, []) == []
    assert elementwise.make_ready(torch.device("cpu"), half, []) == []
