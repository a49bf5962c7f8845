"""`fpsgen train prepare`: training data that the model makes itself, or that is made of videos."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fpsgen.errors import UsageError, option
from fpsgen.events import Done, Notice, Stage, Watch, Work, finish
from fpsgen.printable import printable
from fpsgen.sampling import Denoiser, clips_at_once, not_finite, side_by_side
from fpsgen.seeds import next_seed
from fpsgen.settings import Settings
from fpsgen.solvers import TRAIN_TIMESTEPS
from fpsgen.target import Target
from fpsgen.texts import encode_prompts
from fpsgen.train import clips
from fpsgen.train.clips import SkippedError, SourceVideo
from fpsgen.train.data import SAMPLING, DataIndex, DataWriter, Origin, Sample, Taught, index_of, padded, trimmed
from fpsgen.train.objective import Levels
from fpsgen.wan import plan as plans
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import load
from fpsgen.weights.models import Model


@dataclass(frozen=True)
class Preparation:
    """For which model samples of which size are made, with what, and in which folder they are kept. watch: told of the
    work, in denoising steps of all guidance branches or in videos. Both methods return the folder's index, and go on
    where an earlier run of the same was stopped."""

    model: Model
    settings: Settings
    target: Target
    folder: Path
    watch: Watch

    def from_model(self, prompts: Sequence[str], count: int, seed: int, teacher: int = 0) -> DataIndex:
        """`count` clips by dense attention; prompts are used again from the first, and seeds count from `seed`.
        teacher: how many velocities at other noise levels are kept with each."""
        own, checkpoint, device, dtype = self.settings, self.model.checkpoint, self.target.device, self.target.dtype
        made = {name: getattr(own, name) for name in SAMPLING}
        made |= {"teacher": teacher, "weights": load.identity(checkpoint, "transformer"), "dtype": str(dtype)}
        made |= {"loras": [each.as_dict() for each in checkpoint.loras]} if checkpoint.loras else {}
        writer = DataWriter(self.folder, index_of(self.model, own, **made))
        wanted = [Origin(prompts[i % len(prompts)], next_seed(seed, i)) for i in range(count)]
        there = writer.index.origins
        if there[:count] != wanted[: len(there)]:
            told = f"{option('output', self.folder)} holds clips of other prompts or seeds"
            raise UsageError(told, hint=f"choose another folder with {option('output')}")
        each = own.steps + teacher / own.branches
        self.watch(Work(count * each))
        self.watch(Done(min(count, len(there)) * each))
        if left := wanted[len(there) :]:
            texts = self._encoded(origin.prompt for origin in left)
            transformer = load.load_transformer(checkpoint, device, dtype)
            self.watch(Stage("denoise"))
            render, most = self._renderer(transformer, texts, teacher), clips_at_once(transformer, own, device)
            for first in range(0, len(left), size := writer.index.samples_per_shard):
                shard = left[first : first + size]
                samples = side_by_side(render, shard, most, self.watch)
                writer.put([*zip(shard, samples, strict=True)], texts[own.negative])
        return writer.index

    def from_videos(self, videos: Sequence[SourceVideo]) -> DataIndex:
        """The first frames of each video that can be used; of the others the watch is told why not."""
        own, waiting = self.settings, list[tuple[Origin, Sample]]()
        writer = DataWriter(self.folder, index_of(self.model, own, fps=own.fps))
        there = {origin.source for origin in writer.index.origins}
        left = [video for video in videos if video.source not in there]
        self.watch(Work(len(videos), "videos"))
        self.watch(Done(len(videos) - len(left)))
        if left:
            texts = self._encoded(caption for video in left for caption in video.captions)
            vae = load.load_vae(self.model.checkpoint, self.target.device)
            self.watch(Stage("encode"))
        for video in left:
            try:
                frames = clips.frames(video, own, self.folder)
                sample = Sample(wan_vae.encode(vae, frames)[0], [texts[caption] for caption in video.captions])
                waiting.append((Origin(video.captions[0], source=video.source), sample))
            except SkippedError as fault:
                self.watch(Notice(f"{printable(video.source)} is skipped: {fault}"))
            self.watch(Done(1))
            if len(waiting) == writer.index.samples_per_shard or (waiting and video is left[-1]):
                writer.put(waiting, texts[own.negative])
                waiting = []
        if not writer.index.shards:
            raise UsageError("no video can be used", hint="the notes above say why each was skipped")
        return writer.index

    def _encoded(self, prompts: Iterable[str]) -> dict[str, Tensor]:
        """Of each prompt, and of the negative one, the embedding as it is kept."""
        self.watch(Stage("load"))
        every = list(dict.fromkeys(prompts))
        negative = self.settings.negative
        events = encode_prompts(every, [negative], self.model, self.target, keep=trimmed)
        return dict(zip((*every, negative), finish(events, self.watch), strict=True))

    def _renderer(
        self, transformer: WanTransformer, texts: dict[str, Tensor], teacher: int
    ) -> Callable[[Origin, Watch], Sample]:
        """What makes a clip's sample."""
        own, device = self.settings, self.target.device
        dense = plans.dense(self.model.tiles(own.latent_shape), self.model.config.num_layers)
        length = load.load_tokenizer(self.model.checkpoint).length
        levels = Levels("preset", own.shift, own.noise_levels, [1.0] * own.steps)

        @torch.inference_mode()
        def render(origin: Origin, watch: Watch) -> Sample:
            assert origin.seed is not None
            prompts = (origin.prompt, own.negative)[: own.branches]
            both = [padded(texts[prompt], length)[None].to(device) for prompt in prompts]
            # One branch after the other, on every machine: the last bits depend on it, and a run may go on elsewhere.
            denoiser = Denoiser(transformer, own, both, device, together=False)
            fresh = partial(denoiser.noise, origin.seed)
            for moment in denoiser.run(fresh(), [dense] * own.steps, fresh=fresh):
                if not moment.finite:
                    raise not_finite(transformer.dtype)
                latents = moment.latents
                watch(Done(1))
            rng, context, taught = random.Random(f"{origin.seed} teacher"), transformer.embed_text(both[0]), []
            for _ in range(teacher):
                level, seed = torch.tensor(levels.draw(rng)), rng.getrandbits(63)
                x = (1 - level) * latents + level * denoiser.noise(seed)
                velocity = transformer(x, TRAIN_TIMESTEPS * level[None], context, dense)[0]
                taught.append((level, torch.tensor(seed), velocity.to("cpu", torch.bfloat16)))
                watch(Done(1 / own.branches))
            kept = Taught(*map(torch.stack, zip(*taught, strict=True))) if taught else None
            return Sample(latents[0].cpu(), [texts[origin.prompt]], taught=kept)

        return render
