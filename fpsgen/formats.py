"""What frames can be written as: by the name of the file, and what ffmpeg is given for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fpsgen.errors import UsageError, option
from fpsgen.printable import printable

QUALITY = "lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"  # of scaling, and of going from RGB to YUV
FRAMES = "%04d.png"  # the names in a folder of frames, from 0001.png on
TOLD = "video.json"  # in such a folder, what the comment of a video says
MOST_FPS = 120
_GIF_PALETTE = "split[a][b];[a]palettegen[p];[b][p]paletteuse"


@dataclass(frozen=True)
class Format:
    """words: what it is. pixels: ffmpeg's name for how they are stored. codec: its arguments. crf: the usual one, the
    best and the coarsest, None where there is no choice of quality. most_fps: frames per second. seeks: whether some
    frames are stored as what has changed. picture: whether it is of one frame."""

    words: str
    pixels: str
    codec: tuple[str, ...]
    crf: tuple[int, int, int] | None = None
    most_fps: int = MOST_FPS
    seeks: bool = False
    picture: bool = False


# crf 10 for x264 is what Wan2.1's "quality 8" comes to; few players show what it makes of 0. The index of mp4 and mov
# goes to the front, so that they play before they are loaded whole. Gifs count in hundredths of a second, and who shows
# them takes one of these for ten. FFV1 is set as archives do: each frame stands alone, its parts have checksums.
_INDEX_FIRST = ("-movflags", "+faststart")
FORMATS = {
    ".mp4": Format("H.264", "yuv420p", ("-c:v", "libx264", *_INDEX_FIRST), (10, 1, 51), seeks=True),
    ".webm": Format("VP9", "yuv420p", ("-c:v", "libvpx-vp9", "-b:v", "0", "-row-mt", "1"), (18, 0, 63), seeks=True),
    ".gif": Format("GIF", "pal8", ("-c:v", "gif"), most_fps=50),
    ".mov": Format(
        "ProRes 422 HQ", "yuv422p10le", ("-c:v", "prores_ks", "-profile:v", "3", "-vendor", "apl0", *_INDEX_FIRST)
    ),
    ".mkv": Format("FFV1, lossless", "bgr0", ("-c:v", "ffv1", "-level", "3", "-g", "1", "-slicecrc", "1")),
    ".png": Format("PNG", "rgb24", ("-c:v", "png", "-update", "1"), picture=True),
}
FOLDER = Format("a folder of PNG frames", "rgb24", ("-c:v", "png"))
_USE = "use .mp4, .webm, .gif, .mov (ProRes), .mkv (lossless) or .png (one frame), or a folder's name with / for frames"


@dataclass(frozen=True)
class Encoding:
    """How videos are written. crf: the constant rate factor, None for the format's usual one. fps: the file's frame
    rate, None for the model's. last_frame_to: a .png file for the last frame. preview: after how many steps a picture
    shows how far a video is, again and again; None for no pictures."""

    crf: int | None = None
    fps: int | None = None
    last_frame_to: Path | None = None
    preview: int | None = None

    def check(self) -> None:
        """UsageError where a number means nothing in any format."""
        if self.fps is not None and not 1 <= self.fps <= MOST_FPS:
            raise UsageError(f"{option('fps', self.fps)}: must be 1 to {MOST_FPS}", hint=f"try {option('fps', 16)}")
        if self.preview is not None and self.preview < 1:
            hint = f"try {option('preview', 5)}"
            raise UsageError(f"{option('preview', self.preview)}: must be at least 1", hint)

    def check_fits(self, path: Path, frames: int | None = None, fps: int | None = None) -> None:
        """UsageError where a file of that name cannot be written so. frames: of the video; fps: where none is given."""
        form, name = of(path), printable(path.name)
        if self.crf is not None:
            told = f"{option('crf', self.crf)}: {name}, {form.words}, has one quality"
            if form.crf is None:
                raise UsageError(told, hint=f"leave {option('crf')} out, or write an .mp4 or .webm file")
            usual, best, coarsest = form.crf
            if not best <= self.crf <= coarsest:
                told = f"{option('crf', self.crf)}: must be {best} to {coarsest} for {path.suffix.lower()}"
                raise UsageError(
                    told, hint=f"leave it out for {usual}; smaller is better, and an .mkv file is lossless"
                )
        if (rate := self.fps or fps or 1) > form.most_fps:
            told = f"{name}: {form.words} has at most {form.most_fps} frames a second, not {rate}"
            raise UsageError(told, hint=f"try {option('fps', form.most_fps)}, or another format")
        if form.picture and frames not in (None, 1):
            told = f"{name} has room for one frame, and the video has {frames}"
            hint = f"use {option('frames', 1)}, or name a folder for the frames, such as {path.stem}/"
            raise UsageError(told, hint)

    def crf_of(self, path: Path) -> int | None:
        """The constant rate factor of a file of that name, None where it has none."""
        form = of(path)
        return form.crf and (form.crf[0] if self.crf is None else self.crf)


PLAIN = Encoding()


def of(path: Path) -> Format:
    """The format of a file by its name: a folder of frames, where that has none of our suffixes."""
    return FORMATS.get(path.suffix.lower(), FOLDER)


def is_folder(path: Path) -> bool:
    """Whether a folder of frames is to be made."""
    return of(path) is FOLDER


def check_name(path: Path, folder: bool) -> None:
    """UsageError where a name says no format. folder: whether it was given as a folder's, with / or by one that is
    there."""
    if folder is is_folder(path):
        return
    name = printable(path.name)
    if folder:
        raise UsageError(f'"{name}" is the name of a video, not of a folder of frames', hint=f"try {path.stem}/")
    raise UsageError(f'cannot tell the video format from "{name}"', hint=_USE)


def arguments(
    path: Path,
    size: tuple[int, int],
    fps: int,
    scale_to: tuple[int, int] | None = None,
    key_frame: int = 0,
    crf: int | None = None,
) -> list[str]:
    """What ffmpeg is given to make a video of raw RGB frames of `size`; path: a file, or a folder that is there."""
    form, out = of(path), scale_to or size
    # HD, which goes by BT.709, is a file of 720 rows or of 1280 columns and more (a portrait's rows are its long
    # side): from there on, a player that reads no tags takes a file for it. Below is BT.601.
    matrix = "bt709" if out[1] >= 720 or out[0] >= 1280 else "smpte170m"
    if path.suffix.lower() == ".gif":
        filters = ["-filter_complex", ",".join([*(_cover(size, out) if out != size else ()), _GIF_PALETTE])]
    elif form.pixels.startswith("yuv"):  # in the limited range
        made = _cover(size, out, f":in_range=pc:out_range=tv:out_color_matrix={matrix}")
        filters = ["-vf", ",".join([*made, f"format={form.pixels}", _tags("tv", matrix, matrix)])]
    else:
        made = [*(_cover(size, out) if out != size else ()), f"format={form.pixels}"]
        tags = [_tags("pc", "gbr", matrix)] if path.suffix.lower() == ".mkv" else []  # a PNG without is sRGB
        filters = ["-vf", ",".join([*made, *tags])]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(fps), "-i", "pipe:0"]
    forced = ["-force_key_frames", f"{(key_frame - 0.5) / fps:.6f}"] if key_frame and form.seeks else []
    quality = ["-crf", str(form.crf[0] if crf is None else crf)] if form.crf else []
    target = str(path).replace("%", "%%") + f"/{FRAMES}" if form is FOLDER else str(path)  # its own name is no pattern
    return ["-y", *raw, *filters, *form.codec, *quality, *forced, target]


def _tags(span: str, matrix: str, primaries: str) -> str:
    """The filter that says which colours the numbers are."""
    return f"setparams=range={span}:colorspace={matrix}:color_primaries={primaries}:color_trc={primaries}"


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
