"""Videos that several processes render together: what they agree on before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod

from torch import Tensor

from fpsgen.conditioning import Shown
from fpsgen.errors import FpsgenError, option
from fpsgen.printable import readable
from fpsgen.ranks import Ranks
from fpsgen.request import Request, VideoPlan
from fpsgen.wan import parallel
from fpsgen.wan.conditions import Conditions

ALONE = Ranks()
# Bytes that a GPU is assumed to send in a second: two thirds of what NVLink 4 has in each direction, 450 GB/s.
LINK = 300e9


@dataclass(frozen=True)
class Expected:
    """What GPUs that share a video exchange, and how much faster they are than one, by a model. sent: bytes that each
    of them sends in a step that computes both guidance branches, or the only one; speedup: of such a step."""

    layout: parallel.Layout
    sent: int
    speedup: float

    def __str__(self) -> str:
        told = f"{self.speedup:.3g} times as fast as one by a model, which assumes NVLink at {int(LINK / 1e9)} GB/s"
        return f"{told_of(self.layout, self.sent)}; {told}"


def expected(plan: VideoPlan, gpus: int, seconds: float) -> Expected:
    """Of a video on so many GPUs. seconds: that one GPU computes a step, both branches if there are two.

    The model: a GPU computes its branches of the largest share of the tokens, and waits for all that it sends.
    UsageError as `laid_out`.
    """
    own = laid_out(plan, Ranks(0, gpus))
    largest, bytes_sent = max(parallel.shares(plan.tiles, own.sequence)), sent(plan, own)
    shared = seconds * largest / plan.tiles.tokens / own.branches + bytes_sent / LINK
    return Expected(own, bytes_sent, seconds / shared)


def sent(plan: VideoPlan, own: parallel.Layout) -> int:
    """Bytes that the GPU with most tokens sends in a step that computes all guidance branches: q, k, v, the gate and
    the result of each layer but for its own part, then its patches to each other GPU, and its branch's velocity."""
    config, tokens = plan.model.config, plan.tiles.tokens
    largest, others = max(parallel.shares(plan.tiles, own.sequence)), own.sequence - 1
    patch = 4 * config.PATCH[1] * config.PATCH[2] * config.out_channels
    in_layers = config.num_layers * (4 + config.gated) * config.dim * plan.target.dtype.itemsize
    passes = plan.request.settings.branches // own.branches
    return passes * largest * others * (in_layers // own.sequence + patch) + (own.branches - 1) * tokens * patch


def told_of(own: parallel.Layout, bytes_sent: int) -> str:
    return f"{own}; each sends {readable(bytes_sent)} in a step"


def laid_out(plan: VideoPlan, group: Ranks) -> parallel.Layout:
    """How the processes share a video. UsageError where they cannot."""
    own = parallel.layout(group.world, plan.model.config.num_heads, plan.request.settings.branches)
    parallel.shares(plan.tiles, own.sequence)
    return own if own.single <= prod(plan.tiles.counts) else replace(own, single=own.sequence)


def part_of(plan: VideoPlan, group: Ranks) -> parallel.Parallel | None:
    """This process's part of a video; None where it is alone."""
    return None if group.world == 1 else parallel.parallel(laid_out(plan, group), plan.target.device.type)


def of_first(requests: Sequence[Request], group: Ranks) -> list[Request]:
    """The requests with the seeds that the first process has, which may have chosen them at random."""
    told = group.told("requests", [(one.prompt, one.seed) for one in requests])
    if [prompt for prompt, _ in told] != [one.prompt for one in requests]:
        told = "the processes were not given the same prompts, or do not see the same folder"
        raise FpsgenError(told, hint="give each of them the same command, and a folder that all machines share")
    return [replace(one, seed=seed) for one, (_, seed) in zip(requests, told, strict=True)]


def check_done(done: list[int], group: Ranks) -> None:
    """FpsgenError where another process knows of other steps of the videos than the first one. done: how many steps of
    each were found on the disk."""
    if group.told("done", done) != done:
        told = "the processes do not see the same unfinished videos: they need one folder"
        raise FpsgenError(told, hint=f"choose a folder that all machines share with {option('output')}")


def handed(
    group: Ranks,
    plans: Sequence[VideoPlan],
    embedded: Sequence[Sequence[Tensor]],
    shown: Iterable[Shown],
    seen: Mapping[Shown, Conditions],
) -> tuple[list[Sequence[Tensor]], dict[Shown, Conditions]]:
    """What the first process has made of texts and images, in all of them."""
    came = iter(group.handed("texts", [text for own in embedded for text in own]))
    texts = [[text for text in islice(came, plan.request.settings.branches) if text is not None] for plan in plans]
    beside = [each for own in seen.values() for each in (own.channels, own.states, own.first)]
    parts = iter(group.handed("images", beside))
    return [*texts], {each: Conditions(*islice(parts, 3)) for each in shown}
