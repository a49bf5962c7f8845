"""`fpsgen info`: what a video was made with, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fpsgen.cli import app
from fpsgen.cli.info import table
from fpsgen.cli.tables import Fitted
from tests.tools.cli import Runner, documented, told


def info(*args: object) -> Any:
    return CliRunner().invoke(app, ["info", *map(str, args)])


@pytest.fixture(scope="module")
def made(wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A video, and what `generate --json` said of it."""
    folder = tmp_path_factory.mktemp("made")
    return Runner(wan_folder, folder)("a cat\n“surfing” [bold]", preset="fast", seed=7, output=folder / "a.webm")


def test_json_has_what_generate_had(made: dict[str, Any]) -> None:
    found = told(info(made["output"], "--json"))
    assert found.keys() == documented("generate")[0] - {"output"} | {"file"}
    assert found == {key: value for key, value in made.items() if key != "output"} | {"file": made["output"]}


def test_a_table_says_all_that_a_person_wants(made: dict[str, Any]) -> None:
    result = info(made["output"])
    assert result.exit_code == 0
    for words in (
        "a cat\\n“surfing” [bold]", made["weights"], "1.3b-480p-fast", "96x64", "5, 16 a second, crf 18", "unipc",
        "shift ", "cpu, ", "fpsgen ", "denoise ", "memory ",
    ):  # fmt: skip
        assert words in result.stdout, words


def test_a_file_that_fpsgen_did_not_make_costs_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a cat")
    for name, says in (("notes.txt", "is no video that"), ("none.mp4", "there is no such file")):
        result = info(tmp_path / name)
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stderr.count("error:") == result.stderr.count("hint:") == 1
        assert told(info(tmp_path / name, "--json"), code=2)["error"]


@pytest.mark.parametrize(
    "odd",
    [
        {},
        dict.fromkeys(("prompt", "loras", "preset", "timings", "scale_to", "attention", "threads", "versions"), 3),
        {"prompt": ["a"], "loras": [3, None, {}], "preset": {"name": {}}, "timings": {"total": "long"}, "seed": {}},
        {"prompt": "\x1b[2J\u202e\ud800", "versions": {"\x1b": "\n"}, "image": {"name": "\r"}, "steps": True},
        {"timings": {"total": float("inf"), "peak_memory_bytes": 10**400}, "threads": 10**400, "scale_to": [[[]]]},
    ],
    ids=["empty", "numbers", "others", "controls", "endless"],
)
def test_whatever_a_comment_says_is_shown_or_passed_over(odd: dict[str, Any]) -> None:
    console = Console(width=100)
    with console.capture() as drawn:
        console.print(Fitted(table({"fpsgen": "0.9", **odd})))
    assert "fpsgen 0.9" in drawn.get()
    assert "\x1b" not in drawn.get()
