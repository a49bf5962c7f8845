"""Where a figure comes from: date, commit, command, machine, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fpsgen import __version__

_IF_THERE = ("flash_attn", "flash_attn_3", "sageattention", "lpips")  # what may be measured, or measure
_HERE = Path(__file__).resolve()
_CPUS = Path("/proc/cpuinfo")  # Linux has it


def provenance(command: list[str]) -> dict[str, Any]:
    """What every result begins with."""
    return {"date": str(date.today()), "commit": commit(), "command": command, "machine": machine()}


def commit() -> str | None:
    """The commit of this file's tree, marked where it was changed since; of an installed copy, or without git, what
    FPSGEN_COMMIT says, else None."""
    # A virtual environment may lie in somebody's repository, whose commit is not ours: it does not track this file.
    told = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if git("ls-files", _HERE.name) else ""
    return told or os.environ.get("FPSGEN_COMMIT") or None


def git(*arguments: str) -> str:
    """What git prints in the folder of this file; nothing where it fails, or is absent."""
    try:
        found = subprocess.run(["git", "-C", str(_HERE.parent), *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return "" if found.returncode else found.stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions; None for what the system does not tell."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "diffusers", "transformers")},
        "fpsgen": __version__,
        **{name: found for name in _IF_THERE if (found := installed(name))},
    }


def processor() -> str | None:
    try:
        lines = _CPUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or None


def memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, others may lack these names
        return None


def installed(name: str) -> str | None:
    """A distribution's version; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
