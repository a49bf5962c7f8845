"""What the compilers make of the Hopper kernels, and how fast they are by the model: no GPU is needed, or asked.

    pip install --no-deps --target build/nvrtc-13.0 nvidia-cuda-nvrtc==13.0.88
    python -m benchmarks.slots

Every kernel under two NVRTCs: the installed one, and 13.0, which many GPU machines have. Writes slots.json and slots.md
in benchmarks/results/. A test compiles all kernels anew and fails where one has become slower by more than 1 %. The
rows of the first record stay in it as `before`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks.markdown import page
from benchmarks.record import RESULTS
from fpsgen.errors import UsageError
from fpsgen.kernels import cache, disassembly, hazards, listing, nvrtc, pipes, sm90_select, speed
from fpsgen.kernels.cache import Kernel
from fpsgen.kernels.disassembly import Code
from fpsgen.kernels.loops import Way
from fpsgen.kernels.sm90_attention import SLOTS, VARIANTS
from fpsgen.machine import provenance
from fpsgen.tables import Table

OLD = "13.0"
OLD_FOLDER = "FPSGEN_NVRTC_13_0"  # the variable that names a folder with it
INSTALL_OLD = f"pip install --no-deps --target build/nvrtc-{OLD} nvidia-cuda-nvrtc==13.0.88"
COMPILERS = ("newest", OLD)
PLACE = RESULTS / "slots.json"
DENSITIES = {"1": 1.0, "1/6": 1 / 6, "1/10": 1 / 10}
_KEPT = ("commit", "calibration_tflops", "rows", "layers")  # of the first record
_NEVER = 2**20  # tiles: sums that are never promoted, for the calibration


def compiler(name: str) -> contextlib.AbstractContextManager[None]:
    """UsageError, with the command that installs it, where the old one is not there, or another one is."""
    if name == "newest":
        return contextlib.nullcontext()
    within = Path(os.environ.get(OLD_FOLDER) or Path(__file__).parents[1] / f"build/nvrtc-{OLD}")
    found = next(within.rglob("libnvrtc.so.*"), None)
    if not found:
        raise UsageError(f"NVRTC {OLD} is not in {within}", INSTALL_OLD)
    with nvrtc.using(found.parent):
        version = "{}.{}".format(*nvrtc.version())
    if version != OLD:
        raise UsageError(f"NVRTC {OLD} is not in {within}, but {version}", INSTALL_OLD)
    return nvrtc.using(found.parent)


def compiled(kernel: Kernel, changes: dict[str, int] | None = None) -> tuple[dict[str, Code], str]:
    """Its entry functions, and the compiler's log. changes: of the source's parameters, by name."""
    source, headers = cache.sources(kernel.SOURCE)
    return of_text(kernel, source, headers, changes)


def of_text(
    kernel: Kernel, source: str, headers: dict[str, str], changes: dict[str, int] | None = None
) -> tuple[dict[str, Code], str]:
    options = [
        option
        for option in cache.options_of(kernel)
        if not option.startswith(tuple(f"-D{name}=" for name in changes or ()))
    ]
    options += [f"-D{name}={value}" for name, value in (changes or {}).items()]
    cubin, log = nvrtc.compile_cubin(source, headers, options, f"{kernel.SOURCE}.cu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return disassembly.disassembled(path), log


@functools.cache
def compiled_by(compiler_name: str, name: str) -> tuple[dict[str, Code], str, str]:
    """As `compiled`, of a kernel by its name, by a compiler of COMPILERS; and that compiler's version."""
    with compiler(compiler_name):
        return *compiled(listing.KERNELS[name].kernel), "{}.{}".format(*nvrtc.version())


def row(name: str, by: str) -> dict[str, Any]:
    """One kernel under one compiler."""
    functions, log, version = compiled_by(by, name)
    used = cache.resources(log)
    told: dict[str, Any] = {
        "kernel": name,
        "compiler": by,
        "nvrtc": version,
        "registers": {entry: own.registers for entry, own in used.items()},
        "hazards": sum(len(hazards.hazards(code)) for code in functions.values()),
        "spilled_bytes": sum(own.spilled_bytes for own in used.values()),
        "c75": len(re.findall(r"\(C75\d\d\)", log)),
    }
    told["registers"] |= {role.name: role.registers for code in functions.values() for role in hazards.roles(code)}
    return json.loads(json.dumps(told | speed.described(listing.KERNELS[name].kernel, functions, pipes.shipped())))


def layers(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Attention of one layer at 14b 720p with its prologue, from rows of `row`: dense, or with windows, where so many
    neighbours have one list that it makes no difference if the others do not (kernels_cuda/NOTES.md)."""
    by_name = {(one["kernel"], one["compiler"]): one for one in rows}
    found = []
    for (name, by), one in by_name.items():
        if name.startswith("attention"):
            variant = next(one for one in VARIANTS if name.startswith(f"attention-{one}"))
            prologue = by_name[f"prologue-{variant}", by]["dram_bytes"]
            found += [layer(one, prologue, text, l2) for text in DENSITIES for l2 in speed.L2]
    return found


def layer(one: dict[str, Any], prologue: int, density: str, l2: float) -> dict[str, Any]:
    pair = speed.Roofs(one["cycles"], one["query_tile_cycles"], one["l2_bytes"])
    shared = float(one.get("cluster", 1) == 2)  # rows of the first record have none
    made = speed.attention(pair, prologue, DENSITIES[density], l2=l2, shared=shared)
    return {
        "kernel": one["kernel"],
        "compiler": one["compiler"],
        "nvrtc": one["nvrtc"],
        "density": density,
        "l2_tb_s": l2 / 1e12,
        "ms": round(1e3 * (made.kernel + made.prologue), 2),
        "prologue_ms": round(1e3 * made.prologue, 2),
        "ratio": round(made.ratio, 2),
    }


def choices(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What key tiles by content and a summary cost beside the attention that they serve: one layer, density 1/6."""
    by_name = {(one["kernel"], one["compiler"]): one for one in rows}
    fitting = f"select-{sm90_select.fitting(speed.WAN_14B_720P.tiles).TILES}"
    found = []
    for (name, by), one in by_name.items():
        if name.startswith("attention"):
            variant = next(one for one in VARIANTS if name.startswith(f"attention-{one}"))
            plain, more = (by_name[f"prologue-{variant}{own}", by]["dram_bytes"] for own in ("", "-summary"))
            chooser = by_name[fitting, by]["milliseconds"]
            found += [choice(one, more - plain, chooser, l2) for l2 in speed.L2]
    return found


def choice(one: dict[str, Any], prologue: int, chooser: float, l2: float) -> dict[str, Any]:
    """prologue: bytes that it moves for a summary; chooser: ms of fps_select."""
    work, pair = speed.WAN_14B_720P, speed.Roofs(one["cycles"], one["query_tile_cycles"], one["l2_bytes"])
    attention = 1e3 * speed.attention(pair, 0, DENSITIES["1/6"], l2=l2).kernel
    summary_tiles = work.heads * work.tiles * ceil(work.tiles / SLOTS)
    seconds = max(one["summary_cycles"] / speed.CLOCK, one["l2_bytes"] * speed.SMS / l2)
    parts = {
        "choice_ms": chooser,
        "prologue_ms": 1e3 * prologue / speed.DRAM,
        "summary_ms": 1e3 * summary_tiles * seconds / speed.SMS,
    }
    return {
        **{name: one[name] for name in ("kernel", "compiler", "nvrtc")},
        "l2_tb_s": l2 / 1e12,
        "attention_ms": round(attention, 2),
        **{name: round(value, 3) for name, value in parts.items()},
        "share": round(sum(parts.values()) / attention, 4),
    }


def calibration() -> float:
    """TFLOP/s of fp8-fp32 on full tiles of 128 tokens without promotions, at the highest clock, without L2's roof."""
    kernel = VARIANTS["fp8-fp32"]
    functions, _ = compiled(kernel, {"PROMOTE": _NEVER})
    way = Way(functions["fps_attention"], _NEVER, SLOTS)
    return speed.speed_of(way, kernel.key_tile_bytes, pipes.shipped()).tflops(speed.CLOCKS[1], 1e99, SLOTS)


def measure() -> dict[str, Any]:
    rows = [row(name, by) for name in listing.KERNELS for by in COMPILERS]
    return {
        **provenance(["python", "-m", "benchmarks.slots", *sys.argv[1:]]),
        "model": speed.caveat(),
        "pipes": pipes.shipped().source,
        "clock_ghz": speed.CLOCK / 1e9,
        "calibration_tflops": round(calibration()),
        "rows": rows,
        "layers": layers(rows),
        "choices": choices(rows),
    }


def document(record: dict[str, Any]) -> str:
    """slots.md."""
    text = page(
        "The Hopper kernels by the compilers' listings",
        f"""Made without a GPU, by `python -m benchmarks.slots`. Slots, stalls and registers are counted in the listings
        of two versions of NVRTC. Cycles and TFLOP/s are by {record["model"]}.""",
        f"""Slots, pipes and cycles are for a pair of 128x128 tiles on a quarter of an SM; "slow" is with pessimistic
        latencies. TFLOP/s count 120 of 128 tokens on both sides, are for {record["clock_ghz"]:g} GHz, and leave out the
        prologue and the ends of query tiles; the first figure is with 5.6 TB/s from L2, the second with 7, where
        each query tile has its own list. Layers are dense or have windows: there, L2 delivers a key tile once for two
        SMs. The numbers of the model are in fpsgen/kernels/pipes.toml, each with its source.""",
    )
    text += tables(record)
    text += (
        "\n## Key tiles by content, and a summary\n\nOf one layer at 14b 720p, density 1/6, in ms by the model; the "
    )
    text += "share is that of all three in attention alone.\n\n" + choice_table(record["choices"])
    if before := record.get("before"):
        text += f"\n# Before, at {before['commit'][:9]}\n\n" + tables(before)
    return text


def tables(record: dict[str, Any]) -> str:
    text = attention_table(record["rows"])
    text += "\n## One layer at 14b 720p, with its prologue\n\nIn ms, and as a ratio to dense attention in BF16 at "
    text += f"{speed.BF16_TFLOPS} TFLOP/s, by the model; the prologue by its bytes at {speed.DRAM / 1e12:g} TB/s,\n"
    text += "without the time of its instructions (kernels_cuda/NOTES.md).\n\n"
    text += layer_table(record["layers"])
    text += (
        "\n## All other kernels\n\nBytes of DRAM for one layer at 14b 720p, and accesses to global memory by "
        "bits for each thread; NVRTC "
    )
    return text + f"{OLD}.\n\n" + other_table(record["rows"])


_PIPES = {"MUFU": "exponential unit", "ALU": "ALU", "tensor cores": "tensor cores"}


def attention_table(rows: list[dict[str, Any]]) -> str:
    heads = ["kernel", "NVRTC", "slots", *_PIPES, "stalls", "cycles", "slow", "binds", "model: TFLOP/s"]
    heads += ["registers", "hazards, spills, C75"]
    lines = [
        [
            one["kernel"].removeprefix("attention-"),
            one["nvrtc"],
            f"{one['slots']:.0f}",
            *(f"{one['pipes'].get(pipe, 0):.0f}" for pipe in _PIPES.values()),
            *(f"{one[name]:.0f}" for name in ("stalls", "cycles", "slow_cycles")),
            one["binds"],
            " to ".join(map(str, sorted(set(one["tflops"][f"{speed.CLOCK / 1e9:g}"].values())))),
            "{consumer} + {producer}".format(**one["registers"]),
            f"{one['hazards']}, {one['spilled_bytes']}, {one['c75']}",
        ]
        for one in rows
        if "cycles" in one
    ]
    return Table.of_numbers("", heads, ("binds",), lines).markdown()


def layer_table(rows: list[dict[str, Any]]) -> str:
    heads = ["kernel", "NVRTC", *(f"density {text}, {l2 / 1e12:g} TB/s" for text in DENSITIES for l2 in speed.L2)]
    lines: dict[tuple[str, str], list[str]] = {}
    for one in rows:
        cells = lines.setdefault((one["kernel"].removeprefix("attention-"), one["nvrtc"]), [])
        cells.append(f"{one['ms']:.1f} ms, {one['ratio']:.2f}")
    return Table.of_numbers("", heads, ("NVRTC",), ([*key, *cells] for key, cells in lines.items())).markdown()


def choice_table(rows: list[dict[str, Any]]) -> str:
    heads = ["kernel", "NVRTC", "TB/s from L2", "attention", "fps_select", "prologue, more", "summary's tiles", "share"]
    lines = [
        [
            one["kernel"].removeprefix("attention-"),
            one["nvrtc"],
            f"{one['l2_tb_s']:g}",
            *(f"{one[name]:.2f}" for name in ("attention_ms", "choice_ms", "prologue_ms", "summary_ms")),
            f"{100 * one['share']:.1f} %",
        ]
        for one in rows
    ]
    return Table.of_numbers("", heads, ("NVRTC",), lines).markdown()


def other_table(rows: list[dict[str, Any]]) -> str:
    heads = ["kernel", "function", "registers", "GB", "loads", "stores"]
    lines = [
        [
            one["kernel"].removeprefix("prologue-"),
            entry,
            str(one["registers"][entry]),
            f"{part['dram_bytes'] / 1e9:.2f}",
            *(
                ", ".join(f"{count} of {bits}" for bits, count in part["accesses_by_bits"][kind].items())
                for kind in ("LDG", "STG")
            ),
        ]
        for one in rows
        if one["compiler"] == OLD and "unsmoothed" not in one["kernel"]
        for entry, part in one.get("functions", {}).items()
    ]
    return Table.of_numbers("", heads, ("function", "loads", "stores"), lines).markdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.slots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    try:
        for name in COMPILERS:
            compiler(name)  # before the minute that all kernels take
        record = measure()
    except UsageError as missing:
        parser.error(f"{missing}: {missing.hint}")
    old = json.loads(PLACE.read_text(encoding="utf-8")) if PLACE.exists() else {}
    record["before"] = old["before"] if old else {name: record[name] for name in _KEPT}
    PLACE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PLACE.with_suffix(".md").write_text(document(record), encoding="utf-8")


if __name__ == "__main__":
    main()
