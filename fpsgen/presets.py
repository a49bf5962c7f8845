"""Presets: how sparse and how precise attention is, by noise level. One TOML file holds one preset:

    format = 1
    tile = [3, 5, 8]                # tokens along T, H, W; left out: the model's own

    [[phase]]
    sigma = [1.0, 0.9]              # from this noise level down to that one: dense, not rounded

    [[phase]]
    sigma = [0.9, 0.0]
    window = [3, 5, 5]              # tiles along T, H, W: odd, or all there are
    qk = "int8"                     # bf16 (not rounded), fp8 or int8
    pv = "fp8"                      # bf16 (not rounded) or fp8
    smooth_k = true                 # the default

Phases are keyed by noise level and not by step, so that a preset means the same at any step count and flow shift.
"""

from __future__ import annotations

import difflib
import reprlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from fpsgen.attention.plan import AttentionPlan, PVPrecision, QKPrecision
from fpsgen.attention.tiles import Shape3, TileGrid
from fpsgen.errors import UsageError

FORMAT = 1
_MOST_BYTES = 2**14  # tomllib needs memory by the square of a key's dots
_MOST_PHASES = 100
_ROUNDING = 1e-6
_HINT = 'the least: format = 1, and [[phase]] with sigma = [1.0, 0.0], window = [3, 3, 3], qk = "int8", pv = "fp8"'


@dataclass(frozen=True)
class Phase:
    """What attention does from noise level sigma[0] down to just above sigma[1]; window None is dense."""

    sigma: tuple[float, float]
    window: Shape3 | None = None
    qk: QKPrecision = "bf16"
    pv: PVPrecision = "bf16"
    smooth_k: bool = True

    def plan(self, tiles: TileGrid) -> AttentionPlan:
        """ValueError where the window is none over `tiles`."""
        window = None if self.window is None else tiles.fit(self.window)
        return AttentionPlan(tiles, (window,), (), self.qk, self.pv, self.smooth_k)


@dataclass(frozen=True)
class Preset:
    """Phases from sigma 1 down to 0, without a gap. tile: None for the model's own."""

    name: str
    phases: tuple[Phase, ...]
    tile: Shape3 | None = None

    def at(self, sigma: float) -> Phase:
        """The phase of a noise level. Where one phase ends the next begins; solvers' levels are rounded to float32."""
        return next((phase for phase in self.phases if sigma > phase.sigma[1] + _ROUNDING), self.phases[-1])

    def schedule(self, sigmas: Sequence[float], tiles: TileGrid) -> list[AttentionPlan]:
        """The plan of each step, given the noise level before it.

        UsageError where a window does not fit `tiles`, used or not.
        """
        plans = {}
        for number, phase in enumerate(self.phases, 1):
            try:
                plans[phase] = phase.plan(tiles)
            except ValueError as fault:
                raise UsageError(
                    f"preset {self.name}, phase {number}: {fault}",
                    hint=f"this video has {' x '.join(map(str, tiles.counts))} tiles; use odd lengths, or all of them",
                ) from None
        return [plans[self.at(sigma)] for sigma in sigmas]


# Dense, as exact as the tensors are: what everything is measured against.
BF16 = Preset("bf16", (Phase((1.0, 0.0)),))


def find(name: str) -> Preset:
    """The preset called `bf16`, or that of the file `name`; UsageError that says what is wrong with it."""
    if name == BF16.name:
        return BF16
    try:
        path = Path(name).expanduser()
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as fault:  # RuntimeError: no such user; ValueError: a null character
        if isinstance(fault, FileNotFoundError):
            told = f"there is no preset {name[:200]!r}: no file of that name, and built in is bf16 alone"
        else:
            told = f"cannot read the preset {name[:200]!r}: {getattr(fault, 'strerror', None) or fault}"
        raise UsageError(told, hint="give bf16, or a preset's .toml file") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(
            f"the preset {name[:200]!r} is larger than {_MOST_BYTES} bytes", hint="give a preset's .toml file"
        )
    return parse(data, printable(path.name))


def parse(data: bytes, name: str) -> Preset:
    """A preset from the bytes of its file; UsageError that says what is wrong."""
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UsageError(f"preset {name} is not UTF-8 text", hint="save it as UTF-8") from None
    except (ValueError, RecursionError) as fault:  # no TOML, or a number of thousands of digits
        raise UsageError(f"preset {name} is no TOML: {str(fault)[:200]}", hint="see https://toml.io") from None
    try:
        check_keys(table, ("format", "tile", "phase"))
        if (found := table.get("format")) != FORMAT or type(found) is not int:
            told = f"format = {quoted(found)}" if "format" in table else "it does not begin with its format"
            raise ValueError(f"{told}; this fpsgen reads format = {FORMAT}")
        tile = triple("tile", table["tile"]) if "tile" in table else None
        entries = table.get("phase")
        if isinstance(entries, dict):
            raise ValueError("[phase] needs double brackets: [[phase]]")
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("there is no [[phase]]")
        if len(entries) > _MOST_PHASES:
            raise ValueError(f"it has {len(entries)} phases; at most {_MOST_PHASES} are read")
    except ValueError as fault:
        raise UsageError(f"preset {name}: {fault}", hint=_HINT) from None
    phases: list[Phase] = []
    for number, entry in enumerate(entries, 1):
        try:
            phases.append(parse_phase(entry, phases[-1].sigma[1] if phases else 1.0))
        except ValueError as fault:
            raise UsageError(f"preset {name}, phase {number}: {fault}", hint=_HINT) from None
    if phases[-1].sigma[1] != 0:
        raise UsageError(
            f"preset {name}: the last phase ends at sigma {phases[-1].sigma[1]:g}",
            hint="let it end at 0.0, where the video is done",
        )
    return Preset(name, tuple(phases), tile)


def parse_phase(entry: dict[str, Any], begin: float) -> Phase:
    """One [[phase]], which must start at sigma `begin`; ValueError that says what is wrong."""
    check_keys(entry, [field.name for field in fields(Phase)])
    sigma = entry.get("sigma")
    if not (isinstance(sigma, list) and len(sigma) == 2 and all(type(end) in (int, float) for end in sigma)):
        raise ValueError("sigma must be two numbers, such as [1.0, 0.9]")
    if not all(0 <= end <= 1 for end in sigma):
        raise ValueError(f"sigma = {quoted(sigma)}: noise levels are 0 to 1")
    if sigma[1] > sigma[0] - 2 * _ROUNDING:
        raise ValueError(f"sigma = {sigma!r} does not fall, from noise to video")
    if sigma[0] != begin:
        how = "overlaps what is before it" if sigma[0] > begin else "leaves a gap"
        raise ValueError(f"it starts at sigma {sigma[0]!r} and {how}: it must start at {begin!r}")
    for key, choices in (("qk", get_args(QKPrecision)), ("pv", get_args(PVPrecision))):
        if (value := entry.get(key, "bf16")) not in choices:
            raise ValueError(f"{key} = {quoted(value)}; it is one of {', '.join(choices)}")
    if not isinstance(entry.get("smooth_k", True), bool):
        raise ValueError("smooth_k must be true or false")
    given = {**entry, "sigma": (float(sigma[0]), float(sigma[1]))}
    if "window" in entry:
        given["window"] = triple("window", entry["window"])
    return Phase(**given)


def check_keys(table: dict[str, Any], known: Sequence[str]) -> None:
    """ValueError for the first key that is not `known`, with the nearest that is."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            told = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"there is no key {quoted(key)}; {told}")


def quoted(value: Any) -> str:
    """A value of a file, no longer than a sentence bears."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def printable(name: str) -> str:
    """A file name as a terminal and a video's metadata can show it."""
    return "".join(c if c.isprintable() else "?" for c in name)


def triple(key: str, value: Any) -> Shape3:
    """Three counts; ValueError where `value` is something else."""
    if not (isinstance(value, list) and len(value) == 3 and all(type(n) is int and 0 < n < 2**15 for n in value)):
        raise ValueError(f"{key} = {quoted(value)}; it must be three counts from 1 up, along T, H and W")
    t, h, w = value
    return t, h, w
