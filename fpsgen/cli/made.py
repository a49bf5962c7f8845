"""What a user is told of one video that `generate` has made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen.cli import resume
from fpsgen.cli.many import Place, asked_for
from fpsgen.cli.output import Output
from fpsgen.cli.prompts import as_text
from fpsgen.errors import RenderError, Stopped
from fpsgen.events import Event, Written
from fpsgen.printable import printable, readable
from fpsgen.report.words import counted
from fpsgen.tables import Cell, Column, Table
from fpsgen.timing import Timings

if TYPE_CHECKING:
    import torch

    from fpsgen.request import Request, VideoPlan
    from fpsgen.settings import Settings
    from fpsgen.target import Target
    from fpsgen.weights.models import Model


class Made:
    """The one video of a command, once it is made."""

    def __init__(self, place: Place, timings: Timings):
        self.todo, self.there, self._path, self._timings = [place], 0, place.path, timings
        self._before = state(place.path)
        self._seed, self._prompt = place.line.seed, place.line.prompt
        self._written: Written | None = None

    def take_up(
        self,
        request: Request,
        model: Model,
        target: Target,
        given: resume.GivenByUser,
        options: Mapping[str, object],
        out: Output,
    ) -> Request | None:
        """The unfinished video that goes on in place of `request`; None where it is complete, which is told then.
        options: as `many.asked_for` has them."""
        request, complete = resume.find(request, model, target, given, out)
        self._path, self._before, self._seed = request.output, state(request.output), request.seed
        if complete is not None:
            out.note(f"{self._path} is complete already")
            out.result(str(self._path), {"output": as_text(str(self._path)), **complete}, copied=True)
            return None
        return replace(request, asked=asked_for(replace(self.todo[0].line, seed=request.seed), options))

    def watch(self, event: Event, out: Output) -> None:
        if isinstance(event, Written):
            self._written = event

    def stopped(self) -> Stopped:
        """What a signal ends the command with."""
        from fpsgen.unfinished import place

        if state(self._path) == self._before and place(self._path).is_file():
            told = "stopped; the steps that were finished are kept, and this command goes on after them:"
            return Stopped(told, hint=resume.command(self._seed, self._prompt))
        if state(self._path) == self._before:
            return Stopped("stopped; no video was written")
        return Stopped(f"stopped; the video was complete by then, in {self._path}")

    def fail(self, fault: RenderError, out: Output) -> None:
        """Raises the fault: there is no other video that could be told of."""
        from fpsgen.unfinished import place

        if (path := place(self._path)).is_file():
            out.note(f"the steps that were finished are kept in {printable(path)}: --resume goes on after them")
        raise fault

    def tell(self, out: Output) -> None:
        """The table of seconds, and where the video is."""
        from fpsgen import pace
        from fpsgen.presets import label

        assert self._written is not None
        plan, about, path = self._written.plan, self._written.about, self._written.path
        if not about.keys() & {"resumed", "gpus"}:
            pace.keep(plan, about["timings"])
        preset = label(plan.preset.name, plan.target.dtype_name), preset_remark(plan, about)
        earlier = about.get("resumed", [0])[-1]
        out.table(timing_table(self._timings, plan.target.device, preset, earlier))
        out.detail("seconds per step: " + " ".join(f"{seconds:.2f}" for seconds in self._timings.steps))
        if path != self._path:
            out.note(f"{self._path} was taken by another file when the video was complete; the video is now in {path}")
        out.result(str(path), {"output": as_text(str(path)), **about}, copied=True)


def tell_sampling(own: Settings, out: Output) -> None:
    """Solver, steps and guidance, and which expert computes how many of them."""
    levels = f"{own.solver} on the {own.sigmas} sigmas, shift {own.shift:g}"
    out.detail(f"{own.steps} steps of {levels}, guidance {own.guidance:g}")
    if own.boundary is not None:
        low = f"the low-noise expert {own.steps - own.high_steps}, with guidance {own.guidance_at(own.steps):g}"
        out.detail(f"the high-noise expert computes {own.high_steps} of them, {low}; boundary {own.boundary:g}")


def state(path: Path) -> tuple[int, int] | None:
    """What a file's name stands for, which a new file changes."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def preset_remark(plan: VideoPlan, about: dict) -> str:
    """The preset's mean density, and what it was measured to cost, where that holds for this video."""
    preset, remarks = plan.preset, [f"density {plan.density:.2f} of token pairs"]
    if preset.measured is None:
        remarks += [] if preset.is_exact or preset.name == plan.model.own_preset else ["not calibrated"]
    elif others := preset.differences(about["weights"], plan.request.settings):
        remarks.append("measured on other weights" if "other weights" in others else "measured at other settings")
    else:
        remarks.append(f"measured PSNR {preset.measured.psnr_told} dB")
    return ", ".join(remarks)


def timing_table(timings: Timings, device: torch.device, preset: tuple[str, str], earlier: int) -> Table:
    """earlier: how many of the steps an earlier run made, whose seconds are in no other number."""
    table = Table(heads=False, columns=[Column(""), Column("", right=True), Column("", prose=True)])
    table.row("preset", preset[0], Cell(preset[1], "dim"))
    count = len(timings.steps)
    remarks = {"load": "imports included"}
    if count:
        each = " each" if count > 1 else ""
        remarks["denoise"] = f"{counted(count, 'step')}, {sum(timings.steps) / count:.2f} s{each}"
        remarks["denoise"] += f"; {earlier} of them in an earlier run" if earlier else ""
    for name, seconds in timings.seconds.items():
        if round(seconds, 2) or name != "compile":  # most runs have nothing to compile
            table.row(name, f"{seconds:.2f} s", Cell(remarks.get(name, ""), "dim"))
    table.row(Cell("total", "bold"), Cell(f"{timings.total:.2f} s", "bold"), "")
    if timings.peak_memory is not None:
        remark = (
            f"peak, allocated on {device}" if device.type == "cuda" else "peak of the process, mapped weights included"
        )
        table.row("memory", readable(timings.peak_memory), Cell(remark, "dim"))
    return table
