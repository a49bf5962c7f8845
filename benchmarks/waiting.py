"""What it costs that torch's threads sleep while they wait for each other, and what it brings where cores are shared.

    python -m benchmarks.waiting --rounds 5

Bare `fpsgen generate` runs alone and twice at once, with threads that sleep (fpsgen's default) and with threads that
spin for 3 ms first (GNU OpenMP's default); all four cases in each round, medians over the rounds. Prints JSON. The
machine must do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

# 300,000 spins of 10 ns: what GNU's OpenMP does where OMP_WAIT_POLICY is not set.
CASES: dict[str, dict[str, str]] = {"sleeping": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
CHOSEN = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")  # left out of the environment that we run in
COMMAND = (sys.executable, "-m", "fpsgen", "generate", "a cat surfing", "--model", "pocket", "--seed", "1", "--json")

Times = tuple[float, list[float]]


def run(videos: int, own: Mapping[str, str]) -> Times:
    """Seconds until so many videos, begun together, are complete; and those that each took for its denoising."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN} | own
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        commands = [[*COMMAND, "-o", f"{folder}/{number}.mp4"] for number in range(videos)]
        running = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
        results = [json.loads(process.communicate()[0]) for process in running]
        return time.perf_counter() - begin, [result["timings"]["denoise"] for result in results]


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """For each case, the median seconds of one video and of two at once, and the second divided by the first."""
    ran: dict[tuple[str, int], list[Times]] = {(name, videos): [] for name in CASES for videos in (1, 2)}
    for _ in range(rounds):
        for (name, videos), times in ran.items():
            times.append(run(videos, CASES[name]))
    return {name: summary(ran[name, 1], ran[name, 2]) for name in CASES}


def summary(one: list[Times], two: list[Times]) -> dict[str, float]:
    """Of the times of one video, and of two at once."""
    total, both = (median(total for total, _ in times) for times in (one, two))
    denoise, denoise_both = (median(each for _, own in times for each in own) for times in (one, two))
    told = {"one": total, "two": both, "ratio": both / total, "denoise_one": denoise, "denoise_two": denoise_both}
    return {name: round(value, 2) for name, value in told.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(measure(parser.parse_args().rounds), indent=2))
