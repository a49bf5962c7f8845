"""`fpsgen train`: it learns, continues where it was stopped, and its result makes videos."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from fpsgen.presets import file
from tests.tools.cli import invoke, told
from tests.tools.train_cli import Trainer


@pytest.mark.parametrize("lora", [None, 8])
def test_what_was_trained_generates(trainer: Trainer, lora: int | None) -> None:
    result = trainer("--json", lora=lora)
    found = told(result, "train")
    weights, preset = Path(found["weights_file"]), Path(found["preset_file"])
    record = json.loads(Path(found["record"]).read_text(encoding="utf-8"))
    assert Path(found["report"]).stat().st_size > 10_000
    assert [check["step"] for check in record["checks"]] == [0, 2, 4, 4]  # the last is of the file
    assert [point["step"] for point in record["losses"]] == [1, 2, 3, 4]
    measured = file.read(preset, "").measured
    assert measured is not None
    assert measured.weights == record["trained"] != record["weights"]
    assert measured.error == pytest.approx(record["checks"][-1]["error"], rel=1e-3)
    flags = ["--model", trainer.model, "--lora", weights] if lora else ["--model", weights]
    video = told(invoke("a cat", *flags, "--preset", preset, "--seed", 1, "-o", "a.mp4", "--json"), "generate")
    assert video["weights"] == record["trained"]


def test_a_run_goes_on_and_comes_to_the_same(trainer: Trainer) -> None:
    """With the settings that it began with, which need not be given again, and none that it did not begin with."""
    whole = told(trainer("--json", output="whole"))
    told(trainer("--json", output="parts", steps=2))
    again = dict.fromkeys(("batch", "warm_up", "lr", "checks", "check_every", "save_every"))
    assert "-o parts holds a run already" in trainer.refused(output="parts")
    assert "--lr 0.001, and would go on with --lr 0.01" in trainer.refused(
        "--resume", output="parts", **again | {"lr": 0.01}
    )
    others = again | {"prompts": "others.txt"}
    Path("others.txt").write_text("a dog\na horse\na train\n")
    assert "another set of held-out clips" in trainer.refused("--resume", output="parts", **others)
    parts = told(trainer("--json", "--resume", output="parts", **again))
    assert parts["trained"] == whole["trained"]
    for key in ("losses", "checks", "steps", "tokens", "skipped"):
        assert parts[key] == whole[key], key


def test_a_run_does_not_depend_on_what_it_noted(trainer: Trainer) -> None:
    """A loss of power may leave anything in these files, the last line above all."""
    options = {"checks": 1, "check_every": 1, "save_every": 1}
    assert trainer(steps=2, **options).exit_code == 0
    Path("out").rename("whole")
    for name, text in product(("log.jsonl", "checks.jsonl"), ("", "[]\nnull\n", '{"step": 1}\n', "\xff\xfe")):
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("whole", "out")
        notes = Path("out") / name
        lines = notes.read_text().splitlines(keepends=True)
        notes.write_bytes((lines[0] + text + lines[1][:-30]).encode("latin-1"))
        result = trainer("--resume", steps=3, **options)
        assert result.exit_code == 0, (name, text, result.output)
        assert [json.loads(line)["step"] for line in notes.read_text().splitlines()] == [1, 3], (name, text)
        assert json.loads(Path("out/record.json").read_text())["steps"] == 3


def test_two_processes_learn_the_same_and_one_of_them_speaks(trainer: Trainer) -> None:
    one, words = told(trainer("--json", output="one")), trainer.words("--json", output="two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fpsgen"]
    places = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, *words], env={**os.environ, **places}, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    two = json.loads(ran.stdout)
    assert two["processes"] == 2
    assert two["trained"] == one["trained"]
    for ours, theirs in zip(two["losses"], one["losses"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)  # sums of float32 in another order
    assert [own["error"] for own in two["checks"]] == pytest.approx([own["error"] for own in one["checks"]], rel=1e-2)


def test_from_scratch_there_is_nothing_to_compare_with(trainer: Trainer) -> None:
    found = told(trainer("--json", "--from-scratch", distil=0, flow=1))
    assert found["checks"] == found["prompts"] == []
    preset = file.read(Path(found["preset_file"]), "")
    assert preset.measured is None
    assert len(preset.phases) == 2


def test_a_dense_preset_is_none_to_write(trainer: Trainer) -> None:
    """Flow matching may fine-tune with dense attention."""
    result = trainer(preset="bf16", distil=0, flow=1, steps=1)
    assert result.exit_code == 0, result.output
    assert not list(Path("out").glob("bf16*"))
    assert "use it   fpsgen generate PROMPT --model " in result.stdout
    assert "--preset" not in result.stdout


def test_parts_are_looked_at_for_an_estimate_too(trainer: Trainer) -> None:
    assert "there is no VAE none.pth" in trainer.refused("--dry-run", vae="none.pth")


def test_what_an_estimate_says(trainer: Trainer, loads: list[str]) -> None:
    found = told(trainer("--json", "--dry-run", model="14b", cards=8, lora=64, preset="fast"), "train --dry-run")
    assert [(own["size"], own["recompute"]) for own in found["estimates"]] == [
        ("832x480", False), ("832x480", True), ("1280x720", False), ("1280x720", True),
    ]  # fmt: skip
    table = trainer("--dry-run", model="1.3b", preset="fast", batch=4).stdout
    assert "model tokens/s" in table
    assert "for batches of 4; modelled, not measured" in table
    assert "e+" not in table  # gigabytes are written out, however many
    assert not loads
    assert not Path("out").exists()
