"""A video made again: what its comment says of its making, where its files are now, and what differs from then.

Imports no torch, so that whatever is wrong with a video is told at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fpsgen import comment, files, formats
from fpsgen.errors import ModelError, UsageError, option
from fpsgen.presets import Preset, file
from fpsgen.printable import printable
from fpsgen.seeds import check_seed
from fpsgen.settings import Settings
from fpsgen.values import from_dict
from fpsgen.wan import sizes
from fpsgen.weights.known import Given
from fpsgen.weights.models import POCKET

_WHOLE = ("width", "height", "frames", "fps", "steps", "stride")
_NUMBERS = ("guidance", "shift", "guidance_low", "boundary")
# What two comments may say differently, and the option that may change it.
_PLAIN = {
    "model": ("model", "model"), "device": ("device", "device"), "threads": ("CPU threads", "device"),
    "gpus": ("GPUs", ""), "one_batch": ("both guidance branches in one batch:", ""),
    "dtype": ("dtype", "dtype"), "text_dtype": ("the texts' dtype", "dtype"), "fpsgen": ("fpsgen", ""),
    **{name: (name, "") for name in ("torch", "diffusers", "transformers")},
}  # fmt: skip
_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Earlier:
    """A video that fpsgen made. made: its comment; the rest: what it says, as `request.Request` has it."""

    video: Path
    made: Mapping[str, Any]
    prompt: str
    settings: Settings
    seed: int
    preset: Preset
    scale_to: tuple[int, int] | None

    @property
    def model(self) -> str:
        """The model as a user names it; ModelError where its folder or file is gone."""
        name, place = str(self.made.get("model", "")), _text(self.made.get("model_path"))
        if place and not os.path.exists(place):  # which minds no name that is too long
            told = f"the model {printable(name)}, which {self._name} was made with, is not in {printable(place)} now"
            raise ModelError(told, hint=f"name it with {option('model')}")
        return place or (POCKET if re.fullmatch(rf"{POCKET} v\d+", name) else name)

    @property
    def parts(self) -> Given:
        """Those that were named; UsageError where one is gone."""
        told, found = _table(self.made.get("parts")), {}
        for part in fields(Given):
            if place := _text(told.get(part.name)):
                found[part.name] = self._place({"path": place}, part.name)
        return Given(**found)

    @property
    def loras(self) -> list[str]:
        """Each as a user names it, with its expert and its scale; UsageError where a file is gone."""
        found = []
        for told in map(_table, _list(self.made.get("loras"))):
            expert = f"{told['expert']}=" if told.get("expert") in ("high", "low") else ""
            found.append(f"{expert}{self._place(told, 'lora')}:{told.get('scale', 1)}")
        return found

    def image(self, field: str) -> Path | None:
        """The image that the video begins or ends with. field: "image" or "last_image". UsageError where it is gone."""
        told = self.made.get(field)
        return self._place(_table(told), field) if told else None

    @property
    def dtypes(self) -> tuple[str, str] | None:
        """The precisions of transformer and text encoder by torch's names."""
        dtype, text = self.made.get("dtype"), self.made.get("text_dtype")
        return (dtype, text) if dtype in _DTYPES and text in _DTYPES else None

    @property
    def device(self) -> str | None:
        return _text(self.made.get("device")) or None

    @property
    def crf(self) -> int | None:
        crf = self.made.get("crf")
        return crf if type(crf) is int else None

    @property
    def _name(self) -> str:
        return printable(self.video.name)

    def _place(self, told: Mapping[str, Any], field: str) -> Path:
        """Where a file of then is now: at its place, or beside the video, or in the current folder; of several, the one
        with the content of then."""
        given = _text(told.get("path")) or _text(told.get("file")) or _text(told.get("name"))
        name = Path(given).name
        places = [Path(given), self.video.parent / name, Path(name)]
        found = [place.absolute() for place in places if name and os.path.exists(place)]
        if not found:
            told_of = f"{option(field, printable(name))}, which {self._name} was made with"
            now = f"is not at {printable(given)} now" if given else "has no place in the comment"
            raise UsageError(f"{told_of}, {now}", f"name it with {option(field)}")
        several = dict.fromkeys(found) if len(set(found)) > 1 else {}
        return next((place for place in several if files.sha256(place) == told.get("sha256")), found[0])


def read(video: Path) -> Earlier:
    """What a video was made with. UsageError where it does not say, or says what cannot be."""
    return understood(video, comment.read(video))


def understood(video: Path, made: Mapping[str, Any]) -> Earlier:
    """The same by its comment."""
    try:
        settings = from_dict(Settings, {**made, "sigmas": made["grid"]})  # its name since the first
        _check_kinds(settings)
        settings.check()
        check_seed(made["seed"])
        size = made["scale_to"] and (made["scale_to"][0], made["scale_to"][1])
        if size:
            sizes.check_scaled_size(*sizes.parse_resolution(f"{size[0]}x{size[1]}"))
        prompt = made["prompt"]
        kinds = {"prompt": str, "model": str, "loras": list, "seed": int}
        if any(type(made[name]) is not kind for name, kind in kinds.items()):
            raise TypeError
        preset = file.from_dict(made["preset"])
        return Earlier(video, made, prompt, settings, made["seed"], preset, size or None)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError):
        told = f"the comment of {printable(video.name)} does not tell how fpsgen made it"
        raise UsageError(told, hint=comment.HINT) from None


def _check_kinds(settings: Settings) -> None:
    """TypeError where a value is of another kind; ValueError where it is none of a video."""
    if any(type(getattr(settings, name)) is not int for name in _WHOLE) or not isinstance(settings.negative, str):
        raise TypeError
    if any(type(getattr(settings, name)) not in (int, float, type(None)) for name in _NUMBERS):
        raise TypeError
    if settings.fps > formats.MOST_FPS or settings.stride not in (sizes.STRIDE, 2 * sizes.STRIDE):
        raise ValueError


def differences(then: Mapping[str, Any], now: Mapping[str, Any], given: Collection[str] = ()) -> list[str]:
    """What else than the settings differs between two comments, or parts of them, in words; what one of them does not
    say is passed over. given: the options that the user changed, which need no telling."""
    return [told for field, told in _differences(then, now) if field not in given]


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """With the option that may change each."""
    if then.get("weights") and now.get("weights") and then["weights"] != now["weights"]:
        yield "model", f"the weights ({printable(now['weights'])}, then {printable(then['weights'])})"
    digests = [_table(lora).get("sha256") for lora in _list(then.get("loras"))]
    for lora in map(_table, _list(now.get("loras"))):
        if lora.get("sha256") not in digests:
            yield "lora", f"the content of {printable(Path(str(lora.get('file'))).name)}"
    for field in ("image", "last_image"):
        if (image := _table(now.get(field))) and image.get("sha256") != _table(then.get(field)).get("sha256"):
            yield field, f"the content of {printable(image.get('name'))}"
    before, after = ({**_table(each.get("versions")), **each} for each in (then, now))
    before.setdefault("gpus", 1)
    for key, (words, field) in _PLAIN.items():
        if None not in (was := before.get(key), own := after.get(key)) and was != own:
            yield field, f"{words} {printable(own)} (then {printable(was)})"


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) and "\0" not in value else ""
