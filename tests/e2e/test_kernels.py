"""`fpsgen kernels` through the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fpsgen.cli import app
from fpsgen.kernels import cache, disassembly, nvrtc
from fpsgen.kernels.listing import KERNELS
from tests.tools.cli import documented, told

pytestmark = pytest.mark.usefixtures("compiled_once")

OLD = "sm90_attention-" + "0123456789abcdef" * 2


def kernels(*args: object) -> Any:
    return CliRunner().invoke(app, ["kernels", *map(str, args)])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kernels, once for this file. Workers of one run share them, each beginning at an end of its own."""
    folder = tmp_path_factory.getbasetemp()
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FPSGEN_CACHE_DIR", str(folder := folder / "compiled"))
        names = list(KERNELS)
        result = kernels("build", *(names[::-1] if worker and worker[-1] in "13579" else names))
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    cache._private_folder.cache_clear()
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def full(compiled: Path, empty: Path) -> Path:
    shutil.copytree(compiled, empty.parent)
    return empty


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise nvrtc.NoCompilerError("NVRTC, which compiles kernels, is not installed", 'pip install "fpsgen[cuda13]"')

    monkeypatch.setattr(nvrtc, "library", missing)
    monkeypatch.setattr(nvrtc, "version", missing)


def leave_stale(folder: Path) -> None:
    """What an earlier version built, and what it did not finish."""
    for name in (OLD, f".{OLD}-a1b2c3d4"):
        (folder / name).mkdir(parents=True)
        (folder / name / "kernel.cubin").write_bytes(b"x" * 500)
    (folder / f".{OLD}.lock").touch()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_list_of_an_empty_cache(empty: Path) -> None:
    for args in (("list",), ()):
        result = kernels(*args)
        assert result.exit_code == 0, result.output
        for name in KERNELS:
            assert f"{name} " in result.stdout
        assert str(empty) in result.stdout
        assert "stale" not in result.stdout
    assert not empty.exists()  # to look does not make it


def test_list_says_what_is_compiled(full: Path) -> None:
    leave_stale(full)
    shutil.rmtree(cache.find(KERNELS["attention-fp8-fp16"].kernel).cubin.parent)  # type: ignore[union-attr]
    report = told(kernels("--json"), "kernels")
    assert report == told(kernels("list", "--json"))
    assert [entry["name"] for entry in report["kernels"]] == list(KERNELS)
    for entry in report["kernels"]:
        there = entry["name"] != "attention-fp8-fp16"
        assert entry["compiled"] is there
        assert entry["bytes"] == (Path(entry["path"]).stat().st_size if there else None)
        assert entry["about"]
    assert report["stale"] == {"count": 1, "bytes": 1000}
    assert report["folder"] == str(full)
    assert report["notes"] == []
    assert "stale: 1 compiled kernel, 1 kB" in kernels().stdout


def test_a_damaged_kernel_is_not_compiled(full: Path) -> None:
    cubin = cache.find(KERNELS["attention-fp8-fp32"].kernel).cubin  # type: ignore[union-attr]
    cubin.write_bytes(b"short")
    entry = told(kernels("--json"))["kernels"][0]
    assert (entry["name"], entry["compiled"]) == ("attention-fp8-fp32", False)
    assert told(kernels("list", "--json"))["stale"]["count"] == 0  # its folder is a present kernel's


def test_list_without_a_compiler_says_so(full: Path, no_compiler: None) -> None:
    result = kernels("--json")
    report = told(result)
    assert {entry["compiled"] for entry in report["kernels"]} == {None}
    assert report["stale"] is None
    assert report["nvrtc"] is None
    assert result.stderr.count("note:") == 1
    assert "cannot tell which kernels are compiled" in result.stderr
    assert "fpsgen[cuda13]" in result.stderr
    listed = kernels()
    assert listed.exit_code == 0
    assert "?" not in listed.stdout


def test_list_needs_no_torch_and_compiles_nothing(empty: Path) -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fpsgen.cli import app\n"
        "from fpsgen.kernels import nvrtc\n"
        "nvrtc.compile_cubin = None\n"
        "assert CliRunner().invoke(app, ['kernels']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['kernels', 'clear']).exit_code == 0\n"
        "heavy = {'torch', 'diffusers', 'cupy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_build_what_is_named_and_then_find_it(empty: Path) -> None:
    first = kernels("build", "attention-int8-int32", "Prologue-INT8-int32", "attention-e")
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["attention-int8-int32", "prologue-int8-int32"]
    assert "168 registers" in lines[0]
    assert " s " in lines[0]
    assert lines[2] == f"2 compiled, 0 from the cache; kept in {empty}"
    again = told(kernels("build", "attention-int8-int32", "--json"), "kernels build")["kernels"]
    assert [(entry["name"], entry["fresh"], entry["note"]) for entry in again] == [
        ("attention-int8-int32", False, None)
    ]
    assert Path(again[0]["path"]).exists()
    assert "from the cache" in kernels("build", "prologue-int8-int32").stdout


def test_build_is_of_all_by_default(full: Path) -> None:
    entries = told(kernels("build", "--json"))["kernels"]
    assert [(entry["name"], entry["fresh"]) for entry in entries] == [(name, False) for name in KERNELS]


@pytest.mark.parametrize("command", ["build", "show"])
def test_a_wrong_name_is_explained(empty: Path, command: str) -> None:
    for given, hint in (
        ("attentoin-fp8-fp32", "did you mean attention-fp8-fp32?"),
        ("xyz", "fpsgen kernels lists them"),
    ):
        result = kernels(command, given)
        assert result.exit_code == 2
        assert f"error: there is no kernel {given}" in result.stderr
        assert hint in result.stderr
    assert not empty.exists()  # nothing was compiled before the name was read


@pytest.mark.parametrize("args", [("build",), ("show", "attention-fp8-fp16"), ("clear", "--stale")])
def test_no_compiler_is_one_sentence(full: Path, no_compiler: None, args: tuple[str, ...]) -> None:
    before = names(full)
    result = kernels(*args)
    assert result.exit_code == 2
    assert "NVRTC, which compiles kernels, is not installed" in result.stderr
    assert "fpsgen[cuda13]" in result.stderr
    assert names(full) == before


def test_clear_needs_no_compiler(full: Path, no_compiler: None) -> None:
    assert told(kernels("clear", "--json"))["removed"] == len(KERNELS)


def test_a_cache_that_cannot_be_used(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(blocked))
    result = kernels("build", "attention-fp8-fp16", "prologue-fp8-fp16")
    assert result.exit_code == 1, result.output
    assert result.stderr.count("note:") == 1
    assert "for this process alone" in result.stderr
    assert "2 of 2 could not be kept" in result.stdout
    shown = kernels("show", "attention-fp8-fp16", "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["path"] is None  # it goes with this process
    report = told(kernels("--json"))
    assert len(report["notes"]) == 1
    assert "cannot be read: Not a directory" in report["notes"][0]
    cleared = kernels("clear")
    assert cleared.exit_code == 2
    assert "cannot be read: Not a directory" in cleared.stderr


def test_clear_takes_what_is_ours_and_nothing_else(full: Path, tmp_path: Path) -> None:
    leave_stale(full)
    foreign = {"notes.txt", "sm90_attention-short", f"{OLD}.bak", ".hidden"}
    for name in foreign:
        (full / name).write_text("mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (full / OLD.replace("attention", "prologue")).symlink_to(outside)
    foreign.add(OLD.replace("attention", "prologue"))
    size = sum(own.size for own in cache.contents().values())
    report = told(kernels("clear", "--json"), "kernels clear")
    assert report == {"folder": str(full), "removed": len(KERNELS) + 1, "bytes": size, "building": []}
    assert names(full) == foreign
    assert (outside / "mine").exists()
    assert f"nothing to remove in {full}" in kernels("clear").stdout


def test_clear_stale_leaves_present_kernels(full: Path) -> None:
    before = names(full)
    leave_stale(full)
    result = kernels("clear", "--stale")
    assert result.exit_code == 0, result.output
    assert f"removed 1 compiled kernel, 1 kB, from {full}" in result.stdout
    assert names(full) == before


def test_another_compiler_makes_all_stale(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: (99, 0))
    report = told(kernels("--json"))
    assert report["stale"]["count"] == len(KERNELS)
    assert not any(entry["compiled"] for entry in report["kernels"])
    assert told(kernels("clear", "--stale", "--json"))["removed"] == len(KERNELS)


def test_a_kernel_that_is_being_built_survives(full: Path) -> None:
    cubin = cache.find(KERNELS["attention-fp8-fp16"].kernel).cubin  # type: ignore[union-attr]
    half_written = full / f".{cubin.parent.name}-a1b2c3d4"
    half_written.mkdir()
    with cache.locked(cubin.parent):
        result = kernels("clear")
    assert result.exit_code == 0, result.output
    assert f"kept {cubin.parent.name}" in result.stderr
    assert names(full) == {cubin.parent.name, half_written.name, f".{cubin.parent.name}.lock"}
    assert cubin.exists()
    assert told(kernels("clear", "--json"))["removed"] == 1


def test_clear_of_a_cache_that_nobody_may_write(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    before = names(full)
    monkeypatch.setattr("shutil.rmtree", refuse)
    result = kernels("clear")
    assert result.exit_code == 2
    many = len(KERNELS)
    assert f"{many} of {many} kernels cannot be removed from {full}" in result.stderr
    assert "Permission denied" in result.stderr
    assert "FPSGEN_CACHE_DIR" in result.stderr
    assert names(full) == before


def test_clear_where_there_is_no_cache(empty: Path) -> None:
    assert kernels("clear").exit_code == 0
    assert not empty.exists()


def test_show_an_attention_kernel(full: Path) -> None:
    report = told(kernels("show", "attention-int8-int32", "--json"), "kernels show")
    used = report["functions"]["fps_attention"]
    assert used["tensor_core_instructions"] == {"IGMMA": 16, "QGMMA": 12}
    assert (used["registers"], used["spilled_bytes"], used["stack_bytes"], used["shared_bytes"]) == (168, 0, 0, 0)
    assert report["registers_after_launch"] == {"consumer": 240, "producer": 24}
    assert report["shared_bytes"] == KERNELS["attention-int8-int32"].kernel.shared_bytes
    assert report["options"] == list(cache.options_of(KERNELS["attention-int8-int32"].kernel))
    assert report["bytes"] == Path(report["path"]).stat().st_size
    text = kernels("show", "attention-int8-int32").stdout
    assert "16 IGMMA, 12 QGMMA" in text
    assert "240 to consumers, 24 to the producer" in text
    assert "-DSCORES=2" in text
    assert report["path"] in text


def test_show_prints_the_model(full: Path) -> None:
    model = told(kernels("show", "attention-fp8-fp16", "--json"))["model"]
    text = kernels("show", "attention-fp8-fp16").stdout
    assert model["binds"] in text
    assert model["caveat"] in text
    assert "model" in model["caveat"]
    assert f"{model['cycles']:.0f} for such a pair" in text
    assert model.keys() == documented("model of an attention kernel")[0]
    assert model["cycles"] >= model["slots"] > 0
    for by_l2 in model["tflops"].values():
        assert all(f"{tflops} with {l2} TB/s" in text for l2, tflops in by_l2.items())
    prologue = told(kernels("show", "prologue-fp8-fp16", "--json"))["model"]
    assert prologue.keys() == documented("model of a prologue")[0] - {"accesses_by_bits"}
    assert prologue["dram_bytes"] == sum(part["dram_bytes"] for part in prologue["functions"].values())
    assert prologue["functions"].keys() == told(kernels("show", "prologue-fp8-fp16", "--json"))["functions"].keys()
    assert "bits" in kernels("show", "prologue-fp8-fp16").stdout
    choice = told(kernels("show", "select-640", "--json"))["model"]
    assert choice.keys() == prologue.keys() | documented("model of a choice of tiles")[0]
    assert f"{choice['milliseconds']:.2f} ms" in kernels("show", "select-640").stdout


def test_show_takes_what_a_card_was_measured_to_do(full: Path, tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    file.write_text('{"device": "a slow card", "versions": {}, "intervals": {"MUFU": 80}, "latencies": {}}')
    shown = kernels("show", "attention-fp8-fp32", "--pipes", file)
    assert shown.exit_code == 0, shown.output
    assert "a slow card" in shown.stdout
    slow = told(kernels("show", "attention-fp8-fp32", "--pipes", file, "--json"))["model"]
    assert slow["cycles"] > 2 * told(kernels("show", "attention-fp8-fp32", "--json"))["model"]["cycles"]
    assert "a slow card" in slow["pipes_from"]
    file.write_text("{}")
    for name, given in (
        ("attention-fp8-fp32", file),
        ("attention-fp8-fp32", tmp_path / "missing"),
        ("prologue-fp8-fp32", file),
    ):
        assert kernels("show", name, "--pipes", given).exit_code == 2


def test_show_without_nvdisasm_says_how_to_install_it(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(wheel: str) -> None:
        raise PackageNotFoundError(wheel)

    monkeypatch.setattr(disassembly, "files", missing)
    monkeypatch.setattr(disassembly.shutil, "which", lambda name: None)
    result = kernels("show", "attention-fp8-fp16")
    assert result.exit_code == 0, result.output
    assert "28 QGMMA" in result.stdout
    assert result.stderr.count("note:") == 1
    assert "pip install nvidia-cuda-nvdisasm" in result.stderr
    report = told(kernels("show", "attention-fp8-fp16", "--json"))
    assert report["model"] is None
    assert "nvdisasm" in report["no_model"]


@pytest.mark.parametrize("name", ["attention-fp8-fp16", "prologue-fp8-fp16"])
@pytest.mark.parametrize(
    "says",
    ["#!/bin/sh", "#!/bin/sh\necho .text.other:", "#!/bin/sh\nprintf '\\377'", "#!/bin/sh\nexit 9", "no program", None],
    ids=["nothing", "another", "no text", "fails", "no program", "not there"],
)
def test_show_with_an_nvdisasm_that_lists_nothing_of_it(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str | None
) -> None:
    tool = tmp_path / "nvdisasm"
    if says is not None:
        tool.write_text(f"{says}\n")
        tool.chmod(0o755)
    monkeypatch.setattr(disassembly, "tool", lambda: tool)
    report = told(kernels("show", name, "--json"))
    assert report["model"] is None
    assert "nvdisasm" in report["no_model"]


def test_show_compiles_what_is_not_compiled(empty: Path) -> None:
    text = kernels("show", "prologue-fp8-fp16").stdout
    assert [line.split()[0] for line in text.splitlines()[2:6]] == [
        "fps_v_again",
        "fps_tiles",
        "fps_channels",
        "fps_rows",
    ]
    assert "setmaxnreg" not in text
    assert cache.find(KERNELS["prologue-fp8-fp16"].kernel) is not None


def test_json_before_the_command_is_explained(empty: Path) -> None:
    result = kernels("--json", "clear")
    assert result.exit_code == 2
    assert "fpsgen kernels clear … --json" in json.loads(result.stdout)["hint"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_table_that_could_not_be_delivered_is_a_failure(empty: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fpsgen", "kernels"]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 1
    assert "could not be written to standard output: No space left on device" in found.stderr
    assert "Traceback" not in found.stderr
