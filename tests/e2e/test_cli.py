"""The command as a whole: help, version, start-up time, and a process that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fpsgen import __version__
from fpsgen.cli import app


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout.strip() == f"fpsgen {__version__}"


def test_help_shows_examples() -> None:
    result = CliRunner().invoke(app, ["generate", "--help"])
    assert result.exit_code == 0
    assert 'fpsgen generate "a cat surfing" --res 720p' in " ".join(result.stdout.split())


def test_help_breaks_a_paragraph_where_the_terminal_ends_alone() -> None:
    result = CliRunner().invoke(app, ["bench", "attention", "--help"], env={"COLUMNS": "400"})
    (line,) = (line for line in result.stdout.splitlines() if "Needs no checkpoint." in line)
    assert line.rstrip().endswith("wrong, or had no time.")


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fpsgen.cli import app\n"
        "for args in (['--help'], ['generate', '--help']):\n"
        "    assert CliRunner().invoke(app, args).exit_code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_whoever_stops_reading_does_not_end_the_work(pocket_folder: Path, tmp_path: Path) -> None:
    """As of `2>&1 | head`: hours of work are not lost with the reader of its messages."""
    video = tmp_path / "cat.mp4"
    command = [
        sys.executable,
        "-m",
        "fpsgen",
        "generate",
        "a cat",
        "--model",
        pocket_folder,
        "--steps",
        "2",
        "-o",
        video,
    ]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        running.stderr.close()
        assert running.stdout is not None
        said = running.stdout.read().decode()
    assert (running.returncode, said.strip()) == (0, str(video))
    assert video.exists()


def test_help_starts_as_fast_as_its_libraries() -> None:
    """At most 0.25 s above a Python that imports typer and rich; best of several runs each, interleaved."""
    ours = [sys.executable, "-m", "fpsgen", "--help"]
    bare = [sys.executable, "-c", "import typer, rich.console, rich.progress, rich.table"]
    best = {"ours": float("inf"), "bare": float("inf")}
    for _ in range(5):
        for name, command in (("ours", ours), ("bare", bare)):
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            best[name] = min(best[name], time.perf_counter() - begin)
    assert best["ours"] <= best["bare"] + 0.25


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_terminated_run_leaves_nothing_and_exits_as_shells_have_it(
    wan_folder: Path, tmp_path: Path, name: str
) -> None:
    command = [
        sys.executable, "-m", "fpsgen", "generate", "cat", "--model", str(wan_folder), "--res", "96x64",
        "--frames", "9", "--steps", "1000", "-o", str(tmp_path / "a.mp4"), "--verbose",
    ]  # fmt: skip
    # Under nohup the signal is ignored, and so it would be by the child.
    number = getattr(signal, name)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)
    )
    assert process.stderr is not None
    for line in process.stderr:  # the first step is near once the branches have been arranged
        if "guidance branches" in line:
            break
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert "no video was written" in process.stderr.read()
    assert list(tmp_path.iterdir()) == []
