"""Reports, taken apart: what a page says, shows and would load; clips to put in it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from fpsgen import report
from fpsgen.bench.attention.record import AttentionRecord
from fpsgen.bench.record import BenchRecord, CompareRecord, QualityRecord
from fpsgen.calibrate.record import CalibrationRecord
from fpsgen.metrics import Pair
from fpsgen.train.record import TrainRecord
from fpsgen.values import from_dict

NASTY = '<script>alert("1")</script> & [brackets] {braces} $x^2$ \\frac \u202eleft\u202c <img src=http://x/> ' * 4
VOID = {"meta", "img", "br", "link"}


def clip(count: int = 25, height: int = 96, width: int = 160, noise: int = 0) -> np.ndarray:
    """A gradient that moves; noise: how many levels it is off."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    channels = (x * 255 // width + 4 * t, y * 255 // height, 128 + 100 * np.sin((x + y + 6 * t) / 17))
    return (np.stack(channels, -1).astype(int) + noise * ((x // 8 + y // 8) % 2)[..., None]).clip(0, 255).astype("u1")


def read(record: dict[str, Any]) -> BenchRecord | CalibrationRecord | TrainRecord:
    """The value that wrote a record, from its JSON."""
    kinds: dict[str, type] = {"compare": CompareRecord, "quality": QualityRecord, "attention": AttentionRecord}
    kinds |= {"training": TrainRecord}
    return from_dict(kinds.get(record.get("kind", ""), CalibrationRecord), record)


def write(record: dict[str, Any], pairs: Sequence[Pair], path: Path) -> list[Path]:
    """`report.write`, of a record as its JSON has it."""
    return report.write(read(record), pairs, path)


def pair(prompt: str = "a cat moving left", psnr: float | None = 33.3, **shape: int) -> Pair:
    return Pair(prompt, psnr, clip(**shape), clip(**shape, noise=9))


class Page(HTMLParser):
    """Everything that a page has: words, images, videos, addresses; fails where a tag is not closed in its place.

    levels: the picture of what a PSNR looks like, which is the same on all pages and lies beside none.
    """

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.videos: list[dict[str, str]] = []
        self.levels: list[dict[str, str]] = []
        self.words, self.tags, self.addresses = "", set[str](), list[str]()
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        told = {name: value or "" for name, value in attrs}
        assert len(told) == len(attrs)
        self.addresses += [told[name] for name in ("href", "src", "srcset", "poster", "action", "data") if name in told]
        if tag == "img":
            (self.levels if told["alt"].startswith("What a PSNR looks like") else self.images).append(told)
        if tag == "video":
            self.videos.append(told)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without its beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data


def frames_of(video: dict[str, str], path: Path) -> np.ndarray:
    """The frames of a page's video, uint8 [frames, height, width, 3]. path: where the file may lie meanwhile."""
    kind, _, data = video["src"].partition(",")
    assert kind == "data:video/mp4;base64"
    path.write_bytes(base64.b64decode(data, validate=True))
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def png(image: dict[str, str]) -> bytes:
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    return base64.b64decode(data, validate=True)
