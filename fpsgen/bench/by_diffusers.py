"""diffusers' WanPipeline as a contender: the same checkpoint, prompt, noise and noise levels."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fpsgen import __version__, machine, solvers
from fpsgen.bench.contenders import Outline
from fpsgen.errors import UsageError
from fpsgen.pipeline import Denoised, Event, Frames, Phase, Request, Step
from fpsgen.pocket import reading
from fpsgen.timing import Timings
from fpsgen.video import VideoWriter
from fpsgen.wan import vae as wan_vae
from fpsgen.weights.load import load_tokenizer
from fpsgen.weights.models import Model


@dataclass(frozen=True)
class Diffusers:
    """All components are loaded at once and stay, as `from_pretrained` has it."""

    name: str = "diffusers"

    def refusal(self, model: Model, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run here."""
        if not model.checkpoint.transformer:
            return "there is no checkpoint, and it reads one"
        if model.checkpoint.format != "diffusers" or not (model.folder / "model_index.json").is_file():
            return "it reads a checkpoint in Diffusers' format: `fpsgen models convert` makes one"
        return None if find_spec("accelerate") else "it needs accelerate: pip install accelerate"

    def outline(self, request: Request, model: Model, device: torch.device) -> Outline:
        import diffusers

        if request.guidance < 1:
            raise UsageError(f"--guidance {request.guidance:g}: diffusers guides above 1 alone", hint="leave it out")
        return Outline(f"WanPipeline of diffusers {diffusers.__version__}")

    @torch.inference_mode()
    def run(
        self, request: Request, model: Model, device: torch.device, dtype: torch.dtype, text_dtype: torch.dtype,
        timings: Timings,
    ) -> Iterator[Event]:  # fmt: skip
        """As `pipeline.generate`; the file's metadata say who made it."""
        machine.reset_peak(device)
        yield Phase("load")
        with timings.phase("load"):
            pipe = load(model, device, dtype, text_dtype)
        yield Phase("text")
        with timings.phase("text"):
            texts = encode(pipe, request, model, device)
            machine.synchronise(device)
        yield Phase("denoise")
        with timings.phase("denoise"):
            latents = denoise(pipe, request, texts, device, timings)
        for number, seconds in enumerate(timings.steps, 1):
            yield Step(number, request.steps, seconds)
        yield Denoised(latents)
        yield Phase("decode")
        with timings.phase("decode"):
            video = pipe.vae.decode(wan_vae.denormalise(pipe.vae, latents.float()), return_dict=False)[0]
            frames = wan_vae.to_uint8(video)
        with VideoWriter(request.output, (request.width, request.height), request.fps) as writer:
            with timings.phase("encode"):
                writer.write(frames)
                writer.close()
            timings.peak_memory = machine.peak_bytes(device)
            timings.stop()
            writer.finish({"fpsgen": __version__, "by": "diffusers", "timings": timings.as_dict()})
        yield Frames(len(frames), request.frames, frames)


def load(model: Model, device: torch.device, dtype: torch.dtype, text_dtype: torch.dtype) -> Any:
    """The pipeline, in the precisions that fpsgen runs: the VAE's is float32."""
    from diffusers import WanPipeline
    from diffusers.utils import logging as of_diffusers
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()  # ours is drawn
    of_transformers.disable_progress_bar()
    dtypes = {"transformer": dtype, "text_encoder": text_dtype, "default": torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer ones want `dtype`, which older ones do not know
        # The class that published folders name loses what tokenizer.json says beyond the vocabulary: other prompts.
        words = PreTrainedTokenizerFast.from_pretrained(model.checkpoint.tokenizer)
        pipe = WanPipeline.from_pretrained(model.folder, tokenizer=words, torch_dtype=dtypes, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def encode(pipe: Any, request: Request, model: Model, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Embeddings of the prompt and, with guidance, of the negative one; as a pocket model reads them, as ours has
    them."""
    prompt, negative, tokenizer = request.prompt, request.negative, load_tokenizer(model.checkpoint)
    if model.card is not None:
        prompt, negative = (reading.read(text, tokenizer).text for text in (prompt, negative))
    guided = request.guidance > 1
    return pipe.encode_prompt(
        prompt, negative, do_classifier_free_guidance=guided, max_sequence_length=tokenizer.length, device=device
    )


def denoise(
    pipe: Any, request: Request, texts: tuple[Tensor, Tensor | None], device: torch.device, timings: Timings
) -> Tensor:
    """Latents, as `pipeline.denoise` has them; the time of each step is noted."""
    pipe.scheduler = visiting(request, device)
    noise = solvers.noise(pipe.transformer.config.in_channels, request.latent_shape, request.seed).to(device)
    marks = [time.perf_counter()]

    def mark(_pipe: Any, _step: int, _timestep: Tensor, kept: dict) -> dict:
        machine.synchronise(device)
        marks.append(time.perf_counter())
        return kept

    latents = pipe(
        prompt_embeds=texts[0], negative_prompt_embeds=texts[1], latents=noise, height=request.height,
        width=request.width, num_frames=request.frames, num_inference_steps=request.steps,
        guidance_scale=request.guidance, output_type="latent", callback_on_step_end=mark,
    ).frames  # fmt: skip
    timings.steps += [after - before for before, after in pairwise(marks)]
    return latents


def visiting(request: Request, device: torch.device) -> Any:
    """A scheduler that visits the request's noise levels, whatever grid WanPipeline would have it make."""
    scheduler = request.new_solver().scheduler

    def set_timesteps(*_: object, **__: object) -> None:
        scheduler.timesteps = scheduler.timesteps.to(device, torch.float32)  # Euler refuses integers

    scheduler.set_timesteps = set_timesteps
    return scheduler
