"""Host side of `sm90_attention.cu`: its compile-time parameters, by the names that the source has for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from fpsgen.jit import cache

_SCORES = {"FP32": 0, "FP16": 1, "INT32": 2}


@dataclass(frozen=True)
class AttentionKernel:
    """One variant of the kernel; `fpsgen.attention.emulator.VARIANTS` says what each computes.

    SCORES: what holds q kᵀ. SYNTHESISE: half of the exponentials without the exponential unit. SUM_CODES: P is summed
    by the tensor cores. PROMOTE: key tiles from one float32 sum to the next. RAGGED: tiles may have fewer than 128
    tokens. STAGES: key tiles in flight; four fill shared memory.

    ValueError, with the reason, for a combination that is not one of the variants.
    """

    SCORES: Literal["FP32", "FP16", "INT32"]
    SYNTHESISE: bool
    SUM_CODES: bool
    PROMOTE: int
    RAGGED: bool = True
    STAGES: int = 4

    def __post_init__(self) -> None:
        if self.SCORES not in _SCORES:
            raise ValueError(f"SCORES = {self.SCORES!r}: scores are FP32, FP16 or INT32")
        if not 2 <= self.STAGES <= 4:
            raise ValueError(f"STAGES = {self.STAGES}: 2 are needed to overlap, and 5 do not fit in shared memory")
        reason = self._not_fp32() if self.SCORES == "FP32" else self._not_short()
        if reason:
            raise ValueError(f"SCORES = {self.SCORES}: {reason}")

    def _not_fp32(self) -> str | None:
        if self.SYNTHESISE or self.SUM_CODES:
            return "they leave no registers for SYNTHESISE, nor for the four columns of SUM_CODES"
        return None if self.PROMOTE == 1 else f"PROMOTE = {self.PROMOTE}; the emulator and the error table have 1"

    def _not_short(self) -> str | None:
        if not self.SYNTHESISE:
            return "without SYNTHESISE the exponential unit binds, and nothing is gained over FP32"
        if not self.SUM_CODES:
            return "SYNTHESISE knows P by its codes alone, and needs SUM_CODES"
        return None if self.PROMOTE == 4 else f"PROMOTE = {self.PROMOTE}; the emulator and the error table have 4"

    @property
    def defines(self) -> dict[str, int]:
        return {name: _SCORES[value] if name == "SCORES" else int(value) for name, value in asdict(self).items()}

    def build(self) -> cache.Built:
        """The compiled kernel; see `cache.build`."""
        return cache.build("sm90_attention", self.defines)


# By the names of `fpsgen.attention.emulator.VARIANTS`.
VARIANTS = {
    "A": AttentionKernel("FP32", SYNTHESISE=False, SUM_CODES=False, PROMOTE=1),
    "C": AttentionKernel("FP16", SYNTHESISE=True, SUM_CODES=True, PROMOTE=4),
    "E": AttentionKernel("INT32", SYNTHESISE=True, SUM_CODES=True, PROMOTE=4),
}
