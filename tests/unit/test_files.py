from __future__ import annotations

import os
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
    assert told.value.marked_hint == hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_place_that_will_do_is_left_as_it_was(tmp_path: Path) -> None:
    assert not files.check_place(tmp_path / "new.toml", "my.toml")
    (tmp_path / "old.toml").write_text("kept")
    assert files.check_place(tmp_path / "old.toml", "my.toml")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


def test_what_is_written_beside_a_file_is_gone_in_the_end_whatever_happens(tmp_path: Path) -> None:
    def write() -> None:
        with files.beside(tmp_path / "v.mp4") as partial, files.temporary_folder("bench") as folder:
            partial.write_bytes(b"half a video")
            (folder / "clip.mp4").write_bytes(b"half a clip")
            left.extend((partial, folder))
            raise KeyboardInterrupt

    left: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        write()
    assert [path.exists() for path in left] == [False, False]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("days", "stays"), [(0.5, True), (1.5, False)])
def test_what_a_killed_run_left_goes_when_it_is_a_day_old(tmp_path: Path, days: float, stays: bool) -> None:
    """Until then it may be the file of a run that lives, here or on another machine."""
    left, other = tmp_path / ".fpsgen-0123456789ab.mp4", tmp_path / "fpsgen.mp4"
    for path in (left, other):
        path.write_bytes(b"a video")
        os.utime(path, (time.time() - days * 86400,) * 2)
    files.check_writable(tmp_path / "v.mp4")
    assert left.exists() == stays
    assert other.exists()
