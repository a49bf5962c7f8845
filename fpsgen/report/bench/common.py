"""What the pages of comparisons share: who is compared, and the settings of the video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fpsgen.report import html, words

CLEAR, SMALL = 5, 0.1  # pairs of runs that tell a small difference, and what is one


def others(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All contenders but the reference; the page is about the first."""
    return [one for one in record["contenders"] if one["name"] != record["reference"]]


def reference(record: Mapping[str, Any]) -> dict[str, Any]:
    return next(one for one in record["contenders"] if one["name"] == record["reference"])


def bold(one: Mapping[str, Any]) -> str:
    """A contender's name in a sentence: everywhere the same."""
    return f"<b>{html.prompt(one['label'])}</b>"


def who(one: Mapping[str, Any], told: bool = False) -> str:
    """A contender's name, and under it what that is."""
    return html.prompt(one["label"]) + (f"<small>{html.text(one['told'])}</small>" if told and one["told"] else "")


def lpips_told(found: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where LPIPS is missing. found: the measures of each contender."""
    if any(one["lpips"] is not None for one in found):
        return ""
    return ' LPIPS was not measured: it needs <code>pip install "fpsgen[eval]"</code>.'


def settings(record: Mapping[str, Any], seeds: str) -> dict[str, str]:
    """The video's, for a list of definitions. seeds: in words."""
    video = record["video"]
    rows = {
        "Video": f"{video['width']}{words.TIMES}{video['height']}, {video['frames']} frames at {video['fps']} a second",
        "Sampling": f"{video['steps']} steps of {video['solver']}, {video['grid']} grid, shift {video['shift']:g}, "
        f"guidance {video['guidance']:g}, {seeds}",
        "Precision": f"matrix products in {record['dtype']}, text encoder in {record['text_dtype']}, "
        f"on {record['device']}",
    }
    return {name: html.text(value) for name, value in rows.items()}


def too_close(found: dict[str, Any]) -> bool:
    """Whether these runs cannot tell a speed-up from 1: some pairs lie on either side of it, or they are few, which may
    lie on one side by chance, and near it."""
    each, ratio = found["each"], found["median"]
    return min(each) <= 1 <= max(each) or (len(each) < CLEAR and abs(ratio - 1) < SMALL)
