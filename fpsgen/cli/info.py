"""`fpsgen info`: what a video was made with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fpsgen import files
from fpsgen.cli.options import expand
from fpsgen.cli.output import Output
from fpsgen.printable import printable, readable
from fpsgen.report.words import counted
from fpsgen.tables import Cell, Column, Table

EXAMPLES = """
fpsgen info cat.mp4
fpsgen info cat.mp4 --json
"""

_MOST = 5000  # characters of a prompt, which are all of it
_MOST_ROWS = 20  # of LoRAs


def info(video: Path, json: bool = False) -> None:
    """Show what a video was made with: prompt, model, settings, seed, versions and times.

    Every video that fpsgen makes contains them, but for a gif; so does a .png, a folder of frames, and the .unfinished
    file of a video that is not complete. `fpsgen generate --from VIDEO` makes a complete one again.
    """
    out = Output(json)
    video = expand(video)
    made = (_unfinished(video) if video.suffix == files.UNFINISHED else None) or _complete(video)
    if not json:
        out.show(table(made))
        return
    out.result("", {**made, "file": str(video)})


def _complete(video: Path) -> dict[str, Any]:
    from fpsgen import comment  # ffmpeg reads it, whose package takes a moment

    return comment.read(video)


def _unfinished(video: Path) -> dict[str, Any] | None:
    """What the state of a video says, None where there is none."""
    from fpsgen import unfinished  # which waits for torch

    kept = unfinished.read(video)
    return {**kept.about, "steps_done": kept.done} if kept else None


def table(made: dict[str, Any]) -> Table:
    """A comment for people; what it does not say, or says in another form, has no row."""
    shown = Table(heads=False, columns=[Column(""), Column("", prose=True)])
    for name, text in rows(made):
        if text:
            shown.row(Cell(name, "dim"), printable(text, _MOST))
    return shown


def rows(made: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each line's name and text, an empty one where the comment says nothing of it."""
    said = _Said(made)
    yield "by", said["by"]  # another library, in a bench
    yield "prompt", said["prompt"]
    yield "negative", said["negative"]
    for key, name in (("image", "image"), ("last_image", "last image")):
        image = said.inside(key)
        yield name, joined(image["name"], image["sha256"] and f"SHA-256 {image['sha256']}")
    yield "model", joined(said["model"], said["model_path"])
    yield "weights", said["weights"]
    for lora in said.several("loras")[:_MOST_ROWS]:
        expert = lora["expert"] and f"{lora['expert']}-noise expert"
        yield "LoRA", joined(lora["file"], f"scale {lora['scale']}", expert, f"SHA-256 {lora['sha256']}")
    density = said.inside("attention")["density"]
    yield "preset", joined(said.inside("preset")["name"], density and f"density {density} of token pairs")
    scaled = "x".join(str(side) for side in _list(made.get("scale_to")))
    size = said["width"] and f"{said['width']}x{said['height']}"
    yield "size", joined(size, scaled and f"scaled to {scaled}")
    crf = said["crf"] and f"crf {said['crf']}"
    yield "frames", joined(said["frames"], said["fps"] and f"{said['fps']} a second", crf)
    yield "seed", said["seed"]
    by = said["solver"] and f"{said['solver']} on the {said['grid']} sigmas"
    low = said["guidance_low"] and f"{said['guidance_low']} of the low-noise expert"
    done = said["steps_done"] and f"{said['steps_done']} of them done"
    yield "steps", joined(said["steps"], done, by, f"shift {said['shift']}" if by else "")
    yield "guidance", joined(said["guidance"], low)
    threads = made.get("threads")
    cores = counted(threads, "thread") if isinstance(threads, int) else ""
    gpus = said["gpus"] and f"{said['gpus']} processes together"
    yield "device", joined(said["device"], cores, gpus, said["dtype"])
    versions = [f"{name} {version}" for name, version in said.inside("versions").pairs()]
    yield "versions", joined(f"fpsgen {said['fpsgen']}", *versions)
    yield "seconds", joined(*(f"{name} {seconds:.2f}" for name, seconds in stages(made)))
    peak = said.inside("timings").value("peak_memory_bytes")
    yield "memory", readable(peak) if isinstance(peak, int) and 1 < peak < 2**63 else ""


def stages(made: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Seconds of each stage and in total."""
    timings = _Said(made).inside("timings")
    for name in ("load", "text", "compile", "denoise", "decode", "encode", "total"):
        if isinstance(seconds := timings.value(name), float) and (seconds or name != "compile"):
            yield name, seconds


def joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


class _Said:
    """A comment's object, whatever it contains: a text or number by name, empty where there is none."""

    def __init__(self, said: Any):
        self._said = said if isinstance(said, dict) else {}

    def __getitem__(self, key: str) -> str:
        value = self.value(key)
        if isinstance(value, float):
            return f"{value:g}"
        return "" if value is None or isinstance(value, (dict, list)) else str(value)

    def value(self, key: str) -> Any:
        return self._said.get(key)

    def inside(self, key: str) -> _Said:
        return _Said(self._said.get(key))

    def several(self, key: str) -> list[_Said]:
        return [_Said(each) for each in _list(self._said.get(key))]

    def pairs(self) -> Iterator[tuple[str, str]]:
        return ((key, self[key]) for key in self._said if self[key])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
