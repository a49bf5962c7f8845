"""The documents name what exists: links, headings, modules, tests, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from fpsgen.cli import app
from tests.tools.cli_page import commands

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(page for room in ("docs", "benchmarks", "presets", "kernels_cuda", "recipes", "tests")
                               for page in (ROOT / room).rglob("*.md"))]  # fmt: skip
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Those that its headings have on a web page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)", read(name)):
        page = (ROOT / name).parent / target if target else ROOT / name
        assert page.exists(), target
        assert not anchor or anchor[1:] in anchors(page), f"{target}{anchor}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_ones_that_exist(name: str) -> None:
    """Every `fpsgen …` in a block of commands names a command and options of it."""
    known = dict(commands(typer.main.get_command(app)))
    for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", read(name), re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^(?:\$ |.*\| |.*-- )?fpsgen (.*)", block.replace("\\\n", ""), re.MULTILINE):
            words = line.split("#")[0].split()
            path: tuple[str, ...] = ()
            while words and (*path, words[0]) in known:
                path = (*path, words.pop(0))
            assert path, line
            options = {option for param in known[path].params for option in param.opts}
            named = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
            assert named <= options | {"--help"}, line


def test_architecture_names_what_exists() -> None:
    """Each place in the table of rooms, and each module that a row with one folder names."""
    for places, about in re.findall(r"^\| (`.*?) \| (.*) \|$", read("ARCHITECTURE.md"), re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", places)
        folder = ROOT / first if first.endswith("/") else (ROOT / first).parent
        assert (ROOT / first).exists(), first
        for place in others:
            assert (ROOT / place).exists() or (folder / place).exists() or (folder.parent / place).exists(), place
        for module in re.findall(r"`([a-z]\w*)/?`", about) if first.startswith("fpsgen/") and not others else ():
            assert (folder / module).is_dir() or (folder / f"{module}.py").exists(), f"{first}: {module}"


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "docs/decisions.md", "CONTRIBUTING.md", "docs/bench.md", "NOTICE"])
def test_files_that_a_page_names_exist(name: str) -> None:
    for path in re.findall(r"\b(?:fpsgen|tests|benchmarks|recipes|kernels_cuda)/[\w/.]*\w", read(name)):
        assert (ROOT / path).exists() or "h100" in path or path.startswith("benchmarks/results/"), path
