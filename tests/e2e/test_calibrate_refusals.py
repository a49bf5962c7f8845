"""`fpsgen calibrate`: what it refuses before it begins, and what it cannot do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fpsgen.wan.transformer import WanTransformer
from tests.tools.calibration import Calibrator
from tests.tools.cli import told


def test_only_dense_meets_it(calibrator: Calibrator) -> None:
    said = calibrator.refused("--min-psnr", 99)
    assert "only BF16 meets --min-psnr 99" in said
    assert "use --preset bf16" in said
    assert not list(calibrator.directory.glob("*.toml"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--min-psnr", 30, "--max-error", 0.1), "--min-psnr 30 and --max-error 0.1 are two budgets"),
        (("--max-error", 0.1, "--target-cost", 0.1), "are two budgets"),
        (("--min-psnr", "nan"), "--min-psnr nan is out of range"),
        (("--min-psnr", -3), "--min-psnr -3 is out of range"),
        (("--min-psnr", 0), "--min-psnr 0 is out of range"),
        (("--min-psnr", "inf"), "--min-psnr inf is out of range"),
        (("--max-error", 0), "--max-error 0 is out of range"),
        (("--max-error", 1), "--max-error 1 is out of range"),
        (("--target-cost", "nan"), "--target-cost nan is out of range"),
        (("--target-cost", 1), "--target-cost 1 is out of range"),
        (("--target-cost", 0.01), "--target-cost 0.01: no schedule costs so little"),
        (("--seed", -1), "--seed -1: must be 0 to"),
        (("--res", "832x480"), "the pocket model renders only 96x64"),
        (("--frames", 4), "--frames 4: the number must be 4n + 1"),
        (("--clips", 3, "--checks", 2), "3 prompts to measure on and 2 to verify on are needed; there are 4"),
        (("-o", "my.txt"), "-o my.txt: a preset is a .toml file"),
        (("-o", "."), "-o .: a preset is a .toml file"),
        (("-o", ""), "a preset is a .toml file"),
        (("-o", "nowhere/my.toml"), "the folder nowhere does not exist hint: mkdir -p nowhere"),
        (("-o", "folder.toml"), "-o folder.toml is a folder"),
        (("-o", "x" * 300 + ".toml"), "cannot be written: File name too long"),
        (("-o", "theirs.toml"), "theirs.toml exists, and no calibration wrote it"),
        (("-o", "noise.toml"), "noise.toml exists, and no calibration wrote it"),
        (("--report", "my.pdf"), "my.pdf"),
        (("--report", "nowhere/my.html"), "nowhere"),
        (("--report", "my.html", "--no-report"), "--report and --no-report contradict each other"),
        (("--model", "no/such/model"), "no/such/model"),
        (("--choose", "everything"), "--choose everything: there is no such choice"),
        (("--choose", "attention,"), "--choose has an empty value"),
        (("--choose", "guidance", "--guidance", 1), "--guidance 1 leaves no guidance to choose"),
        (("--choose", "attention", "--target-cost", 0.1), "--target-cost 0.1: no schedule costs so little"),
        (("--device", "abacus"), "--device abacus: fpsgen runs on cpu and cuda"),
    ],
)
def test_refused_before_anything_loads(
    calibrator: Calibrator, tmp_path: Path, options: tuple[object, ...], told: str, loads: list[str]
) -> None:
    (tmp_path / "folder.toml").mkdir()
    theirs = 'format = 1\n[[phase]]\nsigma = [1.0, 0.0]\nwindow = [1, 1, 1]\nqk = "int8"\npv = "fp8"\n'
    (tmp_path / "theirs.toml").write_text(theirs)
    (tmp_path / "noise.toml").write_bytes(b"\xff\x00")
    assert told in " ".join(calibrator.refused(*options, report="--report" in options).split())
    assert not loads
    assert (tmp_path / "theirs.toml").read_text() == theirs
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot read the prompts in mine.txt: No such file or directory"),
        (b"", "1 prompt to measure on and 1 to verify on are needed; there are 0"),
        (b"# none\n\n  \n", "needed; there are 0"),
        (b"a cat\n", "needed; there are 1"),
        (b"a cat\n\xff\xfe\n", "mine.txt is not UTF-8 text"),
        (b"a cat\na dog\n a cat \n", "mine.txt has a prompt twice: 'a cat'"),
        (b"a\x1b[31m cat\na\x1b[31m cat\n", r"mine.txt has a prompt twice: 'a\x1b[31m cat'"),
        (b"a cat\n" + b"x" * 200_000 + b"\n", "mine.txt, line 2: the prompt has 200000 characters"),
    ],
)
def test_prompts_that_do_not_do(calibrator: Calibrator, content: bytes | None, told: str, loads: list[str]) -> None:
    if content is not None:
        Path("mine.txt").write_bytes(content)
    assert told in " ".join(calibrator.refused(prompts="mine.txt").split())
    assert "cannot read the prompts in folder: it is not a regular file" in calibrator.refused(
        prompts=_folder("folder")
    )
    assert not loads


def _folder(name: str) -> str:
    Path(name).mkdir()
    return name


def test_odd_prompts_are_told_by_number(calibrator: Calibrator, tmp_path: Path) -> None:
    """A pocket model leaves out words that it does not know; of which prompt, is said once each."""
    Path("mine.txt").write_bytes("\ufeffa cat\r\na purple dog\x07\x1b[2J é\r\n".encode())
    result = calibrator("--target-cost", 0.5, prompts="mine.txt")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "words of the prompt 2 left out: purple" in said
    assert "negative prompt" not in said


def test_dry_run_loads_nothing(calibrator: Calibrator, loads: list[str]) -> None:
    result = calibrator(
        "--dry-run", "--json", model="14b", res="720p", prompts=None, clips=None, checks=None, steps=None
    )
    told_ = told(result, "calibrate --dry-run")
    assert told_["bf16_clips"] <= 5
    assert told_["steps"] == 50
    assert sum(part["forwards"] for part in told_["parts"]) == 314 + 2 * 24 + 2 * (8 + 50)
    assert 1e9 < told_["cache_bytes"] < 3e9
    table = calibrator("--dry-run", model="1.3b", prompts=None, clips=None, checks=None, steps=None)
    assert table.exit_code == 0, table.output
    assert re.search(r"total\s+\d+", table.stdout)
    assert "on one H100, calculated from published figures" in table.stdout
    here = told(calibrator("--dry-run", "--json"))  # the pocket: hours on an H100 would tell nobody anything
    assert here["where"].startswith("on cpu of this machine")
    assert here["seconds"] == pytest.approx(sum(part["seconds"] for part in here["parts"]))
    assert 0 < here["seconds"] < 3600, "a clip takes it a second"
    assert re.search(r"^[\d.]+ minutes, .* clips", calibrator("--dry-run").stdout, re.M)
    total = re.findall(r"total +\d+ +([\d.]+) +([\d.]+)", table.stdout)
    assert total == re.findall(r"^([\d.]+) minutes, as long as ([\d.]+) clips", table.stdout, re.M)
    assert not loads
    assert not list(calibrator.directory.glob("*.toml"))
    assert not (calibrator.directory / "cache").exists()


def test_a_cache_that_cannot_be_written(
    calibrator: Calibrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    """Told before anything loads."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "file"))
    assert "cannot be written" in calibrator.refused(code=1)
    assert not loads


def test_wan_itself(calibrator: Calibrator, wan_folder: Path) -> None:
    """A model that is no pocket model, tiles larger than the video: rounding so few tokens costs more than it saves."""
    for res, frames in (("16x16", 1), ("96x64", 9)):
        said = calibrator.refused(model=wan_folder, res=res, frames=frames, choose="attention")
        assert "nothing that may be chosen costs less than BF16 here" in said


def test_weights_that_are_damaged(calibrator: Calibrator, monkeypatch: pytest.MonkeyPatch) -> None:
    real = WanTransformer.forward
    monkeypatch.setattr(WanTransformer, "forward", lambda *args: real(*args) * torch.nan)
    assert "the model gave values that are not finite" in calibrator.refused(code=1)
