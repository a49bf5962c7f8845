"""Before the first step: what the user is told of a video's plan, and the kernels that are compiled for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from fpsgen.attention import door
from fpsgen.attention.door import Choice
from fpsgen.errors import option
from fpsgen.events import Notice
from fpsgen.presets import file
from fpsgen.request import VideoPlan
from fpsgen.timing import Timings
from fpsgen.wan import elementwise
from fpsgen.wan.parallel import Parallel
from fpsgen.wan.plan import distinct


def notices(plan: VideoPlan) -> Iterator[Notice]:
    """Which plan runs in which steps and layers, on which backend, and why on no other."""
    slow = ["attention"] if any(one.name == "reference" for one in plan.backends.values()) else []
    slow += ["linear layers"] if any(one.refused for one in plan.kernels.values()) else []
    if slow and plan.target.device.type == "cuda":
        told = f"plain PyTorch runs this preset's {' and '.join(slow)} here"
        yield Notice(f"{told}, which may take longer than {option('preset', 'bf16')}")
    first = 1
    for step, alike in groupby(plan.steps):
        last = first + sum(1 for _ in alike) - 1
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        linear = [own for _, own in step.layers]
        for attention in dict.fromkeys(step.attention):
            where, choice = _where(steps, step.attention, attention), plan.backends[attention]
            yield Notice(f"{where}: {attention}, {_by(choice)}", detail=True)
        for own in dict.fromkeys(linear):
            by = [_by(plan.kernels[kind]) for kind in dict.fromkeys((own.ffn, own.attention)) if kind != "16bit"]
            if by:
                yield Notice(f"{_where(steps, linear, own)}: linear layers {own}, {', '.join(by)}", detail=True)
        first = last + 1


def _where(steps: str, layers: Sequence[object], alike: object) -> str:
    """Steps, and which of the layers are `alike`, if not all of them."""
    numbers = [number for number, each in enumerate(layers) if each == alike]
    some = f", layer{'s' if len(numbers) > 1 else ''} {file.ranges(numbers)}"
    return steps + (some if len(numbers) < len(layers) else "")


def _by(choice: Choice) -> str:
    refused = "".join(f"; not {door.display_name(name)}: {reason}" for name, reason in choice.refused)
    return f"by {door.display_name(choice.name)}{refused}"


def make_ready(plan: VideoPlan, timings: Timings, parallel: Parallel | None = None) -> Iterator[Notice]:
    """Compile the kernels that the steps launch, and bring all key lists to the device, so that no step begins with a
    wait; what was compiled, and where the cache cannot keep it. parallel: this process's part of the heads."""
    config = plan.model.config
    ways = [None] if parallel is None else dict.fromkeys((parallel.sequence, parallel.single))
    with timings.stage("compile"):
        built = []
        for sequence in ways:
            attention, heads = distinct(plan.steps), config.num_heads
            if sequence is not None:
                attention = [sequence.of_own_heads(each, heads) for each in attention]
                heads //= sequence.degree
            built += door.make_ready(plan.target.device, attention, heads, config.head_dim)
        built += elementwise.make_ready(plan.target.device, plan.target.dtype, list(plan.kernels))
    if fresh := sorted({kernel.name for kernel in built if kernel.fresh and not kernel.note}):
        yield Notice(
            f"compiled {', '.join(fresh)}, which are kept for later runs in {built[0].cubin.parent.parent}", detail=True
        )
    for note in sorted({kernel.note for kernel in built if kernel.note}):
        yield Notice(note)
