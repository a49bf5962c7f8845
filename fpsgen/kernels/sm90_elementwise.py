"""Host side of `sm90_elementwise.cu`: its compile-time parameter, by the name that the source has for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fpsgen.kernels.sm90_prologue import Traffic

# `Parameters` of the source, which says what each is; pointers, then numbers.
PARAMETERS = np.dtype(
    [
        *((name, np.uint64) for name in ("x", "y", "gate", "factor", "addend", "sum", "out", "scale")),
        *((name, np.int32) for name in ("tokens", "channels", "gate_stride", "factor_stride", "addend_stride")),
        *((name, np.float32) for name in ("base", "eps")),
    ],
    align=True,
)

# A row waits in the shared memory of its block: in float32 where it is normed, two of them, else in bfloat16.
MOST_NORMED, MOST_ROUNDED = 5120, 20480


@dataclass(frozen=True)
class ElementwiseKernel:
    """What a block of the transformer does between its products. FORMAT: of their input, 0 bfloat16, 1 E4M3, 2 INT8.

    Its entry functions: `fps_norm`, for a block for each TOGETHER rows of a batch entry; `fps_residual`, as many, in
    bfloat16; in 8 bits `fps_round` and `fps_gelu`, a block for each row.
    """

    SOURCE: ClassVar[str] = "sm90_elementwise"
    architecture: ClassVar[str] = "sm_90a"
    THREADS: ClassVar[int] = 256
    TOGETHER: ClassVar[int] = 2
    shared_bytes: ClassVar[int] = 0  # less than 48 KB, and static

    FORMAT: int

    @property
    def defines(self) -> dict[str, int]:
        return {"FORMAT": self.FORMAT}


# By the precision of the product that reads what they write.
VARIANTS = {
    "16bit": ElementwiseKernel(0),
    "fp8": ElementwiseKernel(1),
    "int8": ElementwiseKernel(2),
}


def traffic(kernel: ElementwiseKernel, rows: int, channels: int, wide: int, adds: bool = True) -> dict[str, Traffic]:
    """By entry function, bytes that a launch reads from device memory, and writes to it. wide: channels of rows that
    fps_gelu rounds. adds: whether fps_norm adds y.

    Gates, factors and addends, which all rows share, are too few to count.
    """
    numbers, scales = rows * channels, 4 * rows
    added = Traffic(2 * numbers, 4 * numbers) if adds else Traffic(0, 0)
    out = numbers + scales if kernel.FORMAT else 2 * numbers
    moved = {"fps_norm": Traffic(4 * numbers + added.read, out + added.written)}
    if not kernel.FORMAT:
        return moved | {"fps_residual": Traffic(6 * numbers, 4 * numbers)}
    each = {"fps_round": numbers, "fps_gelu": rows * wide}
    return moved | {entry: Traffic(2 * own, own + scales) for entry, own in each.items()}
