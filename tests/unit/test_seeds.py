"""One rule for seeds: every command takes 0 to 2^64 - 1, as torch does."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fpsgen import seeds
from fpsgen.cli import app
from fpsgen.errors import UsageError

# The names of each command, and what it takes beside a seed; there is no model of that name.
COMMANDS = {
    ("generate",): ["a cat", "--model", "nope"],
    ("bench",): ["--model", "nope"],
    ("bench", "quality"): ["--model", "nope"],
    ("calibrate",): ["--model", "nope"],
    ("train",): ["nope", "--data", "data", "-o", "out"],
    ("train", "prepare"): ["nope", "-o", "data", "--from-model", "--prompts", __file__],
}


def test_these_are_the_commands_that_take_a_seed() -> None:
    def taking(command: Any, path: list[str]) -> list[list[str]]:
        found = [path] if any(each.name == "seed" for each in command.params) else []
        for name, below in getattr(command, "commands", {}).items():
            found += taking(below, [*path, name])
        return found

    assert sorted(map(tuple, taking(get_command(app), []))) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(("seed", "taken"), [(-1, False), (0, True), (2**63, True), (2**64 - 1, True), (2**64, False)])
def test_all_commands_take_the_same_seeds(command: tuple[str, ...], seed: int, taken: bool) -> None:
    """What is refused next, where the seed is taken, is a model that nobody has."""
    result = CliRunner().invoke(app, [*command, "--seed", str(seed), *COMMANDS[command]])
    assert result.exit_code == 2
    assert (str(2**64 - 1) in result.output, "nope" in result.output) == (not taken, taken)


def test_behind_the_last_seed_comes_the_first() -> None:
    assert [seeds.next_seed(2**64 - 2, number) for number in range(4)] == [2**64 - 2, 2**64 - 1, 0, 1]


def test_the_largest_seed_makes_noise() -> None:
    """torch's generator on a CPU reads the lower 32 bits of a seed: seeds 2^32 apart have the same noise."""
    from fpsgen.solvers import noise

    low, high, wrapped = (noise(1, (1, 2, 2), seed) for seed in (0, 2**64 - 1, 2**63))
    assert not high.equal(low)
    assert wrapped.equal(low)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**60])
def test_what_is_no_seed_is_refused(seed: int) -> None:
    with pytest.raises(UsageError):
        seeds.check_seed(seed)
