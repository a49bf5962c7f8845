"""Our attention in a diffusers pipeline of Wan's: `attach` puts it there, `detach` takes it out again.

The pipeline stays diffusers': its loop, scheduler, linear layers, cross-attention and VAE. What a layer's
self-attention computes at a noise level is the preset's. Where that is dense and not rounded, diffusers' own processor
runs as before. diffusers keeps tokens in raster order: a layer that needs tile order puts its input into it, and its
output back. That moves two times the hidden states, little beside attention; in one place for all layers it would have
to hold for RoPE, for timesteps per token and for every cache that diffusers may put between two layers.
"""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpsgen.attention import door
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.qk import QKTransform
from fpsgen.attention.tiles import Shape3, TileGrid
from fpsgen.errors import UsageError
from fpsgen.presets import Phase, Preset, shipped
from fpsgen.solvers import TRAIN_TIMESTEPS
from fpsgen.wan import config
from fpsgen.wan.config import WanConfig
from fpsgen.wan.plan import UNROUNDED, StepPlan, distinct
from fpsgen.wan.transformer import orders, rope_in_tile_order
from fpsgen.weights import configs, models

_EXPERTS = ("transformer", "transformer_2")


def attach(pipeline: Any, preset: Preset | str | Path) -> None:
    """Let the self-attention of a diffusers pipeline compute what a preset says, in all of its transformers; `detach`
    takes that back. What was attached before is replaced.

    pipeline: diffusers' WanPipeline, or another that runs a WanTransformer3DModel, such as WanImageToVideoPipeline.
    preset: a grade ("quality", "balanced", "fast"), for whatever size is rendered; a preset's name; the path of its
    file; or a `Preset`. Of a preset, diffusers' own code does not run 8-bit linear layers, nor does it reuse guidance
    or whole steps: a warning names what is ignored.

    UsageError where the pipeline is none of Wan's, or the preset is unknown or for another model; and from the
    pipeline's call where the preset does not fit the video's size.
    """
    transformers = _transformers(pipeline)
    own = _pocket(pipeline)
    shapes = configs.from_diffusers(dict(transformers[0].config))
    family = own.family if own else config.family_of(config.kind_of(shapes, len(transformers)))
    grade = preset if isinstance(preset, str) and preset in shipped.GRADES else None
    if grade is not None:
        shipped.of_grade(grade, family, 832, 480)  # is refused now, if none ships
        found = None
    else:
        found = preset if isinstance(preset, Preset) else shipped.find(str(preset))
        found.check_family(family)
        _warn_of_ignored(found)
    detach(pipeline)
    for transformer in transformers:
        attached = Attached(weakref.ref(pipeline), shapes, family, found, grade, own)
        attached.hook = transformer.register_forward_pre_hook(attached.begin, with_kwargs=True)
        for number, block in enumerate(transformer.blocks):
            block.attn1.set_processor(AttachedProcessor(attached, number, block.attn1.processor))


def detach(pipeline: Any) -> None:
    """Give a pipeline's self-attention back what computed it before `attach`; nothing where nothing is attached."""
    for transformer in _transformers(pipeline):
        for block in transformer.blocks:
            if isinstance(ours := block.attn1.processor, AttachedProcessor):
                block.attn1.set_processor(ours.before)
                ours.attached.hook.remove()


def _transformers(pipeline: Any) -> list[Any]:
    """Those of a pipeline; UsageError where there is none, or one that is not diffusers' for Wan."""
    from diffusers import WanTransformer3DModel

    found = [own for name in _EXPERTS if (own := getattr(pipeline, name, None)) is not None]
    for own in found:
        if not isinstance(own, WanTransformer3DModel):
            told = f"the pipeline's transformer is a {type(own).__name__}, not diffusers' WanTransformer3DModel"
            raise UsageError(told, hint="attach to a WanPipeline or WanImageToVideoPipeline, before torch.compile")
    if not found:
        told = f"a {type(pipeline).__name__} has no transformer of Wan's"
        raise UsageError(told, hint="attach to diffusers' WanPipeline or WanImageToVideoPipeline")
    return found


def _pocket(pipeline: Any) -> models.Model | None:
    """The pocket model, if that is what the pipeline was loaded from: its shapes do not tell."""
    folder = getattr(getattr(pipeline, "config", None), "_name_or_path", None)
    if not folder or not (Path(folder) / "pocket.json").is_file():
        return None
    return models.open_folder(Path(folder), models.POCKET)


def _warn_of_ignored(preset: Preset) -> None:
    each = [own for phase in preset.phases for own in (phase, *phase.layers)]
    ignored = {
        "8-bit linear layers": any(own.linear != UNROUNDED for own in each),
        "guidance that is reused or left out": any(phase.guidance != "full" for phase in preset.phases),
        "steps that are reused": any(phase.compute != "full" for phase in preset.phases),
    }
    if any(ignored.values()):
        told = ", ".join(words for words, there in ignored.items() if there)
        warnings.warn(f"preset {preset.name}: diffusers' pipeline does without its {told}", stacklevel=3)


@dataclass(eq=False)
class Attached:
    """What a preset has the layers of one transformer compute: of each of its calls, the plan.

    pipeline: whose scheduler knows the noise level; family: of the model; preset, grade: one of them, a grade's preset
    depends on the size; own: the pocket model, which has a tile of its own. hook: calls `begin`. step: of the call that
    runs.
    """

    pipeline: weakref.ref[Any]
    shapes: WanConfig
    family: str
    preset: Preset | None
    grade: str | None
    own: models.Model | None
    hook: Any = None
    step: StepPlan | None = None
    _plans: dict[tuple[Shape3, torch.device], tuple[Preset, dict[Phase, StepPlan]]] = field(default_factory=dict)

    @torch.compiler.disable
    def begin(self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before each call of the transformer, with what that is given."""
        given = dict(zip(("hidden_states", "timestep"), args, strict=False)) | kwargs
        latents, timestep = given["hidden_states"], given["timestep"]
        frames, height, width = latents.shape[2:]
        where = (frames, height, width), latents.device
        if where not in self._plans:
            self._plans[where] = self._planned(*where)
        preset, plans = self._plans[where]
        # Tokens of an image that is given have timestep 0 in Wan2.2's 5B; those that are denoised share one.
        self.step = plans[preset.at(noise_level(self.pipeline(), float(timestep.max())))]

    def _planned(self, latent_shape: Shape3, device: torch.device) -> tuple[Preset, dict[Phase, StepPlan]]:
        """The preset at a size, and what its phases compute there; kernels are compiled, key lists made."""
        preset, shapes = self.preset, self.shapes
        if preset is None:
            assert self.grade is not None
            stride = 16 if shapes.time_per_token else 8
            preset = shipped.of_grade(self.grade, self.family, latent_shape[2] * stride, latent_shape[1] * stride)
            _warn_of_ignored(preset)
        tiles = (
            self.own.tiles(latent_shape, preset.tile)
            if self.own
            else TileGrid.cut(shapes.grid(latent_shape), preset.tile)
        )
        plans = preset.plans(tiles, shapes.num_layers, shapes.num_heads)
        ours = [plan for plan in distinct([*plans.values()]) if not _is_theirs(plan)]
        slow = any(door.choose(device, plan, shapes.head_dim).name == "reference" for plan in ours)
        if slow and device.type == "cuda":
            told = f"plain PyTorch runs preset {preset.name}'s attention on this GPU, slower than bf16 may be"
            warnings.warn(f"{told}: `fpsgen doctor` says why", stacklevel=2)
        door.make_ready(device, ours, shapes.num_heads, shapes.head_dim)
        return preset, plans


def noise_level(pipeline: Any, timestep: float) -> float:
    """The noise level (sigma) of a timestep, as the pipeline's scheduler has it: its timesteps may be cut to whole
    numbers. Of one that it does not have, by the flow's definition, 1000 sigma."""
    scheduler = getattr(pipeline, "scheduler", None)
    timesteps, sigmas = (getattr(scheduler, name, None) for name in ("timesteps", "sigmas"))
    if isinstance(timesteps, Tensor) and sigmas is not None and len(sigmas) >= len(timesteps):
        at = (timesteps.float().cpu() == timestep).nonzero()
        if len(at):
            return float(sigmas[int(at[0])])
    return timestep / TRAIN_TIMESTEPS


def _is_theirs(plan: AttentionPlan) -> bool:
    """Whether diffusers' own processor computes a plan: what is dense and not rounded."""
    return plan.is_dense and not plan.is_8bit


class AttachedProcessor:
    """An attention processor of diffusers for one layer's self-attention. before: what stood in its place."""

    def __init__(self, attached: Attached, layer: int, before: Any):
        self.attached, self.layer, self.before = attached, layer, before

    @torch.compiler.disable
    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[batch, tokens, dim] to the same, in raster order."""
        step = self.attached.step
        assert step is not None  # the transformer's hook ran
        plan = step.attention[self.layer]
        tiles, device = plan.tiles, hidden_states.device
        if hidden_states.shape[1] != tiles.tokens:
            told = f"a layer sees {hidden_states.shape[1]} of {prod(tiles.grid)} tokens, and attention needs all"
            raise UsageError(told, hint="attach without diffusers' context parallelism")
        if _is_theirs(plan):
            return self.before(attn, hidden_states, *args, **kwargs)
        norms = attn.norm_q.weight, attn.norm_k.weight
        if any(weight.is_meta for weight in norms):
            told = "the pipeline loads each layer's parts alone (sequential offload), and attention needs its norms"
            raise UsageError(told, hint="use pipe.enable_model_cpu_offload(), or group offload")
        inverse, order = orders(tiles, device)
        x = hidden_states[:, inverse]
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(x).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        q, k, v = (each.unflatten(2, (attn.heads, -1)) for each in (q, k, v))
        rope = rope_in_tile_order(tiles, q.shape[3], device)
        norm_q, norm_k = (weight.to(device, torch.float32) for weight in norms)
        out = door.attend(q, k, v, QKTransform(norm_q, norm_k, attn.norm_q.eps, rope), plan).flatten(2)
        for part in attn.to_out:
            out = part(out)
        return out[:, order]
