"""The order of the house: what may import what, and what is said in one place only. By reading the sources."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Rooms, which are folders and single modules of fpsgen/, from the ground up: each imports only those before it.
ROOMS = [  # a line for each: two people may add one at once
    "printable",
    "timing",
    "errors",
    "launch",
    "ranks",
    "seeds",
    "assets",
    "files",
    "tables",
    "values",
    "metrics",
    "ffmpeg",
    "formats",
    "video",
    "comment",
    "images",
    "sheet",
    "kernels",
    "machine",
    "target",
    "attention",
    "wan",
    "solvers",
    "settings",
    "weights",
    "journal",
    "pocket",
    "presets",
    "attached",
    "replay",
    "request",
    "choices",
    "events",
    "residence",
    "texts",
    "sampling",
    "conditioning",
    "experts",
    "readiness",
    "preview",
    "unfinished",
    "several_gpus",
    "pace",
    "forecast",
    "pipeline",
    "doctor",
    "calibrate",
    "bench",
    "train",
    "report",
    "api",
    "cli",
    "__main__",
]
# Modules of fpsgen/cli that are commands, or groups of them; `root` alone knows them all.
COMMANDS = {
    "bench", "bench_attention", "bench_quality", "calibrate", "config", "doctor", "generate", "info", "kernels",
    "models", "presets", "sheet", "train", "train_prepare",
}  # fmt: skip
GROUPS = {"bench": ("bench_attention", "bench_quality"), "train": ("train_prepare",)}  # and their commands


@cache
def sources(*folders: str) -> dict[str, ast.Module]:
    """The syntax of every module by its dotted name."""
    found = {}
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def imports() -> dict[str, set[str]]:
    """The modules of fpsgen that each of them imports anywhere, in functions and for type checkers too."""
    modules = sources("fpsgen")
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, node in places(modules, (ast.Import, ast.ImportFrom)):
        start = "" if isinstance(node, ast.Import) else f"{node.module}."
        for target in (start + alias.name for alias in node.names):
            found[name].add(target if target in modules else target.rpartition(".")[0])
    return {name: targets & (modules.keys() - {name, "fpsgen"}) for name, targets in found.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def places(where: dict[str, ast.Module], kind: Any) -> Iterator[tuple[str, Any]]:
    """Every piece of syntax of a kind, with its module."""
    return ((name, node) for name, tree in where.items() for node in ast.walk(tree) if isinstance(node, kind))


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(name) for name in imports() if name != "fpsgen"} <= set(ROOMS)


def test_imports_run_downward_only() -> None:
    upward = [
        (name, target)
        for name, targets in imports().items()
        for target in targets
        if name != "fpsgen" and ROOMS.index(room(target)) > ROOMS.index(room(name))
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as circle:
        pytest.fail(" ← ".join(circle.args[1]))


def test_no_command_imports_another() -> None:
    """But groups, whose commands are modules of their own."""
    commands = {f"fpsgen.cli.{name}" for name in COMMANDS}
    assert commands <= set(imports())
    wrong = {(name, target) for name in commands for target in imports()[name] & commands}
    assert wrong <= {(f"fpsgen.cli.{group}", f"fpsgen.cli.{name}") for group, names in GROUPS.items() for name in names}


def test_no_two_classes_share_a_name() -> None:
    where = defaultdict(list)
    for module, node in places(sources("fpsgen"), ast.ClassDef):
        where[node.name].append(module)
    assert not {name: modules for name, modules in where.items() if len(modules) > 1}


def test_one_loop_reads_the_solver_s_timesteps() -> None:
    """Besides the adapter that makes them, and what drives diffusers' own pipeline."""
    every = sources("fpsgen", "benchmarks", "recipes")
    reading = {module for module, node in places(every, ast.Attribute) if node.attr == "timesteps"}
    assert reading - {"fpsgen.solvers", "fpsgen.bench.by_diffusers"} == {"fpsgen.sampling"}


def test_one_place_cuts_a_model_s_tokens_into_tiles() -> None:
    """Outside attention/; the shapes that are fixed by hand, of trials and benches, say so by numbers."""
    making = [
        module
        for module, node in places(sources("fpsgen"), ast.Call)
        if isinstance(node.func, ast.Name) and node.func.id == "TileGrid" and room(module) != "attention"
        if not all(isinstance(value, ast.Tuple) for value in node.args)
    ]
    assert making == ["fpsgen.weights.models"]


def test_no_file_is_longer_than_400_lines() -> None:
    files = (path for folder in ("fpsgen", "tests", "benchmarks", "recipes") for path in (ROOT / folder).rglob("*.py"))
    lengths = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in files}
    assert not {name: length for name, length in lengths.items() if length > 400}
