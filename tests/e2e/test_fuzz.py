"""Damaged files before every reader: it reads them, or says what is wrong by the errors that its document names. By
seeds: a number that fails fails again."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from fpsgen import comment, pipeline, replay
from fpsgen.cli import lines, prompts
from fpsgen.cli.info import table
from fpsgen.cli.tables import Fitted
from fpsgen.errors import ModelError, UsageError
from fpsgen.presets import file, shipped
from fpsgen.request import Request, resolve
from fpsgen.target import Target
from fpsgen.video import VideoWriter
from fpsgen.weights import headers, kinds, models
from tests.tools import quantised
from tests.tools.cli import invoke
from tests.tools.mutated import json_mutated, mutated
from tests.tools.presets import SMALL

MOST_SECONDS = 10  # of one reading; a busy machine may need one
PROMPTS = (
    b'# mine\na cat surfing\n\n{"prompt": "a dog", "seed": 7, "res": "480p", "guidance": 5.5, "name": "dog"}\n'
    b'{"prompt": "the sea", "negative": "night", "image": "a.png", "frames": 81, "solver": "euler"}\n'
)
WORDS = [
    b'"prompt"',
    b'"seed": ',
    b'"image": "~x/y"',
    b'"name": "../a"',
    b"[[phase]]",
    b"sigma = ",
    b"density",
    b"window",
]


class Fuzzer:
    """Feeds `read` with damaged copies of `data`, under one file's name; `allowed` are the errors that it documents."""

    def __init__(self, path: Path, data: bytes, read: Callable[[Path], object], *allowed: type[Exception]):
        self.path, self.data, self.read, self.allowed = path, data, read, allowed

    def __call__(self, seed: int) -> None:
        self.path.write_bytes(mutated(self.data, random.Random(seed), WORDS))
        began = time.perf_counter()
        try:
            self.read(self.path)
        except self.allowed as refused:
            sentence_of(refused)
        assert time.perf_counter() - began < MOST_SECONDS


def sentence_of(refused: Exception) -> None:
    """What people read is one line of words, with a fix."""
    if isinstance(refused, UsageError):
        assert refused.hint
        assert f"{refused}".isprintable() or "\n" not in str(refused)
        str(refused).encode()


def run(fuzzer: Callable[[int], None], count: int, first: int = 0) -> None:
    for seed in range(first, first + count):
        try:
            fuzzer(seed)
        except (Exception, pytest.fail.Exception) as fault:
            raise AssertionError(f"seed {seed}: {type(fault).__name__}: {fault}") from fault


def read_prompt_lines(path: Path) -> None:
    _, faults = lines.read(path, lines.PromptLine(seed=1))
    faults.tell()


def pth(path: Path) -> bytes:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    torch.save(tensors | {"c": tensors["a.weight"].t()}, path)
    return path.read_bytes()


def safetensors(path: Path) -> bytes:
    """With a scale and a note of an 8-bit layer, and metadata."""
    eight = torch.ones(4, 4).to(torch.float8_e4m3fn)
    note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    held = {"a.weight": eight, "a.weight_scale": torch.ones(1), "a.comfy_quant": note, "b": torch.ones(3)}
    save_file(held, path, {"format": "pt", "trained_for": "fast", "_quantization_metadata": '{"layers": {"a": {}}}'})
    return path.read_bytes()


def gguf(path: Path) -> bytes:
    quantised.write_gguf(path, {"a": torch.ones(2, 32), "b": torch.ones(3)}, "Q8_0")
    return path.read_bytes()


def video(path: Path) -> bytes:
    with VideoWriter(path, (48, 32), 16) as writer:
        writer.write(np.zeros((2, 32, 48, 3), np.uint8))
        writer.finish({"fpsgen": "1", "prompt": "a = b; # \\ \n", "seed": 7})
    return path.read_bytes()


def picture(path: Path) -> bytes:
    with VideoWriter(path, (48, 32), 16) as writer:
        writer.write(np.zeros((1, 32, 48, 3), np.uint8))
        writer.finish({"fpsgen": "1", "prompt": "a cat", "seed": 7})
    return path.read_bytes()


def contents(path: Path) -> None:
    found = headers.contents(path)
    kinds.refuse_other_kinds(found, "LoRA")


READERS: dict[str, tuple[str, Callable[[Path], bytes], Callable[[Path], object], tuple[type[Exception], ...], int]] = {
    "preset": ("a.toml", lambda _: SMALL.encode(), lambda path: file.read(path, "a"), (UsageError,), 200),
    "shipped preset": (
        "a.toml", lambda _: file.text(shipped.find("14b-480p-fast")).encode(), lambda path: file.read(path, "a"),
        (UsageError,), 60,
    ),
    "prompts": ("a.txt", lambda _: PROMPTS, prompts.read_prompts, (UsageError,), 200),
    "prompt lines": ("a.txt", lambda _: PROMPTS, read_prompt_lines, (UsageError,), 200),
    "JSONL": ("a.jsonl", lambda _: PROMPTS[PROMPTS.index(b"{") :], read_prompt_lines, (UsageError,), 200),
    "safetensors": ("a.safetensors", safetensors, contents, (ModelError,), 200),
    "gguf": ("a.gguf", gguf, contents, (ModelError,), 150),
    "pth": ("a.pth", pth, contents, (ModelError,), 150),
    "JSON": ("config.json", lambda _: b'{"a": [1, 2.5], "b": {"c": null}}', headers.read_json, (ModelError,), 150),
    "mp4": ("a.mp4", video, comment.read, (UsageError,), 8),
    "webm": ("a.webm", video, comment.read, (UsageError,), 8),
    "png": ("a.png", picture, comment.read, (UsageError,), 50),
}  # fmt: skip


def fuzzer(name: str, folder: Path) -> Fuzzer:
    called, make, read, allowed, _ = READERS[name]
    path = folder / called
    return Fuzzer(path, make(path), read, *allowed)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    run(fuzzer(name, tmp_path), READERS[name][4])


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_thousands_of_times(name: str, tmp_path: Path) -> None:
    run(fuzzer(name, tmp_path), 40 * READERS[name][4], first=10_000)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a video would be begun, it is refused."""

    def refuse(*_: object, **__: object) -> None:
        raise UsageError("it would begin", hint="stop here")

    monkeypatch.setattr(pipeline, "generate", refuse)


def comments() -> list[dict[str, Any]]:
    """What comments of fpsgen's say, with and without LoRAs, parts and images."""
    model, target = models.find("pocket"), Target(torch.device("cpu"), torch.float32, torch.bfloat16)
    found = []
    for preset in ("bf16", "pocket-quality"):
        request = Request("a cat", model.defaults, 7, Path("a.mp4"), shipped.find(preset), (640, 384))
        about = resolve(request, model, target).about("0123456789abcdef")
        about |= {
            "loras": [
                {"file": "a.safetensors", "path": "/x/a.safetensors", "scale": 1.0, "sha256": "0", "expert": None}
            ]
        }
        about |= {"image": {"name": "a.png", "path": "/x/a.png", "sha256": "0"}, "parts": {"vae": "/x/vae"}, "crf": 10}
        about |= {"timings": {"load": 1.5, "total": 2.5, "peak_memory_bytes": 10**9}, "experts": None}
        found.append(json.loads(json.dumps(about)))
    return found


def understand(made: dict[str, Any]) -> None:
    console = Console(width=100)
    with console.capture():
        console.print(Fitted(table(made)))
    replay.differences(made, made)
    earlier = replay.understood(Path("a.mp4"), made)
    for ask in (
        lambda: earlier.model, lambda: earlier.parts, lambda: earlier.loras, lambda: earlier.image("image"),
        lambda: (earlier.device, earlier.dtypes, earlier.crf),
    ):  # fmt: skip
        try:
            ask()
        except UsageError as refused:
            sentence_of(refused)


def fuzz_comments(count: int, first: int = 0) -> None:
    whole = comments()

    def once(seed: int) -> None:
        rng = random.Random(seed)
        made = json_mutated(rng.choice(whole), rng)
        try:
            understand(made if isinstance(made, dict) else {})
        except UsageError as refused:
            sentence_of(refused)

    run(once, count, first)


def test_a_comment_of_odd_values_is_understood_or_refused() -> None:
    fuzz_comments(100)


def fuzz_replays(folder: Path, count: int, first: int = 0) -> None:
    whole = comments()
    for made in whole:  # whose files are nowhere
        made |= {"loras": [], "image": None, "parts": None}
    (folder / "frames").mkdir()

    def once(seed: int) -> None:
        rng = random.Random(seed)
        (folder / "frames" / "video.json").write_text(json.dumps(json_mutated(rng.choice(whole), rng)))
        result = invoke("--from", folder / "frames", "-o", folder / "a.mp4")
        assert (result.exit_code, result.stdout) == (2, ""), result.stderr
        assert result.stderr.count("error: ") == result.stderr.count("hint:  ") == 1, result.stderr

    run(once, count, first)


def test_a_replay_of_odd_values_ends_in_a_sentence(tmp_path: Path, begun: None) -> None:
    fuzz_replays(tmp_path, 15)


@pytest.mark.slow
def test_a_replay_of_odd_values_ends_in_a_sentence_a_thousand_times(tmp_path: Path, begun: None) -> None:
    fuzz_replays(tmp_path, 1000, first=10_000)


@pytest.mark.slow
def test_a_comment_of_odd_values_is_understood_or_refused_thousands_of_times() -> None:
    fuzz_comments(10_000, first=10_000)
