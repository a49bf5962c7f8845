"""Frames to a video file, through imageio-ffmpeg."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from fpsgen.errors import RenderError, UsageError

# Per suffix: what imageio-ffmpeg's write_frames takes. crf 10 for x264 is what Wan2.1's "quality 8" comes to.
_FORMATS: dict[str, dict] = {
    ".mp4": {"codec": "libx264", "quality": None, "output_params": ["-crf", "10", "-movflags", "use_metadata_tags"]},
    ".webm": {"codec": "libvpx-vp9", "quality": None, "output_params": ["-crf", "18", "-b:v", "0", "-row-mt", "1"]},
    ".gif": {"codec": "gif", "quality": None, "pix_fmt_out": "pal8", "output_params": []},
}
_GIF_PALETTE = "split[a][b];[a]palettegen[p];[b][p]paletteuse"


def check_path(path: Path) -> None:
    """Refuse an output that could not be written, before any work is done for it."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"{path} is no video name that fpsgen writes", hint=f"end it in {', '.join(_FORMATS)}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"name a file, such as {path / 'video.mp4'}")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist", hint=f"make it: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"the folder {path.parent} cannot be written to", hint="choose another with -o")


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
    metadata: stored as JSON in the file's comment (gif has no place for it).
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: int,
        scale_to: tuple[int, int] | None = None,
        metadata: dict | None = None,
    ):
        self.path, self.frames = path, 0
        # Short, because names are limited; absolute, because ffmpeg takes "take:1.mp4" for a protocol.
        self._partial = path.absolute().with_name(f".fpsgen-{os.getpid()}{path.suffix}")
        options = dict(_FORMATS[path.suffix.lower()])
        filters = [cover(*size, scale_to)] if scale_to and scale_to != size else []
        gif = path.suffix.lower() == ".gif"
        if gif:
            filters.append(_GIF_PALETTE)
        params = [*options.pop("output_params")]
        if filters:
            params += ["-filter_complex" if gif else "-vf", ",".join(filters)]
        if metadata is not None and not gif:
            params += ["-metadata", "comment=" + json.dumps(metadata, ensure_ascii=False)]
        # Any size goes through unpadded: the caller has checked that the encoder takes it.
        self._writer = imageio_ffmpeg.write_frames(
            str(self._partial), size, fps=fps, macro_block_size=1, ffmpeg_log_level="error",
            output_params=params, **options,
        )  # fmt: skip

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves nothing behind unless `finish` was reached."""
        self._writer.close()
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
            message = f"the video encoder stopped before {self.path} was written: {reason}"
            raise RenderError(message, hint="is the disk full? Else try another name with -o") from None

    def finish(self) -> None:
        """Wait for the encoder, check what it wrote and give the file its name."""
        self._writer.close()
        # imageio-ffmpeg does not report ffmpeg's exit code: a full disk shows only in the file itself.
        try:
            written, _ = imageio_ffmpeg.count_frames_and_secs(str(self._partial))
        except (RuntimeError, OSError):
            written = 0
        if written != self.frames:
            message = f"{self.path} could not be written: {written} of {self.frames} frames arrived"
            raise RenderError(message, hint="is the disk full?")
        self._partial.replace(self.path)
