"""Many videos with one command: one load, nothing made twice, and one that fails stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fpsgen import experts, pipeline, texts
from fpsgen.errors import RenderError
from fpsgen.sampling import Denoiser
from fpsgen.video import VideoWriter
from tests.tools.cli import Runner, documented, invoke, told
from tests.tools.videos import metadata, read

SHORT = ("--model", "pocket", "--res", "160x96", "--frames", "5", "--steps", "2", "--device", "cpu")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part was loaded."""
    counts: Counter[str] = Counter()
    for module, name in ((texts, "load_text_encoder"), (experts, "load"), (pipeline, "load_vae")):
        own = getattr(module, name)

        def counted(*args: Any, own: Any = own, name: str = name, **more: Any) -> Any:
            counts[name] += 1
            return own(*args, **more)

        monkeypatch.setattr(module, name, counted)
    return counts


ONCE = {"load_text_encoder": 1, "load": 1, "load_vae": 1}


def many(*args: object, input: str | None = None, code: int = 0) -> dict:
    found = told(invoke(*args, *SHORT, "--json", input=input), code=code)
    always, _ = documented("generate, many videos")
    assert always == set(found)
    return found


def test_lines_of_all_kinds_share_one_load_and_a_second_run_makes_nothing(
    tmp_path: Path, loads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shots.txt"
    other = {"prompt": "a dog in the city", "seed": 7, "frames": 9, "steps": 3, "guidance": 1, "name": "dog"}
    file.write_text(f"a cat surfing\n# a comment\n{json.dumps(other)}\na robot jumping\n", encoding="utf-8")
    told = many("--prompts", file, "-o", f"{tmp_path}/out/")
    assert loads == ONCE
    assert [told[key] for key in ("made", "skipped", "failed", "rank", "world")] == [3, 0, 0, 0, 1]
    names = ["a-cat-surfing-0.mp4", "dog.mp4", "a-robot-jumping-0.mp4"]
    assert [video["output"] for video in told["videos"]] == [str(tmp_path / "out" / name) for name in names]
    assert [video["line"] for video in told["videos"]] == [1, 3, 4]
    assert len(read(tmp_path / "out" / "dog.mp4")[1]) == 9
    always, sometimes = documented("generate")
    assert all(always <= {*video} <= always | sometimes | {"line", "state"} for video in told["videos"])
    for video in told["videos"]:
        assert metadata(video["output"])["asked"] == video["asked"]

    alone = many("a cat surfing", "--seeds", "0", "-o", tmp_path / "alone")["videos"][0]
    assert (read(alone["output"])[1] == read(tmp_path / "out" / names[0])[1]).all()

    loads.clear()
    monkeypatch.setattr(pipeline, "generate", None)
    again = many("--prompts", file, "-o", f"{tmp_path}/out/")
    assert [again[key] for key in ("made", "skipped", "failed")] == [0, 3, 0]
    assert {video["state"] for video in again["videos"]} == {"skipped"}
    assert not loads


def test_each_prompt_of_standard_input_with_each_seed(tmp_path: Path) -> None:
    result = invoke("--prompts", "-", "--seeds", "3,5", *SHORT, "-o", tmp_path, input="a cat\na dog\n")
    assert result.exit_code == 0, result.stderr
    names = ["a-cat-3.mp4", "a-cat-5.mp4", "a-dog-3.mp4", "a-dog-5.mp4"]
    assert result.stdout.split() == [str(tmp_path / name) for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert "video 4 of 4" in result.stderr
    assert "4 made, 0 there already, 0 failed" in result.stderr


def test_one_that_fails_stops_no_other_and_is_made_by_the_next_run(
    tmp_path: Path, loads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, where = Denoiser.velocity, ("a cat surfing", "--seeds", "0-2", "-o", tmp_path)

    def broken(denoiser: Denoiser, latents: Any, *args: Any) -> Any:
        calls.append(1)
        return own(denoiser, latents, *args) * (float("nan") if len(calls) == 3 else 1)  # the second's first step

    calls: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Denoiser, "velocity", broken)
        told = many(*where, code=1)
    assert [told[key] for key in ("made", "skipped", "failed")] == [2, 0, 1]
    failed = told["videos"][1]
    assert (failed["state"], failed["seed"], failed["output"]) == ("failed", 1, None)
    assert "not finite" in failed["error"]
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["a-cat-surfing-0.mp4", "a-cat-surfing-2.mp4"]
    with monkeypatch.context() as patched:  # the only one that is left fails alike
        patched.setattr(Denoiser, "velocity", lambda self, latents, *_: latents * float("nan"))
        assert many(*where, code=1)["failed"] == 1
    told = many(*where)
    assert [told[key] for key in ("made", "skipped", "failed")] == [1, 2, 0]


def test_stopped_in_the_second_video_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, where = Denoiser.velocity, ("a cat surfing", "--seeds", "0-2", "-o", tmp_path)

    def stopped(denoiser: Denoiser, latents: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the second's second step
            raise KeyboardInterrupt
        return own(denoiser, latents, *args)

    calls: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Denoiser, "velocity", stopped)
        result = invoke(*where, *SHORT)
    assert result.exit_code == 130
    assert "1 of 3 videos were made" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cat-surfing-0.mp4", "a-cat-surfing-1.mp4.unfinished"]
    told = many(*where, "--resume")
    assert [told[key] for key in ("made", "skipped", "failed")] == [2, 1, 0]
    assert len(list(tmp_path.iterdir())) == 3


def test_neither_a_full_gpu_nor_a_full_disk_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    velocity, close = Denoiser.velocity, VideoWriter.close

    def full(denoiser: Denoiser, latents: Any, *args: Any) -> Any:
        if latents.shape[2] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return velocity(denoiser, latents, *args)

    def closed(writer: VideoWriter) -> None:
        if writer.path.stem == "full":
            raise RenderError("the disk is full")
        close(writer)

    monkeypatch.setattr(Denoiser, "velocity", full)
    monkeypatch.setattr(VideoWriter, "close", closed)
    lines = [{"prompt": "a cat", "frames": 9}, {"prompt": "a frog", "name": "full"}, {"prompt": "a dog"}]
    told = many("--prompts", "-", "-o", tmp_path, input="\n".join(map(json.dumps, lines)), code=1)
    assert [video["state"] for video in told["videos"]] == ["failed", "failed", "made"]
    assert "not enough memory for this video" in told["videos"][0]["error"]
    assert "--res" in told["videos"][0]["hint"]
    assert told["videos"][1]["error"] == "the disk is full"
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["a-dog-0.mp4"]


@pytest.mark.parametrize("beside", [True, False])
def test_videos_of_several_sizes_are_what_each_is_alone(
    beside: bool, run: Runner, tmp_path: Path, loads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows, whose lists of tiles depend on the size; the VAE beside the transformer, or after it."""
    monkeypatch.setattr("fpsgen.residence.vae_fits_beside", lambda *_: beside)
    preset = tmp_path / "windows.toml"
    preset.write_text(
        'format = 1\ntile = [1, 2, 2]\n\n[[phase]]\nsigma = [1.0, 0.0]\nwindow = [1, 1, 1]\nqk = "int8"\n'
    )
    sizes = {"96x64": 5, "64x96": 9}
    lines = [json.dumps({"prompt": "a cat", "res": size, "frames": frames}) for size, frames in sizes.items()]
    args = ["--model", run.folder, "--steps", 2, "--preset", preset, "--json", "-o", tmp_path / "all"]
    named = [line.replace("}", f', "name": "{number}"}}') for number, line in enumerate(lines)]
    made = told(invoke("--prompts", "-", *args, input="\n".join(named)))
    assert (made["made"], loads) == (2, ONCE)
    for video, (size, frames) in zip(made["videos"], sizes.items(), strict=True):
        alone = run.frames("a cat", res=size, frames=frames, seed=0, preset=preset)
        assert (read(video["output"])[1] == alone).all()


def test_what_the_model_cannot_make_is_refused_with_all_lines(tmp_path: Path, loads: Counter[str]) -> None:
    file = tmp_path / "shots.jsonl"
    lines = [{"prompt": "a"}, {"prompt": "b", "image": "none.png"}, {"prompt": "c"}, {"prompt": "d", "image": "d.png"}]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = invoke("--prompts", file, *SHORT, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "2 lines of" in result.stderr
    assert "line 2: image=" in result.stderr
    lines[1:] = [{"prompt": "b", "guidance_low": 3}]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = invoke("--prompts", file, *SHORT, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "line 2: guidance_low=3" in result.stderr
    assert not loads
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("a cat", "--prompts", "a.txt"), "a prompt beside --prompts"),
        (("a cat", "--seeds", "1-2", "--seed", "1"), "contradict"),
        (("a cat", "--seeds", "2-1"), "--seeds 2-1"),
        (("--seeds", "1-2"), "PROMPT is missing"),
        (("a cat", "--seeds", "1-2", "-o", "a.mp4"), "several videos need a folder"),
        (("a cat", "--seeds", "1-2", "--last-frame-to", "a.png"), "--last-frame-to is for one video"),
        (("--prompts", "none.txt"), "cannot read the prompts in none.txt"),
        (("--prompts", "."), "cannot read the prompts"),
        (("--prompts", "-"), "standard input has no prompt"),
        (("--prompts", "-", "--steps", "0"), "--steps 0: must be"),
    ],
)
def test_what_contradicts_is_refused(
    args: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*args, "--model", "pocket", input="a cat\n" if "--steps" in args else "")
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_processes_share_the_lines_and_another_number_of_them_goes_on(tmp_path: Path) -> None:
    """As torchrun starts them, and a single process afterwards, which finds everything; none imports torch in vain."""
    command = [sys.executable, "-m", "fpsgen", "generate", "a cat surfing", "--seeds", "0-1", *SHORT, "--json"]
    command += ["-o", str(tmp_path / "out")]
    world = {**os.environ, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(command, env=world | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    told = [json.loads(process.communicate()[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert [[video["seed"] for video in each["videos"]] for each in told] == [[0], [1]]
    assert [(each["made"], each["rank"], each["world"]) for each in told] == [(1, 0, 2), (1, 1, 2)]
    for seed in range(2):
        assert np.isfinite(read(tmp_path / "out" / f"a-cat-surfing-{seed}.mp4")[1]).all()
    again = "import sys; from fpsgen.cli import main; sys.argv[0] = 'fpsgen'\n"
    again += "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", again, *command[3:]], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["skipped"] == 2
    assert found.stderr.split()[-1] == "False"


@pytest.mark.slow
def test_a_hundred_prompts_share_one_load_and_a_second_run_is_instant(tmp_path: Path, loads: Counter[str]) -> None:
    file = tmp_path / "shots.txt"
    file.write_text("".join(f"a cat surfing, take {number}\n" for number in range(100)), encoding="utf-8")
    assert many("--prompts", file, "-o", tmp_path / "out")["made"] == 100
    assert loads == ONCE
    command = [sys.executable, "-m", "fpsgen", "generate", "--prompts", str(file), *SHORT, "-o", str(tmp_path / "out")]
    subprocess.run(command, check=True, timeout=3)  # half a second on an idle machine


def test_a_video_that_was_stopped_before_it_told_how_it_was_made_does_so_with_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its state does not stay for ever. Its frames are there already, so nothing is computed again."""
    told = iter((KeyboardInterrupt, None))
    own = VideoWriter._tell

    def stopped(*given: Any) -> str | None:
        if fault := next(told, None):
            raise fault
        return own(*given)

    with monkeypatch.context() as once:
        once.setattr(VideoWriter, "_tell", stopped)
        assert invoke("a cat", "--seeds", "0-1", *SHORT, "-o", tmp_path).exit_code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cat-0.mp4", "a-cat-0.mp4.unfinished"]
    before = read(tmp_path / "a-cat-0.mp4")[1]
    with monkeypatch.context() as never:
        never.setattr(experts, "load", lambda *_: pytest.fail("steps were computed again"))
        assert many("a cat", "--seeds", "0", "-o", tmp_path)["skipped"] == 1
        assert many("a cat", "--seeds", "0", "-o", tmp_path, "--resume")["made"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a-cat-0.mp4"]
    assert metadata(tmp_path / "a-cat-0.mp4")["seed"] == 0
    assert np.array_equal(read(tmp_path / "a-cat-0.mp4")[1], before)
    assert many("a cat", "--seeds", "0-1", "-o", tmp_path, "--resume")["skipped"] == 1


def test_a_folder_that_was_made_for_nothing_goes_also_where_the_disk_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=8192))
    result = invoke("a cat", "--seeds", "0-1", *SHORT, "-o", f"{tmp_path}/new/")
    assert (result.exit_code, "may need" in result.stderr) == (2, True), result.stderr
    assert not list(tmp_path.iterdir())
