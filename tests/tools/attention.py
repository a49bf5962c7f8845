"""A bench of attention without a card: a record that is made up, and what stands in for a card."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fpsgen import machine
from fpsgen.attention.plan import AttentionPlan
from fpsgen.bench import stopwatch
from fpsgen.bench.attention import run
from fpsgen.bench.attention.contenders import Trial
from fpsgen.bench.attention.record import AttentionRecord, Case, Kind, Line, derive
from fpsgen.bench.attention.shapes import Shape, shape
from fpsgen.bench.record import MeasuredCard
from fpsgen.events import Done, Event, Notice, Run, Stage, Work
from fpsgen.machine import provenance

CARD = MeasuredCard(
    gpu="NVIDIA H100 made up", capability="9.0", multiprocessors=132, memory_bytes=80 * 2**30, l2_bytes=50 * 2**20,
    driver="1.2.3", power_limit_w=700.0, cuda="13.0", cudnn=91000, cupy="14.2.0", triton="3.6.0", nvrtc="13.0",
    clock_hz=1.98e9, clock_source="a guess", copy_bytes_per_second=3e12,
)  # fmt: skip
STATE = {"clocks.sm": 1980.0, "clocks.mem": 2619.0, "power.draw": 120.5, "temperature.gpu": 40.0}


def line(kind: Kind = "kernel", **more: Any) -> Line:
    return Line(**{"kind": kind, "name": kind, "bits": 8, "stages": [[1e12, 1e9, 1e9]], **more})


def made_up() -> AttentionRecord:
    """Every field that a record can have, but for those that `record.derive` fills."""
    what = shape("14b", "720p")
    flops, pairs, _ = what.attention(AttentionPlan(what.tiles))
    dense = {"bits": 16, "density": 1.0, "stages": [[flops, pairs, 3e9]]}
    chosen: dict[str, Any] = {"wanted": "1/10", "window": (7, 3, 3), "density": 0.1}
    before, stage = [0, 0, 3e9], [flops / 10, pairs / 20, 2e9]
    by_rule = {"accumulator aligned": 0.002, "accumulator added last": 0.001}
    errors = {"error_to_emulator": by_rule, "error_to_exact": 0.055}

    def ours(kind: Kind, stages: list[list[float]], took: float, **more: Any) -> Line:
        name = f"fp8-fp16, {kind}"
        return line(kind, name=name, variant="fp8-fp16", stages=stages, samples_ms=[took], **more)

    lines = (
        line("sdpa", name="sdpa-cudnn", **dense, samples_ms=[201.0, 200.0, 199.0], error_to_exact=0.004),
        line("sdpa", name="sdpa-math", **dense, why_not="left out"),
        line("prepare", name="norm and RoPE, eager", bits=16, stages=[before], samples_ms=[10.0]),
        ours("prologue", [before], 2.0),
        ours("kernel", [stage], 8.0, **chosen, **errors),
        ours("together", [before, stage], 10.0, **chosen),
        line("flex", bits=16, **chosen, stages=[stage], fault="it broke"),
    )
    case = Case(**what.facts, lines=lines, before=STATE, after=STATE, rounds=3, cut="no time")
    facts = provenance(["fpsgen", "bench", "attention"]) | {"card": CARD}
    return AttentionRecord(**facts, seed=0, repeats=20, seconds=500, cases=(case,))


def derived(record: AttentionRecord) -> AttentionRecord:
    cases = (replace(case, lines=derive(case.lines, record.card)) for case in record.cases)
    return replace(record, cases=tuple(cases))


def fake(monkeypatch: pytest.MonkeyPatch, made: Callable[[Shape], list[Trial]] | None = None) -> None:
    """In the place of a card: this CPU, a watch that says 2 ms of a call which returns 1, else 1 ms, and contenders of
    `made`, called with the shape."""

    class Watch:
        def __init__(self, _: torch.device):
            pass

        def time(self, calls: Iterable[Callable[[], object]]) -> list[float]:
            return [2.0 if isinstance(found := call(), int) and found else 1.0 for call in calls]

    if made is not None:
        monkeypatch.setattr(run, "contenders", lambda inputs, *_: made(inputs))
        monkeypatch.setattr(run, "Inputs", lambda what, *_: what)
    monkeypatch.setattr(stopwatch, "Stopwatch", Watch)
    monkeypatch.setattr(machine, "card_state", lambda _: None)
    monkeypatch.setattr(stopwatch, "card", lambda _: CARD)


class Silent:
    """Watches, and keeps what it hears: sentences, and the rounds that were done of all."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.rounds: list[tuple[float, float]] = []

    def __call__(self, event: Event) -> None:
        match event:
            case Run(title=text) | Stage(name=text) | Notice(text=text):
                self.heard.append(text)
            case Work(total=total):
                self.rounds.append((0, total))
            case Done(work=work):
                done, total = self.rounds[-1]
                self.rounds.append((done + work, total))
