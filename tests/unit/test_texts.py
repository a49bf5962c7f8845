"""Text embeddings that are kept: found again by what they depend on, never wrong, never too many."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fpsgen import texts
from fpsgen.events import Event, Notice, finish
from fpsgen.target import Target
from fpsgen.texts import Texts
from fpsgen.weights import load, models
from fpsgen.weights.models import Model
from tests.tools.calibration import CPU

TARGET = Target(CPU, torch.float32, torch.bfloat16)
PROMPTS = ["a cat surfing on the sea", "a dog"]


@pytest.fixture
def model(wan_folder: Path) -> Model:
    return models.open_folder(wan_folder, "wan")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "texts"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by each text encoder that is loaded."""
    found: list[object] = []
    empty = load.empty_text_encoder
    monkeypatch.setattr(load, "empty_text_encoder", lambda checkpoint: found.append(checkpoint) or empty(checkpoint))
    return found


def encode(model: Model, known: Texts | None, prompts: list[str] = PROMPTS) -> list[Tensor]:
    return finish(texts.encode_prompts(prompts, [""], model, TARGET, known=known), lambda event: None)


def test_known_texts_need_no_text_encoder_and_are_the_same_bits(cache: Path, model: Model, loads: list[object]) -> None:
    fresh = encode(model, None)
    assert all(map(torch.equal, encode(model, Texts(model, TARGET)), fresh))
    assert len(loads) == 2
    events: list[Event] = []
    again = finish(texts.encode_prompts(PROMPTS, [""], model, TARGET, known=Texts(model, TARGET)), events.append)
    assert len(loads) == 2
    assert all(map(torch.equal, again, fresh))
    assert any(isinstance(event, Notice) and event.detail for event in events)
    encode(model, Texts(model, TARGET), ["a cat"])  # one that is not known
    assert len(loads) == 3


def test_what_an_embedding_depends_on_is_told_apart(cache: Path, model: Model, tmp_path: Path) -> None:
    tokens, text = [1, 2], torch.ones(1, 2, 24)
    Texts(model, TARGET).put(tokens, text)
    assert torch.equal(Texts(model, TARGET).get(tokens), text)  # type: ignore[arg-type]
    assert Texts(model, TARGET).get([1, 3]) is None
    assert Texts(model, replace(TARGET, text_dtype=torch.float32)).get(tokens) is None

    (file,) = model.checkpoint.text_encoder
    for change in ("values", "dtype"):
        state = load_file(file)
        name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
        state = (
            {n: x + (n == name) for n, x in state.items()}
            if change == "values"
            else {n: x.double() for n, x in state.items()}
        )
        save_file(state, other := tmp_path / f"{change}.safetensors")
        changed = replace(model, checkpoint=replace(model.checkpoint, text_encoder=[other]))
        assert Texts(changed, TARGET).get(tokens) is None, change

    data = bytearray(file.read_bytes())
    data[-4] ^= 1  # a damaged copy, whose embeddings must not outlive its repair
    (damaged := tmp_path / "damaged.safetensors").write_bytes(data)
    changed = replace(model, checkpoint=replace(model.checkpoint, text_encoder=[damaged]))
    assert Texts(changed, TARGET).get(tokens) is None


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: b"", lambda data: data[:200] + b"x" + data[201:]]
)
def test_a_broken_file_is_made_anew(cache: Path, model: Model, loads: list[object], damage) -> None:  # type: ignore[no-untyped-def]
    fresh = encode(model, Texts(model, TARGET))
    for file in cache.glob("*/*.piece"):
        file.write_bytes(damage(file.read_bytes()))
    assert all(map(torch.equal, encode(model, Texts(model, TARGET)), fresh))
    assert len(loads) == 2
    encode(model, Texts(model, TARGET))
    assert len(loads) == 2


def test_the_longest_unused_goes_first(cache: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    known, text = Texts(model, TARGET), torch.ones(1, 100, 24)
    for number in range(3):
        known.put([number], text)
    (size,) = {file.stat().st_size for file in cache.glob("*/*.piece")}
    monkeypatch.setattr(texts, "MOST_BYTES", 3 * size)
    for age, file in enumerate(sorted(cache.glob("*/*.piece"))):
        os.utime(file, (1000 - age, 1000 - age))
    assert known.get([0]) is not None  # used now
    known.put([3], text)
    assert known.get([0]) is not None
    assert known.get([3]) is not None
    assert sum(known.get([number]) is not None for number in (1, 2)) == 1
    assert sum(file.stat().st_size for file in cache.glob("*/*.piece")) <= 3 * size


def test_several_may_write_at_once(cache: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST_BYTES", 20_000)  # so that they remove each other's, too

    def write(number: int) -> None:
        known = Texts(model, TARGET)
        for turn in range(10):
            known.put([turn % 3], torch.full((1, 50, 24), float(turn % 3)))
            found = known.get([number % 3])
            assert found is None or found.eq(number % 3).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))


@pytest.mark.parametrize("place", ["file", "~nobody-of-this-name/cache"])
def test_without_a_place_nothing_is_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FPSGEN_CACHE_DIR", place if place.startswith("~") else str(tmp_path / place))
    assert all(map(torch.equal, encode(model, Texts(model, TARGET)), encode(model, None)))
