"""Fetching models, against a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fpsgen import pipeline
from fpsgen.cli import app
from fpsgen.errors import RenderError
from fpsgen.events import Event, Stage
from fpsgen.request import Request
from fpsgen.wan import config
from fpsgen.weights.known import MODELS
from fpsgen.weights.models import Model
from tests.tools import hub_server
from tests.tools.cli import models, told
from tests.tools.wan_pipeline import TEXT_DIM

ORIGINAL, DIFFUSERS = (source.repository for source in MODELS["1.3b"].sources.values())
T5 = "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache, and a hub that nobody reaches."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    at(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return folder


def at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let huggingface-hub talk to `url`; it reads its environment only when imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def server(
    cache: Path, both_formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[hub_server.Hub]:
    """Serves both repositories of 1.3b, with files in them that nobody needs."""
    folders = {}
    for name, form in ((ORIGINAL, "original"), (DIFFUSERS, "diffusers")):
        folders[name] = Path(shutil.copytree(both_formats[form], tmp_path / "hub" / form))
        (folders[name] / "assets").mkdir()
        (folders[name] / "assets" / "demo.mp4").write_bytes(b"x" * 1000)
        (folders[name] / "README.md").write_text("read me")
    with hub_server.running({**folders, "somebody/notes": tmp_path / "hub" / "original" / "assets"}) as running:
        at(monkeypatch, running.url)
        yield running


@pytest.mark.parametrize("form", ["original", "diffusers"])
def test_pull_fetches_what_is_needed_and_generate_finds_it(
    server: hub_server.Hub, tmp_path: Path, both_formats: dict[str, Path], form: str
) -> None:
    assert told(models("--json"), "models")["models"][1]["folder"] is None
    dry = told(models("pull", "1.3b", "--format", form, "--dry-run", "--json"), "models pull --dry-run")
    files = {p.relative_to(both_formats[form]).as_posix(): p.stat().st_size for p in both_formats[form].rglob("*.*")}
    assert dry["files"] == {name: size for name, size in files.items() if (both_formats[form] / name).is_file()}
    assert dry["absent_bytes"] == dry["bytes"] == sum(dry["files"].values())
    assert server.served == []

    folder = Path(told(models("pull", "1.3b", "--format", form, "--json"), "models pull")["folder"])
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(dry["files"])
    assert told(models("pull", "1.3b", "--format", form, "--dry-run", "--json"))["absent_bytes"] == 0
    listed = {(m["name"], m["format"]): m for m in told(models("--json"))["models"]}
    assert listed["1.3b", form]["folder"] == str(folder)
    assert sum(m["folder"] is not None for m in listed.values()) == 2  # and the pocket

    arguments = ["--res", "32x32", "--frames", "1", "--steps", "1", "-o", str(tmp_path / "a.mp4"), "--json"]
    for name in ("1.3b", (ORIGINAL if form == "original" else DIFFUSERS)):
        result = CliRunner().invoke(app, ["generate", "a cat", "--model", name, *arguments])
        assert result.exit_code == 0, result.output


def test_a_gpu_owner_without_weights_is_asked_on_a_terminal(
    server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []

    def generate(requests: list[Request], model: Model, *_: object, **__: object) -> Iterator[Event]:
        rendered.extend((model.name, request.settings.size) for request in requests)
        yield Stage("load", "text encoder")
        raise RenderError("this test makes no video")

    monkeypatch.setattr(pipeline, "generate", generate)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("fpsgen.cli.output.Output.may_ask", True)
    arguments = ["generate", "a cat", "-o", str(tmp_path / "a.mp4")]
    refused = CliRunner().invoke(app, arguments, input="n\n")
    assert refused.exit_code == 2
    assert "Fetch Wan2.1 1.3b now, about 18 GB?" in refused.stderr
    assert "fpsgen models pull 1.3b" in refused.stderr
    gone = CliRunner().invoke(app, arguments, input="")
    assert gone.exit_code == 130
    assert server.served == rendered == []
    accepted = CliRunner().invoke(app, arguments, input="y\n")
    assert "this test makes no video" in accepted.stderr
    assert rendered == [("1.3b", "832x480")]


def test_a_damaged_download_is_told_and_mended(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = Path(told(models("pull", "1.3b", "--json"))["folder"])
    blob = (folder / "Wan2.1_VAE.pth").resolve()
    blob.write_bytes(blob.read_bytes()[:1000])
    for result in (models("check", "1.3b"), CliRunner().invoke(app, ["generate", "a cat", "--model", "1.3b"])):
        assert result.exit_code == 2
        assert "Wan2.1_VAE.pth is damaged" in " ".join(result.stderr.split())
        assert "--force" in result.stderr
    assert "1.3b original incomplete" in " ".join(models().stdout.split())
    again = models("pull", "1.3b")
    assert again.exit_code == 2
    assert "arrived damaged" in again.stderr
    assert models("pull", "1.3b", "--force").exit_code == 0
    assert models("check", "1.3b").exit_code == 0


def test_other_models_are_refused_before_their_weights_are_fetched(server: hub_server.Hub) -> None:
    config = server.repositories[ORIGINAL] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "vace"}))
    result = models("pull", ORIGINAL)
    assert result.exit_code == 2
    assert "it is a vace model" in " ".join(result.stderr.split())
    assert [name for name, _ in server.served] == ["config.json"]


def test_a_hub_id_of_somebody_else_is_listed_once_it_is_here(server: hub_server.Hub) -> None:
    server.repositories["somebody/wan"] = server.repositories[DIFFUSERS]
    assert models("pull", "somebody/wan").exit_code == 0
    assert "somebody/wan" in [model["name"] for model in told(models("--json"))["models"]]
    assert told(models("check", "somebody/wan", "--json"))["format"] == "diffusers"


@pytest.mark.slow  # a quarter of a minute, five processes that load torch
def test_the_librarys_own_variables_are_heeded(server: hub_server.Hub, tmp_path: Path) -> None:
    """HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are read when huggingface-hub is imported: in a process of its own."""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url, "COLUMNS": "200"}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS")

    def run(*args: str, **more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "fpsgen", "models", *args]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True)

    pulled = run("pull", "1.3b")
    assert pulled.returncode == 0, pulled.stderr
    assert Path(pulled.stdout.strip()).is_relative_to(tmp_path / "home")
    assert "100%" in pulled.stderr  # its progress bars
    assert run("pull", "1.3b", "--dry-run", "--json").stderr == ""  # which programs get none of
    for command in (("check", "1.3b"), ("pull", "1.3b")):
        assert run(*command, HF_HUB_OFFLINE="1").returncode == 0
    refused = run("pull", "14b", HF_HUB_OFFLINE="1")
    assert refused.returncode == 2
    assert "HF_HUB_OFFLINE" in refused.stderr


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b"<html>log in</html>", b"[" * 1_000_000])
def test_what_is_no_hub_is_called_so(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(hub_server._Handler, "_answer", lambda self, body: self._send(200, answer, {}, body))
    result = models("pull", "1.3b")
    assert result.exit_code == 1
    assert "is not a Hugging Face hub" in " ".join(result.stderr.split())


def test_a_hub_that_accepts_and_never_answers_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface-hub names no time for its first question: it would wait for ever."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        result = models("pull", "1.3b")
    assert result.exit_code == 1
    assert "did not answer in time" in " ".join(result.stderr.split())
    assert "HF_HUB_ETAG_TIMEOUT" in result.stderr


def test_a_hubs_file_names_are_made_printable(server: hub_server.Hub) -> None:
    name = "diffusion_pytorch_model-\x1b[2J\nerror: forged-of-1.safetensors"
    (server.repositories[ORIGINAL] / name).write_bytes(b"x")
    listed = models("pull", "1.3b", "--dry-run")
    assert listed.exit_code == 0
    assert "\x1b" not in listed.output
    assert not [line for line in listed.output.splitlines() if line.startswith("error:")]


def test_an_interrupted_pull_goes_on_where_it_ended(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface-hub's pauses between attempts
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at a time
    server.cut[T5] = 3000
    first = models("pull", "1.3b", "--json")
    if first.exit_code:  # huggingface-hub may also have tried again by itself
        assert "continues from there" in json.loads(first.stdout)["hint"]
        assert models("pull", "1.3b").exit_code == 0
    first_byte = [start for name, start in server.served if name == T5]
    assert first_byte[0] == 0
    assert 0 < first_byte[1] <= 3000
    assert models("check", "1.3b").exit_code == 0


def test_offline_and_unreachable_and_unknown(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = models("pull", "1.3b")
    assert result.exit_code == 1
    assert "cannot be reached" in " ".join(result.stderr.split())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = models("pull", "1.3b")
    assert result.exit_code == 2
    assert "HF_HUB_OFFLINE" in result.stderr
    for name, says in (
        ("2b", "not a model to fetch"),
        ("a/b/c", "not a model to fetch"),
        ("pocket", "comes with fpsgen"),
    ):
        result = models("pull", name)
        assert result.exit_code == 2
        assert says in " ".join(result.stderr.split())


def test_repositories_that_are_absent_or_no_model(server: hub_server.Hub) -> None:
    result = models("pull", "somebody/nothing")
    assert result.exit_code == 2
    assert "the hub has no somebody/nothing" in " ".join(result.stderr.split())
    result = models("pull", "somebody/notes")
    assert result.exit_code == 2
    assert "holds no Wan checkpoint" in " ".join(result.stderr.split())


def test_a_full_disk_is_noticed_before_the_download(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    result = models("pull", "1.3b")
    assert result.exit_code == 2
    assert "HF_HOME" in result.stderr
    assert server.served == []


def test_list_says_what_is_not_here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    listed = " ".join(models().stdout.split())
    assert "pocket diffusers here 2" in listed
    assert "comes with fpsgen" in listed
    assert f"1.3b original not here about 18 GB text to video {ORIGINAL}" in listed
    assert "2.2-14b original not here about 126 GB text to video Wan-AI/Wan2.2-T2V-A14B" in listed
    assert f"{ORIGINAL}-Diffusers" not in listed  # the other format of what is not here
    every = [(model["name"], model["format"]) for model in told(models("--json"))["models"]]
    assert ("1.3b", "diffusers") in every
    assert models("list").stdout == models().stdout


FAST = "lightx2v/Wan2.1-Distill-Models"
FAST_FILE = "wan2.1_t2v_14b_lightx2v_4step.safetensors"
DIT = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def distilled(server: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of many transformers, each in a file of its own, without the parts that models share; 14B is as
    small as they are."""
    monkeypatch.setitem(config.SHAPES, "14b", replace(config.WAN_14B, text_dim=TEXT_DIM))
    folder = tmp_path / "hub" / "distilled"
    folder.mkdir()
    for name in (FAST_FILE, "wan2.1_t2v_14b_scaled_fp8_e4m3_lightx2v_4step.safetensors", "wan2.1_i2v_480p.safetensors"):
        shutil.copy(server.repositories[ORIGINAL] / DIT, folder / name)
    (folder / "config.json").write_text("{}")
    server.repositories[FAST] = folder
    return folder


def test_a_name_may_be_one_file_and_the_parts_that_it_needs(
    server: hub_server.Hub, distilled: Path, tmp_path: Path
) -> None:
    dry = told(models("pull", "14b-fast", "--dry-run", "--json"), "models pull --dry-run")
    assert set(dry["files"]) == {FAST_FILE}
    shared = {
        "Wan2.1_VAE.pth",
        T5,
        *(f"google/umt5-xxl/{name}" for name in ("tokenizer.json", "tokenizer_config.json")),
    }
    assert set().union(*dry["parts"].values()) >= shared
    assert dry["absent_bytes"] == sum(
        size for files in (dry["files"], *dry["parts"].values()) for size in files.values()
    )
    refused = models("check", "14b-fast")
    assert refused.exit_code == 2
    assert "fpsgen models pull 14b-fast (about 29 GB)" in " ".join(refused.stderr.split())

    folder = Path(told(models("pull", "14b-fast", "--json"), "models pull")["folder"])
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [FAST_FILE]
    assert {name for name, _ in server.served} == {FAST_FILE, *set().union(*dry["parts"].values())}
    again = told(models("pull", "14b-fast", "--dry-run", "--json"))
    assert (again["absent_bytes"], "parts" in again) == (0, False)
    listed = {(m["name"], m["format"]): m for m in told(models("--json"))["models"]}
    assert listed["14b-fast", "original"]["state"] == "here"
    assert listed["14b-fast", "original"]["bytes"] == (distilled / FAST_FILE).stat().st_size
    assert listed["14b-fast-fp8", "original"]["state"] == "not here"
    assert listed["1.3b", "original"]["state"] == "incomplete"

    arguments = ["--res", "32x32", "--frames", "1", "-o", str(tmp_path / "a.mp4"), "--json"]
    made = CliRunner().invoke(app, ["generate", "a cat", "--model", "14b-fast", *arguments])
    assert made.exit_code == 0, made.output
    assert (json.loads(made.stdout)["steps"], json.loads(made.stdout)["guidance"]) == (4, 1.0)

    assert told(models("rm", "14b-fast", "--yes", "--json"))["freed_bytes"] == (distilled / FAST_FILE).stat().st_size
    assert told(models("--json"))["models"][1]["state"] == "incomplete"  # the shared parts stay
    assert models("check", "14b-fast").exit_code == 2


@pytest.mark.parametrize(
    ("name", "files"), [("vae", ["Wan2.1_VAE.pth"]), ("text-encoder", [T5]), ("tokenizer", ["tokenizer.json"])]
)
def test_parts_are_fetched_by_their_own_names(
    server: hub_server.Hub, distilled: Path, tmp_path: Path, name: str, files: list[str]
) -> None:
    """As the error of a transformer without them asks for."""
    alone = shutil.copy(distilled / FAST_FILE, tmp_path / "mine.safetensors")
    refused = " ".join(models("check", alone).stderr.split())
    assert f"fpsgen models pull {name} (about" in refused
    folder = Path(told(models("pull", name, "--json"), "models pull")["folder"])
    assert {path.name for path in folder.rglob("*") if path.is_file()} >= set(files)
    assert f"fpsgen models pull {name} " not in " ".join(models("check", alone).stderr.split())
    assert models("rm", name, "--yes").exit_code == 0
    assert f"fpsgen models pull {name} (about" in " ".join(models("check", alone).stderr.split())


def test_a_file_that_its_repository_no_longer_has(server: hub_server.Hub, distilled: Path) -> None:
    (distilled / FAST_FILE).unlink()
    result = models("pull", "14b-fast")
    assert result.exit_code == 2
    assert f"{FAST} no longer has {FAST_FILE}" in " ".join(result.stderr.split())
    for result in (models("pull", FAST), models("check", FAST)):
        assert result.exit_code == 2
        told_of = " ".join(result.stderr.split())
        assert f"{FAST} holds transformers in files of their own" in told_of
        assert "14b-fast-fp8" in told_of
    only = models("pull", "14b-fast", "--format", "diffusers")
    assert only.exit_code == 2
    assert "14b-fast is published in original format only" in " ".join(only.stderr.split())
