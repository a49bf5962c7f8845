"""Write wgmma.cuh: one wrapper for each wgmma instruction that the kernels use.

    python kernels_cuda/device/make_wgmma.py

An instruction names every register of its accumulator: n / 2 per thread in 32 bits, n / 4 for pairs of FP16. Nobody
should type them, nor read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HEAD = """\
// Written by make_wgmma.py. D = A B (+ D): 64 rows of A by N rows of B over 32 bytes along K, by a whole warpgroup.
//
// ss: A and B are in shared memory, given by descriptors. rs: A is in registers, four per thread.
// D of a thread, t = thread % 128, in 32 bits: d[4 j + 2 h + b] is row 16 (t / 32) + (t % 32) / 4 + 8 h and column
// 8 j + 2 (t % 4) + b; in FP16 the pair b = 0, 1 shares register d[2 j + h].
//
//     lanes that hold columns 8 j + 0 … 7 of   row 0, h = 0    0  0  1  1  2  2  3  3
//                                              row 1           4  4  5  5  6  6  7  7
//                                              row 7          28 28 29 29 30 30 31 31
//                                              row 8, h = 1    0  0  1  1  2  2  3  3
//
// A of a thread, in bytes along K: a[i] holds row … + 8 (i % 2), bytes 16 (i / 2) + 4 (t % 4) to + 3.
#pragma once
"""


@dataclass(frozen=True)
class Wgmma:
    """One instruction: N, kind of the accumulator and of the operands, and where A is."""

    n: int
    accumulator: str  # f32, f16 or s32
    operands: str  # e4m3 or s8
    a: str  # ss or rs

    @property
    def name(self) -> str:
        return f"wgmma_n{self.n}_{self.accumulator}_{self.operands}_{self.a}"

    def __str__(self) -> str:
        count = self.n // (4 if self.accumulator == "f16" else 2)
        kind, constraint = {"f32": ("float", "+f"), "f16": ("u32", "+r"), "s32": ("int", "+r")}[self.accumulator]
        inputs = ["u64 a"] if self.a == "ss" else ["u32 a0", "u32 a1", "u32 a2", "u32 a3"]
        passed = ['"l"(a)'] if self.a == "ss" else [f'"r"(a{i})' for i in range(4)]
        first = ", ".join(f"%{count + i}" for i in range(len(inputs)))
        a = first if self.a == "ss" else f"{{{first}}}"
        b, accumulate = count + len(inputs), count + len(inputs) + 1
        signs = (
            "" if self.accumulator == "s32" else ", 1, 1"
        )  # neither operand is negated; integers have no such choice
        registers = ", ".join(f"%{i}" for i in range(count))
        outputs = ", ".join(f'"{constraint}"(d[{i}])' for i in range(count))
        shape = f"m64n{self.n}k32.{self.accumulator}.{self.operands}.{self.operands}"
        return (
            f"DEVICE void {self.name}({kind} (&d)[{count}], {', '.join(inputs)}, u64 b, bool accumulate) {{\n"
            f'  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{accumulate}, 0;\\n"\n'
            f'      "wgmma.mma_async.sync.aligned.{shape} {{{registers}}}, {a}, %{b}, p{signs};\\n}}\\n"\n'
            f"      : {outputs}\n"
            f'      : {", ".join(passed)}, "l"(b), "r"(static_cast<int>(accumulate)));\n'
            f"}}\n"
        )


WGMMAS = (
    Wgmma(120, "f32", "e4m3", "ss"),
    Wgmma(120, "f16", "e4m3", "ss"),
    Wgmma(128, "f32", "e4m3", "ss"),
    Wgmma(128, "f16", "e4m3", "ss"),
    Wgmma(128, "s32", "s8", "ss"),
    Wgmma(128, "f32", "e4m3", "rs"),
    Wgmma(136, "f32", "e4m3", "rs"),
)


def text() -> str:
    return HEAD + "\n" + "\n".join(map(str, WGMMAS))


if __name__ == "__main__":
    Path(__file__).with_name("wgmma.cuh").write_text(text())
