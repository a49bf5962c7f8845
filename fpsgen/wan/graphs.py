"""Forward passes as CUDA graphs: the host launches all kernels of a pass at once.

A graph repeats the launches that it was captured from, at the same addresses. So the inputs of a pass lie in tensors
that belong to its graph, and its result is copied before another graph runs. Whatever else it reads must stay where it
is: the graph holds the keys and values of the prompt, and all that `kept` gave out while it was captured. Work that
waits for the GPU, or copies from the host, cannot be captured.

The first pass of a kind runs kernel by kernel and warms up: all that is made at first use is there afterwards (weights
in 8 bits, key lists, loaded kernels). The second one is captured, and from then on the graph runs; so nothing is
computed twice, and what happens once is never captured. All graphs share one pool of memory, because only one runs at a
time and none reads what another leaves: together they need the memory of the largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fpsgen.attention.door import Choice
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import holding
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import KeyValue, WanTransformer, sinusoid

# Makes of some work a function that repeats it, and the tensor where its result is after each time.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


def why_not(
    device: torch.device,
    wanted: bool,
    backends: Mapping[AttentionPlan, Choice],
    gpus: int = 1,
    streamed: bool = False,
) -> str | None:
    """Why no pass can be a graph; None if they can. wanted: whether the user wants graphs; gpus: share a pass;
    streamed: whether blocks are on the device only while they compute."""
    if not wanted:
        return "nobody asked for them"
    if device.type != "cuda":
        return "they are for CUDA GPUs"
    if gpus > 1:
        return "they are for one GPU"
    if streamed:
        return "the transformer's blocks are brought one by one, by a thread"
    for plan, choice in backends.items():
        if choice.name == "reference" or (choice.name == "flex" and not plan.has_windows_only):
            return f"{choice.name} waits for the GPU in attention ({plan})"
    return None


class Graphs:
    """A transformer, called as it is, that runs passes as CUDA graphs. refused: why it does not; count and seconds: how
    many graphs were captured, and how long that took."""

    def __init__(self, transformer: WanTransformer, device: torch.device, refused: str | None = None):
        self.refused, self.count, self.seconds = refused, 0, 0.0
        self.failed = False
        self._transformer, self._device = transformer, device
        self._capture: Capture | None = None
        self._kinds: dict[Any, Graph | None] = {}  # None: it has warmed up

    def __call__(self, latents: Tensor, timestep: Tensor, context: Sequence[KeyValue], plan: StepPlan) -> Tensor:
        """As `WanTransformer.forward`; the context has to stay at its place."""
        kind = plan.layers, latents.shape, timestep.shape, context[0][0].data_ptr()
        if self.refused is None and kind in self._kinds:
            waves = sinusoid(timestep, self._transformer.config.freq_dim).to(latents.device)
            if graph := self._kinds[kind] or self._captured([latents, waves], context, plan):
                self._kinds[kind] = graph
                return graph(latents, waves)
        self._kinds[kind] = None
        return self._transformer(latents, timestep, context, plan)

    def _captured(self, given: Sequence[Tensor], context: Sequence[KeyValue], plan: StepPlan) -> Graph | None:
        """A new graph. Where that fails all of them are given up, so that their pool is free."""
        begin = time.perf_counter()
        try:
            self._capture = self._capture or on_cuda(self._device)
            work = partial(self._transformer.compute, context=context, plan=plan)
            graph = Graph(work, given, self._capture)
        except RuntimeError as fault:  # torch's errors and CuPy's
            self._kinds.clear()
            self._capture, self.failed = None, True
            self.count, self.seconds = 0, 0.0
            self.refused = f"a pass could not be captured: {_first_cause(fault)}"
            return None
        self.count += 1
        self.seconds += time.perf_counter() - begin
        return graph

    def __str__(self) -> str:
        if self.refused is not None:
            return f"no CUDA graphs: {self.refused}"
        what = "1 CUDA graph was" if self.count == 1 else f"{self.count} CUDA graphs were"
        return f"{what} captured in {self.seconds:.2f} s"

    @staticmethod
    def none(why: str | None) -> dict[str, Any]:
        """`as_dict` where nothing was captured."""
        return {"captured": 0, "seconds": 0.0, "why_not": why}

    def as_dict(self, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """For JSON. earlier: the same of the transformer that computed the video's steps before this one."""
        count, seconds, refused = (earlier or self.none(None)).values()
        seconds = round(self.seconds + seconds, 3)
        return {"captured": self.count + count, "seconds": seconds, "why_not": self.refused or refused}


class Graph:
    """One pass, captured."""

    def __init__(self, work: Callable[..., Tensor], given: Sequence[Tensor], capture: Capture):
        self._given = [value.clone() for value in given]
        with holding() as kept:
            self._replay, self._result = capture(lambda: work(*self._given))
        self._held = work, kept

    def __call__(self, *given: Tensor) -> Tensor:
        for own, value in zip(self._given, given, strict=True):
            own.copy_(value)
        self._replay()
        return self._result.clone()


def on_cuda(device: torch.device) -> Capture:
    """Captures in memory that all its graphs share."""
    pool, stream = torch.cuda.graph_pool_handle(), _stream(device)

    def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),  # where a capture fails, torch leaves its own current
            torch.cuda.graph(graph, pool, stream),
        ):
            result = work()
        return graph.replay, result

    return capture


def _first_cause(fault: BaseException) -> str:
    """What the first error says: one in a capture is followed by another, when the capture ends."""
    while fault.__context__ is not None:
        fault = fault.__context__
    return str(fault).partition("\n")[0]


@cache  # cuBLAS keeps a workspace for each
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
