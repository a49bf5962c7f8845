"""What `choices` leaves to the command line: standing choices, a question, names of files."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fpsgen import choices, files
from fpsgen.cli import options, preferences
from fpsgen.cli.output import Output
from fpsgen.errors import UsageError
from fpsgen.formats import Encoding
from fpsgen.printable import printable
from fpsgen.timing import Timings
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    import torch

    from fpsgen.presets import Preset
    from fpsgen.weights.models import Model


def find_model(name: str | None, parts: Given = NOTHING, may_be_absent: bool = False) -> Model | None:
    """`choices.named_model` of the name, or of the user's own default, if there is one."""
    with preferences.using("model", name) as wanted:
        return None if wanted is None else choices.named_model(wanted, parts, may_be_absent)


def find_preset(name: str | None) -> Preset | None:
    """`choices.find_preset` of the name, or of the user's own default."""
    with preferences.using("preset", name) as wanted:
        return choices.find_preset(wanted)


def choose_model(
    size: choices.Size | None, device: torch.device, out: Output, timings: Timings | None = None, parts: Given = NOTHING
) -> Model:
    """The default model; where its weights are absent and somebody can be asked, fetched first."""
    from fpsgen.weights import hub, models

    try:
        return choices.default_model(size, device, out, parts)
    except models.NoWeightsError as absent:
        if not out.may_ask:
            raise
        with (timings or Timings()).pause():  # a download is no part of making a video
            question = f"{absent}. Fetch Wan2.1 {absent.key} now, {absent.size}?"
            if not typer.confirm(question, err=True):
                raise
            hub.pull(hub.plan(hub.source_of(absent.repository)))
        return choices.default_model(size, device, out, parts)


def with_last_frame(encoding: Encoding, video: Path, no_clobber: bool) -> Encoding:
    """The encoding with the place of a last frame as it is meant; UsageError where none can be written there."""
    if encoding.last_frame_to is None:
        return encoding
    picture = options.expand(encoding.last_frame_to)
    told, hint = f"--last-frame-to {printable(picture)}", "choose another name, such as last.png"
    if picture.suffix.lower() != ".png":
        raise UsageError(f"{told}: a last frame is a .png file", hint)
    there = files.check_place(picture, "last.png", "last_frame_to")
    if there and no_clobber:
        raise UsageError(f"{told} exists, and --no-clobber keeps it", hint)
    if files.resolved(picture) == files.resolved(video):
        raise UsageError(f"{told} is where the video goes", hint)
    return replace(encoding, last_frame_to=picture)


def video_name(prompt: str, seed: int, tell_apart: bool = False) -> str:
    """A file name that says what is inside. tell_apart: long prompts that begin alike have names of their own."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    kept, more = words.encode()[:60].decode(errors="ignore").rstrip("-"), ""  # file systems count bytes
    if tell_apart and kept != words:
        more = f"-{hashlib.sha256(prompt.encode('utf-8', 'replace')).hexdigest()[:8]}"
    return os.fsdecode(f"{kept or 'video'}{more}-{seed}.mp4".encode())  # names are UTF-8, whatever the locale
