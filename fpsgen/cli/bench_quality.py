"""`fpsgen bench quality`: a preset over many prompts and seeds, beside bf16."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import assets, files
from fpsgen.choices import Dtype, check_of_text, find_loras, find_target, settings_of, with_loras
from fpsgen.cli import options
from fpsgen.cli.chosen import choose_model, find_model, video_name
from fpsgen.cli.output import Output
from fpsgen.cli.progress import drawn
from fpsgen.cli.prompts import read_prompts
from fpsgen.cli.records import deliver, keep_record, result_places
from fpsgen.errors import Stopped, UsageError
from fpsgen.printable import printable
from fpsgen.report.quality import tables
from fpsgen.report.words import asked, counted
from fpsgen.seeds import check_seed
from fpsgen.settings import AS_USUAL, Sampling
from fpsgen.wan import sizes
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    from fpsgen.bench.quality import QualityJob

EXAMPLES = """
fpsgen bench quality
fpsgen bench quality --compare bf16,fast --seeds 4
fpsgen bench quality --prompts mine.txt --videos clips
"""

FIRST_SEED = 1000  # presets that ship were calibrated on seeds from 0 on


def quality(
    prompts: Path | None = None,
    seeds: int = 1,
    preset: str = "quality",
    compare: list[str] | None = None,
    model: str | None = None,
    lora: list[str] | None = None,
    res: str | None = None,
    sampling: Sampling = AS_USUAL,
    seed: int = FIRST_SEED,
    output: Path | None = None,
    report: Path | None = None,
    no_report: bool = False,
    videos: Path | None = None,
    vbench: bool = False,
    vbench_bin: Path | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    fresh: bool = False,
    json: bool = False,
    verbose: bool = False,
    parts: Given = NOTHING,
) -> None:
    """Measure the fidelity of a preset over many prompts and seeds.

    The preset and the contenders that it is compared with make each clip from the same noise. The result is the mean of
    each measure, with its 95 % interval. For the pocket model a judge also says whether the clips show what their
    prompts say. Clips are kept: a run that was stopped continues where it was, and another --compare renders only new
    contenders.
    """
    out = Output(json, verbose)
    size = sizes.parse_resolution(res) if res is not None else None
    sampling.check()
    check_seed(seed)
    names = options.several("--compare", compare) or ["bf16"]
    own = read_prompts(prompts) if prompts is not None else None
    if own is not None and not own:
        raise UsageError(f"{prompts} has no prompts", hint="write one prompt on each line")
    options.check_report(report, no_report)
    program = check_vbench(vbench, vbench_bin, videos)
    from fpsgen.bench import names as known

    names = known.check(preset, names, clips=True)  # it imports no torch: so far, whatever cannot be is told at once
    places = result_places(output or "bench-quality.json", report, no_report, out)
    out.loading()
    loras = find_loras(lora)
    named = find_model(model, parts)
    target = find_target(device, dtype)
    chosen = with_loras(named or choose_model(size, target.device, out, parts=parts), loras, out, sampling.solver)
    check_of_text(chosen, "bench quality")
    settings = settings_of(chosen, size, **vars(sampling))
    from fpsgen.bench import lineup
    from fpsgen.bench.quality import QualityJob, run
    from fpsgen.request import Request

    own = own or assets.prompts("quality", chosen.family)
    line_up = lineup.resolve(preset, names, Request(own[0], settings, seed, Path()), chosen, target)
    job = QualityJob(line_up, own, seeds, seed, ["fpsgen", *sys.argv[1:]])
    for one in job.line_up.contenders:
        out.detail(f"{one.name}: {one.about().told}")
    clips = video_places(job, options.expand(videos)) if videos is not None else None
    if there := sum(path.exists() for paths in (clips or {}).values() for path in paths):
        exist, them = ("video exists", "it") if there == 1 else ("videos exist", "them")
        out.note(f"{there} {exist} in {printable(videos)} already: the new ones will replace {them}")
    tell_size(out, job)
    hint = f"run the same command {'without --fresh' if fresh else 'again'}: it continues from there"
    with drawn(out, True, Stopped("stopped; every finished clip and what was measured of it are kept", hint)) as watch:
        record, pairs = run(job, watch, clips, fresh, program)
    if not json:
        for table in tables(record):
            out.show(table)
    kept = keep_record(record, pairs, *places)
    if vbench and program is None and clips is not None:
        tell_vbench(out, clips)
    deliver(out, kept, record.as_json())


def check_vbench(wanted: bool, given: Path | None, videos: Path | None) -> Path | None:
    """VBench's program, None where it is not asked for or not here; UsageError where the options do not go together."""
    if not wanted:
        if given is not None:
            raise UsageError("--vbench-bin works only together with --vbench", hint="add --vbench")
        return None
    if videos is None:
        raise UsageError("--vbench judges videos, and none are kept", hint="name a folder for them: --videos clips")
    found = shutil.which(given.expanduser() if given else "vbench")
    if given and not found:
        hint = "it is bin/vbench of VBench's environment"
        raise UsageError(f"--vbench-bin {given}: there is no such program", hint)
    return Path(found) if found else None


def video_places(job: QualityJob, folder: Path) -> dict[str, list[Path]]:
    """For each contender the files of its clips; UsageError where they cannot be written, or others lie among them,
    which VBench would judge, too."""
    from fpsgen.video import check_encoder

    places: dict[str, list[Path]] = {}
    for number, one in enumerate(job.line_up.contenders):
        name = files.safe_name(one.name)
        if any(paths[0].parent.name == name for paths in places.values()):
            name = f"{name}-{number + 1}"
        places[one.name] = [folder / name / video_name(take.prompt, take.seed) for take in job.takes]
    with files.refused(folder, "name a folder", "videos"):
        for paths in places.values():
            own = paths[0].parent
            own.mkdir(parents=True, exist_ok=True)
            files.check_writable(paths[0])
            check_encoder(paths[0])
            if others := sorted(set(own.glob("*.mp4")) - set(paths)):
                told = f"{printable(own, 100)} holds a video of another run: {printable(others[0].name, 100)}"
                raise UsageError(told, hint="choose another --videos")
    return places


def tell_size(out: Output, job: QualityJob) -> None:
    """How much will be rendered; of the pocket model that is minutes."""
    count = len(job.takes) * len(job.line_up.contenders)
    told = f"{asked(len(job.prompts), job.seeds)}, {len(job.line_up.contenders)} contenders: "
    steps = sorted({one.settings.steps for one in job.line_up.contenders})
    told += f"{count} clips of {counted(steps[-1], 'step')}" + (f", some of {steps[0]}" if steps[1:] else "")
    if job.line_up.plan.model.pocket is None:
        out.note(told)
    else:
        out.milestone(told)


def tell_vbench(out: Output, places: dict[str, list[Path]]) -> None:
    """How to come by VBench, and how to run it on what was made."""
    from fpsgen.bench import vbench

    folders = [paths[0].parent for paths in places.values()]
    out.note(
        "VBench is not on PATH, so it did not run. These commands set it up and run it, on a machine with a CUDA GPU:"
    )
    for line in vbench.setup(folders[0].parent, [folder.name for folder in folders]):
        out.line(line)
