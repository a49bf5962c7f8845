"""What the pages of comparisons share: who is compared, clips beside each other, the settings of the video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fpsgen.metrics import Pair
from fpsgen.report import drawing, html, words


def others(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All contenders but the reference; the first is whom the page is about."""
    return [one for one in record["contenders"] if one["name"] != record["reference"]]


def reference(record: Mapping[str, Any]) -> dict[str, Any]:
    return next(one for one in record["contenders"] if one["name"] == record["reference"])


def who(one: Mapping[str, Any], told: bool = False) -> str:
    """A contender's name, and under it what that is."""
    return html.prompt(one["name"]) + (f"<small>{html.text(one['told'])}</small>" if told and one["told"] else "")


def draw_clips(pairs: Sequence[Pair]) -> dict[str, bytes]:
    """Pictures by name: frames-1, frames-2 …"""
    with drawing.styled():
        return {f"frames-{number}": drawing.frames(pair) for number, pair in enumerate(pairs, 1)}


def clips(pairs: Sequence[Pair], drawn: Mapping[str, bytes], told: str) -> str:
    """Frames beside the reference's; told: the beginning of a sentence about them."""
    shown = [
        (drawn[f"frames-{number}"], ", ".join(pair.names), pair.prompt, pair.psnr)
        for number, pair in enumerate(pairs, 1)
    ]
    return html.frames("Frames beside the reference&rsquo;s", told, shown)


def lpips_told(found: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where LPIPS is missing. found: the measures of each contender."""
    if any(one["lpips"] is not None for one in found):
        return ""
    return ' LPIPS was not measured: it needs <code>pip install "fpsgen[eval]"</code>.'


def settings(record: Mapping[str, Any], seeds: str) -> dict[str, str]:
    """Of the video, for a list of definitions."""
    video = record["video"]
    rows = {
        "Video": f"{video['width']}{words.TIMES}{video['height']}, {video['frames']} frames at {video['fps']} a second",
        "Sampling": f"{video['steps']} steps of {video['solver']}, {video['grid']} grid, shift {video['shift']:g}, "
        f"guidance {video['guidance']:g}, {seeds}",
        "Precision": f"matrix products in {record['dtype']}, text encoder in {record['text_dtype']}, "
        f"on {record['device']}",
    }
    return {name: html.text(value) for name, value in rows.items()}
