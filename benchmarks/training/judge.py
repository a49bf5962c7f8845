"""Held-out clips of the base model and of trained ones; a module of its own, because processes cannot be handed what
`__main__` holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.training.page import DENSE
from benchmarks.training.runs import preset
from fpsgen import metrics
from fpsgen.journal import Journal
from fpsgen.pocket.judge import load_network
from fpsgen.pocket.words import Combination
from fpsgen.presets import BF16, Preset
from fpsgen.sampling import Denoiser
from fpsgen.settings import Settings
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import lora, models
from fpsgen.weights.load import load_text_encoder, load_transformer, load_vae
from recipes.pocket.scorer import make_templates

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Contender:
    """plan: a name of `runs.PLANS`, None for dense attention. folder: where its training's result lies, None for the
    base model."""

    column: str
    plan: str | None = None
    folder: Path | None = None

    @property
    def preset(self) -> Preset:
        return preset(self.plan) if self.plan else BF16


_DENSE = Contender(DENSE)


@dataclass(frozen=True)
class Clip:
    prompt: str
    seed: int
    label: Combination


@dataclass(frozen=True)
class Found:
    """error: 1 - cosine of the final latents; apart: mean square of the frames' differences, both against dense
    attention; network, templates: whether a judge finds subject, motion and scene."""

    error: float
    apart: float
    network: bool
    templates: bool


class Worker:
    """The pocket models in a process of their own, on one core."""

    @classmethod
    def start(cls, work: Path) -> None:
        """work: the folder where clips are kept."""
        torch.set_num_threads(1)
        cls.kept = work / "clips"
        cls.base = models.find("pocket")
        checkpoint = cls.base.checkpoint
        cls.encoder, cls.vae = load_text_encoder(checkpoint, CPU, torch.bfloat16), load_vae(checkpoint, CPU)
        cls.network, cls.templates = load_network(), make_templates()
        cls.transformers: dict[Path | None, WanTransformer] = {}
        cls.exact: dict[Clip, np.ndarray] = {}

    @classmethod
    def check(cls, clip: Clip, contenders: list[Contender]) -> list[Found]:
        """What each contender makes of a clip."""
        return [cls._check(clip, one) for one in contenders]

    @classmethod
    def frames(cls, clip: Clip, contender: Contender) -> np.ndarray:
        """uint8 [frames, height, width, 3]; those of dense attention, which all are compared with, are decoded once."""
        if contender == _DENSE and clip in cls.exact:
            return cls.exact[clip]
        frames = np.concatenate(list(wan_vae.frames_of(cls.vae, cls._latents(clip, contender))))
        if contender == _DENSE:
            cls.exact = {clip: frames}  # no other clip comes between
        return frames

    @classmethod
    def _check(cls, clip: Clip, one: Contender) -> Found:
        journal, name = cls._journal(clip, one), "found"
        if (kept := journal.get(name)) is None:
            exact, ours = (cls._latents(clip, who) for who in (_DENSE, one))
            frames, exact_frames = cls.frames(clip, one), cls.frames(clip, _DENSE)
            apart = metrics.mean_square(frames, exact_frames)
            shown = [judge.classify(frames) == clip.label for judge in (cls.network, cls.templates)]
            told = [metrics.latent_error(ours, exact), apart, *shown]
            kept = journal.put(name, found=torch.tensor(told, dtype=torch.float64))
        error, apart, network, templates = kept["found"].tolist()
        return Found(error, apart, bool(network), bool(templates))

    @classmethod
    @torch.inference_mode()
    def _latents(cls, clip: Clip, one: Contender) -> torch.Tensor:
        journal = cls._journal(clip, one)
        if (kept := journal.get("latents")) is None:
            settings: Settings = cls.base.defaults
            texts = [cls.encoder.encode(text).text for text in (clip.prompt, settings.negative)]
            denoiser = Denoiser(cls._transformer(one.folder), settings, texts, CPU, together=True)
            latents = denoiser.noise(clip.seed)
            for moment in denoiser.run(latents, one.preset.steps(cls.base, settings)):
                latents = moment.latents
            kept = journal.put("latents", latents=latents)
        return kept["latents"]

    @classmethod
    def _transformer(cls, folder: Path | None) -> WanTransformer:
        if folder not in cls.transformers:
            checkpoint = cls.base.checkpoint
            if folder is not None and (folder / "model").exists():
                checkpoint = models.find(str(folder / "model")).checkpoint
            elif folder is not None:
                checkpoint = replace(checkpoint, loras=(lora.find(str(folder / "lora.safetensors")),))
            cls.transformers[folder] = load_transformer(checkpoint, CPU, torch.float32)
        return cls.transformers[folder]

    @classmethod
    def _journal(cls, clip: Clip, one: Contender) -> Journal:
        key = {
            "clip": [clip.prompt, clip.seed], "plan": repr(one.preset),
            "weights": cls._transformer(one.folder).fingerprint(), "torch": torch.__version__,
        }  # fmt: skip
        return Journal(cls.kept, key)
