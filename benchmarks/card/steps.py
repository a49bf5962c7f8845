"""What is done on a card, in which order and how long at most; each step in a process of its own.

A step that fails, hangs or crashes is recorded with the end of its output, and the next one runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen import files

ROOT = Path(__file__).parents[2]
RECORD, LOG = "steps.json", "card.log"  # of the output folder
_TAIL = 2000  # letters of a step's output in the record
_PATH = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/local/cuda/bin"  # where CUDA puts its tools
_GRACE = 3.0  # seconds in which a step that is interrupted may say how far it came
LEAST = 5.0  # seconds: with less, no step is begun


@dataclass(frozen=True)
class Step:
    """name: one word. says: what one learns by it. limit: seconds; tool: a program without which it cannot run."""

    name: str
    says: str
    limit: float
    command: tuple[str, ...]
    tool: str | None = None


def plan(folder: Path) -> tuple[Step, ...]:
    """All steps, in their order; they write into `folder`."""

    def python(module: str, words: str, *more: str) -> tuple[str, ...]:
        return sys.executable, "-m", module, *words.split(), *more

    def own(module: str, *words: str) -> tuple[str, ...]:
        return python(f"benchmarks.card.{module}", "", *words)

    def tests(file: str, *chosen: str) -> tuple[str, ...]:
        return python("pytest", "-v -m gpu -p no:cacheprovider", f"tests/gpu/{file}", *chosen)

    def out(file: str) -> str:
        return str(folder / file)

    bench = "bench attention --model 14b --res 720p --density 1,1/6,1/10 --variant fp8-fp16,int8-int32 --repeats 7"
    # Of one launch of each kernel of both variants; the clock stays as it is.
    ncu = "ncu --set full --clock-control none -k regex:fps_ -c 10 --csv --page raw --log-file"
    # Of our kernels alone; within memory that torch keeps for later, an access beyond a tensor's end is no fault.
    sanitizer = "env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --kernel-name kns=fps_ --report-api-errors no"
    check = (*sanitizer.split(), "--error-exitcode", "9", "--tool")
    return (
        Step("versions", "card, driver, libraries and tools", 20, own("versions")),
        Step("sums", "which rule FP8 sums obey, in FP32 and in FP16", 45, own("sums", "--out", str(folder))),
        Step("pipes", "clocks of instructions, for the model", 30, own("pipes", "--out", out("pipes.json"))),
        Step("wrappers", "whether the host twin is right", 60, tests("test_wrappers.py")),
        Step("kernels", "whether the kernels are right", 90,
             tests("test_hopper.py", "-k", "dense or list_lengths or windows")),
        Step("attention", "how fast they are, beside BF16", 105,
             python("fpsgen", f"{bench} --seconds 90 --no-report -o", out("attention.json"))),
        Step("counters", "what binds them: stalls, pipes, bytes from L2", 80,
             (*ncu.split(), out("ncu.csv"), *own("once")), "ncu"),
        Step("ablations", "what each part costs", 90, own("ablations", "--out", out("ablations.json"))),
        Step("between", "whether the kernels between products are right", 60, tests("test_elementwise.py")),
        Step("decoding", "whether decoding is, and how fast", 45, tests("test_decoding.py", "-s")),
        Step("graphs", "whether steps run as CUDA graphs, to the same bits", 45, tests("test_graphs.py")),
        Step("memcheck", "whether they leave other memory alone", 40, (*check, "memcheck", *own("once", "--tiny")),
             "compute-sanitizer"),
        Step("racecheck", "whether their threads race", 40, (*check, "racecheck", *own("once", "--tiny")),
             "compute-sanitizer"),
        Step("sizes", "whether they are right at true sizes", 600,
             tests("test_hopper_sizes.py", "-k", "14b and 720p and (1/6 or 1/10)")),
    )  # fmt: skip


def run_all(
    steps: Iterable[Step], folder: Path, seconds: float, about: dict[str, Any], tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run them one after another until the seconds are over, and record each at once: before it runs, and after.

    about: how the record begins. tell: takes a line for whoever watches.
    """
    end = time.monotonic() + seconds
    done: list[dict[str, Any]] = []
    for step in steps:
        left = end - time.monotonic()
        limit = max(0.0, min(step.limit, left))
        begun = {"name": step.name, "command": list(step.command), "limit_s": round(limit, 1)}
        done.append(begun | {"outcome": "running"})
        files.write_json(folder / RECORD, about | {"steps": done})
        tell(f"{step.name}: {step.says}; {limit:.0f} s at most")
        if left < LEAST:
            done[-1] = begun | {"outcome": "no time left"}
        elif step.tool and not shutil.which(step.tool, path=_PATH):
            done[-1] = begun | {"outcome": f"{step.tool} is not installed"}
        else:
            done[-1] = begun | run(step, folder / LOG, limit)
        files.write_json(folder / RECORD, about | {"steps": done})
        tell(f"{step.name}: {done[-1]['outcome']}")
    return done


def run(step: Step, log: Path, limit: float) -> dict[str, Any]:
    """One step: its outcome, its exit code, how long it took, and the end of what it said, all of which is in `log`."""
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PATH": _PATH, "PYTHONPATH": places, "PYTHONUNBUFFERED": "1"}
    begin = time.monotonic()
    with log.open("ab") as out:
        out.write(f"\n==== {step.name}\n".encode())
        out.flush()
        first = out.tell()
        # A group of its own, which is ended with all that it started.
        child = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        outcome = "out of time"
        try:
            outcome = "failed" if child.wait(limit) else "done"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    with log.open("rb") as file:
        file.seek(first)
        said = file.read().decode(errors="replace")
    took = round(time.monotonic() - begin, 2)
    return {"outcome": outcome, "code": child.returncode, "took_s": took, "tail": said[-_TAIL:]}
