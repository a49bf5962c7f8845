"""Images as people have them: every mode, damaged ones, and how they are brought to a video's size."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fpsgen import images
from fpsgen.errors import UsageError
from fpsgen.wan import sizes

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(path: Path, image: Image.Image, **how: object) -> Path:
    image.save(path, **how)
    return path


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_the_video_s_size_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = noise(48, 64)
    read = images.read(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    assert np.array_equal(images.fitted(read, 64, 48), pixels)


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (64, 32), (33, 77)])
def test_another_is_cropped_about_the_middle(size: tuple[int, int]) -> None:
    """Red in the middle, as tall or wide as the video; its margins, of another colour, fall out."""
    width, height = 96, 64
    scale = min(size[0] / width, size[1] / height)
    image, inside = Image.new("RGB", size, "blue"), (scale * width, scale * height)
    left, top = ((size[axis] - inside[axis]) / 2 for axis in range(2))
    image.paste(RED, (int(left), int(top), int(np.ceil(left + inside[0])), int(np.ceil(top + inside[1]))))
    got = images.fitted(image, width, height)
    assert got.shape == (height, width, 3)
    assert (got[16:-16, 16:-16] == RED).all()  # towards the edges the filter overshoots


def test_transparent_is_white_in_every_mode_that_knows_it(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, 0, 255, 0])
    grey = Image.merge("LA", [Image.new("L", (4, 4), 7), Image.new("L", (4, 4), 0)])
    for name, image, how, wanted in (
        ("clear.png", clear, {}, WHITE),
        ("opaque.png", half, {}, RED),
        ("palette.png", palette, {}, RED),
        ("palette-clear.png", palette, {"transparency": 0}, WHITE),
        ("clear.webp", clear, {"lossless": True}, WHITE),
        ("grey.png", grey, {}, WHITE),
    ):
        assert images.read(saved(tmp_path / name, image, **how)).getpixel((1, 1)) == wanted, name


def test_sixteen_bits_keep_their_upper_half(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 0x80FF, np.uint16))
    for name in ("deep.png", "deep.tiff"):
        assert images.read(saved(tmp_path / name, deep)).getpixel((0, 0)) == (0x80, 0x80, 0x80)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.tiff", Image.new("RGB", (4, 4), "white").convert(mode))
    assert images.read(path).getpixel((0, 0)) == WHITE


def test_exif_turns_an_image(tmp_path: Path) -> None:
    image = Image.fromarray(noise(4, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise when it is shown
    path = saved(tmp_path / "a.png", image, exif=exif)
    assert np.array_equal(np.asarray(images.read(path)), np.rot90(np.asarray(image), -1))


def bomb(path: Path) -> Path:
    """A PNG of a few bytes that says it has 10^10 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))))
    return path


def test_what_is_no_image_is_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.png", Image.fromarray(noise(64, 64))).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (
        ("none.png", "there is no such file"),
        ("half.png", "no image, or a damaged one"),
        ("text.png", "no image, or a damaged one"),
        ("page.eps", "no image, or a damaged one"),
        (".", "cannot be read"),
        ("pipe.png", "not a regular file"),
        ("x" * 300, "cannot be read"),
        (bomb(tmp_path / "bomb.png").name, "more than 89 million"),
    ):
        with pytest.raises(UsageError, match=words) as refused:
            images.read(tmp_path / name)
        assert refused.value.hint, name


def test_a_comment_names_an_image_by_its_content(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(noise(8, 8)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert images.described(path) == {"name": "a.png", "path": str(path), "sha256": digest}
    assert images.described(None) is None


def test_an_image_that_is_gone_before_the_comment_is_written_costs_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(noise(8, 8)))
    assert images.described(path)
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read any more: No such file") as refused:
        images.described(path, "last_image")
    assert refused.value.hint


def test_a_size_of_an_image_s_proportions() -> None:
    """Wan2.1's own sizes come back from images of their proportions, either way up."""
    for width, height in ((832, 480), (1280, 720), (960, 960)):
        for scale in (1, 3):
            assert sizes.of_area((scale * width, scale * height), (height, width)) == (width, height)
            assert sizes.of_area((scale * height, scale * width), (height, width)) == (height, width)
    assert sizes.of_area((1000, 1500), (1280, 720)) == (768, 1168)
    assert sizes.of_area((1000, 1500), (1280, 704), stride=16) == (768, 1152)
    for image in ((1, 4000), (4000, 1)):
        with pytest.raises(UsageError, match="too narrow"):
            sizes.of_area(image, (832, 480))
