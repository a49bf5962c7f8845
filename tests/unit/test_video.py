"""Files: complete or absent, of the right size, in every format."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fpsgen import ffmpeg
from fpsgen.errors import RenderError, Stopped, UsageError
from fpsgen.video import VideoWriter, check_path
from tests.tools.videos import fake_ffmpeg, metadata, read, said, yuv


def frames(count: int = 9, height: int = 64, width: int = 96) -> np.ndarray:
    """Bars that move: something to encode."""
    x = np.arange(width)
    bars = [((x + 4 * t) // 8 % 2 * 200 + 20).astype(np.uint8) for t in range(count)]
    return np.stack([np.broadcast_to(bar[None, :, None], (height, width, 3)) for bar in bars]).copy()


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_frames_come_back(tmp_path: Path, suffix: str) -> None:
    path, sent = tmp_path / f"v{suffix}", frames()
    with VideoWriter(path, (96, 64), fps=16) as writer:
        writer.write(sent[:1])
        writer.write(sent[1:])
        writer.finish()
    meta, got = read(path)
    assert got.shape == sent.shape
    assert meta["fps"] == pytest.approx(16, rel=0.05)  # gif keeps time in hundredths of a second
    assert np.abs(got.astype(int) - sent).mean() < 6  # lossy, but the same picture
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_who_seeks_by_key_frames_finds_the_one_that_was_asked_for(tmp_path: Path, suffix: str) -> None:
    """As GNOME's thumbnailer does, a third into the video."""
    path, sent = tmp_path / f"v{suffix}", np.full((25, 64, 96, 3), 20, np.uint8)
    sent += 8 * np.arange(25, dtype=np.uint8)[:, None, None, None]  # each frame lighter than the one before
    with VideoWriter(path, (96, 64), fps=16, key_frame=8) as writer:
        writer.write(sent)
        writer.finish()
    seek = ["-noaccurate_seek", "-ss", f"{25 / 16 / 3:.3f}", "-i", str(path), "-frames:v", "1"]
    raw = subprocess.run(
        [ffmpeg.executable(), "-v", "error", *seek, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    shown = np.frombuffer(raw, np.uint8).reshape(64, 96, 3).astype(int)
    assert np.abs(shown - sent.astype(int)).mean(axis=(1, 2, 3)).argmin() == 8
    assert len(read(path)[1]) == 25


@pytest.mark.parametrize("target", [(192, 128), (1280, 720), (720, 1280), (100, 100)], ids=str)
def test_scaling_gives_the_size_asked_for(tmp_path: Path, target: tuple[int, int]) -> None:
    with VideoWriter(tmp_path / "v.mp4", (96, 64), fps=16, scale_to=target) as writer:
        writer.write(frames(2))
        writer.finish()
    assert read(tmp_path / "v.mp4")[0]["size"] == target


def test_scaling_keeps_shapes(tmp_path: Path) -> None:
    """A square stays square whether the rest is cropped away or padded."""
    picture = np.zeros((1, 96, 160, 3), np.uint8)
    picture[:, 32:64, 64:96] = 255
    for target in ((1280, 720), (400, 800)):
        with VideoWriter(tmp_path / "v.mp4", (160, 96), fps=8, scale_to=target) as writer:
            writer.write(picture)
            writer.finish()
        _, got = read(tmp_path / "v.mp4")
        lit = got[0, ..., 0] > 128
        wide, high = lit.any(0).sum(), lit.any(1).sum()
        assert wide == pytest.approx(high, rel=0.03)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov", ".mkv"])
def test_metadata_is_stored(tmp_path: Path, suffix: str) -> None:
    told = {"prompt": 'a "cat"; surfing = fun, 猫\\', "seed": 7}
    with VideoWriter(tmp_path / f"v{suffix}", (96, 64), fps=16) as writer:
        writer.write(frames(2))
        writer.finish(told)
    assert len(read(tmp_path / f"v{suffix}")[1]) == 2
    assert metadata(tmp_path / f"v{suffix}") == told


def test_an_abandoned_video_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with VideoWriter(tmp_path / "v.mp4", (96, 64), fps=16) as writer:
            writer.write(frames(2))
            raise KeyboardInterrupt

    (tmp_path / "v.mp4").write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
    assert (tmp_path / "v.mp4").read_bytes() == b"older"


PATCHES = np.array([(200, 40, 40), (40, 160, 60), (224, 172, 140), (40, 60, 200), (255, 255, 255), (0, 0, 0)])
# ITU-R BT.709-6 and BT.601-7: the shares of red, green and blue in the luma.
LUMA = {"bt709": (0.2126, 0.7152, 0.0722), "smpte170m": (0.299, 0.587, 0.114)}


def shown(stored: np.ndarray, matrix: str) -> np.ndarray:
    """RGB of limited-range YUV [..., 3], by the standard's formula."""
    red, green, blue = LUMA[matrix]
    y, cb, cr = (stored[..., 0] - 16) / 219, (stored[..., 1] - 128) / 224, (stored[..., 2] - 128) / 224
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return 255 * np.stack([r, (y - red * r - blue * b) / green, b], -1).clip(0, 1)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov"])
@pytest.mark.parametrize(
    ("size", "scale_to", "matrix"),
    [
        ((1280, 720), None, "bt709"),
        ((832, 480), None, "smpte170m"),
        ((480, 720), None, "bt709"),  # a portrait's rows are its long side
        ((96, 64), (1280, 546), "bt709"),  # the file's size counts; bars at its sides
        ((192, 64), (606, 202), "smpte170m"),
    ],
    ids=str,
)
def test_colours_are_those_that_the_file_says(
    tmp_path: Path, suffix: str, size: tuple[int, int], scale_to: tuple[int, int] | None, matrix: str
) -> None:
    """Patches, decoded without ffmpeg's own conversion, by the matrix that is tagged, are within 2 levels: one for
    8 bits of YUV, which are coarser than RGB's, one for the encoder."""
    path, (width, height) = tmp_path / f"v{suffix}", size
    frame = PATCHES.astype(np.uint8).repeat(width // len(PATCHES), axis=0)
    frame = np.broadcast_to(frame, (2, height, *frame.shape))
    frame = np.pad(frame, ((0, 0), (0, 0), (0, width - frame.shape[2]), (0, 0)))
    with VideoWriter(path, size, fps=16, scale_to=scale_to) as writer:
        writer.write(frame)
        assert writer.finish({"kept": "through the copy that tells"}) is None
    assert re.search(
        rf"yuv42(0p|2p10le)\(tv, {matrix}[,)]", said(path)
    )  # matrix, primaries and transfer, where all are one
    out = scale_to or size
    scale = min(out[0] / width, out[1] / height) if scale_to else 1
    middles = (np.arange(len(PATCHES)) + 0.5) * (width // len(PATCHES)) * scale + (out[0] - width * scale) / 2
    got = shown(yuv(path, out)[out[1] // 2, middles.astype(int)], matrix)
    assert np.abs(got - PATCHES).max() <= 2


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("told", [None, {"seed": 7}])
def test_the_index_comes_first(tmp_path: Path, told: dict | None, suffix: str) -> None:
    with VideoWriter(tmp_path / f"v{suffix}", (96, 64), fps=16) as writer:
        writer.write(frames(2))
        writer.finish(told)
    content = (tmp_path / f"v{suffix}").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


def test_text_does_not_depend_on_the_locale(tmp_path: Path) -> None:
    """A Python that takes all text for ASCII: prompt, name and metadata are UTF-8 nevertheless, torch or not."""
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from fpsgen.cli.chosen import video_name\n"
        "from fpsgen.cli.prompts import as_text\n"
        "from fpsgen.video import VideoWriter, check_path\n"
        "prompt = as_text(sys.argv[1])\n"
        "path = Path(video_name(prompt, 1))\n"
        "check_path(path)\n"
        "with VideoWriter(path, (32, 32), 16) as writer:\n"
        "    writer.write(np.zeros((1, 32, 32, 3), np.uint8))\n"
        "    fault = writer.finish({'prompt': prompt, 'half': sys.argv[2]})\n"
        "assert fault is None, fault\n"
        "assert sys.getfilesystemencoding() == 'ascii'\n"
        "assert 'torch' not in sys.modules\n"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", code, "猫 сёрф", b"\xff"]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | locale)
    (path,) = tmp_path.iterdir()
    assert path.name == "猫-сёрф-1.mp4"
    assert metadata(path) == {"prompt": "猫 сёрф", "half": "\udcff"}


def test_metadata_of_any_length_are_stored(tmp_path: Path) -> None:
    """Longer than what a program can be given as an argument, 128 KiB on Linux."""
    told = {"steps": ["猫=1;#\\\n"] * 30_000}
    with VideoWriter(tmp_path / "v.mp4", (32, 32), fps=16) as writer:
        writer.write(frames(1, 32, 32))
        assert writer.finish(told) is None
    assert metadata(tmp_path / "v.mp4") == told


def test_a_video_without_its_comment_is_kept_and_the_reason_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        'case "$*" in *ffmetadata*) echo "Unknown input format: ffmetadata" >&2; exit 1;; esac; exec "$FFMPEG" "$@"'
    )
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", fake_ffmpeg(tmp_path, script))
    (tmp_path / "out").mkdir()
    with VideoWriter(tmp_path / "out" / "v.mp4", (96, 64), fps=16) as writer:
        writer.write(frames(2))
        assert writer.finish({"seed": 1}) == "Unknown input format: ffmetadata"
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["v.mp4"]
    assert len(read(tmp_path / "out" / "v.mp4")[1]) == 2


def test_whoever_stops_a_complete_video_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fpsgen.ffmpeg.run", stopped)
    with VideoWriter(tmp_path / "v.mp4", (96, 64), fps=16) as writer:
        writer.write(frames(2))
        with pytest.raises(Stopped, match=r"v\.mp4 is complete"):
            writer.finish({"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    assert len(read(tmp_path / "v.mp4")[1]) == 2


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_a_replaced_video_keeps_its_mode(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    path.write_bytes(b"private")
    path.chmod(0o600)
    with VideoWriter(path, (96, 64), fps=16) as writer:
        (partial,) = (file for file in tmp_path.iterdir() if file != path)
        assert partial.stat().st_mode & 0o777 == 0o600  # not even for a moment
        writer.write(frames())
        writer.finish({"seed": 1})
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read(path)[1]) == 9


def test_two_that_must_replace_nothing_have_one_name_in_mind(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with (
        VideoWriter(path, (96, 64), fps=16, replace=False) as first,
        VideoWriter(path, (96, 64), fps=16, replace=False) as second,
    ):
        for count, writer in enumerate((first, second), 1):
            writer.write(frames(count))
        second.finish({"count": 2})
        first.finish({"count": 1})
    assert (second.path, first.path) == (path, tmp_path / "v-2.mp4")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v-2.mp4", "v.mp4"]
    assert [metadata(file)["count"] for file in (path, first.path)] == [2, 1]


def test_a_folder_that_was_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "gone" / "v.mp4", (96, 64), fps=16) as writer:
        writer.write(frames(2))
        writer.finish()
    assert len(read(tmp_path / "gone" / "v.mp4")[1]) == 2


def test_a_folder_that_goes_while_frames_come_is_told_as_gone(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "gone" / "v.mp4", (96, 64), fps=16) as writer:
        writer.write(frames(2))
        shutil.rmtree(tmp_path / "gone")
        with pytest.raises(RenderError, match="its folder is gone"):
            writer.finish()


@pytest.mark.parametrize(
    ("script", "says", "hint"),
    [
        (
            "echo 'error while loading shared libraries: libx.so' >&2; exit 127",
            "shared libraries",
            "IMAGEIO_FFMPEG_EXE",
        ),
        ('case "$*" in *libx264*) echo "Unknown encoder \'libx264\'" >&2; exit 8;; esac', "libx264", "unset it"),
        ("cat >/dev/null", "it wrote nothing", "unset it"),
        ('cat >/dev/null; for last; do :; done; rm -f "$last"', "it wrote nothing", "unset it"),
        ("kill -9 $$", "signal 9 ended it", "unset it"),
        ("exec sleep 1000", "was not done after 1 second", "unset it"),
        (
            "echo '[out#0 @ 0x5] Error writing trailer: No space left on device' >&2; exit 228",
            "the disk is full",
            "room",
        ),
    ],
)
def test_an_ffmpeg_that_cannot_encode_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str, hint: str
) -> None:
    monkeypatch.setattr("fpsgen.video._TRIAL_LIMIT", 1)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", fake_ffmpeg(tmp_path, script))
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=says) as refused:
        check_path(tmp_path / "out" / "v.mp4")
    assert hint in (refused.value.hint or "")
    assert "0x5" not in str(refused.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".mov", ".mkv", ".png"])
def test_an_ffmpeg_that_can_is_not_refused(tmp_path: Path, suffix: str) -> None:
    check_path(tmp_path / f"v{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "says", "hint"),
    [
        ("head -c 20000 >/dev/null; echo 'Conversion failed: bad luck.' >&2; exit 1", "bad luck", None),
        ("head -c 20000 >/dev/null; kill -9 $$", "signal 9 ended it", None),
        ("cat >/dev/null", "it wrote nothing", None),
        ("head -c 20000 >/dev/null; exec sleep 1000", "was not done after 1 second", None),
        ("cat >/dev/null; exec sleep 1000", "was not done after 1 second", None),
        ("sleep 1000; true", "was not done after 1 second", None),  # its child has the pipe, and must end, too
        (
            "head -c 20000 >/dev/null; echo 'Error: No space left on device' >&2; exit 1",
            "the disk is full",
            "make room",
        ),
    ],
)
def test_an_ffmpeg_that_dies_or_hangs_while_it_runs_ends_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str, hint: str | None
) -> None:
    monkeypatch.setattr("fpsgen.ffmpeg.LIMIT", 1)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", fake_ffmpeg(tmp_path, script))
    (tmp_path / "out").mkdir()

    def make() -> None:
        with VideoWriter(tmp_path / "out" / "v.mp4", (96, 64), fps=16) as writer:
            writer.write(frames(20))
            writer.finish()

    with pytest.raises(RenderError, match=says) as ended:
        make()
    assert (ended.value.hint or "").startswith(hint or "")
    assert "room" not in (ended.value.hint or "") or hint
    assert list((tmp_path / "out").iterdir()) == []


def test_a_signal_that_comes_while_ffmpeg_starts_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def interrupted(*args: Any, real: type = subprocess.Popen, **more: Any) -> Any:
        started.append(real(*args, **more))
        signal.raise_signal(signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "v.mp4", (96, 64), fps=16):
        pass
    assert started[0].wait(10) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("broken", ["", 'for last; do :; done; echo junk >"$last"'])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_copy_with_a_comment_that_is_no_video_costs_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, broken: str
) -> None:
    """From an ffmpeg that is content with it: a file system that loses what was written, a wrapper that fails."""
    script = f'case "$*" in *ffmetadata*) cat >/dev/null; {broken or ":"}; exit 0;; esac; exec "$FFMPEG" "$@"'
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", fake_ffmpeg(tmp_path, script))
    with VideoWriter(tmp_path / f"v{suffix}", (96, 64), fps=16) as writer:
        writer.write(frames(2))
        assert "it wrote" in (writer.finish({"seed": 1}) or "")
    monkeypatch.undo()
    assert len(read(tmp_path / f"v{suffix}")[1]) == 2


def test_what_cannot_be_run_as_ffmpeg_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path))
    with pytest.raises(UsageError, match=f"{re.escape(str(tmp_path))}, which is no program") as refused:
        check_path(tmp_path / "v.mp4")
    assert "unset it" in (refused.value.hint or "")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="there, such a link is replaced")
def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").symlink_to("v.mp4")
    with pytest.raises(UsageError, match="cannot be written"):
        check_path(tmp_path / "v.mp4")


@pytest.mark.parametrize("name", ["v.avi", "v", "absent/v.mp4"])
def test_impossible_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        check_path(tmp_path / name)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UsageError, match="folder"):
        check_path(tmp_path / "folder.mp4")
