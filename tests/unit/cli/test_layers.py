"""What commands share lies in modules that are no commands."""

from __future__ import annotations

import ast
from pathlib import Path

import fpsgen.cli
from fpsgen.cli import root

FOLDER = Path(fpsgen.cli.__file__).parent


def imported(path: Path) -> set[str]:
    """Modules of fpsgen.cli that a module of it imports, also inside of functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "fpsgen.cli":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fpsgen.cli."):
            names.add((node.module or "").removeprefix("fpsgen.cli."))
    return names & {path.stem for path in FOLDER.glob("*.py")}


def test_no_command_imports_another() -> None:
    """But the group `bench`, whose commands are three modules."""
    commands = {name for name in imported(FOLDER / "root.py") if hasattr(getattr(root, name, None), "app")}
    commands |= {"generate", "calibrate", "doctor", "bench_attention", "bench_quality"}
    assert {"models", "presets", "kernels", "config", "bench"} <= commands
    wrong = {name: imported(FOLDER / f"{name}.py") & commands for name in commands}
    wrong["bench"] -= {"bench_attention", "bench_quality"}
    assert not {name: others for name, others in wrong.items() if others}
