"""Frames to a video file, through imageio-ffmpeg."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shlex
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from fpsgen import files
from fpsgen.errors import RenderError, UsageError

# Per suffix: what imageio-ffmpeg's write_frames takes. crf 10 for x264 is what Wan2.1's "quality 8" comes to.
_FORMATS: dict[str, dict] = {
    ".mp4": {"codec": "libx264", "quality": None, "output_params": ["-crf", "10"]},
    ".webm": {"codec": "libvpx-vp9", "quality": None, "output_params": ["-crf", "18", "-b:v", "0", "-row-mt", "1"]},
    ".gif": {"codec": "gif", "quality": None, "pix_fmt_out": "pal8", "output_params": []},
}
_GIF_PALETTE = "split[a][b];[a]palettegen[p];[b][p]paletteuse"


def check_path(path: Path) -> None:
    """Refuse an output that could not be written, before any work is done for it."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"{path} is no video name that fpsgen writes", hint=f"end it in {', '.join(_FORMATS)}")
    check_encoder()
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder", hint=f"name a file, such as {path / 'video.mp4'}")
        if path.parent.exists() and not path.parent.is_dir():
            raise UsageError(f"{path.parent} is no folder", hint="choose another with -o")
        if not path.parent.exists():
            hint = f"mkdir -p {shlex.quote(str(path.parent))}"
            raise UsageError(f"the folder {path.parent} does not exist", hint)
        if path.exists():  # which also tells of a name too long
            if not path.is_file():
                raise UsageError(f"{path} is no regular file", hint="choose another name with -o")
            if not os.access(path, os.W_OK):
                raise UsageError(f"{path} is write-protected", hint="choose another name with -o")
        files.check_writable(path)
    except OSError as fault:
        message = f"{files.shortened(path)} cannot be written: {fault.strerror or fault}"
        raise UsageError(message, hint="choose another place or name with -o") from None


def check_encoder() -> None:
    """Refuse to go on where there is no ffmpeg."""
    try:
        found = shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        found = None
    if found is None:
        raise UsageError(
            "there is no ffmpeg to write videos with",
            hint="pip install --force-reinstall imageio-ffmpeg, or let IMAGEIO_FFMPEG_EXE name one",
        )


def cover(width: int, height: int, target: tuple[int, int]) -> str:
    """The ffmpeg filter that scales frames up to `target`: cropped if that costs little, else padded.

    Cropping keeps the picture free of bars; past a tenth of it, bars are the lesser evil.
    """
    aspect, wanted = width / height, target[0] / target[1]
    crop = max(aspect / wanted, wanted / aspect) <= 1.1
    out = f"{target[0]}:{target[1]}"
    scale = f"scale={out}:flags=bicubic:force_original_aspect_ratio={'increase' if crop else 'decrease'}"
    return f"{scale},crop={out}" if crop else f"{scale},pad={out}:-1:-1"


class VideoWriter:
    """Writes frames to `path`, which appears only when complete.

    size: width and height of the frames. scale_to: width and height of the video, where they differ.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: int,
        scale_to: tuple[int, int] | None = None,
    ):
        self.path, self.frames, self._complete = path, 0, False
        self._partial = files.beside(path)
        options = dict(_FORMATS[path.suffix.lower()])
        filters = [cover(*size, scale_to)] if scale_to and scale_to != size else []
        gif = path.suffix.lower() == ".gif"
        if gif:
            filters.append(_GIF_PALETTE)
        params = [*options.pop("output_params")]
        if filters:
            params += ["-filter_complex" if gif else "-vf", ",".join(filters)]
        # Any size goes through unpadded: the caller has checked that the encoder takes it.
        self._writer = imageio_ffmpeg.write_frames(
            str(self._partial), size, fps=fps, macro_block_size=1, ffmpeg_log_level="error",
            output_params=params, **options,
        )  # fmt: skip

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves nothing behind unless `finish` was reached."""
        try:
            self._writer.close()
        finally:
            with contextlib.suppress(PermissionError):  # Windows, while a killed ffmpeg is still letting go
                self._partial.unlink(missing_ok=True)

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 frames [n, height, width, 3]."""
        try:
            if self.frames == 0:
                self._writer.send(None)  # a generator: only now does ffmpeg start
            for frame in frames:
                self._writer.send(np.ascontiguousarray(frame))
                self.frames += 1
        except OSError as failure:
            reason = str(failure).splitlines()[0]
            full = failure.errno == errno.ENOSPC or "No space left" in str(failure)
            hint = "make room on the disk" if full else "try another name or format with -o"
            raise RenderError(f"the video encoder stopped before {self.path} was written: {reason}", hint) from None

    def close(self) -> None:
        """Wait for the encoder and check what it wrote."""
        if self._complete:
            return
        self._writer.close()
        # imageio-ffmpeg does not report ffmpeg's exit code: a full disk shows only in the file itself.
        try:
            written, _ = imageio_ffmpeg.count_frames_and_secs(str(self._partial))
        except (RuntimeError, OSError):
            written = 0
        if written != self.frames:
            message = f"{self.path} could not be written: {written} of {self.frames} frames arrived"
            raise RenderError(message, hint="is there room on the disk?")
        self._complete = True

    def finish(self, metadata: dict | None = None) -> bool:
        """`close`, and give the file its name. metadata: stored as JSON in its comment; gif has no place for one.

        The comment is added to the finished file, so that it can tell how long everything took. Returns whether that
        went well: a video without a comment is worth more than none.
        """
        self.close()
        tagged = True
        if metadata is not None and self.path.suffix.lower() != ".gif":
            tagged = self._tag("comment=" + json.dumps(metadata, ensure_ascii=False))
        try:
            self._partial.replace(self.path.resolve())  # a link stays one
        except OSError as fault:
            kept = self.path.with_name(f"{self.path.stem[:60]}-{secrets.token_hex(4)}{self.path.suffix}")
            self._partial.rename(kept)
            message = f"the video is in {kept}: {self.path} cannot be replaced: {fault.strerror or fault}"
            raise RenderError(message) from None
        return tagged

    def _tag(self, entry: str) -> bool:
        tagged = files.beside(self.path)
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(self._partial), "-map", "0", "-c", "copy",
            "-movflags", "use_metadata_tags", "-metadata", entry, str(tagged),
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
            tagged.replace(self._partial)
            return True
        except (OSError, subprocess.CalledProcessError):
            return False
        finally:
            tagged.unlink(missing_ok=True)
