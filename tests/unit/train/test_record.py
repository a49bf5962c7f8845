"""What a run leaves: losses in few points, checks with their intervals, settings that are read back."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean

import pytest

from fpsgen.errors import UsageError
from fpsgen.train import file
from fpsgen.train.record import Check, LossPoint, sampled
from fpsgen.train.settings import TrainSettings


@pytest.mark.parametrize("count", [0, 1, 7, 20, 21, 199])
def test_a_long_run_is_sampled_to_means(count: int) -> None:
    points = [LossPoint(step, step * 1.0, 2.0 * step, 3.0) for step in range(1, count + 1)]
    found = sampled(points, most=20)
    assert len(found) <= 20
    assert found == points or count > 20
    assert not points or found[-1].step == count
    before = [0, *(point.step for point in found)]
    for begin, point in zip(before, found, strict=False):
        assert point.loss == pytest.approx(fmean(range(begin + 1, point.step + 1)))


def test_one_clip_has_no_interval() -> None:
    assert Check.of(3, [0.1], [30.0]) == Check(3, 0.1, None, 30.0, None, 30.0)
    two = Check.of(3, [0.1, 0.3], [30.0, 32.0])
    assert (two.error, two.psnr, two.psnr_worst) == (pytest.approx(0.2), 31.0, 30.0)
    assert two.psnr_ci95 == pytest.approx(12.706, abs=1e-3)  # Student's t of one degree of freedom, times 1


@pytest.mark.parametrize("settings", [TrainSettings(), TrainSettings(lora=8, lr=1e-7, recompute=True, decay="cosine")])
def test_settings_are_read_back_from_their_file(settings: TrainSettings, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(file.text(settings))
    assert TrainSettings().override(**file.read(path)).as_dict() == settings.as_dict()


@pytest.mark.parametrize("own", fields(TrainSettings), ids=lambda own: own.name)
def test_every_setting_refuses_another_type(own: object, tmp_path: Path) -> None:
    path, name = tmp_path / "settings.toml", own.name  # type: ignore[attr-defined]
    for value in ("[1]", "{}", "2020-01-01"):
        path.write_text(f"\n{name} = {value}\n")
        with pytest.raises(UsageError, match=rf"line 2: {name} must be "):
            file.read(path)


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("lr = 1\nflow = 2\n")
    assert TrainSettings().override(**file.read(tmp_path / "settings.toml")) == replace(TrainSettings(), lr=1, flow=2)
