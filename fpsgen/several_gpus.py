"""Videos that several processes render together: what they agree on before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from torch import Tensor

from fpsgen.conditioning import Shown
from fpsgen.errors import FpsgenError
from fpsgen.ranks import Ranks
from fpsgen.request import Request, VideoPlan
from fpsgen.wan import parallel
from fpsgen.wan.conditions import Conditions

ALONE = Ranks()


def laid_out(plan: VideoPlan, group: Ranks) -> parallel.Layout:
    """How the processes share a video. UsageError where they cannot."""
    own = parallel.layout(group.world, plan.model.config.num_heads, plan.request.settings.branches)
    parallel.shares(plan.tiles, own.sequence)
    return own


def part_of(plan: VideoPlan, group: Ranks) -> parallel.Parallel | None:
    """This process's part of a video; None where it is alone."""
    return None if group.world == 1 else parallel.parallel(laid_out(plan, group), plan.target.device.type)


def of_first(requests: Sequence[Request], group: Ranks) -> list[Request]:
    """The requests with the seeds that the first process has, which may have chosen them at random."""
    told = group.told("requests", [(one.prompt, one.seed) for one in requests])
    if [prompt for prompt, _ in told] != [one.prompt for one in requests]:
        raise FpsgenError("the processes were not given the same prompts, or do not see the same folder")
    return [replace(one, seed=seed) for one, (_, seed) in zip(requests, told, strict=True)]


def check_done(done: list[int], group: Ranks) -> None:
    """FpsgenError where another process knows of other steps of the videos than the first one. done: how many steps of
    each were found on the disk."""
    if group.told("done", done) != done:
        raise FpsgenError("the processes do not see the same unfinished videos: they need one folder")


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
