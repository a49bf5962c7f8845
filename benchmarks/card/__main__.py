"""What only a Hopper card can say, in one go; from the tree, without diffusers and ffmpeg.

    PYTHONPATH=. python -m benchmarks.card --seconds 480

Writes into a folder, after each step: steps.json (what was run, and how it ended), card.log (all that was said), and
the steps' own files. `python -m benchmarks.tables` makes a page of them. Nothing of the card is set.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from math import inf
from pathlib import Path

from benchmarks.card.steps import LEAST, Step, plan, run_all
from benchmarks.record import RESULTS


def why_no_card() -> str | None:
    """Why there is no card here that the steps can run on, by nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "nvidia-smi finds none here"
    first = found.stdout.partition("\n")[0]
    if found.returncode or not first:
        return "nvidia-smi finds none here"
    return None if first.endswith("9.0") else f"this one is {first}"


def told(step: Step) -> str:
    command = shlex.join("python" if part == sys.executable else part for part in step.command)
    return f"{step.name:10} {step.limit:4.0f} s  {step.says}\n                   {command}"


def chosen(names: str | None, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Those whose names are given, in their order; ValueError for a name that none has."""
    wanted = [step.name for step in steps] if names is None else names.split(",")
    if unknown := set(wanted) - {step.name for step in steps}:
        raise ValueError(f"there is no step {min(unknown)!r}: there are {', '.join(step.name for step in steps)}")
    return tuple(step for step in steps if step.name in wanted)


def seconds(text: str) -> float:
    """ValueError for less than a step needs, and for what is no number."""
    if not LEAST <= (number := float(text)) < inf:
        raise ValueError
    return number


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=seconds, default=480, help="after which no step is begun, and the last one ends"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "card", help="the folder that is written to")
    parser.add_argument("--steps", help="some of them, separated by commas")
    parser.add_argument("--dry-run", action="store_true", help="show the steps and their limits; no card is needed")
    args = parser.parse_args(arguments)
    folder = args.out.resolve()
    try:
        steps = chosen(args.steps, plan(folder))
    except ValueError as fault:
        parser.error(str(fault))
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        parser.error(f"argument --out: {nearest} is not a folder that can be written to")
    if args.dry_run:
        print("\n".join(map(told, steps)))
        return 0
    if why := why_no_card():
        print(f"benchmarks.card needs a Hopper GPU, and {why}; --dry-run shows what it would do", file=sys.stderr)
        return 2
    from fpsgen.machine import provenance

    folder.mkdir(parents=True, exist_ok=True)
    about = {"kind": "card", "seconds": args.seconds, **provenance(["python", "-m", "benchmarks.card", *sys.argv[1:]])}
    done = run_all(steps, folder, args.seconds, about, lambda line: print(line, flush=True))
    return (
        0 if all(one["outcome"] in ("done", "no time left") or "not installed" in one["outcome"] for one in done) else 1
    )


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            # As Ctrl-C: the step, which is in a group of its own, ends with this program.
            signal.signal(number, lambda came, _: sys.exit(128 + came))
    sys.exit(main())
