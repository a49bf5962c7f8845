"""Where a figure comes from: date, commit, command, machine, versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import textwrap
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
    """By one rename: whoever is killed meanwhile leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def commit() -> str | None:
    """Of the tree that this file lies in, marked where it was changed since. A copy that is no repository, or a machine
    without git, may be told by FPSGEN_COMMIT; else None."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
        told = found.stdout.strip()
    except FileNotFoundError:
        told = ""
    return told or os.environ.get("FPSGEN_COMMIT")


def machine() -> dict:
    cpus = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": cpus[0] if cpus else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "diffusers", "transformers", "fpsgen")},
    }


def installed(name: str) -> str | None:
    """A distribution's version; None where it is not installed, as fpsgen where it runs from its tree."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
