"""`fpsgen bench attention`: attention alone, at Wan2.1's shapes."""

from __future__ import annotations

import sys
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fpsgen.attention.plan import Rest
from fpsgen.cli import options
from fpsgen.cli.output import Output
from fpsgen.cli.progress import drawn
from fpsgen.cli.records import deliver, keep_record, result_places
from fpsgen.errors import Stopped, UsageError
from fpsgen.wan import sizes

if TYPE_CHECKING:
    import torch

    from fpsgen.bench.attention.record import AttentionRecord

EXAMPLES = """
fpsgen bench attention --smoke
fpsgen bench attention --model 14b --density 1,1/6
fpsgen bench attention --top 1/6 --rest summary
fpsgen bench attention --seconds 1000 -o mine.json
"""

MODELS = ("1.3b", "14b")  # others have the same attention at the same size
_REPEATS, _REPEATS_SMOKE = 20, 5
_LEAST_SECONDS, _MOST_SECONDS = 10, 1_000_000


def attention(
    model: list[str] | None = None,
    res: list[str] | None = None,
    density: list[str] | None = None,
    top: list[str] | None = None,
    rest: Rest | None = None,
    variant: list[str] | None = None,
    repeats: int | None = None,
    seconds: float = 500.0,
    smoke: bool = False,
    output: Path | None = None,
    report: Path | None = None,
    no_report: bool = False,
    json: bool = False,
    verbose: bool = False,
) -> None:
    """Measure attention alone, on a CUDA GPU, at Wan2.1's shapes.

    The contenders are torch's backends, other packages and our kernels. Sparse attention sees windows and, with --top,
    tiles chosen by their content. Every result is checked on sampled rows before it is timed. No checkpoint is needed.
    For several models, sizes, shares or variants, repeat the option, or separate values with commas. The exit code is 1
    if a contender failed, gave a wrong result, or could not be timed before the end.
    """
    from fpsgen.kernels.sm90_attention import VARIANTS, variant_named

    out = Output(json, verbose)
    if smoke and (model or res):
        raise UsageError("--smoke has a shape of its own", hint="leave --model and --res out")
    models = options.among("--model", [name.lower() for name in options.several("--model", model)], MODELS, "model")
    resolutions = options.several("--res", res) or list(sizes.NAMED)
    for one in resolutions:
        sizes.check_model_size(*sizes.parse_resolution(one))
    densities, tops = options.several("--density", density), options.several("--top", top)
    for option, shares, what in (("--density", densities, "token pairs"), ("--top", tops, "key tiles")):
        for one in shares:
            check_share(option, one, what)
    if rest is not None and not tops:
        told = "--rest says what becomes of the tiles that --top does not choose, and there is no --top"
        raise UsageError(told, hint="add --top 1/6, or leave --rest out")
    variants = options.among(
        "--variant", list(map(variant_named, options.several("--variant", variant))), VARIANTS, "variant"
    )
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:  # nan is neither
        raise UsageError(f"--seconds {seconds:g}: must be {_LEAST_SECONDS} to {_MOST_SECONDS}", hint="try 500")
    options.check_report(report, no_report)
    out.loading()
    device = chosen_device(smoke)
    from fpsgen import machine
    from fpsgen.bench.attention import run
    from fpsgen.bench.attention.shapes import DENSITIES, SMOKE, shape

    job = run.AttentionJob(
        (SMOKE,) if smoke else tuple(shape(name, size) for name in models for size in resolutions),
        tuple(densities or tops) or DENSITIES,
        tuple(tops),
        rest or "drop",
        tuple(variants),
        repeats or (_REPEATS_SMOKE if smoke else _REPEATS),
        seconds,
    )
    if not no_report and find_spec("matplotlib") is None:
        out.note("no report is written: matplotlib, which draws its pictures, is not installed")
        no_report = True
    default = f"bench-attention-{'smoke' if smoke else machine.slug(machine.device_name(device))}.json"
    place = default if output is None else named(output)
    path, report_at = result_places(place, report, no_report, out)
    with drawn(out, True, Stopped("stopped; shapes that were finished are kept", f"they are in {path}")) as watch:
        record = run.measure(job, device, path, ["fpsgen", *sys.argv[1:]], watch)
    tell(out, record)
    deliver(out, keep_record(record, [], path, report_at), record.as_json())
    if any(case.failed for case in record.cases):
        out.note("a contender failed, gave a wrong result, or could not be timed")
        raise typer.Exit(1)


def check_share(option: str, text: str, what: str) -> None:
    """A share of something, as it is written: 1, 1/4 or 0.25."""
    try:
        kept, _, of = text.partition("/")
        if not 1e-6 <= float(kept) / float(of or 1) <= 1:  # before Fraction, which takes 1e-99999999 at its word
            raise ValueError
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"{option} {text[:40]} is not a share of {what}",
            hint="give a number above 0, at most 1, such as 1/4 or 0.25",
        ) from None


def chosen_device(smoke: bool) -> torch.device:
    """The CUDA GPU that torch uses. Where there is none the CPU, if only a tiny shape is measured; else UsageError."""
    import torch

    if smoke and not torch.cuda.is_available():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees none here"
        raise UsageError(
            f"fpsgen bench attention needs a CUDA GPU, and {why}",
            hint="fpsgen doctor says what is missing; --smoke runs on a CPU, too, and so does fpsgen bench",
        )
    return torch.device("cuda", torch.cuda.current_device())


def named(output: Path) -> Path:
    """The record that was asked for, .json where that has no suffix."""
    output = options.expand(output)
    return output if output.suffix or output.is_dir() else output.with_name(f"{output.name}.json")


def tell(out: Output, record: AttentionRecord) -> None:
    from fpsgen.report.attention import heading, remarks, tables

    if not out.json:
        for case in record.cases:
            out.line(f"\n{heading(case)}")
            for remark in remarks(case):
                out.line(f"- {remark}")
            for table in tables(case):
                out.line("")
                out.show(table)
    if record.cut:
        out.note(f"the bench ended early: {record.cut}")
