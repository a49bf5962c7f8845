"""A video that is made again: what the user did not give is as it was, and what differs from then is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import choices, replay
from fpsgen.cli.lines import PromptLine, Several, Wanted
from fpsgen.cli.many import Place
from fpsgen.cli.options import expand
from fpsgen.cli.output import Output
from fpsgen.errors import UsageError
from fpsgen.events import Event, Written
from fpsgen.formats import FORMATS
from fpsgen.printable import printable
from fpsgen.solvers import FEW_STEPS
from fpsgen.weights.known import Given

if TYPE_CHECKING:
    from fpsgen.presets import Preset
    from fpsgen.target import Target
    from fpsgen.weights.models import Model


class Again:
    """What `generate` makes a video with, where the user named an earlier one: fields as the options are called.

    UsageError where the video does not say how it was made, or what it was made with is gone.
    """

    preset: Preset | None = None  # the one of then, where the user gave none

    def __init__(
        self,
        video: Path,
        prompt: str | None,
        several: Several,
        usual: PromptLine,
        wanted: Wanted,
        output: str | None,
    ):
        earlier = self._earlier = replay.read(video)
        model, lora, device, dtype, encoding = wanted.model, wanted.lora, wanted.device, wanted.dtype, wanted.encoding
        options = {"model": model, "lora": lora, "device": device, "dtype": dtype, **asdict(usual)}
        self._given = {name for name, value in options.items() if value is not None}
        self.prompt = earlier.prompt if prompt is None and several.prompts is None else prompt
        self.usual = usual.over(self._line(usual))
        if several.seeds is not None and usual.seed is None:
            self.usual = replace(self.usual, seed=None)
        own = asdict(earlier.parts if model is None else Given())
        self.preset = earlier.preset if wanted.preset is None else None
        self.dtypes = earlier.dtypes if dtype is None else None
        alike = output is None or Path(output).suffix.lower() == video.suffix.lower()
        told = {"fps": earlier.settings.fps, "crf": earlier.crf if alike else None}
        self.wanted = replace(
            wanted,
            model=earlier.model if model is None else model,
            lora=earlier.loras if lora is None else lora,
            parts=Given(**own | {name: path for name, path in asdict(wanted.parts).items() if path}),
            device=self._device() if device is None else device,
            encoding=replace(encoding, **told | {k: v for k, v in asdict(encoding).items() if v is not None}),
        )
        self._weights_told = False

    def _line(self, usual: PromptLine) -> PromptLine:
        """What then was asked for, but for what the user's choices replace."""
        own, solver = self._earlier.settings, usual.solver
        width, height = self._earlier.scale_to or (own.width, own.height)
        line = PromptLine(
            seed=self._earlier.seed, res=f"{width}x{height}", frames=own.frames, negative=own.negative,
            image=usual.image or self._earlier.image("image"),
            last_image=usual.last_image or self._earlier.image("last_image"),
        )  # fmt: skip
        if solver not in (None, own.solver) and (solver in FEW_STEPS or own.solver in FEW_STEPS):
            return line  # steps, guidance and shift belong to the solver
        low = None if "model" in self._given or usual.guidance is not None else own.guidance_low
        return replace(
            line, steps=own.steps, guidance=own.guidance, guidance_low=low, shift=own.shift, solver=own.solver,
            sigmas=own.sigmas,
        )  # fmt: skip

    def _device(self) -> str | None:
        """The device of then, where it can be had; of torchrun's processes each has one of its own."""
        name = self._earlier.device
        if name == "cpu" or (name and "LOCAL_RANK" in os.environ):
            return "cpu" if name == "cpu" else None
        try:
            choices.find_device(name)
            return name
        except UsageError:
            return None

    @property
    def asked(self) -> dict[str, object]:
        """What the video's preset adds to what is asked for."""
        return {"preset": self._earlier.made["preset"]} if self.preset else {}

    @property
    def suffix(self) -> str:
        """Of the file's name; none of a folder of frames."""
        video = self._earlier.video
        return "" if video.is_dir() else video.suffix if video.suffix.lower() in FORMATS else ".mp4"

    def target(self, target: Target) -> Target:
        """The target in the precisions of then, unless the user gave one."""
        if self.dtypes is None:
            return target
        import torch

        dtype, text_dtype = (getattr(torch, name) for name in self.dtypes)
        return replace(target, dtype=dtype, text_dtype=text_dtype)

    def check_places(self, todo: Sequence[Place]) -> None:
        """UsageError where the new video, or its last frame, would replace the earlier one or a frame of it."""
        video, told = self._earlier.video, f"{printable(self._earlier.video)} is the video that is made again"
        if any(place.path.exists() and place.path.samefile(video) for place in todo):
            raise UsageError(
                f"{told}: the new one would replace it", "choose another -o, or leave it out for a free name"
            )
        picture = self.wanted.encoding.last_frame_to and expand(self.wanted.encoding.last_frame_to)
        if picture and picture.exists() and any(place.samefile(video) for place in (picture, picture.parent)):
            raise UsageError(f"{told}: --last-frame-to would replace a frame of it", "choose another name for that")

    def tell(self, model: Model, target: Target, out: Output) -> None:
        """What differs from then, but for the weights, which are not loaded yet."""
        from fpsgen.images import described
        from fpsgen.request import circumstances

        now = circumstances(model, target)
        now |= {field: described(getattr(self.usual, field), field) for field in ("image", "last_image")}
        self._tell(now, out)

    def watch(self, event: Event, out: Output) -> None:
        """Tell of other weights, and of what else is known when a video is there, once."""
        if isinstance(event, Written) and not self._weights_told:
            self._weights_told = True
            found = {key: event.about[key] for key in ("weights", "gpus", "one_batch") if key in event.about}
            self._tell({"gpus": 1} | found, out, {"lora"})

    def _tell(self, now: dict, out: Output, more: frozenset[str] | set[str] = frozenset()) -> None:
        changed = self._given | ({"model"} if more & self._given else set())
        if differs := replay.differences(self._earlier.made, now, changed):
            out.note(f"unlike {printable(self._earlier.video.name)}: {', '.join(differs)}")
