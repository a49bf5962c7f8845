"""`fpsgen generate --resume`: a run that was stopped, at whatever moment, ends in the video of one that was not."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fpsgen import experts as turns
from fpsgen import files, sampling, unfinished
from fpsgen.cli import app, signals
from fpsgen.sampling import Denoiser
from fpsgen.unfinished import Unfinished
from fpsgen.video import VideoWriter
from tests.tools.cli import invoke, told
from tests.tools.disk import fill_disk
from tests.tools.stopped import killed, killed_in, stopped, with_hash
from tests.tools.videos import metadata, read

CPU = torch.device("cpu")
PROMPT = "a cat surfing"
SMALL = ("--res", "96x64", "--frames", 5, "--steps", 4)


def words(result: Any) -> str:
    return " ".join(result.stderr.split())


def of(folder: Path) -> tuple[object, ...]:
    return (PROMPT, "--model", folder, *SMALL)


def generate(folder: Path, *args: object) -> Any:
    return invoke(*of(folder), *args)


def frames(path: Path) -> np.ndarray:
    return read(path)[1]


REUSING = """
format = 1
[[phase]]
sigma = [1.0, 0.9]
[[phase]]
sigma = [0.9, 0.8]
guidance = "reuse"
[[phase]]
sigma = [0.8, 0.0]
compute = "reuse"
"""


@pytest.mark.parametrize(
    ("step", "more"),
    [
        (1, ()),
        (4, ()),
        (3, ("--solver", "dpm++")),
        (2, ("--solver", "turbowan")),
        (1, ("--preset", "reusing.toml")),
        (2, ("--preset", "reusing.toml")),
        (3, ("--preset", "reusing.toml")),
    ],
)
def test_the_video_is_that_of_a_run_that_was_not_stopped(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reusing.toml").write_text(REUSING)
    whole = generate(wan_folder, "--seed", 7, *more, "-o", "whole.mp4")
    assert whole.exit_code == 0, whole.output
    stopped(step, *of(wan_folder), "--seed", 7, *more)
    assert sorted(path.name for path in tmp_path.glob("a-cat*")) == ["a-cat-surfing-7.mp4.unfinished"]
    known = told(CliRunner().invoke(app, ["info", "a-cat-surfing-7.mp4.unfinished", "--json"]))
    assert (known["steps_done"], known["steps"], known["seed"], known["prompt"]) == (step, 4, 7, "a cat surfing")
    computed: list[int] = []
    real = Denoiser.velocity
    monkeypatch.setattr(Denoiser, "velocity", lambda own, x, n, *rest: computed.append(n) or real(own, x, n, *rest))
    result = generate(wan_folder, *more, "--resume", "--json")  # the seed is found
    report = told(result, "generate")
    assert computed == list(range(step, 4))
    assert report["resumed"] == [step]
    assert len(report["timings"]["steps"]) == 4
    assert report["output"] == "a-cat-surfing-7.mp4"
    assert (frames(tmp_path / "a-cat-surfing-7.mp4") == frames(tmp_path / "whole.mp4")).all()
    assert not list(tmp_path.glob("*.unfinished"))
    assert f"goes on after step {step} of 4" in words(result)


def test_a_run_that_is_stopped_again_and_again(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generate(wan_folder, "--seed", 7, "-o", "whole.mp4")
    for step, resume in ((1, ()), (2, ("--resume",)), (4, ("--resume",))):
        stopped(step, *of(wan_folder), "--seed", 7, "-o", "a.mp4", *resume)
    result = generate(wan_folder, "-o", "a.mp4", "--resume")
    assert result.exit_code == 0
    assert re.search(r"denoise .* 4 steps, .* s each; 4 of them in an earlier run", result.output)
    assert metadata("a.mp4")["resumed"] == [1, 2, 4]
    assert (frames(Path("a.mp4")) == frames(Path("whole.mp4"))).all()


@pytest.mark.parametrize("step", [1, 3])
def test_of_two_experts_only_what_has_steps_left_is_loaded(
    experts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = experts["diffusers"]
    args = ("--res", "48x32", "--shift", 3, "--sigmas", "diffusers")
    result = generate(folder, "--seed", 7, *args, "-o", "whole.mp4")
    assert result.exit_code == 0, result.output
    made = metadata("whole.mp4")["experts"]
    stopped(step, *of(folder), "--seed", 7, *args, "-o", "a.mp4")
    loaded: list[str] = []
    real = turns.load
    monkeypatch.setattr(turns, "load", lambda turn, *rest: loaded.append(turn.part) or real(turn, *rest))
    assert generate(folder, *args, "-o", "a.mp4", "--resume").exit_code == 0
    high = ["transformer"] if step < made["high"] else []
    assert loaded == high + (["transformer_2"] if step < 4 else [])
    assert (frames(Path("a.mp4")) == frames(Path("whole.mp4"))).all()


@pytest.fixture(scope="module")
def kept(wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What is kept after step 2 of 4."""
    output = tmp_path_factory.mktemp("kept") / "a.mp4"
    stopped(2, *of(wan_folder), "--seed", 7, "-o", output)
    return unfinished.place(output).read_bytes()


def test_other_settings_are_told_and_nothing_is_lost(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bytes, loads: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("a.mp4.unfinished")
    path.write_bytes(kept)
    Path("reusing.toml").write_text(REUSING)
    for args, says in (
        (("--seed", 8), "--seed 7, not 8"),
        (("--guidance", 2, "--shift", 4), "--guidance 6.0, not 2.0; --shift 8.0, not 4.0"),
        (("--negative", "red dog"), 'not "red dog"'),
        (("--preset", "reusing.toml"), "--preset bf16, not reusing.toml"),
        (("--dtype", "bf16"), "--dtype float32, not bfloat16"),
    ):
        result = generate(wan_folder, "-o", "a.mp4", "--resume", *args)
        assert result.exit_code == 2, result.output
        assert "a.mp4.unfinished is of other settings" in words(result)
        assert says in words(result)
    assert path.read_bytes() == kept
    assert not Path("a.mp4").exists()
    path.rename("a-cat-surfing-7.mp4.unfinished")
    result = generate(wan_folder, "--resume", "--steps", 5)
    assert result.exit_code == 2
    assert "--steps 4, not 5" in words(result)


def test_another_machine_is_a_note(wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 64)
        stopped(3, *of(wan_folder), "--seed", 7, "-o", "a.mp4")
    result = generate(wan_folder, "-o", "a.mp4", "--resume")
    assert result.exit_code == 0
    assert "the last bits may differ" in words(result)
    assert "threads 64, not " in words(result)


@pytest.mark.parametrize("before", [False, True])
def test_branches_are_computed_as_before_where_memory_lets_them(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """One batch of both has other last bits than one after the other."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(sampling, "both_fit", lambda *_: before)
        stopped(2, *of(wan_folder), "--seed", 7, "-o", "a.mp4")
    together = []
    real = Unfinished.keep
    monkeypatch.setattr(
        Unfinished, "keep", lambda own, state, how, *rest: together.append(how) or real(own, state, how, *rest)
    )
    monkeypatch.setattr(sampling, "both_fit", lambda *_: not before)
    result = generate(wan_folder, "-o", "a.mp4", "--resume")
    assert together == [False, False]
    assert ("in one batch before, for which memory is too small now" in words(result)) is before


def test_complete_and_nothing_kept_are_said(wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = generate(wan_folder, "--seed", 7, "--resume")
    assert result.exit_code == 0
    assert "the video begins anew" in words(result)
    made = Path("a-cat-surfing-7.mp4").stat()
    for args in (("--seed", 7), ("-o", "a-cat-surfing-7.mp4", "--seed", 7), ("-o", "a-cat-surfing-7.mp4")):
        result = generate(wan_folder, "--resume", "--json", *args)
        report = told(result, "generate")
        assert "a-cat-surfing-7.mp4 is complete already" in words(result)
        assert report["seed"] == 7
    assert "last.png is not written" in words(
        generate(wan_folder, "--resume", "--seed", 7, "--last-frame-to", "last.png")
    )
    result = generate(wan_folder, "--resume", "-o", "a-cat-surfing-7.mp4", "--seed", 8)
    assert result.exit_code == 2
    assert "is complete, and of other settings: --seed 7, not 8" in words(result)
    after = Path("a-cat-surfing-7.mp4").stat()
    assert (after.st_ino, after.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


def test_without_the_option_a_note_says_how_to_go_on(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stopped(2, *of(wan_folder), "--seed", 7)
    result = generate(wan_folder, "--seed", 7)
    assert "a-cat-surfing-7.mp4.unfinished keeps an unfinished run of this video: --resume goes on" in words(result)
    assert Path("a-cat-surfing-7.mp4.unfinished").exists()  # the other one has another name
    assert Path("a-cat-surfing-7-2.mp4").exists()
    stopped(2, *of(wan_folder), "--seed", 9, "-o", "a.mp4")
    result = generate(wan_folder, "--seed", 8, "-o", "a.mp4")
    assert "keeps an unfinished run of other settings; this run begins anew, and replaces it" in words(result)
    assert not Path("a.mp4.unfinished").exists()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "one bit": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "another file": lambda data: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_told_with_what_to_do(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bytes, loads: list[str], damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("a.mp4.unfinished")
    path.write_bytes(DAMAGES[damage](kept))
    result = generate(wan_folder, "-o", "a.mp4", "--resume")
    assert result.exit_code == 2, result.output
    assert "a.mp4.unfinished cannot be gone on from: it is damaged" in words(result)
    assert "rm a.mp4.unfinished" in words(result)
    assert path.exists()


def test_a_run_that_is_stopped_while_its_video_gets_its_comment_does_not_make_a_second_one(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    killed_in(VideoWriter, "_tell", killed, *of(wan_folder), "--seed", 7)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a-cat-surfing-7.mp4", "a-cat-surfing-7.mp4.unfinished"]
    assert generate(wan_folder, "--resume").exit_code == 0
    assert [each.name for each in tmp_path.iterdir()] == ["a-cat-surfing-7.mp4"]
    assert metadata("a-cat-surfing-7.mp4")["resumed"] == [4]


def test_a_complete_folder_of_frames_is_said_to_be_complete(wan_folder: Path, tmp_path: Path) -> None:
    frames = f"{tmp_path}/frames/"
    assert generate(wan_folder, "--seed", 7, "-o", frames).exit_code == 0
    result = generate(wan_folder, "--seed", 7, "-o", frames, "--resume")
    assert result.exit_code == 0, result.output
    assert "is complete already" in words(result)
    others = generate(wan_folder, "--seed", 8, "-o", frames, "--resume")
    assert others.exit_code == 2
    assert "of other settings" in words(others)
    (tmp_path / "frames" / "video.json").unlink()
    assert generate(wan_folder, "--seed", 7, "-o", frames, "--resume").exit_code == 2  # files of nobody knows whom


def test_a_run_that_was_stopped_when_all_was_done_is_complete(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    killed_in(Unfinished, "remove", killed, *of(wan_folder), "--seed", 7)
    result = generate(wan_folder, "--resume")
    assert "is complete already" in words(result)
    assert [each.name for each in tmp_path.iterdir()] == ["a-cat-surfing-7.mp4"]


def test_a_disk_that_is_full_is_told_before_anything_loads(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
    result = generate(wan_folder, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 2
    assert "has 10 kB left, and this run may need" in words(result)
    assert list(tmp_path.iterdir()) == []


def test_where_the_state_cannot_be_written_the_video_is_made_all_the_same(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, files.UNFINISHED)
    result = generate(wan_folder, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 0
    assert words(result).count("a.mp4.unfinished cannot be written: No space left on device") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]


def test_values_that_are_not_finite_are_told_with_step_layer_and_phase_and_the_step_before_is_kept(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Denoiser.velocity

    def broken(own: Denoiser, latents: torch.Tensor, step: int, *rest: Any) -> torch.Tensor:
        if step == 2:
            own.transformer.blocks[1].ffn[2].bias.data[0] = torch.nan
        return real(own, latents, step, *rest)

    monkeypatch.setattr(Denoiser, "velocity", broken)
    (tmp_path / "reusing.toml").write_text(REUSING)
    args = ("-o", tmp_path / "out" / "a.mp4", "--seed", 7, "--preset", tmp_path / "reusing.toml")
    (tmp_path / "out").mkdir()
    result = generate(wan_folder, *args)
    assert result.exit_code == 1
    told = words(result)
    assert "not finite at step 3 of 4, first in the FFN of layer 1 (noise level 0." in told
    assert "phase 2 of 3 of preset reusing.toml)" in told
    assert "the steps that were finished are kept" in told
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["a.mp4.unfinished"]
    state = unfinished.read(tmp_path / "out" / "a.mp4.unfinished")
    assert state is not None
    assert state.done == 2


def test_the_first_signal_lets_the_step_end_and_says_how_to_go_on(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    real, before = Denoiser.velocity, signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["fpsgen", "generate", "-", "--steps", "4"])

    def interrupted(own: Denoiser, latents: torch.Tensor, step: int, *rest: Any) -> torch.Tensor:
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(own, latents, step, *rest)

    monkeypatch.setattr(Denoiser, "velocity", interrupted)
    signals.listen()
    try:
        result = generate(wan_folder)
    finally:
        signals._came.clear()
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert result.exit_code == 143
    (path,) = tmp_path.iterdir()
    state = unfinished.read(path)
    assert state is not None
    assert state.done == 2
    assert "the run stops after this step, which is kept" in words(result)
    assert f"fpsgen generate '{PROMPT}' --steps 4 --seed {state.about['seed']} --resume" in words(result)


def test_other_weights_are_told(wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    own = re.search(rb'"weights\W+([0-9a-f]{16})', kept)
    assert own is not None
    data = with_hash(kept[:-32].replace(own[1], b"0" * 16))
    Path("a.mp4.unfinished").write_bytes(data)
    result = generate(wan_folder, "-o", "a.mp4", "--resume")
    assert result.exit_code == 2, result.output
    assert f"is of other weights: {'0' * 16}, and the model has {own[1].decode()} now" in words(result)
    assert Path("a.mp4.unfinished").read_bytes() == data
