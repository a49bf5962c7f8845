"""Frames to a video file, by ffmpeg."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fpsgen import ffmpeg, files
from fpsgen.errors import RenderError, Stopped, UsageError, option, reason
from fpsgen.ffmpeg import Ffmpeg, FfmpegError
from fpsgen.printable import printable

_ELSEWHERE = f"choose another place with {option('output')}"
_MAKE_ROOM = f"make room on the disk, or {_ELSEWHERE}"
_PICTURE = ["-pix_fmt", "yuv420p"]
# Per suffix, what ffmpeg is given. crf 10 for x264 is what Wan2.1's "quality 8" comes to. An mp4's index goes to the
# front, so that it plays before it is loaded whole.
_FORMATS = {
    ".mp4": ["-c:v", "libx264", *_PICTURE, "-crf", "10", "-movflags", "+faststart"],
    ".webm": ["-c:v", "libvpx-vp9", *_PICTURE, "-crf", "18", "-b:v", "0", "-row-mt", "1"],
    ".gif": ["-c:v", "gif"],
}
_GIF_PALETTE = "split[a][b];[a]palettegen[p];[b][p]paletteuse"
QUALITY = "lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"  # of scaling, and of going from RGB to YUV
_TRIAL_LIMIT = 20  # seconds; a trial takes a tenth of one


def check_path(path: Path) -> None:
    """Refuse an output that could not be written, before any work is done for it."""
    if path.suffix.lower() not in _FORMATS:
        if path.is_dir():
            files.check_place(path, "video.mp4")
        raise UsageError(f'cannot tell the video format from "{printable(path.name)}"', hint="use .mp4, .webm or .gif")
    ffmpeg.executable()
    files.check_place(path, "video.mp4")
    with files.refused(path, f"choose another place or name with {option('output')}"):
        check_encoder(path)


def check_encoder(path: Path) -> None:
    """Refuse to go on where ffmpeg cannot write such a file there: two small frames are tried. OSError where the folder
    cannot be written."""
    with files.beside(path) as trial:
        try:
            ffmpeg.run(_arguments(trial, (48, 32), 16, None), bytes(2 * 48 * 32 * 3), _TRIAL_LIMIT)
            _check_video(trial)
        except FfmpegError as fault:
            hint = f"try another format with {option('output')}, or pip install --force-reinstall imageio-ffmpeg"
            if fault.full:
                hint = _MAKE_ROOM
            elif own := os.environ.get("IMAGEIO_FFMPEG_EXE"):
                hint = f"IMAGEIO_FFMPEG_EXE names {own}: unset it to use the ffmpeg that came with fpsgen"
            told = f"ffmpeg cannot be used to write {path.suffix.lower()} videos here: {fault}"
            raise UsageError(told, hint) from None


def _check_video(file: Path, least: int = 1) -> None:
    """FfmpegError where ffmpeg was content and left no file of `least` bytes."""
    size = file.stat().st_size if file.exists() else 0
    if size < least:
        raise FfmpegError(f"it wrote only {size:,} bytes" if size else "it wrote nothing")


def _arguments(
    path: Path, size: tuple[int, int], fps: int, scale_to: tuple[int, int] | None, key_frame: int = 0
) -> list[str]:
    """What ffmpeg is given to make a video of raw RGB frames of `size`."""
    suffix, out = path.suffix.lower(), scale_to or size
    if suffix == ".gif":
        filters = ["-filter_complex", ",".join([*(_cover(size, out) if out != size else ()), _GIF_PALETTE])]
    else:
        # HD, which goes by BT.709, is a file of 720 rows or of 1280 columns and more (a portrait's rows are its long
        # side): from there on, a player that reads no tags takes a file for it. Below is BT.601. The range is limited.
        matrix = "bt709" if out[1] >= 720 or out[0] >= 1280 else "smpte170m"
        tags = f"setparams=range=tv:colorspace={matrix}:color_primaries={matrix}:color_trc={matrix}"
        made = _cover(size, out, f":in_range=pc:out_range=tv:out_color_matrix={matrix},format=yuv420p")
        filters = ["-vf", ",".join([*made, tags])]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(fps), "-i", "pipe:0"]
    forced = ["-force_key_frames", f"{(key_frame - 0.5) / fps:.6f}"] if key_frame and suffix != ".gif" else []
    return ["-y", *raw, *filters, *_FORMATS[suffix], *forced, str(path)]


def _cover(size: tuple[int, int], target: tuple[int, int], more: str = "") -> list[str]:
    """The ffmpeg filters that scale frames up to `target`: cropped if that costs little, else padded.

    Cropping keeps the picture free of bars; past a tenth of it, bars are the lesser evil. more: of the scale filter.
    """
    out, scale = f"{target[0]}:{target[1]}", f"scale=flags={QUALITY}"
    if size == target:
        return [scale + more]
    aspect, wanted = size[0] / size[1], target[0] / target[1]
    crops = max(aspect / wanted, wanted / aspect) <= 1.1
    fitted = f":s={target[0]}x{target[1]}:force_original_aspect_ratio={'increase' if crops else 'decrease'}"
    return [scale + fitted + more, f"crop={out}" if crops else f"pad={out}:-1:-1"]


class VideoWriter:
    """Writes frames to `path`, which appears only when complete; a context that leaves nothing else behind.

    size: width and height of the frames. scale_to: width and height of the video, where they differ. replace: whether
    a file that has the name is replaced; else the video gets a name with a number, and `path` becomes that. key_frame:
    the number of one more frame, besides the first, that whoever seeks can show without those before it.
    RenderError, from all methods, says why there is no video.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: int,
        scale_to: tuple[int, int] | None = None,
        replace: bool = True,
        key_frame: int = 0,
    ):
        self.path, self.frames = path, 0
        self._form, self._replace = (size, fps, scale_to, key_frame), replace
        self._complete, self._misplaced = False, ""

    def __enter__(self) -> VideoWriter:
        with contextlib.ExitStack() as inside, self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it since `check_path`
            self._partial = inside.enter_context(files.beside(self.path))
            self._ffmpeg = inside.enter_context(Ffmpeg(_arguments(self._partial, *self._form)))
            self._inside = inside.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.close()

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 frames [n, height, width, 3]."""
        with self._explained():
            for frame in frames:
                self._ffmpeg.feed(np.ascontiguousarray(frame).data)
                self.frames += 1

    def close(self) -> None:
        """Wait for the encoder, and give the complete file its name: nothing that happens later can cost it."""
        if self._complete:
            return
        with self._explained():
            self._ffmpeg.finish()
            _check_video(self._partial)
            with ffmpeg.signals_held():
                self._place()
                self._complete = True

    def finish(self, metadata: dict | None = None) -> str | None:
        """`close`, and store metadata as JSON in the file's comment; gif has no place for one.

        A file of its own is made for that, when all is over, so that it can tell how long everything took. Returns why
        it could not be, which is no error: a video without a comment is worth more than none.
        """
        self.close()
        try:
            fault = None if metadata is None or self.path.suffix.lower() == ".gif" else self._tag(metadata)
        except KeyboardInterrupt:
            raise Stopped(f"stopped; {self.path} is complete, but does not say how it was made") from None
        if self._misplaced:
            raise RenderError(f"the video is in {self.path}: {self._misplaced}", hint="rename it yourself")
        return fault

    def _place(self) -> None:
        if self._replace or files.alike(self._partial, self.path):  # a run that was killed gave it no comment yet
            try:
                self._partial.replace(files.resolved(self.path))  # a link stays one
                return
            except OSError as fault:
                self._misplaced = f"{self.path} cannot be replaced: {reason(fault)}"
        self.path = files.put_as_new(self._partial, self.path)

    def _tag(self, metadata: dict) -> str | None:
        """Copy the file to one with a comment. As a file, metadata have no limit of length, and no locale."""
        real = self.path.resolve()
        # Halves of characters, as undecodable arguments have them, become JSON's own escapes.
        told = json.dumps(metadata, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        comment = re.sub(r"([=;#\\])", r"\\\1", told)
        movflags = ["-movflags", "use_metadata_tags+faststart"] if real.suffix.lower() == ".mp4" else []
        try:
            own = real.stat()
            with files.beside(real) as tagged:
                copy = ["-map", "0", "-map_metadata", "1", "-c", "copy", *movflags, str(tagged)]
                about = f";FFMETADATA1\ncomment={comment}\n".encode()
                ffmpeg.run(["-y", "-i", str(real), "-f", "ffmetadata", "-i", "pipe:0", *copy], about)
                _check_video(tagged, own.st_size // 2)  # another container's overhead may be smaller, no more than that
                if os.path.samestat(own, real.stat()):  # else another run has put its video there
                    tagged.replace(real)
            return None
        except (FfmpegError, OSError) as fault:
            return reason(fault)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What ffmpeg or the disk refuse inside ends as a RenderError."""
        try:
            yield
            return
        except FfmpegError as fault:
            told, full = f"ffmpeg stopped before {self.path} was complete: {fault}", fault.full
        except OSError as fault:
            told, full = f"{self.path} cannot be written: {reason(fault)}", files.is_full(fault)
        if not self.path.parent.is_dir():
            raise RenderError(f"{self.path} could not be written: its folder is gone", _ELSEWHERE)
        raise RenderError(told, _MAKE_ROOM if full else None)
