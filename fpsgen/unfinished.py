"""A video that is not complete: its state after the last finished step, in one file beside it.

The file is in the format of safetensors, with a hash behind it. It appears by one rename after each step, so that
whoever is killed at any moment goes on from a whole one; and it is gone once the video is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fpsgen import files
from fpsgen.errors import UsageError, option, reason
from fpsgen.events import Notice
from fpsgen.printable import printable, readable
from fpsgen.request import VideoPlan
from fpsgen.sampling import Carried, State
from fpsgen.timing import Timings

_WRITER = ThreadPoolExecutor(1, "unfinished")  # of all videos; its thread begins with the first state
_FORMAT = 1
_HASH = hashlib.sha256().digest_size
_MOST_HEADER = 2**20  # bytes
_MOST_BYTES = 2**31  # of a state; a video of 81 frames of 1280x720 has 135 MB at most
_MOST_TENSORS = 7  # latents; two predictions and what the last step went out from; two velocities; what guidance uses
_SMALL = {".mp4", ".webm", ".gif"}
_BYTES_PER_PIXEL = {True: 0.2, False: 3.0}  # of a small format or another; the pocket model's mp4 files have 0.08
# What reading a file raises that says something else than it should.
_WRONG = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, SafetensorError)
# What latents depend on, by the names of `VideoPlan.about`, and what sentences call it.
_SETTINGS = {
    "model": "model", "loras": "LoRAs", "image": "image", "last_image": "last_image", "prompt": "prompt",
    "negative": "negative", "seed": "seed", "width": "width", "height": "height", "frames": "frames", "steps": "steps",
    "guidance": "guidance", "guidance_low": "guidance_low", "shift": "shift", "solver": "solver", "grid": "sigmas",
    "boundary": "boundary", "experts": "experts", "dtype": "dtype", "text_dtype": "precision of texts",
    "preset": "preset", "readers": "weights",
}  # fmt: skip
_FIELDS = {"image", "last_image", "negative", "seed", "frames", "steps", "guidance", "guidance_low", "shift", "solver"}
_FIELDS |= {"sigmas", "dtype", "preset"}  # of these, the ones that are options
OF_COMMENTS = {key: words for key, words in _SETTINGS.items() if key != "readers"}  # a video's comment knows those
# What only last bits depend on.
_SURROUNDINGS = {"fpsgen": "fpsgen", "versions": "versions", "device": "device", "threads": "threads", "gpus": "GPUs"}
_PLACES = {"path", "measured"}  # inside of LoRAs, images and presets: what tells of files, and changes no latents


def place(output: Path) -> Path:
    """The file that keeps the state of a video."""
    return output.with_name(output.name + files.UNFINISHED)


@dataclass(frozen=True)
class Snapshot:
    """What such a file says. about: what the video is made with; done: how many steps are behind it; seconds: of each
    of them; together: whether the last one computed both guidance branches in one batch; resumed: after which steps
    earlier runs went on; levels: of the velocities that `Carried` has; tensors: by name."""

    about: Mapping[str, Any]
    done: int
    seconds: tuple[float, ...]
    together: bool
    resumed: tuple[int, ...]
    levels: tuple[float, ...]
    tensors: Mapping[str, Tensor]


def read(path: Path) -> Snapshot | None:
    """What a file keeps, None where it is not there; UsageError where it is damaged."""
    try:
        if path.is_symlink() or not path.exists():
            return None
        with files.open_regular(path) as file:
            data = file.read(_MOST_BYTES)
        body = data[:-_HASH]
        if data[-_HASH:] != hashlib.sha256(body).digest():
            raise ValueError("it is damaged")
        length = int.from_bytes(body[:8], "little")
        if length > _MOST_HEADER:
            raise ValueError("it is no state of a video")
        told = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["fpsgen"])
        if told["format"] != _FORMAT:
            raise ValueError("another version of fpsgen wrote it")
        kept = Snapshot(
            dict(told["about"]), int(told["done"]), tuple(map(float, told["seconds"])), bool(told["together"]),
            tuple(map(int, told["resumed"])), tuple(map(float, told.get("levels", ()))),
            safetensors.torch.load(body),
        )  # fmt: skip
        if not 1 <= kept.done == len(kept.seconds):
            raise ValueError("it is no state of a video")
        return kept
    except (OSError, *_WRONG) as fault:
        raise _damaged(path, fault) from None


def _damaged(path: Path, fault: Exception) -> UsageError:
    why = reason(fault) if type(fault) is ValueError or isinstance(fault, OSError) else "it is damaged"
    told = f"{printable(path)} cannot be gone on from: {printable(why)}"
    return UsageError(told, hint=f"rm {shlex.quote(str(path))}, and the video begins anew")


def differences(then: Mapping[str, Any], now: Mapping[str, Any], names: Mapping[str, str] = _SETTINGS) -> list[str]:
    """What was otherwise in a run than it is now, in words. names: those that count."""
    here: Mapping[str, Any] = json.loads(json.dumps(now))
    found = []
    for key, words in names.items():
        old, new = _bare(then.get(key)), _bare(here.get(key))
        if old != new:
            called = option(words) if words in _FIELDS else words
            found.append(
                f"{called} {_brief(old)}, not {_brief(new)}" if _brief(old) != _brief(new) else f"another {called}"
            )
    return found


def _bare(value: Any) -> Any:
    """A value without what tells of places."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    return {key: own for key, own in value.items() if key not in _PLACES} if isinstance(value, dict) else value


def _brief(value: Any) -> str:
    """A value of a setting in a sentence."""
    if isinstance(value, dict):
        value = value["name"] if "name" in value else [f"{key} {own}" for key, own in value.items()]
    if value is None or value in ([], ""):
        return "none"
    if isinstance(value, list):
        return ", ".join(_brief(each.get("file", each) if isinstance(each, dict) else each) for each in value[:3])
    return f'"{printable(value, 60)}"' if isinstance(value, str) and " " in value else printable(value, 60)


class Unfinished:
    """The state of one video on the disk. resume: whether that of an earlier run is gone on from; gpus: how many render
    it together. UsageError where the state is damaged, or of other settings."""

    def __init__(self, plan: VideoPlan, resume: bool = False, gpus: int = 1):
        self._gpus = {"gpus": gpus}
        self._plan, self.path = plan, place(plan.request.output)
        self._about: dict[str, Any] = {}  # what this run is made with, once its weights are known
        self._writes, self._notes = True, list[Notice]()
        self._writing: Future[None] | None = None
        self._kept = read(self.path) if resume else None
        if self._kept and (others := differences(self._kept.about, made_with(plan, ""))):
            told = f"{printable(self.path)} is of other settings: {'; '.join(others)}"
            hint = f"use those, choose another {option('output')}, or begin anew without {option('resume')}"
            raise UsageError(told, hint)
        if self._kept:
            self.state()

    @property
    def done(self) -> int:
        """How many steps are behind the video."""
        return self._kept.done if self._kept else 0

    @property
    def seconds(self) -> Sequence[float]:
        """Of each of them."""
        return self._kept.seconds if self._kept else ()

    def notices(self) -> Iterator[Notice]:
        """That the video goes on, and what its last bits may differ by."""
        if self._kept is None:
            return
        told = f"the video goes on after step {self.done} of {len(self._plan.steps)}"
        yield Notice(f"{told}, which {printable(self.path)} keeps")
        if others := differences(self._kept.about, made_with(self._plan, "") | self._gpus, _SURROUNDINGS):
            yield Notice(f"the last bits may differ from those of an uninterrupted run: it was {'; '.join(others)}")

    def about(self, weights: str | None = None) -> dict[str, Any]:
        """`VideoPlan.about`, and after which steps runs went on, if they did. weights: as there; None where no
        transformer is needed. UsageError where those of the steps that are done are others."""
        then = str(self._kept.about.get("weights")) if self._kept else ""
        if self._kept and weights not in (None, then):
            told = f"{printable(self.path)} is of other weights: {printable(then)}, and the model has {weights} now"
            raise UsageError(told, hint=f"use that model, or begin anew without {option('resume')}")
        self._about = made_with(self._plan, weights or then) | self._gpus
        about = self._plan.about(weights or then)
        if self._kept is None:
            return about
        one_batch = self._kept.together if self._plan.request.settings.branches > 1 else None
        return about | {"resumed": [*self._kept.resumed, self.done], "one_batch": one_batch}

    def together(self, first: int) -> bool | None:
        """What `Denoiser` is to be told, for the steps from `first` on: a batch of two guidance branches has other last
        bits than one after the other."""
        goes_on = self._kept is not None and first == self.done and first != self._plan.high_steps
        return False if goes_on and self._kept and not self._kept.together else None

    def warn(self, first: int, together: bool) -> Iterator[Notice]:
        """That the steps before were computed otherwise. together: whether those from `first` on are, in one batch."""
        alone = self._gpus["gpus"] == 1  # where others help, the note of what is around it says so
        otherwise = self._kept is not None and self._kept.together and not together
        if alone and otherwise and first == self.done != self._plan.high_steps:
            told = "both guidance branches were computed in one batch before, for which memory is too small now"
            yield Notice(f"{told}: the last bits may differ from those of an uninterrupted run")

    def keep(self, state: State, together: bool, timings: Timings) -> Iterator[Notice]:
        """Write the state after a step, while the next one is computed: some file systems let whoever renames a file
        wait for the disk. timings: of all steps that are done. Where it cannot be written, a notice says so once, and
        the video is made without."""
        if not self._writes:
            return
        steps, tensors = self._plan.steps, {"latents": state.latents}
        told = {
            "format": _FORMAT, "about": self._about, "done": state.step, "together": together,
            "seconds": [round(each, 4) for each in timings.steps],
            "resumed": [*self._kept.resumed, self.done] if self._kept else [],
        }  # fmt: skip
        if state.step < len(steps):  # what no later step uses is not kept
            tensors |= {f"left.{number}": each for number, each in enumerate(state.solver.left)}
            carried, later = state.carried, steps[state.step :]
            if any(step.compute == "reuse" for step in later):
                tensors |= {f"velocity.{number}": each for number, (_, each) in enumerate(carried.velocities)}
                told["levels"] = [level for level, _ in carried.velocities]
            if carried.difference is not None and any(step.guidance == "reuse" for step in later):
                tensors["difference"] = carried.difference
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with timings.stage("denoise"):
            self._settle()
        yield from self.notes()
        if self._writes:
            self._writing = _WRITER.submit(_write, self.path, whole, told)

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Whatever ends the work inside, the latest state is on the disk then."""
        try:
            yield
        finally:
            self._settle()

    def _settle(self) -> None:
        try:
            if self._writing is not None:
                self._writing.result()
        except OSError as fault:
            told = f"{printable(self.path)} cannot be written: {reason(fault)}. The video is made without it"
            self._notes, self._writes = [Notice(told)], False
        self._writing = None

    def notes(self) -> Iterator[Notice]:
        """What there is to say of the states that were written."""
        notes, self._notes = self._notes, []
        yield from notes

    def state(self) -> State | None:
        """The state that is gone on from, on the video's device; None where there is none."""
        if self._kept is None:
            return None
        kept, plan, own = self._kept, self._plan, self._plan.request.settings
        shape = (1, plan.model.config.out_channels, *own.latent_shape)
        try:
            if any(
                t.shape != shape or t.dtype != torch.float32 or not t.isfinite().all() for t in kept.tensors.values()
            ):
                raise ValueError("it is no state of this video")
            if kept.done > own.steps:
                raise ValueError("it has more steps than the video")
            here = {name: tensor.to(plan.target.device) for name, tensor in kept.tensors.items()}
            solver = own.new_solver(plan.noise)
            if kept.done < own.steps:
                left = sum(name.startswith("left.") for name in here)
                solver.go_on(kept.done, [here[f"left.{number}"] for number in range(left)])
            velocities = [(level, here[f"velocity.{number}"]) for number, level in enumerate(kept.levels)]
            return State(here["latents"], solver, Carried(velocities, here.get("difference")), kept.done)
        except (ValueError, KeyError, IndexError) as fault:
            raise _damaged(self.path, fault) from None

    def remove(self) -> None:
        """The video is complete."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _write(path: Path, tensors: dict[str, Tensor], told: dict[str, Any]) -> None:
    body = safetensors.torch.save(tensors, {"fpsgen": json.dumps(told)})
    with files.beside(path) as new:
        new.write_bytes(body + hashlib.sha256(body).digest())
        new.replace(path)


def made_with(plan: VideoPlan, weights: str) -> dict[str, Any]:
    """What latents of a video depend on, and more: `VideoPlan.about`, and how large the files are that texts and images
    are read by."""
    checkpoint, request = plan.model.checkpoint, plan.request
    readers = ["text_encoder", *(("image_encoder", "vae") if request.image or request.last_image else ())]
    sizes = {part: sum(file.stat().st_size for file in getattr(checkpoint, part)) for part in readers}
    return plan.about(weights) | {"readers": sizes}


def check_room(plans: Sequence[VideoPlan]) -> None:
    """UsageError where the disk has no room for the videos and what is kept of them."""
    videos: dict[Path, list[float]] = {}
    states: dict[Path, float] = {}
    for plan in plans:
        own, request = plan.request.settings, plan.request
        width, height = request.scale_to or (own.width, own.height)
        folder, per_pixel = request.output.parent, _BYTES_PER_PIXEL[request.output.suffix.lower() in _SMALL]
        videos.setdefault(folder, []).append(per_pixel * own.frames * width * height)
        latents = 4 * plan.model.config.out_channels * prod(own.latent_shape)
        states[folder] = max(states.get(folder, 0), 2 * _MOST_TENSORS * latents)
    for folder, sizes in videos.items():
        needs = int(sum(sizes) + max(sizes) + states[folder])  # one is there twice while its comment is added
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            if free < needs:
                told = f"the disk of {printable(folder.resolve())} has {readable(free)} left, and this run may need"
                hint = f"make room, or choose another place with {option('output')}"
                raise UsageError(f"{told} {readable(needs)}", hint)
