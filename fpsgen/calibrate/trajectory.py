"""A model's own trajectory: rendered once, kept step by step, and run again from anywhere with other attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpsgen import pipeline, solvers
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.calibrate.settings import Video
from fpsgen.errors import RenderError
from fpsgen.journal import Journal
from fpsgen.presets import Plans
from fpsgen.wan.sizes import latent_shape
from fpsgen.wan.transformer import KeyValue, WanTransformer


@dataclass(frozen=True)
class Clip:
    """A prompt, encoded [1, length, text_dim], and the seed of its noise."""

    prompt: str
    seed: int
    text: Tensor


class Renderer:
    """The transformer with all that a clip needs but its prompt. tick: called with the forwards of both guidance
    branches that a step took, 1 for a whole step."""

    def __init__(
        self,
        transformer: WanTransformer,
        tiles: TileGrid,
        video: Video,
        negative: Tensor,
        device: torch.device,
        journal: Journal,
        tick: Callable[[float], None],
    ):
        self.transformer, self.tiles, self.video, self.device = transformer, tiles, video, device
        self.journal, self.tick, self._negative = journal, tick, negative
        self._together = self._fit()
        self._contexts: tuple[str, list[list[KeyValue]]] | None = None

    def _fit(self) -> bool:
        """Whether both guidance branches run in one batch. What a run began with, the next one does, where it can:
        the last bits depend on it."""
        kept = self.journal.get("together")
        before = kept is None or bool(kept["together"][0])
        now = before and pipeline.both_fit(self.transformer, self.tiles.tokens, self.device)
        if kept is None:
            self.journal.put("together", together=torch.tensor([now]))
        return now

    @property
    def dense(self) -> Plans:
        return (AttentionPlan(self.tiles),) * self.transformer.config.num_layers

    def contexts(self, clip: Clip) -> list[list[KeyValue]]:
        """What cross-attention reads, of one clip at a time; as `pipeline.predict` wants it."""
        if self._contexts is None or self._contexts[0] != clip.prompt:
            self._contexts = None  # frees the last one first
            texts = [clip.text] if self.video.guidance == 1 else [clip.text, self._negative]
            batches = [torch.cat(texts)] if self._together else texts
            self._contexts = clip.prompt, [self.transformer.embed_text(batch) for batch in batches]
        return self._contexts[1]

    def new_solver(self, steps: int) -> solvers.Solver:
        return solvers.Solver(steps, self.video.shift, self.video.solver, self.video.grid)

    def noise(self, clip: Clip) -> Tensor:
        shape = latent_shape(self.video.frames, self.video.height, self.video.width)
        return solvers.noise(self.transformer.config.in_channels, shape, clip.seed).to(self.device)

    def velocity(self, clip: Clip, latents: Tensor, timestep: Tensor, plans: Plans) -> Tensor:
        """Guided; RenderError where it is not finite."""
        velocity = pipeline.predict(
            self.transformer, latents, timestep, self.contexts(clip), plans, self.video.guidance
        )
        if not velocity.isfinite().all():
            hint = None if self.transformer.dtype == torch.float32 else "try --dtype fp32"
            raise RenderError("the model gave values that are not finite", hint)
        self.tick(1)
        return velocity

    def render(
        self,
        clip: Clip,
        steps: int,
        name: str,
        plans: Callable[[int], Plans],
        known: Sequence[Tensor] = (),
        look: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
        again: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """The velocities of all steps, and the final latents.

        plans: of a step. name: of its pieces in the journal. known: velocities of the first steps, which are not
        computed again. look: called with the number, latents and timestep of a step that is to be computed; where it
        has computed the velocity, it returns that. again: the clip was rendered, and its steps counted, before.
        """
        solver, latents = self.new_solver(steps), self.noise(clip)
        velocities = []
        for step, timestep in enumerate(solver.timesteps):
            piece = f"{name}-step{step}"
            if step < len(known):
                velocity = known[step]
            elif (kept := self.journal.get(piece)) is not None:
                velocity = kept["velocity"]
                if not again:
                    self.tick(1)
            else:
                seen = look(step, latents, timestep) if look is not None else None
                velocity = self.velocity(clip, latents, timestep, plans(step)) if seen is None else seen
                velocity = self.journal.put(piece, velocity=velocity)["velocity"]
            velocity = velocity.to(self.device)
            latents = solver.step(velocity, latents)
            velocities.append(velocity.cpu())
        return velocities, latents
