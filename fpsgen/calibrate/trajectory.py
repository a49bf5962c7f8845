"""A model's own trajectory: rendered once, kept step by step, and run again from anywhere with other attention."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from fpsgen.attention.tiles import TileGrid
from fpsgen.events import Done, Watch
from fpsgen.journal import Journal
from fpsgen.sampling import Carried, Denoiser, Look, both_fit, clips_at_once, not_finite, side_by_side
from fpsgen.settings import Settings
from fpsgen.wan import plan as plans
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import WanTransformer

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Clip:
    """A prompt, encoded [1, length, text_dim], and the seed of its noise."""

    prompt: str
    seed: int
    text: Tensor


class Pieces:
    """Velocities of one trajectory (`sampling.Velocities`): those of the first steps, which are known, and those that a
    journal keeps. watch: told of each that the journal had, None where they were counted before."""

    def __init__(self, journal: Journal, name: str, known: Sequence[Tensor], watch: Watch | None):
        self._journal, self._name, self._known, self._watch = journal, name, known, watch

    def get(self, step: int) -> Tensor | None:
        if step < len(self._known):
            return self._known[step]
        if (kept := self._journal.get(f"{self._name}-step{step}")) is None:
            return None
        if self._watch is not None:
            self._watch(Done(1))
        return kept["velocity"]

    def put(self, step: int, velocity: Tensor) -> Tensor:
        return self._journal.put(f"{self._name}-step{step}", velocity=velocity)["velocity"]


@dataclass(eq=False)
class Renderer:
    """The transformer with all that a clip needs but its prompt. watch: told of the forwards of both guidance branches
    that were done, 1 for a whole step. low: the low-noise one of two experts."""

    transformer: WanTransformer
    tiles: TileGrid
    settings: Settings
    negative: Tensor
    device: torch.device
    journal: Journal
    watch: Watch
    low: WanTransformer | None = None
    _latest: threading.local = field(default_factory=threading.local)  # each thread's denoiser

    def __post_init__(self) -> None:
        self._together = self._decided()

    @cached_property
    def dense(self) -> StepPlan:
        return plans.dense(self.tiles, self.transformer.config.num_layers)

    def _decided(self) -> bool:
        """Whether both guidance branches run in one batch. What a run began with, the next one does, where it can:
        the last bits depend on it."""
        kept = self.journal.get("together")
        before = kept is None or bool(kept["together"][0])
        now = before and both_fit(self.transformer, self.settings, self.device)
        if kept is None:
            self.journal.put("together", together=torch.tensor([now]))
        return now

    def denoiser(self, clip: Clip, steps: int) -> Denoiser:
        """The loop of a clip in so many steps; the last one that was asked for is kept."""
        wanted = (clip.prompt, steps)
        if getattr(self._latest, "key", None) != wanted:
            self._latest.__dict__.clear()  # frees the last one first
            settings = replace(self.settings, steps=steps)
            texts = [clip.text, self.negative][: settings.branches]
            of_clip = (settings, texts, self.device, self._together)
            self._latest.denoiser = Denoiser(self.transformer, *of_clip, low=self.low)
            self._latest.key = wanted
        return self._latest.denoiser

    def side_by_side(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`work` of every item by `sampling.side_by_side`; an error in one ends the others at their next step."""
        before = self.watch

        def watched(item: T, watch: Watch) -> R:
            self.watch = watch  # the same for all of them
            return work(item)

        try:
            return side_by_side(watched, items, clips_at_once(self.transformer, self.settings, self.device), before)
        finally:
            self.watch = before

    def velocity(
        self, denoiser: Denoiser, latents: Tensor, step: int, plan: StepPlan, carried: Carried | None = None
    ) -> Tensor:
        """Guided; RenderError where it is not finite. carried: as `Denoiser.velocity` has it."""
        velocity = denoiser.velocity(latents, step, plan, carried)
        if not velocity.isfinite().all():
            raise not_finite(self.transformer.dtype)
        self.watch(Done(1))
        return velocity

    def render(
        self,
        clip: Clip,
        name: str,
        steps: Sequence[StepPlan],
        known: Sequence[Tensor] = (),
        look: Look | None = None,
        again: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """The velocities of all steps, and the final latents.

        name: of its pieces in the journal. steps: what each computes. known: velocities of the first steps, which are
        not computed again. look: as `Denoiser.run` has it. again: the clip was rendered, and its steps counted, before.
        """
        denoiser, carried = self.denoiser(clip, len(steps)), Carried()

        def compute(step: int, latents: Tensor) -> Tensor:
            seen = None if look is None else look(step, latents)
            return self.velocity(denoiser, latents, step, steps[step], carried) if seen is None else seen

        pieces = Pieces(self.journal, name, known, None if again else self.watch)
        velocities, latents = [], denoiser.noise(clip.seed)
        fresh = functools.partial(denoiser.noise, clip.seed)
        for moment in denoiser.run(latents, steps, pieces, compute, fresh, carried):
            velocities.append(moment.velocity.cpu())
            latents = moment.latents
        return velocities, latents

    def replay(self, clip: Clip, velocities: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Each step's number and the latents before it, of a trajectory whose velocities are known."""
        denoiser = self.denoiser(clip, len(velocities))
        latents, known = denoiser.noise(clip.seed), Pieces(self.journal, "", velocities, None)
        yield 0, latents
        fresh = functools.partial(denoiser.noise, clip.seed)
        for moment in denoiser.run(latents, [self.dense] * len(velocities), known, fresh=fresh):
            if moment.step + 1 < len(velocities):
                yield moment.step + 1, moment.latents
