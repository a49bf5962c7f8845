"""No kernel becomes slower by the model, and none has a hazard, a spill or serialised wgmmas, under both compilers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import slots
from fpsgen.errors import UsageError
from fpsgen.kernels import nvrtc, speed
from fpsgen.kernels.listing import KERNELS

pytestmark = pytest.mark.usefixtures("compiled_once")

RECORD = json.loads(slots.PLACE.read_text(encoding="utf-8"))
ROWS = {(one["kernel"], one["compiler"]): one for one in RECORD["rows"]}
GROWTH = 1.01  # what may grow: a compiler's patch release moves a few instructions


@pytest.mark.parametrize("by", slots.COMPILERS)
@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_grows(name: str, by: str) -> None:
    found, recorded = slots.row(name, by), ROWS[name, by]
    assert (found["hazards"], found["spilled_bytes"], found["c75"]) == (0, 0, 0)
    for what in ("slots", "cycles", "summary_cycles", "dram_bytes", "milliseconds"):
        if what in recorded:
            assert found[what] <= GROWTH * recorded[what], f"{what} of {name} grew: python -m benchmarks.slots"
    if "registers" in found and name.startswith("attention"):
        assert found["registers"]["consumer"] <= 240
        assert found["registers"]["producer"] <= 24


def test_the_record_is_of_all_kernels_and_of_two_compilers() -> None:
    assert set(ROWS) == {(name, by) for name in KERNELS for by in slots.COMPILERS}
    assert {one["nvrtc"] for one in RECORD["rows"] if one["compiler"] == slots.OLD} == {slots.OLD}
    assert {one["nvrtc"] for one in RECORD["rows"] if one["compiler"] == "newest"} != {slots.OLD}
    assert RECORD["layers"] == slots.layers(RECORD["rows"])
    assert RECORD["choices"] == slots.choices(RECORD["rows"])
    assert max(one["share"] for one in RECORD["choices"]) <= 0.08
    assert RECORD["before"]["layers"] == slots.layers(RECORD["before"]["rows"])


def test_the_old_compiler_s_code_is_another() -> None:
    ours, theirs = (slots.row("attention-fp8-fp16", by) for by in slots.COMPILERS)
    assert theirs["nvrtc"] == slots.OLD
    assert ours["nvrtc"] != slots.OLD
    assert ours["slots"] != theirs["slots"]


def test_without_the_old_compiler_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(slots.OLD_FOLDER, str(tmp_path))
    with pytest.raises(UsageError, match="is not in") as error:
        slots.compiler(slots.OLD)
    assert error.value.hint == slots.INSTALL_OLD
    monkeypatch.setattr(sys, "argv", ["slots"])
    with pytest.raises(SystemExit) as ended:
        slots.main()
    assert ended.value.code == 2
    assert slots.INSTALL_OLD in capsys.readouterr().err


def test_another_compiler_is_not_taken_for_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(slots.OLD_FOLDER, str(nvrtc.wheel_folder("nvidia-cuda-nvrtc")))
    with pytest.raises(UsageError, match=", but "):
        slots.compiler(slots.OLD)


def test_a_folder_without_a_compiler_is_refused_and_the_usual_one_stays(tmp_path: Path) -> None:
    before = nvrtc.version()
    with pytest.raises(nvrtc.NoCompilerError), nvrtc.using(tmp_path):
        pass
    (tmp_path / "libnvrtc.so.13").write_text("no library")
    with pytest.raises(nvrtc.NoCompilerError), nvrtc.using(tmp_path):
        pass
    with slots.compiler(slots.OLD):
        assert "{}.{}".format(*nvrtc.version()) == slots.OLD
    assert nvrtc.version() == before


def test_the_calibration_is_what_the_model_gives() -> None:
    """The figure that stands beside every predicted one, within the uncertainty that it states of published ones."""
    assert RECORD["before"]["calibration_tflops"] == speed.CALIBRATION  # of the kernel that was most like that one
    found = slots.calibration()
    assert found == pytest.approx(RECORD["calibration_tflops"], rel=0.01)
    low, high = speed.PUBLISHED
    for tflops in (found, speed.CALIBRATION):
        assert low * (1 - speed.UNCERTAINTY) < tflops < high * (1 + speed.UNCERTAINTY)
    assert str(speed.CALIBRATION) in speed.caveat()
