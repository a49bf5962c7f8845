"""Passes as CUDA graphs, on a CPU: what is captured, when, and that it makes no difference."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fpsgen import machine
from fpsgen.attention import door, hopper, select
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid
from fpsgen.sampling import Denoiser
from fpsgen.wan import elementwise, graphs, transformer
from fpsgen.wan.conditions import Conditions
from fpsgen.wan.config import WanConfig
from fpsgen.wan.graphs import Graphs
from fpsgen.wan.plan import Linears, StepPlan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import load
from tests.tools.calibration import CPU, TILES, VIDEO, small_transformer, text
from tests.tools.graphs import Capturing, Recorder

DENSE = StepPlan((AttentionPlan(TILES),) * 2)
ROUNDED = StepPlan((AttentionPlan(TILES),) * 2, (Linears("fp8", "int8"), Linears("16bit", "int8")))
WINDOW = StepPlan((AttentionPlan(TILES, ((1, 1, 1),)), AttentionPlan(TILES)))
# Each way to have a velocity, some of them again.
MIXED = [
    DENSE, ROUNDED, DENSE, replace(DENSE, guidance="reuse"), WINDOW, replace(DENSE, guidance="off"),
    replace(DENSE, compute="reuse"), ROUNDED, ROUNDED, replace(DENSE, guidance="reuse"), DENSE,
]  # fmt: skip


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return use(Recorder(), monkeypatch)


def use(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(graphs, "on_cuda", recorder)
    return recorder


def denoiser(captured: bool, branches: int = 2, together: bool = True) -> tuple[Denoiser, Graphs]:
    model = small_transformer()
    own = Graphs(model, CPU)
    settings, texts = VIDEO.override(steps=len(MIXED)), [text(1), text(2)][:branches]
    return Denoiser(model, settings, texts, CPU, together, own if captured else None), own


def latents(denoiser: Denoiser, plans: Sequence[StepPlan], seed: int = 7) -> list[Tensor]:
    return [moment.latents for moment in denoiser.run(denoiser.noise(seed), plans)]


@pytest.mark.parametrize(("branches", "together", "count"), [(2, True, 3), (2, False, 4), (1, True, 2)])
def test_latents_are_the_same_bit_for_bit(recorder: Recorder, branches: int, together: bool, count: int) -> None:
    """Kinds that occur again: dense with both branches, dense with one, rounded; each branch apart is one of its own,
    but the guided one serves both forms."""
    plain, _ = denoiser(False, branches, together)
    ours, own = denoiser(True, branches, together)
    for seed in (7, 8):
        for one, other in zip(latents(ours, MIXED, seed), latents(plain, MIXED, seed), strict=True):
            assert one.equal(other)
        if seed == 7:
            assert (own.count, own.refused) == (count, None)
    assert own.count == recorder.events.count("capture") == count + (branches if not together else 1)  # WINDOW's
    assert own.as_dict()["captured"] == own.count


def test_a_first_frame_with_a_time_of_its_own_is_captured_as_well(recorder: Recorder) -> None:
    first, found = torch.randn(1, 16, 1, *VIDEO.latent_shape[1:], generator=torch.Generator().manual_seed(4)), []
    for captured in (False, True):
        model = small_transformer()
        own = Graphs(model, CPU) if captured else None
        settings, given = VIDEO.override(steps=len(MIXED)), Conditions(first=first)
        one = Denoiser(model, settings, [text(1), text(2)], CPU, together=True, graphs=own, image=given)
        found.append(latents(one, MIXED))
        assert all(each[:, :, :1].equal(first) for each in found[-1])
    assert all(one.equal(other) for one, other in zip(*found, strict=True))
    assert recorder.events.count("capture") == 3
    assert not found[0][-1].equal(latents(denoiser(False)[0], MIXED)[-1])


def test_a_kind_warms_up_then_is_captured_then_repeated(recorder: Recorder) -> None:
    ours, own = denoiser(True)
    ours.transformer.register_forward_pre_hook(lambda *_: recorder.events.append("pass"))
    latents(ours, [DENSE] * 4)
    assert recorder.events == ["pass", "capture", "replay", "replay", "replay"]
    assert own.seconds > 0


def test_what_happens_once_is_not_captured(recorder: Recorder) -> None:
    ours, own = denoiser(True)
    latents(ours, [DENSE, ROUNDED, WINDOW, replace(DENSE, guidance="off")])
    assert not recorder.events
    assert own.count == 0


def test_inputs_stay_at_their_addresses(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    real = WanTransformer.compute

    def spy(self: WanTransformer, *given: Tensor, **more: object) -> Tensor:
        seen.append((*(x.data_ptr() for x in given[:2]), more["context"][0][0].data_ptr()) if more else ())  # type: ignore[index]
        return real(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(WanTransformer, "compute", spy)
    ours, _ = denoiser(True)
    noise = [ours.noise(seed) for seed in range(5)]  # alive at once, each at its own address
    for step, own in enumerate(noise):
        ours.velocity(own, step, DENSE)
    assert seen[0] == ()
    assert len(seen) == 1 + 1 + 4  # the warm-up, the capture, four times
    assert len(set(seen[1:])) == 1
    assert not {x.data_ptr() for x in noise} & set(seen[1])


def test_a_result_is_not_lost_when_the_graph_runs_again(recorder: Recorder) -> None:
    plain, ours = denoiser(False)[0], denoiser(True)[0]
    expected, found = ([each.velocity(each.noise(3), step, DENSE) for step in range(4)] for each in (plain, ours))
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_where_a_capture_fails_all_goes_on_without(fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = use(Recorder(fails), monkeypatch)
    plain, (ours, own) = denoiser(False)[0], denoiser(True)
    for one, other in zip(latents(ours, MIXED), latents(plain, MIXED), strict=True):
        assert one.equal(other)
    assert recorder.events.count("capture") == fails
    assert recorder.events[-1] == "capture"  # and no graph runs after it
    assert own.failed
    assert own.refused is not None
    assert own.refused.endswith("the first cause")
    assert own.as_dict() == {"captured": 0, "seconds": 0.0, "why_not": own.refused}


def test_a_capture_that_fails_frees_the_graphs_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Recorder(fails=2), monkeypatch)
    ours, own = denoiser(True)
    latents(ours, [DENSE, DENSE, ROUNDED])
    assert own.count == 1
    latents(ours, [ROUNDED])
    assert own.failed
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is graphs.Graph]


def test_what_a_graph_reads_lives_as_long_as_it(recorder: Recorder) -> None:
    ours, own = denoiser(True)
    latents(ours, [DENSE] * 2)
    read = [weakref.ref(x) for x in transformer.orders(TILES, CPU)]
    read += [
        weakref.ref(transformer.rope_in_tile_order(TILES, 24, CPU)),
        weakref.ref(ours._experts[0].contexts[0][0][0]),
    ]
    transformer.orders.cache_clear()
    transformer.rope_in_tile_order.cache_clear()
    ours._experts = []
    gc.collect()
    assert all(one() is not None for one in read)
    del ours, own
    gc.collect()
    assert not any(one() is not None for one in read[2:])  # `TILES` has its orders


@pytest.mark.parametrize(("together", "needs"), [(True, 4), (False, 2)])
def test_graphs_need_memory_for_two_steps(together: bool, needs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_transformer()
    one = 72 * model.config.bytes_per_token(4) / 0.8
    for free, fits in ((needs * one + 4, True), (needs * one - 4, False)):
        monkeypatch.setattr(machine, "free_bytes", lambda device, free=free: int(free))
        own = Graphs(model, CPU)
        Denoiser(model, VIDEO, [text(1), text(2)], CPU, together, own)
        assert (own.refused is None) is fits


CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "wanted", "backend", "seen", "can"),
    [
        (CUDA, True, "dense", None, True),
        (CUDA, True, "hopper", KeyTiles(top=0.3, rest="summary"), True),
        (CUDA, True, "flex", (1, 1, 1), True),
        (CUDA, True, "flex", KeyTiles(top=0.3), False),
        (CUDA, True, "reference", (1, 1, 1), False),
        (CUDA, False, "dense", None, False),
        (CPU, True, "dense", None, False),
    ],
)
def test_why_no_pass_can_be_a_graph(
    device: torch.device, wanted: bool, backend: str, seen: KeyTiles | tuple[int, int, int] | None, can: bool
) -> None:
    plan = AttentionPlan(TILES, (seen,))
    reason = graphs.why_not(
        device, wanted, {AttentionPlan(TILES): door.Choice("dense", ()), plan: door.Choice(backend, ())}
    )
    assert (reason is None) is can
    if not can and wanted:
        assert reason is not None
        assert (backend in reason) is (device is CUDA)


WIDE = WanConfig(dim=256, ffn_dim=64, num_heads=2, num_layers=2, text_dim=8, freq_dim=16)
CUT = TileGrid((3, 4, 6), (2, 2, 2))
META = torch.device("meta")


@pytest.fixture
def hopper_without_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Our host code for tensors without values; the names of the kernels that it would launch."""
    launched: list[str] = []
    door.choose.cache_clear()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(hopper, "why_not_here", lambda device: None)
    monkeypatch.setattr(hopper, "multiprocessors", lambda device: 132)
    for launching in (hopper, elementwise):
        monkeypatch.setattr(launching, "launch", lambda kernel, function, *_: launched.append(function))
    yield launched
    door.choose.cache_clear()


@pytest.mark.parametrize(
    "attention",
    [
        AttentionPlan(CUT),
        AttentionPlan(CUT, ((1, 1, 1), None), (0, 1), "fp8", "fp8"),
        AttentionPlan(CUT, (KeyTiles(top=0.3, rest="summary"), (1, 1, 3)), (1, 0), "int8", "fp8", smooth_k=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("linear", [(), (Linears("fp8", "int8"),) * 2], ids=["16bit", "8bit"])
@torch.inference_mode()
def test_a_second_pass_copies_nothing_from_the_host(
    hopper_without_card: list[str], attention: AttentionPlan, linear: tuple[Linears, ...]
) -> None:
    """On a device without values, in BF16, with our kernels: of attention where the plan is in 8 bits, and between
    products where those are."""
    model = WanTransformer(WIDE).requires_grad_(False).to(META)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(load.by_name(torch.bfloat16)(name))
    context = model.embed_text(torch.zeros(1, 5, 8, device=META))
    given = torch.zeros(2, 16, 3, 8, 12, device=META), torch.zeros(2, 16, device=META)
    plan = StepPlan((attention, AttentionPlan(CUT)), linear)
    transformer.orders.cache_clear()
    with pytest.raises(RuntimeError, match="capturing"), Capturing(META):
        model.compute(*given, context, plan)
    model.compute(*given, context, plan)
    launched = list(hopper_without_card)
    with Capturing(META):
        model.compute(*given, context, plan)
    assert hopper_without_card == launched * 2
    assert ("fps_norm" in launched) is bool(linear)
    assert ("fps_attention" in launched) == attention.is_8bit


def test_the_watch_over_a_capture_sees_what_a_gpu_forbids() -> None:
    cpu, x = torch.arange(3), torch.zeros(3, device=META)
    with Capturing(META):
        x + 1
        cpu.max().item()
        for forbidden in (
            lambda: cpu.to(META),
            lambda: x.nonzero(),
            lambda: select.means(x.view(1, 3, 1, 1), TileGrid((1, 1, 3), (1, 1, 2))),
        ):
            with pytest.raises(RuntimeError, match="capturing"):
                forbidden()
