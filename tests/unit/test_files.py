from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fpsgen import files
from fpsgen.errors import UsageError, option


def test_a_regular_file_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with files.open_regular(tmp_path / "link") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_may_never_end_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = {"pipe": tmp_path / "pipe", "folder": tmp_path, "device": Path("/dev/zero")}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(OSError, match="regular file"):
        files.open_regular(path)


ELSEWHERE = f"choose another place or name with {option('output')}"


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("folder", "output=folder is a folder", "name a file, such as folder/my.toml"),
        ("no where/my.toml", "the folder no where does not exist", "mkdir -p 'no where'"),
        ("file/my.toml", "file is not a folder", ELSEWHERE),
        ("file", "output=file is write-protected", ELSEWHERE),
        ("x" * 300, "cannot be written: File name too long", ELSEWHERE),
    ],
)
def test_a_place_is_refused_with_what_is_wrong_and_what_helps(
    name: str, says: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match=says) as told:
        files.check_place(Path(name), "my.toml")
    assert told.value.hint == hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_place_that_will_do_is_left_as_it_was(tmp_path: Path) -> None:
    assert not files.check_place(tmp_path / "new.toml", "my.toml")
    (tmp_path / "old.toml").write_text("kept")
    assert files.check_place(tmp_path / "old.toml", "my.toml")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


LEAVES = """
import os, sys
from pathlib import Path
from fpsgen import files
with files.beside(Path("v.mp4")) as partial, files.temporary_folder("bench") as folder:
    partial.write_bytes(b"half a video")
    (folder / "clip.mp4").write_bytes(b"half a clip")
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_what_a_killed_run_left_goes_with_the_next(tmp_path: Path, temporary: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (temporary / "fpsgen-bench-mine").mkdir()  # of no run, only called so
    ended = subprocess.run([sys.executable, "-c", LEAVES], cwd=out, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert ended.returncode == -signal.SIGKILL
    assert len(list(out.iterdir())) == 1
    assert len(list(temporary.iterdir())) == 2
    files.check_writable(out / "next.mp4")
    assert list(out.iterdir()) == []
    assert [path.name for path in temporary.iterdir()] == ["fpsgen-bench-mine"]


def test_what_a_living_run_writes_stays(tmp_path: Path, temporary: Path) -> None:
    with files.beside(tmp_path / "v.mp4") as partial, files.temporary_folder("bench") as folder:
        partial.write_bytes(b"half a video")
        os.utime(partial, (0, 0))  # a long rendering
        files.check_writable(tmp_path / "other.mp4")
        assert partial.read_bytes() == b"half a video"
        assert folder.is_dir()
    assert not partial.exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("days", "stays"), [(0.5, True), (1.5, False)])
def test_what_another_machine_left_goes_when_it_is_old(tmp_path: Path, days: float, stays: bool) -> None:
    """Its locks may not be seen here."""
    left = tmp_path / ".fpsgen-012345-0123456789ab.mp4"
    left.write_bytes(b"half a video")
    os.utime(left, (time.time() - days * 86400,) * 2)
    files.check_writable(tmp_path / "v.mp4")
    assert left.exists() == stays
