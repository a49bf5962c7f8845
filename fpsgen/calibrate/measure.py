"""From a dense model to a table: what every candidate, in every head, layer and phase, does to the final latents.

The estimate has three factors:

    phase       error of the final latents with the probe plan in all layers in the steps of one phase, dense elsewhere
    layer       the share of a layer in that: squared change of the velocity, at a step of the phase, with the probe
                plan in that layer alone, over the sum of the layers'
    local       what a candidate in one head adds to the residual stream, from real q, k and v (`local.errors`), over
                what the probe plan adds in all heads of the layer

Linear layers in 8 bits are probed one layer at a time, as the probe plan is; the squared change of the velocity says
what share of the phase's error they have. What steps reuse is in `reuse`.

Errors of different heads, layers and phases are taken to add up, as those of independent causes do in squares. That
they do not quite is what verification is for. Steps of one phase are not taken to be independent: a phase is probed
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from fpsgen import metrics
from fpsgen.attention.qk import QKTransform, prepare
from fpsgen.calibrate import local, reuse
from fpsgen.calibrate.candidates import LINEAR_PROBES, Candidates, Choice
from fpsgen.calibrate.job import Effort
from fpsgen.calibrate.measurement import Measurement, Reused
from fpsgen.calibrate.trajectory import Clip, Renderer
from fpsgen.events import Done
from fpsgen.sampling import not_finite
from fpsgen.wan.plan import UNROUNDED, Linears, StepPlan, StepSpan
from fpsgen.wan.transformer import Block, SelfAttention, WanTransformer

_TINY = 1e-300  # where nothing is to be divided by 0


@dataclass(frozen=True)
class Measuring:
    """What is measured, piece by piece through the renderer's journal; `measure` runs it all. choose: for what."""

    renderer: Renderer
    candidates: Candidates
    phases: list[StepSpan]
    effort: Effort
    choose: frozenset[Choice] = frozenset({"attention"})

    @cached_property
    def taps(self) -> dict[int, int]:
        """The step of each phase that is looked into, and the phase."""
        return {span.first + (span.steps - 1) // 2: index for index, span in enumerate(self.phases)}

    def measure(self, clips: list[Clip], seed: int) -> Measurement:
        paths = [self._trajectory(clip, f"measure{i}", seed + i) for i, clip in enumerate(clips)]

        def sensitivities(number: int) -> tuple[Tensor, Tensor, Tensor | None, Reused | None]:
            clip, name, (velocities, final, _) = clips[number], f"measure{number}", paths[number]
            change = self._changes(clip, name, velocities, "layer", lambda layer: self._probe([layer]))
            total = change.sum(1, keepdim=True).clamp(min=_TINY)
            ended, of_linear, of_reuse = self._phase_errors(clip, name, velocities, final), None, None
            if linear:
                of_linear = self._linear_changes(clip, name, velocities) / total[..., None]
            if stepwise:
                of_reuse = reuse.measured(self.renderer, clip, name, velocities, self.taps, self._probe())
            return change / total, ended, of_linear, of_reuse

        linear, stepwise = "linear" in self.choose, bool(self.choose & {"guidance", "compute"})
        probed_clips = range(min(self.effort.probed, len(clips)))
        changes, ended, linears, reused = zip(*self.renderer.side_by_side(sensitivities, probed_clips), strict=True)
        found = [errors for _, _, errors in paths]
        if any(own.isnan().any() for own in (*found, *changes, *ended)):
            raise not_finite(self.renderer.transformer.dtype)
        errors, share = (torch.stack(each).mean(0) for each in (found, changes))
        of_phase = torch.stack(ended).mean(0)[:, None]
        probed = of_phase * share
        precision, choice = self.candidates.probe
        of_probe = errors[..., precision, choice].sum(2).clamp(min=_TINY)  # [phases, layers]
        return Measurement(
            errors * (probed / of_probe)[:, :, None, None, None],
            probed,
            of_phase[..., None] * torch.stack(linears).mean(0) if linear else None,
            Reused.mean(reused) if stepwise else None,
        )

    def _trajectory(self, clip: Clip, name: str, seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Dense velocities and final latents, and local errors [phases, layers, heads, precisions, choices]."""
        renderer, found = self.renderer, {}

        def look(step: int, latents: Tensor) -> Tensor | None:
            if step not in self.taps:
                return None
            velocity, errors = self._tapped(clip, latents, step, seed * 1000 + step)
            renderer.journal.put(f"{name}-local{step}", errors=errors)  # ahead of the step's own piece
            found[self.taps[step]] = errors
            renderer.watch(Done(self.effort.look))
            return velocity

        velocities, final = renderer.render(clip, name, [renderer.dense] * self.effort.steps, look=look)
        for step, latents in renderer.replay(clip, velocities):
            if step not in self.taps or self.taps[step] in found:
                continue
            if (kept := renderer.journal.get(f"{name}-local{step}")) is not None:
                found[self.taps[step]] = kept["errors"]
                renderer.watch(Done(self.effort.look))
            else:  # a piece was lost, whose step was not
                look(step, latents)
        return velocities, final, torch.stack([found[phase] for phase in range(len(self.taps))])

    def _tapped(self, clip: Clip, latents: Tensor, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """The velocity at one step, and local errors [layers, heads, precisions, choices]."""
        renderer, rng = self.renderer, torch.Generator().manual_seed(seed % 2**63)
        layers, count = renderer.transformer.config.num_layers, len(self.candidates.tiles.valid)
        picked = [torch.randperm(count, generator=rng)[: self.effort.tiles] for _ in range(layers)]
        sums: list[list[Tensor]] = [[] for _ in range(layers)]

        def see(layer: int, q: Tensor, k: Tensor, v: Tensor, gram: Tensor) -> None:
            sums[layer].append(local.errors(q, k, v, gram, self.candidates, picked[layer]).cpu())

        denoiser = renderer.denoiser(clip, self.effort.steps)
        with tapping(denoiser.transformer_at(step), see):
            velocity = renderer.velocity(denoiser, latents, step, renderer.dense)
        return velocity, torch.stack([torch.stack(own).mean(0).movedim(2, 0) for own in sums])

    def _probe(self, layers: Sequence[int] | None = None) -> StepPlan:
        """The probe plan in some layers, or in all, and dense attention elsewhere."""
        config, plans = self.renderer.transformer.config, list(self.renderer.dense.attention)
        for layer in range(config.num_layers) if layers is None else layers:
            plans[layer] = self.candidates.probe_plan(config.num_heads)
        return StepPlan(tuple(plans))

    def _linear_changes(self, clip: Clip, name: str, velocities: list[Tensor]) -> Tensor:
        """float64 [phases, layers, linears], as `_changes`, by each of `LINEARS`."""
        layers, dense = range(self.renderer.transformer.config.num_layers), self.renderer.dense.attention

        def changes(kind: str, probe: Linears) -> Tensor:
            def of_layer(layer: int) -> StepPlan:
                return StepPlan(dense, tuple(probe if own == layer else UNROUNDED for own in layers))

            return self._changes(clip, name, velocities, kind, of_layer)

        ffn, attention = (changes(*each) for each in zip(("ffn", "attention"), LINEAR_PROBES, strict=True))
        return torch.stack([torch.zeros_like(ffn), ffn, attention, ffn + attention], 2)

    def _changes(
        self, clip: Clip, name: str, velocities: list[Tensor], kind: str, of_layer: Callable[[int], StepPlan]
    ) -> Tensor:
        """float64 [phases, layers]: squared change of the guided velocity by the plan that is for one layer. What was
        not probed is interpolated between layers, in logarithms."""
        renderer, effort, layers = self.renderer, self.effort, self.renderer.transformer.config.num_layers
        probed = sorted({round(i * (layers - 1) / max(1, effort.layers - 1)) for i in range(effort.layers)})
        changes = torch.zeros(len(self.taps), layers, dtype=torch.float64)
        denoiser = renderer.denoiser(clip, effort.steps)
        for step, latents in renderer.replay(clip, velocities):
            for layer in probed if step in self.taps else ():
                piece = f"{name}-{kind}{layer}-{step}"
                if (kept := renderer.journal.get(piece)) is None:
                    velocity = renderer.velocity(denoiser, latents, step, of_layer(layer)).cpu()
                    change = (velocity - velocities[step]).double().square().sum()
                    kept = renderer.journal.put(piece, change=change.reshape(1))
                else:
                    renderer.watch(Done(1))
                changes[self.taps[step], layer] = kept["change"][0]
        return _between(changes, probed)

    def _phase_errors(self, clip: Clip, name: str, velocities: list[Tensor], final: Tensor) -> Tensor:
        """float64 [phases]: error of the final latents with the probe plan in all layers in all steps of the phase."""
        renderer, probe, found = self.renderer, self._probe(), []
        for index, span in enumerate(self.phases):
            steps = [probe if span.first <= step <= span.last else renderer.dense for step in range(len(velocities))]
            piece = f"{name}-phase{index}"
            if (kept := renderer.journal.get(piece)) is None:
                _, ended = renderer.render(clip, piece, steps, velocities[: span.first])
                error = torch.tensor([metrics.latent_error(ended, final)], dtype=torch.float64)
                kept = renderer.journal.put(piece, error=error)
                renderer.journal.drop(f"{piece}-step")
            else:
                renderer.watch(Done(len(velocities) - span.first))
            found.append(kept["error"])
        return torch.cat(found)


def _between(values: Tensor, known: list[int]) -> Tensor:
    """Columns that are not `known` from those beside them, linear in the logarithm."""
    logs = values.clamp(min=_TINY).log()
    for left, right in pairwise(known):
        for column in range(left + 1, right):
            share = (column - left) / (right - left)
            logs[:, column] = (1 - share) * logs[:, left] + share * logs[:, right]
    return logs.exp()


@contextmanager
def tapping(transformer: WanTransformer, see: Callable[[int, Tensor, Tensor, Tensor, Tensor], None]) -> Iterator[None]:
    """While inside, `see` gets each self-attention's number, q, k and v as attention gets them, and the weight of its
    output, by head: float32 [heads, head_dim, head_dim]."""
    handles = []
    for number, block in enumerate(transformer.layers()):
        handles += _tap(block, number, see)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tap(
    block: Block, number: int, see: Callable[[int, Tensor, Tensor, Tensor, Tensor], None]
) -> list[torch.utils.hooks.RemovableHandle]:
    gates: list[Tensor] = []
    own: SelfAttention = block.self_attn

    def enter(_: nn.Module, given: tuple) -> None:
        modulation = given[1]
        gates.clear()
        gates.append((block.modulation + modulation).chunk(6, dim=1)[2][0, 0])  # by time, so alike in a batch

    def look(_: nn.Module, given: tuple) -> None:
        x, rope = given[:2]
        transform = QKTransform(own.norm_q.weight, own.norm_k.weight, own.eps, rope)
        v = own.split(own.v(x))
        q = prepare(own.split(own.q(x)), own.norm_q.weight, transform).to(v.dtype)
        k = prepare(own.split(own.k(x)), own.norm_k.weight, transform).to(v.dtype)
        weight = own.o.matrix().float().unflatten(1, (own.heads, -1))  # [dim, heads, head_dim]
        see(number, q, k, v, torch.einsum("ohd,o,ohe->hde", weight, gates[0].square(), weight))

    return [block.register_forward_pre_hook(enter), own.register_forward_pre_hook(look)]
