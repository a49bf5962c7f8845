"""What the parser refuses: one sentence, the fix, exit code 2; with --json an object, and nothing else on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fpsgen.cli import app

REFUSED = [
    (["--nonsense"], "fpsgen has no option --nonsense", "fpsgen --help"),
    (["generat", "a cat"], "fpsgen has no command generat", "did you mean generate?"),
    (["generate", "a cat", "--stps", "4"], "fpsgen generate has no option --stps", "did you mean --steps?"),
    (["generate", "a cat", "--seed", "1e5"], "--seed 1e5: this is not a whole number", "give a whole number"),
    (["generate", "a cat", "--guidance", "x"], "--guidance x: this is not a number", "give a number"),
    (["generate", "a cat", "--solver", "eulr"], "--solver eulr: there is no such choice", "did you mean euler?"),
    (["generate", "a cat", "--solver", "x"], "--solver x: there is no such choice", "give one of unipc, dpm++, euler"),
    (["generate", "a cat", "--seed"], "--seed needs a value", "write one after --seed"),
    (["generate", "a cat", "--verbose=1"], "--verbose takes no value", "write --verbose alone"),
    (["generate", "--steps", "3"], "PROMPT is missing", "fpsgen generate --help"),
    (["generate", "a", "cat"], "fpsgen generate cannot tell what these words are for", "put quotes around words"),
    (["models", "chek"], "fpsgen models has no command chek", "did you mean check?"),
    (["models", "check", "--verbos"], "fpsgen models check has no option --verbos", "did you mean --verbose?"),
    (["kernels", "show"], "NAME is missing", "fpsgen kernels show --help"),
    (["bench", "quality", "--seeds", "0"], "--seeds 0:", "fpsgen bench quality --help"),
    (["doctor", "now"], "fpsgen doctor cannot tell", "quotes"),
    (["--steps", "3", "generate", "a"], "fpsgen has no option --steps", "stands after the command"),
    (
        ["generate", "a cat", "--grid", "it's"],
        "--sigmas it's: there is no such choice",
        "give one of original, diffusers",
    ),
    (["models", "list", "--steps"], "fpsgen models list has no option --steps", "lists what there is"),
    (["bench", "--frames", "5", "quality"], "--frames stands before quality", "fpsgen bench quality"),
    # What belongs to the line that was typed, and nothing far from it.
    (["generate", "a cat", "--quiet"], "fpsgen generate has no option --quiet", "lists what there is"),
    (["generate", "a cat", "--cats", "5"], "fpsgen generate has no option --cats", "lists what there is"),
    (["generate", "a cat", "-n", "5"], "fpsgen generate has no option -n", "another --seed"),
    (["generate", "a cat", "--duration", "5"], "fpsgen generate has no option --duration", "--frames N"),
    (["generate", "a cat", "--fast"], "fpsgen generate has no option --fast", "--preset quality, balanced or fast"),
    (["generate", "-3"], "fpsgen generate has no option -3", '-- "-3 degrees"'),
    (["train", "pocket", "--model", "x"], "fpsgen train has no option --model", "needs no option: fpsgen train MODEL"),
    (["a cat surfing"], "fpsgen has no command a cat surfing", 'fpsgen generate "a cat surfing"'),
    (["models", "download", "14b"], "fpsgen models has no command download", "fpsgen models pull"),
    (["kernels", "remove"], "fpsgen kernels has no command remove", "fpsgen kernels --help"),
    # Empty words, as a shell's unset variable leaves them.
    (["models", ""], "fpsgen models has no command ''", "fpsgen models --help"),
    (["models", "pull", ""], "'' is not a model to fetch", "1.3b, 14b"),
    (["models", "check", ""], "the model's name is empty", "name one"),
    (["kernels", "build", ""], "there is no kernel ''", "fpsgen kernels"),
    (["doctor", ""], "fpsgen doctor cannot tell what these words are for: ''", "quotes"),
    (["generate", "a cat", "--frames", ""], "--frames '': this is not a whole number", "give a whole number"),
    (["generate", "a cat", "--solver", ""], "--solver '': there is no such choice", "give one of unipc, dpm++, euler"),
    (["generate", "a cat", "--device", ""], "--device '': fpsgen runs on cpu and cuda", "cuda:0"),
    (["generate", "a cat", "--res", ""], "--res '' is not a size", "832x480"),
]


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


@pytest.mark.parametrize(("args", "says", "fix"), REFUSED)
def test_people_get_a_sentence_and_the_fix(args: list[str], says: str, fix: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: {says}")
    assert hint.startswith("hint:  ")
    assert fix in hint


@pytest.mark.parametrize(("args", "says", "fix"), REFUSED)
def test_programs_get_an_object(args: list[str], says: str, fix: str) -> None:
    result = run(*args, "--json") if args[-1] != "--seed" else run("generate", "a cat", "--json", "--seed")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["exit_code"], told["schema"]) == (2, 2, 1)
    assert told["error"].startswith(says)
    assert fix in told["hint"]


def test_json_with_a_value_is_refused_in_an_object() -> None:
    result = run("models", "list", "--json=1")
    assert (result.exit_code, json.loads(result.stdout)["error"]) == (2, "--json takes no value")


@pytest.mark.parametrize("command", ["models", "presets", "kernels"])
def test_json_before_a_command_is_told_where_it_belongs(command: str) -> None:
    below = "check" if command == "models" else "list"
    for args in (["--json", command], [command, "--json", below]):
        result = run(*args)
        told = json.loads(result.stdout)
        assert result.exit_code == 2
        assert "--json" in told["hint"]


CLEAR = "\x1b[2J\nerror: x"


@pytest.mark.parametrize("args", [[CLEAR], ["generate", "a", "--seed", CLEAR], ["doctor", CLEAR], ["--" + CLEAR]])
def test_what_was_typed_moves_no_cursor(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    assert result.stderr.count("\n") == 2


def test_a_value_of_a_megabyte_fills_no_screen() -> None:
    long = "x" * 1_000_000
    for args in (["generate", "a", "--seed", long], [long], ["generate", "a", f"--{long}"]):
        assert len(run(*args).output) < 1500


def test_a_prompt_that_reads_like_the_option_is_a_prompt() -> None:
    result = run("generate", "--frames", "80", "--", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "4n + 1" in result.stderr


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All commands with their names, groups that are commands themselves included."""
    for name, command in group.commands.items():
        yield f"{path}{name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")


def test_every_command_answers_in_json_and_its_object_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "json.md").read_text(encoding="utf-8")
    for name, command in commands(typer.main.get_command(app)):
        assert any("--json" in parameter.opts for parameter in command.params), name
        assert f"\n## {name}\n" in page or f"`{name}` prints the same" in page, name
    for key in ("error", "hint", "exit_code"):
        assert f"| `{key}` |" in page
