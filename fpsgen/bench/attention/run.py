"""How fast attention is on this card, at Wan2.1's true shapes: torch's, FlexAttention's and our kernel's.

Every result is checked on sampled rows before it is timed, and none that is wrong gets a time.
"""

from __future__ import annotations

import os
import random
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fpsgen import files, machine
from fpsgen.attention.emulator import VARIANTS
from fpsgen.bench import stopwatch
from fpsgen.bench.attention import report
from fpsgen.bench.attention.contenders import MOST_WORDS, Inputs, contenders, tried
from fpsgen.bench.attention.shapes import DENSITIES, Deadline, Shape, chosen_windows, rounds
from fpsgen.errors import FpsgenError

FORMAT = 1  # of the record, which docs/bench.md describes
LEAST_ROUNDS = 3
RESERVE = 5  # seconds of the budget, for the last tables
SEED = 0
_ATTEMPTS = 100  # to write the record while it grows


@dataclass(frozen=True)
class Settings:
    """What is measured. densities: as they are written, 1/4 or 0.25; variants: keys of `emulator.VARIANTS`; repeats:
    samples of each contender; seconds: after which it ends, whatever is missing."""

    shapes: tuple[Shape, ...]
    densities: tuple[str, ...] = DENSITIES
    variants: tuple[str, ...] = tuple(VARIANTS)
    repeats: int = 20
    seconds: float = 500.0


class Watcher(Protocol):
    """Whoever looks on. doing: what begins now; found: what came of it; round: so many samples are taken of each;
    ended: the last that is heard, when the time is up."""

    def doing(self, text: str) -> None: ...

    def found(self, text: str) -> None: ...

    def round(self, done: int, total: int) -> None: ...

    def ended(self, text: str) -> None: ...


def measure(
    settings: Settings, device: torch.device, path: Path, command: list[str], watcher: Watcher
) -> dict[str, Any]:
    """The record; written to `path`, a .json file, and its page beside it, anew after each shape.

    device: a CUDA card. Where the time is up, the process ends there and then, with exit code 1.
    """
    hard, total = Deadline(settings.seconds), Deadline(settings.seconds - RESERVE)
    watcher.doing("looking at the card")
    record = {"kind": "attention", "format": FORMAT, **machine.provenance(command), "card": stopwatch.card(device)}
    record |= {"seed": SEED, "repeats": settings.repeats, "seconds": settings.seconds, "cases": []}
    try:
        files.write_json(path, record)  # a place that cannot be written is no news for later
    except OSError as fault:
        raise FpsgenError(f"{path} cannot be written: {fault.strerror or fault}", hint="choose another -o") from None
    watchdog = end_at(hard, path, record, watcher)
    try:
        run(settings, device, total, path, record, watcher)
    finally:
        watchdog.cancel()
    return record


@torch.inference_mode()
def run(
    settings: Settings, device: torch.device, total: Deadline, path: Path, record: dict[str, Any], watcher: Watcher
) -> None:
    """One case after another, each with an equal share of the time that is left."""
    for number, what in enumerate(settings.shapes):
        case: dict[str, Any] = {**what.facts, "lines": []}
        record["cases"].append(case)
        own = total.share(len(settings.shapes) - number)
        try:
            fill(case, what, settings, device, total, own, watcher)
        except Exception as fault:  # of the card, or no memory: the other shapes may run
            case["fault"] = f"{type(fault).__name__} while {case['doing']}: {fault}"[:MOST_WORDS]
            if not machine.is_alive(device):
                record["cut"] = "nothing runs on the GPU any more in this process"
        del case["doing"]
        report.derive(case["lines"], record["card"])
        try:
            files.write_json(path, record)
            files.write_text(page_of(path), report.document(record))
        except OSError as fault:  # room may be made, and what is measured is told at the end
            watcher.found(f"{path} cannot be written: {fault.strerror or fault}")
        if "cut" in record:
            return
        torch.cuda.empty_cache()  # the next shape's tensors have other sizes


def fill(
    case: dict[str, Any],
    what: Shape,
    settings: Settings,
    device: torch.device,
    total: Deadline,
    own: Deadline,
    watcher: Watcher,
) -> None:
    """One case of the record: every contender checked, then timed in rounds. It says at each moment, under "doing",
    what runs: if that never ends, the record that is left behind names it."""

    def begin(text: str) -> None:
        case["doing"] = text
        watcher.doing(f"{what}: {text}")

    begin("making the inputs")
    case["before"] = machine.card_state(device)
    running = []
    windows = chosen_windows(what.tiles, settings.densities)
    for contender in contenders(Inputs(what, device, SEED), windows, settings.variants):
        line = contender.line
        case["lines"].append(line)
        begin(f"checking {line['name']} {line.get('wanted', '')}".strip())
        if tried(contender):
            line["samples_ms"] = []
            running.append(contender)
        elif not machine.is_alive(device):  # all that comes after would have the same fault
            raise RuntimeError(f"{line['name']} ended it: {line.get('fault') or line['why_not']}")
        watcher.found(f"{what}: {case['doing']}: {line.get('why_not') or line.get('fault') or errors(line)}")
    begin("timing")
    watch, order = stopwatch.Stopwatch(device), random.Random(SEED)

    def one_round() -> None:
        order.shuffle(running)
        for contender, milliseconds in zip(running, watch.time([one.call for one in running]), strict=True):
            contender.line["samples_ms"].append(round(milliseconds, 5))
        watcher.round(len(running[0].line["samples_ms"]) if running else 0, settings.repeats)

    watch.time([one.call for one in running])  # clocks and temperature as they will be
    case["rounds"], case["cut"] = rounds(one_round, settings.repeats, LEAST_ROUNDS, total, own)
    case["after"] = machine.card_state(device)


def errors(line: dict[str, Any]) -> str:
    """What a check found, in words."""
    found = {**line.get("error_to_emulator", {}), "exact": line.get("error_to_exact")}
    return ", ".join(f"error to {name} {value:.2g}" for name, value in found.items() if value is not None) or "runs"


def page_of(path: Path) -> Path:
    """Where the Markdown page of a record goes."""
    return path.with_suffix(".md")


def end_at(hard: Deadline, path: Path, record: dict[str, Any], watcher: Watcher) -> threading.Timer:
    """Leave, with the record as it stands, when the time is up: a kernel that hangs cannot be waited for."""

    def leave() -> None:
        record["cut"] = "the budget of seconds was spent"
        kept = f"{path} cannot be written"
        try:
            for _ in range(_ATTEMPTS):
                with suppress(RuntimeError):  # the main thread has put something into it meanwhile
                    files.write_json(path, record)
                    kept = f"what was measured is in {path}"
                    break
        except OSError as fault:
            kept += f": {fault.strerror or fault}"
        finally:
            doing = [case["doing"] for case in record["cases"] if "doing" in case]
            watcher.ended(f"stopped after {record['seconds']:g} s while {' '.join(doing) or 'starting'}; {kept}")
            os._exit(1)

    timer = threading.Timer(hard.left, leave)
    timer.daemon = True
    timer.start()
    return timer


def troubled(case: dict[str, Any]) -> bool:
    """Whether a contender failed, gave a wrong result, or could not be timed."""
    unfinished = bool(case.get("cut")) and case["rounds"] < LEAST_ROUNDS
    return "fault" in case or unfinished or any("fault" in line for line in case["lines"])
