from __future__ import annotations

import os
from pathlib import Path

import pytest

from fpsgen import files


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
