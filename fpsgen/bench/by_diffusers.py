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
from fpsgen.events import Denoised, Event, Frames, Stage, Step
from fpsgen.pocket import reading
from fpsgen.request import Request
from fpsgen.target import Target
from fpsgen.timing import Timings
from fpsgen.video import VideoWriter
from fpsgen.wan import vae as wan_vae
from fpsgen.weights.load import load_tokenizer
from fpsgen.weights.models import Model


@dataclass(frozen=True)
class Diffusers:
    """All components are loaded at once and stay, as `from_pretrained` has it. Methods are those of `Ours`."""

    name: str = "diffusers"

    def refusal(self, model: Model, target: Target) -> str | None:
        if not model.checkpoint.transformer:
            return "it reads a checkpoint, and there is none"
        if model.checkpoint.format != "diffusers" or not (model.folder / "model_index.json").is_file():
            return "it reads a checkpoint in Diffusers' format: `fpsgen models convert` makes one"
        return None if find_spec("accelerate") else "it needs accelerate: pip install accelerate"

    def outline(self, request: Request, model: Model, target: Target) -> Outline:
        import diffusers

        if (guidance := request.settings.guidance) < 1:
            raise UsageError(f"--guidance {guidance:g}: diffusers uses guidance only above 1", hint="leave it out")
        return Outline(f"WanPipeline of diffusers {diffusers.__version__}")

    @torch.inference_mode()
    def run(self, request: Request, model: Model, target: Target, timings: Timings) -> Iterator[Event]:
        """The file's metadata say that diffusers made it."""
        machine.reset_peak(target.device)
        yield Stage("load")
        with timings.stage("load"):
            pipe = load(model, target)
        yield Stage("text")
        with timings.stage("text"):
            texts = encode(pipe, request, model, target.device)
            machine.synchronise(target.device)
        yield Stage("denoise")
        with timings.stage("denoise"):
            latents, timings.steps = denoise(pipe, request, texts, target.device)
        for number, seconds in enumerate(timings.steps, 1):
            yield Step(number, request.settings.steps, seconds)
        yield Denoised(latents)
        yield Stage("decode")
        with timings.stage("decode"):
            video = pipe.vae.decode(wan_vae.denormalise(pipe.vae, latents.float()), return_dict=False)[0]
            frames = wan_vae.to_uint8(video)
        own = request.settings
        with VideoWriter(request.output, (own.width, own.height), own.fps) as writer:
            with timings.stage("encode"):
                writer.write(frames)
                writer.close()
            timings.peak_memory = machine.peak_bytes(target.device)
            timings.stop()
            writer.finish({"fpsgen": __version__, "by": "diffusers", "timings": timings.as_dict()})
        yield Frames(len(frames), request.settings.frames, frames)


def load(model: Model, target: Target) -> Any:
    """The pipeline, in the precisions that fpsgen runs: the VAE's is float32."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # ours is drawn
    dtypes = {"transformer": target.dtype, "text_encoder": target.text_dtype, "default": torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer ones want `dtype`, which older ones do not know
        # The class that published folders name loses what tokenizer.json says beyond the vocabulary: other prompts.
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(model.checkpoint.tokenizer)
        pipe = diffusers.WanPipeline.from_pretrained(
            model.folder, tokenizer=tokenizer, torch_dtype=dtypes, local_files_only=True
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(target.device)


def encode(pipe: Any, request: Request, model: Model, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Embeddings of the prompt and, with guidance, of the negative one. A pocket model's prompts are put into its own
    words first, as `generate` does."""
    prompts, tokenizer = [request.prompt, request.settings.negative], load_tokenizer(model.checkpoint)
    if model.card is not None:
        prompts = [reading.read(text, tokenizer).text for text in prompts]
    return pipe.encode_prompt(
        *prompts,
        do_classifier_free_guidance=request.settings.guidance > 1,
        max_sequence_length=tokenizer.length,
        device=device,
    )


def denoise(
    pipe: Any, request: Request, texts: tuple[Tensor, Tensor | None], device: torch.device
) -> tuple[Tensor, list[float]]:
    """Latents as `pipeline.denoise` has them, and the seconds of each step."""
    scheduler = request.settings.new_solver().scheduler
    # WanPipeline would set noise levels of its own. Euler refuses integers.
    scheduler.set_timesteps = lambda *_, **__: setattr(
        scheduler, "timesteps", scheduler.timesteps.to(device, torch.float32)
    )
    pipe.scheduler = scheduler
    noise = solvers.noise(pipe.transformer.config.in_channels, request.settings.latent_shape, request.seed).to(device)
    marks = [time.perf_counter()]

    def mark(_pipe: Any, _step: int, _timestep: Tensor, kept: dict) -> dict:
        machine.synchronise(device)
        marks.append(time.perf_counter())
        return kept

    latents = pipe(
        prompt_embeds=texts[0], negative_prompt_embeds=texts[1], latents=noise, height=request.settings.height,
        width=request.settings.width, num_frames=request.settings.frames, num_inference_steps=request.settings.steps,
        guidance_scale=request.settings.guidance, output_type="latent", callback_on_step_end=mark,
    ).frames  # fmt: skip
    return latents, [after - before for before, after in pairwise(marks)]
