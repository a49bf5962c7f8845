"""The kernels tried: one compiled, both launched and compared with their emulator."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Literal

from fpsgen import files, machine
from fpsgen.attention.plan import AttentionPlan, QKPrecision
from fpsgen.attention.tiles import TileGrid
from fpsgen.doctor.checks import HEAD_DIM, sentence
from fpsgen.kernels import cache, nvrtc

if TYPE_CHECKING:
    import torch

TRIAL_KERNEL = "attention-fp8-fp16"
LARGEST_ERROR = 3e-3  # relative, of the kernel against its emulator, as in the tests: operands differ by a code or two
Outcome = Literal["ok", "skipped", "failed"]


@dataclass(frozen=True)
class TrialCompile:
    """One kernel compiled where it cannot have been before. why: if not ok."""

    kernel: str = TRIAL_KERNEL
    state: Outcome = "ok"
    why: str | None = None
    seconds: float | None = None
    registers: int | None = None


def trial_compile() -> TrialCompile:
    from fpsgen.kernels import listing

    try:
        with files.temporary_folder("doctor") as folder:
            begin = time.perf_counter()
            built = cache.build(listing.KERNELS[TRIAL_KERNEL].kernel, folder)
            seconds = round(time.perf_counter() - begin, 3)
        return TrialCompile(seconds=seconds, registers=built.functions["fps_attention"].registers)
    except nvrtc.NoCompilerError as missing:
        return TrialCompile(state="skipped", why=str(missing))
    except Exception as fault:
        return TrialCompile(state="failed", why=sentence(fault))


@dataclass(frozen=True)
class TrialLaunch:
    """Both kernels on the GPU, against their emulator. why: if not ok; errors: by plan, None for no number.

    They are compiled into the cache, as `fpsgen generate` would.
    """

    state: Outcome = "skipped"
    why: str | None = "the trial could not begin"
    errors: dict[str, float | None] = field(default_factory=dict)


def trial_launch() -> TrialLaunch:
    import torch

    from fpsgen.attention import hopper

    device, plans = machine.best_device(), tiny_plans()
    reasons = [hopper.why_not(device, plan, HEAD_DIM) for plan in plans.values()]
    if why := next(filter(None, reasons), None) if torch.cuda.is_available() else "there is no CUDA GPU":
        return TrialLaunch("skipped", why)
    try:
        errors = {name: relative_error(device, plan) for name, plan in plans.items()}
    except Exception as fault:
        return TrialLaunch("failed", sentence(fault))
    finite = {name: error if isfinite(error) else None for name, error in errors.items()}  # JSON has no NaN
    if wrong := [f"{name} {error:.2g}" for name, error in errors.items() if not error <= LARGEST_ERROR]:
        why = f"results are wrong: relative error {', '.join(wrong)}; rounding explains at most {LARGEST_ERROR:g}"
        return TrialLaunch("failed", why, finite)
    return TrialLaunch("ok", None, finite)


def tiny_plans() -> dict[str, AttentionPlan]:
    """One for each kernel that plans reach, with tiles of all sizes, a window and a dense head."""
    tiles = TileGrid.cut((2, 5, 9), (2, 3, 4))
    windows, heads = (tiles.fit((1, 1, 3)), None), (0, 1)
    kernels: tuple[QKPrecision, ...] = ("fp8", "int8")
    return {qk: AttentionPlan(tiles, windows, heads, qk=qk, pv="fp8") for qk in kernels}


def relative_error(device: torch.device, plan: AttentionPlan) -> float:
    """The error of the hopper backend on `device`, against the emulator of its kernel on the CPU."""
    import torch

    from fpsgen.attention import emulator, hopper
    from fpsgen.attention.qk import QKTransform, prepare

    generator, heads, tokens = torch.Generator().manual_seed(1), len(plan.heads), plan.tiles.tokens
    q, k, v = torch.randn(3, 1, tokens, heads, HEAD_DIM, generator=generator).bfloat16()
    norms = torch.rand(2, heads * HEAD_DIM, generator=generator) + 0.5
    angles = torch.rand(tokens, HEAD_DIM // 2, generator=generator) * 6
    rope = torch.stack([angles.cos(), angles.sin()], -1)
    here, there = (
        QKTransform(norms[0].to(where), norms[1].to(where), 1e-6, rope.to(where)) for where in ("cpu", device)
    )
    with torch.no_grad():
        found = hopper.attention(q.to(device), k.to(device), v.to(device), there, plan).cpu().double()
    given = prepare(q, here.norm_q, here), prepare(k, here.norm_k, here), v
    # With the bits that FP8 sums are known to keep, or with exact ones: whichever a GPU is nearer to.
    variant, every = emulator.VARIANTS[hopper.FASTEST[plan.qk]], (emulator.HOPPER_BITS, None)
    each = [emulator.emulate(*given, plan, variant, accumulator_bits=bits).double() for bits in every]
    return min(float((found - one).norm() / one.norm()) for one in each)
