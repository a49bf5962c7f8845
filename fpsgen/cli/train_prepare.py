"""`fpsgen train prepare`: data to train on, by the model itself or from videos."""

from __future__ import annotations

from pathlib import Path

from fpsgen import choices
from fpsgen.cli import chosen, options
from fpsgen.cli.output import Output
from fpsgen.cli.progress import drawn
from fpsgen.cli.prompts import read_prompts
from fpsgen.errors import Stopped, UsageError
from fpsgen.printable import printable
from fpsgen.report.words import counted
from fpsgen.seeds import check_seed
from fpsgen.settings import check_settings
from fpsgen.solvers import SolverName
from fpsgen.wan import sizes
from fpsgen.weights.known import NOTHING, Given

EXAMPLES = """
fpsgen train prepare 14b --from-model --prompts a.txt -o d
fpsgen train prepare 1.3b --videos clips --res 480p -o d
"""


def prepare(
    model: str,
    output: Path,
    from_model: bool = False,
    prompts: Path | None = None,
    count: int | None = None,
    teacher: int | None = None,
    lora: list[str] | None = None,
    videos: Path | None = None,
    res: str | None = None,
    frames: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    solver: SolverName | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: choices.Dtype | None = None,
    json: bool = False,
    verbose: bool = False,
    parts: Given = NOTHING,
) -> None:
    """Make the data that `fpsgen train` learns from.

    With --from-model the dense model makes them itself, from prompts alone. With --videos they are made of videos, of
    which each has its caption in a file beside it, such as cat.txt for cat.mp4, or in the folder's captions.jsonl, on a
    line such as {"file": "cat.mp4", "caption": "a cat surfing"}. Videos are resized and cropped to the size, and the
    first frames of each are taken. A run that was stopped continues where it was.
    """
    out = Output(json, verbose)
    if from_model == (videos is not None):
        told = "--from-model and --videos contradict each other" if from_model else "there is nothing to make data from"
        raise UsageError(told, hint="give --from-model with --prompts FILE, or --videos DIR")
    if from_model and prompts is None:
        raise UsageError("--from-model needs prompts", hint="add --prompts FILE, with one prompt on each line")
    own: dict[str, object] = {
        "prompts": prompts,
        "count": count,
        "teacher": teacher,
        "lora": lora,
        "steps": steps,
        "guidance": guidance,
    }
    own |= {"shift": shift, "solver": solver}
    if teacher and lora:
        told = "--teacher keeps velocities for a model without LoRAs, and --lora makes clips with them"
        raise UsageError(told, hint="leave one of them out")
    if not from_model and (given := [name for name, value in (own | {"seed": seed}).items() if value is not None]):
        told = f"--{given[0]} says how the model makes clips, and --videos brings its own"
        raise UsageError(told, hint=f"leave --{given[0]} out, or use --from-model")
    size = sizes.parse_resolution(res) if res is not None else None
    check_settings(frames, steps, guidance, shift, solver)
    check_seed(seed or 0)
    lines = read_prompts(prompts) if prompts is not None else ()
    if prompts is not None and not lines:
        raise UsageError(f"{printable(prompts)} has no prompts", hint="write one prompt on each line")
    from fpsgen.train import clips

    found = clips.find(options.expand(videos)) if videos is not None else []
    choices.check_device(device)
    out.loading()
    loras = choices.find_loras(lora)
    named = chosen.find_model(model, parts)
    assert named is not None
    choices.check_trains(named)
    if from_model:
        named = choices.with_loras(named, loras, out, solver)
    settings = choices.settings_of(
        named, size, frames=frames, steps=steps, guidance=guidance, shift=shift, solver=solver
    )
    settings.check()
    target = choices.find_target(device, dtype)
    from fpsgen.train.prepare import Preparation

    folder = options.expand(output)
    hint = "run the same command again: it continues from there"
    with drawn(out, True, Stopped("stopped; complete shards are kept", hint)) as watch:
        preparation = Preparation(named, settings, target, folder, watch)
        if from_model:
            index = preparation.from_model(lines, count or len(lines), seed or 0, teacher or 0)
        else:
            index = preparation.from_videos(found)
    there = {origin.source for origin in index.origins}
    skipped = [video.source for video in found if video.source not in there]
    told = f"{counted(len(index.origins), 'sample')} in {printable(folder)}"
    told += f"; {len(skipped)} of {counted(len(found), 'video')} skipped" if skipped else ""
    out.result(told, {"folder": str(folder), "samples": len(index.origins), "skipped": skipped})
