"""What the model of speed takes for granted, measured: how long an instruction keeps its pipe, and until its result.

    python -m benchmarks.card.pipes --out pipes.json

intervals: clocks from one instruction to the next in one of an SM's sub-partitions, by four warps with eight chains
each; of a wgmma, what the tensor cores take. latencies: clocks from an instruction to one that needs its result, by one
warp; of a wgmma, to the end of the wait for it; of BAR, from one warpgroup's arrival to the other's way on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.card import cubins
from fpsgen import assets, files, machine

SOURCE = Path(__file__).with_name("pipes.cu")
# `Parameters` of the source.
PARAMETERS = np.dtype([("clocks", "u8"), ("sink", "u8"), ("rounds", "i4"), ("seed", "u4")], align=True)
UNROLL, MMAS, ROUNDS, LAUNCHES = 64, 16, 64, 5


@dataclass(frozen=True)
class Pipe:
    """name: the instruction, as the SASS has it. entry: of the source, without the count of chains behind it. each:
    how many of the instruction a step of the chain takes."""

    name: str
    entry: str
    each: int = 1

    @property
    def tensor(self) -> bool:
        return self.entry.startswith("wgmma")

    @property
    def entries(self) -> dict[str, str]:
        """What is measured by which entry function."""
        many = 16 if self.tensor else 8
        both = {"latencies": f"{self.entry}_1", "intervals": f"{self.entry}_{many}"}
        return {"latencies": both["latencies"]} if self.entry == "barrier" else both

    def in_loop(self, what: str) -> int:
        """How many of the instruction are in the loop of an entry."""
        return (MMAS if what == "intervals" else 1) if self.tensor else UNROLL * self.each

    def warps(self, what: str) -> int:
        """That run an entry."""
        if self.tensor or self.entry == "barrier":
            return 4 if self.tensor else 8
        return 16 if what == "intervals" else 1

    def clocks(self, what: str, all_clocks: int) -> float:
        """For each instruction; those of four warps keep one pipe where its interval is measured."""
        sharing = 4 if what == "intervals" and not self.tensor else 1
        return round(all_clocks / (ROUNDS * self.in_loop(what) * sharing), 3)


def wgmma_script() -> Any:
    """kernels_cuda/device/make_wgmma.py, which lies in no package."""
    path = assets.folder("kernels_cuda") / "device" / "make_wgmma.py"
    spec = importlib.util.spec_from_file_location("make_wgmma", path)
    assert spec
    assert spec.loader
    script = sys.modules["make_wgmma"] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    spec.loader.exec_module(script)
    return script


# N, accumulator and operands, where A is.
TENSORS = (
    *((n, "f32", "e4m3", a) for n in (64, 120, 128, 136) for a in ("ss", "rs")),
    *((n, "f16", "e4m3", "ss") for n in (64, 120, 128)),
    *((n, "s32", "s8", "ss") for n in (64, 128)),
)
PIPES = (
    Pipe("MUFU.EX2", "exp2"),
    Pipe("MUFU.EX2.F16", "exp2_half"),
    Pipe("HFMA2", "half_fma"),
    Pipe("FFMA", "fma"),
    Pipe("F2FP.E4M3", "pack_e4m3", 2),
    Pipe("VHMNMX", "half_max"),
    Pipe("VIMNMX3", "int_max"),
    Pipe("FMNMX", "float_max"),
    Pipe("I2FP", "to_float"),
    Pipe("PRMT", "byte_perm"),
    Pipe("LOP3", "logic"),
    Pipe("SHFL", "shuffle"),
    Pipe("FRND", "ceiling"),
    Pipe("LDS", "load"),
    Pipe("BAR", "barrier", 2),
    *(
        Pipe(f"{'IGMMA' if kind == 's8' else 'QGMMA'}.64x{n}x32.{(kind if kind == 's8' else sums).upper()}"
             f".{a.upper()}", f"wgmma_n{n}_{sums}_{kind}_{a}")
        for n, sums, kind, a in TENSORS
    ),
)  # fmt: skip


def compiled() -> bytes:
    """The source, with a wgmma for each of TENSORS; CompileError where an entry spills, or wgmma is serialised."""
    script = wgmma_script()
    have = {wgmma.name for wgmma in script.WGMMAS}
    made = [script.Wgmma(*one) for one in TENSORS]
    numbers = {"f32": ("float", 2), "f16": ("u32", 4), "s32": ("int", 2)}  # type of a register, columns to a register
    lines = []
    for one in made:
        number, columns = numbers[one.accumulator]
        lines.append(f"{one.a.upper()}({one.name}, {number}, {one.n // columns})\n")
    more = "\n".join(str(one) for one in made if one.name not in have)
    return cubins.compiled(SOURCE, "".join(lines), more_wgmma=more)


def measure(device: str = "cuda") -> dict[str, dict[str, float]]:
    """Clocks on a device: of each entry the least of some launches, the first of which fills caches."""
    import torch

    module = cubins.loaded(compiled())
    found: dict[str, dict[str, float]] = {"intervals": {}, "latencies": {}}
    clocks, sink = (torch.zeros(many, dtype=torch.int64, device=device) for many in (32, 512))
    parameters = np.array((clocks.data_ptr(), sink.data_ptr(), ROUNDS, 1), PARAMETERS)
    for pipe in PIPES:
        for what, entry in pipe.entries.items():
            took = []
            for _ in range(LAUNCHES):
                cubins.call(module.get_function(entry), 1, 32 * pipe.warps(what), parameters)
                took.append(spent(clocks.cpu().numpy().reshape(16, 2)[: pipe.warps(what)]))
            found[what][pipe.name] = pipe.clocks(what, min(took))
    return found


def spent(clocks: np.ndarray) -> int:
    """Clocks from the first warp's begin to the last one's end; int64 [warps, 2]."""
    return int(clocks[:, 1].max() - clocks[:, 0].min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    import torch

    device = torch.device("cuda", torch.cuda.current_device())
    record = {"device": torch.cuda.get_device_name(), "versions": asdict(machine.card(device)), **measure()}
    files.write_json(args.out, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
