"""How fast attention is on this card, at Wan2.1's true shapes: torch's, FlexAttention's and our kernel's.

    python -m benchmarks.attention [--model 1.3b 14b] [--res 480p 720p] [--density 1 1/2 1/4 1/6 1/10] [--variant A C E]

Every result is checked on sampled rows before it is timed, and none that is wrong gets a time. Writes .json and .md,
anew after each shape. Exit code 2 without a CUDA GPU, 1 where something failed, was wrong or was cut short by time.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import card
from benchmarks.attention import report
from benchmarks.attention.contenders import MOST_WORDS, Inputs, contenders, tried
from benchmarks.attention.shapes import DENSITIES, MODELS, SMOKE, Deadline, Shape, chosen_windows, rounds, shape
from benchmarks.record import RESULTS, provenance, write
from fpsgen.attention.emulator import VARIANTS
from fpsgen.wan.sizes import NAMED

LEAST_ROUNDS = 3
RESERVE = 5  # seconds of the budget, for the last tables
SEED = 0


def fraction(text: str) -> str:
    """A density, as it is written: 1, 1/4 or 0.25."""
    try:
        kept, _, of = text.partition("/")
        if not 1e-6 <= float(kept) / float(of or 1) <= 1:  # before Fraction, which takes 1e-99999999 at its word
            raise ValueError
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text} is no density: from a millionth to 1, such as 1/4") from None
    return text


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--res", nargs="+", choices=NAMED, default=list(NAMED))
    parser.add_argument("--density", nargs="+", type=fraction, default=list(DENSITIES))
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, help="samples of each, by default 20, or 5 with --smoke")
    parser.add_argument("--seconds", type=float, default=500, help="end after so long, whatever is missing")
    parser.add_argument("--smoke", action="store_true", help="one tiny shape: does everything run here?")
    parser.add_argument("--out", type=Path, help="where to write, without suffix; by default for this card")
    args = parser.parse_args(argv)
    if args.repeats is None:
        args.repeats = 5 if args.smoke else 20
    if args.repeats < 1 or not 0 < args.seconds < 1e6:
        parser.error("at least 1 repeat, and some seconds, up to a million")
    if args.out and not args.out.name:
        parser.error("--out must end in a name")
    args.variant = list(dict.fromkeys(args.variant))
    return args


def measure(
    case: dict, what: Shape, args: argparse.Namespace, device: torch.device, total: Deadline, own: Deadline
) -> None:
    """Fill one case of the record: every contender checked, then timed in rounds. It says at each moment, under
    "doing", what runs: if that never ends, the record that is left behind names it."""
    case["doing"] = "making the inputs"
    case["before"] = card.state(device)
    running = []
    windows = chosen_windows(what.tiles, args.density)
    for contender in contenders(Inputs(what, device, SEED), windows, args.variant):
        line = contender.line
        case["lines"].append(line)
        case["doing"] = f"checking {line['name']} {line.get('wanted', '')}".strip()
        if tried(contender):
            line["samples_ms"] = []
            running.append(contender)
        say(f"  {case['doing']}: {line.get('why_not') or line.get('fault') or errors(line)}")
    case["doing"] = "timing"
    watch, order = card.Stopwatch(device), random.Random(SEED)

    def one_round() -> None:
        order.shuffle(running)
        for contender, milliseconds in zip(running, watch.time([one.call for one in running]), strict=True):
            contender.line["samples_ms"].append(round(milliseconds, 5))

    watch.time([one.call for one in running])  # clocks and temperature as they will be
    case["rounds"], case["cut"] = rounds(one_round, args.repeats, LEAST_ROUNDS, total, own)
    case["after"] = card.state(device)


def errors(line: dict) -> str:
    """What a check found, in words."""
    found = {**line.get("error_to_emulator", {}), "exact": line.get("error_to_exact")}
    return ", ".join(f"error to {name} {value:.2g}" for name, value in found.items() if value is not None) or "runs"


def say(text: str) -> None:
    """To whoever waits; the tables alone go to stdout."""
    print(text, file=sys.stderr, flush=True)


def save(base: Path, record: dict) -> None:
    write(base.with_name(base.name + ".json"), record)
    text = report.document(record)
    base.with_name(base.name + ".md").write_text(text, encoding="utf-8")


def end_at(hard: Deadline, base: Path, record: dict) -> threading.Timer:
    """Leave, with the record as it stands, when the time is up: a kernel that hangs cannot be waited for."""

    def leave() -> None:
        record["cut"] = "the budget of seconds was spent"
        try:
            write(base.with_name(base.name + ".json"), record)
        finally:
            doing = [case["doing"] for case in record["cases"] if "doing" in case]
            say(f"stopped after {record['seconds']:g} s while {' '.join(doing) or 'starting'}")
            os._exit(1)

    timer = threading.Timer(hard.left, leave)
    timer.daemon = True
    timer.start()
    return timer


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(argv)
    if not torch.cuda.is_available():
        say("benchmarks.attention needs a CUDA GPU, and torch sees none here.")
        return 2
    hard, total = Deadline(args.seconds), Deadline(args.seconds - RESERVE)
    device = torch.device("cuda", torch.cuda.current_device())
    command = ["python", "-m", "benchmarks.attention", *(sys.argv[1:] if argv is None else argv)]
    record = {**provenance(command), "card": card.describe(device), "seed": SEED}
    record |= {"repeats": args.repeats, "seconds": args.seconds, "cases": []}
    base = args.out or RESULTS / f"attention-{card.slug(record['card']['gpu'])}"
    if args.smoke and not args.out:
        base = Path("build/attention-smoke")  # not for publication; ignored by git
    shapes = [SMOKE] if args.smoke else [shape(model, res) for model in args.model for res in args.res]
    write(base.with_name(base.name + ".json"), record)  # a place that cannot be written is no news for later
    watchdog = end_at(hard, base, record)
    run(shapes, args, device, total, base, record)
    watchdog.cancel()
    say(f"{base}.json, {base}.md")
    return int(any(troubled(case) for case in record["cases"]))


@torch.inference_mode()
def run(
    shapes: list[Shape], args: argparse.Namespace, device: torch.device, total: Deadline, base: Path, record: dict
) -> None:
    """One case after another, each with an equal share of the time that is left."""
    for number, what in enumerate(shapes):
        say(str(what))
        case: dict = {**what.facts, "lines": []}
        record["cases"].append(case)
        try:
            measure(case, what, args, device, total, total.share(len(shapes) - number))
        except Exception as fault:  # of the card, or no memory: the other shapes may run
            case["fault"] = f"{type(fault).__name__} while {case['doing']}: {fault}"[:MOST_WORDS]
        del case["doing"]
        report.derive(case["lines"], record["card"])
        save(base, record)
        draw(case)
        torch.cuda.empty_cache()  # the next shape's tensors have other sizes


def draw(case: dict) -> None:
    """One shape's tables, on stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    console.rule(report.heading(case))
    for one in report.remarks(case):
        console.print(f"- {one}", markup=False)
    for table in report.tables(case):
        console.print(table.rich())


def troubled(case: dict) -> bool:
    """Whether something failed, was wrong, or had no time."""
    unfinished = bool(case.get("cut")) and case["rounds"] < LEAST_ROUNDS
    return "fault" in case or unfinished or any("fault" in line for line in case["lines"])


if __name__ == "__main__":
    sys.exit(main())
