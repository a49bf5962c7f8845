"""What needs no torch to be known is told without it: torch and its libraries take seconds to load, half a minute on a
busy machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What is typed, the exit code, and a piece of what is said.
COMMANDS = [
    (["calibrate", "--min-psnr", "nan"], 2, "--min-psnr nan is out of range"),
    (["calibrate", "--target-cost", "2"], 2, "--target-cost 2 is out of range"),
    (["calibrate", "-o", "x"], 2, "-o x: a preset is a .toml file"),
    (["calibrate", "-o", "pipe.toml"], 2, "pipe.toml is not a regular file"),
    (["calibrate", "--prompts", "/dev/null"], 2, "it is not a regular file"),
    (["calibrate", "--model", "nope"], 2, "there is no model nope"),
    (["calibrate", "--model", "~nobody/m", "--dry-run"], 2, "there is no model ~nobody/m"),
    (["generate", "cat", "--lora", "nope.safetensors"], 2, "there is no file nope.safetensors"),
    (["generate", "cat", "--solver", "lightx2v", "--steps", "8"], 2, "--steps 8: the solver lightx2v has 4 steps"),
    (
        ["generate", "cat", "--sampler", "turbowan", "--steps", "5"],
        2,
        "--steps 5: the solver turbowan has 1 to 4 steps",
    ),
    (["generate", "cat", "--solver", "fastwan", "--shift", "3"], 2, "--shift 3: the solver fastwan has noise levels"),
    (["bench", "--solver", "turbowan", "--sigmas", "diffusers"], 2, "--sigmas diffusers: the solver turbowan has"),
    (
        ["presets", "show", "fast", "--solver", "fastwan", "--steps", "4"],
        2,
        "--steps 4: the solver fastwan has 3 steps",
    ),
    (["bench", "--model", "nope"], 2, "there is no model nope"),
    (["bench", "quality", "--model", "nope"], 2, "there is no model nope"),
    (["bench", "--random-weights", "9b"], 2, "--random-weights 9b: there are no shapes of that name"),
    (["bench", "--compare", "nonsense"], 2, "--compare nonsense: there is no preset or kernel of that name"),
    (["bench", "--preset", "nonsense"], 2, "there is no preset 'nonsense'"),
    (["bench", "--preset", "pipe.toml"], 2, "it is not a regular file"),
    (["bench", "-o", "pipe.json"], 2, "pipe.json is not a regular file"),
    (["bench", "-o", "mine.json"], 2, "mine.html exists, and fpsgen did not write it"),
    (["calibrate", "-o", "new.toml", "--report", "mine.html"], 2, "mine.html exists, and fpsgen did not write it"),
    (["bench", "quality", "--compare", "nonsense"], 2, "--compare nonsense: there is no preset or kernel of that name"),
    (["bench", "quality", "-o", "pipe.json"], 2, "pipe.json is not a regular file"),
    (["bench", "attention", "--density", "2"], 2, "--density 2 is not a share"),
    (["train", "pocket"], 2, "--data is missing"),
    (["train", "pocket", "--data", "nowhere", "-o", "mine.toml"], 2, "-o mine.toml is not a folder"),
    (["train", "pocket", "--data", "nowhere", "-o", "new"], 2, "there is no training data in nowhere"),
    (["train", "nope", "--data", "nowhere", "-o", "new"], 2, "there is no model nope"),
    (["train", "pocket", "--data", "nowhere", "-o", "new", "--preset", "nope"], 2, "there is no preset 'nope'"),
    (["train", "pocket", "--data", "nowhere", "-o", "new", "--preset", "14b-480p-fast"], 2, "it is for 14b"),
    (["train", "pocket", "--data", "nowhere", "-o", "new", "--lora", "4000"], 2, "--lora 4000: the matrices of"),
    (["train", "pocket", "--settings", "mine.toml"], 2, "there is no setting 'format'"),
    (["train", "pocket", "--lr", "20"], 2, "--lr 20: must be"),
    (["train", "14b", "--dry-run", "--cards", "8"], 0, "1280x720"),
    (["train", "--json", "prepare"], 2, "there are options before prepare"),
    (["presets"], 0, "14b-480p-fast"),
    (["presets", "show", "fast"], 0, "% of dense bf16"),
    (["presets", "show", "pocket-fast"], 0, "% of dense bf16"),
    (["presets", "show", "pipe.toml"], 2, "it is not a regular file"),
    (["presets", "check", "mine.toml", "--model", "14b"], 0, "is a preset"),
    (["kernels"], 0, "attention-fp8-fp16"),
]
CODE = """
import json, sys
from typer.testing import CliRunner
from fpsgen.cli import app
told = []
for args in json.load(sys.stdin):
    result = CliRunner().invoke(app, args)
    heavy = sorted({"torch", "diffusers", "transformers"} & set(sys.modules))
    told.append([args, result.exit_code, " ".join(result.output.split()), heavy])
print(json.dumps(told))
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_what_needs_no_torch_does_not_load_it(tmp_path: Path) -> None:
    for name in ("pipe.toml", "pipe.json"):
        os.mkfifo(tmp_path / name)  # whoever opened one to read would wait for ever
    (tmp_path / "mine.toml").write_text("format = 1\n[[phase]]\nsigma = [1.0, 0.0]\ndensity = 0.3\n")
    (tmp_path / "mine.html").write_text("a page of mine")
    given = json.dumps([args for args, _, _ in COMMANDS])
    places = {"FPSGEN_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-c", CODE], input=given, cwd=tmp_path, env={**os.environ, **places}, capture_output=True,
        text=True, timeout=300, check=True,
    )  # fmt: skip
    for (args, code, said), (_, found, output, heavy) in zip(COMMANDS, json.loads(ran.stdout), strict=True):
        assert heavy == [], f"{args} loads them"
        assert (found, said in output) == (code, True), (args, output)
