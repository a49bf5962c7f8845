"""Which transformer computes which steps of each video, and how a second one is read while the first still runs.

A model of two experts has one of them in memory at a time, unless a GPU has room for both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Literal

import torch

from fpsgen import machine
from fpsgen.errors import FpsgenError, UsageError, option
from fpsgen.files import open_regular
from fpsgen.printable import readable
from fpsgen.request import VideoPlan
from fpsgen.target import Target
from fpsgen.wan.offload import Home
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import needs
from fpsgen.weights.layout import TransformerPart
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import Model

PARTS_OF_EXPERTS: tuple[TransformerPart, ...] = ("transformer", "transformer_2")
_CHUNK = 16 << 20  # bytes of a file that are read at once
# How an expert is made ready while the other one runs: it is loaded; or its files are read, so that the system has them
# in memory; or nothing is done.
Way = Literal["load", "read", "nothing"]


@dataclass(frozen=True)
class Turn:
    """What one transformer computes. words: what it is called; spans: of each video, the first of its steps, counted
    from 0, and the step after the last one."""

    part: TransformerPart
    words: str
    spans: tuple[tuple[int, int], ...]

    def computed(self, plans: Sequence[VideoPlan]) -> list[StepPlan]:
        """What its steps compute, each kind once."""
        steps = (step for plan, (first, end) in zip(plans, self.spans, strict=True) for step in plan.steps[first:end])
        return list(dict.fromkeys(step for step in steps if step.compute == "full"))


def turns(plans: Sequence[VideoPlan], done: Sequence[int]) -> list[Turn]:
    """One after the other, but for an expert that no video needs. The plans are of one model; done: how many steps of
    each video are behind it."""
    checkpoint = plans[0].model.checkpoint
    bounds = [(own, max(own, plan.high_steps), len(plan.steps)) for plan, own in zip(plans, done, strict=True)]
    spans: dict[TransformerPart, list[tuple[int, int]]] = {
        "transformer": [own[:2] for own in bounds],
        "transformer_2": [own[1:] for own in bounds],
    }
    return [
        Turn(part, checkpoint.words(part), tuple(own))
        for part, own in spans.items()
        if any(first < end for first, end in own)
    ]


class Ahead:
    """A turn's transformer, which a thread makes ready until it is asked for. As a context: the thread ends with it."""

    def __init__(self, turn: Turn, plans: Sequence[VideoPlan], way: Way, home: Home = "device"):
        self.turn, self.way, self._home = turn, way, home
        self._plans = plans
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, "expert")
        self._loaded: Future[WanTransformer] | None = None
        if way == "load":
            self._loaded = self._pool.submit(self._load)
        elif way == "read":
            self._pool.submit(self._read)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def __str__(self) -> str:
        words = self.turn.words
        return {
            "load": f"the {words} is loaded while the other one runs",
            "read": f"the files of the {words} are read while the other one runs",
            "nothing": f"the {words} is read when the other one is done: memory is too small for both",
        }[self.way]

    def take(self) -> WanTransformer:
        """The transformer; an error that its reading met is raised here."""
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None  # the last to hold it is whoever takes it
            with suppress(MemoryError, torch.OutOfMemoryError):  # there is more now, without the other one
                return loaded.result()
            del loaded  # and with the error what was loaded by then
            machine.release()
        self._stopped.set()  # what is not in memory yet is read once, by whoever needs it
        return load(self.turn, self._plans, self._home)

    def _load(self) -> WanTransformer:
        device = self._plans[0].target.device
        with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else torch.no_grad():
            transformer = load(self.turn, self._plans, check=self._check)
            machine.synchronise(device)
        return transformer

    def _read(self) -> None:
        with suppress(OSError, FpsgenError):  # who loads them says what is wrong
            for path in getattr(self._plans[0].model.checkpoint, self.turn.part):
                with open_regular(path) as file:
                    while not self._stopped.is_set() and file.read(_CHUNK):
                        pass

    def _check(self) -> None:
        if self._stopped.is_set():
            raise CancelledError


def load(
    turn: Turn, plans: Sequence[VideoPlan], home: Home = "device", check: Callable[[], None] = lambda: None
) -> WanTransformer:
    """A turn's transformer, for what it computes. home: of its blocks; check: called before each of its parameters is
    read; may raise."""
    target = plans[0].target
    checkpoint, steps = plans[0].model.checkpoint, turn.computed(plans)
    return load_transformer(checkpoint, target.device, target.dtype, steps, turn.part, check, False, home)


def load_all(model: Model, target: Target) -> tuple[WanTransformer, WanTransformer | None]:
    """A model's transformer, or both of its experts, which are in memory together: what compares steps needs each of
    them again and again. UsageError where they do not fit."""
    checkpoint = model.checkpoint
    if checkpoint.transformer_2:
        sizes, free = needs.weights(checkpoint, target), machine.free_bytes(target.device)
        both = sum(sizes[checkpoint.words(part)] for part in checkpoint.experts)
        if both > free:
            told = f"both experts have to be in memory: they take {readable(both)}, and {readable(free)} are free"
            hint = f"try {option('dtype', 'bf16')}, or a device with more memory"
            raise UsageError(f"{told} on {target.device}", hint)
    high, *low = (
        load_transformer(checkpoint, target.device, target.dtype, (), part)
        for part in PARTS_OF_EXPERTS
        if part in checkpoint.experts
    )
    return high, low[0] if low else None


def way_ahead(turn: Turn, plans: Sequence[VideoPlan], home: Home = "device") -> Way:
    """How a turn's transformer may be made ready while another one is in memory and computes. home: of their blocks.

    It is loaded where a GPU then still has room for all that the other one may want at once: by both guidance branches,
    and by CUDA graphs of them (`sampling.both_fit`), so that nothing is computed otherwise than without it. Graphs are
    captured while nothing else may allocate. On a CPU it costs memory and saves little: steps take much longer.
    """
    model, target = plans[0].model, plans[0].target
    own = [plan.request.settings for plan in plans]
    if target.device.type == "cuda" and not target.graphs and home == "device":
        tokens = max(prod(model.config.grid(settings.latent_shape)) for settings in own)
        at_work = 2 * tokens * model.config.bytes_per_token(target.dtype.itemsize) / 0.8
        weights = needs.weights(model.checkpoint, target)[turn.words]
        if weights + at_work < machine.free_bytes(target.device):
            return "load"
    size = sum(path.stat().st_size for path in getattr(model.checkpoint, turn.part))
    return "read" if size < machine.free_bytes(torch.device("cpu")) else "nothing"
