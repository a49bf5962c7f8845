"""Every way a command can end becomes a sentence, a fix and an exit code."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import fpsgen
from fpsgen.cli import errors
from fpsgen.errors import RenderError, UsageError


@pytest.mark.parametrize(
    ("error", "says", "code"),
    [
        (UsageError("no such size", hint="try 480p"), "no such size", 2),
        (RenderError("not finite"), "not finite", 1),
        (KeyboardInterrupt(), "stopped", 130),
        (MemoryError(), "not enough memory", 1),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory", 1),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough memory", 1),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory to load the libraries", 1),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory", 1),
        (ModuleNotFoundError("No module named 'safetensors'", name="safetensors"), "No module named 'safetensors'", 1),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero", 1),
    ],
)
def test_explained(error: BaseException, says: str, code: int) -> None:
    app = typer.Typer()

    @app.command()
    @errors.explained
    def fail() -> None:
        raise error

    result = CliRunner().invoke(app)
    assert result.exit_code == code
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_what_needs_less_memory_is_an_option_that_the_command_has() -> None:
    app = typer.Typer()

    @app.command()
    @errors.explained
    def render(res: str = "", frames: int = 1, model: str = "") -> None:
        raise MemoryError

    @app.command()
    @errors.explained
    def check(model: str = "") -> None:
        raise MemoryError

    def hint(command: str) -> str:
        return CliRunner().invoke(app, [command]).stderr.split("hint:")[1].strip()

    assert hint("render") == "try a smaller --res, fewer --frames or a smaller --model"
    assert hint("check") == "end other programs"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @errors.explained
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(errors, "show_tracebacks", True)
    result = CliRunner().invoke(app)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "something went wrong inside fpsgen: ZeroDivisionError" in result.stderr


def test_every_error_that_is_raised_says_what_to_do() -> None:
    """By the source: a class of ours is called with a sentence and a hint, be it none that another error had."""
    ours = {"FpsgenError", "UsageError", "ModelError", "RenderError"}
    raised = [
        (path.name, call)
        for path in Path(fpsgen.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(call := node.exc, ast.Call)
        if isinstance(call.func, ast.Name) and call.func.id in ours
    ]
    assert len(raised) > 100
    without = [
        f"{name}, line {call.lineno}"
        for name, call in raised
        if len(call.args) < 2 and "hint" not in {keyword.arg for keyword in call.keywords}
    ]
    assert not without
