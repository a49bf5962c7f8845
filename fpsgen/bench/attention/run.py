"""How fast attention is on this card, at Wan2.1's true shapes: torch's, FlexAttention's and our kernel's.

Every result is checked on sampled rows before it is timed, and none that is wrong gets a time.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fpsgen import files, machine
from fpsgen.attention.emulator import VARIANTS
from fpsgen.attention.plan import Rest
from fpsgen.bench import stopwatch
from fpsgen.bench.attention.contenders import MOST_WORDS, Inputs, contenders, tried
from fpsgen.bench.attention.record import LEAST_ROUNDS, AttentionRecord, Case, Line, derive
from fpsgen.bench.attention.shapes import DENSITIES, Shape, chosen_tiles
from fpsgen.bench.record import State
from fpsgen.errors import FpsgenError, option, reason
from fpsgen.events import Done, Notice, Run, Stage, Watch, Work

RESERVE = 5  # seconds of the budget, for the last record and its report
SEED = 0


@dataclass(frozen=True)
class AttentionJob:
    """What is measured. densities, tops: shares of token pairs and of key tiles as they are written, 1/4 or 0.25; rest:
    of what is not among the top tiles; variants: keys of `emulator.VARIANTS`; repeats: samples of each contender;
    seconds: after which it ends, whatever is missing."""

    shapes: tuple[Shape, ...]
    densities: tuple[str, ...] = DENSITIES
    tops: tuple[str, ...] = ()
    rest: Rest = "drop"
    variants: tuple[str, ...] = tuple(VARIANTS)
    repeats: int = 20
    seconds: float = 500.0


def measure(job: AttentionJob, device: torch.device, path: Path, command: list[str], watch: Watch) -> AttentionRecord:
    """The record; written to `path`, a .json file, anew after each shape.

    device: a CUDA card, or a CPU for a tiny shape. Where the time is up, the process ends there and then, with exit
    code 1.
    """
    end = time.monotonic() + job.seconds
    watch(Notice("looking at the GPU", detail=True))
    facts = {**machine.provenance(command), "card": stopwatch.card(device), "seed": SEED}
    record = AttentionRecord(**facts, repeats=job.repeats, seconds=job.seconds)
    measurer = Measurer(job, device, path, watch, record, end)
    if fault := measurer.save():  # no news for later
        raise FpsgenError(fault, hint=f"choose another {option('output')}")
    watchdog = threading.Timer(end - time.monotonic(), measurer.leave)  # a kernel that hangs cannot be waited for
    watchdog.daemon = True
    watchdog.start()
    try:
        measurer.run()
    finally:
        watchdog.cancel()
    return measurer.record


@dataclass
class Measurer:
    """A record that grows. It is one value, always whole and replaced as a whole, so that `leave` can write it whenever
    the time is up. end: when that is, by time.monotonic."""

    job: AttentionJob
    device: torch.device
    path: Path
    watch: Watch
    record: AttentionRecord
    end: float

    @torch.inference_mode()
    def run(self) -> None:
        """One case after another, each with an equal share of the time that is left."""
        for number, shape in enumerate(self.job.shapes):
            now = time.monotonic()
            share = now + (self.end - RESERVE - now) / (len(self.job.shapes) - number)
            self.record = replace(self.record, cases=(*self.record.cases, Case(**shape.facts)))
            self.watch(Run(str(shape), number + 1, len(self.job.shapes)))
            try:
                self.fill(shape, share)
            except Exception as fault:  # of the card, or no memory: the other shapes may run
                self.note(fault=f"{type(fault).__name__} while {self.case.doing}: {fault}"[:MOST_WORDS])
            self.note(doing=None, lines=derive(self.case.lines, self.record.card))
            if not machine.is_alive(self.device):
                self.record = replace(self.record, cut="nothing runs on the GPU any more in this process")
            if why := self.save():  # room may be made, and what is measured is told at the end
                self.watch(Notice(why, detail=True))
            if self.record.cut:
                return
            machine.release()  # the next shape's tensors have other sizes

    def save(self) -> str | None:
        """Write the record; what to say where the disk refuses it."""
        try:
            files.write_json(self.path, self.record.as_json())
        except OSError as fault:
            return f"{self.path} cannot be written: {reason(fault)}"
        return None

    @property
    def case(self) -> Case:
        return self.record.cases[-1]

    def note(self, **changes: Any) -> None:
        """Replace fields of the last case."""
        self.record = replace(self.record, cases=(*self.record.cases[:-1], replace(self.case, **changes)))

    def begin(self, what: str) -> None:
        """Say what runs now: if that never ends, the record that is left behind names it."""
        self.note(doing=what)
        self.watch(Stage(what))

    def fill(self, shape: Shape, share: float) -> None:
        """One case: every contender checked, then timed in rounds. share: when its part of the time ends."""
        self.begin("making the inputs")
        self.note(before=self.state())
        calls: dict[int, Callable[[], object]] = {}  # by the number of the line
        choices = chosen_tiles(shape.tiles, self.job.densities, self.job.tops, self.job.rest)
        for number, trial in enumerate(contenders(Inputs(shape, self.device, SEED), choices, self.job.variants)):
            self.begin(f"checking {trial.line.name} {trial.line.wanted or ''}".strip())
            line = tried(trial, self.device)
            self.note(lines=(*self.case.lines, line))
            if not line.trouble:
                calls[number] = trial.call
            elif not machine.is_alive(self.device):  # all that comes after would have the same fault
                raise RuntimeError(f"{line.name} ended it: {line.trouble}")
            self.watch(Notice(f"{shape}: {self.case.doing}: {line.trouble or errors(line)}", detail=True))
        self.begin("timing")
        self.watch(Work(self.job.repeats))
        timer, order = stopwatch.Stopwatch(self.device), random.Random(SEED)

        def one_round() -> None:
            numbers = order.sample(list(calls), len(calls))
            lines = list(self.case.lines)
            for number, took in zip(numbers, timer.time([calls[number] for number in numbers]), strict=True):
                lines[number] = replace(lines[number], samples_ms=(*(lines[number].samples_ms or ()), round(took, 5)))
            self.note(lines=tuple(lines), rounds=self.case.rounds + 1)
            self.watch(Done(1))

        timer.time(calls.values())  # clocks and temperature as they will be
        self.note(cut=rounds(one_round, self.job.repeats, share, self.end - RESERVE))
        self.note(after=self.state())

    def state(self) -> State | None:
        """The card's, now."""
        return machine.card_state(self.device) if self.device.type == "cuda" else None

    def leave(self) -> None:
        """End the process, with the record as it stands."""
        self.record = replace(self.record, cut="the budget of seconds was spent")
        doing = next((case.doing for case in self.record.cases if case.doing), "starting")
        try:
            kept = self.save() or f"what was measured is in {self.path}"
            more = f"allow more {option('seconds')}, or measure fewer values"
            self.watch(Notice(f"stopped after {self.record.seconds:g} s while {doing}; {kept}: {more}"))
        finally:
            os._exit(1)


def rounds(
    one_round: Callable[[], None], repeats: int, share: float, end: float, clock: Callable[[], float] = time.monotonic
) -> str | None:
    """Run `one_round` up to `repeats` times: LEAST_ROUNDS times until `end`, and on until `share`, moments of the
    clock. Returns why no more were run. None is begun that would end too late if it took as long as the longest."""
    longest = 0.0
    for done in range(repeats):
        begin = clock()
        until, what = (share, "this shape's share of the budget") if done >= LEAST_ROUNDS else (end, "the budget")
        if begin + longest >= until:
            return f"{what} of seconds was spent"
        one_round()
        longest = max(longest, clock() - begin)
    return None


def errors(line: Line) -> str:
    """What a check found, in words."""
    every = {**(line.error_to_emulator or {}), "exact": line.error_to_exact}
    return ", ".join(f"error to {name} {value:.2g}" for name, value in every.items() if value is not None) or "runs"
