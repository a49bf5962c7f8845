"""How long Hopper's instructions take: the table of `pipes.toml`, or what a card was measured to do."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from fpsgen import files
from fpsgen.errors import UsageError
from fpsgen.kernels.disassembly import Instruction
from fpsgen.kernels.registers import is_wgmma, wgmma
from fpsgen.printable import printable

TENSOR_CORES = "tensor cores"
_OTHERS = "others"
_MOST_BYTES = 2**16  # of a file of measured pipes: every name in it is compared with every instruction


@dataclass(frozen=True)
class Cost:
    """Of one instruction, in clocks: how long its pipe is taken, and when its result is there."""

    pipe: str
    interval: float
    latency: float


@dataclass(frozen=True)
class Pipes:
    """Costs by instruction; turn, operands and queue as in `pipes.toml`. source: where the numbers are from."""

    table: tuple[dict[str, Any], ...]
    rest: dict[str, Any]
    source: str
    intervals: dict[str, float] = field(default_factory=dict)  # measured, by instruction
    latencies: dict[str, float] = field(default_factory=dict)
    slowness: float = 1.0  # of all latencies

    @property
    def turn(self) -> float:
        return self.latencies.get("BAR", self.rest["turn"]) * self.slowness

    @property
    def operands(self) -> float:
        return self.rest["operands"]

    @property
    def queue(self) -> int:
        return self.rest["queue"]

    def pessimistic(self) -> Pipes:
        """Latencies half as long again, and two wgmmas at most that wait for the tensor cores."""
        return replace(self, slowness=1.5, rest={**self.rest, "queue": 2})

    def cost(self, instruction: Instruction) -> Cost:
        entry = self._entry(instruction)
        interval = entry.get("interval", self.rest["interval"])
        if "interval_per_column" in entry and is_wgmma(instruction):
            interval = entry["interval_per_column"] * wgmma(instruction).columns
        interval = _nearest(self.intervals, instruction, interval)
        latency = entry.get("latency", self.rest["latency"])
        if whole := _nearest(
            self.latencies, instruction, None
        ):  # measured from the issue, ours from the interval's end
            latency = max(0, whole - interval)
        return Cost(entry.get("pipe", _OTHERS), interval, latency * self.slowness)

    def _entry(self, instruction: Instruction) -> dict[str, Any]:
        by_name = {name: entry for entry in self.table for name in entry["names"]}
        return _nearest(by_name, instruction, {})


def _nearest(by_name: dict[str, Any], instruction: Instruction, default: Any) -> Any:
    """The value under the name that shares the operation and has the most of the instruction's parts.

    To those of a wgmma belongs where its A is: SS, in shared memory, or RS, in registers.
    """
    own = instruction.parts | ({"RS" if wgmma(instruction).a else "SS"} if is_wgmma(instruction) else set())
    fitting = [
        (len(parts), name)
        for name in by_name
        if (parts := name.split("."))[0] == instruction.operation and own.issuperset(parts)
    ]
    return by_name[max(fitting)[1]] if fitting else default


@cache
def shipped() -> Pipes:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return Pipes(tuple(table["instructions"]), table["rest"], "ptxas' stall counts, datasheets and assumptions")


def measured(path: Path) -> Pipes:
    """The shipped table with what a card was measured to do, as `python -m benchmarks.card` writes it.

    JSON: device and versions, and by instruction, in clocks, intervals, and latencies from the issue to what needs the
    result; that of BAR is a turn's. UsageError where the file is none.
    """
    try:
        with files.open_regular(path) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError("no card has so many instructions")
        told = json.loads(data)
        device, parts = told["device"], [_clocks(told[name]) for name in ("intervals", "latencies")]
        if not isinstance(device, str):
            raise TypeError("a device is text")
    except OSError as fault:
        raise UsageError(f"{path} cannot be read: {fault.strerror or fault}", "name a file of measured pipes") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        hint = (
            'it needs "device", and "intervals" and "latencies" with a positive number of clocks for each instruction'
        )
        raise UsageError(f"{path} is no file of measured pipes", hint) from None
    count = len(parts[0].keys() | parts[1].keys())
    source = (
        f"measured on {printable(device, 100)} for {count} instructions ({path.name}), for others {shipped().source}"
    )
    return replace(shipped(), source=source, intervals=parts[0], latencies=parts[1])


def _clocks(given: dict[str, Any]) -> dict[str, float]:
    if not all(type(clocks) in (int, float) and 0 < clocks < math.inf for clocks in given.values()):
        raise ValueError("a number of clocks is positive")
    return {name: float(clocks) for name, clocks in given.items()}
