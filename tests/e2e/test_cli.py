"""The command as a whole: help, version, start-up time, and a process that is killed."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from typer.testing import CliRunner

from fpsgen import __version__, timing
from fpsgen.cli import app, main


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout.strip() == f"fpsgen {__version__}"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fpsgen.cli import app\n"
        "for command in ([], ['generate'], ['calibrate'], ['bench', 'quality'], ['bench', 'attention']):\n"
        "    result = CliRunner().invoke(app, [*command, '--help'])\n"
        "    assert ' '.join(['fpsgen', *command]) in ' '.join(result.stdout.split()), result.output\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The whole program in this process: its exit code, with these as stdout and stderr."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    hook = sys.unraisablehook
    monkeypatch.setattr(timing, "_began", None)  # which `main` sets: later tests are no programs of their own

    def run(*args: object, stdout: TextIO, stderr: TextIO) -> int:
        monkeypatch.setattr(sys, "argv", ["fpsgen", *map(str, args)])
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
    sys.unraisablehook = hook


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A disk without room."""
    if not Path("/dev/full").exists():
        pytest.skip("Linux has it")
    stream = open("/dev/full", "w")  # noqa: SIM115
    yield stream
    with contextlib.suppress(OSError):
        stream.close()


def test_a_full_disk_behind_the_messages_costs_no_video(
    process: Callable[..., int], full: TextIO, pocket_folder: Path, tmp_path: Path
) -> None:
    video, out = tmp_path / "cat.mp4", io.StringIO()
    args = ("generate", "a cat", "--model", pocket_folder, "--steps", 1, "--frames", 1, "-o", video)
    assert process(*args, stdout=out, stderr=full) == 0
    assert out.getvalue().strip() == str(video)
    assert video.exists()


def test_an_error_reaches_a_program_where_people_cannot_be_told(process: Callable[..., int], full: TextIO) -> None:
    out = io.StringIO()
    assert process("generate", "a cat", "--frames", 80, "--json", stdout=out, stderr=full) == 2
    assert json.loads(out.getvalue())["hint"] == "try --frames 77 or 81"


@pytest.mark.parametrize("args", [("presets",), ("presets", "--json"), ("--help",), ("--version",)])
def test_a_result_that_could_not_be_delivered_is_a_failure(
    process: Callable[..., int], full: TextIO, args: tuple[str, ...]
) -> None:
    err = io.StringIO()
    assert process(*args, stdout=full, stderr=err) == 1
    assert err.getvalue().startswith("error: the result could not be written to standard output: No space left")


def test_what_was_closed_before_the_start_is_no_file_of_ours(tmp_path: Path) -> None:
    """A video that got the number of the closed stderr would hold its messages."""
    code = "import os, sys; from fpsgen.cli import streams; streams.guard()\n"
    code += "raise SystemExit(os.open(sys.argv[1], os.O_CREAT))"
    command = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    found = subprocess.run(["sh", "-c", command, sys.executable, code, str(tmp_path / "cat.mp4")])
    assert found.returncode == 3


def test_ctrl_c_while_libraries_load_is_one_quiet_line() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fpsgen", "doctor", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stderr:
            if "rich." in line:  # of the first that are not Python's own
                running.send_signal(signal.SIGINT)
                break
        said = [line for line in running.stderr if "import time:" not in line]
        assert json.loads(running.stdout.read())["exit_code"] == 130
    assert running.returncode == 130
    assert said == ["error: stopped\n"]


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


def test_what_can_be_known_without_torch_is_refused_without_it(tmp_path: Path) -> None:
    """It takes seconds to load, on a busy machine half a minute."""
    (tmp_path / "bad.toml").write_text("format = 1\n")
    refused = [
        ["", ], ["a cat", "--res", "1x1"], ["a cat", "--seed", "-1"], ["a cat", "--device", "nonsense"],
        ["a cat", "--device", "cpu:7"], ["a cat", "-o", "a.avi"], ["a cat", "--preset", "nope"],
        ["a cat", "--preset", str(tmp_path / "bad.toml")], ["a cat", "--model", "nope"],
        ["a cat", "--model", str(tmp_path)],
    ]  # fmt: skip
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fpsgen.cli import app\n"
        f"for args in {refused!r}:\n"
        "    result = CliRunner().invoke(app, ['generate', *args])\n"
        "    assert result.exit_code == 2, result.output\n"
        "    assert 'torch' not in sys.modules, args\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_video_loads_no_library_that_it_does_not_use(wan_folder: Path, tmp_path: Path) -> None:
    """Each of these takes as long as the pocket model's decoding, or longer."""
    arguments = [
        "generate", "cat", "--model", str(wan_folder), "--res", "96x64", "--frames", "5", "--steps", "2",
        "-o", str(tmp_path / "a.mp4"),
    ]  # fmt: skip
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fpsgen.cli import app\n"
        f"result = CliRunner().invoke(app, {arguments!r})\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'diffusers', 'transformers', 'torch._dynamo', 'sympy', 'scipy', 'matplotlib', 'PIL', 'jinja2',\n"
        "         'huggingface_hub.hf_api'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_starts_as_fast_as_its_libraries() -> None:
    """At most 0.25 s of CPU above a Python that imports typer and rich; best of several runs each, interleaved."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    ours = [sys.executable, "-m", "fpsgen", "--help"]
    bare = [sys.executable, "-c", "import typer, rich.console, rich.progress, rich.table"]
    best = {"ours": float("inf"), "bare": float("inf")}
    for _ in range(5):
        for name, command in (("ours", ours), ("bare", bare)):
            begin = spent()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            best[name] = min(best[name], spent() - begin)
    assert best["ours"] <= best["bare"] + 0.25


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_a_terminated_run_ends_its_step_and_exits_as_shells_have_it(
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
    said = process.stderr.read()
    assert "stops after this step" in said
    assert said.rstrip().endswith("--resume")  # the command that goes on
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4.unfinished"]
