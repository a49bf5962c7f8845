"""`fpsgen doctor` through the command line, on a machine without a card and on one made up."""

from __future__ import annotations

import builtins
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from fpsgen import doctor
from fpsgen.attention import door, hopper
from fpsgen.attention.emulator import TOLERANCE, VARIANTS, emulate
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.qk import QKTransform, prepare
from fpsgen.cli import app
from fpsgen.doctor import checks, trials
from fpsgen.kernels import cache, nvrtc
from fpsgen.weights.known import MODELS
from tests.kernels import host
from tests.tools.cli import told

pytestmark = pytest.mark.usefixtures("compiled_once")

PLANS = ["dense bf16", "dense fp8", "sparse bf16", "sparse fp8", "sparse int8"]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folders for kernels and models that do not exist yet; no choice of a backend outlives a test."""
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "a" / "b"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cache._private_folder.cache_clear()
    door.choose.cache_clear()
    yield tmp_path
    door.choose.cache_clear()


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def no_compilation(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a trial of the compiler, which takes seconds."""
    monkeypatch.setitem(doctor.CHECKS, "compile", lambda: trials.TrialCompile(state="skipped", why="for a test"))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 as torch would tell of it; the kernels run on this machine's CPU in its place."""
    about = SimpleNamespace(
        name="NVIDIA H100", major=9, minor=0, total_memory=85_000_000_000, multi_processor_count=132
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr("fpsgen.machine.free_bytes", lambda device: 84_000_000_000)
    monkeypatch.setattr("fpsgen.machine.best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(nvrtc, "driver_version", lambda: (13, 0))
    monkeypatch.setattr(hopper, "why_not_here", lambda device: None)


def run(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*args, "doctor"])
    assert result.exit_code == code, result.output
    return result


def report_of(code: int = 0) -> dict:
    return told(CliRunner().invoke(app, ["doctor", "--json"]), "doctor", code)


def test_its_json_is_complete(no_card: None, caches: Path) -> None:
    report = report_of()
    assert list(report) == ["verdict", *doctor.CHECKS]
    assert not [name for name, found in report.items() if "fault" in found]
    versions = report["versions"]
    assert versions["found"].keys() == {
        "fpsgen", "python", "platform", "torch", "torch_cuda", "cupy", "nvrtc", "triton", "diffusers", "transformers",
        "huggingface_hub", "ffmpeg",
    }  # fmt: skip
    assert versions["found"]["torch"] == torch.__version__
    assert versions["faults"] == {}
    assert all(versions["found"][name] is None for name in versions["absent"])
    assert report["gpus"]["devices"] == []
    assert report["gpus"]["why_none"]
    kernels, models = report["kernel_cache"], report["model_cache"]
    assert kernels == {"folder": str(caches / "a" / "b" / "kernels"), "why_not": None, "count": 0, "bytes": 0}
    assert models["folder"] == str(caches / "hub")
    assert models["free_bytes"] > 0
    assert (models["models"], models["pocket"]) == ([], True)
    assert list(report["attention"]["plans"]) == PLANS
    for name, plan in report["attention"]["plans"].items():
        assert plan["backend"] == ("dense" if name == "dense bf16" else "reference")
        assert name == "dense bf16" or "it is for CUDA GPUs" in plan["refused"].values()
    assert list(report["linear"]["plans"]) == ["fp8", "int8"]
    assert all(own["backend"] == "plain PyTorch" and own["refused"] for own in report["linear"]["plans"].values())
    assert report["compile"]["state"] == "ok"
    assert report["compile"]["registers"] == 168
    assert report["compile"]["seconds"] > 0
    nothing = {"errors": {}, "sums": {}, "elementwise": None}
    assert report["launch"] == {"state": "skipped", "why": "there is no CUDA GPU", **nothing}
    assert report["verdict"]["works"]
    assert list(caches.iterdir()) == []  # nothing stays


def test_people_are_told_the_same(no_card: None) -> None:
    text = run().stdout
    lines = text.splitlines()
    for title in ("versions", "machine", "GPUs", "compiled kernels", "models", "trial compilation", "trial launch"):
        assert title in lines
    assert any(line.split()[0] == "attention-fp8-fp16" and line.endswith("168 registers") for line in lines if line)
    assert lines[0].startswith("No CUDA GPU (")
    assert lines[0].endswith("fpsgen renders with the pocket model, on the CPU.")
    assert lines[1] == 'Next: fpsgen generate "a cat surfing"'


def test_reasons_of_backends_are_told_once(no_compilation: None) -> None:
    lines = run().stdout.splitlines()
    begin = lines.index("attention at 832x480, 81 frames") + 1
    rows = lines[begin : lines.index("", begin)]
    cells = [re.split(r"\s{2,}", row.strip()) for row in rows]
    assert [run_by for _, run_by in cells[: len(PLANS)]] == ["torch's SDPA", *["reference"] * 4]
    reasons = [why for _, why in cells[len(PLANS) :]]
    assert len(reasons) == len(set(reasons)) < 6
    assert ["not hopper, flex", "it is for CUDA GPUs"] in cells


@pytest.mark.parametrize(
    ("free", "told"),
    [
        (12e9, "fits: the text encoder takes 11.4 GB"),
        (10e9, "runs block by block, slower: the whole text encoder would take 11.4 GB"),
    ],
)
def test_what_fits_is_told(no_compilation: None, monkeypatch: pytest.MonkeyPatch, free: float, told: str) -> None:
    """1.3B at 480p: the text encoder's 5.68 billion weights in bfloat16 are the most that is in memory at once."""
    monkeypatch.setattr("fpsgen.machine.free_bytes", lambda device: int(free))
    text = " ".join(run().stdout.split())  # a narrow terminal has a row on two lines
    assert f"1.3b at 480p {told}" in text
    assert "more, even block by block: it takes " in text
    fits = report_of()["fits"]
    assert [(one["model"], one["size"]) for one in fits["models"]] == [
        ("1.3b", "480p"),
        ("14b", "480p"),
        ("14b", "720p"),
        ("2.2-14b", "720p"),
        ("5b", "720p"),
    ]
    assert [one["fits"] for one in fits["models"]] == [free > 11.4e9, False, False, False, False]
    assert all(one["needs_bytes"] == max(one["parts"].values()) >= one["least_bytes"] for one in fits["models"])


def test_what_is_kept_is_told_with_its_size(no_compilation: None, caches: Path) -> None:
    folder = caches / "a" / "b" / "calibration" / "0123"
    folder.mkdir(parents=True)
    (folder / "one.piece").write_bytes(b"x" * 4321)
    text = run().stdout
    assert f"calibration{folder.parent}(4kB)" in "".join(text.split())  # a long path stands on several lines
    assert "remove these folders" in text
    assert [own["bytes"] for own in report_of()["work_cache"]["folders"]] == [4321, 0, 0]


def test_without_a_compiler_all_else_works(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc.library.cache_clear()
    nvrtc.version.cache_clear()
    monkeypatch.setattr(nvrtc, "wheel_folder", lambda wheel: None)
    monkeypatch.setattr(nvrtc.ctypes.util, "find_library", lambda name: None)
    try:
        report, text = report_of(), " ".join(run().stdout.split())
    finally:
        nvrtc.library.cache_clear()
        nvrtc.version.cache_clear()
    assert report["versions"]["found"]["nvrtc"] is None
    assert report["versions"]["absent"]["nvrtc"] == 'pip install "fpsgen[cuda13]"'
    assert report["compile"]["state"] == "skipped"
    assert 'NVRTC not installed: pip install "fpsgen[cuda13]" (useful only with an NVIDIA GPU)' in text
    assert "skipped: NVRTC, which compiles kernels, is not installed" in text


def test_a_compiler_that_fails_is_a_fault(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise nvrtc.CompileError("a kernel does not compile: kernel.cu(1): error\nline after line")

    monkeypatch.setattr(cache, "compile_checked", fail)
    report = report_of(code=1)
    assert report["compile"]["state"] == "failed"
    assert report["compile"]["why"] == "a kernel does not compile: kernel.cu(1): error"
    assert not report["verdict"]["works"]
    text = run(code=1).stdout
    assert "Broken: kernels do not compile: a kernel does not compile: kernel.cu(1): error." in text
    assert "fpsgen renders" not in text


def test_a_library_that_cannot_be_loaded_is_a_fault(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("libnvrtc.so.13: wrong ELF class")

    nvrtc.version.cache_clear()
    monkeypatch.setattr(nvrtc, "library", fail)
    report = report_of(code=1)
    nvrtc.version.cache_clear()
    assert "wrong ELF class" in report["versions"]["faults"]["nvrtc"]
    assert "nvrtc" not in report["versions"]["absent"]
    assert report["verdict"]["problems"] == [
        "kernels do not compile: OSError: libnvrtc.so.13: wrong ELF class",
    ]


@pytest.mark.parametrize("place", ["a file", "no such parent"])
def test_a_cache_that_cannot_be_used_is_a_warning(
    no_card: None, caches: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    blocked = caches / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(blocked) if place == "a file" else "/proc/no/such/place")
    report = report_of()
    assert report["kernel_cache"]["why_not"]
    assert len(report["verdict"]["warnings"]) == 1
    assert "compiles its kernels again" in run().stderr
    assert report["compile"]["state"] == "ok"  # elsewhere


def test_it_counts_what_is_there(no_card: None, both_formats: dict[str, Path], caches: Path) -> None:
    kernel = caches / "a" / "b" / "kernels" / ("sm90_attention-" + "0" * 32)
    kernel.mkdir(parents=True)
    (kernel / "kernel.cubin").write_bytes(b"x" * 1234)
    for form, folder in both_formats.items():
        repository = caches / "hub" / f"models--{MODELS['1.3b'].sources[form].repository.replace('/', '--')}"  # type: ignore[index]
        shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    next((caches / "hub").rglob("Wan2.1_VAE.pth")).unlink()  # the original's
    report = report_of()
    assert (report["kernel_cache"]["count"], report["kernel_cache"]["bytes"]) == (1, 1234)
    found = {model["format"]: model for model in report["model_cache"]["models"]}
    assert {form: model["whole"] for form, model in found.items()} == {"diffusers": True, "original": False}
    assert {model["name"] for model in found.values()} == {"1.3b"}
    assert found["diffusers"]["bytes"] > 0
    text = run().stdout
    assert re.search(r"1\.3b +original, incomplete", text)
    assert "1, 1 kB" in text


def test_a_check_that_breaks_does_not_end_the_others(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setitem(doctor.CHECKS, "model_cache", fail)
    report = report_of(code=1)
    assert report["model_cache"] == {"fault": "ZeroDivisionError: division by zero"}
    assert report["compile"]["state"] == "ok"
    assert "Broken: the check of model_cache failed: ZeroDivisionError" in run(code=1).stdout
    result = CliRunner().invoke(app, ["--debug", "doctor"])
    assert "Traceback" in result.stderr
    CliRunner().invoke(app, ["--version"])


def test_a_torch_that_cannot_be_imported_is_the_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_torch(name: str, *args: Any) -> Any:
        if name == "torch":
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return real(name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without_torch)
        report = report_of(code=1)
    assert report["verdict"]["problems"] == [
        "torch cannot be used: ImportError: libcudart.so.13: cannot open shared object file"
    ]
    assert report["compile"]["state"] == "ok"


def test_a_missing_library_names_the_command(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, command = checks.PARTS["transformers"]
    monkeypatch.setitem(checks.PARTS, "transformers", (lambda: None, command))
    verdict = report_of(code=1)["verdict"]
    assert verdict["problems"] == ["transformers is not installed"]
    assert verdict["next"] == "pip install transformers"


def test_on_a_card_the_kernels_are_tried(card: None) -> None:
    with host.on_this_machine(host.Schedule(seed=2)):
        report = report_of()
    assert report["launch"]["state"] == "ok"
    assert report["launch"]["errors"].keys() == {"fp8", "int8"}
    assert all(error <= TOLERANCE for error in report["launch"]["errors"].values())
    assert report["launch"]["sums"] == {
        "fp8": "accumulator aligned, FP16 sums rounded",
        "int8": "accumulator aligned",
    }
    assert report["launch"]["elementwise"] <= TOLERANCE
    assert report["gpus"]["devices"][0]["capability"] == "9.0"
    assert report["verdict"]["can"] == "NVIDIA H100: Hopper kernels ready."
    assert report["verdict"]["next"] == "fpsgen models pull 1.3b"
    found = {name: plan["backend"] for name, plan in report["attention"]["plans"].items()}
    assert {found[name] for name in PLANS if "fp8" in name or "int8" in name} == {"hopper"}


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_the_trial_does_not_depend_on_the_order_of_sums(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """q and k of a card differ by a few ulps, each row by others, because their norm is a sum in another order."""
    generator, plan = torch.Generator().manual_seed(0), trials.tiny_plans()[kind]

    def apart(x: Tensor) -> Tensor:
        return x * (1 + (torch.rand(*x.shape[:2], 1, 1, generator=generator) * 2 - 1) * 2**-21)

    def attention(q: Tensor, k: Tensor, v: Tensor, transform: QKTransform, plan: AttentionPlan) -> Tensor:
        q, k = (apart(prepare(x, norm, transform)) for x, norm in ((q, transform.norm_q), (k, transform.norm_k)))
        return emulate(q, k, v, plan, VARIANTS[hopper.FASTEST[plan.qk]])

    monkeypatch.setattr(hopper, "attention", attention)
    found = [trials.relative_errors(torch.device("cpu"), plan) for _ in range(20)]
    assert max(max(errors.values()) for errors in found) <= TOLERANCE


def test_kernels_that_fail_are_told_beside_a_missing_library(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checks.PARTS, "diffusers", (lambda: None, checks.PARTS["diffusers"][1]))
    monkeypatch.setattr(hopper, "attention", lambda q, k, v, *rest: v)
    missing, failing = report_of(code=1)["verdict"]["problems"]
    assert missing == "diffusers is not installed"
    assert failing.startswith("the Hopper kernels fail on this GPU: results are wrong")


@pytest.mark.parametrize("fault", ["wrong", "nan", "raises"])
def test_a_card_that_computes_nonsense_is_a_fault(card: None, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def nonsense(q: Tensor, k: Tensor, v: Tensor, *args: object) -> Tensor:
        if fault == "raises":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be")
        return v if fault == "wrong" else v * float("nan")

    monkeypatch.setattr(hopper, "attention", nonsense)
    report = report_of(code=1)
    assert report["launch"]["state"] == "failed"
    assert ("illegal memory access" if fault == "raises" else "results are wrong: relative error fp8 ") in report[
        "launch"
    ]["why"]
    text = run(code=1).stdout
    assert "Broken: the Hopper kernels fail on this GPU" in text
    assert "might be" not in text


@pytest.mark.parametrize("error", [0.1, float("nan")])
def test_nonsense_between_products_is_a_fault(card: None, monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    monkeypatch.setattr(trials, "relative_errors", lambda *_: {"a rule": 0.0})
    monkeypatch.setattr(trials, "elementwise_error", lambda _: error)
    launch = report_of(code=1)["launch"]
    assert launch["state"] == "failed"
    assert "between products" in launch["why"]
    assert launch["elementwise"] == (error if error == 0.1 else None)


def test_a_card_without_cupy_is_told_how_to_get_it(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "why_not_here", lambda device: "it needs CuPy")
    monkeypatch.setitem(checks.PARTS, "cupy", (lambda: None, 'pip install "fpsgen[cuda13]"'))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    verdict = report_of()["verdict"]
    assert verdict["can"] == "NVIDIA H100: Wan's models run. The hopper backend would run too, but it needs CuPy."
    assert verdict["next"] == 'pip install "fpsgen[cuda12]"'


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert checks.why_no_gpu(None) == "this torch was built without CUDA"
    assert checks.why_no_gpu("13.0") == "this torch was built without CUDA, though there is an NVIDIA driver"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert checks.why_no_gpu(None) == "there is no NVIDIA driver"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES=''" in checks.why_no_gpu("13.0")
