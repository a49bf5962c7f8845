"""Faults edited into the kernels' sources, one at a time: does a check notice, and which?

    python -m tests.kernels.mutations --out tests/kernels/mutations.md

The checks are small versions of the tests beside this file. A fault that none notices ends the command with an error.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
import torch

from fpsgen.attention.emulator import VARIANTS, emulate
from fpsgen.attention.plan import KeyTiles
from fpsgen.attention.quantize import Format
from fpsgen.attention.tiles import TileGrid
from fpsgen.kernels import sm90_elementwise as elementwise_kernels
from fpsgen.wan import elementwise
from fpsgen.wan.linear import Rounded
from fpsgen.wan.plan import LinearPrecision
from tests.kernels import host, rows
from tests.kernels.cases import (
    MANY,
    MIXED,
    TOP_SUMMARY,
    WINDOW_SUMMARY,
    assert_chosen,
    assert_near,
    assert_pooled,
    assert_same_operands,
    inputs,
    line,
    plan_for,
    pooled_integers,
    prepared,
    random_qkv,
    scores_of,
    with_spikes,
)
from tests.kernels.faults import ATTENTION, ELEMENTWISE, FAULTS, PROLOGUE, SELECT, TILE, digest
from tests.kernels.host import Schedule

_LONGEST = 600.0  # seconds that all checks of one fault may take

GRID = TileGrid((1, 5, 9), (1, 3, 2))  # 2 x 5 tiles of 2 to 6 tokens
LINE = TileGrid((1, 3, 9), (1, 3, 2))  # 5 tiles of 3 or 6 tokens
FULL = TileGrid((1, 8, 48), (1, 8, 16))  # 3 tiles of 128
WINDOWS = {"dense and window": (None, (1, 1, 3)), "lists of one": (None, (1, 1, 1)), "lists of six": ((1, 2, 3), None)}


def attention_checks() -> Iterator[tuple[str, Callable[[str], None]]]:
    """Name, and what raises AssertionError for a bad source."""
    for name in VARIANTS:
        for late in host.LATE:
            yield f"{name}, {late} late", partial(ragged, name=name, schedule=Schedule(1, late))
        yield f"{name}, full tiles", partial(full, name=name)
    for name in VARIANTS:
        yield f"{name}, seven tiles of 120", partial(long_lists, name=name)
    for name in VARIANTS:
        for windows in list(WINDOWS)[1:]:  # one block for all: through every ring several times
            for late in host.LATE[1:]:
                schedule = Schedule(2, late)
                yield (
                    f"{name}, {windows}, {late} late",
                    partial(ragged, name=name, schedule=schedule, windows=windows, blocks=1),
                )
        yield f"{name}, scores far below zero", partial(ragged, name=name, schedule=Schedule(3), offset=2.0)
        yield f"{name}, NaN in a tile of k", partial(damaged, name=name)
    for name in VARIANTS:
        for late in host.LATE:
            yield f"{name}, tiles by content, {late} late", partial(by_content, name=name, late=late)
        yield f"{name}, a summary after full tiles", partial(full_summary, name=name)
    yield "fp8-fp16, two summary tiles", partial(two_summary_tiles, name="fp8-fp16")  # of tiles of 120 keys or fewer


def ragged(
    source: str,
    name: str,
    schedule: Schedule,
    windows: str = "dense and window",
    blocks: int = 3,
    offset: float = 0.0,
) -> None:
    q, k, v = random_qkv(GRID, heads=2, batch=2)
    q, k = q + offset, k - offset
    plan = plan_for(name, GRID, WINDOWS[windows], heads=(0, 1), smooth_k=not offset)
    found = host.attention(q, k, v, plan, name, source=source, blocks=blocks, schedule=schedule)
    assert_near(found, emulate(q, k, v, plan, VARIANTS[name]))


def full(source: str, name: str) -> None:
    q, k, v = random_qkv(FULL, heads=1)
    plan = plan_for(name, FULL)
    found = host.attention(q, k, v, plan, name, source=source, schedule=Schedule(3))
    assert_near(found, emulate(q, k, v, plan, VARIANTS[name]))


def by_content(source: str, name: str, late: Literal["nothing", "copies", "wgmmas"]) -> None:
    """A head of each kind, of two batch entries."""
    q, k, v = random_qkv(LINE, heads=4, batch=2)
    plan = plan_for(name, LINE, **MIXED)  # type: ignore[arg-type]
    found = host.attention(q, k, v, plan, name, source=source, schedule=Schedule(5, late))
    assert_near(found, emulate(q, k, v, plan, VARIANTS[name]))


def full_summary(source: str, name: str) -> None:
    """Both consumers have rows, and a summary begins at each remainder of a promotion."""
    tiles = TileGrid((1, 1, 5 * 128), (1, 1, 128))
    q, k, v = random_qkv(tiles, heads=4)
    plan = plan_for(
        name, tiles, tuple(KeyTiles(top=count / 5, rest="summary") for count in range(1, 5)), heads=(0, 1, 2, 3)
    )
    found = host.attention(q, k, v, plan, name, source=source, schedule=Schedule(6))
    assert_near(found, emulate(q, k, v, plan, VARIANTS[name]))


def two_summary_tiles(source: str, name: str) -> None:
    q, k, v = random_qkv(MANY, heads=1)
    plan = plan_for(name, MANY, (KeyTiles(top=0.01, rest="summary"),))
    assert_near(host.attention(q, k, v, plan, name, source=source), emulate(q, k, v, plan, VARIANTS[name]))


def damaged(source: str, name: str) -> None:
    """The prologue marks a tile of k that has a NaN by its scale."""
    q, k, v = random_qkv(GRID)
    plan = plan_for(name, GRID)
    made = host.images(q, k, v, plan, name)
    host.trailers(made["trailers"])["scale"][:, 2] = (
        np.nan
    )  # not of the first tile: a query tile has a reference by then
    with mock.patch.object(host, "images", return_value=made):
        found = host.attention(q, k, v, plan, name, source=source)
    assert not found.isfinite().any(), "damage looks like a video"


def long_lists(source: str, name: str) -> None:
    """Both consumers have rows, and promote twice."""
    tiles, window = line(7)
    q, k, v = random_qkv(tiles, heads=1)
    plan = plan_for(name, tiles, (window,))
    found = host.attention(q, k, v, plan, name, source=source, blocks=2, schedule=Schedule(4))
    assert_near(found, emulate(q, k, v, plan, VARIANTS[name]))


def prologue_checks() -> Iterator[tuple[str, Callable[[str], None]]]:
    for name in ("fp8-fp16", "fp8-fp32"):
        yield f"images, {name}", partial(images, name=name)
    yield "images, 17 heads", partial(images, name="fp8-fp16", tiles=TileGrid((1, 2, 5), (1, 2, 3)), heads=17)
    yield "images, v beyond", partial(images, name="fp8-fp16", spikes=1000.0)
    yield "v is no number", not_a_number
    for name in ("fp8-fp16", "int8-int32"):
        yield f"summary, {name}", partial(images, name=name, seen=TOP_SUMMARY)
    yield "summary of 130 tiles", partial(images, name="fp8-fp32", tiles=MANY, heads=1, seen=TOP_SUMMARY)


def images(
    source: str, name: str, tiles: TileGrid = GRID, heads: int = 2, spikes: float = 0.0, seen: KeyTiles | None = None
) -> None:
    given = inputs(tiles, heads, batch=2)
    if spikes:
        given = with_spikes(given, tiles, spikes)
    plan = plan_for(name, tiles, (seen,))
    found = host.prologue(*given, plan, name, source=source)
    assert_same_operands(found, host.images(*prepared(given), given[2], plan, name), plan)
    assert_pooled(found, given, tiles)


def not_a_number(source: str) -> None:
    given = with_spikes(inputs(GRID, batch=2), GRID, float("nan"))
    found = host.prologue(*given, plan_for("fp8-fp16", GRID), "fp8-fp16", source=source)
    assert np.array_equal(np.isnan(found["v_scale"]), given[2].isnan().any(1).flatten(0, 1)), "v's scales"


def select_checks() -> Iterator[tuple[str, Callable[[str], None]]]:
    for seed in (1, 2):
        yield f"lists of every kind, seed {seed}", partial(lists, seed=seed)
    yield "zeros of both signs, and NaN", special_scores
    yield "lists over pieces", partial(lists, tiles=TileGrid((1, 11, 14), (1, 1, 1)), seed=3)


def lists(source: str, seed: int, tiles: TileGrid = GRID) -> None:
    seen = TOP_SUMMARY, WINDOW_SUMMARY, KeyTiles(top=0.7), None
    plan, pooled = plan_for("int8-int32", tiles, seen, heads=(0, 1, 2, 3)), pooled_integers(tiles, 8, seed)
    made = host.chosen(pooled, plan, 2, source=source, schedule=Schedule(seed))
    assert_chosen(made, scores_of(pooled), plan, 2)


def special_scores(source: str) -> None:
    """Key tile 1 has a product that is less than any number, and below zero; tile 4 of one head is damaged."""
    tiles, plan = GRID, plan_for("int8-int32", GRID, (KeyTiles(top=0.4),))
    q, k = torch.zeros(2, len(tiles.valid), 128), torch.zeros(2, len(tiles.valid), 128)
    q[:, :, -1], k[:, 1, -1], k[1, 4, 3] = 1e-30, -1e-30, torch.nan
    found = host.chosen({"q_pooled": q, "k_pooled": k}, plan, 1, source=source)["chosen"].view(2, -1, 4).tolist()
    assert found == [[[0, 1, 2, 3]] * len(tiles.valid), [[0, 1, 2, 4]] * len(tiles.valid)], "special scores"


def elementwise_checks() -> Iterator[tuple[str, Callable[[str], None]]]:
    for precision in elementwise_kernels.VARIANTS:
        for own_weights in (False, True):
            words = "own weights" if own_weights else "modulated"
            yield f"norm, {words}, {precision}", partial(normed, precision=precision, own_weights=own_weights)
    yield "a norm of small rows", partial(normed, precision="16bit", size=1e-4)
    yield "the residual stream", residual
    for kind in rows.BITS_8:
        yield f"rows, {kind}", partial(rounded_rows, kind=kind)
        yield f"rows that are no numbers, {kind}", partial(damaged_rows, kind=kind)


def normed(source: str, precision: LinearPrecision, own_weights: bool = False, size: float = 1.0) -> None:
    """More channels than threads have at once, in rows of an odd number."""
    given = rows.given(2, 3, 1288, own_weights, size)
    for seed in (1, 2):
        with host.on_this_machine(Schedule(seed), edited={"sm90_elementwise": source}):
            sums, out = given.made(precision)
        if precision != "16bit":
            with host.on_this_machine():
                again, in_16_bits = given.made("16bit")
            assert torch.equal(sums, again), "the residual stream"
            rows.assert_rounded(out, in_16_bits, precision)
        else:
            rows.assert_normed((sums, out), given)


def residual(source: str) -> None:
    given = rows.given(2, 3, 1288)
    expected = elementwise.add(given.x, given.y, given.gate)
    with torch.no_grad(), host.on_this_machine(edited={"sm90_elementwise": source}):
        assert torch.equal(elementwise.add(given.x, given.y, given.gate), expected), "the residual stream"


def rounded_rows(source: str, kind: Format) -> None:
    """Of all sizes, the largest number now above zero and now below; zeros; a row without numbers below zero."""
    x = rows.given(1, 12, 2312).y * torch.logspace(-40, 20, 12)[:, None]
    x[0, 5], x[0, 6, 9], x[0, 7, 10], x[0, 8] = 0, 1e20, -1e20, x[0, 8].clamp(min=0)
    x[0, 9] /= x[0, 9].std()  # where GELU bends
    x = x.bfloat16()
    with torch.no_grad(), host.on_this_machine(Schedule(1), edited={"sm90_elementwise": source}):
        made, after_gelu = elementwise.rounded(x, kind), elementwise.gelu(x, kind)
    rows.assert_rounded(made, x, kind)
    rows.assert_gelu(after_gelu, x, kind)


def damaged_rows(source: str, kind: Format) -> None:
    given = rows.given(1, 4, 384)
    given.y[0, 1, 7], given.y[0, 3, 8] = torch.nan, torch.inf
    with torch.no_grad(), host.on_this_machine(edited={"sm90_elementwise": source}):
        _, out = given.made(kind)
        made = [out, elementwise.rounded(given.y, kind), elementwise.gelu(given.y, kind)]
    for one in made:
        assert isinstance(one, Rounded)
        assert one.of.scale.isnan().flatten().tolist() == [False, True, False, True], "damage"


CHECKS = {ATTENTION: attention_checks, PROLOGUE: prologue_checks, TILE: prologue_checks, SELECT: select_checks}
CHECKS[ELEMENTWISE] = elementwise_checks


def first_to_notice(source: str, file: str) -> tuple[str, str] | None:
    """The first check that notices, and what it says; None where none does."""
    for name, check in CHECKS[file]():
        try:
            check(source)
        except AssertionError as noticed:
            return name, str(noticed).splitlines()[0]
        except subprocess.CalledProcessError:
            raise SystemExit("the edited source does not compile") from None
        except Exception as damage:  # memory that was written beyond its end
            return name, type(damage).__name__
    return None


def judged(source: str, file: str) -> tuple[str, str] | None:
    """`first_to_notice` in a process of its own, which the fault may end, or never let end."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.Process(target=lambda: theirs.send(first_to_notice(source, file)))
    child.start()
    theirs.close()
    if not ours.poll(_LONGEST):
        child.kill()
        return "any", f"does not end within {_LONGEST} s"
    try:
        return ours.recv()
    except EOFError:
        child.join()
        if child.exitcode and child.exitcode > 0:
            raise SystemExit("a check did not work") from None
        return "any", f"ended by {signal.Signals(-(child.exitcode or 0)).name}"
    finally:
        child.join()


def table(lines: list[str]) -> str:
    """The page: what it is true for, then a line for each fault."""
    head = [
        "# Faults in the kernels, and the check that noticed",
        "",
        "`python -m tests.kernels.mutations` makes this page. It edits each fault in alone.",
        "The page shows the first check that fails.",
        "",
        f"Hash of the sources and faults: {digest()}",
        "",
        "| source | fault | check | what it said |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *lines]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    args = parser.parse_args()
    if args.only and args.out:
        parser.error("--only leaves faults out, and --out is the table of all")
    multiprocessing.set_start_method("fork")  # a child begins with everything imported
    torch.set_num_threads(1)  # and cannot use its parent's threads
    host.build_folder()  # this process's, hence removed at its end: children build into it, too
    for file in (ATTENTION, PROLOGUE, SELECT, ELEMENTWISE):
        found = judged((host.SOURCES / file).read_text(), file)
        assert found is None, f"{file} as it is fails: {found}"
    lines, missed, before = [], [], digest()
    for fault in FAULTS.values():
        if args.only not in fault.name:
            continue
        found = judged(fault.source(), fault.file)
        told = " | ".join(found) if found else "**none** | "
        lines.append(f"| {fault.file} | {fault.name} | {told} |")
        print(lines[-1], flush=True)
        missed += [] if found else [fault.name]
    if digest() != before:
        raise SystemExit("the sources were edited meanwhile: nothing is written")
    if args.out:
        args.out.write_text(table(lines))
    if missed:
        raise SystemExit(f"{len(missed)} unnoticed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
