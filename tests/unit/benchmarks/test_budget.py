"""The budget counts what the modules do, and its model is the one that presets are priced by."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import record
from benchmarks.budget import __main__ as budget
from benchmarks.budget import parts
from benchmarks.budget.model import CARDS, SWITCHES, Rates, Video, floor
from benchmarks.card.steps import ROOT
from fpsgen.attention.tiles import TileGrid
from fpsgen.kernels import sm90_elementwise
from fpsgen.kernels.sm90_elementwise import ElementwiseKernel
from fpsgen.presets import cost
from fpsgen.wan import vae
from fpsgen.wan.autoencoder import WanVAE
from fpsgen.wan.config import WAN_14B, WanConfig
from fpsgen.wan.plan import dense
from fpsgen.wan.tokenizer import TEXT_LENGTH
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import load
from tests.tools import bench_records

SMALL = WanConfig(dim=256, ffn_dim=512, num_heads=8, num_layers=2, text_dim=40, freq_dim=32)
LATENT = (3, 32, 48)  # frames, rows, columns: 1152 tokens


class Moved(TorchFunctionMode):
    """Bytes that operations read and write, views apart: tensors that they are given, and those that they return; and
    how many operations these are, each of which is one kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.launches = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(each) if isinstance(x, torch.Tensor)] for each in ((args, kwargs), out))
        known = {x.untyped_storage().data_ptr() for x in given}
        in_place = func.__name__ == "mul_" or (kwargs or {}).get("inplace")
        if in_place or any(x.untyped_storage().data_ptr() not in known for x in made):
            self.launches += 1
            self.bytes += sum(x.numel() * x.element_size() for x in (*given, *made))
        return out


def in_16_bits(config: WanConfig) -> WanTransformer:
    torch.manual_seed(0)
    made = WanTransformer(config).requires_grad_(False)
    for name, parameter in made.named_parameters():
        parameter.data = parameter.data.to(load.by_name(torch.bfloat16)(name))
    return made


def transformer() -> Callable[[], object]:
    """One forward pass, in BF16, without values."""
    made = in_16_bits(SMALL)
    latents = torch.randn(1, SMALL.in_channels, *LATENT)
    context = made.embed_text(torch.randn(1, TEXT_LENGTH, SMALL.text_dim))
    time = torch.tensor([500.0])
    return lambda: made(latents, time, context)


def decoder() -> Callable[[], object]:
    made = WanVAE({"base_dim": 8}).requires_grad_(False)
    latents = torch.randn(1, 16, 3, 16, 24)

    return lambda: list(vae.stream(made, latents))


def of_transformer() -> list[parts.Part]:
    found = parts.forward_pass(SMALL, TileGrid.cut(SMALL.grid(LATENT)))
    return [part for part in found if part.kind != "rounding"]


def of_decoder() -> list[parts.Part]:
    return parts.decode((3, 16, 24), base=8, latents=16)


@pytest.fixture(autouse=True)
def onednn_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody counts the operations of its convolutions."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.parametrize(("module", "counted"), [(transformer, of_transformer), (decoder, of_decoder)])
def test_operations_are_those_of_the_module(
    module: Callable[[], Callable[[], object]], counted: Callable[[], list[parts.Part]]
) -> None:
    run = module()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # which is counted on a CPU, too
        run()
    assert counter.get_total_flops() == sum(part.flops for part in counted())


@pytest.mark.parametrize(
    ("module", "counted", "tolerance"),
    # Left out, and a little less than this: the transformer's tables of RoPE and of tile order; what the decoder
    # puts before a clip's first frame, which counts in one as short as this.
    [(transformer, of_transformer, 0.008), (decoder, of_decoder, 0.06)],
)
def test_bytes_are_those_that_operations_move(
    module: Callable[[], Callable[[], object]], counted: Callable[[], list[parts.Part]], tolerance: float
) -> None:
    run = module()
    run()  # tables are made once
    with Moved() as moved:
        run()
    assert sum(part.moved_bytes for part in counted()) == pytest.approx(moved.bytes, rel=tolerance)


@pytest.mark.parametrize("layers", [1, 3])
def test_launches_are_the_operations_of_a_pass(layers: int) -> None:
    """Timesteps apart, which are encoded on the host."""
    config = replace(SMALL, num_layers=layers)
    model, tiles = in_16_bits(config), TileGrid.cut(config.grid(LATENT))
    context = model.embed_text(torch.randn(1, TEXT_LENGTH, config.text_dim))
    given = torch.randn(1, config.in_channels, *LATENT), torch.randn(1, config.freq_dim)
    model.compute(*given, context, dense(tiles, layers))  # tables are made once
    with Moved() as moved:
        model.compute(*given, context, dense(tiles, layers))
    assert moved.launches == parts.launches(config)


@pytest.mark.parametrize("kind", ["16bit", "fp8", "int8"])
def test_bytes_of_our_kernels_are_theirs(large: Video, kind: str) -> None:
    """Of a layer: all norms, residuals and roundings but the norm of cross-attention's q. A scale of each row is left
    out."""
    rows, dim, ffn = large.tiles.tokens, WAN_14B.dim, WAN_14B.ffn_dim

    def moved(kernel: ElementwiseKernel, entry: str, adds: bool = True) -> int:
        return sum(sm90_elementwise.traffic(kernel, rows, dim, ffn, adds)[entry])

    half, own = sm90_elementwise.VARIANTS["16bit"], sm90_elementwise.VARIANTS[kind]
    expected = moved(own, "fps_norm", adds=False) + moved(half, "fps_norm") + moved(own, "fps_norm")
    expected += moved(half, "fps_residual")
    expected += 4 * rows * ffn if kind == "16bit" else moved(own, "fps_round") + moved(own, "fps_gelu")
    by_name = {part.name: part.fused_bytes / WAN_14B.num_layers for part in large.forward_pass}
    names = ["modulated LayerNorm, twice", "gated residual, twice", "cross-attention: norms, residual", "GELU"]
    names += [] if kind == "16bit" else ["rounding for q, k, v, o", "rounding for FFN"]
    of_norm_q = 20 * rows * dim
    assert sum(by_name[name] for name in names) - of_norm_q == pytest.approx(expected, rel=3e-4)


def test_text_encoder_is_that_of_wan() -> None:
    """UMT5-XXL's encoder has 5.68e9 parameters, and 256384 x 4096 of them are a table that nothing is multiplied with.
    The rest are norms and positions, a few in a thousand."""
    encoder = parts.text(WAN_14B, prompts=1)[0]
    pairs = 24 * 4 * 4096 * TEXT_LENGTH**2
    assert (encoder.flops - pairs) / (2 * TEXT_LENGTH) == pytest.approx(5.68e9 - 256384 * 4096, rel=5e-3)


@pytest.fixture
def large() -> Video:
    return budget.video("14b", "720p", "balanced")


def test_linear_layers_and_attention_cost_what_presets_say(large: Video) -> None:
    """One cost model, of one layer in one forward pass."""
    taken, tokens = large.expected(Rates.of(CARDS["h100"])), large.tiles.tokens
    linear = taken["q, k, v, o"] + taken["cross-attention: q, o"] + taken["FFN"]
    assert linear / taken["self-attention"] == pytest.approx(cost.of_linear(WAN_14B, tokens), rel=1e-3)
    account = [cost.of_plan(plan, tokens) for step in large.steps({"preset"}) for plan in step.attention]
    found = large.expected(Rates.of(CARDS["h100"]), {"preset"})["self-attention"]
    assert found / taken["self-attention"] == pytest.approx(sum(account) / len(account))


def test_amdahl_at_720p(large: Video) -> None:
    """The figures that attention's share is known by: free attention makes a step 3.7 times as fast, attention that is
    10 times as fast 2.9 times, and with linear layers 1.6 times as fast 4.1 times. They are those of products alone,
    cross-attention's among them, at 650 TFLOP/s for attention (FlashAttention-3's paper) and 700 for linear layers.
    What PyTorch does between products makes a step an eighth longer, and stays when they become faster."""
    rates = Rates(650e12, {"16bit": 700e12}, 1.0, float("inf"))

    def faster(rates: Rates, attention: float, linear: float) -> float:
        taken = {part.name: large.expected(rates)[part.name] for part in large.forward_pass}
        changed = dict(taken)
        changed["self-attention"] /= attention
        for part in large.forward_pass:
            if part.kind == "linear":
                changed[part.name] /= linear
        return sum(taken.values()) / sum(changed.values())

    figures = [(float("inf"), 1.0), (10.0, 1.0), (10.0, 1.6)]
    assert [round(faster(rates, *one), 1) for one in figures] == [3.7, 2.9, 4.1]
    with_memory = Rates(650e12, {"16bit": 700e12}, 1.0, 3.0e12)
    assert [round(faster(with_memory, *one), 1) for one in figures] == [2.8, 2.4, 3.0]


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(("model", "res"), [("1.3b", "480p"), ("14b", "720p")])
def test_nothing_is_faster_than_its_floor(card: str, model: str, res: str) -> None:
    own = budget.video(model, res, "quality")
    for part in own.forward_pass:
        passes = own.settings.branches * own.settings.steps
        expected = own.expected(Rates.of(CARDS[card]))[part.name]
        assert expected == 0 if part.kind == "rounding" else expected > passes * floor(part, CARDS[card], 16) > 0
    for part in own.once:
        assert own.expected(Rates.of(CARDS[card]))[part.name] > floor(part, CARDS[card], 16)


def test_the_model_is_near_what_others_measured(large: Video) -> None:
    """Wan2.1's own table has 1837.9 s for 14B at 720p on an H100 (`assets/comp_effic.png` of its repository): with
    loading, an older attention kernel and the time between kernels, of which the model knows nothing."""
    assert 0.6 < sum(large.expected(Rates.of(CARDS["h100"])).values()) / 1837.9 < 1


def test_switches_save_what_they_say(large: Video) -> None:
    rates = Rates.of(CARDS["h100"])
    steps = {part.name for part in large.forward_pass}

    def denoising(*on: str) -> float:
        return sum(seconds for name, seconds in large.expected(rates, on).items() if name in steps)

    whole = denoising()
    assert denoising("steps") == pytest.approx(whole / 2)
    assert denoising("reuse") == pytest.approx(whole / 2)
    assert denoising("guidance") == pytest.approx(whole * 3 / 4)
    assert denoising("reuse", "guidance") == pytest.approx(whole * (13 + 12 / 2) / 50)  # 25 are computed
    assert denoising(*SWITCHES) < min(denoising(one) for one in SWITCHES)
    # Rounding by PyTorch's operations takes most of what faster products save.
    assert denoising("linear") > 0.97 * whole
    assert denoising("linear", "fused") < 0.95 * denoising("fused")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert budget.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_json_has_what_the_tables_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)  # without a record of any card
    shown, told = printed(capsys), json.loads(printed(capsys, "--json"))
    for row in told["step"] + told["once"] + told["video"]:
        assert row["name"] in shown
    assert told["about"]["tokens"] == 75_600
    assert f"{told['launches']['kernels']:,} kernels" in shown
    assert told["launches"]["kernels"] == 2 * parts.launches(WAN_14B)
    # What the host does is hidden behind the GPU's work, and graphs save a part of what is lost between kernels.
    computed = sum(row["model_all_s"] for row in told["step"])
    assert computed > 10 * told["launches"]["model_host_s"] > told["launches"]["model_between_s"]
    assert told["launches"]["model_between_s"] > told["launches"]["model_between_in_graphs_s"]
    assert "model" in shown
    assert "measured_s" not in json.dumps(told)


def test_what_was_measured_stands_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attention = bench_records.attention()
    [case] = [one for one in attention["cases"] if one["model"] == "14b"]
    compared = bench_records.compare("quality", "bf16") | {"card": attention["card"], "model": "14b"}
    compared["video"] |= {"width": 1280, "height": 720, "frames": 81, "steps": 50}
    compared["contenders"][0]["preset"] = {"name": "14b-720p-quality"}
    other = attention | {"card": attention["card"] | {"gpu": "NVIDIA H200"}}
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    for name, values in (("attention-h100", attention), ("attention-h200", other), ("bench-14b-720p-h100", compared)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))

    def measured(*arguments: str) -> dict[str, float]:
        told = json.loads(printed(capsys, "--json", *arguments))
        return {row["name"]: row["measured_s"] for row in told["step"] + told["video"] if "measured_s" in row}

    fastest = min(line["median_ms"] for line in case["lines"] if line["kind"] == "sdpa" and "median_ms" in line)
    found = measured("--preset", "quality")
    assert set(found) == {"self-attention", "norm and RoPE of q, k", "bf16", SWITCHES["preset"]}
    assert found["self-attention"] == pytest.approx(2 * 40 * fastest / 1e3)
    median = compared["contenders"][1]["median"]
    assert found["bf16"] == pytest.approx(median["text"] + median["denoise"] + median["decode"])
    assert set(measured("--preset", "fast")) == {"self-attention", "norm and RoPE of q, k", "bf16"}
    assert set(measured("--card", "h200")) == {"self-attention", "norm and RoPE of q, k"}
    assert measured("--card", "b200") == measured("--res", "480p") == {}
    monkeypatch.setenv("COLUMNS", "200")
    assert "measured" in printed(capsys).splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--res", "300x300"], "300x300"),
        (["--res", "large"], "large"),
        (["--preset", "nothing"], "nothing"),
        (["--model", "1.3b", "--preset", "14b-720p-fast"], "14b"),
    ],
)
def test_wrong_input_costs_a_sentence(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert budget.main(arguments) == 2
    told = capsys.readouterr()
    assert not told.out
    assert named in told.err
    assert "hint:" in told.err


def test_no_torch_is_needed() -> None:
    code = "import sys; from benchmarks.budget.__main__ import main; main([]); sys.exit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
