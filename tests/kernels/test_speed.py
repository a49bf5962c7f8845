"""The model of speed: what it reads in listings, hand-made ones and our kernels', and what its replay may never say."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import slots
from fpsgen.errors import UsageError
from fpsgen.kernels import disassembly, pipes, speed, traffic
from fpsgen.kernels.disassembly import Code
from fpsgen.kernels.listing import KERNELS
from fpsgen.kernels.loops import UnknownLoopError, Way, loops
from fpsgen.kernels.pipes import Pipes
from fpsgen.kernels.registers import is_wgmma, wgmma
from fpsgen.kernels.replay import replay
from fpsgen.kernels.sm90_select import SelectKernel

pytestmark = pytest.mark.usefixtures("compiled_once")

ATTENTION = {name: named.kernel for name, named in KERNELS.items() if name.startswith("attention")}


def way_of(name: str, by: str = "newest") -> Way:
    return Way(slots.compiled_by(by, name)[0]["fps_attention"], ATTENTION[name].PROMOTE)  # type: ignore[attr-defined]


def listing(*lines: str) -> Code:
    """Of lines such as "@!P0 BRA `(.L_1) | stall 5 writes 2 waits 0 3", and labels."""
    text, address = [".text.f:"], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
            continue
        instruction, _, control = line.partition(" | ")
        words = control.split()
        numbers = {word: int(words[at + 1]) for at, word in enumerate(words) if word in ("stall", "writes", "reads")}
        waits = sum(1 << int(one) for one in words[words.index("waits") + 1 :]) if "waits" in words else 0
        bits = numbers.get("stall", 1) | numbers.get("writes", 7) << 5 | numbers.get("reads", 7) << 8 | waits << 11
        text.append(f"        /*{address:04x}*/    {instruction} ;   /* 0x0000000000007919 */")
        text.append(f"                              /* {bits << 41:#018x} */")
        address += 16
    return disassembly.parsed("\n".join(text))["f"]


def test_control_codes_are_read() -> None:
    code = listing("MUFU.EX2 R4, R5 | stall 8 writes 2 reads 1 waits 0 3", "@!P0 EXIT")
    first, second = code.instructions
    assert (first.name, first.operands, first.guard) == ("MUFU.EX2", ("R4", "R5"), None)
    assert (first.stall, first.writes_barrier, first.reads_barrier, first.waits) == (8, 2, 1, (0, 3))
    assert (second.guard, second.stall, second.writes_barrier, second.waits) == ("!P0", 1, None, ())
    assert second.address == 16


def test_branches_are_followed() -> None:
    code = listing("NOP", ".L_1:", "NOP", "@P0 BRA `(.L_1)", "BRA `(.L_2)", "NOP", ".L_2:", "@P1 EXIT", "EXIT")
    assert code.successors == [(1,), (2,), (3, 1), (5,), (5,), (6,), ()]
    assert [(loop.header, loop.body) for loop in loops(code)] == [(1, frozenset({1, 2}))]
    with pytest.raises(ValueError, match="does not say"):
        _ = listing("BRX R2 -0x10").successors


def made_up(softmax: list[str], vote: str = "VOTE.ANY P0, P0") -> Way:
    """A kernel of two consumers whose loop has nothing but what the model looks for, promoted every other tile."""
    scores = [f"QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR8], {'RZ' if i == 0 else 'R24'}" for i in range(4)]
    products = [f"QGMMA.64x128x32.F32.E4M3.E4M3 R88, R{152 + 4 * i}, gdesc[UR8], R88" for i in range(4)]
    scores[-1] += ", gsb0"
    products[-1] += ", gsb0"
    rescale = [f"FMUL R{200 + i % 40}, R{200 + i % 40}, R20" for i in range(64)]
    promote = [f"FADD R{200 + i % 40}, R{88 + i}, R{200 + i % 40}" for i in range(64)]
    wait = ["SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR8], R9", "@!P0 BRA `(.spin)"]
    code = listing(
        ".item:", *scores, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "ISETP.LE.AND P1, PT, R2, 0x1, PT", "@P1 BRA `(.last)",
        ".main:", *wait, ".ready:", "BAR.SYNC.DEFER_BLOCKING R2, 0x100", *scores, *products, "BAR.ARV R4, 0x100",
        "WARPGROUP.DEPBAR.LE gsb0, 0x1", *softmax, vote, "@!P0 BRA `(.kept)", *rescale,
        ".kept:", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "@P2 BRA `(.short)", *promote, ".short:", "@P3 BRA `(.main)",
        ".last:", *products, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "@P4 BRA `(.item)", "EXIT",
        ".spin:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR8], R9", "@!P0 BRA `(.spin)", "BRA `(.ready)",
    )  # fmt: skip
    return Way(code, promote=2)


def test_a_made_up_loop_is_counted_by_hand() -> None:
    way = made_up(["FMUL R5, R6, R7"] * 10)
    # Two for the wait, a turn taken and passed on, 8 wgmmas, 2 waits for them, 10, a vote, 4 branches but the wait's.
    always = 2 + 2 + 8 + 2 + 10 + 1 + 3
    assert [len(way.iteration(number)) for number in range(4)] == [always, always + 64, always, always + 64]
    counted = speed.counts(way, 1000, pipes.shipped())
    assert counted.slots == 2 * (always + 32)
    assert counted.pipes["tensor cores"] == 2 * 8 * 64
    assert counted.pipes["FMA"] == 2 * (10 + 32)
    assert counted.shared_bytes == 2 * 4 * 32 * (64 + 128) + 2 * 4 * 32 * 128 + 1000
    assert way.tiles == 1


def test_a_made_up_loop_is_replayed_by_hand() -> None:
    """Little softmax: the tensor cores bind, to the clock. Much: the exponential unit. A chain: the warp itself."""
    found = replay(made_up(["FMUL R5, R6, R7"] * 10), pipes.shipped())
    assert found.cycles == 2 * 8 * 64
    assert found.tensor_cores == pytest.approx(1)
    found = replay(made_up(["MUFU.EX2 R5, R6"] * 200), pipes.shipped())
    assert 2 * 200 * 8 <= found.cycles < 2 * (200 * 8 + 4 * 64)  # it rests while both wait for scores
    chain = replay(made_up(["MUFU.EX2 R5, R6 | writes 0", "FMUL R6, R5, R7 | stall 4 waits 0"] * 100), pipes.shipped())
    assert (
        chain.cycles > 100 * (8 + 22 + 4) + 4 * 64
    )  # two warps' chains overlap, and a warp's scores come before its own
    assert chain.waits["results"] > 100 * 22


def test_what_decides_a_branch_may_go_by_other_registers() -> None:
    """A vote's answer that is kept in a predicate or a register, and one that no vote gave: that code always runs."""
    usual = len(made_up([]).iteration(0))
    kept = made_up(["VOTE.ANY P5, P5", "SEL R5, R6, RZ, P5"], "ISETP.NE.AND P0, PT, R5, RZ, PT")
    assert len(kept.iteration(0)) == usual + 2
    assert len(made_up([], "ISETP.NE.AND P0, PT, R5, RZ, PT").iteration(0)) == usual + 64


@pytest.mark.parametrize("by", slots.COMPILERS)
@pytest.mark.parametrize("name", ATTENTION)
def test_the_loop_s_way_has_what_the_source_has(name: str, by: str) -> None:
    way = way_of(name, by)
    period = [way.iteration(number) for number in range(way.promote)]
    sums = {one for each in way.main.wgmmas if wgmma(each).a for one in wgmma(each).accumulator}
    for iteration in period:
        assert [bool(wgmma(each).a) for each in iteration if is_wgmma(each)] == [False] * 4 + [True] * 4
        assert len([each for each in iteration if each.name.startswith("BAR.")]) == 2  # its turn, taken and passed on
        assert len([each for each in iteration if each.name == "WARPGROUP.DEPBAR.LE"]) == 2
        assert len([each for each in iteration if each.operation == "FMUL"]) < 40  # not the rescaling of 64 sums
    adds = [len([each for each in iteration if each.operation == "FADD"]) for iteration in period]
    assert max(adds) - min(adds) in ((0,) if way.promote == 1 else (66,))  # 64 sums, and two of the sums of P
    assert [count > min(adds) for count in adds].count(True) == (0 if way.promote == 1 else 1)
    assert len(sums) == (64 if way.promote == 1 else 68)
    tile = way.of_query_tile(5)
    assert len([each for each in tile if is_wgmma(each)]) == 4 + 5 * 8 + 4  # the first scores, the loop, the last P V
    assert len([each for each in tile if each.operation == "STG"]) == 8


@pytest.mark.parametrize("by", slots.COMPILERS)
@pytest.mark.parametrize("name", ATTENTION)
def test_the_loop_over_a_summary_s_tiles_is_told_from_the_main_one(name: str, by: str) -> None:
    """It reads addends, two at a time, and always has 128 columns of scores."""
    main = way_of(name, by)
    summary = Way(main.code, main.promote, of_summary=True)
    assert not main.main.body & summary.main.body
    for way, reads, columns in ((main, 0, 120 if name.endswith("120") else 128), (summary, 16, 128)):
        iteration = way.iteration(0)
        assert [each.name for each in iteration].count("LDS.64") == reads
        assert [bool(wgmma(each).a) for each in iteration if is_wgmma(each)] == [False] * 4 + [True] * 4
        assert {wgmma(each).columns for each in iteration if is_wgmma(each) and not wgmma(each).a} == {columns}


def test_a_kernel_without_a_loop_over_a_summary_is_refused() -> None:
    with pytest.raises(UnknownLoopError, match="summary"):
        Way(made_up([]).code, 2, of_summary=True)


@pytest.mark.parametrize("name", ATTENTION)
def test_no_replay_is_faster_than_what_it_is_made_of(name: str) -> None:
    code = slots.compiled_by("newest", name)[0]["fps_attention"]
    found = speed.speed(code, ATTENTION[name], pipes.shipped())  # type: ignore[arg-type]
    assert found.cycles >= found.counts.slots
    assert found.cycles >= found.counts.stalls
    # But for where the passes that count begin and end: the two warps are then not at the same instruction.
    assert all(found.cycles >= 0.999 * clocks for clocks in found.counts.pipes.values())
    assert found.summary_cycles >= found.counts.pipes["tensor cores"]  # at least 128 columns, and more to do with them
    assert found.slow_cycles >= 0.99 * found.cycles
    assert found.query_tile_cycles > 0
    assert sum(found.replay.waits.values()) == pytest.approx(found.cycles, rel=0.02)  # a warp's clocks are all told
    assert found.tflops(l2=speed.L2[0]) <= found.tflops(l2=speed.L2[1]) <= found.tflops(speed.CLOCKS[1], 1e99)
    dense, sparse = (speed.attention(found, 0, density) for density in (1.0, 1 / 6))
    assert 1 < dense.kernel / sparse.kernel < 6  # ends of query tiles stay
    in_pairs, computed = (speed.attention(found, 0, 1.0, **own).kernel for own in ({"shared": 1.0}, {"l2": 1e99}))
    assert computed == in_pairs <= dense.kernel  # half of its bytes do not bind
    assert (dense.kernel > 1.1 * in_pairs) == (found.cycles < 1150)
    assert speed.attention(found, 10**10, 1 / 6).ratio < sparse.ratio
    assert speed.attention(found, 10**10, 1 / 6, dram=1e12).prologue == pytest.approx(0.01)


def test_a_pair_s_work_is_that_of_its_shapes() -> None:
    """By hand: 8 wgmmas of 64 x 128 and 8 of 64 x 136, N / 2 clocks each; Q and K, then V, from shared memory."""
    counted = speed.counts(way_of("attention-fp8-fp16"), 33_808, pipes.shipped())
    assert counted.pipes["tensor cores"] == 8 * 64 + 8 * 68
    assert counted.shared_bytes == 8 * 32 * (64 + 128) + 8 * 32 * 136 + 33_808
    assert ATTENTION["attention-fp8-fp16"].key_tile_bytes == 128 * 128 + 16 + 136 * 128  # type: ignore[attr-defined]


def file_of(folder: Path, **told: object) -> Path:
    path = folder / "pipes.json"
    whole = {"device": "a card", "versions": {}, "intervals": {}, "latencies": {}}
    path.write_text(json.dumps(whole | told))
    return path


def test_a_measured_file_replaces_numbers(tmp_path: Path) -> None:
    given = {"intervals": {"MUFU.EX2": 16, "MUFU": 9, "QGMMA.64x128x32.SS": 70}, "latencies": {"SHFL": 102, "BAR": 40}}
    found = pipes.measured(file_of(tmp_path, **given))
    assert "a card" in found.source
    [exponential, other, shuffle, halves, ss, rs] = listing(
        "MUFU.EX2.F16 R2, R3", "MUFU.RCP R2, R3", "SHFL.BFLY PT, R2, R3, 0x1, 0x1f", "HFMA2 R2, R2, R3, R4",
        "QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR8], RZ", "QGMMA.64x128x32.F32.E4M3.E4M3 R24, R4, gdesc[UR8], R24",
    ).instructions  # fmt: skip
    assert [found.cost(each).interval for each in (exponential, other, halves, ss, rs)] == [16, 9, 2, 70, 64]
    assert found.cost(shuffle).latency == 100
    assert found.pessimistic().cost(shuffle).latency == 150
    assert found.turn == 40
    way = way_of("attention-fp8-fp32")
    slow = pipes.measured(file_of(tmp_path, intervals={"MUFU.EX2": 40}))
    least = 2 * 60 * 40  # at least 120 columns of a tile's 64 rows, by 128 threads, of two warps
    assert replay(way, slow).cycles >= least > replay(way, pipes.shipped()).cycles


def with_clocks(clocks: str) -> str:
    return f'{{"device": "x", "intervals": {{"MUFU": {clocks}}}, "latencies": {{}}}}'


@pytest.mark.parametrize("clocks", ["-1", "0", "NaN", "1e999", "1" + 400 * "0", "true", '"8"', "[8]", "null"])
def test_a_number_of_clocks_is_positive_and_finite(tmp_path: Path, clocks: str) -> None:
    path = tmp_path / "pipes.json"
    path.write_text(with_clocks(clocks))
    with pytest.raises(UsageError):
        pipes.measured(path)


@pytest.mark.parametrize(
    "damage", ["no json", '{"device": "a card"}', "[]", '{"device": 3, "intervals": {}, "latencies": {}}', 60_000 * "["]
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "pipes.json").write_text(damage)
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to
    (tmp_path / "huge.json").write_text(with_clocks("8" + 2**17 * " "))
    for name in ("pipes.json", "missing.json", "pipe", "huge.json", "."):
        with pytest.raises(UsageError):
            pipes.measured(tmp_path / name)


def test_every_number_of_the_table_has_a_source() -> None:
    shipped: Pipes = pipes.shipped()
    for entry in (*shipped.table, shipped.rest):
        numbers = {name for name, value in entry.items() if isinstance(value, int | float)}
        assert entry["sources"].keys() == numbers, entry
        assert set(entry["sources"].values()) <= {"ptxas", "datasheet", "assumption"}


def test_other_code_is_refused() -> None:
    for code in slots.compiled_by("newest", "prologue-fp8-fp16")[0].values():
        with pytest.raises(UnknownLoopError, match=code.name):
            Way(code, 4)


def test_a_loop_without_turns_for_one_consumer_is_refused() -> None:
    """Nobody passes the turn on: the replay must not run for ever, nor leave the barrier out."""
    way = way_of("attention-fp8-fp16")
    nothing = listing("NOP").instructions[0]
    code = way.code
    kept = [nothing if each.name == "BAR.ARV" else each for each in code.instructions]
    with pytest.raises(UnknownLoopError, match="turn"):
        replay(Way(Code(code.name, kept, code.labels), 4), pipes.shipped())


@pytest.mark.parametrize("by", slots.COMPILERS)
def test_the_prologue_s_accesses_are_wide(by: str) -> None:
    """A row for each entry function; most loads of q, k, v and RoPE's table are of 16 bytes."""
    kernel = KERNELS["prologue-fp8-fp16"].kernel
    functions = slots.compiled_by(by, "prologue-fp8-fp16")[0]
    model = speed.described(kernel, functions, pipes.shipped())
    assert model["functions"].keys() == functions.keys()
    assert model["dram_bytes"] == sum(part["dram_bytes"] for part in model["functions"].values())
    heaviest = max(model["functions"].values(), key=lambda part: part["dram_bytes"])
    loads = heaviest["accesses_by_bits"]["LDG"]
    assert loads[128] > sum(loads.values()) / 2


@pytest.mark.parametrize("by", slots.COMPILERS)
def test_the_model_of_a_choice(by: str) -> None:
    """Every product of the scores is counted, by the FMA unit; half as many tiles take less than half as long."""
    kernel = KERNELS["select-640"].kernel
    assert isinstance(kernel, SelectKernel)
    [code] = slots.compiled_by(by, "select-640")[0].values()
    found = speed.selection(code, kernel, pipes.shipped())
    blocks, pieces = 40 * 40, 10  # of 16 query tiles, of 64 key tiles
    assert found.pipes["FMA"] * speed.SMS * 4 * 32 == pytest.approx(blocks * 16 * pieces * 64 * 128, rel=0.02)
    assert found.flops == 2 * 40 * 630**2 * 128
    assert found.slots > found.pipes["FMA"]
    half = speed.selection(code, kernel, pipes.shipped(), replace(speed.WAN_14B_720P, tiles=315))
    assert half.seconds < found.seconds / 2
    with pytest.raises(UnknownLoopError, match="FFMA"):
        speed.selection(listing("NOP"), kernel, pipes.shipped())


def test_widths_of_accesses() -> None:
    code = listing("LDG.E.128 R4, desc[UR4][R2.64]", "LDG.E R8, desc[UR4][R2.64]", "LDG.E.U16 R9, desc[UR4][R2.64]",
                   "LDG.E.U16 R9, desc[UR4][R2.64]", "STG.E.64 desc[UR4][R2.64], R4", "LDS.64 R4, [R2]")  # fmt: skip
    assert traffic.widths(code) == {"LDG": {16: 2, 32: 1, 128: 1}, "STG": {64: 1}}
