"""Prompts to text embeddings. Those of earlier runs are kept on disk: where all texts of a video are known, no text
encoder is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fpsgen import __version__, assets, machine, residence
from fpsgen.errors import RenderError, UsageError
from fpsgen.events import Event, Notice, Stage
from fpsgen.journal import Journal, identity
from fpsgen.machine import device_name
from fpsgen.pocket import reading
from fpsgen.printable import printable
from fpsgen.request import VideoPlan
from fpsgen.target import Target
from fpsgen.timing import Timings, of_all
from fpsgen.wan.text_encoder import KnownTexts
from fpsgen.weights.load import load_text_encoder
from fpsgen.weights.models import Model

MOST_BYTES = 2**28  # on disk: 64 of Wan2.1's longest texts, hundreds of usual ones


def encode(
    plans: Sequence[VideoPlan], videos: Sequence[Timings], known: KnownTexts | None
) -> Generator[Event, None, list[list[Tensor]]]:
    """For each video the embedding of its prompt and, with guidance, of its negative prompt, the generator's return
    value, on the CPU, because thousands would fill a GPU; a text that several videos share is encoded once."""
    model, target = plans[0].model, plans[0].target
    guided = [plan for plan in plans if plan.request.settings.branches > 1]
    prompts = list(dict.fromkeys(plan.request.prompt for plan in plans))
    negatives = list(dict.fromkeys(plan.request.settings.negative for plan in guided))
    texts = yield from encode_prompts(prompts, negatives, model, target, videos, Tensor.cpu, known)
    found = dict(zip((*prompts, *negatives), texts, strict=True))  # one text is embedded alike on either side
    return [
        [found[own] for own in (plan.request.prompt, plan.request.settings.negative)[: plan.request.settings.branches]]
        for plan in plans
    ]


def encode_prompts(
    prompts: Sequence[str],
    negatives: Sequence[str],
    model: Model,
    target: Target,
    videos: Sequence[Timings] = (),
    keep: Callable[[Tensor], Tensor] = lambda text: text,
    known: KnownTexts | None = None,
) -> Generator[Event, None, list[Tensor]]:
    """The text embedding of each prompt, then of each negative one, the generator's return value; the encoder is gone
    afterwards. keep: what is kept of each embedding, where thousands would fill the memory. known: those of earlier
    runs."""
    with of_all(videos, "load"):
        home = residence.of_text_encoder(model, target)
        encoder = load_text_encoder(model.checkpoint, target.device, target.text_dtype, known, home)
    yield Stage("text")
    names = [f"prompt {number}" if len(prompts) > 1 else "prompt" for number in range(1, len(prompts) + 1)]
    texts = []
    for which, prompt in zip((*names, *("negative prompt" for _ in negatives)), (*prompts, *negatives), strict=True):
        if model.pocket is not None:
            read = reading.read(prompt, encoder.tokenizer)
            if remark := reading.remark(read, which, model.pocket):
                yield Notice(remark)
            prompt = read.text
        with of_all(videos, "load"):
            encoder.make_ready(prompt)
        with of_all(videos, "text"):
            encoded = encoder.encode(prompt)
            machine.synchronise(target.device)
        if encoded.unknown:
            words = printable(", ".join(encoded.unknown))
            yield Notice(f"the model's tokenizer has no token for some of the {which}: {words}")
        if encoded.cut:
            yield Notice(f"the {which} is longer than {encoder.tokenizer.length} tokens; its end was left out")
        texts.append(keep(encoded.text))
    if encoder.is_loaded and home != "device":
        yield Notice(f"the text encoder's blocks came from {home} one by one: it does not fit into what is free")
    if not encoder.is_loaded:
        yield Notice("all texts are known from earlier runs: no text encoder was loaded", detail=True)
    with of_all(videos, "load"):
        del encoder
        machine.release()
    return texts


class Texts:
    """What one text encoder made of tokens, on one kind of device. What cannot be read or written is not kept."""

    def __init__(self, model: Model, target: Target):
        self._journal: Journal | None = None
        device, checkpoint = target.device, model.checkpoint
        key = {
            "versions": [__version__, torch.__version__],
            "encoder": [identity(path) for path in checkpoint.text_encoder],
            "config": checkpoint.text_config,
            "dtype": str(target.text_dtype),
            "device": device_name(device),
            "threads": torch.get_num_threads() if device.type == "cpu" else None,  # which its last bits depend on
        }
        with contextlib.suppress(RenderError, UsageError):
            self._journal = Journal(assets.cache("texts"), key)

    def get(self, tokens: list[int]) -> Tensor | None:
        """[1, tokens, text_dim], on the CPU; None where it is not kept."""
        if self._journal is None or (piece := self._journal.get(name := _name(tokens))) is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(self._journal.path(name))  # the longest unused goes first
        return piece["text"]

    def put(self, tokens: list[int], text: Tensor) -> None:
        """Keep an embedding, and remove those that were not used for the longest time."""
        if self._journal is not None:
            with contextlib.suppress(RenderError, OSError):
                self._journal.put(_name(tokens), text=text)
                _shrink(self._journal.folder.parent)


def _name(tokens: list[int]) -> str:
    return hashlib.sha256(repr(tokens).encode()).hexdigest()[:32]


def _shrink(root: Path) -> None:
    pieces = [(told.st_mtime_ns, told.st_size, path) for path in root.glob("*/*.piece") for told in (path.stat(),)]
    left = sum(size for _, size, _ in pieces)
    for _, size, path in sorted(pieces):
        if left <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        left -= size
