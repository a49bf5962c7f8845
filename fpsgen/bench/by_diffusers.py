"""diffusers' WanPipeline as a contender: the same checkpoint, prompt, noise and noise levels."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpsgen import __version__, machine, solvers
from fpsgen.bench.contenders import VideoContender
from fpsgen.bench.record import ContenderRecord
from fpsgen.errors import option
from fpsgen.events import Denoised, Event, Frames, Stage, Step
from fpsgen.pocket import reading
from fpsgen.request import VideoPlan
from fpsgen.settings import Settings
from fpsgen.timing import Timings
from fpsgen.video import VideoWriter
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.plan import StepPlan
from fpsgen.weights.kinds import FLOATS
from fpsgen.weights.layout import EXPERTS, NEEDED
from fpsgen.weights.load import dtypes, load_tokenizer


@dataclass(frozen=True)
class Diffusers(VideoContender):
    """All components are loaded at once and stay, as `from_pretrained` has it."""

    @property
    def steps(self) -> tuple[StepPlan, ...]:
        return ()

    def refusal(self) -> str | None:
        model, guidance = self.plan.model, self.settings.guidance
        if not model.checkpoint.transformer:
            return "it reads a checkpoint, and there is none"
        if self.plan.request.image:
            return "it makes videos of text alone here"
        found = dtypes(model.checkpoint)
        if packed := {each for part in {*NEEDED, *EXPERTS} & found.keys() for each in found[part]} - {*FLOATS}:
            return f"it reads no weights in {', '.join(sorted(packed))}"
        if model.config.gated:
            return "diffusers does not have the gates of its attention"
        if (solver := self.settings.solver) in solvers.FEW_STEPS:
            return f"diffusers does not have the solver {solver}"
        if model.checkpoint.format != "diffusers" or not (model.folder / "model_index.json").is_file():
            return "it reads a checkpoint in Diffusers' format: `fpsgen models convert` makes one"
        files = (file for part in model.checkpoint.parts for file in getattr(model.checkpoint, part))
        if any(model.folder not in file.parents for file in files):
            return "it reads the model's own parts, not those that are named"
        if model.checkpoint.loras:
            return "it reads the checkpoint without the LoRAs"
        if guidance <= 1 < (self.settings.guidance_low or 1):
            return "diffusers gives no guidance to the low-noise expert alone"
        if guidance < 1:
            return f"diffusers uses guidance only above 1, and this is {option('guidance', guidance)}"
        return None if find_spec("accelerate") else "it needs accelerate: pip install accelerate"

    def about(self) -> ContenderRecord:
        told = f"WanPipeline of diffusers {version('diffusers')}"
        return ContenderRecord(
            name=self.name, label=self.label, told=told, steps=self.settings.steps, preset=None, density=None,
            backends=[],
        )  # fmt: skip

    @torch.inference_mode()
    def run(self, output: Path, timings: Timings) -> Iterator[Event]:
        """The file's comment says that diffusers made it."""
        plan, own, device = self.plan, self.settings, self.plan.target.device
        machine.reset_peak(device)
        yield Stage("load")
        with timings.stage("load"):
            pipe = load(plan)
        yield Stage("text")
        with timings.stage("text"):
            texts = encode(pipe, plan)
            machine.synchronise(device)
        yield Stage("denoise")
        with timings.stage("denoise"):
            latents, timings.steps = denoise(pipe, plan, texts)
        for number, seconds in enumerate(timings.steps, 1):
            yield Step(number, own.steps, seconds)
        yield Denoised(latents)
        yield Stage("decode")
        with timings.stage("decode"):
            video = pipe.vae.decode(wan_vae.denormalise(pipe.vae.config, latents.float()), return_dict=False)[0]
            frames = wan_vae.to_uint8(video)
        with VideoWriter(output, (own.width, own.height), own.fps) as writer:
            with timings.stage("encode"):
                writer.write(frames)
                writer.close()
            timings.peak_memory = machine.peak_bytes(device)
            timings.stop()
            writer.finish({"fpsgen": __version__, "by": "diffusers", "timings": timings.as_dict()})
        yield Frames(len(frames), own.frames, frames)


def load(plan: VideoPlan) -> Any:
    """The pipeline, in the precisions that fpsgen runs: the VAE's is float32."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # ours is drawn
    precisions = dict.fromkeys(EXPERTS, plan.target.dtype)
    precisions |= {"text_encoder": plan.target.text_dtype, "default": torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer ones want `dtype`, which older ones do not know
        # The class that published folders name loses what tokenizer.json says beyond the vocabulary: other prompts.
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(plan.model.checkpoint.tokenizer)
        pipe = diffusers.WanPipeline.from_pretrained(
            plan.model.folder, tokenizer=tokenizer, torch_dtype=precisions, local_files_only=True
        )
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(boundary_ratio=plan.request.settings.boundary)
    return pipe.to(plan.target.device)


def encode(pipe: Any, plan: VideoPlan) -> tuple[Tensor, Tensor | None]:
    """Embeddings of the prompt and, with guidance, of the negative one. A pocket model's prompts are put into its own
    words first, as `generate` does."""
    own, tokenizer = plan.request.settings, load_tokenizer(plan.model.checkpoint)
    prompts = [plan.request.prompt, own.negative]
    if plan.model.pocket is not None:
        prompts = [reading.read(text, tokenizer).text for text in prompts]
    return pipe.encode_prompt(
        *prompts, do_classifier_free_guidance=own.branches > 1, max_sequence_length=tokenizer.length,
        device=plan.target.device,
    )  # fmt: skip


def scheduler(own: Settings, device: torch.device) -> Any:
    """diffusers' own object for a video's solver, at its first step, on our noise levels."""
    import diffusers

    solver = own.new_solver()
    if own.solver == "euler":
        made = diffusers.FlowMatchEulerDiscreteScheduler(solvers.TRAIN_TIMESTEPS, own.shift)
    else:
        name = {"unipc": "UniPCMultistepScheduler", "dpm++": "DPMSolverMultistepScheduler"}[own.solver]
        made = getattr(diffusers, name)(
            solvers.TRAIN_TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=own.shift
        )
    made.set_timesteps(own.steps)
    # Set, not handed over: DPM++ takes no noise levels, and UniPC would shift them once more. Euler refuses integers.
    made.sigmas, made.timesteps = solver.sigmas, solver.timesteps.to(device, torch.float32)
    # Else the first step is looked up by its timestep, and cut to integers two steps may share one.
    made.set_begin_index(0)
    made.set_timesteps = lambda *_, **__: None  # WanPipeline would set its own
    return made


def denoise(pipe: Any, plan: VideoPlan, texts: tuple[Tensor, Tensor | None]) -> tuple[Tensor, list[float]]:
    """Latents as `pipeline.denoise` has them, and the seconds of each step."""
    own, device = plan.request.settings, plan.target.device
    pipe.scheduler = scheduler(own, device)
    noise = solvers.noise(pipe.transformer.config.in_channels, own.latent_shape, plan.request.seed).to(device)
    marks = [time.perf_counter()]

    def mark(_pipe: Any, _step: int, _timestep: Tensor, kept: dict) -> dict:
        machine.synchronise(device)
        marks.append(time.perf_counter())
        return kept

    latents = pipe(
        prompt_embeds=texts[0], negative_prompt_embeds=texts[1], latents=noise, height=own.height, width=own.width,
        num_frames=own.frames, num_inference_steps=own.steps, guidance_scale=own.guidance,
        guidance_scale_2=own.guidance_low, output_type="latent", callback_on_step_end=mark,
    ).frames  # fmt: skip
    return latents, [after - before for before, after in pairwise(marks)]
