"""Helps: readable at any width, in whole sentences; the names that other tools give to our options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fpsgen import assets
from fpsgen.choices import ENLARGED
from fpsgen.cli import app
from fpsgen.cli.options import INSTEAD, OTHER_NAMES
from fpsgen.settings import DEFAULTS
from fpsgen.weights.known import MODELS
from tests.tools.cli_page import commands, help_of

EVERY = dict(commands(typer.main.get_command(app)))
NAMES = [" ".join(path) or "fpsgen" for path in EVERY]


def shown(path: tuple[str, ...], columns: int) -> list[str]:
    return help_of(EVERY[()], path, columns).splitlines()


def options(command: Any) -> list[Any]:
    return [param for param in command.params if param.param_type_name == "option" and not param.hidden]


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("path", EVERY, ids=NAMES)
def test_a_help_fits_its_terminal_and_splits_no_word(path: tuple[str, ...], columns: int) -> None:
    lines = shown(path, columns)
    assert max(map(len, lines)) <= columns
    flat = " ".join(" ".join(lines).split())
    for param in EVERY[path].params:
        if not param.hidden:
            assert " ".join((param.help or "").split()) in flat  # which it is not where a word was split
    assert not re.search(r"<\w+>|\[bold\]", flat)


@pytest.mark.parametrize("columns", range(1, 10))
def test_a_terminal_too_narrow_for_a_word_gets_the_help(columns: int) -> None:
    assert "surfing" in " ".join(shown((), columns))


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("path", EVERY, ids=NAMES)
def test_examples_are_of_the_command_itself_and_each_stands_on_one_line(path: tuple[str, ...], columns: int) -> None:
    lines = shown(path, columns)
    found = [line.strip() for line in lines[lines.index("Examples") + 1 :]]
    assert found == EVERY[path].epilog.strip().splitlines()
    assert all(" ".join(("fpsgen", *path)) in line for line in found)


@pytest.mark.parametrize("path", EVERY, ids=NAMES)
def test_a_help_is_made_of_sentences_and_names_every_value(path: tuple[str, ...]) -> None:
    command = EVERY[path]
    for text in (command.help, *(param.help for param in command.params if not param.hidden)):
        assert text[0].isupper(), text
        assert text.endswith("."), text
        assert not re.match(r"(Of|Whom|Only what|Prompts behind)\b", text), text
    for param in options(command):
        if "completion" not in param.name:  # Typer's own
            assert param.is_flag or param.metavar, param.name


@pytest.mark.parametrize("name", ["generate", "calibrate", "bench", "bench quality", "bench attention", "train"])
def test_every_option_of_a_long_help_stands_in_a_named_group(name: str) -> None:
    path = tuple(name.split())
    assert all(param.rich_help_panel for param in options(EVERY[path]))
    titles = [line for line in shown(path, 80) if line and not line.startswith((" ", "Usage"))]
    assert "Output" in titles
    assert "Options" not in titles


def test_a_group_that_is_a_command_says_how_it_is_called_either_way() -> None:
    """And a command of it, that nothing stands before its name."""
    flat = " ".join(" ".join(shown(("train",), 120)).split())
    assert flat.startswith("Usage: fpsgen train [OPTIONS] MODEL or fpsgen train COMMAND")
    assert "Commands prepare Make the data" in flat
    assert shown(("train", "prepare"), 120)[0].startswith("Usage: fpsgen train prepare [OPTIONS] MODEL")


def test_defaults_in_a_help_are_the_pockets_own_numbers_too() -> None:
    """Numbers of the pocket's card, and of the one table for Wan; what most models have comes last."""
    card = json.loads((assets.folder("pocket") / "pocket.json").read_text(encoding="utf-8"))
    text = " ".join(" ".join(shown(("generate",), 80)).split())
    for setting in ("frames", "steps", "guidance", "shift"):
        found = re.search(rf"--{setting} \w+ [^\[]*\[default: ([^\]]+), else ([\d.]+)\]", text)
        assert found is not None
        told = [part.split(" for ") for part in found[1].split(", ")]
        values = {name: value for value, names in told for name in names.split(" and ")}
        wan = {name: known.own.get(setting, getattr(DEFAULTS[known.kind], setting)) for name, known in MODELS.items()}
        models = {name: f"{value:g}" for name, value in wan.items() if MODELS[name].is_wan_ais}
        models["pocket"] = f"{card[setting]:g}"
        assert {name: values.get(name, found[2]) for name in models} == models
    width, height = card["size"]
    sizes = {"generate": f"{ENLARGED * width}x{ENLARGED * height}", "calibrate": f"{width}x{height}"}
    for command, size in sizes.items():
        wanted = f"[default: {size} for pocket, 832x480 for 1.3b and i2v-480p, 1280x704 for 5b, else 1280x720]"
        assert wanted in " ".join(" ".join(shown((command,), 80)).split())


@pytest.mark.parametrize("name", [name for names in OTHER_NAMES.values() for name in names])
def test_other_tools_names_of_an_option_work(name: str, pocket_folder: Path, tmp_path: Path) -> None:
    """By a value that the option refuses, or takes so far: every one gets to it, and is told by its own name."""
    (ours,) = (ours for ours, names in OTHER_NAMES.items() if name in names)
    wrong = {
        "negative": "x" * 5001, "frames": 2, "guidance": -1, "guidance_low": -1, "steps": 0,
        "shift": 0, "res": "big", "solver": "ddim", "sigmas": "ours", "seed": -1,
        "model": "nowhere", "output": tmp_path / "a.avi", "image": "no.png", "last_image": "no.png",
    }[ours]  # fmt: skip
    model = [] if ours == "model" else ["--model", str(pocket_folder)]
    args = ["generate", "a cat", *model]
    results = [
        CliRunner().invoke(app, [*args, option, str(wrong)])
        for option in (f"--{ours.replace('_', '-')}", name, f"--{name[2:].replace('-', '_')}")
    ]
    assert [result.exit_code for result in results] == [2, 2, 2]
    assert results[0].output == results[1].output == results[2].output
    assert "No such option" not in results[0].output


def test_other_names_stay_out_of_the_help() -> None:
    text = "\n".join(shown(("generate",), 120))
    assert not [name for names in OTHER_NAMES.values() for name in names if f"{name} " in text]


@pytest.mark.parametrize("name", [name for name in INSTEAD if name.startswith("-")])
def test_an_option_that_other_tools_have_is_told_with_what_to_use(name: str) -> None:
    for given in (name, f"--{name[2:].replace('-', '_')}") if name.startswith("--") else (name,):
        result = CliRunner().invoke(app, ["generate", "a cat", given, "1"], env={"COLUMNS": "400"})
        assert result.exit_code == 2
        assert INSTEAD[name] in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("generate --model ", "14b"),
        ("generate --preset pocket", "pocket-quality"),
        ("bench --compare st", "steps:"),
        ("bench quality --compare sdpa-f", "sdpa-flash"),
        ("generate --solver ", "dpm++"),
        ("generate --device ", "cuda"),
        ("generate --res ", "720p"),
        ("presets show ba", "balanced"),
        ("models pull ", "1.3b"),
        ("train poc", "pocket"),
        ("train pre", "prepare"),
        ("train pocket --preset ba", "balanced"),
        ("train prepare poc", "pocket"),
        ("kernels show attention", "attention-fp8-fp16"),
    ],
)
def test_a_shell_completes_names(command: str, expected: str) -> None:
    assert expected in completed(command)


def test_a_shell_completes_paths_of_the_right_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("half.toml", "half.txt", "half.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "half").mkdir()
    assert completed("generate --preset hal") == ["half/", "half.toml"]
    assert completed("generate --model ./h") == ["./half/", "./half.safetensors"]
    assert completed("generate --model nowhere/") == []


def completed(command: str) -> list[str]:
    number = len(f"{command}x".split())  # of the word that is being typed
    env = {"_FPSGEN_COMPLETE": "complete_bash", "COMP_WORDS": f"fpsgen {command}", "COMP_CWORD": str(number)}
    result = CliRunner().invoke(app, [], prog_name="fpsgen", env=env)
    assert result.exit_code == 0, result.output
    return result.stdout.split()
