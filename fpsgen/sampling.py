"""The one loop from noise to latents, for videos, calibration, benches and the pocket model's recipe."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from fpsgen import machine, solvers
from fpsgen.errors import RenderError, option
from fpsgen.events import Event, Watch
from fpsgen.settings import Settings
from fpsgen.solvers import FewStepSolver, Solver
from fpsgen.wan.conditions import Conditions
from fpsgen.wan.graphs import Graphs
from fpsgen.wan.parallel import Parallel, SequenceParallel
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import KeyValue, WanTransformer

T = TypeVar("T")
R = TypeVar("R")


class Velocities(Protocol):
    """Velocities that are already known: a run that was stopped continues with them, and a kept one is replayed."""

    def get(self, step: int) -> Tensor | None:
        """The guided velocity of a step; None if it has to be computed."""
        ...

    def put(self, step: int, velocity: Tensor) -> Tensor:
        """Keep a velocity that was computed. Returns what `get` will give from now on."""
        ...


@dataclass(frozen=True)
class Moment:
    """The state after a step. velocity: the guided one; latents: after the step; seconds: how long the step took;
    finite: whether no latent is NaN or infinite."""

    step: int
    velocity: Tensor
    latents: Tensor
    seconds: float
    finite: bool


# Called before a step is computed, with its number and the latents before it. A tensor that it returns is taken as the
# step's velocity; None lets the step run.
Look = Callable[[int, Tensor], Tensor | None]


@dataclass(frozen=True)
class Expert:
    """A transformer, called as it is or as CUDA graphs. contexts: for each batch of texts, the keys and values of its
    layers."""

    velocity: Graphs | WanTransformer
    contexts: list[list[KeyValue]]


@dataclass
class Carried:
    """What steps leave for later ones to use again. velocities: noise levels and guided velocities of the latest steps
    that were computed, two at most; difference: the conditional velocity less the unconditional one, in the latest step
    that computed both; None where its velocity was known without. source: the latents, number and plan of that step.
    """

    velocities: list[tuple[float, Tensor]] = field(default_factory=list)
    difference: Tensor | None = None
    source: tuple[Tensor, int, StepPlan] | None = None


@dataclass
class State:
    """A trajectory before one of its steps: the latents, the solver, and what earlier steps left. Another denoiser, of
    another expert, may go on with it."""

    latents: Tensor
    solver: Solver | FewStepSolver
    carried: Carried
    step: int = 0

    def to(self, device: torch.device) -> None:
        """To a device, with all that later steps use."""
        self.latents = self.latents.to(device)
        if left := self.solver.left:
            self.solver.go_on(self.step, [each.to(device) for each in left])
        own = self.carried
        own.velocities = [(level, each.to(device)) for level, each in own.velocities]
        own.difference = None if own.difference is None else own.difference.to(device)
        if own.source is not None:
            own.source = own.source[0].to(device), *own.source[1:]

    def set_aside(self, steps: int) -> None:
        """To host memory, for other videos need the device's. steps: of the trajectory; after all of them nothing but
        the latents is kept."""
        if self.step == steps:
            self.solver.go_on(0, [])
            self.carried = Carried()
        self.to(torch.device("cpu"))


class Denoiser:
    """A transformer with all that a trajectory needs, except its noise and the plans of its steps.

    texts: [clips, length, text_dim], the prompts' embeddings and, with guidance, the negative prompt's. together:
    whether both guidance branches run in one batch; None: if they fit into free memory. graphs: of the transformer,
    for steps that are repeated. low: the low-noise expert, where both are in memory; else whoever holds the other one
    goes on from its `State`. image: what a model from images is given beside the noisy latents. parallel: this
    process's part, where several render one video; each of them has all latents.
    """

    @torch.inference_mode()
    def __init__(
        self,
        transformer: WanTransformer,
        settings: Settings,
        texts: Sequence[Tensor],
        device: torch.device,
        together: bool | None = None,
        graphs: Graphs | None = None,
        low: WanTransformer | None = None,
        image: Conditions | None = None,
        parallel: Parallel | None = None,
    ):
        self.transformer, self.low, self.settings, self.device = transformer, low, settings, device
        self.parallel = parallel
        if parallel is not None:  # all processes have to do the same, however much memory each of them has
            together = False
        self.together = both_fit(transformer, settings, device) if together is None else together
        if graphs and not graphs.refused:
            at_once = len(texts) if self.together else 1
            if (
                most_branches(transformer, settings, device) < 2 * at_once
            ):  # graphs keep what a pass needs beside others
                graphs.refused = "they need memory for two steps at once, and too little is free"
        given = [torch.cat([*texts])] if self.together else texts
        image = None if image is None else image.to(device)
        self._beside = None if image is None else image.channels
        self._first = None if image is None else image.first
        self._experts = []
        for expert in filter(None, (transformer, low)):
            contexts = [expert.embed_text(text) for text in given]
            if image is not None and image.states is not None:  # not where training's model stands for a transformer
                of_image = expert.embed_image(image.states)
                contexts = [[a + b for a, b in zip(own, of_image, strict=True)] for own in contexts]
            self._experts.append(Expert(graphs if graphs and expert is transformer else expert, contexts))
        self.branches = len(texts)
        solver = settings.new_solver()
        self._timesteps, self._levels = solver.timesteps, solver.sigmas.tolist()

    def noise(self, seed: int, done: int = 0) -> Tensor:
        """The noise that a trajectory begins with, from a seed: float32 [1, 16, T, h, w]; or what it adds after `done`
        steps, by solvers that add noise."""
        channels = self.transformer.config.out_channels
        return solvers.noise(channels, self.settings.latent_shape, seed, done).to(self.device)

    @torch.inference_mode()
    def velocity(self, latents: Tensor, step: int, plan: StepPlan, carried: Carried | None = None) -> Tensor:
        """The guided velocity of `latents` at a step, counted from 0. carried: what earlier steps left, which is
        brought up to date."""
        carried = carried or Carried()
        if plan.compute == "reuse":
            return self._continued(carried.velocities, step)
        if self.branches == 1 or plan.guidance == "off" or self.settings.guidance_at(step) == 1:
            return self._conditional(latents, step, plan)
        if plan.guidance == "reuse":
            # u + g (c - u) = c + (g - 1) (c - u)
            stronger = self.settings.guidance_at(step) - 1
            return self._conditional(latents, step, plan) + stronger * self._difference(carried)
        conditional, unconditional = self._both(latents, step, plan)
        carried.difference = conditional - unconditional
        return solvers.guide(conditional, unconditional, self.settings.guidance_at(step))

    def _continued(self, velocities: Sequence[tuple[float, Tensor]], step: int) -> Tensor:
        """The line through the latest velocities over the noise level, at a step's; with one, that velocity."""
        level, velocity = velocities[-1]
        if len(velocities) == 1:
            return velocity
        old_level, old = velocities[-2]
        return velocity + (velocity - old) * ((self._levels[step] - level) / (level - old_level))

    def _both(self, latents: Tensor, step: int, plan: StepPlan) -> Sequence[Tensor]:
        """The conditional and the unconditional velocity."""
        expert = self._expert(step)
        self._share(step, None if self.parallel is None else self.parallel.sequence)
        if self.parallel is not None and self.parallel.branch is not None:
            own, seen = expert.contexts[self.parallel.branch], self._seen(latents)
            return self.parallel.both(expert.velocity(seen, self._timestep(step, len(seen)), own, plan))
        branches = self.branches // len(expert.contexts)
        batch = self._seen(latents).repeat(branches, 1, 1, 1, 1)
        return [
            velocity
            for context in expert.contexts
            for velocity in expert.velocity(batch, self._timestep(step, len(batch)), context, plan).chunk(branches)
        ]

    def _conditional(self, latents: Tensor, step: int, plan: StepPlan) -> Tensor:
        expert, clips = self._expert(step), len(latents)
        self._share(step, None if self.parallel is None else self.parallel.single)
        context = expert.contexts[0]
        if self.together:
            context = [tuple(each[:clips] for each in layer) for layer in context]
        return expert.velocity(self._seen(latents), self._timestep(step, clips), context, plan)

    def _share(self, step: int, sequence: SequenceParallel | None) -> None:
        """With whom the next pass of a step shares its tokens."""
        self.transformer_at(step).sequence = sequence

    def _timestep(self, step: int, clips: int) -> Tensor:
        """Of each clip; and that of its first latent frame before it, if that is given."""
        timestep = self._timesteps[step].expand(clips)
        return timestep if self._first is None else torch.stack([torch.zeros_like(timestep), timestep], dim=1)

    def _held(self, latents: Tensor) -> Tensor:
        """The latents, with the first frame that is given in the place of theirs."""
        if self._first is None:
            return latents
        return torch.cat([self._first.expand(len(latents), -1, -1, -1, -1), latents[:, :, 1:]], dim=2)

    def _seen(self, latents: Tensor) -> Tensor:
        """What the transformer is given of the latents, with what it is given beside them."""
        if self._beside is None:
            return latents
        return torch.cat([latents, self._beside.expand(len(latents), -1, -1, -1, -1)], dim=1)

    def transformer_at(self, step: int) -> WanTransformer:
        """What computes a step."""
        return self.transformer if self.low is None or step < self.settings.high_steps else self.low

    def _expert(self, step: int) -> Expert:
        return self._experts[0 if step < self.settings.high_steps else -1]

    @torch.inference_mode()
    def where_not_finite(self, latents: Tensor, step: int, plan: StepPlan) -> str:
        """Where the values of a step are first NaN or infinite, in words: its passes are computed again and watched.
        latents: before it."""
        if plan.compute == "reuse":
            return "in the velocities of earlier steps, which it continues"
        transformer, expert = self.transformer_at(step), self._expert(step)
        seen, wrong = list[str](), list[int]()

        def watch(words: str, _: nn.Module, given: Sequence[object], made: object = None) -> None:
            value = given[0] if made is None else made
            if isinstance(value, Tensor) and not value.isfinite().all():
                wrong.append(len(seen))
            seen.append(words)

        with contextlib.ExitStack() as hooks:
            for number, block in enumerate(transformer.layers()):
                called = {"self_attn": "self-attention", "cross_attn": "cross-attention", "ffn": "the FFN"}
                for part, words in called.items():
                    hook = partial(watch, f"in {words} of layer {number}")
                    hooks.callback(getattr(block, part).register_forward_hook(hook).remove)
                before, after = f"before layer {number}", f"in layer {number}"
                hooks.callback(block.register_forward_pre_hook(partial(watch, before)).remove)
                hooks.callback(block.register_forward_hook(partial(watch, after)).remove)
            hooks.callback(transformer.head.register_forward_hook(partial(watch, "after the last layer")).remove)
            batch = self._seen(latents).repeat(self.branches // len(expert.contexts), 1, 1, 1, 1)
            for context in expert.contexts:
                transformer(batch, self._timestep(step, len(batch)), context, plan)
        first = min(wrong, default=len(seen))
        if self.parallel is not None:  # others may have met it earlier, in their tokens
            first = self.parallel.least(first)
        return seen[first] if first < len(seen) else "in no layer when it is computed again"

    def _difference(self, carried: Carried) -> Tensor:
        if carried.difference is None:
            assert carried.source is not None
            conditional, unconditional = self._both(*carried.source)
            carried.difference = conditional - unconditional
        return carried.difference

    def begin(
        self, noise: Tensor, fresh: Callable[[int], Tensor] | None = None, carried: Carried | None = None
    ) -> State:
        """A trajectory before its first step. fresh: what solvers add that add noise, by how many steps are done.
        carried: an empty one that is brought up to date, for a look that computes."""
        solver = self.settings.new_solver(fresh)
        return State(self._held(solver.init_noise_sigma * noise), solver, carried or Carried())

    def run(
        self,
        noise: Tensor,
        plans: Sequence[StepPlan],
        kept: Velocities | None = None,
        look: Look | None = None,
        fresh: Callable[[int], Tensor] | None = None,
        carried: Carried | None = None,
    ) -> Iterator[Moment]:
        """Yields every step from noise to latents, when it is done; see `begin` and `go_on`."""
        return self.go_on(self.begin(noise, fresh, carried), plans, kept, look)

    @torch.inference_mode()
    def go_on(
        self,
        state: State,
        plans: Sequence[StepPlan],
        kept: Velocities | None = None,
        look: Look | None = None,
        end: int | None = None,
    ) -> Iterator[Moment]:
        """Yields every further step of a trajectory, when it is done, and brings its state up to date. plans: one for
        each step, the first ones included; end: before which step it pauses.

        kept: velocities that it has are taken from it, and the others are given to it.
        """
        solver, carried = state.solver, state.carried
        for step, plan in enumerate(plans[:end]):
            if step < state.step:
                continue
            begin, latents = time.perf_counter(), state.latents
            if step == self.settings.high_steps:  # what one expert left says nothing of the other one
                carried.velocities, carried.difference, carried.source = [], None, None
            if plan.guidance == "full" and plan.compute == "full":
                carried.difference, carried.source = None, (latents, step, plan)
            velocity = None if kept is None else kept.get(step)
            if velocity is None:
                velocity = None if look is None else look(step, latents)
                if velocity is None:
                    velocity = self.velocity(latents, step, plan, carried)
                velocity = velocity if kept is None else kept.put(step, velocity)
            velocity = velocity.to(self.device)
            if plan.compute == "full":
                carried.velocities = [*carried.velocities[-1:], (self._levels[step], velocity)]
            latents = self._held(solver.step(velocity, latents))
            finite = bool(latents.isfinite().all())  # waits for the device, too
            state.latents, state.step = latents, step + 1
            yield Moment(step, velocity, latents, time.perf_counter() - begin, finite)


def both_fit(transformer: WanTransformer, settings: Settings, device: torch.device) -> bool:
    """Whether a batch of two guidance branches fits in the memory that is free, by a worst-case estimate."""
    return most_branches(transformer, settings, device) >= 2


def most_branches(transformer: WanTransformer, settings: Settings, device: torch.device) -> int:
    """How many guidance branches at once fit in the memory that is free, by a worst-case estimate."""
    tokens = prod(transformer.config.grid(settings.latent_shape))
    per_token = transformer.config.bytes_per_token(transformer.dtype.itemsize)
    return int(0.8 * machine.free_bytes(device) / (tokens * per_token))


def clips_at_once(transformer: WanTransformer, settings: Settings, device: torch.device) -> int:
    """How many clips `side_by_side` may render at once: on a CPU as many as fit in memory, elsewhere one."""
    return most_branches(transformer, settings, device) // settings.branches if device.type == "cpu" else 1


def side_by_side(work: Callable[[T, Watch], R], items: Sequence[T], most: int, watch: Watch) -> list[R]:
    """`work` of every item, in their order. `most` of them run at once, each on its share of the CPU's threads, because
    products of the pocket model's size leave a second core idle half of the time. An error in one ends the others at
    the next event that they tell the watch which they are given."""
    threads = torch.get_num_threads()
    if (many := min(threads, len(items), most)) < 2:
        return [work(item, watch) for item in items]
    one_at_a_time, stopped = threading.Lock(), threading.Event()

    def guarded(event: Event) -> None:
        with one_at_a_time:
            if stopped.is_set():
                raise RuntimeError("stopped with another that failed")
            watch(event)

    @torch.inference_mode()  # of each thread
    def alone(item: T) -> R:
        torch.set_num_threads(threads // many)
        return work(item, guarded)

    pool = ThreadPoolExecutor(many)
    try:
        futures = [pool.submit(alone, item) for item in items]
        ended, others = wait(futures, return_when=FIRST_EXCEPTION)
        return [future.result() for future in (ended if others else futures)]
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def zero_nonfinite(values: Tensor) -> Tensor:
    """The same values, with 0 in place of those that are NaN or infinite."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def not_finite(dtype: torch.dtype, where: str = "", who: str = "the model") -> RenderError:
    """The error of whoever accepts no NaN or infinite values. where: in the run; who: computed them."""
    hint = None if dtype == torch.float32 else f"try {option('dtype', 'fp32')}"
    return RenderError(f"{who} gave values that are not finite{where}", hint)
