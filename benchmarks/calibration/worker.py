"""Clips on a core of their own; a module of its own, too, because processes cannot be handed what `__main__` holds."""

from __future__ import annotations

import torch

from fpsgen import assets
from fpsgen.calibrate.budget import Budget
from fpsgen.calibrate.job import Job, defaults
from fpsgen.calibrate.record import Checked
from fpsgen.calibrate.trajectory import Clip, Renderer
from fpsgen.calibrate.verify import Checker
from fpsgen.journal import Journal
from fpsgen.wan.plan import StepPlan
from fpsgen.weights import models
from fpsgen.weights.load import load_text_encoder, load_transformer, load_vae

CPU = torch.device("cpu")

Spec = tuple[str, int]  # prompt, seed


def job_for(level: float) -> Job:
    """What `fpsgen calibrate --model pocket --target-cost LEVEL` runs."""
    model = models.find("pocket")
    effort, prompts = defaults(model.family)
    return Job(model, model.defaults, effort, Budget("cost", level), prompts, 0, "calibrated")


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
    @torch.inference_mode()
    def run(cls, spec: Spec, contenders: list[list[StepPlan]]) -> list[Checked]:
        """One clip with each contender's plans by step."""
        prompt, seed = spec
        clip = Clip(prompt, seed, cls.encoder.encode(prompt).text)
        key = {"benchmark": spec, "weights": cls.transformer.fingerprint(), "torch": torch.__version__}
        journal = Journal(assets.cache("calibration-benchmark"), key)
        tiles, settings = cls.job.tiles, cls.job.settings
        renderer = Renderer(cls.transformer, tiles, settings, cls.negative, CPU, journal, lambda event: None)
        checker = Checker(renderer, [clip], cls.vae, 0)
        return [checker.check(plans)[0] for plans in contenders]
