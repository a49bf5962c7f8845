"""Where a figure comes from: date, commit, command, machine, versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import textwrap
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"


def provenance(command: list[str]) -> dict:
    """What every result begins with."""
    return {"date": str(date.today()), "commit": commit(), "command": command, "machine": machine()}


def page(title: str, *paragraphs: str) -> str:
    """The head of a Markdown page, in lines of 118 characters."""
    return "\n\n".join(
        [f"# {title}", *(textwrap.fill(" ".join(p.split()), 118, break_on_hyphens=False) for p in paragraphs), ""]
    )


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def commit() -> str | None:
    """Of the tree that this file lies in, marked where it was changed since; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() or None


def machine() -> dict:
    cpus = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": cpus[0] if cpus else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "fpsgen")},
    }
