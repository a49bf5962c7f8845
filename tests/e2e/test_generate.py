"""`fpsgen generate` through its front door: every option changes what it says it changes."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from fpsgen import pipeline
from fpsgen.choices import find_target
from fpsgen.wan.transformer import WanTransformer
from tests.tools.cli import Runner, invoke
from tests.tools.videos import metadata, read


def test_same_seed_same_video_other_seed_other_video(run: Runner) -> None:
    first, again, other = (hashlib.sha256(run.frames(seed=seed)).hexdigest() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_prompt_matters(run: Runner) -> None:
    assert (run.frames("a cat surfing") != run.frames("a red dog sleeping")).any()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 3),
        ("guidance", 2.0),
        ("shift", 2.0),
        ("negative", "red dog"),
        ("dtype", "bf16"),
        ("solver", "dpm++"),
        ("solver", "euler"),
        ("grid", "diffusers"),
    ],
)
def test_option_changes_the_picture(run: Runner, option: str, value: object) -> None:
    before, after = run.frames(steps=6), run.frames(**({"steps": 6} | {option: value}))
    assert (before != after).any()


@pytest.mark.parametrize(
    ("solver", "steps", "shift"), [("lightx2v", 4, 5), ("fastwan", 3, 8), ("turbowan", 4, 1), ("turbowan", 2, 1)]
)
def test_solvers_for_few_steps(run: Runner, solver: str, steps: int, shift: float) -> None:
    """Each brings what it needs, the file says it, and the same video is made from what the file says."""
    given = {"steps": 2 if steps == 2 else None, "seed": 3, "solver": solver}
    report = run(**given)
    meta, frames = metadata(report["output"]), read(report["output"])[1]
    for told in (report, meta):
        assert [told[key] for key in ("solver", "steps", "shift", "guidance")] == [solver, steps, shift, 1]
    assert len(report["timings"]["steps"]) == steps
    said = {key: meta[key] for key in ("solver", "steps", "shift", "guidance", "grid", "seed")}
    assert (run.frames(**said) == frames).all()
    assert (run.frames(**given | {"seed": 4}) != frames).any()
    assert (run.frames(**given | {"guidance": 3}) != frames).any()


def test_steps_frames_and_size_are_what_was_asked(run: Runner) -> None:
    report = run(steps=3, frames=9, res="64x96")
    meta, frames = read(report["output"])
    assert len(report["timings"]["steps"]) == 3
    assert len(frames) == 9
    assert meta["size"] == (64, 96)


def test_guidance_of_one_runs_one_branch(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = WanTransformer.forward
    monkeypatch.setattr(WanTransformer, "forward", lambda *a: seen.append(len(a[1])) or forward(*a))
    run(guidance=1)
    assert set(seen) == {1}
    seen.clear()
    run(guidance=3)
    assert set(seen) == {2}


def test_branches_run_one_after_the_other_when_memory_is_short(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def frames(how: str) -> np.ndarray:
        path = run.directory / "branches.mp4"
        size = ("--res", "96x64", "--frames", 5, "--steps", 2, "--seed", 1, "--dtype", "fp32")
        result = invoke("a cat surfing", "--model", run.folder, *size, "-o", path, "--verbose")
        assert f"guidance branches run {how}" in result.stderr
        return read(path)[1]

    together = frames("in one batch")
    monkeypatch.setattr("fpsgen.machine.free_bytes", lambda device: 0)
    apart = frames("one after the other")
    # The same arithmetic in another order; the encoder may turn a last bit into a level or two.
    assert np.abs(together.astype(int) - apart).max() <= 4


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_output_formats(run: Runner, tmp_path: Path, suffix: str) -> None:
    report = run(output=tmp_path / f"clip{suffix}")
    assert report["output"] == str(tmp_path / f"clip{suffix}")
    assert len(read(report["output"])[1]) == 5


def test_report_and_phases(run: Runner) -> None:
    report = run(seed=11)
    assert report["prompt"] == "a cat surfing"
    assert report["seed"] == 11
    assert report["device"] == "cpu"
    assert report["threads"] == torch.get_num_threads()
    timings = report["timings"]
    phases = sum(timings[name] for name in ("load", "text", "denoise", "decode", "encode"))
    assert phases <= timings["total"] + 0.01
    assert phases >= 0.9 * timings["total"]
    assert timings["peak_memory_bytes"] > 50e6


def test_verbose_says_what_was_chosen(wan_folder: Path, tmp_path: Path) -> None:
    args = ("cat", "--model", wan_folder, "--res", "32x32", "--frames", 1, "--steps", 1, "-o", tmp_path / "a.mp4")
    quiet, loud = invoke(*args), invoke(*args, "--verbose")
    assert "guidance branches run" in loud.stderr
    assert "guidance branches run" not in quiet.stderr
    assert quiet.stdout.strip() == str(tmp_path / "a.mp4")
    for word in ("load", "text", "denoise", "decode", "encode", "total", "memory"):
        assert word in quiet.stderr
    assert re.search(r"memory +[\d.]+ [MG]B", quiet.stderr)  # the units of all other commands


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device, dtype in ((False, "cpu", torch.float32), (True, "cuda:1", torch.bfloat16)):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
        target = find_target(None, None)
        assert (str(target.device), target.dtype, target.text_dtype) == (device, dtype, torch.bfloat16)
        assert find_target(device.partition(":")[0], None) == target
        exact = find_target(None, "fp32")
        assert (exact.dtype, exact.text_dtype) == (torch.float32, torch.float32)


def test_prompt_from_standard_input(wan_folder: Path, tmp_path: Path) -> None:
    args = ("--model", wan_folder, "--res", "32x32", "--frames", 1, "--steps", 1, "-o", tmp_path / "a.mp4", "--json")
    result = invoke("-", *args, input="a dog\n")
    assert json.loads(result.stdout)["prompt"] == "a dog"


def test_bare_command_uses_the_pocket_and_names_the_file(pocket: Path) -> None:
    result = invoke("A cat, surfing!")
    assert result.exit_code == 0, result.output
    assert "the pocket model is used" in result.stderr
    (path,) = pocket.iterdir()
    assert path.name.startswith("a-cat-surfing-")
    meta, frames = read(path)
    assert meta["size"] == (384, 256)
    assert len(frames) == 9


def test_seed_is_random_unless_given(pocket: Path) -> None:
    seeds = {json.loads(invoke("a cat", "--model", "pocket", "--json").stdout)["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_pocket_renders_its_own_size_and_scales_up(pocket: Path) -> None:
    result = invoke("a cat surfing", "--res", "720p", "--model", "pocket", "-o", "cat.mp4")
    assert result.exit_code == 0, result.output
    assert "renders 96x64" in result.stderr
    assert "scaled to 1280x720" in result.stderr
    assert read("cat.mp4")[0]["size"] == (1280, 720)


def test_the_pockets_file_is_four_times_its_size_unless_a_size_is_asked_for(pocket: Path) -> None:
    enlarged = invoke("a cat", "--model", "pocket", "--json", "-o", "large.mp4")
    assert read("large.mp4")[0]["size"] == (384, 256)
    assert json.loads(enlarged.stdout)["scale_to"] == [384, 256]
    again = invoke("--from", "large.mp4", "--json", "-o", "again.mp4")
    assert json.loads(again.stdout)["scale_to"] == [384, 256]
    assert "scaled" not in again.stderr  # it was not asked for
    bare = invoke("a cat", "--model", "pocket", "--res", "96x64", "--json", "-o", "bare.mp4")
    assert read("bare.mp4")[0]["size"] == (96, 64)
    assert json.loads(bare.stdout)["scale_to"] is None
    assert "scaled" not in enlarged.stderr + bare.stderr


def test_without_a_name_nothing_is_replaced(pocket: Path) -> None:
    names = [json.loads(invoke("A cat!", "--seed", 1, "--json").stdout)["output"] for _ in range(3)]
    assert names == ["a-cat-1.mp4", "a-cat-1-2.mp4", "a-cat-1-3.mp4"]
    assert len({(pocket / name).stat().st_ino for name in names}) == 3


def test_a_named_video_is_replaced_and_that_is_said(pocket: Path) -> None:
    quiet, told = (invoke("a cat", "--model", "pocket", "--seed", seed, "-o", "a.mp4") for seed in (1, 2))
    assert "replace" not in quiet.stderr
    assert "note: a.mp4 exists: the new video will replace it" in told.stderr
    assert metadata(pocket / "a.mp4")["seed"] == 2


def test_no_clobber_keeps_what_is_there(pocket: Path, loads: list[str]) -> None:
    (pocket / "a.mp4").write_bytes(b"older")
    result = invoke("a cat", "--model", "pocket", "--no-clobber", "-o", "a.mp4")
    assert result.exit_code == 2
    assert "a.mp4 exists, and --no-clobber keeps it" in result.stderr
    assert (pocket / "a.mp4").read_bytes() == b"older"
    assert loads == []


def test_no_clobber_keeps_what_appears_meanwhile(pocket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = pipeline.decode

    def late(*args: Any) -> Any:
        (pocket / "a.mp4").write_bytes(b"another's")
        yield from decode(*args)

    monkeypatch.setattr(pipeline, "decode", late)
    result = invoke("a cat", "--model", "pocket", "--no-clobber", "-o", "a.mp4")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "a-2.mp4"
    assert (pocket / "a.mp4").read_bytes() == b"another's"
    assert len(read("a-2.mp4")[1]) == 9


def test_pocket_names_the_words_it_does_not_know(pocket: Path) -> None:
    result = invoke("a purple cat surfing [bold]", "--model", "pocket", "-o", "a.gif")
    assert result.exit_code == 0, result.output
    assert "prompt left out: purple, bold. The pocket model knows a, cat, dog, surfing" in " ".join(
        result.stderr.split()
    )
    result = invoke("a 🐱 cat", "--model", "pocket", "-o", "a.gif")
    assert "left out: 🐱." in " ".join(result.stderr.split())
    result = invoke("a cat", "--negative", "ugly cat's", "--model", "pocket", "-o", "a.gif")
    assert "negative prompt left out: ugly. The pocket" in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["take:1.mp4", "x" * 240 + ".mp4", "-dash.mp4", "ünï 猫.mp4", "100%d.mp4"])
def test_odd_file_names(run: Runner, tmp_path: Path, name: str) -> None:
    run(output=tmp_path / name, res="32x32", frames=1, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_file_remembers_how_it_was_made(run: Runner) -> None:
    report = run(seed=5, steps=2)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", report["output"], "-f", "ffmetadata", "-"]
    told = subprocess.run(command, capture_output=True, check=True).stdout.decode().replace("\\", "")
    for part in ('"prompt": "a cat surfing"', '"seed": 5', '"steps": 2', '"dtype": "float32"'):
        assert part in told
    assert json.dumps(report["timings"]) in told  # one record: the file's is the one that was printed
    assert all(report["timings"][phase] > 0 for phase in ("load", "text", "denoise", "decode", "encode", "total"))


def test_progress_is_logged_where_no_bar_is_drawn(wan_folder: Path, tmp_path: Path) -> None:
    args = ("cat", "--model", wan_folder, "--res", "32x32", "--frames", 1, "--steps", 20, "-o", tmp_path / "a.mp4")
    lines = [line for line in invoke(*args).stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 10
    assert lines[-1].startswith("step 20 of 20")
    assert "step" not in invoke(*args, "--json").stderr


def test_progress_is_drawn_on_a_terminal(wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    args = ("cat", "--model", wan_folder, "--res", "32x32", "--frames", 5, "--steps", 3, "-o", tmp_path / "a.mp4")
    drawn = invoke(*args).stderr
    for part in ("text encoder", "load transformer", "load VAE", "denoise", "3/3", "s/step", "decode", "5/5", "frames"):
        assert part in drawn
    assert "step 3 of 3" not in drawn
