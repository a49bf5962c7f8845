"""Only `fpsgen/cli/` knows that the setting `steps` is typed as `--steps`."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import fpsgen
from fpsgen.cli.options import OTHER_NAMES
from fpsgen.cli.output import in_flags
from fpsgen.cli.root import app
from fpsgen.errors import UsageError, option, plain

PACKAGE = Path(fpsgen.__file__).parent
# Arguments of other programs that look like ours: nvidia-smi's, curl's, ffmpeg's, ptxas'.
THEIRS = {
    ("machine.py", "--format"), ("bench/perceptual.py", "-o"), ("ffmpeg.py", "-v"), ("video.py", "-y"),
    ("kernels/cache.py", "-v"), ("comment.py", "-y"), ("formats.py", "-y"), ("sheet.py", "-y"),
    ("train/clips.py", "-y"),
}  # fmt: skip


def commands() -> Iterator[Any]:
    todo = [typer.main.get_command(app)]
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        yield command


def parameters() -> Iterator[Any]:
    return (one for command in commands() for one in command.params if one.param_type_name == "option")


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("cli/"):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def test_no_text_outside_the_command_line_names_a_flag() -> None:
    flags = {name for one in parameters() for name in (*one.opts, *OTHER_NAMES.get(one.name or "", ()))}
    found = [
        (name, node.lineno, flag)
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*(?!\w)", node.value)
        if flag in flags and (name, flag) not in THEIRS
    ]
    assert not found


def test_every_option_of_the_table_is_one_of_a_command() -> None:
    """A text that is left over in the table would be changed in vain. Each has a sentence of its own or none."""
    table = tomllib.loads((PACKAGE / "cli" / "options.toml").read_text(encoding="utf-8"))
    helps = {parameter.help for command in commands() for parameter in command.params}
    todo = [section for title, section in table.items() if title != "instead"]
    while todo:
        for name, entry in todo.pop().items():
            if all(isinstance(value, dict) for value in entry.values()):
                todo.append(entry)
            elif "text" in entry:
                assert entry["text"] in helps, name


def test_every_setting_that_a_text_names_is_an_option() -> None:
    """Else the command line would tell its user to type what it does not take."""
    fields = {one.name for one in parameters()}
    named = {
        node.args[0].value
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option"
        if isinstance(node.args[0], ast.Constant)
    }
    assert {"res", "frames", "seed", "output"} <= named
    assert named <= fields


@pytest.mark.parametrize(
    ("field", "value", "typed", "written"),
    [
        ("steps", 50, "--steps 50", "steps=50"),
        ("guidance", 5.0, "--guidance 5", "guidance=5"),
        ("min_psnr", None, "--min-psnr", "min_psnr"),
        ("output", "a.mp4", "-o a.mp4", "output=a.mp4"),
        ("res", "", "--res ''", "res=''"),
        ("res", "\x1b[2J\x02steps\x03", "--res \\x1b[2J\\x02steps\\x03", "res=\\x1b[2J\\x02steps\\x03"),
    ],
)
def test_a_setting_is_named_as_its_reader_writes_it(field: str, value: object, typed: str, written: str) -> None:
    text = f"try {option(field, value)} (see {option('preset')})"
    assert in_flags(text) == f"try {typed} (see --preset)"
    assert plain(text) == f"try {written} (see preset)"


def test_an_error_is_plain_text_and_keeps_its_settings_inside_another() -> None:
    error = UsageError(f"{option('steps', 0)}: must be 1 to 1000")
    assert str(error) == "steps=0: must be 1 to 1000"
    assert str(UsageError(f"clip 2: {error}")) == "clip 2: steps=0: must be 1 to 1000"
    assert in_flags(f"clip 2: {error}") == "clip 2: --steps 0: must be 1 to 1000"
