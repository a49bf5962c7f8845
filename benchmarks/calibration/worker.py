"""Clips on a core of their own; a module of its own, too, because processes cannot be handed what `__main__` holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console

from fpsgen import assets, metrics
from fpsgen.calibrate.budget import Budget
from fpsgen.calibrate.job import Job, defaults
from fpsgen.calibrate.record import Checked
from fpsgen.calibrate.trajectory import Clip, Renderer
from fpsgen.calibrate.verify import Checker
from fpsgen.journal import Journal
from fpsgen.presets import cost
from fpsgen.wan.config import WAN_14B
from fpsgen.wan.plan import StepPlan
from fpsgen.weights import models
from fpsgen.weights.load import load_text_encoder, load_transformer, load_vae

CPU = torch.device("cpu")

T = TypeVar("T")

Spec = tuple[str, int]  # prompt, seed
Plans = tuple[StepPlan, ...]  # of each step


def job_for(level: float, steps: int | None = None) -> Job:
    """What calibrates attention alone, at a level of its cost, for a video of so many steps."""
    model = models.find("pocket")
    effort, prompts = defaults(model.family)
    linear = cost.of_linear(WAN_14B, cost.STAND_IN_TOKENS)
    budget = Budget("cost", cost.of_video(level, linear))
    settings = replace(model.defaults, steps=steps or model.defaults.steps)
    return Job(model, settings, effort, budget, prompts, 0, "calibrated", frozenset({"attention"}))


class Worker:
    """The pocket model in a process of its own, on one core."""

    @classmethod
    def start(cls) -> None:
        torch.set_num_threads(1)
        cls.job = job_for(1.0)
        checkpoint = cls.job.model.checkpoint
        cls.encoder = load_text_encoder(checkpoint, CPU, torch.bfloat16)
        cls.transformer = load_transformer(checkpoint, CPU, torch.float32)
        cls.vae = load_vae(checkpoint, CPU)
        cls.negative = cls.encoder.encode(cls.job.settings.negative).text

    @classmethod
    def clip(cls, spec: Spec) -> tuple[Clip, Renderer]:
        prompt, seed = spec
        key = {"benchmark": spec, "weights": cls.transformer.fingerprint(), "torch": torch.__version__}
        journal = Journal(assets.cache("calibration-benchmark"), key)
        tiles, settings = cls.job.tiles, cls.job.settings
        renderer = Renderer(cls.transformer, tiles, settings, cls.negative, CPU, journal, lambda event: None)
        return Clip(prompt, seed, cls.encoder.encode(prompt).text), renderer

    @classmethod
    @torch.inference_mode()
    def check(cls, spec: Spec, contenders: list[Plans]) -> list[Checked]:
        """Error and PSNR of one clip with each contender."""
        clip, renderer = cls.clip(spec)
        checker = Checker(renderer, [clip], cls.vae, 0)
        return [checker.check(plans)[0] for plans in contenders]

    @classmethod
    @torch.inference_mode()
    def errors(cls, spec: Spec, contenders: list[Plans]) -> list[float]:
        """The error of one clip's latents with each contender."""
        clip, renderer = cls.clip(spec)
        dense = [renderer.dense] * cls.job.settings.steps
        _, exact = renderer.render(clip, "dense", dense)
        found = []
        for plans in contenders:
            name = f"error-{hashlib.sha256(repr(plans).encode()).hexdigest()[:24]}"
            if (kept := renderer.journal.get(name)) is None:
                _, ours = renderer.render(clip, name, plans)
                error = torch.tensor([metrics.latent_error(ours, exact)], dtype=torch.float64)
                kept = renderer.journal.put(name, error=error)
                renderer.journal.drop(f"{name}-step")
            found.append(float(kept["error"][0]))
        return found

    @classmethod
    @torch.inference_mode()
    def frames(cls, spec: Spec, contenders: list[Plans]) -> list[np.ndarray]:
        """uint8 frames of one clip, BF16's and each contender's."""
        clip, renderer = cls.clip(spec)
        checker = Checker(renderer, [clip], cls.vae, 0)
        for plans in contenders:
            checker.check(plans)
        pairs = [checker.frames(plans, 0) for plans in contenders]
        return [pairs[0][0], *(ours for _, ours in pairs)]


class Pool:
    """Clips side by side, and how many are done."""

    def __init__(self, workers: int, console: Console):
        # Processes of their own: torch's threads do not survive a fork.
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), Worker.start)
        self._console = console

    def run(
        self, title: str, work: Callable[[Spec, list[Plans]], list[T]], specs: list[Spec], contenders: list[Plans]
    ) -> list[list[T]]:
        """By contender, then by clip."""
        found = []
        for number, one in enumerate(self._pool.map(work, specs, [contenders] * len(specs)), 1):
            found.append(one)
            self._console.print(f"{title}: {number} of {len(specs)} clips")
        return [list(own) for own in zip(*found, strict=True)]
