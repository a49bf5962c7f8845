"""`generate --from`: a video again, by what its own comment says, and what differs from then."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fpsgen import replay
from fpsgen.weights.models import open_folder
from tests.tools.cli import Runner, invoke, told
from tests.tools.lora import write
from tests.tools.videos import metadata, read

OTHERS = ("seconds", "timings", "output", "asked", "graphs")


def again(*args: object, code: int = 0) -> tuple[dict[str, Any], str]:
    """What --json says, and what people are told, on one line."""
    result = invoke(*args, "--json")
    return told(result, code=code), " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "options",
    [
        "--preset fast --res 320x192 --solver dpm++ --sigmas diffusers --steps 3 --guidance 3 --negative night "
        "--crf 30 --dtype fp32",
        pytest.param("-o a.webm --dtype bf16 --guidance 1 --fps 8 --crf 30", marks=pytest.mark.slow),
        pytest.param("--res 160x96", marks=pytest.mark.slow),
        pytest.param("--preset quality --frames 25 --shift 5 --solver euler", marks=pytest.mark.slow),
    ],
)
def test_the_pocket_s_video_comes_again_bit_for_bit(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = () if "--frames" in options else ("--frames", 5)
    steps = () if "--steps" in options else ("--steps", 2)
    first, _ = again("a cat “surfing”", "--model", "pocket", "--seed", 7, *short, *steps, *options.split())
    second, said = again("--from", first["output"])
    assert second["output"] != first["output"]
    assert "unlike" not in said
    assert {key: own for key, own in second.items() if key not in OTHERS} == {
        key: own for key, own in first.items() if key not in OTHERS
    }
    info, frames = read(first["output"])
    info_again, frames_again = read(second["output"])
    assert info_again == info
    assert np.array_equal(frames, frames_again)
    assert hashlib.sha256(frames.tobytes()).digest() == hashlib.sha256(frames_again.tobytes()).digest()


def test_what_is_given_changes_it(run: Runner, tmp_path: Path) -> None:
    first = run(preset="fast", solver="dpm++", guidance=3)
    changed, said = again("a dog", "--from", first["output"], "--steps", 3, "--seed", 8, "-o", tmp_path / "b.webm")
    kept = ("preset", "solver", "guidance", "width", "height", "frames", "negative", "model", "weights")
    assert {key: changed[key] for key in kept} == {key: first[key] for key in kept}
    assert (changed["prompt"], changed["steps"], changed["seed"]) == ("a dog", 3, 8)
    assert "unlike" not in said
    plain, _ = again("--from", first["output"], "--preset", "bf16", "--res", "64x64", "-o", tmp_path / "c.mp4")
    assert (plain["preset"]["name"], plain["width"], plain["prompt"]) == ("bf16", 64, first["prompt"])


def test_seeds_and_prompts_take_the_rest_from_it(run: Runner, tmp_path: Path) -> None:
    first = run(solver="euler", res="64x64")
    many, _ = again("--from", first["output"], "--seeds", "3,4", "-o", tmp_path / "many")
    assert [(each["seed"], each["solver"], each["width"]) for each in many["videos"]] == [
        (3, "euler", 64),
        (4, "euler", 64),
    ]
    (tmp_path / "prompts.txt").write_text("a dog\n")
    other, _ = again("--from", first["output"], "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "many")
    (video,) = other["videos"]
    assert (video["prompt"], video["seed"], video["solver"]) == ("a dog", 1, "euler")
    once_more, _ = again("--from", first["output"], "--seeds", "3,4", "-o", tmp_path / "many")
    assert (once_more["made"], once_more["skipped"]) == (0, 2)


def test_the_video_itself_is_never_replaced(run: Runner, tmp_path: Path) -> None:
    first = Path(run()["output"])
    before = first.read_bytes()
    (tmp_path / "link.mp4").symlink_to(first)
    for place in (first, tmp_path / "link.mp4"):
        result, _ = again("--from", first, "-o", place, code=2)
        assert "is the video that is made again" in result["error"]
    assert first.read_bytes() == before


def test_a_lora_is_found_where_it_went_and_its_content_is_compared(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    file = write(tmp_path / "loras" / "style.safetensors", open_folder(run.folder, "small").config)
    first = run(lora=f"{file}:0.5")
    video = first["output"]
    moved = Path(shutil.move(file, tmp_path / "style.safetensors"))
    write(file, open_folder(run.folder, "small").config, seed=9)  # another one has its name now
    second, said = again("--from", video, "-o", tmp_path / "b.mp4")
    assert second["weights"] == first["weights"]
    assert (second["loras"][0]["scale"], second["loras"][0]["path"]) == (0.5, str(moved))
    assert "unlike" not in said
    file.replace(moved)
    third, said = again("--from", video, "-o", tmp_path / "c.mp4")
    assert "the content of style.safetensors" in said
    assert f"the weights ({third['weights']}, then {first['weights']})" in said
    moved.unlink()
    gone, _ = again("--from", video, "-o", tmp_path / "d.mp4", code=2)
    assert "--lora style.safetensors, which 1.mp4 was made with, is not at" in gone["error"]
    assert gone["hint"] == "name it with --lora"
    assert not (tmp_path / "d.mp4").exists()


def test_a_model_that_is_gone_costs_one_sentence(run: Runner, wan_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wan_folder, tmp_path / "model"))
    video = run(model=folder)["output"]
    assert metadata(video)["model_path"] == str(folder)
    folder.rename(tmp_path / "elsewhere")
    gone, _ = again("--from", video, "-o", tmp_path / "b.mp4", code=2)
    assert "which 1.mp4 was made with, is not in" in gone["error"]
    assert gone["hint"] == "name it with --model"
    found, said = again("--from", video, "--model", tmp_path / "elsewhere", "-o", tmp_path / "b.mp4")
    assert (found["weights"], "unlike" in said) == (metadata(video)["weights"], False)


def test_a_comment_that_knows_no_gpus_is_of_one() -> None:
    assert replay.differences({}, {"gpus": 2}) == ["GPUs 2 (then 1)"]
    assert replay.differences({"gpus": 2}, {"gpus": 2}) == replay.differences({}, {"gpus": 1}) == []


def test_what_differs_is_told_in_one_line(run: Runner, tmp_path: Path) -> None:
    first = run()
    frames = tmp_path / "frames"
    frames.mkdir()
    then = {key: value for key, value in first.items() if key != "output"}
    then |= {"fpsgen": "0.0.1", "threads": 77, "weights": "f" * 16, "device": "cuda:7"}
    then["one_batch"] = not first["one_batch"]
    then["versions"] = {**first["versions"], "torch": "1.13"}
    (frames / "video.json").write_text(json.dumps(then))
    _, said = again("--from", frames, "-o", tmp_path / "b.mp4")
    threads, fpsgen = first["threads"], first["fpsgen"]
    assert f"unlike frames: device cpu (then cuda:7), CPU threads {threads} (then 77), fpsgen {fpsgen} (then 0" in said
    assert "(then 1.13)" in said
    assert said.count("unlike") == 2
    told = f"unlike frames: the weights ({first['weights']}, then {'f' * 16}), both guidance branches in one batch: "
    assert f"{told}{first['one_batch']} (then {not first['one_batch']})" in said
    (frames / "video.json").write_text(json.dumps(then | {"device": "cpu"}))
    _, said = again("--from", frames, "--model", run.folder, "-o", tmp_path / "b.mp4")
    assert "CPU threads" in said
    assert "(then 77)" in said
    assert "the weights" not in said


def test_a_solver_for_few_steps_brings_its_own_settings(run: Runner, tmp_path: Path) -> None:
    first = run(steps=7, shift=4, guidance=3)
    few, _ = again("--from", first["output"], "--solver", "fastwan", "-o", tmp_path / "b.mp4")
    assert (few["steps"], few["guidance"], few["shift"], few["width"]) == (3, 1.0, 8.0, first["width"])
    once_more, _ = again("--from", few["output"], "-o", tmp_path / "c.mp4")
    assert {key for key in few if few[key] != once_more[key]} <= {*OTHERS}
    plain, _ = again("--from", few["output"], "--solver", "euler", "--steps", 2, "-o", tmp_path / "d.mp4")
    assert (plain["solver"], plain["steps"], plain["guidance"]) == ("euler", 2, 6.0)


def test_two_experts_have_their_guidance_again(experts: dict[str, Path], tmp_path: Path) -> None:
    run = Runner(experts["original"], tmp_path)
    first = run(steps=3, **{"guidance-low": 2})
    second, _ = again("--from", first["output"], "-o", tmp_path / "b.mp4")
    assert first["guidance_low"] == 2
    assert {key for key in first if first[key] != second[key]} <= {*OTHERS}
    assert np.array_equal(read(first["output"])[1], read(second["output"])[1])
    third, _ = again("--from", first["output"], "--guidance", 3, "-o", tmp_path / "c.mp4")
    assert (third["guidance"], third["guidance_low"]) == (3, None)
