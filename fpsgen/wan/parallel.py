"""One video on several GPUs: each guidance branch on one half of them, tokens shared out over those of a half.

Tokens are shared out as in DeepSpeed-Ulysses (arXiv 2309.14509). They are in tile order, so that a GPU's rows are one
run of whole tiles. All of a block but self-attention is computed on a GPU's own tokens. Self-attention is computed on a
GPU's own heads and all tokens: q, k, v and the result are exchanged. The norm of q and k goes over all heads, so it and
RoPE come before the exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fpsgen.attention import door
from fpsgen.attention.plan import AttentionPlan, of_heads
from fpsgen.attention.qk import QKTransform, prepared
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import UsageError, option

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


Attend = Callable[..., Tensor]  # self-attention, with the parameters of `door.attend`


@dataclass(frozen=True)
class Layout:
    """How GPUs share one video. branches: 2 where each half of them computes one guidance branch, else 1; sequence: how
    many GPUs share the tokens of a branch; single: of the only pass of a step that computes one branch alone."""

    branches: int
    sequence: int
    single: int

    def __str__(self) -> str:
        told = f"{self._words(self.sequence)} of each {'of 2 guidance branches' if self.branches > 1 else 'pass'}"
        return told if self.single == self.sequence else f"{told}, {self._words(self.single)} of a step with one"

    def _words(self, count: int) -> str:
        return f"{count} GPUs share the tokens" if count > 1 else "1 GPU computes all tokens"


def layout(world: int, heads: int, branches: int) -> Layout:
    """How `world` GPUs share a video of so many guidance branches, by a model of so many heads: halves for guidance
    where they can be, since they exchange next to nothing; a step that computes one branch alone is shared by all, if
    their number divides the heads, else each half computes it. UsageError where heads cannot be shared out evenly."""
    even = world > 0 and heads % world == 0
    if branches > 1 and world % 2 == 0 and heads % (world // 2) == 0:
        return Layout(2, world // 2, world if even else world // 2)
    if even:
        return Layout(1, world, world)
    *some, last = map(str, possible(heads, branches))
    what = f"a model of {heads} heads {'with' if branches > 1 else 'without'} guidance"
    raise UsageError(
        f"{option('gpus', world)}: {what} cannot be shared out evenly over {world} GPUs",
        hint=f"use {', '.join(some)} or {last} of them" if some else f"use {option('gpus', 1)}",
    )


def possible(heads: int, branches: int) -> list[int]:
    """The numbers of GPUs that `layout` takes."""
    even = [number for number in range(1, heads + 1) if heads % number == 0]
    return sorted({*even, *(2 * number for number in even if branches > 1)})


@lru_cache(maxsize=256)
def shares(tiles: TileGrid, count: int) -> tuple[int, ...]:
    """How many rows each of `count` GPUs has: whole tiles, at least one, and as even as these allow. UsageError where
    there are fewer tiles."""
    *begins, total = tiles.offsets.tolist()
    if len(begins) < count:
        told = f"the video has {len(begins)} tiles of tokens, and {count} GPUs would share them"
        raise UsageError(told, hint=f"use fewer {option('gpus')}, or a larger video")
    ends = [0]
    for number in range(1, count):
        least, most = ends[-1] + 1, len(begins) - (count - number)
        ends.append(min(range(least, most + 1), key=lambda tile: abs(begins[tile] - total * number / count)))
    rows = [begins[tile] for tile in ends] + [total]
    return tuple(after - before for before, after in pairwise(rows))


class SequenceParallel:
    """This GPU as number `rank` of `degree` that share the tokens of each pass. group: theirs."""

    def __init__(self, group: ProcessGroup, rank: int, degree: int):
        self._group, self.rank, self.degree = group, rank, degree

    def rows(self, tiles: TileGrid) -> slice:
        """Its rows of all tokens in tile order."""
        counts = shares(tiles, self.degree)
        first = sum(counts[: self.rank])
        return slice(first, first + counts[self.rank])

    def of_own_heads(self, plan: AttentionPlan, heads: int) -> AttentionPlan:
        """What a plan for all heads says of its own."""
        own = heads // self.degree
        return of_heads(plan, self.rank * own, (self.rank + 1) * own)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        qk_transform: QKTransform | None,
        plan: AttentionPlan,
        gate: Tensor | None = None,
    ) -> Tensor:
        """As `door.attend`, of its own tokens: q, k, v, gate and the result [batch, own tokens, heads, head_dim]."""
        counts = shares(plan.tiles, self.degree)
        came = [self._to_heads(x, counts) for x in (v, gate) if x is not None]  # while q and k are made
        if qk_transform is not None:
            q, k = prepared(q, k, v.dtype, qk_transform)
        came += [self._to_heads(x, counts) for x in (q, k)]
        of_v, *of_gate, of_q, of_k = (wait() for wait in came)
        own = self.of_own_heads(plan, v.shape[2])
        return self._to_tokens(door.attend(of_q, of_k, of_v, None, own, *of_gate), counts)

    def gathered(self, x: Tensor, tiles: TileGrid) -> Tensor:
        """All tokens, [batch, tokens, channels], of its own."""
        counts = shares(tiles, self.degree)
        sent = x.transpose(0, 1).repeat(self.degree, 1, 1)
        return self._exchange(sent, [x.shape[1]] * self.degree, counts)().transpose(0, 1)

    def _to_heads(self, x: Tensor, counts: Sequence[int]) -> Callable[[], Tensor]:
        """[batch, own tokens, heads, head_dim] to [batch, tokens, own heads, head_dim], once it is called."""
        sent = x.unflatten(2, (self.degree, -1)).permute(2, 1, 0, 3, 4).flatten(0, 1)
        wait = self._exchange(sent, [x.shape[1]] * self.degree, counts)
        return lambda: wait().transpose(0, 1)

    def _to_tokens(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Back again."""
        own = counts[self.rank]
        came = self._exchange(x.transpose(0, 1), counts, [own] * self.degree)()
        return came.unflatten(0, (self.degree, own)).permute(2, 1, 0, 3, 4).flatten(2, 3)

    def _exchange(self, sent: Tensor, to: Sequence[int], by: Sequence[int]) -> Callable[[], Tensor]:
        """What the others send, once it is called. to, by: how many rows of `sent` go to each; come from each."""
        from torch import distributed

        sent, came = sent.contiguous(), sent.new_empty(sum(by), *sent.shape[1:])
        work = distributed.all_to_all_single(came, sent, [*by], [*to], group=self._group, async_op=True)

        def wait() -> Tensor:
            nonlocal sent  # which has to be there until then
            work.wait()
            del sent
            return came

        return wait


class Parallel:
    """This process's part of a layout. sequence: with whom it shares the tokens of a branch, None where with nobody;
    single: those of a step with one branch; branch: which one it computes where there are two, 0 the conditional one;
    None where all compute both."""

    def __init__(self, own: Layout, device_type: str):
        from torch import distributed
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(device_type, (own.branches, own.sequence), mesh_dim_names=("branch", "sequence"))
        self.layout = own
        self.sequence: SequenceParallel | None = None
        if own.sequence > 1:
            group = mesh.get_group("sequence")
            self.sequence = SequenceParallel(group, mesh.get_local_rank("sequence"), own.sequence)
        self.single = self.sequence
        if own.single > own.sequence:
            everyone = distributed.group.WORLD
            assert everyone is not None
            self.single = SequenceParallel(everyone, distributed.get_rank(), own.single)
        self.branch = mesh.get_local_rank("branch") if own.branches > 1 else None
        self._pair, self._device_type = mesh.get_group("branch"), device_type

    def least(self, number: int) -> int:
        """The least of all processes' numbers."""
        from torch import distributed

        found = torch.tensor(number, device=self._device_type)
        distributed.all_reduce(found, distributed.ReduceOp.MIN)
        return int(found)

    def both(self, velocity: Tensor) -> list[Tensor]:
        """The conditional and the unconditional velocity, of which this process has computed one."""
        from torch import distributed

        found = [torch.empty_like(velocity) for _ in range(2)]
        distributed.all_gather(found, velocity.contiguous(), group=self._pair)
        return found


@cache  # groups are made once
def parallel(own: Layout, device_type: str) -> Parallel:
    """The part of this process, of as many as the layout has; every process has to ask."""
    return Parallel(own, device_type)
