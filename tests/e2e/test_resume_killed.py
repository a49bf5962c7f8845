"""`fpsgen generate --resume` after kill -9, in processes of their own."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fpsgen import unfinished
from tests.tools.cli import invoke
from tests.tools.videos import metadata, read

PROMPT, NAME = "a cat surfing", "a-cat-surfing-7.mp4"
SMALL = ("--res", "96x64", "--frames", "5", "--steps", "4", "--seed", "7")
POCKET = ("--model", "pocket", "--res", "160x96", "--frames", "9", "--steps", "20", "--seed", "7")
# Of the third state half is on the disk, and the process is killed.
CODE = """
import os, signal
from pathlib import Path
real, count = Path.write_bytes, []
def write(self, data):
    if self.suffix == ".unfinished":
        count.append(1)
        if len(count) == 3:
            real(self, data[:len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
    return real(self, data)
Path.write_bytes = write
"""


def program(folder: Path, *args: object, code: str = "") -> subprocess.Popen[bytes]:
    """`fpsgen generate` in a folder, perhaps after some code."""
    given = [sys.executable, "-c", f"{code}\nfrom fpsgen.cli import main\nmain()", "generate", PROMPT, *map(str, args)]
    return subprocess.Popen(given, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def test_killed_while_a_state_is_written(wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--model", wan_folder, *SMALL)
    assert program(tmp_path, *args, code=CODE).wait() == -signal.SIGKILL
    monkeypatch.chdir(tmp_path)
    state = unfinished.read(Path("a-cat-surfing-7.mp4.unfinished"))
    assert state is not None
    assert state.done == 2
    for more in (("--resume",), ("-o", "whole.mp4")):
        assert invoke(PROMPT, *args, *more).exit_code == 0
    assert metadata("a-cat-surfing-7.mp4")["resumed"] == [2]
    assert (read("a-cat-surfing-7.mp4")[1] == read("whole.mp4")[1]).all()


@pytest.mark.slow
def test_20_random_kills(tmp_path: Path) -> None:
    """At any moment of a run, and again of the run that goes on; each video is that of a run that was not killed."""
    begin = time.monotonic()
    assert program(tmp_path, *POCKET, "-o", "whole.mp4").wait() == 0
    whole, seconds = read(tmp_path / "whole.mp4")[1], time.monotonic() - begin
    moments, resumed = random.Random(25), []
    for number in range(20):
        folder, waits = tmp_path / str(number), number % 2
        folder.mkdir()
        for _ in range(1 + number % 4 // 3):
            running = program(folder, *POCKET, "--resume")
            if waits:  # for the steps, or what comes after them; else loading is hit as well
                while running.poll() is None and not (folder / f"{NAME}.unfinished").exists():
                    time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.5 if waits else 1) * seconds)
            running.kill()
            running.wait()
        assert program(folder, *POCKET, "--resume").wait() == 0
        (video,) = (path for path in folder.iterdir() if not path.name.startswith("."))
        assert video.name == NAME
        assert (read(video)[1] == whole).all()
        resumed.append(metadata(video).get("resumed"))
    print(f"a run takes {seconds:.1f} s; went on after: {resumed}")
    assert any(resumed)
