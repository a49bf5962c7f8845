"""`fpsgen generate`: a prompt becomes a video."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import choices
from fpsgen.cli import dry_run as dry_runs
from fpsgen.cli import many, options, several_gpus, signals
from fpsgen.cli import resume as resuming
from fpsgen.cli.lines import Faults, PromptLine, Several, Wanted, asked
from fpsgen.cli.made import Made, tell_sampling
from fpsgen.cli.output import Output
from fpsgen.cli.pictures import shown
from fpsgen.cli.progress import drawn
from fpsgen.cli.prompts import as_text
from fpsgen.cli.ready import Ready, make_ready
from fpsgen.errors import RenderError, UsageError
from fpsgen.formats import PLAIN, Encoding
from fpsgen.settings import AS_USUAL, Offload, Placement, Sampling
from fpsgen.solvers import Sigmas
from fpsgen.timing import Timings
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    from fpsgen.cli.again import Again

EXAMPLES = """
fpsgen generate "a cat surfing"
fpsgen generate "a cat surfing" --seed 7 -o cat.mp4
fpsgen generate "a lighthouse" --model 14b --res 720p
fpsgen generate "it jumps" --model 2.2-i2v --image a.png
fpsgen generate --from cat.mp4 --steps 30
fpsgen generate "a cat surfing" --seeds 0-7 -o cats/
fpsgen generate --prompts shots.jsonl -o shots/
echo "a dog in the city" | fpsgen generate - --json
"""

ONE = Several()
AUTO = Placement()


def generate(
    prompt: str | None = None,
    res: str | None = None,
    sampling: Sampling = AS_USUAL,
    model: str | None = None,
    lora: list[str] | None = None,
    image: Path | None = None,
    last_image: Path | None = None,
    sigmas: Sigmas | None = None,
    negative: str | None = None,
    seed: int | None = None,
    preset: str | None = None,
    from_: Path | None = None,
    output: str | None = None,
    no_clobber: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    device: str | None = None,
    dtype: choices.Dtype | None = None,
    graphs: bool = False,
    json: bool = False,
    verbose: bool = False,
    parts: Given = NOTHING,
    encoding: Encoding = PLAIN,
    several: Several = ONE,
    gpus: int | None = None,
    placement: Placement = AUTO,
) -> None:
    """Make a video from a prompt, or many videos with one load.

    Your own defaults for model, preset and output folder can be set with `fpsgen config`.
    """
    several_gpus.begin(None if dry_run else gpus, device)
    timings, out = Timings.of_process(), Output(json, verbose)
    usual = PromptLine(
        seed=seed, res=res, sigmas=sigmas, **vars(sampling), negative=None if negative is None else as_text(negative),
        image=image and options.expand(image), last_image=last_image and options.expand(last_image),
    )  # fmt: skip
    wanted = Wanted(
        model=model, lora=lora, preset=preset, device=device, dtype=dtype, graphs=graphs, parts=parts,
        encoding=encoding, gpus=gpus, no_clobber=no_clobber, resume=resume, dry_run=dry_run,
    )  # fmt: skip
    again = None
    if from_ is not None:
        from fpsgen.cli.again import Again  # which knows presets and models: a help needs neither

        again = Again(options.expand(from_), prompt, several, usual, wanted, output)
        prompt, usual, wanted = again.prompt, again.usual, again.wanted
    if several and encoding.last_frame_to:
        raise UsageError("--last-frame-to is for one video", hint="leave it out, or make one video at a time")
    lines, faults = asked(several, prompt, usual)
    wanted.encoding.check()
    choices.check_device(wanted.device)
    share = many.Share.of_process() if gpus is None else many.Share()
    if share.world > 1 and not several:
        told = f"torchrun has started {share.world} processes, and there is one video"
        hint = f"use --gpus {share.world} to make it together, --seeds to make several, or unset RANK and WORLD_SIZE"
        raise UsageError(told, hint=hint)
    out.draws = share.world == 1
    result, same = placed(lines, faults, wanted, output, share, again, timings, bool(several))
    if not result.todo:
        result.tell(out)
        return
    out.loading()
    made = many.folder_made(result.todo[0].path.parent) if several and not dry_run else contextlib.nullcontext()
    with made:
        with timings.stage("load"):  # importing torch and the libraries around it is part of the wait
            ready = make_ready(wanted, result.todo, faults, share, usual.solver, again, timings, out)
        if dry_run:
            dry_runs.tell(ready.requests, ready.model, ready.target, placement.offload, gpus, result.there, out)
            return
        given = resuming.GivenByUser(usual.seed is not None, output is not None)
        if (going := going_on(ready, result, given, same, resume, out)) is None:
            return
        render(going, wanted, placement.offload, result, again, timings, out)
    result.tell(out)


def going_on(
    ready: Ready,
    result: Made | many.Tally,
    given: resuming.GivenByUser,
    same: dict[str, object],
    resume: bool,
    out: Output,
) -> Ready | None:
    """What is made of the model; of a single video the one that is unfinished, where the user wants that. None where it
    is complete, which is told then."""
    out.detail(f"model {ready.model.name} from {ready.model.folder}; {ready.target.device}, {ready.target.dtype_name}")
    for settings in dict.fromkeys(request.settings for request in ready.requests):
        tell_sampling(settings, out)
    if not isinstance(result, Made):
        return ready
    if not resume:
        resuming.tell(ready.requests[0], ready.model, ready.target, given, out)
        return ready
    if (request := result.take_up(ready.requests[0], ready.model, ready.target, given, same, out)) is not None:
        return replace(ready, requests=[request])
    if (picture := ready.encoding.last_frame_to) and not picture.exists():
        out.note(f"{picture} is not written: a last frame is kept while its video is made")
    return None


def placed(
    lines: Sequence[PromptLine],
    faults: Faults,
    wanted: Wanted,
    output: str | None,
    share: many.Share,
    again: Again | None,
    timings: Timings,
    several: bool,
) -> tuple[Made | many.Tally, dict[str, object]]:
    """What will be told of the videos, which knows where each goes and what is left to do; and what, besides its line,
    each was asked for. Nothing slow is imported for it: where all is there, the command is over."""
    same = many.spelled(wanted) | (again.asked if again else {})
    if several:
        return many.Tally(many.places(lines, many.folder(output), same, faults, wanted.resume), share), same
    suffix = again.suffix if again else ".mp4"
    return Made(many.one_place(lines[0], output, wanted.no_clobber, same, suffix), timings), same


def render(
    ready: Ready,
    wanted: Wanted,
    offload: Offload,
    result: Made | many.Tally,
    again: Again | None,
    timings: Timings,
    out: Output,
) -> None:
    """Make the videos, and tell `result` of them. Stopped where a signal came."""
    with timings.stage("load"):
        from fpsgen import machine, pipeline
        from fpsgen.several_gpus import of_first
        from fpsgen.texts import Texts

        machine.settle()
    model, target = ready.model, ready.target
    try:
        with several_gpus.together(ready.requests, model, target, wanted.gpus) as group:
            # Closed here, not whenever it is collected: a failure while drawing must not leave an encoder running.
            events = pipeline.generate(
                of_first(ready.requests, group), model, target, [timings],
                known=functools.partial(Texts, model, target), decode_in_bf16=True,
                encoding=ready.encoding, resume=wanted.resume, group=group, offload=offload,
            )  # fmt: skip
            with contextlib.closing(events), drawn(out, run="video") as watch, shown(out) as show:
                for event in resuming.steps_finished(events, out):
                    watch(event)
                    show(event)
                    result.watch(event, out)
                    if again:
                        again.watch(event, out)
        signals.check()
    except KeyboardInterrupt:
        raise result.stopped() from None
    except RenderError as fault:
        result.fail(fault, out)
