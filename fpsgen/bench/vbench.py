"""VBench (Huang et al., 2024) on folders of videos, by its own program in its own environment: it pins old libraries.

Its mode custom_input takes any videos. It runs on a CUDA GPU, and fetches the models that judge when it first runs.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from fpsgen.events import Notice, Watch

# Those that custom_input takes (VBench's README).
DIMENSIONS = (
    "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
    "imaging_quality",
)  # fmt: skip
_RESULTS = "vbench-results"  # beside the folders of videos
_TORCH = "https://download.pytorch.org/whl/cu121"  # the latest that it runs with


def setup(videos: Path, folders: Iterable[str]) -> list[str]:
    """The commands that make the environment, and those that run VBench on the folders of `videos`."""
    return [
        "python -m venv vbench-env  # an environment of its own, because it pins old libraries",
        f"vbench-env/bin/pip install torch torchvision --index-url {_TORCH}",
        "vbench-env/bin/pip install vbench",
        f"export PATH=$PWD/vbench-env/bin:$PATH && cd {shlex.quote(str(videos))}  # it calls python by name",
        *(shlex.join(command("vbench", folder, dimension)) for folder in folders for dimension in DIMENSIONS),
    ]


def command(program: str, folder: str, dimension: str) -> list[str]:
    """To be run from the folder that holds `folder`. Paths are relative, because VBench passes them through a shell and
    quotes them badly."""
    return [
        program, "evaluate", "--mode", "custom_input", "--dimension", dimension, "--videos_path", folder,
        "--output_path", f"{_RESULTS}/{folder}/{dimension}",
    ]  # fmt: skip


def evaluate(program: Path, folder: Path, watch: Watch, note: Callable[[str], None]) -> dict[str, float | None]:
    """The score of a folder of videos in each dimension; None, and a note, where VBench gave none."""
    program = program.resolve()
    # It runs "python" by name, and would find that of fpsgen's environment.
    environment = os.environ | {"PATH": os.pathsep.join([str(program.parent), os.environ.get("PATH", "")])}
    scores: dict[str, float | None] = {}
    for dimension in DIMENSIONS:
        watch(Notice(dimension, detail=True))
        results = folder.parent / _RESULTS / folder.name / dimension
        shutil.rmtree(results, ignore_errors=True)  # of an earlier run: it names its files by the time
        ran = subprocess.run(
            command(str(program), folder.name, dimension), cwd=folder.parent, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        try:  # {dimension: [mean over the videos, [each of them]]}
            (path,) = results.glob("*_eval_results.json")
            scores[dimension] = float(json.loads(path.read_text(encoding="utf-8"))[dimension][0])
        except (OSError, ValueError, KeyError, IndexError, TypeError):  # its exit status is 0 even then
            scores[dimension] = None
            said = ran.stdout.strip().rpartition("\n")[2] or "it said nothing"
            note(f"VBench gave no {dimension} of {folder.name}: {said.strip()[:300]}")
    return scores
