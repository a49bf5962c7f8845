"""The file that keeps the state of a video, whatever it contains; and the room that a run needs."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fpsgen import unfinished
from fpsgen.errors import UsageError
from fpsgen.request import Request, VideoPlan, resolve
from fpsgen.target import Target
from fpsgen.unfinished import Unfinished
from fpsgen.weights import models
from tests.tools.stopped import stopped, with_hash

CPU = torch.device("cpu")
PROMPT = "a cat surfing"


def plan(folder: Path, output: Path) -> VideoPlan:
    model = models.find(str(folder))
    own = model.defaults.override(width=96, height=64, frames=5, steps=4)
    return resolve(Request(PROMPT, own, 7, output), model, Target(CPU, torch.float32, torch.bfloat16))


def test_how_much_room_a_run_may_need(wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its files, one of them twice while it gets its comment, and one state, old and new."""
    plans = [plan(wan_folder, tmp_path / name) for name in ("a.mp4", "b.mkv")]
    pixels, latents = 5 * 96 * 64, 4 * 16 * 2 * 8 * 12
    needed = int(0.2 * pixels + 2 * 3 * pixels) + 2 * 7 * latents
    for free in (needed, needed - 1):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with pytest.raises(UsageError, match="this run may need") if free < needed else contextlib.nullcontext():
            unfinished.check_room(plans)


def test_what_a_run_that_goes_on_is_compared_by(wan_folder: Path, tmp_path: Path) -> None:
    """Other files that texts are read by are other settings; another device only costs last bits."""
    now = unfinished.made_with(plan(wan_folder, tmp_path / "a.mp4"), "")
    size = sum(file.stat().st_size for file in (wan_folder / "text_encoder").glob("*.safetensors"))
    others = unfinished.differences(now | {"readers": {"text_encoder": 1}}, now)
    assert others == [f'weights "text_encoder 1", not "text_encoder {size}"']
    elsewhere = now | {"device": "cuda:0", "threads": None, "fpsgen": "0.0.1"}
    assert unfinished.differences(elsewhere, now) == []
    named = " ".join(unfinished.differences(elsewhere, now, unfinished._SURROUNDINGS))
    assert all(words in named for words in ("device cuda:0, not cpu", "threads none", "fpsgen 0.0.1"))


def test_no_state_ends_in_anything_but_a_sentence(wan_folder: Path, tmp_path: Path) -> None:
    """The hash is no secret: whatever a file says, with a hash that fits."""
    path = tmp_path / "a.mp4.unfinished"
    args = ("--res", "96x64", "--frames", 5, "--steps", 4, "--seed", 7, "-o", tmp_path / "a.mp4")
    stopped(2, PROMPT, "--model", wan_folder, *args)
    kept = path.read_bytes()
    body = kept[:-32]
    length = int.from_bytes(body[:8], "little")
    head, values = json.loads(body[8 : 8 + length]), body[8 + length :]
    inside = json.loads(head["__metadata__"]["fpsgen"])
    own = plan(wan_folder, tmp_path / "a.mp4")

    def refused(inner: object, tensors: dict[str, Any], raw: bytes | None = None) -> None:
        told = {"__metadata__": {"fpsgen": json.dumps(inner) if raw is None else raw.decode()}} | tensors
        text = json.dumps(told).encode()
        path.write_bytes(with_hash(len(text).to_bytes(8, "little") + text + values))
        with pytest.raises(UsageError):
            Unfinished(own, True)

    tensors = {name: each for name, each in head.items() if name != "__metadata__"}
    path.write_bytes(kept)
    state = Unfinished(own, True).state()
    assert state is not None
    assert state.step == 2
    for key in inside:
        refused({name: value for name, value in inside.items() if name != key}, tensors)
        for value in (None, -1, math.inf, "x", [[]], {"a": 1}, [None]):
            if (key, value) not in (("together", -1),) and key not in ("together", "resumed", "seconds"):
                refused(inside | {key: value}, tensors)
    refused(inside | {"done": 3, "seconds": [0.1] * 3, "about": inside["about"] | {"steps": 3}}, tensors)
    refused(inside | {"levels": [0.5]}, tensors)
    for name in tensors:
        refused(inside, {other: each for other, each in tensors.items() if other != name})
        for shape, dtype in (([1, 16, 2, 8, 12], "I32"), ([1, 16, 2, 12, 8], "F32"), ([-1], "F32"), ("x", "F99")):
            refused(inside, tensors | {name: tensors[name] | {"shape": shape, "dtype": dtype}})
    refused(None, tensors, raw=b"[" * 100_000)
    for data in (b"", b"\0" * 8, (2**63).to_bytes(8, "little"), b"\xff" * 100, b"\x02" + b"\0" * 7 + b"{}"):
        path.write_bytes(with_hash(data))
        with pytest.raises(UsageError):
            Unfinished(own, True)
