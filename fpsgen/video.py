"""Frames to a video file, by ffmpeg."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fpsgen import ffmpeg, files, formats
from fpsgen.errors import RenderError, Stopped, UsageError, option, reason
from fpsgen.ffmpeg import Ffmpeg, FfmpegError

_ELSEWHERE = f"choose another place with {option('output')}"
_MAKE_ROOM = f"make room on the disk, or {_ELSEWHERE}"
_TRIAL_LIMIT = 20  # seconds; a trial takes a tenth of one


def check_path(path: Path, folder: bool = False) -> None:
    """Refuse an output that could not be written, before any work is done for it. folder: whether frames in a folder of
    that name are wanted, which is not there or empty."""
    if not folder and os.path.isdir(path):
        files.check_place(path, "video.mp4")
    formats.check_name(path, folder)
    ffmpeg.executable()
    with files.refused(path, f"choose another place or name with {option('output')}"):
        if folder:
            files.check_folder(path, "video.mp4")
        else:
            files.check_place(path, "video.mp4")
        check_encoder(path)


def check_encoder(path: Path) -> None:
    """Refuse to go on where ffmpeg cannot write such a file there: two small frames are tried. OSError where the folder
    cannot be written."""
    form, folder = formats.of(path), formats.is_folder(path)
    kind = ".png" if folder else path.suffix.lower()
    with files.folder_beside(path) if folder else files.beside(path) as trial:
        try:
            count = 1 if form.picture else 2
            ffmpeg.run(formats.arguments(trial, (48, 32), 16), bytes(count * 48 * 32 * 3), _TRIAL_LIMIT)
            _check_video(trial)
        except FfmpegError as fault:
            hint = f"try another format with {option('output')}, or pip install --force-reinstall imageio-ffmpeg"
            if fault.full:
                hint = _MAKE_ROOM
            elif own := os.environ.get("IMAGEIO_FFMPEG_EXE"):
                hint = f"IMAGEIO_FFMPEG_EXE names {own}: unset it to use the ffmpeg that came with fpsgen"
            told = f"ffmpeg cannot be used to write {kind} files here: {fault}"
            raise UsageError(told, hint) from None


def _check_video(file: Path, least: int = 1) -> None:
    """FfmpegError where ffmpeg was content and left no file of `least` bytes, or no such frames in a folder."""
    whole = list(file.iterdir()) if file.is_dir() else [file]
    size = min((one.stat().st_size if one.exists() else 0 for one in whole), default=0)
    if size < least:
        raise FfmpegError(f"it wrote only {size:,} bytes" if size else "it wrote nothing")


class VideoWriter:
    """Writes frames to `path`, a file or a folder of frames, which appears only when complete; a context that leaves
    nothing else behind.

    size: width and height of the frames. scale_to: width and height of the video, where they differ. replace: whether
    a file that has the name is replaced; else the video gets a name with a number, and `path` becomes that. key_frame:
    the number of one more frame, besides the first, that whoever seeks can show without those before it. crf: None for
    the format's usual one. RenderError, from all methods, says why there is no video.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: int,
        scale_to: tuple[int, int] | None = None,
        replace: bool = True,
        key_frame: int = 0,
        crf: int | None = None,
    ):
        self.path, self.frames = path, 0
        self._form, self._replace = (size, fps, scale_to, key_frame, crf), replace
        self._complete, self._misplaced = False, ""

    def __enter__(self) -> VideoWriter:
        with contextlib.ExitStack() as inside, self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it since `check_path`
            hidden = files.folder_beside if formats.is_folder(self.path) else files.beside
            self._partial = inside.enter_context(hidden(self.path))
            self._ffmpeg = inside.enter_context(Ffmpeg(formats.arguments(self._partial, *self._form)))
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
        """`close`, and store metadata as JSON in the file's comment, or in a file of the folder; gif has no place for
        it.

        A file of its own is made for that, when all is over, so that it can tell how long everything took. Returns why
        it could not be, which is no error: a video without a comment is worth more than none.
        """
        self.close()
        try:
            fault = None if metadata is None else self._tell(metadata)
        except KeyboardInterrupt:
            raise Stopped(f"stopped; {self.path} is complete, but does not say how it was made") from None
        if self._misplaced:
            raise RenderError(f"the video is in {self.path}: {self._misplaced}", hint="rename it yourself")
        return fault

    def _place(self) -> None:
        if self._partial.is_dir():
            self.path = files.put_folder_as_new(self._partial, self.path)
            return
        if self._replace or files.alike(self._partial, self.path):  # a run that was killed gave it no comment yet
            try:
                self._partial.replace(files.resolved(self.path))  # a link stays one
                return
            except OSError as fault:
                self._misplaced = f"{self.path} cannot be replaced: {reason(fault)}"
        self.path = files.put_as_new(self._partial, self.path)

    def _tell(self, metadata: dict) -> str | None:
        suffix = self.path.suffix.lower()
        # Halves of characters, as undecodable arguments have them, become JSON's own escapes.
        told = json.dumps(metadata, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        try:
            if formats.is_folder(self.path):
                files.write_json(self.path / formats.TOLD, metadata)
            elif suffix == ".png":
                self._replace_by(_tag_picture, told)
            elif suffix != ".gif":
                self._replace_by(_tag, told)
            return None
        except (FfmpegError, OSError) as fault:
            return reason(fault)

    def _replace_by(self, tag: Callable[[Path, Path, str], int], told: str) -> None:
        """Put a copy of the file that tells in its place, unless another run has put its video there."""
        real = self.path.resolve()
        own = real.stat()
        with files.beside(self.path) as tagged:  # by whose suffix ffmpeg knows the format, wherever a link leads
            least = tag(real, tagged, told)
            _check_video(tagged, least)
            if os.path.samestat(own, real.stat()):
                tagged.replace(real)

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


def _tag(video: Path, tagged: Path, told: str) -> int:
    """A copy with a comment, and the least bytes that it must have. As a file, metadata have no limit of length, and no
    locale."""
    comment = re.sub(r"([=;#\\])", r"\\\1", told)
    movflags = ["-movflags", "use_metadata_tags+faststart"] if tagged.suffix.lower() in (".mp4", ".mov") else []
    copy = ["-map", "0", "-map_metadata", "1", "-c", "copy", *movflags, str(tagged)]
    about = f";FFMETADATA1\ncomment={comment}\n".encode()
    ffmpeg.run(["-y", "-i", str(video), "-f", "ffmetadata", "-i", "pipe:0", *copy], about)
    return video.stat().st_size // 2  # another container's overhead may be smaller, no more than that


def _tag_picture(picture: Path, tagged: Path, told: str) -> int:
    """The same of a PNG, whose text is not compressed: readers take but a megabyte of what is."""
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_itxt("comment", told)
    with Image.open(picture) as image:
        image.save(tagged, "PNG", pnginfo=text)
    return len(told.encode())


def write_picture(pixels: np.ndarray, path: Path, fault: str) -> None:
    """uint8 pixels [height, width, 3] to a PNG file, which appears when it is complete; RenderError, which begins with
    `fault`, where it cannot be written."""
    from PIL import Image

    try:
        with files.beside(path) as whole:
            Image.fromarray(pixels).save(whole, "PNG")
            whole.replace(files.resolved(path))  # a link stays one
    except OSError as refused:
        raise RenderError(f"{fault}: {reason(refused)}", _MAKE_ROOM if files.is_full(refused) else None) from None
