"""`fpsgen generate --dry-run`: what a video would take, against arithmetic written out here; nothing is made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fpsgen import forecast
from fpsgen.timing import STAGES
from tests.tools.cli import invoke, told
from tests.tools.stopped import stopped

DRY = "a cat", "--dry-run", "--device", "cpu"
# Wan2.1 14B at 1280x720 and 81 frames: 21 x 45 x 80 tokens of 5120 channels in 40 layers; an FFN of 13824.
TOKENS = 21 * 45 * 80
DENSE = 40 * 4 * 5120 * TOKENS**2
LINEAR = 40 * 2 * TOKENS * (4 * 5120**2 + 2 * 5120**2 + 2 * 5120 * 13824)


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def test_a_model_that_is_absent_in_dense_attention(empty: Path) -> None:
    found = told(invoke(*DRY, "--model", "14b", "--res", "720p", "--steps", 10, "--json"))
    assert (found["videos"], found["steps"], found["tokens"], found["density"]) == (1, 10, TOKENS, 1)
    assert found["attention_flops"] == pytest.approx(10 * 2 * DENSE)  # two guidance branches
    assert found["linear_flops"] == pytest.approx(10 * 2 * LINEAR)
    assert "GB" in found["download"]
    assert found["peak_memory_bytes"] == max(found["memory_bytes"].values())
    assert found["denoise_seconds_modelled"] is None  # of a CPU no time is known
    assert list(empty.iterdir()) == []


def test_a_preset_saves_its_share_and_guidance_half(empty: Path) -> None:
    given = "--model", "14b", "--res", "720p", "--steps", 10, "--json"
    dense, sparse = (told(invoke(*DRY, *given, "--preset", name)) for name in ("bf16", "fast"))
    assert sparse["attention_flops"] / dense["attention_flops"] == pytest.approx(sparse["density"], rel=1e-6)
    alone = told(invoke(*DRY, *given, "--preset", "bf16", "--guidance", 1))
    assert alone["linear_flops"] == pytest.approx(dense["linear_flops"] / 2)


def test_several_videos_and_gpus_start_nothing_and_make_no_folder(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    given = "--model", "14b", "--res", "480p", "--seeds", "0-2", "-o", "cats/", "--gpus", 8
    found = told(invoke(*DRY, *given, "--json"))
    assert (found["videos"], found["steps"]) == (3, 150)
    assert 4 < found["gpus"]["speedup"] < 8
    assert found["gpus"]["bytes_per_step"] > 1e9
    alone = told(invoke(*DRY, *given[:-2], "--json"))
    assert (
        found["offload"]["needed_bytes"] < alone["offload"]["needed_bytes"]
    )  # of four, each has a quarter of the tokens
    table = invoke(*DRY, *given).stdout
    for words in ("3 of 832x480, 81 frames", "PFLOP", "about", "by a model", "H100s", "no time is known"):
        assert words in table
    assert list(empty.iterdir()) == []
    refused = invoke(*DRY, *given[:-1], 7)
    assert refused.exit_code == 2
    assert "7" in refused.stderr


def test_time_is_the_cost_model_s_where_that_knows_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "is_modelled", lambda _: True)
    found = told(invoke(*DRY, "--model", "14b", "--res", "720p", "--steps", 10, "--json"))
    # 470 TFLOPS in dense BF16 attention, 80 % of 989 in linear layers; cross-attention's keys are of the text.
    assert found["denoise_seconds_modelled"] == pytest.approx(20 * (DENSE / 470e12 + LINEAR / (0.8 * 989e12)), rel=0.01)


def test_what_is_wrong_stays_wrong(empty: Path) -> None:
    for wrong in (
        ("--frames", 6),
        ("--model", "15b"),
        ("--model", "1.3b-vsa"),
        ("--preset", "nothing"),
        ("-o", "a.txt"),
        ("--gpus", 0),
    ):
        result = invoke(*DRY, *wrong)
        assert result.exit_code == 2, wrong
    assert list(empty.iterdir()) == []


def test_the_pocket(empty: Path) -> None:
    table = invoke(*DRY, "--model", "pocket").stdout
    for words in ("160x96, 25 frames", "420 tokens", "nothing", "the transformer stays in memory"):
        assert words in table
    assert list(empty.iterdir()) == []


def test_time_is_that_of_the_last_video_here(empty: Path) -> None:
    pocket = "--model", "pocket", "--preset", "bf16", "--frames", 5, "--device", "cpu", "--json"
    assert told(invoke(*DRY, *pocket))["seconds_expected"] is None
    made = told(invoke("a cat", *pocket, "--steps", 2, "-o", "a.mp4"))["timings"]
    same = told(invoke(*DRY, *pocket, "--steps", 2))["seconds_expected"]
    assert same.keys() == set(STAGES) - {"compile"}
    for stage, seconds in same.items():
        measured = 2 * made["steps"][1] if stage == "denoise" else made[stage]  # the first one begins cold
        assert seconds == pytest.approx(measured, abs=1e-3), stage  # JSON has milliseconds
    more = told(invoke(*DRY, *pocket, "--steps", 4, "--seeds", "0-2", "-o", "cats/"))["seconds_expected"]
    assert more["denoise"] == pytest.approx(6 * same["denoise"])
    assert more["load"] == same["load"]
    for other in (("--preset", "quality"), ("--dtype", "bf16")):  # whose speed nobody has seen
        assert told(invoke(*DRY, *pocket, *other))["seconds_expected"] is None
    (written,) = (empty.parent / "cache" / "pace").iterdir()
    for damaged in ("", "[]", '{"load": 1}', written.read_text().replace("0.", "NaN, 0.", 1), "\0"):
        written.write_text(damaged)
        assert told(invoke(*DRY, *pocket))["seconds_expected"] is None


def test_a_resumed_video_says_nothing_of_time(empty: Path) -> None:
    given = "a cat", "--model", "pocket", "--frames", 5, "--steps", 2, "--seed", 1, "-o", "a.mp4"
    stopped(1, *given)
    assert invoke(*given, "--resume").exit_code == 0
    assert not (empty.parent / "cache" / "pace").exists()


def test_what_is_there_already_is_counted(empty: Path) -> None:
    given = "--model", "pocket", "--frames", 5, "--steps", 1, "-o", "cats"
    assert invoke("a cat", *given, "--seeds", "0-1", "--device", "cpu").exit_code == 0
    found = told(invoke(*DRY, *given, "--seeds", "0-3", "--json"))
    assert (found["videos"], found["skipped"]) == (2, 2)
    assert "2 more are there already" in invoke(*DRY, *given, "--seeds", "0-3").stdout


def test_a_folder_of_one_video_is_not_made(empty: Path) -> None:
    given = "--model", "pocket", "--seeds", "3", "-o", "cats/"
    assert invoke(*DRY, *given).exit_code == 0
    assert invoke(*DRY, "--model", "pocket", "-o", "cats/a.mp4").exit_code == 2  # which the command does not make
    assert list(empty.iterdir()) == []


def test_a_model_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fpsgen.machine.free_bytes", lambda _: 2**30)
    assert "more than is free" in invoke(*DRY, "--model", "14b").stdout
    assert "more than is free" not in invoke(*DRY, "--model", "pocket").stdout


def test_a_text_encoder_that_comes_block_by_block_needs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = told(invoke(*DRY, "--model", "14b", "--json"))["memory_bytes"]["text encoder"]
    monkeypatch.setattr("fpsgen.machine.free_bytes", lambda _: 8e9)
    by_blocks = told(invoke(*DRY, "--model", "14b", "--json"))["memory_bytes"]["text encoder"]
    # 24 blocks, of which few are there at once; 256,384 words of 4096 channels in bf16 stay
    assert 256_384 * 4096 * 2 < by_blocks < 256_384 * 4096 * 2 + 0.2 * whole


def test_a_transformer_s_file_needs_the_parts_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fpsgen.weights.shared.lacking", lambda _: ["text-encoder", "vae"])
    found = told(invoke(*DRY, "--model", "14b-fp8", "--json"))
    assert found["download"] == "about 14 GB, text-encoder about 11.4 GB, vae about 0.5 GB"
