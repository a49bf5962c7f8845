"""Images that videos begin or end with: checked, read as they look, and brought to a video's size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen.errors import UsageError, option
from fpsgen.files import open_regular, sha256
from fpsgen.printable import absolute, printable

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# Pillow knows more, some by running other programs.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
MOST_PIXELS = 89_000_000  # Pillow warns above; a video has less than 17 million in a frame
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of greyscale with 16 bits


def read(path: Path, field: str = "image") -> Image:
    """An image as RGB, the way up that its EXIF says; the first one of several. What is transparent is white; of 16
    bits the upper 8 are left. field: the setting that names it. UsageError where it cannot be read, or is too large to
    be meant."""
    from PIL import Image, ImageOps

    told = option(field, str(path))
    hint = f"give a {', '.join(name for name in FORMATS[:4] if name != 'MPO')} or other image file"
    try:
        if not path.exists():
            raise UsageError(f"{told}: there is no such file", hint)
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]  # some builds of Pillow lack some
        with open_regular(path) as file, Image.open(file, formats=known) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))
    except UsageError:
        raise
    except Image.DecompressionBombError:  # Pillow has a limit as well, above ours
        few = MOST_PIXELS // 10**6
        raise UsageError(f"{told} has more than {few} million pixels", hint="scale it down") from None
    except OSError as fault:
        reason = fault.strerror or "it is no image, or a damaged one"
        raise UsageError(f"{told} cannot be read: {reason}", hint) from None
    except Exception:  # whatever comes of damaged files
        raise UsageError(f"{told} cannot be read: it is a damaged image", hint) from None


def _as_rgb(image: Image) -> Image:
    from PIL import Image as images

    if image.mode in _DEEP:
        import numpy as np

        grey = np.asarray(image).astype(np.int64).clip(0, 2**16 - 1)
        image = images.fromarray((grey >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = images.new("RGBA", image.size, "white")
        image = images.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def fitted(image: Image, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: the largest part about the middle that has the video's proportions, brought to its
    size; an image of that size as it is."""
    import numpy as np
    from PIL.Image import Resampling

    scale = min(image.width / width, image.height / height)
    across, down = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    if image.size != (width, height):
        box = (across, down, image.width - across, image.height - down)
        image = image.resize((width, height), Resampling.LANCZOS, box)
    return np.array(image)


def described(path: Path | None, field: str = "image") -> dict[str, Any] | None:
    """What a video's comment says of an image: its name and place, and its content's SHA-256. field: as `read` has it;
    UsageError where the file is gone meanwhile."""
    if path is None:
        return None
    try:
        return {"name": printable(path.name), "path": absolute(path), "sha256": sha256(path)}
    except OSError as fault:
        told = f"{option(field, str(path))} cannot be read any more: {fault.strerror}"
        raise UsageError(told, hint="leave the image where it is until the video is complete") from None
