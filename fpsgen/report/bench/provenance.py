"""Where the figures of a record come from: how all pages of `fpsgen bench` end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpsgen.report import html, words
from fpsgen.report.words import DASH

_VERSIONS = ("fpsgen", "python", "torch", "diffusers", "transformers")
_LIBRARIES = ("driver", "cuda", "cudnn", "cupy", "nvrtc", "triton")  # of a card
_STATE = {
    "clocks.sm": "SM clock, MHz", "clocks.mem": "Memory clock, MHz", "power.draw": "Power, W",
    "temperature.gpu": "Temperature, °C",
}  # fmt: skip


def measured_on(record: Mapping[str, Any]) -> str:
    """The processor that did the work."""
    card, machine = record.get("card"), record["machine"]
    return html.text(card["gpu"] if card else _machine(machine))


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu'] or 'an unknown processor'}, {machine['cores'] or '?'} cores"


def facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Machine, versions, date and commit, for a list of definitions."""
    machine, card = record["machine"], record.get("card")
    rows = {"Machine": f"{_machine(machine)}, {words.gigabytes(machine['memory_bytes'])} of memory"}
    if card:
        clock, source, copied = card["clock_hz"], card["clock_source"], card["copy_bytes_per_second"]
        memory = words.gigabytes(card["memory_bytes"]) if "memory_bytes" in card else "memory"
        rows["Card"] = (
            f"{card['gpu']}, {card['multiprocessors']} SMs, {memory}; "
            f"boost clock {clock / 1e9:.3f} GHz by {source}; a large copy moves {copied / 1e12:.2f} TB/s"
        )
        rows["Driver and libraries"] = _named(card, _LIBRARIES)
    rows["Versions"] = _named(machine, _VERSIONS)
    rows["Date"] = str(record["date"])
    rows["Commit"] = str(record["commit"] or "unknown: no checkout")
    return {name: html.text(value) for name, value in rows.items()}


def _named(given: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {given[name]}" for name in names if given.get(name) is not None)


def states(runs: list[str], found: list[dict[str, Any]] | None) -> str:
    """The card after each run; nothing where there is no card. runs: in words."""
    if not found:
        return ""
    heads = ["After", *(told for key, told in _STATE.items() if key in found[0])]
    rows = [
        [html.text(run), *(DASH if state[key] is None else f"{state[key]:g}" for key in _STATE if key in state)]
        for run, state in zip(runs, found, strict=False)
    ]
    return f"<h3>The card after each run</h3>\n{html.table('The card after each run', heads, rows)}"


def notes(record: Mapping[str, Any]) -> str:
    told = record.get("notes") or []
    return f"<h2>Notes</h2>\n{html.listed(html.prompt(note) for note in told)}\n" if told else ""


def command(record: Mapping[str, Any]) -> str:
    return f"<h3>The command</h3>\n{html.command(record['command'])}"
