"""Training in one process: it learns, it resumes exactly, it guards itself, it stops when asked to."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fpsgen.errors import RenderError, Stopped, UsageError
from fpsgen.events import Event, TrainingStep
from fpsgen.presets import BF16
from fpsgen.ranks import Ranks
from fpsgen.target import Target
from fpsgen.train import loop
from fpsgen.train.loop import Guard, Training, rate, train
from fpsgen.train.objective import VelocityModel
from fpsgen.train.settings import TrainSettings
from tests.tools.training import TinyData, job, log, render


def quiet(event: Event) -> None:
    pass


class Died(Exception):
    pass


def dies(after: int) -> Callable[[Event], None]:
    """A watcher that ends the run as a kill between two steps would, behind the checkpoint of a step."""

    def watch(event: Event) -> None:
        if isinstance(event, TrainingStep) and event.done == after:
            raise Died

    return watch


def result(run: Training) -> dict[str, torch.Tensor]:
    return dict(run.result())


@pytest.mark.parametrize("own", [{}, {"lora": 4}, {"optimizer": "muon", "from_scratch": True, "distil": 0.0}])
def test_the_loss_falls(wan_folder: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    settings = {"steps": 24, "lr": 3e-3, "warm_up": 0, "caption_drop": 0.0, "levels": "logit-normal", **own}
    train(job(wan_folder, tmp_path, data=TinyData(1), settings=settings), quiet)
    losses = [line["flow"] for line in log(tmp_path)]
    assert len(losses) == 24
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


@pytest.mark.parametrize("own", [{}, {"lora": 2}, {"optimizer": "muon"}])
def test_a_killed_run_goes_on_bit_for_bit(wan_folder: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    settings = {"steps": 6, "lr": 1e-3, "save_every": 2, **own}
    whole = train(job(wan_folder, tmp_path / "whole", settings=settings), quiet)
    with pytest.raises(Died):  # after step 5, of which the log has a line and no checkpoint knows
        train(job(wan_folder, tmp_path / "killed", settings=settings), dies(5))
    assert len(log(tmp_path / "killed")) == 5
    killed = train(job(wan_folder, tmp_path / "killed", settings=settings), quiet)
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    one, other = result(whole), result(killed)
    assert one.keys() == other.keys()
    assert all(own.equal(other[name]) for name, own in one.items())
    assert all(own.equal(killed.named[name]) for name, own in whole.named.items())


def test_the_result_is_the_average_and_the_model_keeps_its_own(wan_folder: Path, tmp_path: Path) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def check(model: VelocityModel, step: int) -> float:
        seen[step] = {name: p.detach().clone() for name, p in model.transformer.named_parameters()}
        return 0.0

    settings = {"steps": 2, "lr": 1e-2, "check_every": 2, "warm_up": 0}
    run = train(job(wan_folder, tmp_path, settings=settings, check=check), quiet)
    assert all(own.equal(seen[2][name]) for name, own in result(run).items())
    assert not all(own.equal(seen[2][name]) for name, own in run.named.items())
    plain = train(job(wan_folder, tmp_path / "plain", settings={**settings, "ema": 0.0}), quiet)
    assert all(own.equal(plain.named[name]) for name, own in result(plain).items())
    assert all(own.equal(plain.named[name]) for name, own in run.named.items())  # averaging changes nothing else


def test_the_teacher_is_the_model_as_it_was(wan_folder: Path, tmp_path: Path) -> None:
    """Through dense attention nothing is to be learned from it, with all weights as with adapters."""
    for number, own in enumerate(({}, {"lora": 2})):
        settings = {"steps": 1, "flow": 0.0, **own}
        train(job(wan_folder, tmp_path / str(number), preset=BF16, settings=settings), quiet)
        assert log(tmp_path / str(number))[0]["distil"] < 1e-10  # of rounding


def test_a_model_trained_in_bf16_renders_in_bf16(wan_folder: Path, tmp_path: Path) -> None:
    """The frozen one of an adapter has its weights in bfloat16, the other in float32 alone."""
    for number, own in enumerate(({}, {"lora": 2})):
        target = Target(torch.device("cpu"), torch.bfloat16, torch.float32)
        settings = {"steps": 1, "check_every": 1, **own}
        run = train(job(wan_folder, tmp_path / str(number), target, settings=settings, check=render), quiet)
        assert run.best is not None
        assert math.isfinite(run.best.error)


def test_data_s_velocities_need_no_teacher(wan_folder: Path, tmp_path: Path) -> None:
    run = train(job(wan_folder, tmp_path, data=TinyData(taught=2), settings={"steps": 1}), quiet)
    assert run._teacher is None
    assert log(tmp_path)[0]["distil"] > 0.1  # they are noise


# --- the guard ---------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Training(job(wan_folder, tmp_path), quiet, Ranks())
    before = {name: p.detach().clone() for name, p in run.named.items()}
    example = run.objective.example

    def broken(step: int, place: int, sample: int) -> Any:
        own = example(step, place, sample)
        return own._replace(latents=own.latents * math.nan) if place == 1 else own

    monkeypatch.setattr(run.objective, "example", broken)
    assert run.learn()["skipped"]
    assert all(own.equal(before[name]) for name, own in run.named.items())
    monkeypatch.undo()
    assert not run.learn()["skipped"]
    assert run.guard.skipped == 1


def test_spikes_are_skipped_and_counted_and_too_many_end_the_run() -> None:
    guard = Guard()
    assert not any(guard.refuses(loss, 1.0, 8, 10) for loss in [1.0] * 12 + [9.9])
    assert guard.refuses(10.1, 1.0, 8, 10)
    assert guard.refuses(1.0, math.inf, 8, 10)
    assert (guard.skipped, guard.in_row) == (2, 2)
    assert not guard.refuses(1.0, 1.0, 8, 10)
    assert guard.in_row == 0
    for _ in range(20):
        assert guard.refuses(math.nan, 1.0, 8, 10)
    with pytest.raises(RenderError):
        guard.refuses(math.nan, 1.0, 8, 10)


def test_a_new_stage_of_annealing_may_have_any_loss() -> None:
    guard = Guard()
    assert not any(guard.refuses(1e-12, 1.0, 0, 10) for _ in range(20))
    assert not guard.refuses(1e-6, 1.0, 0, 10)  # rounding is no spike
    assert not guard.refuses(1.0, 1.0, 1, 10)


def test_the_learning_rate_rises_holds_and_falls() -> None:
    settings = TrainSettings(steps=100, warm_up=10, hold=0.5, floor=0.1, decay="cosine")
    assert [rate(settings, step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 1])
    assert rate(settings, 75) == pytest.approx(0.55)
    assert rate(settings, 100) == pytest.approx(0.1)
    assert rate(replace(settings, decay="constant"), 99) == 1
    assert rate(replace(settings, warm_up=0, decay="constant"), 0) == 1


# --- checkpoints -------------------------------------------------------------------------------------


def kept(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def test_the_last_checkpoints_and_the_best_are_kept(wan_folder: Path, tmp_path: Path) -> None:
    def check(model: VelocityModel, step: int) -> float:
        return abs(step - 2)

    settings = {"steps": 7, "save_every": 1, "keep": 2, "check_every": 1}
    run = train(job(wan_folder, tmp_path, settings=settings, check=check), quiet)
    assert kept(tmp_path) == ["step-2", "step-6", "step-7"]
    assert run.best is not None
    assert run.best.step == 2


def test_what_a_kill_left_of_a_checkpoint_is_none(wan_folder: Path, tmp_path: Path) -> None:
    settings = {"steps": 2, "save_every": 1}
    train(job(wan_folder, tmp_path, settings=settings), quiet)
    hidden = (tmp_path / "checkpoints" / "step-2").rename(tmp_path / "checkpoints" / ".step-2")
    train(job(wan_folder, tmp_path, settings=settings), quiet)
    assert kept(tmp_path) == ["step-1", "step-2"]
    assert not hidden.exists()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"settings": {"lr": 1e-3}}, "lr"),
        ({"settings": {"seed": 1}}, "seed"),
        ({"settings": {"steps": 3, "decay": "cosine"}}, "decay"),
        ({"data": TinyData(seed=1)}, "data"),
        ({"preset": BF16}, "preset"),
    ],
)
def test_a_run_does_not_go_on_as_another(wan_folder: Path, tmp_path: Path, given: dict[str, Any], named: str) -> None:
    train(job(wan_folder, tmp_path, settings={"steps": 1}), quiet)
    with pytest.raises(UsageError, match=named):
        train(job(wan_folder, tmp_path, **{"settings": {"steps": 2}, **given}), quiet)


def test_a_run_may_become_longer_and_save_more_often(wan_folder: Path, tmp_path: Path) -> None:
    train(job(wan_folder, tmp_path, settings={"steps": 1}), quiet)
    run = train(job(wan_folder, tmp_path, settings={"steps": 2, "save_every": 1, "micro": 2}), quiet)
    assert (run.step, len(log(tmp_path))) == (2, 2)


@pytest.mark.parametrize("damage", ["state.json", "0.safetensors"])
def test_a_damaged_checkpoint_is_named(wan_folder: Path, tmp_path: Path, damage: str) -> None:
    train(job(wan_folder, tmp_path, settings={"steps": 1}), quiet)
    (tmp_path / "checkpoints" / "step-1" / damage).write_bytes(b"{}")
    with pytest.raises(UsageError, match="step-1"):
        train(job(wan_folder, tmp_path, settings={"steps": 2}), quiet)


def test_tensors_of_another_checkpoint_are_refused(wan_folder: Path, tmp_path: Path) -> None:
    train(job(wan_folder, tmp_path, settings={"steps": 1}), quiet)
    path = tmp_path / "checkpoints" / "step-1" / "0.safetensors"
    written = load_file(path)
    name = min(written)
    for other in ({name: written[name].half()}, {name: torch.zeros(3)}, {"weights/more": torch.zeros(3)}):
        save_file(written | other, path)
        with pytest.raises(UsageError, match="step-1"):
            train(job(wan_folder, tmp_path, settings={"steps": 2}), quiet)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_among_tensors_keeps_nobody_waiting(wan_folder: Path, tmp_path: Path) -> None:
    train(job(wan_folder, tmp_path, settings={"steps": 1}), quiet)
    path = tmp_path / "checkpoints" / "step-1" / "0.safetensors"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="not a regular file"):
        train(job(wan_folder, tmp_path, settings={"steps": 2}), quiet)


def test_a_checkpoint_that_has_lost_its_state_is_made_again(wan_folder: Path, tmp_path: Path) -> None:
    settings = {"steps": 2, "save_every": 1}
    train(job(wan_folder, tmp_path, settings=settings), quiet)
    (tmp_path / "checkpoints" / "step-2" / "state.json").unlink()
    assert train(job(wan_folder, tmp_path, settings=settings), quiet).step == 2
    assert kept(tmp_path) == ["step-1", "step-2"]


def test_a_full_disk_leaves_what_was_there(wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    settings = {"steps": 2, "save_every": 1}
    train(job(wan_folder, tmp_path, settings={**settings, "steps": 1}), quiet)
    monkeypatch.setattr("fpsgen.train.state.save_file", full)
    with pytest.raises(UsageError, match="No space left"):
        train(job(wan_folder, tmp_path, settings=settings), quiet)
    assert kept(tmp_path) == ["step-1"]


# --- signals -----------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_step_saves_and_goes_on_bit_for_bit(wan_folder: Path, tmp_path: Path) -> None:
    def watch(event: Event) -> None:
        if isinstance(event, TrainingStep) and event.done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    settings = {"steps": 4, "lr": 1e-3}
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped):
        train(job(wan_folder, tmp_path / "stopped", settings=settings), watch)
    assert signal.getsignal(signal.SIGINT) == before
    assert kept(tmp_path / "stopped") == ["step-2"]
    train(job(wan_folder, tmp_path / "stopped", settings=settings), quiet)
    train(job(wan_folder, tmp_path / "whole", settings=settings), quiet)
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")


def test_ctrl_c_does_not_wait_for_a_rendering(wan_folder: Path, tmp_path: Path) -> None:
    def check(model: VelocityModel, step: int) -> float:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("it was waited for")
        return 1 / step

    settings = {"steps": 3, "lr": 1e-3, "check_every": 1}
    with pytest.raises(Stopped):
        train(job(wan_folder, tmp_path / "stopped", settings=settings, check=check), quiet)
    train(job(wan_folder, tmp_path / "stopped", settings=settings), quiet)  # from step 2, without averaged weights
    train(job(wan_folder, tmp_path / "whole", settings=settings), quiet)
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")


def test_the_third_signal_does_not_wait() -> None:
    with loop._kept_waiting() as late:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert len(late.came) == 3


def test_the_log_is_json_whatever_a_loss_is(wan_folder: Path, tmp_path: Path) -> None:
    def broken(number: int) -> Any:
        return TinyData().sample(number)._replace(latents=torch.full((16, 3, 12, 20), math.nan))

    class Broken(TinyData):
        sample = staticmethod(broken)  # type: ignore[assignment]

    train(job(wan_folder, tmp_path, data=Broken(), settings={"steps": 1}), quiet)
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["loss"], line["skipped"]) == (None, True)
