"""Held-out clips: what the preset does to them before, while and after the model learns, against the dense model as it
was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from fpsgen import assets, metrics
from fpsgen import journal as journals
from fpsgen.errors import UsageError, option
from fpsgen.events import Stage, Watch, finish, notices
from fpsgen.journal import Journal
from fpsgen.metrics import Pair
from fpsgen.presets import BF16, Preset, file, label
from fpsgen.sampling import Denoiser, zero_nonfinite
from fpsgen.seeds import next_seed
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.texts import encode_prompts
from fpsgen.train.record import Check
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights.load import load_transformer, load_vae
from fpsgen.weights.models import Model

_VERSION = 1  # raised where what is kept changes its meaning


def prompts(family: str, count: int, own: Sequence[str] | None, learned: Iterable[str]) -> tuple[str, ...]:
    """So many prompts that the data do not have: of `own` ones, or of those that benches and calibration render.

    UsageError where there are fewer.
    """
    known = {*learned}
    every = own if own is not None else [*assets.prompts("quality", family), *assets.prompts("calibrate", family)]
    found = [prompt for prompt in every if prompt not in known]
    if len(found) < count:
        told = (
            f"{option('checks', count)} needs as many prompts that are not in the training data; there are {len(found)}"
        )
        raise UsageError(told, hint=f"give others with {option('prompts')}, or a smaller {option('checks')}")
    return tuple(found[:count])


class HeldOut:
    """The held-out clips of a run. Making it renders them by the model as it is on disk: dense, and through the preset,
    which is step 0. Both are kept, and found again by the next run with the same model, preset and clips.

    video: what is rendered; seeds count from `seed`. before: the check of step 0.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: Model,
        preset: Preset,
        video: Settings,
        texts: Sequence[str],
        seed: int,
        target: Target,
        watch: Watch,
    ):
        self.video, self.preset, self.prompts = video, preset, texts
        self._model, self._target, self._watch = model, target, watch
        self._seeds = [next_seed(seed, number) for number in range(len(texts))]
        self._plans = preset.steps(model, video)
        self._journal = self._opened(seed)
        through = f"preset{hashlib.sha256(file.text(replace(preset, measured=None)).encode()).hexdigest()[:24]}-"
        self._embedded = self._encode()
        exact, ours = self._rendered({"dense": BF16.steps(model, video), through: self._plans})
        self._exact = exact, self._frames(exact)
        self._begin = self._frames(ours)
        self._latest = self._begin
        self.before = self._compared(0, ours, self._begin)

    def check(self, transformer: WanTransformer, step: int) -> Check:
        """The clips by what the model has become after a step. Every process of a run must call it."""
        self._watch(Stage("check"))
        ours = [self._render(transformer, number, self._plans) for number in range(len(self.prompts))]
        self._latest = self._frames(ours)
        return self._compared(step, ours, self._latest)

    def pairs(self) -> list[Pair]:
        """The frames of the first clips and of the worst at the last check: by the dense model, and through the preset
        before and after."""
        psnrs, baseline = self._psnrs(self._latest), label(BF16.name, self._target.dtype_name)
        before, found = self._psnrs(self._begin), []
        for number, which in metrics.shown_clips(psnrs, baseline):
            for psnr, frames, when in (
                (before, self._begin, "before training"), (psnrs, self._latest, "after training"),
            ):  # fmt: skip
                names = baseline, f"the preset {when}"
                pair = Pair(self.prompts[number], psnr[number], self._exact[1][number], frames[number], names, which)
                found.append(pair)
        return found

    def _opened(self, seed: int) -> Journal:
        cache, checkpoint = assets.cache("training"), self._model.checkpoint
        journals.check(cache)
        weights = str([journals.identity(own) for own in checkpoint.transformer])
        around = journals.surroundings(self._model, weights, self._target)
        video = {"video": asdict(self.video), "prompts": self.prompts, "seed": seed}
        return Journal(cache, {**around, "version": _VERSION, **video})

    def _encode(self) -> list[Tensor]:
        """The embedding of each prompt and, behind them, of the negative one."""
        kept = self._journal.get("texts")
        if kept is None:
            events = encode_prompts(self.prompts, [self.video.negative], self._model, self._target)
            found = finish(events, notices(self._watch))
            kept = self._journal.put("texts", **{str(number): text for number, text in enumerate(found)})
        return [kept[str(number)].to(self._target.device) for number in range(len(kept))]

    def _rendered(self, ways: dict[str, Sequence[StepPlan]]) -> list[list[Tensor]]:
        """The final latents of every clip by the model as it is on disk, for each way to compute the steps."""
        transformer, found = None, []
        for name, plans in ways.items():
            self._watch(Stage("render", "dense clips" if name == "dense" else "clips through the preset"))
            latents = []
            for number in range(len(self.prompts)):
                if (kept := self._journal.get(f"{name}{number}")) is None:
                    if transformer is None:
                        transformer = load_transformer(self._model.checkpoint, self._target.device, self._target.dtype)
                    kept = self._journal.put(f"{name}{number}", latents=self._render(transformer, number, plans))
                latents.append(kept["latents"])
            found.append(latents)
        return found

    @torch.inference_mode()
    def _render(self, transformer: WanTransformer, number: int, plans: Sequence[StepPlan]) -> Tensor:
        """The final latents of a clip, with 0 for what is not finite: a model that is broken is told by its error."""
        texts = [self._embedded[number], self._embedded[-1]][: self.video.branches]
        # Guidance branches one after the other: all processes must run as many forward passes, whatever memory is free.
        denoiser = Denoiser(transformer, self.video, texts, self._target.device, together=False)
        latents = denoiser.noise(self._seeds[number])
        for moment in denoiser.run(latents, plans):
            latents = moment.latents
        return zero_nonfinite(latents).cpu()

    def _frames(self, latents: Sequence[Tensor]) -> list[np.ndarray]:
        """uint8 [frames, height, width, 3] of each clip. The VAE is in memory no longer than that."""
        vae = load_vae(self._model.checkpoint, self._target.device)
        return [np.concatenate([*wan_vae.frames_of(vae, own.to(self._target.device))]) for own in latents]

    def _psnrs(self, frames: Sequence[np.ndarray]) -> list[float]:
        return [metrics.psnr(metrics.mean_square(a, b)) for a, b in zip(frames, self._exact[1], strict=True)]

    def _compared(self, step: int, latents: Sequence[Tensor], frames: Sequence[np.ndarray]) -> Check:
        errors = [metrics.latent_error(a, b) for a, b in zip(latents, self._exact[0], strict=True)]
        return Check.of(step, errors, self._psnrs(frames))
