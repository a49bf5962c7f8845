"""A training run on disk: its checkpoints, each a folder that appears when it is complete.

Tensors are gathered one by one and written by the first process, as safetensors; any number of processes read them.
torch.distributed.checkpoint is not used: its metadata are a pickle, which reading would run, and what it writes as
safetensors instead it holds in memory twice, by code that differs in every torch since 2.8.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fpsgen.errors import UsageError, option, reason
from fpsgen.files import open_regular, write_json
from fpsgen.printable import printable
from fpsgen.ranks import Ranks
from fpsgen.train.fsdp import gathered, local, shared

_VERSION = 1
_PART = 2**31  # bytes of a file, about, which the first process has in memory
_STATE = "state.json"
# Settings that may change while a run is stopped: none of them changes what is computed.
_FREE = {"micro", "recompute", "spike", "save_every", "keep", "check_every"}
_ELSEWHERE = f"use what the run began with, or begin another one with another {option('output')}"


class Best(NamedTuple):
    """The step whose held-out clips were nearest to the dense model's, and their mean latent error."""

    step: int
    error: float


def latest(folder: Path) -> Path | None:
    """The last complete checkpoint of a folder of them."""
    return max(_complete(folder), key=_step, default=None)


def _complete(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("step-*") if (path / _STATE).is_file() and _step(path) >= 0)


def _step(path: Path) -> int:
    number = path.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any], group: Ranks) -> None:
    """Write a checkpoint; every process calls it. about: what is no tensor. UsageError where it cannot be written:
    what was there before stays."""
    hidden = folder / f".step-{step}"
    part: dict[str, Tensor] = {}
    parts = size = 0
    try:
        if group.is_first:
            _sweep(folder)
            hidden.mkdir(parents=True)
        for name, tensor in tensors.items():
            whole = gathered(tensor)
            if not group.is_first:
                continue
            part[name] = whole.cpu().contiguous()
            size += whole.nbytes
            if size >= _PART:
                save_file(part, hidden / f"{parts}.safetensors")
                part, parts, size = {}, parts + 1, 0
        if group.is_first:
            save_file(part, hidden / f"{parts}.safetensors")
            write_json(hidden / _STATE, {"version": _VERSION, "step": step, **about})
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)  # one that has lost its state
            hidden.rename(folder / f"step-{step}")
    except (OSError, SafetensorError) as fault:
        shutil.rmtree(hidden, ignore_errors=True)
        told = f"the checkpoint of step {step} cannot be written to {printable(folder)}: {printable(reason(fault))}"
        raise UsageError(told, hint=f"make room there: with {option('resume')} it goes on from the last one") from None


def _sweep(folder: Path) -> None:
    """Remove what a run that was killed left half written or half removed."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def prune(folder: Path, keep: int, best: Best | None) -> None:
    """Remove all checkpoints but the last `keep` and the best one."""
    for old in sorted(_complete(folder), key=_step)[:-keep]:
        if best is None or _step(old) != best.step:
            hidden = old.rename(old.with_name(f".{old.name}"))  # half of a checkpoint must not look like one
            shutil.rmtree(hidden, ignore_errors=True)


def about(path: Path) -> dict[str, Any]:
    """What a checkpoint says besides its tensors; UsageError where it is damaged."""
    try:
        with open_regular(path / _STATE) as file:
            told = json.loads(file.read())
        if _has(told, {"version": int}) and told["version"] != _VERSION:
            raise ValueError("it is another fpsgen's")
        if not _is_whole(told, _step(path)):
            raise ValueError(f"its {_STATE} is not what was written")
        return told
    except (OSError, ValueError, RecursionError) as fault:
        raise _damaged(path, fault) from None


def _is_whole(told: Any, step: int) -> bool:
    """Whether it has the form of what a run of one process or many writes with its checkpoint of a step."""
    forms = {"version": int, "step": int, "updates": int, "settings": dict, "on": dict, "guard": dict}
    guard = {"skipped": int, "in_row": int, "stage": int, "recent": list}
    return (
        _has(told, forms)
        and told["step"] == step
        and 0 <= told["updates"] <= step
        and "decay" in told["settings"]
        and told["guard"].keys() == guard.keys()
        and _has(told["guard"], guard)
        and all(type(loss) is float for loss in told["guard"]["recent"])
        and (told.get("best") is None or _kinds(told["best"]) == [int, float])
    )


def _has(told: Any, forms: Mapping[str, type]) -> bool:
    return isinstance(told, dict) and all(type(told.get(name)) is form for name, form in forms.items())


def _kinds(told: Any) -> list[type]:
    return [*map(type, told)] if isinstance(told, list) else []


def load(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, shared out or not, with a checkpoint's; UsageError where it has others."""
    missing = set(tensors)
    try:
        for file in path.glob("*.safetensors"):
            with open_regular(file), safe_open(file, "pt") as content:  # a pipe, say, would have us wait
                for name in content.keys():  # noqa: SIM118 (it is no mapping)
                    if name not in missing:
                        raise ValueError(f"it has {name}, or has it twice")
                    _fill(tensors[name], content.get_tensor(name))
                    missing.remove(name)
        if missing:
            raise ValueError(f"it has no {min(missing)}")
    except (OSError, SafetensorError, ValueError) as fault:
        raise _damaged(path, fault) from None


def _damaged(path: Path, fault: Exception) -> UsageError:
    told = f"the checkpoint {printable(path)} cannot be used: {printable(reason(fault))}"
    return UsageError(told, hint=f"remove it; {option('resume')} continues from the one before")


@torch.no_grad()
def _fill(tensor: Tensor, whole: Tensor) -> None:
    if tensor.shape != whole.shape:
        raise ValueError(f"a tensor has the shape {list(whole.shape)} instead of {list(tensor.shape)}")
    if tensor.dtype != whole.dtype:
        raise ValueError(f"a tensor is {whole.dtype} instead of {tensor.dtype}")
    local(tensor).copy_(local(shared(whole, tensor)))


def check_same(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UsageError where a run would go on with other settings than it began with, or on something else, or would end
    before the step that it has come to. Both: with `settings` by name, and other facts by what sentences call them."""
    before, after = then["settings"], now["settings"]
    free = _FREE | ({"steps"} if before["decay"] == after["decay"] == "constant" else set())
    for name in sorted((before.keys() | after.keys()) - free):
        if before.get(name) != after.get(name):
            told = f"this run began with {_told(name, before)}, and would go on with {_told(name, after)}"
            raise UsageError(told, hint=_ELSEWHERE)
    if after["steps"] < then["step"]:
        told = f"this run has come to step {then['step']}, and {option('steps', after['steps'])} ends before"
        raise UsageError(told, hint=f"use {option('steps', then['step'])} or more")
    for name in now["on"]:
        if then["on"].get(name) != now["on"][name]:
            raise UsageError(f"this run began with another {name}", hint=_ELSEWHERE)


def _told(name: str, settings: Mapping[str, Any]) -> str:
    return option(name, settings[name]) if name in settings else f"no {option(name)}"
